"""Traces without weights: built without allocating, with symbolic sizes, and held against a shrunken copy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxtrace.errors import Cancelled, FxtraceError, InputError, OptionInvalid, ValuesAbsent
from fxtrace.graph import Check, Graph
from fxtrace.ir.trace import Progress, TensorData, TraceInfo, TraceRequest
from fxtrace.service.engine import Engine

SYMBOLIC = {"ids": ("batch", "sequence")}
LARGE = TraceRequest(str(Path(__file__).parent / "decoder.py"), weightless=True, symbolic=SYMBOLIC)
SMALL = {"d_model": 16, "n_heads": 4, "n_layers": 1, "vocab": 20}
WHAT = "a copy shrunk to d_model=64, n_heads=4, n_layers=2 …"


def request(configuration: dict[str, Any] | None = None, **changes: Any) -> TraceRequest:
    return dataclasses.replace(LARGE, configuration=configuration or {}, **changes)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine.open(tmp_path) as engine:
        yield engine


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, TraceInfo, Graph]]:
    """A decoder of 14 billion parameters."""
    with Engine.open(tmp_path_factory.mktemp("store")) as engine:
        trace = engine.create_trace(LARGE)
        yield engine, trace, engine.get_graph(trace.id)


def test_a_model_that_no_memory_holds_has_shapes_and_roles(large: tuple[Engine, TraceInfo, Graph]) -> None:
    engine, trace, graph = large
    assert trace.parameter_count > 13e9
    assert (trace.rung, trace.weightless, trace.values, trace.output_equal) == ("export", True, False, None)
    assert trace.inputs[0].spec.symbolic == ("batch", "sequence")
    scores = graph.by_role["decoder.3.masked_self_attention.scores"].spec
    assert scores is not None
    assert (scores.shape, scores.symbolic) == ((2, 32, 6, 6), ("batch", "32", "sequence", "sequence"))
    assert {"batch": 2, "sequence": 6}.items() <= {dim.name: dim.size for dim in graph.dims}.items()
    with pytest.raises(ValuesAbsent):
        engine.read_tensor(trace.id, "decoder.0.masked_self_attention.scores")


def test_its_identities_held_on_a_shrunken_copy(large: tuple[Engine, TraceInfo, Graph]) -> None:
    engine, trace, graph = large
    note = f"{WHAT.removesuffix(' …')}, vocab=120, with random weights."
    assert f"Roles were tried on {note}" in trace.rung_notes
    (weights,) = graph.by_role["decoder.3.masked_self_attention.weights"].roles
    assert weights.evidence.endswith(f"; held on {WHAT}")
    assert {check.name for check in weights.checks} == {"softmax", "causal"}
    assert all(check.held and check.detail.startswith(f"on {WHAT}: largest difference") for check in weights.checks)
    mask = next(r for r in graph.by_role["decoder.3.masked_self_attention.mask"].roles if r.layer == 3)
    assert mask.checks == (Check("mask", "mask[i,j] hides every j > i", True, "equal"),)  # on its own values
    (snapshot,) = engine.list_snapshots(trace.id, [24])
    assert snapshot.tensors[0].symbolic == ("batch", "32", "sequence", "sequence")
    assert "sequence queries × sequence keys" in snapshot.explanation
    assert any(check.held for check in snapshot.checks if check.name == "scores")


def test_a_role_that_the_copy_refuses_is_refused(engine: Engine) -> None:
    graph = engine.get_graph(engine.create_trace(request({"interleaved": True, "n_layers": 3})).id)
    refusals = {refusal.role: refusal.reason for refusal in graph.refusals}
    for layer in range(3):
        role = f"decoder.{layer}.masked_self_attention.query_heads"
        assert role not in graph.by_role
        assert refusals[role].startswith(f"on {WHAT}, at 'permute")
        assert "query_heads[b,h,l,:] = query[b,l,h·d_head:(h+1)·d_head] does not hold" in refusals[role]
        assert f"decoder.{layer}.masked_self_attention.query" in graph.by_role


def test_a_small_model_is_its_own_copy(engine: Engine) -> None:
    trace = engine.create_trace(request(SMALL))
    assert "Roles were tried on a copy, with random weights." in trace.rung_notes
    with_weights = engine.create_trace(request(SMALL, weightless=False, rung="export"))
    assert with_weights.rung_notes == trace.rung_notes
    assert engine.get_graph(with_weights.id).by_role.keys() == engine.get_graph(trace.id).by_role.keys()


def test_where_no_copy_can_be_made_the_roles_say_so(engine: Engine) -> None:
    # Heads of 6 features: 64 features of the copy cannot be cut into 4 of them.
    trace = engine.create_trace(request({"d_model": 4098, "n_heads": 3, "n_layers": 1}))
    (note,) = (note for note in trace.rung_notes if note.startswith("Roles were not tried on values"))
    assert "no small copy could be run: " in note
    assert "decoder.py" in note
    role = engine.get_graph(trace.id).by_role["decoder.0.masked_self_attention.scores"].roles[0]
    assert [check.held for check in role.checks] == [None]


def test_shapes_only_tries_nothing(engine: Engine) -> None:
    trace = engine.create_trace(request({"n_layers": 1}, values=False))
    assert not any("tried" in note for note in trace.rung_notes)


def test_what_is_asked_for_is_part_of_the_id(engine: Engine) -> None:
    asked = [
        request(SMALL),
        request(SMALL, weightless=False),
        request(SMALL, symbolic={"ids": ("batch", "")}),
        request(SMALL, symbolic={}),
        request(SMALL, symbolic_timeout=30),
    ]
    ids = [engine.create_trace(each).id for each in asked]
    assert len(set(ids)) == len(asked)
    assert [engine.create_trace(each).id for each in asked] == ids
    same = [request(SMALL, symbolic={"ids": ("", "")}), request(SMALL, symbolic={}, symbolic_timeout=30)]
    assert {engine.create_trace(each).id for each in same} == {ids[3]}


@pytest.mark.parametrize(
    ("changes", "error", "field", "words"),
    [
        ({"rung": "record"}, OptionInvalid, "rung", "by the rung 'export', not 'record'; leave the rung out"),
        ({"state": "w.safetensors"}, OptionInvalid, "state", "takes none from 'w.safetensors'"),
        ({"weightless": False, "rung": "symbolic"}, OptionInvalid, "rung", "need the rung 'export'"),
        ({"symbolic": {"idz": ("batch", "")}}, InputError, "symbolic.idz", "did you mean 'ids'"),
        ({"symbolic": {"ids": ("batch",)}}, InputError, "symbolic.ids", "expected 2 names"),
        ({"symbolic_timeout": 0.0}, OptionInvalid, "symbolic_timeout", "above 0, got 0"),
    ],
)
def test_bad_requests(
    engine: Engine, changes: dict[str, Any], error: type[FxtraceError], field: str, words: str
) -> None:
    with pytest.raises(error, match=words) as e:
        engine.create_trace(request(SMALL, **changes))
    assert e.value.field == field
    assert list(engine.list_traces()) == []


def test_given_ids_and_cancelling(engine: Engine) -> None:
    ids = TensorData("int64", (3, 4), np.arange(12, dtype="<i8").tobytes())
    trace = engine.create_trace(request(SMALL, inputs={"ids": ids}))
    assert (trace.inputs[0].spec.shape, trace.inputs[0].fill) == ((3, 4), "given")

    def stop(progress: Progress) -> None:
        if progress.stage == "check":
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        engine.create_trace(request(SMALL, seed=1), progress=stop)
    assert [each.id for each in engine.list_traces()] == [trace.id]
