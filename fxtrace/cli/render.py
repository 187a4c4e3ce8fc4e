"""`fxtrace render`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from fxtrace.cli.common import (
    Json,
    Server,
    StorePlace,
    TraceArgument,
    check_writable,
    connect,
    resolve_trace,
    write_file,
)
from fxtrace.errors import OptionInvalid
from fxtrace.ir.trace import IMAGE_FORMATS, Direction, ImageFormat, RenderOptions, Theme


def render(
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", help=f"The picture, {', '.join(IMAGE_FORMATS)} by its ending."),
    ],
    trace: TraceArgument = "latest",
    depth: Annotated[int | None, typer.Option(min=0, help="Draw modules nested deeper as one box each.")] = None,
    highlight: Annotated[
        list[str] | None,
        typer.Option(help="Bring out a role, a role's beginning, a node, or a snapshot as '#33'. Repeatable."),
    ] = None,
    module: Annotated[str, typer.Option(help="Draw only this module's inside.")] = "",
    direction: Annotated[Direction, typer.Option(help="Top to bottom, or left to right.")] = "TB",
    theme: Annotated[Theme, typer.Option(help="Colours.")] = "light",
    views: Annotated[bool, typer.Option("--views", help="Draw ops that only move elements, too.")] = False,
    unfold: Annotated[bool, typer.Option("--unfold", help="Draw every one of a run of identical layers.")] = False,
    server: Server = None,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """Draw the graph.

    Example: `fxtrace render -o model.svg --highlight decoder.0.cross_attention`
    """
    from fxtrace.cli.output import echo_json, progress_bar
    from fxtrace.cli.steps import next_step

    image_format = format_of(out, server)
    check_writable(out)
    options = RenderOptions(
        depth=depth,
        fold_layers=not unfold,
        highlight=tuple(highlight or ()),
        module=module,
        direction=direction,
        theme=theme,
        views=views,
    )
    with connect(server, store) as api:
        trace_id = resolve_trace(api, trace)
        with progress_bar(hidden=as_json) as report:
            picture = api.render_graph(trace_id, image_format, options, progress=report)
    write_file(out, picture)
    if as_json:
        echo_json({"file": str(out), "format": image_format, "nbytes": len(picture)})
    else:
        typer.echo(f"wrote {out} ({len(picture):,} bytes)")
        folded = ("render", "-o", str(out), "--depth", "1")
        step = folded if depth is None else ("graph", *(("--module", module) if module else ()))
        next_step(*step, trace=trace, server=server, store=store)


def drawable(server: str | None) -> ImageFormat:
    """A picture's format that is sure to work: SVG where this machine draws it and can, else DOT, which is text."""
    from fxtrace.extras import absent_packages

    return "svg" if server is None and (not absent_packages("images") or shutil.which("dot")) else "dot"


def format_of(file: Path, server: str | None) -> ImageFormat:
    """The picture's format, by the file's ending; a server draws with its own Graphviz.

    Raises:
        OptionInvalid: it has none of theirs.
        DependencyMissing: Graphviz is needed here and is not installed.
    """
    ending = file.suffix.removeprefix(".").lower()
    for known in IMAGE_FORMATS:
        if known == ending:
            if known != "dot" and server is None:
                from fxtrace.render import find_graphviz

                find_graphviz()
            return known
    raise OptionInvalid(
        f"expected a file that ends in {', '.join(f'.{known}' for known in IMAGE_FORMATS)}, got '{file.name}'",
        field="out",
        out=file,
    )
