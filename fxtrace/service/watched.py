"""Files that may change while a server runs."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

State: TypeAlias = tuple[tuple[int, int, int] | None, ...]


def state(*paths: Path) -> State:
    """What differs when a file was changed, replaced or removed."""
    return tuple(map(_state, paths))


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
