"""`fxtrace formulas` and `diff`: what sizes are made of, and what changed between two traces or models."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fxtrace.cli.common import Json, Server, StorePlace, check_writable, complete_sides, settings_of, write_file
from fxtrace.cli.render import drawable, format_of
from fxtrace.cli.sides import sides
from fxtrace.ir.trace import IMAGE_FORMATS, RenderOptions, Theme

_SIDE = (
    "A trace's id (or the start of one, or 'latest'), or a model, with settings in quotes: 'reference --set d_ff=512'."
)


def formulas(
    trace: Annotated[
        str, typer.Argument(metavar="TRACE|MODEL", help=_SIDE, show_default=False, autocompletion=complete_sides)
    ] = "latest",
    server: Server = None,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """Say which configuration fields every size is made of.

    Found by trying other configurations, and kept with the trace.
    """
    from fxtrace.cli.changes import formula_tables
    from fxtrace.cli.output import echo_json, progress_bar
    from fxtrace.cli.steps import next_step
    from fxtrace.cli.tables import show_on_stdout

    with sides(server, store) as traces:
        with progress_bar(hidden=as_json) as report:
            trace_id = traces.meant(trace, report)
            found = traces.api.find_formulas(trace_id, progress=report)
        graph = traces.api.get_graph(trace_id)
    if as_json:
        shapes = {name: found.shape(name) for name in found.tensors}
        changes = {"structural": found.structural, "tied": found.tied, "fixed": found.fixed, "untried": found.untried}
        told = {"sizes": found.sizes, "shapes": shapes, "copy": found.copy, "refused": found.refused}
        echo_json({"trace": trace_id, **told, **changes})
    else:
        show_on_stdout(*formula_tables(graph, found))
        if traces.made:
            next_step("trace", *shlex.split(trace), "--formulas", server=server, store=store)
        else:
            step = ("explain", next(iter(found.sizes))) if found.sizes else ("graph",)
            named = trace if trace == "latest" else trace_id[:8]
            next_step(*step, trace=named, server=server, store=store)


def diff(
    before: Annotated[str, typer.Argument(metavar="BEFORE", help=_SIDE, autocompletion=complete_sides)],
    after: Annotated[
        str,
        typer.Argument(
            metavar="AFTER",
            help="The same, of the other side; with --set, it is the first side if left out.",
            show_default=False,
            autocompletion=complete_sides,
        ),
    ] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the second side. Repeatable."),
    ] = None,
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
    """Compare two traces or models: what changed, and why.

    Every size that changed is explained by the configuration fields that changed it.
    """
    from fxtrace.cli.changes import diff_tables
    from fxtrace.cli.output import echo_json, progress_bar
    from fxtrace.cli.steps import next_step
    from fxtrace.cli.tables import show_on_stdout

    image_format = None if out is None else format_of(out, server)
    check_writable(out)
    if not (after or settings):
        raise typer.BadParameter("expected two sides, or one and --set FIELD=VALUE", param_hint="AFTER")
    with sides(server, store) as traces, progress_bar(hidden=as_json) as report:
        api, changed = traces.api, settings_of(settings)
        ids = traces.meant(before, report), traces.meant(after or before, report, changed)
        if out is not None and image_format is not None:
            options = RenderOptions(depth=depth, module=module, theme=theme)
            picture = api.render_diff(*ids, image_format, options, progress=report)
        else:
            changes = api.diff_traces(*ids, progress=report)
    named = [before, *([after] if after else ()), *(word for each in settings or () for word in ("--set", each))]
    if out is not None:
        write_file(out, picture)
        written = {"before": ids[0], "after": ids[1], "file": str(out), "nbytes": len(picture)}
        if as_json:
            echo_json(written)
        else:
            typer.echo(f"wrote {out} ({len(picture):,} bytes)")
            next_step("diff", *named, server=server, store=store)
    elif as_json:
        told = {"explained": changes.explained, "unexplained": changes.unexplained}
        echo_json({"before": ids[0], "after": ids[1], "diff": changes, **told})
    else:
        show_on_stdout(*diff_tables(changes))
        picture_file = f"diff.{drawable(server)}"
        next_step("diff", *named, "-o", picture_file, server=server, store=store)
