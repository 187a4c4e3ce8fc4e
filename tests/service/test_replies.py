from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from fxtrace.errors import TraceNotFound
from fxtrace.service.replies import ReplyCache


async def nothing(_: str) -> None:
    """Every trace is there."""


class Made:
    """Makes replies of so many bytes, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, size: int) -> Callable[[], Awaitable[bytes]]:
        async def make() -> bytes:
            self.count += 1
            return bytes(size)

        return make


def test_a_reply_is_made_once_for_each_query() -> None:
    async def run() -> int:
        cache, made = ReplyCache(100, nothing), Made()
        for trace, query in (("a", 1), ("a", 1), ("a", 2), ("b", 1), ("a", 1)):
            assert await cache.get(trace, query, made(10)) == bytes(10)
        return made.count

    assert asyncio.run(run()) == 3


def test_the_least_recently_used_make_room() -> None:
    async def run() -> int:
        cache, made = ReplyCache(100, nothing), Made()
        await cache.get("a", 1, made(40))
        await cache.get("a", 2, made(40))
        await cache.get("a", 1, made(40))
        await cache.get("a", 3, made(40))  # drives 2 out
        assert made.count == 3
        await cache.get("a", 1, made(40))
        assert made.count == 3
        await cache.get("a", 2, made(40))
        return made.count

    assert asyncio.run(run()) == 4


def test_a_reply_larger_than_the_cache_is_given_and_not_kept() -> None:
    async def run() -> int:
        cache, made = ReplyCache(100, nothing), Made()
        for _ in range(2):
            assert len(await cache.get("a", 1, made(101))) == 101
        return made.count

    assert asyncio.run(run()) == 2


def test_a_deleted_trace_is_forgotten_and_others_are_not() -> None:
    async def run() -> int:
        cache, made = ReplyCache(100, nothing), Made()
        for trace in ("a", "b"):
            await cache.get(trace, 1, made(10))
        cache.forget("a")
        for trace in ("a", "b"):
            await cache.get(trace, 1, made(10))
        return made.count

    assert asyncio.run(run()) == 3


def test_a_reply_made_while_its_trace_was_deleted_is_not_kept() -> None:
    async def run() -> int:
        cache, made = ReplyCache(100, nothing), Made()

        async def make() -> bytes:
            cache.forget("a")
            return b"gone"

        assert await cache.get("a", 1, make) == b"gone"
        await cache.get("a", 1, made(10))
        return made.count

    assert asyncio.run(run()) == 1


def test_two_that_ask_at_once_count_once() -> None:
    async def run() -> int:
        cache, made = ReplyCache(100, nothing), Made()
        await asyncio.gather(*(cache.get("a", 1, made(60)) for _ in range(2)))
        made.count = 0
        await cache.get("b", 1, made(40))  # fits beside one, not beside two
        await cache.get("a", 1, made(60))
        return made.count

    assert asyncio.run(run()) == 1


@pytest.mark.parametrize("look_seconds", [-1, 60])
def test_a_trace_that_another_process_deletes_is_looked_for(look_seconds: int) -> None:
    looked: list[str] = []

    async def require(trace_id: str) -> None:
        looked.append(trace_id)
        if len(looked) == 2:
            raise TraceNotFound("it is gone")

    async def run() -> int:
        cache, made = ReplyCache(100, require, look_seconds=look_seconds), Made()
        for _ in range(3):
            await cache.get("a", 1, made(10))
            await cache.get("b", 1, made(10))
        return made.count

    if look_seconds > 0:
        assert asyncio.run(run()) == 2
        assert looked == []
    else:
        with pytest.raises(TraceNotFound):
            asyncio.run(run())
        assert looked == ["a", "b"]
