"""What the facade returns is exported from it, and can be read as it is printed."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import fxtrace
from fxtrace.engine.session import session
from fxtrace.lock import Lock, Locked
from fxtrace.service.server import serving

ROLE = "decoder.0.cross_attention.weights"

_INNER = {("Engine", "traced")}
"""Public methods that only the engine's own rooms call."""

_LIVE = {"Engine", "Model", "Registry", "RemoteTensor", "Store", "StoredTensor", "TraceApi", "TraceFile"}
_LIVE |= {"TensorReader"}
"""What holds something open or does work, rather than says something."""

REPORTS = (fxtrace.Move, fxtrace.Checked)
"""Line by line, whole."""

NAMES = (fxtrace.Role, fxtrace.Formula, fxtrace.Sized, fxtrace.Ref, fxtrace.SliceArg, fxtrace.Symbol, Locked, *REPORTS)
"""Whose text others compute with, so that it is whole and one line."""


# --------------------------------------------------------------------------------------------------- what is returned


@cache
def imported(module: str) -> Mapping[str, tuple[str, str]]:
    """(module, name) by the name that a module imports it as from fxtrace, also where only a type checker does."""
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(ast.parse(inspect.getsource(import_module(module)))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fxtrace"):
            found |= {alias.asname or alias.name: (str(node.module), alias.name) for alias in node.names}
    return found


def named(annotation: str, module: str) -> Iterator[type]:
    """The classes of fxtrace in an annotation's text, also behind an alias such as `Arg`."""
    for word in re.findall(r"[A-Za-z_]\w*", annotation):
        home, name = imported(module).get(word, (module, word))
        yield from classes(getattr(import_module(home), name, None))


def classes(thing: Any) -> Iterator[type]:
    if isinstance(thing, type) and not get_args(thing):
        if thing.__module__.startswith("fxtrace"):
            yield thing
        return
    for part in get_args(thing):
        yield from classes(part)


def given(owner: Any) -> Iterator[tuple[str, str]]:
    """(annotation, module) of what a function returns, or a class's public methods, properties and fields."""
    if inspect.isfunction(owner):
        yield owner.__annotations__.get("return", ""), owner.__module__
        return
    for base in owner.__mro__:
        if not base.__module__.startswith("fxtrace"):
            continue
        for name, member in vars(base).items():
            method: Any
            match member:
                case classmethod() | staticmethod():
                    method = member.__func__
                case property():
                    method = member.fget
                case cached_property():
                    method = member.func
                case _:
                    method = member
            if inspect.isfunction(method) and not name.startswith("_") and (base.__name__, name) not in _INNER:
                yield method.__annotations__.get("return", ""), base.__module__
        if is_dataclass(base):
            own = vars(base).get("__annotations__", {})
            yield from ((text, base.__module__) for name, text in own.items() if not name.startswith("_"))


@cache
def returned() -> frozenset[type]:
    """Every class of fxtrace that something of the facade gives, and those that what it gives is made of."""
    found: set[type] = set()
    left = [getattr(fxtrace, name) for name in fxtrace.__all__]
    left = [each for each in left if not (isinstance(each, type) and issubclass(each, Exception))]
    while left:
        for annotation, module in given(left.pop()):
            new = set(named(annotation, module)) - found
            found |= new
            left += new
    return frozenset(found)


KINDS = sorted(returned(), key=str)


def test_the_walk_goes_where_it_should() -> None:
    names = {each.__name__ for each in returned()}
    assert {"Trace", "TracedInput", "SnapshotTensor", "SizeChange", "Symbol", "Move", "ServerInfo", "Axis"} <= names


@pytest.mark.parametrize("kind", KINDS, ids=[each.__name__ for each in KINDS])
def test_every_type_that_is_returned_is_exported(kind: type) -> None:
    exported = getattr(fxtrace, kind.__name__, None)
    assert exported is kind or getattr(exported, "_is_protocol", False), f"fxtrace does not export {kind}"
    assert kind.__name__ in fxtrace.__all__


# --------------------------------------------------------------------------------------------------- how it is shown


class Odd(nn.Module):
    """Calls with slices, constants, tuples and other values, and a softmax that is no attention's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A tuple with a dict, of strange names."""
        values, indices = self.first(x)[..., 1:3].to(torch.float64).max(dim=-1)
        return values.softmax(0), {"a\nb\x1b[31m": indices, "very_" * 60: x.t()}


@pytest.fixture(scope="module")
def shown() -> Mapping[type, list[Any]]:
    """Objects of every kind, as they really come: by type, those inside others, too."""
    engine = session()
    trace = fxtrace.trace("reference")
    other = fxtrace.trace("reference", d_ff=64, n_heads=2, decoder_layers=1)
    odd = fxtrace.trace(Odd(), torch.ones(4, 5))
    grid = fxtrace.parse_grid(["d_model=64,96", "n_heads=1..3"])
    sweep = fxtrace.SweepRequest("reference", grid, tensors=(ROLE,))
    locked = Locked("float32", ("1", "n_heads", "5?", "6?"))
    tensor = fxtrace.TensorData("int64", (6,), bytes(48))
    roots: list[Any] = [trace, trace.info, trace.graph, trace.roles, trace.nodes(), trace.draw(format="dot")]
    roots += [odd, odd.info, odd.graph, odd.nodes('kind == "softmax"'), other, other.info]
    roots += [*trace.snapshots, *engine.list_snapshots(odd.id)[:3]]
    roots += [trace.diff(other), trace.diff(trace), trace.diff(odd), trace.formulas()]
    roots += [trace.explain(what) for what in (ROLE, "d_model", "34", "decoder.0", "softmax")]
    queries = (fxtrace.NodeQuery(), fxtrace.NodeQuery('op == "none"'), fxtrace.NodeQuery(pattern="matmul pointwise*"))
    roots += [*queries, *(engine.query_nodes(trace.id, each) for each in queries)]
    roots += [engine.get_model("reference"), sweep, *engine.sweep_shapes(sweep), fxtrace.SweepBatch()]
    roots += [fxtrace.TraceRequest("reference", {"d_ff": 64}, {"src_ids": tensor}), fxtrace.TraceRequest("hf:llama")]
    roots += [fxtrace.RenderOptions(), fxtrace.RenderOptions(depth=2, highlight=(ROLE,))]
    roots += [fxtrace.Progress("tracing"), fxtrace.Progress("tracing", 3, 10), fxtrace.ServerInfo("0.1.0", "read", "k")]
    roots += [
        Lock("reference", {"d_ff": 64}, trace.configuration, {}, ({"d_ff": 8},), {("roles", ROLE): locked}),
        fxtrace.Refusal("attention", "no product"),
    ]
    move = fxtrace.Move("roles", ROLE, "float32 (4)", "float32 (5)", ("d_model",))
    roots += [move, fxtrace.Checked((), (move,)), fxtrace.Checked((), ()), fxtrace.TraceOptions(seed=3)]
    roots += [fxtrace.TraceOptions(), fxtrace.Origin("ab" * 16, trace.id, "mine.py", "cd" * 16)]
    roots += [fxtrace.StoredTrace(trace.info, 4096, trace.info.created, True, False), fxtrace.Collected((trace.id,), 9)]
    found: dict[type, list[Any]] = {}
    for each in within(roots):
        found.setdefault(type(each), []).append(each)
    return found


def within(value: Any) -> Iterator[Any]:
    """A value and those inside it, of fxtrace's own types."""
    if type(value).__module__.startswith("fxtrace"):
        yield value
    if is_dataclass(value):
        for each in fields(value):
            yield from within(getattr(value, each.name))
    elif isinstance(value, Mapping) and type(value).__module__ == "builtins":
        for item in value.values():
            yield from within(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from within(item)


def check(value: Any) -> None:
    """Asserts that an object reads well, both ways."""
    name, line = type(value).__name__, repr(value)
    assert len(line) < 160, line
    assert line.isprintable(), line
    assert name.lower() in line.lower() or name == "Nodes", line
    text = str(value)
    assert text.strip()
    assert text != line
    assert " object at 0x" not in text + line
    assert not re.search(r"\b(Ref|TensorSpec|Role|Value|Check)\(", text + line), "a dump of a record"


def test_every_type_is_shown(shown: Mapping[type, list[Any]]) -> None:
    names = {each.__name__ for each in shown}
    assert {each.__name__ for each in returned()} - names == _LIVE
    assert {Lock, Locked} <= set(shown)


def test_what_is_returned_reads_well(shown: Mapping[type, list[Any]]) -> None:
    for kind, values in shown.items():
        for value in values:
            check(value)
            if kind is not fxtrace.Picture:  # whose text is the file's
                assert all(len(line) <= 160 for line in str(value).splitlines()), str(value)


def test_what_holds_something_open_says_what(tmp_path: Path) -> None:
    with (
        fxtrace.Engine.open(tmp_path / "store") as engine,
        serving(engine) as address,
        fxtrace.Client(address) as client,
    ):
        trace = engine.trace("reference")
        readers = engine.open_tensor(trace.id, "softmax"), client.open_tensor(trace.id, "softmax")
        models = fxtrace.Registry.installed()
        for each in (engine, engine.store, client, models, models.load("reference"), session(), *readers):
            assert repr(each).startswith(f"<{type(each).__name__}") or isinstance(each, fxtrace.Model)
            assert len(repr(each)) < 160
            assert " object at 0x" not in repr(each)
            if hasattr(each, "close") and each in readers:
                each.close()


def test_the_size_of_the_data_makes_no_difference(shown: Mapping[type, list[Any]]) -> None:
    grown = []
    for values in shown.values():
        for value in values[:3]:
            if is_dataclass(value) and not isinstance(value, type | fxtrace.Formula):
                changes = {each.name: larger(getattr(value, each.name)) for each in fields(value)}
                try:
                    grown.append(replace(value, **changes))
                except fxtrace.InvalidRequest:  # a grid that has the same field twice
                    continue
    grown.append(fxtrace.Formula(" + ".join(f"size_{number}" for number in range(300))))
    assert len({type(each) for each in grown}) > 40
    for value in grown:
        assert len(repr(value)) < 160, repr(value)
        assert repr(value).isprintable()
        if not isinstance(value, NAMES):
            assert max(map(len, str(value).splitlines())) <= 160, type(value)


def larger(value: Any) -> Any:
    match value:
        case str():
            return value + " lorem\n\x1b[31m\u202eipsum" * 2000
        case bool() | float() | None:
            return value
        case int():
            return value + 10**30
        case tuple():
            return value * 500
        case dict() if value and isinstance(next(iter(value)), str):
            return {**value, **{f"name_{number}": next(iter(value.values())) for number in range(500)}}
        case _:
            return value


def test_names_and_formulas_stay_what_others_compute_with(shown: Mapping[type, list[Any]]) -> None:
    long = fxtrace.Role("encoder" * 40, 0, "attention", "weights")
    assert str(long) == f"{'encoder' * 40}.0.attention.weights"
    for formula in shown[fxtrace.Formula]:
        assert str(formula) == formula.text
    assert str(fxtrace.Formula(" + ".join(["d_model"] * 50))).count("d_model") == 50


def test_records_are_compared_hashed_and_pickled_as_before(shown: Mapping[type, list[Any]]) -> None:
    open_ones = {fxtrace.Graph, fxtrace.GraphDiff, fxtrace.Formula, fxtrace.Formulas, fxtrace.Grid, Lock}
    for kind, values in shown.items():
        if is_dataclass(kind):
            assert hasattr(values[0], "__dict__") == (kind in open_ones), kind
            again = pickle.loads(pickle.dumps(values[0]))
            assert again == values[0]
            assert again is not values[0]
    spec = shown[fxtrace.TensorSpec][0]
    assert len({spec, replace(spec), replace(spec, dtype="bool")}) == 2


def test_two_queries_have_two_reprs() -> None:
    long = 'kind == "matmul" || ' * 40
    queries = [fxtrace.NodeQuery(f"{long}name == '{name}'") for name in "ab"]
    assert repr(queries[0]) != repr(queries[1])
    assert repr(queries[0]) == repr(replace(queries[0]))
    assert repr(fxtrace.NodeQuery("rank == 4", max_depth=2)) == "NodeQuery(expression='rank == 4', max_depth=2)"


def test_what_is_missing_is_a_lookup_error() -> None:
    assert all(
        issubclass(each, LookupError) for each in (fxtrace.NotFound, fxtrace.ModelNotFound, fxtrace.NodeNotFound)
    )
    assert not issubclass(fxtrace.InvalidRequest, LookupError)
    with pytest.raises(LookupError, match="did you mean"):
        fxtrace.trace("referense")
