"""`fxtrace doctor`."""

from __future__ import annotations

from dataclasses import asdict
from itertools import chain

import typer

from fxtrace.cli.common import Json, Server, StorePlace

_MARKS = {"ok": ("✓", "green"), "absent": ("–", "yellow"), "broken": ("✗", "red")}


def doctor(server: Server = None, store: StorePlace = None, as_json: Json = False) -> None:
    """Check this installation and its store, or a server.

    The exit code is 1 if something is broken.
    """
    from fxtrace.cli.connection import client_of, tls_options
    from fxtrace.cli.output import echo_json
    from fxtrace.doctor import check_installation, check_server

    checks = []
    of_server = (
        check_server(server, tls_options(), lambda: client_of(server, connect_timeout=2)) if server is not None else ()
    )
    for check in chain(check_installation(store), of_server):
        checks.append(check)
        if not as_json:
            mark, colour = _MARKS[check.state]
            typer.secho(f"{mark} ", fg=colour, bold=True, nl=False)
            typer.echo(f"{check.name:<12} {check.message}")
            if check.advice:
                typer.echo(f"{'':<14} → {check.advice}")
    if as_json:
        echo_json([asdict(check) for check in checks])
    broken = [check.name for check in checks if check.state == "broken"]
    if not as_json:
        typer.echo(f"broken: {', '.join(broken)}" if broken else "nothing is broken")
    if broken:
        raise typer.Exit(1)
