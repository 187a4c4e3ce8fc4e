"""Keeps PyTorch from talking while it exports or runs on fake tensors, in this thread alone."""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any, TextIO

# The last is what draft_export writes a report from, to a file that it does not close.
_LOGGERS = (
    "torch._subclasses.fake_tensor",
    "torch.export._trace",
    "torch.export._draft_export",
    "torch.fx.experimental.symbolic_shapes",
    "torch.__trace",
)


@contextmanager
def unlogged() -> Iterator[None]:
    """Within, what PyTorch logs in this thread of an error is dropped: the error itself says it."""
    thread = threading.get_ident()
    loggers = [logging.getLogger(name) for name in _LOGGERS]

    def heard(record: logging.LogRecord) -> bool:
        return record.thread != thread

    for logger in loggers:
        logger.addFilter(heard)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(heard)


@contextmanager
def quiet() -> Iterator[None]:
    """Within, what this thread warns of, logs about exports or writes to stderr is dropped; other threads are heard.

    torch.export warns of attributes and gradients, which are put back, and prints the graph up to an error.
    """
    thread = threading.get_ident()
    # `catch_warnings` would change, and at the end put back, the filters of every thread.
    filters: list[Any] = warnings.filters  # type: ignore[assignment]
    ignoring = ("ignore", _InThread(thread), Warning, None, 0)
    filters.insert(0, ignoring)
    try:
        with unlogged(), redirect_stderr(_Muted(sys.stderr, thread)):
            yield
    finally:
        with suppress(ValueError):  # another thread may have put its own list in the place of this one
            filters.remove(ignoring)


class _InThread:
    """Stands for the pattern of a warning's text: matches any, in one thread."""

    def __init__(self, thread: int) -> None:
        self._thread = thread

    def match(self, _: str) -> bool:
        return threading.get_ident() == self._thread


class _Muted(io.TextIOBase):
    """A stream that drops what one thread writes."""

    def __init__(self, stream: TextIO, thread: int) -> None:
        self._stream, self._thread = stream, thread

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()
