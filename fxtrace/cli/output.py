"""What commands print: JSON for machines on stdout, progress and errors on stderr.

The keys of the JSON are described in `fxtrace.export.document`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from fxtrace.cli.common import models_print_on_stderr
from fxtrace.ir.trace import Progress

_LINE_SECONDS = 5
_STAGES = {
    "wait": "waiting for other work",
    "build": "building the model",
    "run": "running the model",
    "capture": "capturing its graph",
    "export": "capturing its graph",
    "propagate": "running the graph",
    "label": "finding roles",
    "check": "trying the roles on a small copy",
    "store": "storing",
    "draw": "drawing the graph",
    "layout": "laying it out",
    "probe": "trying configurations",
    "align": "finding what corresponds",
    "compare": "comparing numbers",
    "resolve": "asking the model what it accepts",
    "confirm": "confirming formulas",
    "sweep": "reckoning",
    "verify": "comparing bytes",
}


def echo_json(value: object, *, err: bool = False, indent: int | None = 2) -> None:
    """Prints a value as JSON."""
    from fxtrace.export.document import plain

    typer.echo(json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent), err=err)


def error_line(message: str) -> None:
    """Prints an error on stderr."""
    typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(message, err=True)


@contextmanager
def progress_bar(*, hidden: bool = False) -> Iterator[Callable[[Progress], None]]:
    """Shows on stderr how far a piece of work is, as it is called with its progress.

    A terminal gets a bar, which goes when the work is done. Anything else gets lines: one when a stage begins, and
    while it lasts one every few seconds. Meanwhile, what a model prints goes to stderr, too.

    Args:
        hidden: show nothing, as beside JSON: errors on stderr are to be JSON.
    """
    show = _no_progress if hidden else _progress_bar if sys.stderr.isatty() else _progress_lines
    with show() as report, models_print_on_stderr():
        yield report


@contextmanager
def _no_progress() -> Iterator[Callable[[Progress], None]]:
    yield lambda _: None


@contextmanager
def _progress_bar() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        stage, task = "", bar.add_task("starting", total=None, count="")

        def report(progress: Progress) -> None:
            nonlocal stage, task
            if progress.stage != stage:
                bar.remove_task(task)
                stage, task = progress.stage, bar.add_task(_stage(progress), total=None, count="")
            bar.update(task, completed=progress.done, total=progress.total or None, count=_count(progress))

        yield report


@contextmanager
def _progress_lines() -> Iterator[Callable[[Progress], None]]:
    stages: set[str] = set()
    start = last = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal last
        # Stages may take turns by the hundred: only the first time of one is news.
        if progress.stage in stages and time.monotonic() - last < _LINE_SECONDS:
            return
        if progress.stage == "wait" and time.monotonic() - start < _LINE_SECONDS:
            return  # so every call begins
        stages.add(progress.stage)
        last = time.monotonic()
        typer.echo(" ".join(filter(None, (f"{_stage(progress)} ...", _count(progress)))), err=True)

    yield report


def _stage(progress: Progress) -> str:
    return _STAGES.get(progress.stage, progress.stage)


def _count(progress: Progress) -> str:
    return f"{progress.done}/{progress.total}" if progress.total else ""
