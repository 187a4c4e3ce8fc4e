"""Whole traces taken from wherever they are: to be compared side by side, or kept elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxtrace.api import Trace, TraceApi
from fxtrace.dims import Formulas
from fxtrace.errors import FormulasAbsent, OptionInvalid
from fxtrace.graph import TensorSpec
from fxtrace.models import Registry
from fxtrace.store.blobs import SUFFIX
from fxtrace.store.memory import TraceData


def data_of(trace: Trace) -> TraceData:
    """A whole trace; its numbers are read from where it is when they are asked for."""
    api, info = trace.api, trace.info
    specs = dict(trace.graph.tensors()) if info.values else {}
    snapshots = tuple(api.list_snapshots(info.id))
    return TraceData(info, trace.graph, snapshots, _Tensors(api, info.id, specs), _formulas(api, info.id))


def models_of(traces: Iterable[Trace]) -> Registry:
    """The models that the traces' engines offer. A server's stay there: what is compared here runs none of them."""
    models = Registry()
    for trace in traces:
        offered = getattr(trace.api, "models", None)
        if isinstance(offered, Registry):
            models.offer_all(offered)
    return models


def save(trace: Trace, place: str | Path) -> Path | str:
    """Keeps a trace; see `Trace.save`.

    Raises:
        OptionInvalid: the file or the store cannot be used.
        Unmet: the store cannot be written to.
    """
    if str(place).endswith(SUFFIX):
        from fxtrace.store.single import write_trace

        write_trace(data_of(trace), Path(place))
        return Path(place)
    text = str(place)
    if "://" not in text and not text.endswith("/") and Path(text).suffix and not Path(text).is_dir():
        raise OptionInvalid(
            f"expected a file that ends in {SUFFIX}, or a store's folder or URL; got '{text}'. For other formats there "
            f"is export(); for a folder of that name, write '{text}/'",
            field="place",
            place=text,
        )
    from fxtrace.service.engine import Engine

    with Engine.open(place) as engine:
        engine.adopt(data_of(trace))
    return str(place)


class _Tensors(Mapping[str, NDArray[Any]]):
    """A trace's tensors by name; one is read when it is asked for."""

    def __init__(self, api: TraceApi[Any], trace_id: str, specs: Mapping[str, TensorSpec]) -> None:
        self._api, self._id, self._specs = api, trace_id, specs

    def __getitem__(self, name: str) -> NDArray[Any]:
        from fxtrace.dtypes import numpy_dtype

        spec = self._specs[name]
        with self._api.open_tensor(self._id, name) as reader:
            data = np.empty(reader.nbytes, np.uint8)
            at = 0
            for chunk in reader.chunks():
                data[at : at + len(chunk)] = chunk
                at += len(chunk)
        return data.view(numpy_dtype(spec.dtype)).reshape(spec.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


def _formulas(api: TraceApi[Any], trace_id: str) -> Formulas | None:
    try:
        return api.get_formulas(trace_id)
    except FormulasAbsent:
        return None
