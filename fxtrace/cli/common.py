"""What every command shares: where the traces are, which trace is meant, and how errors are told."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fxtrace.errors import FxtraceError, NameInvalid, OptionInvalid, TraceNotFound
from fxtrace.ir.trace import Json as JsonValue

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fxtrace.api import TraceApi
    from fxtrace.service.engine import Engine

    Api = TraceApi[NDArray[Any]]

_JSON = "fxtrace.json"


def _note_json(context: typer.Context, wanted: bool) -> bool:
    context.meta[_JSON] = wanted  # for errors, which are told outside the command
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
    str, typer.Argument(metavar="[TRACE]", help="A trace's id, the start of one, or 'latest'.", show_default=False)
]
TraceOption = Annotated[
    str, typer.Option("--trace", metavar="TRACE", help="A trace's id, the start of one, or 'latest'.")
]


class Commands(TyperGroup):
    """The group of all commands: tells errors in one line, or as JSON, and sets the exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        from fxtrace.cli.output import echo_json, error_line

        try:
            return super().invoke(ctx)
        except FxtraceError as error:
            if ctx.meta.get(_JSON):
                told = {"reason": error.reason, "message": error.message, "field": error.field}
                if error.request_id:
                    told["request_id"] = error.request_id
                echo_json({**told, "metadata": error.metadata}, err=True)
            else:
                error_line(error.message)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            error_line("interrupted")
            raise typer.Exit(130) from None


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
    """The engine over this machine's store."""
    from fxtrace.service.engine import Engine

    with Engine.open(store) as engine:
        yield engine


def resolve_trace(api: Api, text: str) -> str:
    """The id that is meant by an id, by the start of one, or by `latest`.

    Raises:
        NameInvalid: it is none of these, or the start of several ids.
        TraceNotFound: there is no such trace.
    """
    if text == "latest":
        latest = next(api.list_traces(), None)
        if latest is None:
            raise TraceNotFound("there are no traces yet; `fxtrace trace reference` makes one", field="trace")
        return latest.id
    if not re.fullmatch(r"[0-9a-f]{1,32}", text):
        raise NameInvalid(
            f"expected a trace's id, the start of one, or 'latest'; got '{text}'", field="trace", trace=text
        )
    if len(text) == 32:
        return text
    ids = [trace.id for trace in api.list_traces() if trace.id.startswith(text)]
    if not ids:
        raise TraceNotFound(
            f"no trace's id starts with '{text}'; `fxtrace traces` lists them", field="trace", trace=text
        )
    if len(ids) > 1:
        raise NameInvalid(
            f"'{text}' is the start of {len(ids)} traces' ids, such as {ids[0]} and {ids[1]}; give more digits",
            field="trace",
            trace=text,
        )
    return ids[0]


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
