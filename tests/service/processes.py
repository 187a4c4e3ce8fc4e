"""For tests: servers and clients in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# The process that answers must not need PyTorch: its workers do.
SERVER = """
import logging, sys
from pathlib import Path
sys.modules["torch"] = None  # importing it fails, as where it is not installed
from fxtrace.models import Registry
from fxtrace.service.engine import Engine
from fxtrace.service.server import serve
from fxtrace.service.settings import Settings
logging.disable()
settings = Settings.load()
models = Registry.installed()
for reference in settings.models:
    models.offer(reference)
with Engine.open(settings.store, models, quota_bytes=settings.disk_quota) as engine:
    serve(engine, "127.0.0.1:0", settings=settings, on_ready=lambda address: print(address, flush=True))
"""


@contextmanager
def server_process(store: Path | str, *models: Path, **settings: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server, stopped when the block is left, and its address."""
    variables = {f"FXTRACE_{name.upper()}": str(value) for name, value in settings.items()}
    variables |= {"FXTRACE_STORE": str(store), "FXTRACE_MODELS": ",".join(map(str, models))}
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **variables}) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.terminate()


def until(condition: Callable[[], object]) -> None:
    """Waits until something holds."""
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up, "it did not come about"
        time.sleep(0.01)


def exists(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pid_in(file: Path) -> int:
    """The process id that a process writes into a file, once it is there."""
    until(lambda: file.exists() and file.read_text())
    return int(file.read_text())
