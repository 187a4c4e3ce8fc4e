"""`fxtrace trace`, `traces` and `delete`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from fxtrace.cli.common import (
    Json,
    ModelArgument,
    Server,
    StorePlace,
    TraceArgument,
    connect,
    pairs,
    resolve_trace,
    settings_of,
)
from fxtrace.errors import InputError
from fxtrace.ir.trace import SYMBOLIC_TIMEOUT, Rung, TensorData, TraceRequest


def trace(
    model: ModelArgument,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Override a configuration field; JSON, or else text. Repeatable."
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=FILE", help="Use an input of a .npy or .safetensors file. Repeatable."),
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option("--shape", metavar="NAME=1,6", help="Draw an input of this shape. Repeatable."),
    ] = None,
    shapes_only: Annotated[
        bool, typer.Option("--shapes-only", help="Propagate shapes only: no compute, no numbers kept.")
    ] = False,
    rung: Annotated[Rung | None, typer.Option(help="How to capture; fxtrace chooses by itself.")] = None,
    training: Annotated[bool, typer.Option("--training", help="Trace in training mode.")] = False,
    unfused: Annotated[
        bool, typer.Option("--unfused", help="Compute fused attention step by step, to see its scores and weights.")
    ] = False,
    seed: Annotated[int, typer.Option(min=-(2**63), max=2**63 - 1, help="Of the random state.", show_default=True)] = 0,
    state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take the weights from this safetensors file.")
    ] = None,
    weightless: Annotated[
        bool, typer.Option("--weightless", help="Build the model without its weights, of any size; shapes and roles.")
    ] = False,
    symbolic: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=batch,sequence",
            help="Keep an input's sizes as symbols of these names; an empty name keeps a number. Repeatable.",
        ),
    ] = None,
    symbolic_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="How much computing following symbols may take.", show_default=True)
    ] = SYMBOLIC_TIMEOUT,
    formulas: Annotated[
        bool, typer.Option("--formulas", help="Find which configuration fields each size is made of, too.")
    ] = False,
    server: Server = None,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """Trace a model, or give back the trace made of it before.

    The same request finds the same trace, without loading the model.
    """
    from fxtrace.cli.look import worth_explaining
    from fxtrace.cli.output import echo_json, progress_bar
    from fxtrace.cli.steps import next_step
    from fxtrace.cli.tables import show_on_stdout, trace_facts
    from fxtrace.export.document import fields_of

    request = TraceRequest(
        model,
        configuration=settings_of(settings),
        input_shapes={name: _shape(name, text) for name, text in pairs("--shape", shapes).items()},
        inputs={name: _read_input(name, Path(file)) for name, file in pairs("--input", inputs).items()},
        rung=rung or "",
        values=not shapes_only,
        training=training,
        unfused=unfused,
        seed=seed,
        state="" if state is None else str(state),
        weightless=weightless,
        symbolic={name: tuple(map(str.strip, text.split(","))) for name, text in pairs("--symbolic", symbolic).items()},
        symbolic_timeout=symbolic_timeout,
    )
    with connect(server, store) as api:
        with progress_bar(hidden=as_json) as report:
            made = api.create_trace(request, progress=report)
            if formulas:
                api.find_formulas(made.id, progress=report)
        graph = None if as_json else api.get_graph(made.id)
    if graph is None:
        echo_json({**fields_of(made), "reused": made.reused})
        return
    show_on_stdout(trace_facts(made, graph))
    # Others may use the server in the meantime, and then it has a later trace.
    next_step(
        "explain", worth_explaining(graph.nodes), trace=made.id[:8] if server else "latest", server=server, store=store
    )


def traces(server: Server = None, store: StorePlace = None, as_json: Json = False) -> None:
    """List the traces, newest first."""
    from fxtrace.cli.output import echo_json
    from fxtrace.cli.steps import next_step, short_ids
    from fxtrace.cli.tables import show_on_stdout, trace_table

    with connect(server, store) as api:
        listed = list(api.list_traces())
    if as_json:
        echo_json(listed)
    elif listed:
        show_on_stdout(trace_table(listed))
        next_step("graph", short_ids(each.id for each in listed)[listed[0].id], server=server, store=store)
    else:
        typer.echo("there are no traces yet")
        next_step("trace", "reference", server=server, store=store)


def delete(trace: TraceArgument, server: Server = None, store: StorePlace = None, as_json: Json = False) -> None:
    """Remove a trace and its tensors."""
    from fxtrace.cli.output import echo_json
    from fxtrace.cli.steps import next_step

    with connect(server, store) as api:
        trace_id = resolve_trace(api, trace)
        api.delete_trace(trace_id)
    if as_json:
        echo_json({"deleted": trace_id})
    else:
        typer.echo(f"deleted {trace_id}")
        next_step("traces", server=server, store=store)


def _shape(name: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", text):
        raise typer.BadParameter(f"expected sizes as in {name}=1,6, got '{name}={text}'", param_hint="--shape")
    return tuple(map(int, text.split(",")))


def _read_input(name: str, file: Path) -> TensorData:
    """An input's numbers from a file: of a safetensors file the tensor of the input's name, or the only one."""
    import numpy as np

    from fxtrace.dtypes import dtype_name
    from fxtrace.tensorfile import TensorFile

    try:
        if file.suffix == ".npy":
            array = np.load(file, allow_pickle=False)
        elif file.suffix == ".safetensors":
            tensors = TensorFile(file)
            array = tensors.read(tensors.names[0] if len(tensors.names) == 1 else name)
        else:
            raise ValueError("expected a .npy or a .safetensors file")
    except KeyError:
        raise _unreadable(name, file, f"expected a tensor '{name}', it has {', '.join(tensors.names)}") from None
    except OSError as error:
        raise _unreadable(name, file, error.strerror or str(error)) from None
    except (ValueError, EOFError) as error:
        raise _unreadable(name, file, str(error)) from None
    array = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    return TensorData(dtype_name(array.dtype), array.shape, array.tobytes())


def _unreadable(name: str, file: Path, problem: str) -> InputError:
    return InputError(f"input '{name}' cannot be read from {file}: {problem}", field=f"inputs.{name}", file=file)
