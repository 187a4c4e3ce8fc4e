"""`fxtrace store`: what a store holds, whether it is whole, and room in it."""

from __future__ import annotations

from typing import Annotated

import typer

from fxtrace.cli.common import Json, StorePlace, resolve_trace

store_app = typer.Typer(
    rich_markup_mode=None,
    name="store",
    help="Look after the traces that are kept.\n\nHow much room they take, whether they are whole, and which stay.",
    no_args_is_help=True,
)

Traces = Annotated[list[str], typer.Argument(metavar="TRACE", help="Ids of traces, the starts of them, or 'latest'.")]


@store_app.command("ls")
def list_stored(store: StorePlace = None, as_json: Json = False) -> None:
    """List the traces with their size, last use and pin.

    Example: `fxtrace store ls`
    """
    from fxtrace.cli.output import echo_json
    from fxtrace.cli.steps import next_step
    from fxtrace.cli.tables import show_on_stdout, stored_table
    from fxtrace.service.engine import Engine

    with Engine.open(store) as engine:
        stored = engine.store.stored()
    if as_json:
        echo_json(stored)
        return
    show_on_stdout(stored_table(stored)) if stored else typer.echo("there are no traces yet")
    damaged = next((each.trace.id for each in stored if each.damaged), None)
    next_step(
        *(("delete", damaged) if damaged else ("store", "verify") if stored else ("trace", "reference")), store=store
    )


@store_app.command()
def verify(
    traces: Annotated[
        list[str] | None, typer.Argument(metavar="TRACE", help="Only these; all where none is given.")
    ] = None,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """Compare every byte with its checksum.

    The exit code is 1 if something is damaged.

    Example: `fxtrace store verify latest`
    """
    from fxtrace.cli.output import echo_json, error_line, progress_bar
    from fxtrace.cli.steps import next_step
    from fxtrace.service.engine import Engine

    with Engine.open(store) as engine, progress_bar(hidden=as_json) as report:
        chosen = [resolve_trace(engine, trace) for trace in traces or []]
        problems = engine.store.verify(chosen, report)
    if as_json:
        echo_json({"damaged": problems})
    else:
        for name, problem in problems.items():
            error_line(problem if name in problem else f"{name}: {problem}")
        typer.echo(f"{len(problems)} damaged" if problems else "every byte is as it was written")
        next_step("store", "ls", store=store)
    if problems:
        raise typer.Exit(1)


@store_app.command()
def gc(
    quota: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Remove the least recently used traces until the rest fits, as in 20GiB."),
    ] = None,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """Remove what killed processes left, and old traces.

    With --quota, the least recently used traces that are not pinned.

    Example: `fxtrace store gc --quota 20GiB`
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    from fxtrace.cli.output import echo_json
    from fxtrace.cli.steps import next_step
    from fxtrace.ir.text import count_text
    from fxtrace.service.engine import Engine

    try:
        quota_bytes = None if quota is None else TypeAdapter(ByteSize).validate_python(quota)
    except ValidationError:
        raise typer.BadParameter(
            f"expected a size such as 500MB or 20GiB, got '{quota}'", param_hint="--quota"
        ) from None
    with Engine.open(store) as engine:
        collected = engine.store.collect(quota_bytes)
    if as_json:
        echo_json(collected)
    else:
        typer.echo(f"removed {count_text(len(collected.evicted), 'trace')}, {collected.nbytes:,} bytes in all")
        next_step("store", "ls", store=store)


@store_app.command()
def pin(traces: Traces, store: StorePlace = None, as_json: Json = False) -> None:
    """Keep traces when room is made.

    Example: `fxtrace store pin latest`
    """
    _set_pinned(traces, store, as_json, pinned=True)


@store_app.command()
def unpin(traces: Traces, store: StorePlace = None, as_json: Json = False) -> None:
    """Let traces go again when room is made.

    Example: `fxtrace store unpin latest`
    """
    _set_pinned(traces, store, as_json, pinned=False)


def _set_pinned(traces: list[str], store: str | None, as_json: bool, *, pinned: bool) -> None:
    from fxtrace.cli.output import echo_json
    from fxtrace.cli.steps import next_step
    from fxtrace.service.engine import Engine

    word = "pinned" if pinned else "unpinned"
    with Engine.open(store) as engine:
        ids = [resolve_trace(engine, trace) for trace in traces]
        for trace_id in ids:
            engine.store.pin(trace_id, pinned)
            if not as_json:
                typer.echo(f"{word} {trace_id}")
    if as_json:
        echo_json({word: ids})
    else:
        next_step("store", "ls", store=store)
