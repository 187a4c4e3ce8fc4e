"""`fxtrace formulas` and `diff`: what sizes are made of, and what changed between two traces or models."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fxtrace.cli.common import (
    Json,
    Server,
    StorePlace,
    check_writable,
    connect,
    resolve_trace,
    settings_of,
    write_file,
)
from fxtrace.cli.render import format_of
from fxtrace.errors import ModelNotFound, OptionInvalid
from fxtrace.ir.trace import IMAGE_FORMATS, Progress, RenderOptions, Theme, TraceRequest

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
            trace_id = trace_meant(api, what, report)
            found = api.find_formulas(trace_id, progress=report)
        graph = api.get_graph(trace_id)
    if as_json:
        shapes = {name: found.shape(name) for name in found.tensors}
        changes = {"structural": found.structural, "tied": found.tied, "fixed": found.fixed, "untried": found.untried}
        told = {"sizes": found.sizes, "shapes": shapes, "copy": found.copy, "refused": found.refused}
        echo_json({"trace": trace_id, **told, **changes})
    else:
        show_on_stdout(*formula_tables(graph, found))


def diff(
    before: Annotated[str, typer.Argument(metavar="BEFORE", help=_SIDE)],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="The same, of the other side.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help=f"Draw both as one picture instead, {', '.join(IMAGE_FORMATS)} by the file's ending.",
        ),
    ] = None,
    depth: Annotated[int | None, typer.Option(min=0, help="In the picture: modules nested deeper are one box.")] = None,
    module: Annotated[str, typer.Option(help="In the picture: only this module's inside.")] = "",
    theme: Annotated[Theme, typer.Option(help="The picture's colours.")] = "light",
    server: Server = None,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """Compare two traces or models: what changed, and which configuration fields explain each size."""
    from fxtrace.cli.changes import diff_tables
    from fxtrace.cli.output import echo_json, progress_bar
    from fxtrace.cli.tables import show_on_stdout

    image_format = None if out is None else format_of(out)
    check_writable(out)
    with connect(server, store) as api, progress_bar(hidden=as_json) as report:
        ids = trace_meant(api, before, report), trace_meant(api, after, report)
        if out is not None and image_format is not None:
            options = RenderOptions(depth=depth, module=module, theme=theme)
            picture = api.render_diff(*ids, image_format, options, progress=report)
        else:
            changes = api.diff_traces(*ids, progress=report)
    if out is not None:
        write_file(out, picture)
        written = {"before": ids[0], "after": ids[1], "file": str(out), "nbytes": len(picture)}
        echo_json(written) if as_json else typer.echo(f"wrote {out} ({len(picture):,} bytes)")
    elif as_json:
        told = {"explained": changes.explained, "unexplained": changes.unexplained}
        echo_json({"before": ids[0], "after": ids[1], "diff": changes, **told})
    else:
        show_on_stdout(*diff_tables(changes))


def trace_meant(api: Api, text: str, report: Callable[[Progress], None]) -> str:
    """The id of the trace that is meant; a model is traced, with the settings that follow its name."""
    try:
        words = shlex.split(text)
    except ValueError:
        raise OptionInvalid(f"expected a trace or a model; a quotation is not closed: {text}", field="trace") from None
    if not words:
        raise OptionInvalid("expected a trace or a model, got nothing", field="trace")
    if len(words) == 1 and (text == "latest" or re.fullmatch(r"[0-9a-f]{4,32}", text)):
        return resolve_trace(api, text)
    model, *rest = words
    if any(word != "--set" for word in rest[::2]) or len(rest) % 2:
        raise OptionInvalid(
            f"expected a model and settings, as in '{model} --set FIELD=VALUE'; got '{text}'", field="trace"
        )
    request = TraceRequest(model, settings_of(rest[1::2]))
    try:
        return api.create_trace(request, progress=report).id
    except ModelNotFound:
        if not rest and re.fullmatch(r"[0-9a-f]{1,3}", text):  # too short to be taken for a trace's id at once
            return resolve_trace(api, text)
        raise
