import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxtrace.errors import ConfigurationError, OptionInvalid
from fxtrace.sweep import Axis, Grid, SweepBatch, SweepRequest, SweepRow
from fxtrace.sweep.messages import SWEEP_BATCH, decode_sweep_request, encode_sweep_request
from fxtrace.v1 import trace_service_pb2 as rpc
from tests.test_wire import EXACT, INT32, INT64, JSON, NAMES, OBJECTS, TEXTS, tuples

COUNTS = st.integers(0, 2**63 - 1)
SHAPES = st.lists(COUNTS, max_size=3).map(tuple)
RANGES = st.builds(range, st.integers(-99, 99), st.integers(100, 2**53), st.integers(1, 2**40))
LISTED = st.lists(JSON, min_size=1, max_size=3, unique_by=repr).map(tuple)
AXES = st.lists(st.builds(Axis, NAMES, RANGES | LISTED), min_size=1, max_size=3, unique_by=lambda axis: axis.field)


def grids(axes: list[Axis]) -> Grid | None:
    try:
        return Grid(tuple(axes))
    except OptionInvalid:  # 1 and 1.0 are different to repr, and one value in JSON
        return None


REQUESTS = st.builds(
    SweepRequest,
    model=st.sampled_from(["reference", "hf:llama"]),
    grid=AXES.map(grids).filter(bool),
    configuration=OBJECTS,
    tensors=tuples(TEXTS),
    sample=st.integers(0, 2**31 - 1),
    seed=INT64,
)
ROWS = st.builds(
    SweepRow,
    index=COUNTS,
    configuration=OBJECTS,
    reason=TEXTS,
    how=st.sampled_from(["none", "formula", "propagation", "run"]),
    parameters=COUNTS,
    activation_bytes=COUNTS,
    peak_activation_bytes=COUNTS,
    flops=st.none() | COUNTS,
    shapes=st.dictionaries(NAMES, SHAPES, max_size=3),
)
BATCHES = st.builds(SweepBatch, rows=tuples(ROWS), confirmed=INT32, mismatches=tuples(TEXTS), notes=tuples(TEXTS))


@given(REQUESTS)
def test_requests_come_back_equal(request: SweepRequest) -> None:
    sent = rpc.SweepShapesRequest.FromString(encode_sweep_request(request).SerializeToString())
    assert decode_sweep_request(sent) == request


@given(BATCHES)
def test_batches_come_back_equal(batch: SweepBatch) -> None:
    sent = rpc.SweepBatch.FromString(SWEEP_BATCH.encode(batch).SerializeToString())
    assert SWEEP_BATCH.decode(sent) == batch


def test_what_is_not_said_is_the_default() -> None:
    axis = rpc.GridAxis(field="d", range=rpc.IntegerRange(start=1, stop=3, step=1))
    request = decode_sweep_request(rpc.SweepShapesRequest(model="models/reference", grid=[axis]))
    assert request == SweepRequest("reference", Grid((Axis("d", range(1, 3)),)))


@pytest.mark.parametrize(
    ("axis", "problem"),
    [
        (rpc.GridAxis(field="d", range=rpc.IntegerRange(start=1, stop=3)), "a step of at least 1, got 0"),
        (rpc.GridAxis(field="d", range=rpc.IntegerRange(start=1, stop=9, step=-1)), "a step of at least 1, got -1"),
        (rpc.GridAxis(field="d", range=rpc.IntegerRange(start=9, stop=2, step=1)), "a range from 9 to before 2"),
        (rpc.GridAxis(field="d", range=rpc.IntegerRange(start=3, stop=3, step=1)), "at least one value"),
        (rpc.GridAxis(field="d"), "at least one value"),
        (rpc.GridAxis(field="d", range=rpc.IntegerRange(start=0, stop=2**60, step=1)), r"within ±2\*\*53"),
    ],
)
def test_what_is_no_axis_is_refused(axis: rpc.GridAxis, problem: str) -> None:
    with pytest.raises(OptionInvalid, match=problem):
        decode_sweep_request(rpc.SweepShapesRequest(model="models/reference", grid=[axis]))


@given(EXACT)
def test_integers_that_json_does_not_hold_are_refused_before_they_are_sent(number: int) -> None:
    too_large = Grid((Axis("d", range(number, 2**60)),))
    with pytest.raises(ConfigurationError, match=r"grid\.d"):
        encode_sweep_request(SweepRequest("reference", too_large))
