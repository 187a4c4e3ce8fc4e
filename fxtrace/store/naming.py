"""Which trace a text means: an id, the beginning of one, or `latest`."""

from __future__ import annotations

import re
from typing import Protocol

from fxtrace.errors import NameInvalid, TraceNotFound

LATEST = "latest"


class Names(Protocol):
    """Where traces are looked up by what they are called."""

    def latest(self) -> str | None:
        """The id of the trace that was last asked for; None where there are no traces."""

    def beginning(self, text: str, limit: int) -> list[str]:
        """Up to `limit` ids that begin with some digits."""


def is_name(text: str, *, least_digits: int = 1) -> bool:
    """Whether a text has the form of a trace's id, of the beginning of one, or is `latest`."""
    return text == LATEST or bool(re.fullmatch(rf"[0-9a-f]{{{least_digits},32}}", text))


def resolve(names: Names, text: str) -> str:
    """The id of the trace that a text means. An id is given back as it is, whether there is such a trace or not.

    Raises:
        NameInvalid: it is no id, no beginning of one and not `latest`, or the beginning of several.
        TraceNotFound: there are no traces, or none whose id begins so.
    """
    if text == LATEST:
        latest = names.latest()
        if latest is None:
            raise TraceNotFound("there are no traces yet; `fxtrace trace reference` makes one", field="trace")
        return latest
    if not is_name(text):
        raise NameInvalid(
            f"expected a trace's id, 32 digits of 0-9 and a-f, the beginning of one, or '{LATEST}'; got '{text}'",
            field="trace",
            trace=text,
        )
    if len(text) == 32:
        return text
    ids = names.beginning(text, 2)
    if not ids:
        raise TraceNotFound(
            f"no trace's id starts with '{text}'; `fxtrace traces` lists them", field="trace", trace=text
        )
    if len(ids) > 1:
        raise NameInvalid(
            f"'{text}' is the start of several traces' ids, such as {ids[0]} and {ids[1]}; give more digits",
            field="trace",
            trace=text,
        )
    return ids[0]
