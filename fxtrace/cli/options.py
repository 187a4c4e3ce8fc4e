"""Options that a command has beside those of its function, made as Typer makes them."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, Signature
from typing import Annotated, Any

import typer

_GIVEN = "fxtrace.options"


def option(kind: Any, *names: str, **how: Any) -> Any:
    """The annotation of an option that is not passed to the command's function, but found in `given`."""
    return Annotated[kind, typer.Option(*names, expose_value=False, callback=_note, **how)]


def make_options(annotations: Mapping[str, Any]) -> list[Any]:
    """Options by their names, for a command's `get_params`."""

    def function() -> None: ...

    function.__annotations__ = dict(annotations)
    function.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in annotations.items()
        ]
    )
    app = typer.Typer(add_completion=False)
    app.command()(function)
    return [made for made in typer.main.get_command(app).params if made.name in annotations]


def given(context: Any) -> dict[str, Any]:
    """The values of such options, where they were given."""
    return dict(context.meta.get(_GIVEN, {}))


def _note(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> None:
    if value is not None:
        context.meta.setdefault(_GIVEN, {})[parameter.name] = value
