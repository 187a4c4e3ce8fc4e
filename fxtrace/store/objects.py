"""Files in an object store (S3 and what speaks like it), by a URL that obstore knows.

A file is one object, `{name}.safetensors`, and where it is larger than 32 MiB some more, `{name}.more/000001` …
The first is written last, so a file is there when its first object is. Each is an ordinary upload: there are no
multipart uploads that could be left open and unseen.

Who may write, and where the endpoint is, is told by the usual variables (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL,
AWS_REGION …; AWS_ALLOW_HTTP=true for an endpoint without TLS).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from fxtrace.errors import OptionInvalid
from fxtrace.extras import needed_for
from fxtrace.store.blobs import SUFFIX, Source, Written

with needed_for("an object store"):
    import obstore
    from obstore.exceptions import BaseError
    from obstore.store import ObjectStore, from_url

PART_BYTES = 32 << 20  # part of the format: it tells which object has a byte
_MORE = ".more"
_ABANDONED_AFTER_SECONDS = 3600  # since a writer's last upload, of at most `PART_BYTES`
_RETRIES = 5
_RETRY_FOR = timedelta(seconds=30)


class Objects:
    """Files in an object store; see `fxtrace.store.blobs.Blobs`.

    Raises:
        OptionInvalid: the URL is not one of an object store.
    """

    def __init__(self, url: str) -> None:
        try:
            self._store: ObjectStore = from_url(
                url, retry_config={"max_retries": _RETRIES, "retry_timeout": _RETRY_FOR}
            )
        except (BaseError, ValueError) as error:
            raise OptionInvalid(
                f"store: expected files in a folder or at a URL such as s3://bucket/prefix; {_in_short(error)}",
                field="store",
            ) from None

    def write(self, name: str, parts: Iterable[memoryview]) -> None:
        """See `Blobs`."""
        objects = _in_objects(parts)
        first = next(objects)
        with _os_errors():
            try:
                for number, part in enumerate(objects, 1):
                    obstore.put(self._store, _key(name, number), part, use_multipart=False)
                obstore.put(self._store, _key(name, 0), first, use_multipart=False)
            except BaseException:
                with suppress(BaseError, OSError):
                    self.delete(name)
                raise

    def open(self, name: str) -> Source:
        """See `Blobs`."""
        with _os_errors():
            nbytes = obstore.head(self._store, _key(name, 0))["size"]
            if nbytes == PART_BYTES:
                nbytes += sum(written.nbytes for _, written in self._list(f"{name}{_MORE}"))
        return _Object(self._store, name, nbytes)

    def delete(self, name: str) -> None:
        """See `Blobs`."""
        with _os_errors():
            obstore.delete(self._store, _key(name, 0))  # then there is no such file, whatever happens to the rest
            if rest := [key for key, _ in self._list(f"{name}{_MORE}")]:
                obstore.delete(self._store, rest)

    def files(self) -> dict[str, Written]:
        """See `Blobs`."""
        listed = list(self._list())
        rest: dict[str, int] = defaultdict(int)
        for key, written in listed:
            rest[key.partition(f"{_MORE}/")[0]] += written.nbytes
        return {
            key.removesuffix(SUFFIX): Written(written.at, written.nbytes + rest[key.removesuffix(SUFFIX)])
            for key, written in listed
            if key.endswith(SUFFIX)
        }

    def sweep(self) -> int:
        """See `Blobs`."""
        files, rest = self.files(), defaultdict(list)
        for key, written in self._list():
            name, more, _ = key.partition(f"{_MORE}/")
            if more and name not in files:
                rest[name].append((key, written))
        abandoned = [
            each
            for objects in rest.values()
            if time.time() - max(written.at for _, written in objects) > _ABANDONED_AFTER_SECONDS
            for each in objects
        ]
        if abandoned:
            with _os_errors():
                obstore.delete(self._store, [key for key, _ in abandoned])
        return sum(written.nbytes for _, written in abandoned)

    def _list(self, prefix: str | None = None) -> Iterator[tuple[str, Written]]:
        """Every object by its key, of a folder or of all."""
        with _os_errors():
            for batch in obstore.list(self._store, prefix):
                for each in batch:
                    yield each["path"], Written(each["last_modified"].timestamp(), each["size"])


class _Object:
    """A file in an object store, read by ranges."""

    def __init__(self, store: ObjectStore, name: str, nbytes: int) -> None:
        self._store, self._name, self.nbytes = store, name, nbytes

    def readinto(self, start: int, room: memoryview, *, wait: bool = True) -> int:
        done, stop = 0, min(room.nbytes, self.nbytes - start) if wait else 0
        with _os_errors():
            while done < stop:
                number, at = divmod(start + done, PART_BYTES)
                length = min(PART_BYTES - at, stop - done)
                data = memoryview(obstore.get_range(self._store, _key(self._name, number), start=at, length=length))
                room[done : done + data.nbytes] = data
                done += data.nbytes
                if data.nbytes < length:
                    break
        return done

    def close(self) -> None:
        """Nothing is held open."""


def _key(name: str, number: int) -> str:
    return f"{name}{_MORE}/{number:06}" if number else f"{name}{SUFFIX}"


def _in_objects(parts: Iterable[memoryview]) -> Iterator[bytearray]:
    """The bytes, divided as they are kept; at least one object."""
    held = bytearray()
    for part in parts:
        for start in range(0, part.nbytes, PART_BYTES):
            held += part[start : start + PART_BYTES]
            while len(held) > PART_BYTES:
                yield held[:PART_BYTES]
                del held[:PART_BYTES]
    yield held


@contextmanager
def _os_errors() -> Iterator[None]:
    try:
        yield
    except BaseError as error:
        raise OSError(f"the object store: {_in_short(error)}") from error


def _in_short(error: Exception) -> str:
    """What went wrong, without addresses."""
    return str(error).partition("\n")[0].rpartition(" - ")[2].partition(": <")[0]
