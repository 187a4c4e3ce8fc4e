"""The command line on a terminal: a pseudo-terminal of a width, on which one process runs several commands."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_RUN = """
import json, sys
from fxtrace.cli import app
for args in json.loads(sys.argv[1]):
    try:
        app(args)
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        print(f"\\x1e{end.code or 0}", flush=True)
"""
_ERASED = re.compile(r"[^\n]*(\n(\x1b\[\?25h)?\r?\x1b\[1A)?\x1b\[2K")  # a line, from below it or on it
_STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Shown:
    """What a command showed: its exit code, and the lines that stay on the terminal, without their style."""

    code: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def steps(self) -> list[str]:
        """The command lines that it says are next."""
        return [line.removeprefix("next: ") for line in self.lines if line.startswith("next: ")]


def on_terminal(*commands: tuple[object, ...], width: int = 80, folder: Path | None = None) -> list[Shown]:
    """Runs commands of fxtrace one after another in a process whose stdout and stderr are a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(width), "TERM": "xterm"}
    script = [sys.executable, "-c", _RUN, json.dumps([[str(word) for word in command] for command in commands])]
    with subprocess.Popen(script, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=folder) as process:
        os.close(theirs)
        output = b""
        while chunk := _read(ours):
            output += chunk
    os.close(ours)
    assert process.returncode == 0, output.decode()
    *parts, rest = re.split(r"\x1e(\d+)\n", output.decode().replace("\r\n", "\n"))
    assert rest == ""
    return [Shown(int(code), _lines(text)) for text, code in zip(parts[::2], parts[1::2], strict=True)]


def words_of(step: str) -> list[str]:
    """The words of a command line after the program's name."""
    words = shlex.split(step)
    return words[words.index("fxtrace") + 1 :]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # so Linux says that nobody has the other end open
        return b""


def _lines(text: str) -> tuple[str, ...]:
    return tuple(_STYLE.sub("", _ERASED.sub("", text)).rstrip("\n").replace("\r", "").split("\n"))
