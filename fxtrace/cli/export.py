"""`fxtrace export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxtrace.cli.common import (
    Json,
    Server,
    StorePlace,
    TraceOption,
    complete_roles,
    connect,
    resolve_trace,
)


def complete_formats(incomplete: str) -> list[str]:
    """For a shell: the formats that begin so."""
    from fxtrace.export import FORMATS

    return [each.name for each in FORMATS.values() if each.name.startswith(incomplete)]


def export(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="By its ending: .json, .graphml, .dot, .model-explorer.json, .parquet; or of tensors: .safetensors, "
            ".npz, .npy.",
        ),
    ],
    trace: TraceOption = "latest",
    format: Annotated[
        str,
        typer.Option(
            help="The format, where the ending does not say it: graphml, model-explorer, …",
            autocompletion=complete_formats,
        ),
    ] = "",
    tensor: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Of tensors' files: only this role, node, tensor or block of roles.",
            autocompletion=complete_roles,
        ),
    ] = "",
    server: Server = None,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """Write a trace for another tool, by the file's ending.

    For networkx, Graphviz, Model Explorer, pandas, NumPy and safetensors.

    Example: `fxtrace export weights.npy --tensor decoder.0.cross_attention.weights`
    """
    from fxtrace.api import Trace
    from fxtrace.cli.output import echo_json
    from fxtrace.cli.steps import next_step
    from fxtrace.export import export, format_of

    chosen = format_of(file, format)
    with connect(server, store) as api:
        export(Trace(api, api.get_trace(resolve_trace(api, trace))), file, format, tensor=tensor)
    nbytes = file.stat().st_size
    if as_json:
        echo_json({"file": str(file), "format": chosen.name, "nbytes": nbytes})
    else:
        typer.echo(f"wrote {file} ({nbytes:,} bytes)")
        next_step(*(("explain", tensor) if tensor else ("graph",)), trace=trace, server=server, store=store)
