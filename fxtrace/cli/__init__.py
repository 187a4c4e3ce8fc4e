"""The command line: `fxtrace --help`.

Each command works on the traces in a folder of this machine, or with `--server HOST:PORT` on those of a server; tables
for people, and with `--json` JSON for machines (see `fxtrace.cli.output`). Exit codes: 0 done, 1 the request failed
(the message says why, on stderr), 2 the command was not understood, 130 interrupted.

`COMMANDS` lists the commands. The module of one is imported when it runs, so that no command waits for what another
needs: `fxtrace.cli.common` says what they share.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer
from typer.core import TyperCommand

import fxtrace
from fxtrace.cli.common import Commands

if TYPE_CHECKING:
    from typer.core import TyperGroup

__all__ = ["COMMANDS", "app", "main"]


class Entry(NamedTuple):
    """Where a command is, the first line of its help, and the class of its command."""

    place: str
    """`module:function`, or `module:app` for a group of commands; the module is in this package."""
    help: str
    cls: str = "connection:AskingCommand"
    """`connection:ReadingCommand` for one that runs no model, `typer.core:TyperCommand` for one that asks no server."""


_READS = "connection:ReadingCommand"
_HERE = "typer.core:TyperCommand"

COMMANDS = {
    "models": Entry("models:models", "List the models on offer, or show one's configuration."),
    "trace": Entry("trace:trace", "Trace a model, or give back the trace made of it before."),
    "traces": Entry("trace:traces", "List the traces, newest first.", _READS),
    "delete": Entry("trace:delete", "Remove a trace and its tensors.", _READS),
    "snapshots": Entry(
        "look:snapshots",
        "List the numbered snapshots that a trace has.",
        _READS,
    ),
    "explain": Entry(
        "look:explain",
        "Explain a snapshot, a tensor, a block or a named size.",
        _READS,
    ),
    "graph": Entry("look:graph", "List the nodes of the labelled graph.", _READS),
    "query": Entry("query:query", "Find nodes, or paths between them.", _READS),
    "tensor": Entry("look:tensor", "Print a tensor's numbers, or write them to a file.", _READS),
    "formulas": Entry(
        "diff:formulas",
        "Say which configuration fields every size is made of.",
    ),
    "render": Entry("render:render", "Draw the graph.", _READS),
    "export": Entry(
        "export:export",
        "Write a trace for another tool, by the file's ending.",
        _READS,
    ),
    "diff": Entry(
        "diff:diff",
        "Compare two traces or models: what changed, and why.",
    ),
    "sweep": Entry(
        "sweep:sweep",
        "Count parameters, bytes and FLOPs over configurations.",
    ),
    "doctor": Entry(
        "doctor:doctor",
        "Check this installation and its store, or a server.",
    ),
    "lock": Entry(
        "lock:lock",
        "Write what every tensor of a model is made of to a file.",
        _HERE,
    ),
    "check": Entry("lock:check", "Say what moved since lockfiles were written.", _HERE),
    "demo": Entry("demo:demo", "Trace the reference model through a server, and check it.", _HERE),
    "serve": Entry("serve:serve", "Serve the traces of a folder over gRPC.", "serve:ServeCommand"),
    "keys": Entry("keys:keys", "Make, list and revoke the keys of a server's callers."),
    "store": Entry(
        "store:store_app",
        "Look after the traces that are kept.",
    ),
}


class LazyCommands(Commands):
    """The group of all commands; one is imported when it is asked for, and none for the list of them."""

    _listing = False

    def list_commands(self, _: Any) -> list[str]:
        """The commands' names."""
        return list(COMMANDS)

    def get_command(self, _: Any, cmd_name: str) -> Any:
        """The command of that name; while commands are listed, what stands for it there."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        if self._listing:
            return TyperCommand(cmd_name, help=entry.help, rich_markup_mode=None)
        if cmd_name not in self.commands:
            self.commands[cmd_name] = load(cmd_name, entry)
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments name; the nearest is suggested where there is none."""
        if args and args[0] not in COMMANDS:
            self.commands = {name: TyperCommand(name) for name in COMMANDS}
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help."""
        with self._only_listed():
            super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """The commands and options that begin so."""
        with self._only_listed():
            return super().shell_complete(ctx, incomplete)

    @contextmanager
    def _only_listed(self) -> Iterator[None]:
        self._listing = True
        try:
            yield
        finally:
            self._listing = False


def load(name: str, entry: Entry) -> TyperCommand | TyperGroup:
    """The command, from its module."""
    made: Any = _imported(entry.place)
    loaded: TyperCommand | TyperGroup
    if isinstance(made, typer.Typer):
        loaded = typer.main.get_group(made)
    else:
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command(name, cls=_imported(entry.cls))(made)
        loaded = cast(TyperCommand, typer.main.get_command(alone))
    return loaded


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    package = "" if module.startswith("typer") else "fxtrace.cli."
    return getattr(import_module(package + module), name)


app = typer.Typer(
    name="fxtrace",
    help="Traces a PyTorch model into a graph whose every tensor has a shape, a role and a reason.",
    cls=LazyCommands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes longer to import than everything else that help needs
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
