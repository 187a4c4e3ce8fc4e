"""Sweeps as messages of `fxtrace.v1`, both ways; what a JSON value is there is said in `fxtrace.wire`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fxtrace import wire
from fxtrace.errors import OptionInvalid
from fxtrace.records import Codec, Record
from fxtrace.sweep.grid import Axis, Grid
from fxtrace.sweep.rows import SAMPLE, SweepBatch, SweepRequest
from fxtrace.v1 import trace_service_pb2 as rpc


def encode_sweep_request(request: SweepRequest) -> rpc.SweepShapesRequest:
    """What is to be swept.

    Raises:
        ConfigurationError: a value is no JSON, or an integer beyond ±2**53.
        OptionInvalid: the sample or the seed has too many bits.
    """
    return rpc.SweepShapesRequest(
        model=wire.model_name(request.model),
        grid=map(_encode_axis, request.grid.axes),
        configuration=wire.encode_struct(request.configuration, "configuration"),
        tensors=request.tensors,
        sample=wire.fit(request.sample, 32, "sample"),
        seed=wire.fit(request.seed, 64, "seed"),
    )


def decode_sweep_request(request: rpc.SweepShapesRequest) -> SweepRequest:
    """What is to be swept.

    Raises:
        NameInvalid: the model's name is not `models/{name}`.
        OptionInvalid: the grid is none, or a range in it is empty or has no step.
    """
    return SweepRequest(
        model=wire.parse_model_name(request.model, "model"),
        grid=Grid(tuple(map(_decode_axis, request.grid))),
        configuration=wire.decode_struct(request.configuration),
        tensors=tuple(request.tensors),
        sample=request.sample if request.HasField("sample") else SAMPLE,
        seed=request.seed,
    )


def _encode_axis(axis: Axis) -> rpc.GridAxis:
    field = f"grid.{axis.field}"
    if isinstance(axis.values, range):
        for end in (axis.values.start, axis.values.stop):
            wire.encode_json(end, field)  # refuses what a row's configuration could not say
        values = rpc.IntegerRange(start=axis.values.start, stop=axis.values.stop, step=axis.values.step)
        return rpc.GridAxis(field=axis.field, range=values)
    listed = [wire.encode_json(value, field) for value in axis.values]
    return rpc.GridAxis(field=axis.field, listed=rpc.ListedValues(values=listed))


def _decode_axis(axis: rpc.GridAxis) -> Axis:
    if axis.WhichOneof("values") != "range":
        return Axis(axis.field, tuple(map(wire.decode_json, axis.listed.values)))
    values, field = axis.range, f"grid.{axis.field}"
    if values.step == 0:  # which no range has; the grid says what else is none
        raise OptionInvalid(f"{field}: expected a step of at least 1, got 0", field=field)
    for end in (values.start, values.stop):
        if abs(end) > wire.EXACT:
            raise OptionInvalid(f"{field}: expected integers within ±2**53, got {end}", field=field)
    return Axis(axis.field, range(values.start, values.stop, values.step))


def _encode_shapes(shapes: Mapping[str, Iterable[int]]) -> dict[str, rpc.Shape]:
    return {name: rpc.Shape(sizes=shape) for name, shape in shapes.items()}


def _decode_shapes(shapes: Mapping[str, rpc.Shape]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape.sizes) for name, shape in shapes.items()}


SWEEP_BATCH = Record(
    SweepBatch,
    rpc.SweepBatch,
    {
        "google.protobuf.Struct": Codec(lambda values: wire.encode_struct(values, "configuration"), wire.decode_struct),
        "fxtrace.v1.SweepRow.ShapesEntry": Codec(_encode_shapes, _decode_shapes, whole=True),
    },
)
