"""Files by name, each written once and never changed: whole or absent."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

SUFFIX = ".safetensors"
NAME = re.compile(r"(?P<trace>[0-9a-f]{32})\.[0-9a-f]{16}")
_TEMPORARY = ".tmp"


@dataclass(frozen=True, slots=True)
class Written:
    """When a file was written, in seconds since 1970, and its bytes."""

    at: float
    nbytes: int


class Source(Protocol):
    """A file that is open for reading. It stays readable in a folder when the file is deleted, until it is closed."""

    @property
    def nbytes(self) -> int:
        """Of the whole file."""

    def readinto(self, start: int, room: memoryview, *, wait: bool = True) -> int:
        """Fills the room with the bytes from `start` on; gives their number, less where the file ends.

        Without `wait` also less where the rest is not in memory; then nothing is waited for. May raise OSError.
        """

    def close(self) -> None:
        """Lets go of it."""


class Blobs(Protocol):
    """A place of files. Names have no folders; every method may raise OSError."""

    def write(self, name: str, parts: Iterable[memoryview]) -> None:
        """Writes a file, and returns once it would survive a loss of power. Only a whole file gets the name."""

    def open(self, name: str) -> Source:
        """Opens a file; FileNotFoundError where there is none."""

    def delete(self, name: str) -> None:
        """Removes a file, if it is there."""

    def files(self) -> dict[str, Written]:
        """Every file, by its name."""

    def sweep(self) -> int:
        """Removes what writers that are gone left unfinished; gives its bytes."""


def new_name(trace_id: str) -> str:
    """A name that no other file has, so that two who make the same trace are not in each other's way."""
    return f"{trace_id}.{secrets.token_hex(8)}"


def open_blobs(place: str) -> Blobs:
    """The files of a folder, or of an object store by its URL."""
    if "://" in place:
        from fxtrace.store.objects import Objects

        return Objects(place)
    return Folder(Path(place))


class Folder:
    """Files in a folder.

    A writer holds a lock on its temporary file, which the system lets go when the writer ends, however it ends. So what
    is abandoned can be told at once from what another process is still writing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, parts: Iterable[memoryview]) -> None:
        """See `Blobs`."""
        temporary = self._folder / f"{name}{_TEMPORARY}"
        try:
            with _claimed(temporary) as descriptor:
                with open(descriptor, "wb", closefd=False) as file:
                    for part in parts:
                        file.write(part)
                os.fsync(descriptor)
                temporary.rename(self._path(name))
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(self._folder)

    def open(self, name: str) -> Source:
        """See `Blobs`."""
        return _File(self._path(name))

    def delete(self, name: str) -> None:
        """See `Blobs`."""
        self._path(name).unlink(missing_ok=True)

    def files(self) -> dict[str, Written]:
        """See `Blobs`."""
        found = {}
        for path in self._folder.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):  # just deleted
                status = path.stat()
                found[path.name.removesuffix(SUFFIX)] = Written(status.st_mtime, status.st_size)
        return found

    def sweep(self) -> int:
        """See `Blobs`."""
        return sum(_remove_abandoned(path) for path in list(self._folder.glob(f"*{_TEMPORARY}")))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{SUFFIX}"


class _File:
    """Read call by call, not through a map: of a file that is cut short, a map's reader is killed by the system."""

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY)
        self.nbytes = os.fstat(self._descriptor).st_size

    def readinto(self, start: int, room: memoryview, *, wait: bool = True) -> int:
        if not wait:
            return self._cached(start, room)
        done = 0
        while done < room.nbytes and (nbytes := os.preadv(self._descriptor, [room[done:]], start + done)):
            done += nbytes  # a call gives 2 GiB at most
        return done

    def _cached(self, start: int, room: memoryview) -> int:
        """What the system has of it in memory; nothing, where it cannot be asked."""
        if sys.platform != "linux":
            return 0
        try:
            return os.preadv(self._descriptor, [room], start, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return 0
            raise

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


@contextmanager
def _claimed(path: Path) -> Iterator[int]:
    """A new file, open and locked."""
    while True:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:  # else it was swept before it was locked
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _remove_abandoned(path: Path) -> int:
    """Removes a temporary file that no process holds; gives its bytes."""
    with suppress(FileNotFoundError, BlockingIOError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
    return 0


def _sync_folder(folder: Path) -> None:
    """Waits until the folder's entries are on the disk; a renamed file is not there before."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
