"""What to do next: one command line, printed after a command's answer where a person reads along."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import typer


def next_step(
    *words: str, trace: str = "latest", server: str | None = None, store: str | None = None, note: str = ""
) -> None:
    """Prints a command line that goes on from here, on stderr; nothing where stdout or stderr is no terminal.

    Args:
        words: the command and its arguments.
        trace: the trace that it is about, as the user named it; `latest` goes without saying.
        server: the server that was asked, as the command got it.
        store: the store that was read, as the command got it.
        note: what the command line is for.

    Example:
        >>> next_step("explain", "decoder.0.cross_attention.weights", trace="a3a3d0bc")
        next: fxtrace explain decoder.0.cross_attention.weights --trace a3a3d0bc
    """
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        return
    line = " ".join([program(), shlex.join([*words, *_place(trace, server, store)])])
    typer.secho(f"\nnext: {line}" + (f"   # {note}" if note else ""), dim=True, err=True)


def program() -> str:
    """What to type for this very fxtrace in the shell from which it was started."""
    called = Path(sys.argv[0])
    if called.name != "fxtrace":
        return shlex.join([sys.executable, "-m", "fxtrace"])
    on_path = shutil.which("fxtrace")
    if on_path is not None and called.exists() and called.samefile(on_path):
        return "fxtrace"
    # `make -C` goes to another folder than the shell's, which $PWD still names.
    return shlex.quote(min(os.path.relpath(called, os.environ.get("PWD")), str(called.absolute()), key=len))


def short_ids(ids: Iterable[str], digits: int = 8) -> dict[str, str]:
    """Returns the shortest starts, of at least `digits` digits, that tell these ids apart.

    Example:
        >>> short_ids(["a3a3d0bcad", "a3a3d0bc11", "c3343fb4f9"])
        {'a3a3d0bcad': 'a3a3d0bca', 'a3a3d0bc11': 'a3a3d0bc1', 'c3343fb4f9': 'c3343fb4f'}
    """
    every = list(dict.fromkeys(ids))
    while len({each[:digits] for each in every}) < len(every):
        digits += 1
    return {each: each[:digits] for each in every}


def _place(trace: str, server: str | None, store: str | None) -> Iterable[str]:
    if trace != "latest":
        yield from ("--trace", trace)
    if server is not None:
        from fxtrace.cli.connection import chosen_options

        yield from ("--server", server, *chosen_options())
    if store is not None:
        yield from ("--store", store)
