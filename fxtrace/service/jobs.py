"""A call for a worker process, as those see it who wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from typing import TypeAlias

from google.rpc.status_pb2 import Status

from fxtrace.errors import FxtraceError
from fxtrace.ir.trace import Progress
from fxtrace.status import from_status, to_status

HEARTBEAT_SECONDS = 0.2
"""How long whoever follows a call may have to wait until it is asked whether to go on."""

PARTS_KEPT = 16
"""Parts of what a call gives that are kept for a slow follower."""


class WorkerDefect(Exception):
    """A worker raised what is none of fxtrace's errors; the message has the stack."""


Outcome: TypeAlias = bytes | Status | FxtraceError | WorkerDefect


class Job:
    """A call for a worker: it waits, runs, and ends with a value or an error.

    Args:
        method: of `fxtrace.service.worker`.
        args: the method's; they are pickled.
        what: the work, in words: it begins a sentence.
        seconds: it may run.
        light: whether the spare worker may do it.
        claim: answers whether a trace of this id is to be made; called in a thread of the pool's.

    Attributes:
        lost: whether a worker that had died already was to do it, so that it went back into the queue.
    """

    def __init__(
        self,
        method: str,
        args: tuple[object, ...],
        *,
        what: str,
        seconds: float,
        light: bool = False,
        claim: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self.method, self.args, self.what, self.seconds = method, args, what, seconds
        self.light, self.claim = light, claim
        self.lost = False
        self._changed = threading.Condition()
        self._news: dict[str, Progress] = {"wait": Progress("wait")}
        self._parts: list[bytes] = []
        self._outcome: bytes | Status | WorkerDefect | None = None

    def follow(self, report: Callable[[Progress], None]) -> bytes:
        """Waits for the value, and reports progress meanwhile: see `events`.

        Raises:
            FxtraceError: what the call ended with.
            Exception: what `report` raises.
        """
        events = self.events()
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                value: bytes = end.value
                return value
            if isinstance(event, Progress):
                report(event)

    def events(self) -> Generator[Progress | bytes, None, bytes]:
        """Progress, of each stage the latest and in any case regularly; parts, each to one follower; then the value.

        A part waits until it is taken, and while many do, the worker waits.

        Raises:
            FxtraceError: what the call ended with.
        """
        seen: Mapping[str, Progress] = {}
        while True:
            with self._changed:
                if self._outcome is None and self._news == seen and not self._parts:
                    self._changed.wait(HEARTBEAT_SECONDS)
                news, outcome = dict(self._news), self._outcome
                parts, self._parts = self._parts, []
                self._changed.notify_all()  # there is room for more
            fresh = [progress for stage, progress in news.items() if seen.get(stage) != progress]
            yield from fresh or list(news.values())[-1:] * (outcome is None)
            yield from parts
            seen = news
            if isinstance(outcome, bytes):
                return outcome
            if isinstance(outcome, Status):
                raise from_status(outcome)  # anew, since several may follow
            if outcome is not None:
                raise outcome

    def add(self, part: bytes) -> None:
        """A part of what it gives is there; waits while many are not taken, unless the call has ended."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._parts) < PARTS_KEPT or self._outcome is not None)
            self._parts.append(part)
            self._changed.notify_all()

    def tell(self, progress: Progress) -> None:
        """More is done."""
        with self._changed:
            self._news[progress.stage] = progress
            self._changed.notify_all()

    def end(self, outcome: Outcome) -> None:
        """This is what it ended with, where it had not ended before."""
        with self._changed:
            if self._outcome is None:
                self._outcome = to_status(outcome) if isinstance(outcome, FxtraceError) else outcome
                self._changed.notify_all()
