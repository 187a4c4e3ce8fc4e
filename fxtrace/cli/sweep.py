"""`fxtrace sweep`: what a model comes to over a grid of configurations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fxtrace.cli.common import Json, ModelArgument, Server, StorePlace, connect, settings_of
from fxtrace.sweep import SAMPLE, SweepBatch, SweepRequest, SweepRow, parse_grid

if TYPE_CHECKING:
    from fxtrace.cli.layout import Block

_SHOWN = 20


@dataclass
class Swept:
    """A whole sweep: its rows in the order of the grid, and what they stand on."""

    fields: tuple[str, ...]
    tensors: tuple[str, ...]
    rows: list[SweepRow] = field(default_factory=list)
    confirmed: int = 0
    mismatches: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, batch: SweepBatch) -> None:
        """Takes a batch in."""
        self.rows += batch.rows
        self.confirmed += batch.confirmed
        self.mismatches += batch.mismatches
        self.notes += batch.notes


def sweep(
    model: ModelArgument,
    grid: Annotated[
        list[str],
        typer.Option(
            metavar="FIELD=VALUES",
            help="Values of a field: 64,128,256 or 1..16 or 64..512:64. Repeatable: each with each.",
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="The same in all of them; JSON, or else text. Repeatable."),
    ] = None,
    node: Annotated[
        list[str] | None, typer.Option(metavar="NODE", help="Show the shape of this node or role, too. Repeatable.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Write the rows (.csv, .parquet, .json) or a plot (.svg, .png, .pdf)."
        ),
    ] = None,
    x: Annotated[str, typer.Option(metavar="FIELD", help="Of a plot: the field to the right.")] = "",
    y: Annotated[
        str,
        typer.Option(
            metavar="NUMBER", help="Of a plot: activation_bytes, peak_activation_bytes, parameters or flops, upwards."
        ),
    ] = "activation_bytes",
    sample: Annotated[
        int, typer.Option(min=0, help="Configurations that are propagated, too, to confirm the formulas.")
    ] = SAMPLE,
    seed: Annotated[int, typer.Option(min=-(2**63), max=2**63 - 1, help="Of the choice of these.")] = 0,
    server: Server = None,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """Count parameters, bytes and FLOPs over configurations.

    Shapes, parameters, activation bytes and FLOPs over a grid of configurations.

    By formulas where a sample confirms them, else by propagation; nothing is computed, and nothing is kept.
    """
    from fxtrace.cli.output import echo_json, error_line, progress_bar
    from fxtrace.cli.steps import next_step
    from fxtrace.cli.sweep_files import check_output, document, write_sweep
    from fxtrace.cli.tables import show_on_stdout

    request = SweepRequest(
        model,
        parse_grid(grid),
        settings_of(settings),
        tuple(node or ()),
        sample,
        seed,
    )
    swept = Swept(tuple(axis.field for axis in request.grid.axes), request.tensors)
    check_output(swept, out, x, y)
    with connect(server, store) as api, progress_bar(hidden=as_json) as report:
        for batch in api.sweep_shapes(request, progress=report):
            swept.add(batch)
    swept.rows.sort(key=lambda row: row.index)
    for mismatch in swept.mismatches:
        error_line(f"a formula does not hold, so its like are propagated: {mismatch}")
    if out is not None:
        write_sweep(swept, out, x, y)
    if as_json:
        echo_json(document(swept))
    else:
        show_on_stdout(*_tables(swept, request))
        if out is not None:
            typer.echo(f"wrote {out} ({out.stat().st_size:,} bytes)")
        sets = [word for item in settings or () for word in ("--set", item)]
        grids = [word for item in grid for word in ("--grid", item)]
        step = ("trace", model, *sets) if out is not None else ("sweep", model, *grids, *sets, "-o", "sweep.csv")
        next_step(*step, server=server, store=store)


def _tables(swept: Swept, request: SweepRequest) -> Iterator[Block]:
    from fxtrace.cli.layout import Column, facts, table
    from fxtrace.graph import show_shape

    valid = [row for row in swept.rows if not row.reason]
    numbers = ("parameters", "activations", "their peak", "FLOPs")
    ranks = (0, 1, 2, 3)  # the last are left out first where room lacks
    grid = table(
        "Sweep",
        *(Column(name, right=True) for name in swept.fields),
        *(Column(name, rank, right=True) for name, rank in zip(numbers, ranks, strict=True)),
        *(Column(name, below=True) for name in swept.tensors),  # what was asked for is never left out
    )
    for row in valid[:_SHOWN]:
        grid.add(
            *(str(row.configuration[name]) for name in swept.fields),
            f"{row.parameters:,}",
            f"{row.activation_bytes:,} B",
            f"{row.peak_activation_bytes:,} B",
            "" if row.flops is None else f"{row.flops:,}",
            *(show_shape(row.shapes[name]) if name in row.shapes else "" for name in swept.tensors),
        )
    if valid:
        yield grid
    reasons: dict[str, list[str]] = {}
    for row in swept.rows:
        if row.reason:
            reasons.setdefault(re.sub(r"[\d.]+", "#", row.reason), []).append(row.reason)
    if reasons:
        refused = table("Not accepted", Column("how many", right=True), Column("why, of the first", prose=True))
        for told in sorted(reasons.values(), key=len, reverse=True)[:_SHOWN]:
            refused.add(f"{len(told):,}", told[0].partition("\n")[0])
        yield refused
    how = Counter(row.how for row in valid)
    more = f"; the first {_SHOWN} are shown" if len(valid) > _SHOWN else ""
    yield facts(
        f"{len(swept.rows):,} configurations: {len(valid):,} accepted, {len(swept.rows) - len(valid):,} not{more}",
        ("by formula", f"{how['formula']:,}" if how["formula"] else ""),
        (
            "confirmed",
            f"{swept.confirmed} of them, drawn at random (seed {request.seed}), by propagation"
            if swept.confirmed
            else "",
        ),
        ("by propagation", f"{how['propagation']:,}" if how["propagation"] else ""),
        ("by a run", f"{how['run']:,}" if how["run"] else ""),
        ("notes", "\n".join(swept.notes)),
    )
