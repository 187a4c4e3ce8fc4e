"""What commands share: where the traces are, which trace is meant, the options for both, and how errors are printed.

A command is a function with Typer's annotations. What it does with a trace looks everywhere the same:

    def graph(trace: TraceArgument = "latest", server: Server = None, store: StorePlace = None, as_json: Json = False):
        with connect(server, store) as api:
            labelled = api.get_graph(resolve_trace(api, trace))

* A parameter `trace` that is a `TraceArgument` can be given by its place or as `-t/--trace`; `AskingCommand` adds the
  option. A command whose place is taken (`explain WHAT`) has a `TraceOption` instead. Both begin at `latest`.
* `connect` opens the store only as far as the command needs it: reading a trace imports no SQLAlchemy.
* What a model prints goes to stderr within `models_print_on_stderr`, and within `fxtrace.cli.output.progress_bar`.
* A shell completes models (`ModelArgument`), traces, and roles (`autocompletion=complete_roles`).
* The module of a command is imported when the command runs: add its line to `COMMANDS` in `fxtrace.cli`.

This module is imported by every command: it imports only what is quick.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fxtrace.errors import FxtraceError, NameInvalid, OptionInvalid
from fxtrace.extras import needed_for

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from fxtrace.api import TraceApi
    from fxtrace.ir.trace import Json as JsonValue
    from fxtrace.service.engine import Engine
    from fxtrace.store import MemoryStore, Store

    Api = TraceApi[NDArray[Any]]

_JSON = "fxtrace.json"
_TRACE_HELP = "A trace's id, the start of one, or 'latest'."


def complete_models(context: typer.Context, incomplete: str) -> list[str]:
    """For a shell: the models that begin so."""
    from fxtrace.cli.complete import complete, models

    return complete(models, context, incomplete)


def complete_traces(context: typer.Context, incomplete: str) -> list[str]:
    """For a shell: the ids of traces that begin so."""
    from fxtrace.cli.complete import complete, traces

    return complete(traces, context, incomplete)


def complete_sides(context: typer.Context, incomplete: str) -> list[str]:
    """For a shell: the models and the ids of traces that begin so."""
    return [*complete_models(context, incomplete), *complete_traces(context, incomplete)]


def complete_roles(context: typer.Context, incomplete: str) -> list[str]:
    """For a shell: the roles and nodes, of the trace that the command names, that begin so."""
    from fxtrace.cli.complete import complete, roles

    return complete(roles, context, incomplete)


def _note_json(context: typer.Context, wanted: bool) -> bool:
    context.meta[_JSON] = wanted  # for errors, which are printed outside the command
    return wanted


Server = Annotated[
    str | None, typer.Option("--server", metavar="HOST:PORT", help="Ask this server instead of this machine's store.")
]
StorePlace = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="PLACE",
        help="Where the traces are: a folder, or INDEX#FILES as in postgresql://user@host/database#s3://bucket/prefix; "
        "by default $FXTRACE_STORE, else the user's data folder.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON; errors too, on stderr.", callback=_note_json)]
TraceArgument = Annotated[
    str, typer.Argument(metavar="TRACE", help=_TRACE_HELP, show_default=False, autocompletion=complete_traces)
]
TraceOption = Annotated[
    str, typer.Option("--trace", "-t", metavar="TRACE", help=_TRACE_HELP, autocompletion=complete_traces)
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model's name, a model file, package.module:factory, or hf:<architecture>.",
        autocompletion=complete_models,
    ),
]


class Commands(TyperGroup):
    """A group of commands: prints errors in one line, or as JSON, and sets the exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            with needed_for():  # whatever a command imports
                return super().invoke(ctx)
        except FxtraceError as error:
            _print_error(error, as_json=bool(ctx.meta.get(_JSON)))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            from fxtrace.cli.output import error_line

            error_line("interrupted")
            raise typer.Exit(130) from None


def _print_error(error: FxtraceError, *, as_json: bool) -> None:
    from fxtrace.cli.output import echo_json, error_line

    if not as_json:
        error_line(error.message)
        return
    shown = {"reason": error.reason, "message": error.message, "field": error.field}
    if error.request_id:
        shown["request_id"] = error.request_id
    echo_json({**shown, "metadata": error.metadata}, err=True)


