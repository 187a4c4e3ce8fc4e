"""`fxtrace formulas` and `diff`: what sizes are made of, and what changed between two traces or models."""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from fxtrace.cli.common import Json, Server, StorePlace, connect, connect_here, pairs, resolve_trace
from fxtrace.errors import OptionInvalid
from fxtrace.trace import Json as JsonValue
from fxtrace.trace import TraceRequest

if TYPE_CHECKING:
    from fxtrace.cli.common import Api

_SIDE = (
    "A trace's id (or the start of one, or 'latest'), or a model, with settings in quotes: 'reference --set d_ff=512'."
)


def formulas(
    what: Annotated[str, typer.Argument(metavar="TRACE|MODEL", help=_SIDE)] = "latest",
    server: Server = None,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """Say which configuration fields each size is made of, found by trying others; kept with the trace."""
    from fxtrace.cli.changes import formula_tables
    from fxtrace.cli.output import echo_json, progress_bar
    from fxtrace.cli.tables import show_on_stdout

    with connect(server, store) as api:
        with progress_bar(hidden=as_json) as report:
            trace_id = _trace(api, what)
            found = api.find_formulas(trace_id, progress=report)
        graph = api.get_graph(trace_id)
    if as_json:
        shapes = {name: found.shape(name) for name in found.tensors}
        told = {"sizes": found.sizes, "shapes": shapes, "structural": found.structural, "tied": found.tied}
        echo_json({"trace": trace_id, **told, "fixed": found.fixed, "untried": found.untried})
    else:
        show_on_stdout(*formula_tables(graph, found))


def diff(
    before: Annotated[str, typer.Argument(metavar="BEFORE", help=_SIDE)],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="The same, of the other side.")],
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """Compare two traces or models: what changed, and which configuration fields explain each size."""
    from fxtrace.cli.changes import diff_tables
    from fxtrace.cli.output import echo_json, progress_bar
    from fxtrace.cli.tables import show_on_stdout

    with connect_here(store) as engine, progress_bar(hidden=as_json) as report:
        ids = _trace(engine, before), _trace(engine, after)
        changes = engine.diff_traces(*ids, progress=report)
    if as_json:
        echo_json({"before": ids[0], "after": ids[1], "diff": changes, "explained": changes.explained})
    else:
        show_on_stdout(*diff_tables(changes))


def _trace(api: Api, text: str) -> str:
    """The id of the trace that is meant; a model is traced."""
    words = shlex.split(text)
    if not words:
        raise OptionInvalid("expected a trace or a model, got nothing", field="trace")
    if len(words) == 1 and (text == "latest" or re.fullmatch(r"[0-9a-f]{4,32}", text)):
        return resolve_trace(api, text)
    model, *rest = words
    if any(word != "--set" for word in rest[::2]) or len(rest) % 2:
        raise OptionInvalid(
            f"expected a model and settings, as in '{model} --set FIELD=VALUE'; got '{text}'", field="trace"
        )
    settings = pairs("--set", rest[1::2])
    return api.create_trace(TraceRequest(model, {name: _value(each) for name, each in settings.items()})).id


def _value(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except ValueError:
        return text
    return value
