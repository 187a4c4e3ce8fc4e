"""Replies kept as the bytes that were sent, so that asking again costs no more than the sending."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable

from fxtrace.errors import TraceNotFound


class ReplyCache:
    """Serialised replies about traces, the least recently used given up first. For one event loop.

    A trace never changes, so a reply stays right until the trace is deleted (`forget`). Another process may delete it,
    too, so it is looked now and then whether it is there: that long a reply may be given after it is gone.

    Args:
        max_bytes: of all replies together.
        require: returns if there is a trace of this id, else raises TraceNotFound.
        look_seconds: how long a trace that was there is taken to be there.
    """

    def __init__(
        self, max_bytes: int, require: Callable[[str], Awaitable[object]], *, look_seconds: float = 1.0
    ) -> None:
        self._max_bytes, self._require, self._look_seconds = max_bytes, require, look_seconds
        self._bytes = 0
        self._replies: OrderedDict[tuple[str, Hashable], tuple[bytes, float]] = OrderedDict()
        self._deletions = 0

    async def get(self, trace_id: str, query: Hashable, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """The reply to a query about a trace: as it was kept, or made now and kept.

        Raises:
            TraceNotFound: the trace of a reply that was kept is gone.
        """
        key, deletions = (trace_id, query), self._deletions
        reply, seen = self._replies.get(key, (None, 0.0))
        now = time.monotonic()
        if reply is None:
            reply, seen = await make(), now
        elif now - seen > self._look_seconds:
            try:
                await self._require(trace_id)
            except TraceNotFound:
                self.forget(trace_id)
                raise
            seen = now
        if deletions == self._deletions:  # else it may be of a trace that is gone
            self._bytes += len(reply) - len(self._replies.pop(key, (b"", 0.0))[0])
            self._replies[key] = reply, seen
            while self._bytes > self._max_bytes:
                self._bytes -= len(self._replies.popitem(last=False)[1][0])
        return reply

    def forget(self, trace_id: str) -> None:
        """Gives up every reply about a trace."""
        self._deletions += 1
        for key in [key for key in self._replies if key[0] == trace_id]:
            self._bytes -= len(self._replies.pop(key)[0])
