"""`fxtrace query`: which nodes, by a condition, by what flows into or out of one, and along paths."""

from __future__ import annotations

from typing import Annotated

import typer

from fxtrace.cli.common import Json, Server, StorePlace, TraceOption, complete_roles, connect, resolve_trace
from fxtrace.cli.look import worth_explaining


def query(
    expression: Annotated[
        str, typer.Argument(metavar="EXPRESSION", help="A condition in CEL.", show_default=False)
    ] = "",
    path: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="The shortest paths from one node to another.")
    ] = None,
    pattern: Annotated[
        str, typer.Option(metavar="PATTERN", help="The paths of these kinds: 'matmul pointwise* softmax'.")
    ] = "",
    ancestors: Annotated[
        str, typer.Option(metavar="NODE", help="Only nodes that flow into this one.", autocompletion=complete_roles)
    ] = "",
    descendants: Annotated[str, typer.Option(metavar="NODE", help="Only nodes that this one flows into.")] = "",
    depth: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of these, only nodes at most N edges away.")
    ] = None,
    trace: TraceOption = "latest",
    server: Server = None,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """Find nodes, or paths between them.

    A NODE is given by its name or by a role's.

    An EXPRESSION such as  kind == "matmul" && shape[-1] == src_len  may name
    name op kind target module module_type file line code inputs users
    parameters parameter_count role stack layer block part shape rank numel
    nbytes dtype device contiguous, and the graph's sizes (batch, d_model).

    Example: `fxtrace query 'kind == "softmax"'`
    """
    from fxtrace.cli.output import echo_json
    from fxtrace.cli.steps import next_step
    from fxtrace.cli.tables import node_table, path_table, show_on_stdout
    from fxtrace.ir.text import count_text
    from fxtrace.ir.trace import NodeQuery

    asked = NodeQuery(expression, ancestors, descendants, depth, path, pattern)
    with connect(server, store) as api:
        result = api.query_nodes(resolve_trace(api, trace), asked)
    if as_json:
        echo_json(result)
        return
    paths = bool(path or pattern)
    show_on_stdout(path_table(result) if paths else node_table(count_text(len(result.nodes), "node"), result.nodes))
    step = ("explain", worth_explaining(result.nodes)) if result.nodes else ("graph",)
    next_step(*step, trace=trace, server=server, store=store)
