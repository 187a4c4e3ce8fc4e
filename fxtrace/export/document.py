"""The annotated graph as JSON.

    {
      "format": "fxtrace.graph", "version": 1,
      "trace": {"id", "model", "configuration", "inputs", "rung", "rung_notes", ...},
      "graph": {"name", "modules", "dims", "refusals", "nodes": [
        {"name", "op", "target", "kind", "args", "kwargs", "values", "module", "parameters", "source", "roles",
         "inputs", "users"}, ...]},
      "snapshots": [{"number", "title", "section", "roles", "variables", "dims", "tensors", ...}, ...],
      "formulas": {"softmax": ["1", "n_heads", "tgt_len", "src_len"], ...} or null
    }

The keys are the attributes of the dataclasses in `fxtrace.ir.trace` (`trace` is a `TraceInfo`) and `fxtrace.graph` (a
`Graph`, the `Snapshot`s that the graph has), where each is described. Nodes stand in execution order. Besides:

* a role has its `name`; a node has `inputs` and `users`, the names of nodes;
* among arguments, another node is `{"node": name}`, a slice `{"slice": [start, stop, step]}`, a dict `{"map": {...}}`,
  and a constant that JSON lacks `{"symbol": text}`;
* a time is text in ISO 8601; numbers that JSON lacks are the texts "Infinity", "-Infinity" and "NaN";
* `formulas` has, by the name of a tensor, what each of its sizes is made of, empty where no formula was confirmed; null
  where formulas were not looked for.

Keys may be added; `version` changes where one goes or gets another meaning.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from datetime import datetime
from functools import singledispatch
from typing import Any, BinaryIO

from fxtrace.export.subject import Subject
from fxtrace.graph import Arg, Graph, Node, Ref, Role, SliceArg, Symbol
from fxtrace.ir.trace import Json


def document(subject: Subject) -> dict[str, Json]:
    """A trace as this module's docstring describes it."""
    found = subject.formulas
    snapshots = [each for each in subject.trace.api.list_snapshots(subject.info.id) if each.found]
    return {
        "format": "fxtrace.graph",
        "version": 1,
        "trace": plain(subject.info),
        "graph": plain(subject.graph),
        "snapshots": plain(snapshots),
        "formulas": plain({tensor: found.shape(tensor) for tensor in found.tensors}) if found else None,
    }


def write_json(subject: Subject, file: BinaryIO) -> None:
    """Writes `document`, in one line."""
    file.write(text(document(subject)).encode() + b"\n")


def text(value: Json) -> str:
    """A value as JSON, in one line of ASCII characters."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


@singledispatch
def plain(value: object) -> Json:
    """A value of fxtrace's in JSON's terms."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return fields_of(value)
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
    return {"name": str(value), **fields_of(value)}


@plain.register
def _(value: Node) -> Json:
    return {
        **fields_of(value, but=("args", "kwargs")),
        "args": [argument(arg) for arg in value.args],
        "kwargs": {name: argument(arg) for name, arg in value.kwargs.items()},
        "inputs": list(value.inputs),
    }


@plain.register
def _(value: Graph) -> Json:
    nodes = [plain(node) | {"users": list(value.users[node.name])} for node in value.nodes]  # type: ignore[operator]
    return {**fields_of(value, but=("nodes",)), "nodes": nodes}


def fields_of(value: Any, but: tuple[str, ...] = ()) -> dict[str, Json]:
    """A dataclass's fields in JSON's terms, but these and those that are apart from it."""
    fields = (field for field in dataclasses.fields(value) if not field.metadata.get("apart"))
    names = (field.name for field in fields if field.name not in but)
    return {name: plain(getattr(value, name)) for name in names}


def argument(arg: Arg) -> Json:
    """An argument of a node's call in JSON's terms."""
    match arg:
        case Ref(node):
            return {"node": node}
        case Symbol(text):
            return {"symbol": text}
        case SliceArg(start, stop, step):
            return {"slice": [argument(start), argument(stop), argument(step)]}
        case tuple():
            return [argument(item) for item in arg]
        case dict():
            return {"map": {key: argument(item) for key, item in arg.items()}}
        case _:
            return plain(arg)
