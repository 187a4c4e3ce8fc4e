from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fxtrace.diff import GraphDiff, changed_fields, compare
from fxtrace.errors import ModelNotFound
from fxtrace.ir.trace import RUNGS, Json, TraceRequest
from fxtrace.models import Registry
from fxtrace.service.engine import Engine

TINY = Path(__file__).parents[1] / "service" / "tiny.py"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    models = Registry.installed()
    models.add_file(TINY)
    with Engine.open(tmp_path_factory.mktemp("store"), models) as opened:
        yield opened


def difference(engine: Engine, model: str, before: dict[str, Json], after: dict[str, Json]) -> GraphDiff:
    ids = [engine.create_trace(TraceRequest(model, each)).id for each in (before, after)]
    return engine.diff_traces(*ids)


def test_what_is_the_same_is_equal(engine: Engine) -> None:
    found = difference(engine, "reference", {}, {})
    assert len(found.pairs) == 205
    assert (found.changed, found.added, found.removed, found.fields) == ((), (), (), ())
    assert len(found.values) > 100
    assert {each.largest for each in found.values} == {0}
    assert found.before == found.after


@pytest.mark.parametrize(
    ("after", "explained"),
    [
        ({"d_ff": 512}, {"d_ff": 8}),
        ({"src_len": 9}, {"src_len": 73}),
        ({"d_model": 64, "n_heads": 8}, {"d_model": 131, "n_heads": 84}),
    ],
)
def test_every_changed_size_is_explained(engine: Engine, after: dict[str, Json], explained: dict[str, int]) -> None:
    found = difference(engine, "reference", {}, after)
    assert found.changed
    assert found.unexplained == 0
    assert all(size.formula for size in found.sizes)
    assert set(found.explained) == explained.keys()
    assert (found.added, found.removed, found.notes) == ((), (), ())


def test_of_fields_that_must_be_equal_the_one_that_a_size_is_made_of_explains_it(engine: Engine) -> None:
    pytest.importorskip("transformers")
    found = difference(engine, "hf:opt", {}, {"hidden_size": 192})
    assert {"hidden_size", "word_embed_proj_dim"} <= {each.name for each in found.fields}  # the one follows the other
    causes = {
        (tensor.before.name, size.causes) for each in found.pairs for tensor in each.tensors for size in tensor.sizes
    }
    assert ("embedding", ("word_embed_proj_dim",)) in causes
    assert ("linear", ("hidden_size",)) in causes
    assert not found.unexplained


def test_added_layers_are_explained(engine: Engine) -> None:
    found = difference(engine, "reference", {}, {"encoder_layers": 3, "d_ff": 300})
    assert len(found.added) == 32
    assert {each.causes for each in found.added} == {("encoder_layers",)}
    assert not found.removed
    assert found.explained == {"d_ff": 8, "encoder_layers": 33}  # the last layer's output is another role's, too
    assert found.after.nodes - found.before.nodes == 32


def test_removed_layers_are_explained(engine: Engine) -> None:
    found = difference(engine, "reference", {"decoder_layers": 2}, {"decoder_layers": 1})
    assert {each.causes for each in found.removed} == {("decoder_layers",)}
    assert not found.added
    assert found.explained.keys() == {"decoder_layers"}


def test_fields_that_change_no_shape_explain_none(engine: Engine) -> None:
    found = difference(engine, "tiny", {}, {"scale": 2.0})
    assert [(each.name, each.before, each.after) for each in found.fields] == [("scale", 1, 2)]
    assert found.explained == {}
    assert not found.changed


def test_without_the_model_everything_but_the_reasons_is_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    traces = [engine.create_trace(TraceRequest("tiny", {"width": width})) for width in (4, 5)]
    whole = engine.diff_traces(*(trace.id for trace in traces))
    assert whole.explained == {"width": len(whole.changed)}
    engine.find_formulas(traces[0].id)
    with Engine.open(engine.store.place) as opened:
        elsewhere = opened.restricted()  # as a server: it does not look where the model was
        with pytest.raises(ModelNotFound):
            elsewhere.get_model("tiny")
        by_kept = elsewhere.diff_traces(*(trace.id for trace in traces))
        other = engine.create_trace(TraceRequest("tiny", {"width": 4, "scale": 7.0}))
        lacking = elsewhere.diff_traces(other.id, engine.create_trace(TraceRequest("tiny", {"width": 7})).id)
        with pytest.raises(ModelNotFound, match=r"which cannot be built here: .* trace a model by its name, its file"):
            elsewhere.find_formulas(other.id)
    assert by_kept.explained == whole.explained
    assert by_kept.notes[0].startswith("attributed only by formulas kept with the traces: trace ")
    assert "no model named 'tiny'" in by_kept.notes[0]
    assert lacking.unexplained == len(lacking.sizes) == len(whole.sizes)
    assert [pair.after for pair in lacking.changed] == [pair.after for pair in whole.changed]
    assert lacking.notes[0].startswith(
        f"not attributed: trace {other.id[:8]} is of 'tiny', which cannot be built here: "
    )


