"""Replies kept as the bytes that were sent, so that asking again costs no more than the sending."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable


class ReplyCache:
    """Serialised replies about traces, the least recently used given up first. For one event loop.

    A trace never changes, so a reply stays right until the trace is deleted (`forget`). Another process may delete it,
    too: whoever asks for a reply sees to it that the trace is there.

    Args:
        max_bytes: of all replies together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._replies: OrderedDict[tuple[str, Hashable], bytes] = OrderedDict()
        self._deletions = 0

    async def get(self, trace_id: str, query: Hashable, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """The reply to a query about a trace: as it was kept, or made now and kept."""
        key = (trace_id, query)
        reply = self._replies.get(key)
        if reply is not None:
            self._replies.move_to_end(key)
            return reply
        deletions = self._deletions
        reply = await make()
        if deletions == self._deletions:  # else it may be of a trace that is gone
            self._bytes += len(reply) - len(self._replies.pop(key, b""))
            self._replies[key] = reply
            while self._bytes > self._max_bytes:
                self._bytes -= len(self._replies.popitem(last=False)[1])
        return reply

    def forget(self, trace_id: str) -> None:
        """Gives up every reply about a trace."""
        self._deletions += 1
        for key in [key for key in self._replies if key[0] == trace_id]:
            self._bytes -= len(self._replies.pop(key))
