"""`fxtrace models`."""

from __future__ import annotations

from typing import Annotated

import typer

from fxtrace.cli.common import Json, Server, StorePlace, connect


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Show this model's configuration.", show_default=False)
    ] = None,
    server: Server = None,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """List the models on offer, or show one's configuration."""
    from fxtrace.cli.output import echo_json
    from fxtrace.cli.tables import model_facts, model_table, show_on_stdout

    with connect(server, store) as api:
        if name is not None:
            model = api.get_model(name)
            echo_json(model) if as_json else show_on_stdout(model_facts(model))
        else:
            listed = api.list_models()
            echo_json(listed) if as_json else show_on_stdout(model_table(listed))