@pytest.mark.parametrize("values", [(True, False), (False, False)])
def test_a_trace_without_numbers_is_named_once(engine: Engine, values: tuple[bool, bool]) -> None:
    ids = [engine.create_trace(TraceRequest("tiny", values=each)).id for each in values]
    assert f"numbers not compared: {ids[1][:8]} has shapes only" in engine.diff_traces(*ids).notes


def test_reading_a_parameter_adds_no_bytes(engine: Engine) -> None:
    """One capture has a node for each parameter that is read, the other has none."""
    ids = [engine.create_trace(TraceRequest("reference", rung=each)).id for each in RUNGS[:2]]
    found = engine.diff_traces(*ids)
    assert {lone.node.kind for lone in found.added} == {"constant"}
    assert found.before.nbytes == found.after.nbytes


def test_shapes_that_were_asked_for_are_told_and_tried(engine: Engine) -> None:
    shapes = ({"ids": (3,), "x": (3, 4), "keep": (3,)}, {"ids": (6,), "x": (6, 4), "keep": (6,)})
    ids = [engine.create_trace(TraceRequest("tiny", input_shapes=each)).id for each in shapes]
    found = engine.diff_traces(*ids)
    assert {each.name for each in found.fields} == {"ids.shape", "x.shape", "keep.shape"}
    assert found.unexplained == 0
    assert {size.formula for size in found.sizes} == {""}


def test_traces_of_different_rungs_are_aligned_by_role(engine: Engine) -> None:
    ids = [engine.create_trace(TraceRequest("reference", rung=rung)).id for rung in ("symbolic", "export")]
    found = engine.diff_traces(*ids)
    assert "captured differently (symbolic, export)" in found.notes[0]
    assert "has shapes only" in found.notes[1]
    graphs = [engine.get_graph(each) for each in ids]
    shared = graphs[0].by_role.keys() & graphs[1].by_role.keys()
    assert len(shared) > 100
    names = {pair.before.name: pair.after.name for pair in found.pairs}
    assert all(names[graphs[0].by_role[role].name] == graphs[1].by_role[role].name for role in shared)


def test_numbers_are_compared_where_shapes_are_equal(engine: Engine) -> None:
    ids = [
        engine.create_trace(TraceRequest("reference", seed=seed, configuration={"seed": seed})).id for seed in (1, 2)
    ]
    found = engine.diff_traces(*ids)
    one = next(each for each in found.values if each.role == "decoder.0.cross_attention.scores")
    ours, theirs = (engine.read_tensor(trace, one.role) for trace in ids)
    assert one.largest == np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max() > 0
    assert one.scale == np.abs(ours).max()


def test_fields_in_nests_are_named_with_the_way_to_them() -> None:
    before: dict[str, Json] = {"a": {"b": 1, "c": [1, 2]}, "d": [1], "e": 1}
    after: dict[str, Json] = {"a": {"b": 2, "c": [1, 3]}, "d": [1, 2], "f": 1}
    told = {each.name: (each.before, each.after) for each in changed_fields(before, after)}
    assert told == {"a.b": (1, 2), "a.c[1]": (2, 3), "d": ([1], [1, 2]), "e": (1, None), "f": (None, 1)}


def test_another_op_and_another_dtype_are_changes(engine: Engine) -> None:
    graph = engine.get_graph(engine.create_trace(TraceRequest("tiny")).id)
    nodes = list(graph.nodes)
    place = next(i for i, node in enumerate(nodes) if node.kind == "activation")
    spec = nodes[place].spec
    assert spec is not None
    value = replace(nodes[place].values[0], spec=replace(spec, dtype="float16"))
    nodes[place] = replace(nodes[place], values=(value,))
    (pair,) = compare(graph, replace(graph, nodes=tuple(nodes))).changed
    assert pair.restructured
    assert pair.tensors[0].after.dtype == "float16"
