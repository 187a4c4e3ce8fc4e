"""How commands connect to a server: the options that each of them has for it, and the client."""

from __future__ import annotations

import os
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperArgument, TyperCommand

from fxtrace.cli.common import TraceOption, numpy_without_threads
from fxtrace.cli.options import given, make_options, option

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fxtrace.client import Client
    from fxtrace.tls import Tls

TOKEN_VARIABLE = "FXTRACE_TOKEN"  # no option: others on the machine can see what is typed

_chosen: ContextVar[dict[str, Any]] = ContextVar("chosen")


class AskingCommand(TyperCommand):
    """A command that may ask a server. Where it takes a trace by its place, it takes it as `-t/--trace`, too."""

    _needs_trace = False

    def get_params(self, ctx: Any) -> Any:
        """The command's own parameters, and those of a connection."""
        own = super().get_params(ctx)
        by_place = next((each for each in own if isinstance(each, TyperArgument) and each.name == "trace"), None)
        if by_place is not None:
            self._needs_trace |= by_place.required
            by_place.required = False  # the option will do
            first = next(at for at, each in enumerate(own) if not isinstance(each, TyperArgument))
            own = [*own[:first], _trace_option(), *own[first:]]
        return [*own, *_options()]

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        named = ctx.params.pop("named_trace", None)
        if named is not None:
            if ctx.get_parameter_source("trace").name == "COMMANDLINE":
                raise typer.BadParameter("the trace is given twice; give one of the two", param_hint="--trace")
            ctx.params["trace"] = named
        elif self._needs_trace and ctx.params["trace"] is None:
            ctx.fail("Missing argument 'TRACE'.")
        choose(ctx)
        return super().invoke(ctx)


def choose(context: Any) -> None:
    """Takes the connection's options as they were given."""
    _chosen.set(given(context))


class ReadingCommand(AskingCommand):
    """A command that only reads traces: no model runs in this process."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        with numpy_without_threads():
            return super().invoke(ctx)


def client_of(server: str, *, connect_timeout: float = 5) -> Client[NDArray[Any]]:
    """A client of a server, as options and variables say. Its calls have no time limit: who waits can interrupt.

    A server that is not there is an error at once: who starts one sees when it is ready. Only an answer is waited for.

    Raises:
        ServerUnavailable, TlsFailed, OptionInvalid: as `Client`.
    """
    from fxtrace.client import Client

    return Client(
        server,
        timeout=None,
        connect_timeout=connect_timeout,
        wait_for_start=False,
        arrays="numpy",
        tls=tls_options() or False,
        token=os.environ.get(TOKEN_VARIABLE, ""),
        insecure=bool(_chosen.get({}).get("insecure")),
    )


def chosen_options() -> list[str]:
    """The options of the connection as they were given, for another command line."""
    words = []
    for name, value in _chosen.get({}).items():
        words += [f"--{name.replace('_', '-')}", *(() if value is True else (str(value),))]
    return words


def tls_options() -> Tls | None:
    """How options and variables say that is encrypted; None for not at all."""
    from fxtrace.tls import Tls

    chosen = _chosen.get({})
    tls = Tls(chosen.get("ca"), chosen.get("client_certificate"), chosen.get("client_key"))
    return tls if tls != Tls() or chosen.get("tls") else None


@cache
def _trace_option() -> Any:
    return make_options({"named_trace": TraceOption})[0]


@cache
def _options() -> list[Any]:
    def of(kind: Any, name: str, variable: str, text: str) -> Any:
        return option(kind, name, envvar=variable, help=text, show_default=False, rich_help_panel="With --server")

    return make_options(
        {
            "tls": of(bool | None, "--tls", "FXTRACE_TLS", "Encrypt."),
            "ca": of(Path | None, "--ca", "FXTRACE_CA", "Encrypt, and trust these authorities (PEM)."),
            "client_certificate": of(
                Path | None, "--client-certificate", "FXTRACE_CLIENT_CERTIFICATE", "Show this certificate (PEM)."
            ),
            "client_key": of(Path | None, "--client-key", "FXTRACE_CLIENT_KEY", "The certificate's private key (PEM)."),
            "insecure": of(
                bool | None, "--insecure", "FXTRACE_INSECURE", f"Send the key of {TOKEN_VARIABLE} unencrypted."
            ),
        }
    )
