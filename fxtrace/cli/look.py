"""`fxtrace snapshots`, `explain`, `graph` and `tensor`: what is in a trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxtrace.cli.common import Json, Server, StorePlace, TraceArgument, TraceOption, connect, resolve_trace
from fxtrace.errors import OptionInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fxtrace.cli.common import Api
    from fxtrace.graph import Snapshot, TensorSpec

_FIRST_NUMBERS = 8


def snapshots(
    trace: TraceArgument = "latest", server: Server = None, store: StorePlace = None, as_json: Json = False
) -> None:
    """List the numbered snapshots: title, role, shape, node, and the identities that held."""
    from fxtrace.cli.output import echo_json
    from fxtrace.cli.tables import show_on_stdout, snapshot_table

    with connect(server, store) as api:
        listed = api.list_snapshots(resolve_trace(api, trace))
    echo_json(listed) if as_json else show_on_stdout(snapshot_table(listed))


def explain(
    what: Annotated[
        str,
        typer.Argument(
            metavar="N|ROLE|NODE|BLOCK|SIZE",
            help="A snapshot's number, a role, a node, the beginning of roles' names (decoder.0), or a named size.",
        ),
    ],
    trace: TraceOption = "latest",
    server: Server = None,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """Explain a snapshot, a tensor, a block or a named size: what it is, and why it has its shape."""
    from fxtrace.cli.output import echo_json
    from fxtrace.cli.tables import show_on_stdout
    from fxtrace.cli.why import explanation_facts

    with connect(server, store) as api:
        trace_id = resolve_trace(api, trace)
        explanation = api.explain(trace_id, what)
        if what.removeprefix("#").isdecimal():
            told = _explain_snapshot(api, trace_id, int(what.removeprefix("#")), as_json)
        else:
            told = _explain_node(api, trace_id, what, as_json)
    if as_json:
        echo_json({**told, "explanation": explanation})
    else:
        show_on_stdout(explanation_facts(explanation, whole=not told))


def graph(
    trace: TraceArgument = "latest",
    module: Annotated[str, typer.Option(help="Only nodes of this module, and of those inside it.")] = "",
    role: Annotated[str, typer.Option(help="Only nodes of this role, or of roles that begin with it.")] = "",
    server: Server = None,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """List the nodes of the labelled graph; with --json, the whole of it."""
    from fxtrace.cli.output import echo_json
    from fxtrace.cli.tables import graph_table, show_on_stdout

    with connect(server, store) as api:
        labelled = api.get_graph(resolve_trace(api, trace), module=module, role=role)
    echo_json(labelled) if as_json else show_on_stdout(graph_table(labelled))


def tensor(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A tensor's name, or a role's.")],
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
    """Print a tensor's numbers, or write them to a file."""
    from fxtrace.cli.output import echo_json
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
        typer.echo(str(array))


def _explain_snapshot(api: Api, trace_id: str, number: int, as_json: bool) -> dict[str, Any]:
    from fxtrace.cli.tables import facts, show_on_stdout, snapshot_facts

    (snapshot,) = api.list_snapshots(trace_id, [number])
    firsts = _first_numbers(api, trace_id, snapshot)
    if not as_json:
        show_on_stdout(snapshot_facts(snapshot))
        if firsts:
            show_on_stdout(facts("First numbers", *((name, str(array)) for name, array in firsts.items())))
    return {"snapshot": snapshot, "first_numbers": {name: _numbers(array) for name, array in firsts.items()}}


def _explain_node(api: Api, trace_id: str, what: str, as_json: bool) -> dict[str, Any]:
    """What is told of a node; nothing where a block or a size is meant."""
    from fxtrace.cli.tables import node_facts, show_on_stdout

    labelled = api.get_graph(trace_id)
    node = labelled.by_role.get(what) or labelled.by_name.get(what.partition(":")[0])
    if node is None:
        return {}
    listed = api.list_snapshots(trace_id)
    if not as_json:
        show_on_stdout(node_facts(labelled, node, listed))
    shown_in = [each.number for each in listed if any(tensor.node == node.name for tensor in each.tensors)]
    return {"node": node, "users": labelled.users[node.name], "snapshots": shown_in}


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
