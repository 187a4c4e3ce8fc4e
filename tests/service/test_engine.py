from __future__ import annotations

import dataclasses
import hashlib
import random
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fxtrace.api import TraceApi
from fxtrace.errors import (
    Cancelled,
    CaptureFailed,
    ConfigurationError,
    FxtraceError,
    InputError,
    ModelInvalid,
    ModelNotFound,
    NodeNotFound,
    OptionInvalid,
    PageInvalid,
    SliceInvalid,
    SnapshotNotFound,
    StoreDamaged,
    TensorNotFound,
    TooLarge,
    TraceNotFound,
    ValuesAbsent,
)
from fxtrace.ir.trace import Progress, TensorData, TraceInfo, TraceRequest
from fxtrace.models import Registry
from fxtrace.service.engine import Engine

TINY = TraceRequest(str(Path(__file__).parent / "tiny.py"))
REFERENCE = TraceRequest("reference")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine.open(tmp_path) as engine:
        yield engine


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, TraceInfo, TraceInfo]]:
    """An engine that nothing is changed in, with the reference and the tiny model traced."""
    with Engine.open(tmp_path_factory.mktemp("store")) as engine:
        yield engine, engine.create_trace(REFERENCE), engine.create_trace(TINY)


def request(**changes: Any) -> TraceRequest:
    return dataclasses.replace(TINY, **changes)


def given(array: NDArray[Any], **changes: Any) -> TensorData:
    return dataclasses.replace(TensorData(str(array.dtype), array.shape, array.tobytes()), **changes)


IDS = np.array([0, 9], np.int64)


def test_keeps_the_protocol(engine: Engine) -> None:
    api: TraceApi[NDArray[Any]] = engine
    assert list(api.list_traces()) == []


# ------------------------------------------------------------------------------------------------------------ models


def test_lists_models_and_says_which_cannot_be_used(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Config:\n    a: int = 1\n" + "build = 1\n" * 2
    )
    models = Registry.installed()
    models.add_file(TINY.model)
    with pytest.raises(ModelInvalid):
        models.add_file(broken)
    with Engine.open(tmp_path, models) as engine:
        assert [model.name for model in engine.list_models()] == ["reference", "tiny"]
        assert [field.name for field in engine.get_model("tiny").fields] == ["width", "words", "scale", "fails"]
        with pytest.raises(ModelNotFound, match="did you mean 'reference'"):
            engine.get_model("referense")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("Config = None", "model 'broken' lacks build and example_inputs"),
        ("import nowhere", "model 'broken' cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("1 / 0", "model 'broken' cannot be imported: ZeroDivisionError"),
    ],
)
def test_a_model_that_cannot_be_imported_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, problem: str
) -> None:
    module = f"broken_{hashlib.sha256(source.encode()).hexdigest()}"
    (tmp_path / f"{module}.py").write_text(source)
    installed = tmp_path / "broken-1.0.dist-info"
    installed.mkdir()
    (installed / "entry_points.txt").write_text(f"[fxtrace.models]\nbroken = {module}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with Engine.open(tmp_path) as engine:
        broken, reference = engine.list_models()
        assert (broken.name, reference.name) == ("broken", "reference")
        assert broken.summary.startswith(f"cannot be used: {problem}")
        with pytest.raises(ModelInvalid):
            engine.get_model("broken")


# ------------------------------------------------------------------------------------------------------------ create


def test_a_trace_says_where_it_came_from(traced: tuple[Engine, TraceInfo, TraceInfo]) -> None:
    engine, _, trace = traced
    assert trace == engine.get_trace(trace.id)
    assert (trace.model, trace.configuration["width"], trace.rung, trace.seed) == ("tiny", 4, "symbolic", 0)
    assert [(each.name, each.spec.shape, each.fill) for each in trace.inputs] == [
        ("ids", (3,), "example"),
        ("x", (3, 4), "example"),
        ("keep", (3,), "example"),
    ]
    assert trace.output_equal is True
    graph = engine.get_graph(trace.id)
    assert trace.node_count == len(graph.nodes)
    assert trace.tensor_count == len(dict(graph.tensors()))
    assert trace.tensor_bytes == sum(spec.nbytes for _, spec in graph.tensors())
    assert trace.parameter_count == 10 * 4 + 4 * 4 + 4


def test_a_repeat_is_a_hit(engine: Engine) -> None:
    first = engine.create_trace(TINY)
    stages: list[str] = []
    same = request(configuration={"width": 4})  # the default, said aloud
    assert engine.create_trace(same, progress=lambda progress: stages.append(progress.stage)) == first
    assert stages == []
    assert list(engine.list_traces()) == [first]


CHANGES: list[dict[str, Any]] = [
    {"configuration": {"width": 5}},
    {"inputs": {"ids": given(IDS.repeat(2)[:3])}},
    {"inputs": {"ids": given(IDS.repeat(2)[1:])}},
    {"input_shapes": {"ids": (3,)}},
    {"input_shapes": {"x": (3, 4)}},
    {"rung": "symbolic"},
    {"values": False},
    {"training": True},
    {"unfused": True},
    {"seed": 1},
]


def test_the_id_tells_everything_apart_that_changes_the_result(engine: Engine, tmp_path: Path) -> None:
    edited = tmp_path / "tiny.py"
    edited.write_text(Path(TINY.model).read_text() + "\n# edited\n")
    requests = [TINY, *(request(**change) for change in CHANGES), request(model=str(edited))]
    ids = [engine.create_trace(each).id for each in requests]
    assert len(set(ids)) == len(requests)
    assert [trace.id for trace in engine.list_traces()] == ids[::-1]


def test_the_same_request_gives_the_same_id_and_numbers_elsewhere(engine: Engine, tmp_path: Path) -> None:
    wanted = request(seed=3, input_shapes={"x": (3, 4), "ids": (3,)})
    trace = engine.create_trace(wanted)
    with Engine.open(tmp_path / "elsewhere") as other:
        again = other.create_trace(wanted)
        assert again.id == trace.id
        for name, _ in engine.get_graph(trace.id).tensors():
            assert engine.read_tensor(trace.id, name).tobytes() == other.read_tensor(trace.id, name).tobytes()


def test_the_seed_draws_the_parameters(engine: Engine) -> None:
    ones, twos = (engine.read_tensor(engine.create_trace(request(seed=seed)).id, "embed") for seed in (1, 2))
    assert not np.array_equal(ones, twos)


def test_random_states_are_left_as_found(engine: Engine) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    engine.create_trace(request(input_shapes={"x": (3, 4)}))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), repr(np.random.get_state())) == before[1:]


