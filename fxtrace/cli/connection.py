"""How commands connect to a server: the options that each of them has for it, and the client."""

from __future__ import annotations

import os
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from fxtrace.cli.options import given, make_options, option

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fxtrace.client import Client
    from fxtrace.tls import Tls

TOKEN_VARIABLE = "FXTRACE_TOKEN"  # no option: others on the machine can see what is typed

_chosen: ContextVar[dict[str, Any]] = ContextVar("chosen")


class AskingCommand(TyperCommand):
    """A command that may ask a server."""

    def get_params(self, ctx: Any) -> Any:
        """The command's own parameters, and those of a connection."""
        return [*super().get_params(ctx), *_options()]

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        _chosen.set(given(ctx))
        return super().invoke(ctx)


def client_of(server: str, *, connect_timeout: float = 5) -> Client[NDArray[Any]]:
    """A client of a server, as options and variables say. Its calls have no time limit: who waits can interrupt.

    Raises:
        ServerUnavailable, TlsFailed, OptionInvalid: as `Client`.
    """
    from fxtrace.client import Client

    return Client(
        server,
        timeout=None,
        connect_timeout=connect_timeout,
        arrays="numpy",
        tls=tls_options() or False,
        token=os.environ.get(TOKEN_VARIABLE, ""),
        insecure=bool(_chosen.get({}).get("insecure")),
    )


def tls_options() -> Tls | None:
    """How options and variables say that is encrypted; None for not at all."""
    from fxtrace.tls import Tls

    chosen = _chosen.get({})
    tls = Tls(chosen.get("ca"), chosen.get("client_certificate"), chosen.get("client_key"))
    return tls if tls != Tls() or chosen.get("tls") else None


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
