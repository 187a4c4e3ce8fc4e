"""`fxtrace snapshots`, `explain`, `graph` and `tensor`: what is in a trace."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxtrace.cli.common import (
    Json,
    Server,
    StorePlace,
    TraceArgument,
    TraceOption,
    complete_roles,
    connect,
    resolve_trace,
)
from fxtrace.errors import OptionInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fxtrace.cli.common import Api
    from fxtrace.cli.layout import Block
    from fxtrace.graph import Node, Snapshot, TensorSpec

_FIRST_NUMBERS = 8


def snapshots(
    trace: TraceArgument = "latest",
    everything: Annotated[
        bool, typer.Option("--all", metavar="", help="Also those that this graph does not have, with the reason.")
    ] = False,
    server: Server = None,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """List the numbered snapshots that a trace has.

    Title, role, shape, node, and the identities that held.

    There are 43, each defined by roles of an encoder-decoder transformer. Example: `fxtrace snapshots`
    """
    from fxtrace.cli.output import echo_json
    from fxtrace.cli.steps import next_step
    from fxtrace.cli.tables import show_on_stdout, snapshot_table, snapshots_missing

    with connect(server, store) as api:
        trace_id = resolve_trace(api, trace)
        listed = api.list_snapshots(trace_id)
        here = [snapshot for snapshot in listed if snapshot.found]
        labelled = None if as_json or len(here) == len(listed) else api.get_graph(trace_id)
    if as_json:
        echo_json(listed)
        return
    shown = listed if everything else here
    show_on_stdout(
        *([snapshot_table(shown)] if shown else []),
        *([snapshots_missing(listed, labelled)] if labelled is not None else []),
    )
    step = ("explain", str(_worth_seeing(here).number)) if here else ("graph",)
    next_step(*step, trace=trace, server=server, store=store)


def explain(
    what: Annotated[
        str,
        typer.Argument(
            metavar="N|ROLE|NODE|BLOCK|SIZE",
            help="A snapshot's number, a role, a node, the beginning of roles' names (decoder.0), or a named size.",
            autocompletion=complete_roles,
        ),
    ],
    trace: TraceOption = "latest",
    server: Server = None,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """Explain a snapshot, a tensor, a block or a named size.

    What it is, and why it has its shape.

    Example: `fxtrace explain decoder.0.cross_attention.weights`
    """
    from fxtrace.cli.output import echo_json
    from fxtrace.cli.steps import next_step
    from fxtrace.cli.tables import show_on_stdout
    from fxtrace.cli.why import explanation_facts

    with connect(server, store) as api:
        trace_id = resolve_trace(api, trace)
        explanation = api.explain(trace_id, what)
        if what.removeprefix("#").isdecimal():
            shown, blocks, step = _explain_snapshot(api, trace_id, int(what.removeprefix("#")))
        else:
            shown, blocks, step = _explain_node(api, trace_id, what)
    if as_json:
        echo_json({**shown, "explanation": explanation})
        return
    show_on_stdout(*blocks, *explanation_facts(explanation, whole=not shown))
    next_step(*step, trace=trace, server=server, store=store)


def graph(
    trace: TraceArgument = "latest",
    module: Annotated[str, typer.Option(help="Only nodes of this module, and of those inside it.")] = "",
    role: Annotated[
        str,
        typer.Option(help="Only nodes of this role, or of roles that begin with it.", autocompletion=complete_roles),
    ] = "",
    refused: Annotated[
        bool,
        typer.Option("--refused", metavar="", help="List the roles that were looked for and not given, and why."),
    ] = False,
    server: Server = None,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """List the nodes of the labelled graph.

    With --json, the whole graph.

    Example: `fxtrace graph --role decoder.0.cross_attention`
    """
    from fxtrace.cli.output import echo_json
    from fxtrace.cli.steps import next_step
    from fxtrace.cli.tables import graph_blocks, refusal_table, show_on_stdout

    with connect(server, store) as api:
        labelled = api.get_graph(resolve_trace(api, trace), module=module, role=role)
    if as_json:
        echo_json(labelled.refusals if refused else labelled)
    elif refused:
        show_on_stdout(refusal_table(labelled.refusals))
        next_step("graph", trace=trace, server=server, store=store)
    else:
        show_on_stdout(*graph_blocks(labelled, whole=not (module or role)))
        next_step("explain", worth_explaining(labelled.nodes), trace=trace, server=server, store=store)


def tensor(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A tensor's name, or a role's.", autocompletion=complete_roles)
    ],
    part: Annotated[
        str, typer.Option("--slice", metavar="SLICE", help="NumPy's slicing without the brackets: 0,0,:5")
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write a .npy or .safetensors file.")
    ] = None,
    trace: TraceOption = "latest",
    server: Server = None,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """Print a tensor's numbers, or write them to a file.

    Example: `fxtrace tensor decoder.0.cross_attention.weights --slice 0,0`
    """
    from fxtrace.cli.output import echo_json
    from fxtrace.cli.steps import next_step
    from fxtrace.cli.tables import facts, show_on_stdout, spec_text
    from fxtrace.graph import show_shape

    if out is not None and out.suffix not in (".npy", ".safetensors"):
        raise OptionInvalid(f"expected a .npy or .safetensors file, got {out}", field="out", out=out)
    with connect(server, store) as api:
        trace_id = resolve_trace(api, trace)
        full_name, spec, array = _read(api, trace_id, name, part)
    if out is not None:
        _write(out, full_name, spec, array)
    if as_json:
        told = {"trace": trace_id, "tensor": full_name, "spec": spec, "slice": part, "shape": array.shape}
        echo_json({**told, "file": str(out)} if out else {**told, "values": _numbers(array)})
        return
    rows = [("part", f"{part}  {show_shape(array.shape)}" if part else ""), ("file", str(out or ""))]
    show_on_stdout(facts(spec_text(full_name, spec), *rows))
    if out is None:
        typer.echo(_array_text(array))
    first = ",".join(["0"] * (len(spec.shape) - 2))  # a matrix of it
    step = ("tensor", name, "--slice", first) if first and not (part or out) else ("explain", name)
    next_step(*step, trace=trace, server=server, store=store)


def worth_explaining(nodes: Sequence[Node]) -> str:
    """What of these nodes a reader likely wants explained: attention weights, else a role, else an op's result."""
    roles = [role for node in nodes for role in node.roles]
    weights = [role for role in roles if role.part == "weights"]
    first = [each for each in weights if (each.stack, each.block) == (weights[-1].stack, weights[-1].block)]
    ops = [node.name for node in nodes if node.op not in ("placeholder", "output", "get_attr") and node.tensors]
    return (*map(str, (*first[:1], *roles[-1:])), *ops[:1], *(node.name for node in nodes), "")[0]