STAGES = ["build", "run", "capture", "propagate", "label", "store"]


def test_progress_goes_through_its_stages(engine: Engine) -> None:
    seen: list[Progress] = []
    trace = engine.create_trace(TINY, progress=seen.append)
    assert list(dict.fromkeys(progress.stage for progress in seen)) == STAGES
    steps = [progress for progress in seen if progress.stage == "propagate"]
    assert [(step.done, step.total) for step in steps] == [
        (done, trace.node_count) for done in range(1, trace.node_count + 1)
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_cancelled_at_any_stage_nothing_stays(engine: Engine, tmp_path: Path, stage: str) -> None:
    def cancel(progress: Progress) -> None:
        if progress.stage == stage:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        engine.create_trace(TINY, progress=cancel)
    assert list(engine.list_traces()) == []
    assert list((tmp_path / "tensors").iterdir()) == []
    assert engine.create_trace(TINY).output_equal is True


def test_threads_that_ask_for_the_same_run_it_once(engine: Engine) -> None:
    started: list[str] = []
    traces: list[TraceInfo] = []

    def work() -> None:
        def note(progress: Progress) -> None:
            if progress.stage == "build":
                started.append(progress.stage)

        traces.append(engine.create_trace(TINY, progress=note))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert started == ["build"]
    assert len(traces) == 4
    assert len({trace.id for trace in traces}) == 1


def test_one_that_waits_for_another_can_give_up(engine: Engine) -> None:
    running, go_on = threading.Event(), threading.Event()

    def hold(progress: Progress) -> None:
        if progress.stage == "capture":
            running.set()
            assert go_on.wait(20)

    def give_up(progress: Progress) -> None:
        assert progress.stage == "wait"
        raise Cancelled("tired of waiting")

    holder = threading.Thread(target=lambda: engine.create_trace(TINY, progress=hold))
    holder.start()
    assert running.wait(20)
    with pytest.raises(Cancelled, match="tired"):
        engine.create_trace(request(seed=9), progress=give_up)
    go_on.set()
    holder.join()
    assert [trace.seed for trace in engine.list_traces()] == [0]


def test_a_damaged_trace_is_made_again(engine: Engine, tmp_path: Path) -> None:
    trace = engine.create_trace(TINY)
    wanted = engine.read_tensor(trace.id, "embed")
    [file] = (tmp_path / "tensors").iterdir()
    file.unlink()
    with pytest.raises(StoreDamaged):
        engine.read_tensor(trace.id, "embed")
    assert engine.create_trace(TINY).id == trace.id
    assert np.array_equal(engine.read_tensor(trace.id, "embed"), wanted)


# ------------------------------------------------------------------------------------------------------------ inputs


def test_given_inputs_are_used(engine: Engine) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    keep = np.array([False, True])
    trace = engine.create_trace(request(inputs={"ids": given(IDS), "x": given(x), "keep": given(keep)}))
    assert [each.fill for each in trace.inputs] == ["given"] * 3
    assert np.array_equal(engine.read_tensor(trace.id, "ids"), IDS)
    assert np.array_equal(engine.read_tensor(trace.id, "x"), x)
    assert np.array_equal(engine.read_tensor(trace.id, "keep"), keep)


def test_shapes_are_filled_as_the_example_is(engine: Engine) -> None:
    trace = engine.create_trace(request(input_shapes={"ids": (500,), "x": (500, 4), "keep": (500,)}))
    assert [each.fill for each in trace.inputs] == ["random"] * 3
    ids, x, keep = (engine.read_tensor(trace.id, name) for name in ("ids", "x", "keep"))
    assert set(ids.tolist()) == {3, 5, 7}
    assert (x.dtype.name, keep.dtype.name) == ("float32", "bool")
    assert abs(float(x.mean())) < 0.1
    assert abs(float(x.std()) - 1) < 0.1
    assert 150 < keep.sum() < 350


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"inputs": {"idz": given(IDS)}}, InputError, "no input named 'idz'; did you mean 'ids'?"),
        ({"input_shapes": {"y": (2,)}}, InputError, "no input named 'y'"),
        ({"inputs": {"ids": given(IDS.astype(np.int32))}}, InputError, "'ids': expected dtype int64, got int32"),
        ({"inputs": {"ids": given(IDS, dtype="junk")}}, InputError, "'ids': expected dtype int64, got junk"),
        ({"inputs": {"ids": given(IDS, shape=(3,))}}, InputError, "expected 24 bytes for int64 of shape 3, got 16"),
        ({"inputs": {"ids": given(IDS, shape=(-1, -2))}}, InputError, "expected sizes of 0 or more, got -1, -2"),
        ({"inputs": {"ids": given(IDS)}, "input_shapes": {"ids": (2,)}}, InputError, "numbers or a shape, got both"),
        ({"input_shapes": {"x": (-3, 4)}}, InputError, "'x': expected sizes of 0 or more, got -3, 4"),
        ({"input_shapes": {"x": (2**40, 4)}}, TooLarge, "takes 17592186044416 bytes"),
        ({"input_shapes": {"x": (2, 4)}}, CaptureFailed, r"tiny.py:\d+ \(`y = self.embed\(ids\).*must match the size"),
        ({"configuration": {"fails": "build"}}, CaptureFailed, r"building the model raised at tiny.py:\d+.*no bricks"),
        ({"configuration": {"fails": "forward"}}, CaptureFailed, r"raised at tiny.py:\d+.*no way forward"),
        ({"configuration": {"widht": 4}}, ConfigurationError, "did you mean 'width'"),
        ({"configuration": {"width": "wide"}}, ConfigurationError, "field 'width'"),
        ({"rung": "ladder"}, OptionInvalid, "no capture rung named 'ladder'"),
        ({"model": "tinny"}, ModelNotFound, "no model named 'tinny'"),
        ({"model": "nowhere/tiny.py"}, ModelInvalid, "no model file at"),
    ],
)
def test_bad_requests(
    engine: Engine, tmp_path: Path, changes: dict[str, Any], error: type[FxtraceError], message: str
) -> None:
    with pytest.raises(error, match=message):
        engine.create_trace(request(**changes))
    assert list(engine.list_traces()) == []
    assert list((tmp_path / "tensors").iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ traces


def test_pages_go_through_all_traces_while_some_come_and_go(engine: Engine) -> None:
    ids = [engine.create_trace(request(seed=seed)).id for seed in range(5)]
    first, token = engine.page_traces(2, "")
    engine.create_trace(request(seed=9))
    engine.delete_trace(ids[4])
    second, token = engine.page_traces(2, token)
    third, last = engine.page_traces(2, token)
    assert [trace.id for trace in (*first, *second, *third)] == ids[::-1]
    assert last == ""


@pytest.mark.parametrize(
    ("size", "token"),
    [(-1, ""), (1001, ""), (0, "x"), (0, "dHJhY2VzOg=="), (0, "é"), (0, "////"), (0, "/" * 64)],
)
def test_bad_pages(traced: tuple[Engine, TraceInfo, TraceInfo], size: int, token: str) -> None:
    with pytest.raises(PageInvalid, match="expected"):
        traced[0].page_traces(size, token)


def test_a_deleted_trace_is_gone(engine: Engine, tmp_path: Path) -> None:
    trace = engine.create_trace(TINY)
    engine.get_graph(trace.id)
    with Engine.open(tmp_path) as other:
        other.delete_trace(trace.id)
    for read in (engine.get_trace, engine.get_graph, engine.list_snapshots, engine.render_graph, engine.delete_trace):
        with pytest.raises(TraceNotFound, match=trace.id):
            read(trace.id)
    with pytest.raises(TraceNotFound):
        engine.read_tensor(trace.id, "x")


# ------------------------------------------------------------------------------------------------------------- graph


def test_filters_by_module(traced: tuple[Engine, TraceInfo, TraceInfo]) -> None:
    engine, _, tiny = traced
    assert {node.module for node in engine.get_graph(tiny.id, module="inner").nodes} == {"inner.0", "inner.1"}
    [node] = engine.get_graph(tiny.id, module="inner.0").nodes
    assert node.kind == "linear"
    with pytest.raises(NodeNotFound, match="no module named 'iner'; did you mean 'inner'"):
        engine.get_graph(tiny.id, module="iner")


def test_filters_by_role(traced: tuple[Engine, TraceInfo, TraceInfo]) -> None:
    engine, reference, _ = traced
    block = engine.get_graph(reference.id, role="decoder.1.cross_attention")
    assert block.nodes
    assert all(any(str(role).startswith("decoder.1.cross_attention.") for role in node.roles) for node in block.nodes)
    [node] = engine.get_graph(reference.id, role="decoder.1.cross_attention.weights").nodes
    assert node.kind == "softmax"
    both = engine.get_graph(reference.id, role="decoder.1.cross_attention.weights", module=node.module)
    assert both.nodes == (node,)
    with pytest.raises(NodeNotFound, match=r"did you mean 'decoder.1.cross_attention.weights'"):
        engine.get_graph(reference.id, role="decoder.1.cross_attention.weight")


def test_snapshots_by_number(traced: tuple[Engine, TraceInfo, TraceInfo]) -> None:
    engine, reference, _ = traced
    assert [snapshot.number for snapshot in engine.list_snapshots(reference.id)] == list(range(1, 44))
    assert [snapshot.number for snapshot in engine.list_snapshots(reference.id, (34, 2, 34))] == [2, 34]
    with pytest.raises(SnapshotNotFound, match="no snapshot 44; there are 1 to 43"):
        engine.list_snapshots(reference.id, [44])


def test_without_values_there_are_shapes_and_snapshots(engine: Engine) -> None:
    trace = engine.create_trace(dataclasses.replace(REFERENCE, values=False))
    assert trace.output_equal is None
    assert all(snapshot.found for snapshot in engine.list_snapshots(trace.id, range(1, 44)))
    for read in (engine.read_tensor, engine.open_tensor):
        with pytest.raises(ValuesAbsent, match="shapes only"):
            read(trace.id, "src_ids")


# ----------------------------------------------------------------------------------------------------------- tensors


def test_reads_by_name_and_by_role(traced: tuple[Engine, TraceInfo, TraceInfo]) -> None:
    engine, reference, _ = traced
    role = "decoder.0.cross_attention.weights"
    name = engine.get_graph(reference.id).resolve_tensor(role)
    whole = engine.read_tensor(reference.id, name)
    assert whole.shape == (1, 4, 5, 6)
    assert np.allclose(whole.sum(-1), 1)
    assert whole.flags.writeable
    first, row = engine.read_tensors(reference.id, [(role, "0,0"), (name, "0,:,-1,::2")])
    assert np.array_equal(first, whole[0, 0])
    assert np.array_equal(row, whole[0, :, -1, ::2])


def test_bfloat16_is_read_as_it_is(traced: tuple[Engine, TraceInfo, TraceInfo]) -> None:
    engine, _, tiny = traced
    [output] = [name for name, spec in engine.get_graph(tiny.id).tensors() if spec.dtype == "bfloat16"]
    array = engine.read_tensor(tiny.id, output)
    assert array.dtype == ml_dtypes.bfloat16
    before = engine.read_tensor(tiny.id, engine.get_graph(tiny.id, module="inner.1").nodes[0].name)
    assert np.array_equal(array, before.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize(
    ("tensor", "expression", "error"),
    [("embedd", "", TensorNotFound), ("x", "9", SliceInvalid), ("x", "0,0,0", SliceInvalid), ("", "", TensorNotFound)],
)
def test_bad_reads(
    traced: tuple[Engine, TraceInfo, TraceInfo], tensor: str, expression: str, error: type[FxtraceError]
) -> None:
    engine, _, tiny = traced
    for read in (engine.read_tensor, engine.open_tensor):
        with pytest.raises(error):
            read(tiny.id, tensor, expression)


@pytest.mark.parametrize("expression", ["", "1", "1:", "0,0", "0,2,3,4", "0,:,::2", "...,1", "0:0", "::-1,1:3"])
@pytest.mark.parametrize("chunk_bytes", [1, 7, 64, 1 << 20])
def test_chunks_add_up(traced: tuple[Engine, TraceInfo, TraceInfo], expression: str, chunk_bytes: int) -> None:
    engine, reference, _ = traced
    role = "decoder.0.cross_attention.scores"
    expression = expression if not expression.startswith("1") else f"0,{expression}"
    whole = engine.read_tensor(reference.id, role, expression)
    with engine.open_tensor(reference.id, role, expression) as reader:
        assert (reader.tensor, reader.spec.shape) == (engine.get_graph(reference.id).resolve_tensor(role), (1, 4, 5, 6))
        assert (reader.shape, reader.nbytes) == (whole.shape, whole.nbytes)
        chunks = list(reader.chunks(chunk_bytes))
    assert all(len(chunk) <= max(chunk_bytes, whole.itemsize) for chunk in chunks)
    assert b"".join(chunks) == whole.tobytes()


def test_chunks_of_no_bytes(traced: tuple[Engine, TraceInfo, TraceInfo]) -> None:
    engine, _, tiny = traced
    with engine.open_tensor(tiny.id, "x") as reader, pytest.raises(OptionInvalid, match="at least 1 byte, got 0"):
        list(reader.chunks(0))


def test_a_large_tensor_is_never_held_whole(engine: Engine) -> None:
    rows = 1 << 20
    trace = engine.create_trace(request(input_shapes={"ids": (rows,), "x": (rows, 4), "keep": (rows,)}))
    for expression, nbytes in (("", 16 << 20), ("1000:", (16 << 20) - 16000), (":,::2", 8 << 20)):
        tracemalloc.start()
        with engine.open_tensor(trace.id, "x", expression) as reader:
            total = sum(len(chunk) for chunk in reader.chunks())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == nbytes
        assert peak < 6 << 20


# ---------------------------------------------------------------------------------------------------------- pictures


def test_renders(traced: tuple[Engine, TraceInfo, TraceInfo]) -> None:
    engine, reference, _ = traced
    assert engine.render_graph(reference.id, "dot").startswith(b"digraph")
    with pytest.raises(OptionInvalid, match="no image format named 'gif'"):
        engine.render_graph(reference.id, "gif")  # type: ignore[arg-type]
