"""`fxtrace serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from fxtrace.cli.common import Json, StorePlace


def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 50051,
    host: Annotated[str, typer.Option(help="A loopback address.")] = "127.0.0.1",
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Offer this one, too: a model file, package.module:factory, or hf:<architecture>. Repeatable.",
        ),
    ] = None,
    hf: Annotated[bool, typer.Option("--hf", help="Offer every architecture of transformers, as hf:...")] = False,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """Serve the traces of a folder over gRPC, until Ctrl-C."""
    from fxtrace.cli.output import echo_json
    from fxtrace.errors import DependencyMissing
    from fxtrace.models import Registry
    from fxtrace.service.engine import Engine

    try:
        from fxtrace.service import server
    except ModuleNotFoundError as error:
        raise DependencyMissing(
            f"serving needs {error.name}; install it with: pip install 'fxtrace[server]'", package=error.name
        ) from error

    offered = Registry.installed()
    for reference in models or []:
        offered.add(reference)
    if hf:
        offered.add_families()

    def ready(address: str) -> None:
        if as_json:
            echo_json({"address": address}, indent=None)  # a line, to be read as soon as it is there
        else:
            typer.echo(f"fxtrace serves {', '.join(offered.names())} at {address}; stop it with Ctrl-C")

    with Engine.open(store, offered) as engine:
        server.serve(engine, f"{host}:{port}", on_ready=ready)
