"""`fxtrace models`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from fxtrace.cli.common import Json, Server, StorePlace, complete_models, connect, models_print_on_stderr

if TYPE_CHECKING:
    from fxtrace.ir.trace import ModelInfo


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Show this model's configuration: a name, a model file, package.module:factory, or hf:<architecture>.",
            show_default=False,
            autocompletion=complete_models,
        ),
    ] = None,
    server: Server = None,
    store: StorePlace = None,
    as_json: Json = False,
) -> None:
    """List the models on offer, or show one's configuration.

    Example: `fxtrace models reference`
    """
    from fxtrace.cli.output import echo_json
    from fxtrace.cli.steps import next_step
    from fxtrace.cli.tables import model_facts, model_table, show_on_stdout

    with connect(server, store) as api, models_print_on_stderr():
        listed = api.list_models() if name is None else (api.get_model(name),)
    if as_json:
        echo_json(listed if name is None else listed[0])
        return
    show_on_stdout(model_table(listed) if name is None else model_facts(listed[0]))
    if name is not None:
        next_step("trace", name, *_setting(listed[0]), server=server, store=store)
    elif listed:
        next_step("models", listed[0].name, server=server, store=store)


def _setting(model: ModelInfo) -> tuple[str, ...]:
    """How a field is set, shown on the first one that names a size, at the value that it has anyway."""
    field = next((field for field in model.fields if field.dimension), None)
    return () if field is None else ("--set", f"{field.name}={json.dumps(field.default)}")
