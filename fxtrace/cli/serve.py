"""`fxtrace serve`."""

from __future__ import annotations

from importlib.util import find_spec
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from fxtrace.cli.common import Json, StorePlace

_OWN = ("host", "port", "models", "hf", "store")  # settings that are parameters of `serve` below
_FLAGS = "fxtrace.serve.flags"


class ServeCommand(TyperCommand):
    """`fxtrace serve`, with a flag for each setting. They are looked up when they are needed: that takes a moment."""

    def get_params(self, ctx: Any) -> Any:
        """The parameters of `serve`, and the settings."""
        own = super().get_params(ctx)
        if find_spec("pydantic_settings") is None:
            return own  # `serve` will say what is missing
        return [*own, *_flags()]


def _flags() -> list[Any]:
    """A flag for each setting, as Typer makes them of a function's parameters."""
    from fxtrace.service.settings import Settings

    def limits() -> None: ...

    fields = {name: field for name, field in Settings.model_fields.items() if name not in _OWN}
    limits.__annotations__ = {name: _option(name, field) for name, field in fields.items()}
    limits.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in limits.__annotations__.items()
        ]
    )
    app = typer.Typer(add_completion=False)
    app.command()(limits)
    return [flag for flag in typer.main.get_command(app).params if flag.name in fields]


def _option(name: str, field: Any) -> Any:
    unit = {int: "NUMBER", float: "SECONDS"}.get(field.annotation, "SIZE")
    default = ""
    if field.default is not None and field.default_factory is None:
        human = getattr(field.default, "human_readable", lambda: f"{field.default:g}")
        default = f" By default {human()}."
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        metavar=unit,
        help=f"{field.description}{default}",
        expose_value=False,
        callback=_note,
        rich_help_panel="Limits",
    )
    return Annotated[str | None, option]


def _note(context: typer.Context, parameter: typer.CallbackParam, value: str | None) -> None:
    if value is not None:
        context.meta.setdefault(_FLAGS, {})[parameter.name] = value


def serve(
    context: typer.Context,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, metavar="PORT", help="0 picks a free one. By default 50051.", show_default=False
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="A loopback address. By default 127.0.0.1.", show_default=False)
    ] = None,
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
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings in TOML; flags and FXTRACE_... variables go before.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve the traces of a folder over gRPC, until Ctrl-C."""
    from fxtrace.cli.output import echo_json
    from fxtrace.errors import DependencyMissing
    from fxtrace.models import Registry
    from fxtrace.service.engine import Engine

    try:
        from fxtrace.service import server
        from fxtrace.service.settings import Settings
    except ModuleNotFoundError as error:
        raise DependencyMissing(
            f"serving needs {error.name}; install it with: pip install 'fxtrace[server]'", package=error.name
        ) from error

    flags = context.meta.get(_FLAGS, {})
    settings = Settings.load(config, host=host, port=port, models=models or None, hf=hf or None, store=store, **flags)
    offered = Registry.installed()
    for reference in settings.models:
        offered.offer(reference)  # imported in a worker
    if settings.hf:
        offered.add_families()

    def ready(address: str) -> None:
        if as_json:
            echo_json({"address": address}, indent=None)  # a line, to be read as soon as it is there
        else:
            typer.echo(f"fxtrace serves {', '.join(offered.names())} at {address}; stop it with Ctrl-C")

    with Engine.open(settings.store, offered, quota_bytes=settings.disk_quota) as engine:
        server.serve(engine, settings=settings, on_ready=ready)