@contextmanager
def connect(server: str | None, store: str | None) -> Iterator[Api]:
    """The engine over this machine's store, or the client of a server."""
    if server is not None:
        if store is not None:
            raise typer.BadParameter("a server has a store of its own; give one of the two", param_hint="--store")
        from fxtrace.cli.connection import client_of

        with client_of(server) as client:
            yield client
    else:
        with connect_here(store) as engine:
            yield engine


@contextmanager
def connect_here(store: str | None) -> Iterator[Engine]:
    """The engine over this machine's store, which is opened as far as it is needed."""
    with engine_at(store, lambda store: store) as engine:
        yield engine


@contextmanager
def engine_at(place: str | None, over: Callable[[Store], Store | MemoryStore]) -> Iterator[Engine]:
    """The engine over what is made of this machine's store."""
    from fxtrace.models import Registry
    from fxtrace.service.engine import Engine
    from fxtrace.store.place import default_place
    from fxtrace.store.quick import QuickStore

    with Engine(over(QuickStore(place or default_place())), Registry.installed()) as engine:
        yield engine


@contextmanager
def numpy_without_threads() -> Iterator[None]:
    """Lets NumPy, where it is imported within, start no thread for matrix products: reading a trace makes none.

    Starting one for each core takes longer than the rest of NumPy's import.
    """
    name = "OPENBLAS_NUM_THREADS"
    mine = name not in os.environ
    os.environ.setdefault(name, "1")
    try:
        yield
    finally:
        if mine:
            os.environ.pop(name, None)


def resolve_trace(api: Api, text: str) -> str:
    """The id that is meant by an id, by the start of one, or by `latest`: the trace last made or asked for by `trace`.

    Raises:
        NameInvalid: it is none of these, or the start of several ids.
        TraceNotFound: there is no such trace.
    """
    from fxtrace.store.naming import is_name

    if not is_name(text):
        raise NameInvalid(
            f"expected a trace's id, the start of one, or 'latest'; got '{text}'", field="trace", trace=text
        )
    return text if len(text) == 32 else api.get_trace(text).id


@contextmanager
def models_print_on_stderr() -> Iterator[None]:
    """Sends to stderr what is printed meanwhile, by Python or by anything else in this process and its children."""
    with ExitStack() as restored:
        restored.enter_context(redirect_stdout(sys.stderr))
        # Where stdout is the process's own, also for what does not go through Python.
        if sys.__stdout__ is not None and sys.__stderr__ is not None and _is_open(1) and _is_open(2):
            sys.__stdout__.flush()
            own = os.dup(1)
            restored.callback(os.close, own)
            os.dup2(2, 1)
            restored.callback(os.dup2, own, 1)
            restored.callback(sys.__stdout__.flush)
        yield


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def pairs(option: str, items: list[str] | None) -> dict[str, str]:
    """The names and values of a repeated option of the form NAME=VALUE; the last of a name counts."""
    result = {}
    for item in items or []:
        name, separator, value = item.partition("=")
        if not (name and separator):
            raise typer.BadParameter(f"expected NAME=VALUE, got '{item}'", param_hint=option)
        result[name] = value
    return result


def settings_of(items: list[str] | None) -> dict[str, JsonValue]:
    """The fields that `--set` sets: each value is JSON, or else text."""
    return {name: _value(text) for name, text in pairs("--set", items).items()}


def _value(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except ValueError:
        return text
    return value


def check_writable(path: Path | None) -> None:
    """Refuses a file that cannot be written, before the work that it is for.

    Raises:
        OptionInvalid: its folder is not there, or it is a folder itself.
    """
    if path is None or (path.parent.is_dir() and not path.is_dir()):
        return
    problem = errno.EISDIR if path.is_dir() else errno.ENOENT
    raise OptionInvalid(f"cannot write {path}: {os.strerror(problem)}", field="out", out=path)


def write_file(path: Path, data: bytes) -> None:
    """Writes a file that was asked for.

    Raises:
        OptionInvalid: it cannot be written.
    """
    try:
        path.write_bytes(data)
    except OSError as error:
        raise OptionInvalid(f"cannot write {path}: {error.strerror}", field="out", out=path) from error
