"""The server's log, on stderr: lines of text, or of JSON.

A call that logs gives its values by name, `log.info("call method=%(method)s", {"method": ...})`: in JSON, each is a
field of its own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

import grpc


def set_up_logs(level: str, form: Literal["text", "json"]) -> None:
    """Has fxtrace's log written from this level on, and that of libraries from warnings on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("fxtrace").setLevel(level.upper())
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_hangup)


class TextLines(logging.Formatter):
    """One line for each event, then the stack where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line. What callers sent can begin no line of its own."""
        message = "".join(char if char.isprintable() else repr(char)[1:-1] for char in record.getMessage())
        line = f"{_time(record)} {record.levelname:<7} {message}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """One JSON object for each event: `time`, `level`, `logger`, `message`, its values by name, and the `stack`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, object] = dict(record.args) if isinstance(record.args, Mapping) else {}
        line |= {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _is_no_hangup(record: logging.LogRecord) -> bool:
    """Whether it is something else than gRPC's stack for each caller who was gone when a message was to be sent."""
    return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