def _worth_seeing(snapshots: Sequence[Snapshot]) -> Snapshot:
    """The snapshot that `worth_explaining` would choose."""
    weights = [each for each in snapshots if any(role.endswith(".weights") for role in each.roles)]
    return (*weights[-1:], *snapshots)[0]


_Answer = tuple[dict[str, Any], list["Block"], tuple[str, ...]]
"""What is known as JSON, as blocks, and the words of a next step."""


def _explain_snapshot(api: Api, trace_id: str, number: int) -> _Answer:
    from fxtrace.cli.tables import facts, snapshot_facts

    (snapshot,) = api.list_snapshots(trace_id, [number])
    firsts = _first_numbers(api, trace_id, snapshot)
    blocks = snapshot_facts(snapshot)
    if firsts:
        blocks.append(facts("First numbers", *((name, _array_text(array)) for name, array in firsts.items())))
    shown = {"snapshot": snapshot, "first_numbers": {name: _numbers(array) for name, array in firsts.items()}}
    if not snapshot.found:
        return shown, blocks, ("snapshots",)
    role = snapshot.tensors[0].role
    return shown, blocks, ("tensor", role) if firsts else ("explain", role)


def _explain_node(api: Api, trace_id: str, what: str) -> _Answer:
    """What is known of a node; nothing where a block or a size is meant."""
    from fxtrace.cli.tables import node_facts

    labelled = api.get_graph(trace_id)
    node = labelled.by_role.get(what) or labelled.by_name.get(what.partition(":")[0])
    if node is None:
        of_block = any(str(role).startswith(f"{what}.") for each in labelled.nodes for role in each.roles)
        return {}, [], ("graph", "--role", what) if of_block else ("formulas",)
    listed = api.list_snapshots(trace_id)
    shown_in = [each.number for each in listed if any(tensor.node == node.name for tensor in each.tensors)]
    shown = {"node": node, "users": labelled.users[node.name], "snapshots": shown_in}
    values = bool(node.tensors) and api.get_trace(trace_id).values
    around = (*labelled.users[node.name], *node.inputs)
    step = ("tensor", what) if values else ("explain", around[0]) if around else ("graph",)
    return shown, node_facts(labelled, node, listed), step


