"""The command line: `fxtrace --help`.

Each command works on the traces in a folder of this machine, or with `--server HOST:PORT` on those of a server; tables
for people, and with `--json` JSON for machines (see `fxtrace.cli.output`). Exit codes: 0 done, 1 the request failed
(the message says why, on stderr), 2 the command was not understood, 130 interrupted.

Nothing here imports PyTorch, and a command imports what it needs when it runs, so that `--help` is quick and
`--server` works without PyTorch.
"""

from __future__ import annotations

from typing import Annotated

import typer

import fxtrace
from fxtrace.cli.common import Commands
from fxtrace.cli.connection import AskingCommand
from fxtrace.cli.demo import demo
from fxtrace.cli.diff import diff, formulas
from fxtrace.cli.doctor import doctor
from fxtrace.cli.keys import keys
from fxtrace.cli.lock import check, lock
from fxtrace.cli.look import explain, graph, snapshots, tensor
from fxtrace.cli.models import models
from fxtrace.cli.query import query
from fxtrace.cli.render import render
from fxtrace.cli.serve import ServeCommand, serve
from fxtrace.cli.store import store_app
from fxtrace.cli.sweep import sweep
from fxtrace.cli.trace import delete, trace, traces

__all__ = ["app", "main"]

app = typer.Typer(
    name="fxtrace",
    help="Traces a PyTorch model into a graph whose every tensor has a shape, a role and a reason.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (models, trace, traces, delete, snapshots, explain, graph, query, tensor, formulas, render, diff, sweep):
    app.command(cls=AskingCommand)(command)
app.command(cls=AskingCommand)(doctor)
for here in (lock, check, demo):
    app.command()(here)
app.command(cls=ServeCommand)(serve)
app.add_typer(keys)
app.add_typer(store_app)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fxtrace {fxtrace.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line and exits."""
    app()
