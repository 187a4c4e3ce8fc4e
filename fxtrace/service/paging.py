"""Pages of a sequence: sizes that are checked, and tokens that fit only the query they came from."""

from __future__ import annotations

import base64
import binascii
import hashlib

from fxtrace.errors import PageInvalid

_DIGEST_BYTES, _START_BYTES = 8, 7  # 15 in all, which base64 writes without padding


def page_size(asked: int, default: int, maximum: int) -> int:
    """The number of items on a page; 0 asks for the default.

    Raises:
        PageInvalid: it is negative or above the maximum.
    """
    if not 0 <= asked <= maximum:
        raise PageInvalid(
            f"page_size: expected 0 (for {default}) to {maximum}; got {asked}",
            field="page_size",
            page_size=asked,
            maximum=maximum,
        )
    return asked or default


def page_start(token: str, *query: str) -> int:
    """Where the page begins that a token is for; an empty token is for the first.

    Raises:
        PageInvalid: the token is not one that `page_token` gave for this query.
    """
    if not token:
        return 0
    try:
        data = base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    start = int.from_bytes(data[_DIGEST_BYTES : _DIGEST_BYTES + _START_BYTES])
    if token != page_token(start, *query):
        raise PageInvalid(
            "page_token: expected the next_page_token of the page before, with every other field of the request but "
            "page_size as it was; begin again with an empty one",
            field="page_token",
        )
    return start


def page_token(start: int, *query: str) -> str:
    """A token for the page of this query that begins at `start`, above 0."""
    offset = start.to_bytes(_START_BYTES)
    digest = hashlib.blake2b("\0".join((offset.hex(), *query)).encode(), digest_size=_DIGEST_BYTES).digest()
    return base64.urlsafe_b64encode(digest + offset).decode()
