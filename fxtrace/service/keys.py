"""Keys that callers show, and the file that knows them.

A key is `fxt_`, an id, and 256 random bits. The file has no key, only a salted SHA-256 of each: what is guessed as
easily as 256 random bits needs no slow hash, and a slow one would let strangers keep the server busy.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fxtrace.errors import NotFound, OptionInvalid, unknown
from fxtrace.ir.trace import Scope
from fxtrace.service.watched import state

_FORM = re.compile(r"fxt_(?P<id>[0-9a-f]{8})_(?P<secret>[0-9A-Za-z_-]{43})")
_log = logging.getLogger("fxtrace.service")


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key.

    Attributes:
        id: the part of it that may be shown.
        name: whose it is, or what for.
        scope: `read`, or `write`, which includes it.
        created: in UTC.
        salt: random, in hexadecimal digits.
        hash: SHA-256 of the salt and the secret, in hexadecimal digits.
    """

    id: str
    name: str
    scope: Scope
    created: datetime
    salt: str
    hash: str


_FILE = TypeAdapter(list[Key])
_NOBODY = Key("", "", "read", datetime.min, secrets.token_hex(16), "")  # an unknown id takes as long as a known one


class KeyFile:
    """The keys in a file, which may change meanwhile: what was added or revoked counts from the next call on.

    While the file cannot be read, no key is known.

    Args:
        path: of the file.

    Raises:
        OptionInvalid: it cannot be read, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = state(path)
        self._keys = {key.id: key for key in read_keys(path)}

    def find(self, text: str) -> Key | None:
        """What is known of a key; None where it is not in the file."""
        self._refresh()
        match = _FORM.fullmatch(text)
        if match is None:
            return None
        key = self._keys.get(match["id"], _NOBODY)
        return key if hmac.compare_digest(_hash(key.salt, match["secret"]), key.hash) else None

    def _refresh(self) -> None:
        seen = state(self._path)
        if seen == self._seen:
            return
        self._seen, self._keys = seen, {}
        try:
            self._keys = {key.id: key for key in read_keys(self._path)}
        except OptionInvalid as error:
            _log.error("no key is accepted: %(problem)s", {"problem": error.message})


def read_keys(path: Path) -> list[Key]:
    """The keys in a file, oldest first.

    Raises:
        OptionInvalid: it cannot be read, or holds something else.
    """
    try:
        return _FILE.validate_json(path.read_bytes())
    except OSError as error:
        raise OptionInvalid(
            f"cannot read the keys in {path}: {error.strerror}; `fxtrace keys new` makes the file", field="keys"
        ) from None
    except ValidationError:
        raise OptionInvalid(
            f"expected the keys of `fxtrace keys` in {path}; it holds something else", field="keys"
        ) from None


def new_key(path: Path, name: str, scope: Scope) -> tuple[Key, str]:
    """Adds a key to a file, which is made if it is not there; returns what is kept of it, and the key itself.

    Raises:
        OptionInvalid: the file cannot be read or written, or the name is empty or has line breaks.
    """
    if not name.strip() or not name.isprintable():
        raise OptionInvalid(f"name: expected a word on whose key it is, got {name!r}", field="name")
    secret = secrets.token_urlsafe(32)
    key = Key(secrets.token_hex(4), name, scope, datetime.now(UTC).replace(microsecond=0), secrets.token_hex(16), "")
    key = replace(key, hash=_hash(key.salt, secret))
    with _changing(path) as keys:
        keys.append(key)
    return key, f"fxt_{key.id}_{secret}"


def revoke_key(path: Path, key_id: str) -> Key:
    """Removes the key of this id from a file.

    Raises:
        NotFound: there is none of this id.
        OptionInvalid: the file cannot be read or written.
    """
    with _changing(path) as keys:
        found = next((key for key in keys if key.id == key_id), None)
        if found is None:
            raise NotFound(unknown("key", key_id, [key.id for key in keys]), field="id", id=key_id)
        keys.remove(found)
        return found


@contextmanager
def _changing(path: Path) -> Iterator[list[Key]]:
    """The keys in a file; as the block leaves them they are written, as a whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # one change after another
            keys = read_keys(path) if path.exists() else []
            yield keys
            _write(path, json.dumps([asdict(key) for key in keys], indent=1, default=datetime.isoformat))
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise OptionInvalid(f"cannot change the keys in {path}: {error.strerror}", field="keys") from error


def _write(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # for its owner only
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(descriptor)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _hash(salt: str, secret: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + secret.encode()).hexdigest()