def _first_numbers(api: Api, trace_id: str, snapshot: Snapshot) -> dict[str, NDArray[Any]]:
    """The first numbers of each of a snapshot's tensors, by variable; none where the trace holds shapes only."""
    if not (snapshot.found and api.get_trace(trace_id).values):
        return {}
    reads = [
        (each.tensor, ",".join([*["0"] * (len(each.shape) - 1), f":{_FIRST_NUMBERS}"] if each.shape else []))
        for each in snapshot.tensors
    ]
    arrays = api.read_tensors(trace_id, reads)
    return {each.variable: array for each, array in zip(snapshot.tensors, arrays, strict=True)}


def _read(api: Api, trace_id: str, name: str, part: str) -> tuple[str, TensorSpec, NDArray[Any]]:
    """A tensor's own name, the spec of the whole, and the part's numbers, in one call."""
    import numpy as np

    from fxtrace.dtypes import numpy_dtype

    with api.open_tensor(trace_id, name, part) as reader:
        data = b"".join(reader.chunks())
        array = np.frombuffer(data, np.uint8).view(numpy_dtype(reader.spec.dtype)).reshape(reader.shape)
        return reader.tensor, reader.spec, array


def _write(file: Path, name: str, spec: TensorSpec, array: NDArray[Any]) -> None:
    import io

    import numpy as np
    import safetensors.numpy

    from fxtrace.cli.common import write_file
    from fxtrace.tensorfile import SAFETENSORS_DTYPES

    npy = file.suffix == ".npy"
    if not (array.dtype.isbuiltin == 1 if npy else spec.dtype in SAFETENSORS_DTYPES.values()):
        other = ".safetensors" if npy else ".npy"
        raise OptionInvalid(
            f"a {file.suffix} file cannot hold {spec.dtype}; write a {other} file", field="out", out=file
        )
    if npy:
        data = io.BytesIO()
        np.save(data, array)
        write_file(file, data.getvalue())
    else:
        write_file(file, safetensors.numpy.save({name: array}))


def _numbers(array: NDArray[Any]) -> Any:
    """An array as nested lists of what JSON has; a complex number is a pair."""
    import numpy as np

    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag], axis=-1)
    elif array.dtype.kind == "V" and array.dtype.names is None:  # bfloat16 and the float8s, or raw bytes
        array = array.astype(np.float32) if array.dtype.isbuiltin == 2 else array.view(np.uint8)
    return array.tolist()


def _array_text(array: NDArray[Any]) -> str:
    """An array's numbers as NumPy prints them, folded to the terminal's width; in a pipe, a row a line."""
    import numpy as np

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    return np.array2string(array, max_line_width=width) if array.ndim else str(array)
