"""`fxtrace demo`: the whole way once, through a server of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxtrace.cli.common import Json, write_file
from fxtrace.errors import OptionInvalid, ServerUnavailable
from fxtrace.extras import require
from fxtrace.graph import Graph
from fxtrace.ir.trace import ImageFormat, RenderOptions, TraceRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fxtrace.client import Client

_MODEL = "reference"
_LAYER = ("encoder.0.self_attention.weights", "encoder.0.feed_forward.hidden")  # two roles in one layer
_START_SECONDS = 60  # a busy machine takes its time
_STOP_SECONDS = 10


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the pictures and the graph go.")] = Path("out"),
    as_json: Json = False,
) -> None:
    """Trace the reference model through a server, and check it.

    Its 43 snapshots are compared with the known shapes and values, and it is drawn.
    """
    from fxtrace.cli.known import compare, load_known
    from fxtrace.cli.output import echo_json, progress_bar
    from fxtrace.cli.steps import program
    from fxtrace.cli.tables import show_on_stdout, snapshot_table, trace_facts
    from fxtrace.client import Client
    from fxtrace.render import find_graphviz

    require("server", "the demo")
    find_graphviz()
    known = load_known()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionInvalid(f"cannot write to {out}: {error.strerror}", field="out", out=out) from error
    with (
        tempfile.TemporaryDirectory(prefix="fxtrace-") as folder,
        _server(Path(folder)) as address,
        Client(address, timeout=None, connect_timeout=_START_SECONDS, arrays="numpy") as client,
    ):
        if not as_json:
            typer.echo(f"server at {address}")
        fields = {field.name for field in client.get_model(_MODEL).fields}
        settings = {name: value for name, value in known.settings.items() if name in fields}
        with progress_bar(hidden=as_json) as report:
            trace = client.create_trace(TraceRequest(_MODEL, settings), progress=report)
        snapshots = client.list_snapshots(trace.id)
        found = {snapshot.number: snapshot for snapshot in snapshots}
        results = [
            compare(each, found[each.number], lambda tensor, part: client.read_tensor(trace.id, tensor, part))
            for each in known.snapshots
        ]
        graph = client.get_graph(trace.id)
        files = _write_files(client, trace.id, out)
    passed = sum(result.passed for result in results)
    if as_json:
        rows = [{"snapshot": s, "passed": r.passed, "comparison": r} for s, r in zip(snapshots, results, strict=True)]
        echo_json({"trace": trace, "passed": passed, "snapshots": rows, "files": [str(file) for file in files]})
    else:
        show_on_stdout(
            trace_facts(trace, graph), snapshot_table(snapshots, checked=[_verdict(result) for result in results])
        )
        typer.echo(f"{passed}/{len(results)} snapshots agree with the known shapes and values\n")
        for file in files:
            typer.echo(f"wrote {file}")
        typer.echo(f"\nTry next:\n  {program()} trace {_MODEL} --set d_model=64\n  {program()} explain 34")
    if passed < len(results):
        raise typer.Exit(1)


def _verdict(result: Any) -> Any:
    from rich.text import Text

    if result.passed:
        return Text(f"✓ {', '.join(result.agreed)}", "green")
    return Text("\n".join(f"✗ {problem}" for problem in result.problems), "bold red")


def _write_files(client: Client[NDArray[Any]], trace_id: str, folder: Path) -> list[Path]:
    """Pictures of the whole and of one layer, and the labelled graph as JSON."""
    from fxtrace.export.document import plain

    graph = client.get_graph(trace_id)
    pictures = {_MODEL: RenderOptions(), f"{_MODEL}-layer": RenderOptions(module=_module_of(graph, _LAYER))}
    formats: tuple[ImageFormat, ...] = ("svg", "png")
    files = []
    for name, options in pictures.items():
        for image_format in formats:
            files.append(folder / f"{name}.{image_format}")
            write_file(files[-1], client.render_graph(trace_id, image_format, options))
    files.append(folder / "graph.json")
    write_file(files[-1], json.dumps(plain(graph), ensure_ascii=False, allow_nan=False, indent=1).encode())
    return files


def _module_of(graph: Graph, roles: tuple[str, ...]) -> str:
    """The innermost module that holds the nodes of all these roles."""
    paths = [graph.by_role[role].module.split(".") for role in roles]
    common = []
    for steps in zip(*paths, strict=False):
        if len(set(steps)) > 1:
            break
        common.append(steps[0])
    return ".".join(common)


@contextmanager
def _server(store: Path) -> Iterator[str]:
    """The address of a `fxtrace serve` in a process of its own, which is stopped when the block is left."""
    command = [sys.executable, "-m", "fxtrace", "serve", "--port", "0", "--store", str(store), "--json"]
    # A polite request to stop must not leave the server behind.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:  # it said why on stderr
                raise ServerUnavailable(f"the server ended with code {process.wait()} before it was ready")
            yield json.loads(line)["address"]
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            signal.signal(signal.SIGTERM, before)
