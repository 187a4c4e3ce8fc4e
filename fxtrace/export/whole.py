"""Files that appear when they are whole, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that takes the path's place when the block ends; if it raises, nothing has changed.

    A link is followed. What is no regular file, such as a pipe or `/dev/stdout`, is written directly.

    Raises:
        OSError: the file cannot be written.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        with path.open("wb") as pipe:
            yield pipe
        return
    target = path.resolve()
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")  # short: the name itself may be as long as names get
    if path.exists():
        path.open("r+b").close()  # a folder may allow to replace a file that may not be written
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
