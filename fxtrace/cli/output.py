"""What commands print: JSON for machines on stdout, tables for people, progress and errors on stderr.

The keys of the JSON are the attributes of the dataclasses in `fxtrace.graph` and `fxtrace.ir.trace`, where each is
described. Besides: a role has its `name`; a node has `inputs` and `users`, the names of nodes; a time is text in ISO
8601. Among a node's arguments, another node is `{"node": name}`, a slice `{"slice": [start, stop, step]}`, a dict
`{"map": {...}}`, and a constant that JSON lacks is `{"symbol": text}`. Numbers that JSON lacks are the texts
"Infinity", "-Infinity" and "NaN".
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import singledispatch
from typing import Any

import typer

from fxtrace.graph import Arg, Graph, Node, Ref, Role, SliceArg, Symbol
from fxtrace.ir.trace import Json, Progress

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
    typer.echo(json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent), err=err)


def error_line(message: str) -> None:
    """Prints an error on stderr."""
    typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(message, err=True)


@contextmanager
def progress_bar(*, hidden: bool = False) -> Iterator[Callable[[Progress], None]]:
    """A bar on stderr, moved by what is called with each progress; nothing is shown where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, disable=hidden or not sys.stderr.isatty()) as bar:
        stage, task = "", bar.add_task("starting", total=None)

        def report(progress: Progress) -> None:
            nonlocal stage, task
            if progress.stage != stage:
                bar.remove_task(task)
                stage, task = progress.stage, bar.add_task(_STAGES.get(progress.stage, progress.stage), total=None)
            bar.update(task, completed=progress.done, total=progress.total or None)

        yield report


@singledispatch
def plain(value: object) -> Json:
    """A value of fxtrace's in JSON's terms; see this module's docstring for the keys."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


@plain.register(type(None))
@plain.register(bool)
@plain.register(int)
@plain.register(str)
def _(value: Any) -> Json:
    return value  # type: ignore[no-any-return]


@plain.register
def _(value: float) -> Json:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


@plain.register(tuple)
@plain.register(list)
def _(value: Any) -> Json:
    return [plain(item) for item in value]


@plain.register(Mapping)
def _(value: Mapping[str, Any]) -> Json:
    return {str(key): plain(item) for key, item in value.items()}


@plain.register
def _(value: datetime) -> Json:
    return value.isoformat()


@plain.register
def _(value: Role) -> Json:
    return {"name": str(value), **_fields(value)}


@plain.register
def _(value: Node) -> Json:
    return _node(value)


@plain.register
def _(value: Graph) -> Json:
    nodes: list[Json] = [{**_node(node), "users": list(value.users[node.name])} for node in value.nodes]
    return {**_fields(value, but=("nodes",)), "nodes": nodes}


def _node(node: Node) -> dict[str, Json]:
    return {
        **_fields(node, but=("args", "kwargs")),
        "args": [_argument(arg) for arg in node.args],
        "kwargs": {name: _argument(arg) for name, arg in node.kwargs.items()},
        "inputs": list(node.inputs),
    }


def _fields(value: Any, but: tuple[str, ...] = ()) -> dict[str, Json]:
    names = (field.name for field in dataclasses.fields(value) if field.name not in but)
    return {name: plain(getattr(value, name)) for name in names}


def _argument(arg: Arg) -> Json:
    match arg:
        case Ref(node):
            return {"node": node}
        case Symbol(text):
            return {"symbol": text}
        case SliceArg(start, stop, step):
            return {"slice": [_argument(start), _argument(stop), _argument(step)]}
        case tuple():
            return [_argument(item) for item in arg]
        case dict():
            return {"map": {key: _argument(item) for key, item in arg.items()}}
        case _:
            return plain(arg)
