"""The sides of a comparison: traces that are there, and models that are traced only to be compared."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from fxtrace.cli.common import connect, engine_at, resolve_trace, settings_of
from fxtrace.errors import FxtraceError, ModelNotFound, OptionInvalid
from fxtrace.ir.trace import Json, Progress, TensorData, TraceInfo, TraceRequest
from fxtrace.store.naming import is_name

if TYPE_CHECKING:
    from fxtrace.cli.common import Api

Report = Callable[[Progress], None]

_LEAST_DIGITS = 4
"""Of the beginning of an id, for a text to be taken for one before it is taken for a model's name."""


class Sides:
    """Finds the traces that are meant, and makes those that are not there.

    What it makes is a by-product: it is kept in memory, or on a server until the end.

    Attributes:
        api: answers questions about all of them.
        made: ids of the traces that were not there before.
    """

    def __init__(self, api: Api, whereabouts: Callable[[TraceInfo], str]) -> None:
        self.api, self.made = api, list[str]()
        self._whereabouts = whereabouts

    def meant(self, text: str, report: Report, changes: Mapping[str, Json] | None = None) -> str:
        """The id of the trace that a text means: a trace, or a model with the settings that follow its name.

        Args:
            text: what is meant.
            report: called as a trace is made.
            changes: further settings; of a trace, one like it with these settings is meant.

        Raises:
            OptionInvalid: the text is neither.
            FxtraceError: as `create_trace` and `get_trace`.
        """
        try:
            words = shlex.split(text)
        except ValueError:
            raise OptionInvalid(f"expected a trace or a model; a quotation is not closed: {text}", field="trace") from (
                None
            )
        if not words:
            raise OptionInvalid("expected a trace or a model, got nothing", field="trace")
        if len(words) == 1 and is_name(text, least_digits=_LEAST_DIGITS):
            trace_id = resolve_trace(self.api, text)
            return self._changed(trace_id, changes, report) if changes else trace_id
        model, *rest = words
        if any(word != "--set" for word in rest[::2]) or len(rest) % 2:
            raise OptionInvalid(
                f"expected a model and settings, as in '{model} --set FIELD=VALUE'; got '{text}'", field="trace"
            )
        try:
            return self._create(TraceRequest(model, {**settings_of(rest[1::2]), **(changes or {})}), report)
        except ModelNotFound:
            if not rest and is_name(text):  # too short to be taken for a trace's id at once
                return resolve_trace(self.api, text)
            raise

    def _changed(self, trace_id: str, settings: Mapping[str, Json], report: Report) -> str:
        """The id of a trace like this one, of the same model with other settings.

        Raises:
            OptionInvalid: the trace cannot be made again.
            FxtraceError: as `create_trace`.
        """
        info = self.api.get_trace(trace_id)
        if info.state:
            raise OptionInvalid(
                f"trace {trace_id[:8]} has the weights of {info.state}, which other settings do not fit; compare the "
                f"model instead: fxtrace diff {info.model} --set ...",
                field="trace",
            )
        given = {each.name for each in info.inputs if each.fill == "given"} if info.values else set[str]()
        shaped = (each for each in info.inputs if each.fill != "example" and each.name not in given)
        request = TraceRequest(
            self._whereabouts(info),
            {**info.configuration, **settings},
            inputs={name: self._input(trace_id, name) for name in sorted(given)},
            input_shapes={each.name: each.spec.shape for each in shaped},
            rung=info.rung,
            values=info.values or info.weightless,
            training=info.training,
            seed=info.seed,
            weightless=info.weightless,
            symbolic={
                each.name: tuple(size if size.isidentifier() else "" for size in each.spec.symbolic)
                for each in info.inputs
                if each.spec.symbolic
            },
        )
        return self._create(request, report)

    def _input(self, trace_id: str, name: str) -> TensorData:
        with self.api.open_tensor(trace_id, name) as reader:
            return TensorData(reader.spec.dtype, reader.shape, b"".join(reader.chunks()))

    def _create(self, request: TraceRequest, report: Report) -> str:
        trace = self.api.create_trace(replace(request, by_product=True), progress=report)
        if not trace.reused:
            self.made.append(trace.id)
        return trace.id


@contextmanager
def sides(server: str | None, store: str | None) -> Iterator[Sides]:
    """Opens the store, or connects to a server; what is made meanwhile is gone afterwards."""
    if server is None:
        from fxtrace.store.memory import MemoryStore

        with engine_at(store, lambda below: MemoryStore(below=below)) as engine:
            yield Sides(engine, lambda info: engine.whereabouts(info.id))
        return
    with connect(server, store) as client:
        both = Sides(client, lambda info: info.model)
        try:
            yield both
        finally:
            for trace_id in both.made:
                with suppress(FxtraceError):  # deleted meanwhile, or the server is gone
                    client.delete_trace(trace_id)
