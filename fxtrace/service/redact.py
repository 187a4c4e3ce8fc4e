"""Keeps the places of the server's files from its callers."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fxtrace.errors import ConfigurationError, FxtraceError, InternalError, ModelInvalid, StoreDamaged, Unmet

# Their texts may come from libraries and models. The others say back what the caller sent.
_OF_THE_SERVER = (Unmet, ModelInvalid, ConfigurationError, StoreDamaged, InternalError)
# A path, or the URL of a file, a database or an object store.
_PATH = re.compile(r"\b(?!https?:)[a-z][a-z0-9+]*://[^\s'\"]*|(?<![\w/.:])(?:/[^\s/'\"():,;]+){2,}/?")


def without_paths(text: str) -> str:
    """The text, with only the last part of every absolute path."""
    return _PATH.sub(lambda match: "…/" + match[0].rstrip("/").rpartition("/")[2], text)


def without_paths_in(texts: Iterable[str]) -> tuple[str, ...]:
    """The texts, each without paths."""
    return tuple(map(without_paths, texts))


def redact(error: FxtraceError) -> bool:
    """Takes the server's paths out of an error; returns whether there was one."""
    if not isinstance(error, _OF_THE_SERVER):
        return False
    message = without_paths(error.message)
    metadata = {key: without_paths(value) for key, value in error.metadata.items()}
    if (message, metadata) == (error.message, error.metadata):
        return False
    error.message, error.metadata, error.args = message, metadata, (message,)
    return True
