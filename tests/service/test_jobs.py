from __future__ import annotations

import threading

import pytest

from fxtrace.errors import Cancelled
from fxtrace.ir.trace import Progress
from fxtrace.service.jobs import PARTS_KEPT, Job
from tests.service.processes import until

PARTS = [bytes([number]) for number in range(5 * PARTS_KEPT)]


def adding(job: Job) -> threading.Thread:
    """A worker's keeper that hands on what the worker says, and has come to where nobody takes more."""

    def add() -> None:
        for part in PARTS:
            job.add(part)
        job.end(b"value")

    thread = threading.Thread(target=add)
    thread.start()
    until(lambda: len(job._parts) >= PARTS_KEPT)
    return thread


def test_parts_are_made_as_they_are_taken() -> None:
    job = Job("sweep_shapes", (), what="sweeping", seconds=60)
    thread = adding(job)
    thread.join(0.05)
    assert len(job._parts) == PARTS_KEPT
    assert [event for event in job.events() if not isinstance(event, Progress)] == PARTS
    thread.join()


def test_the_end_lets_go_of_who_waits() -> None:
    job = Job("sweep_shapes", (), what="sweeping", seconds=60)
    thread = adding(job)
    job.end(Cancelled("enough"))
    thread.join()
    with pytest.raises(Cancelled):
        list(job.events())
