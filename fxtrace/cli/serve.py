"""`fxtrace serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import typer
from typer.core import TyperCommand

from fxtrace.cli.common import Json, StorePlace
from fxtrace.cli.options import given, make_options, option
from fxtrace.extras import absent_packages, require

_OWN = ("host", "port", "models", "hf", "store")  # settings that are parameters of `serve` below
_UNITS: dict[Any, str] = {int: "NUMBER", float: "SECONDS", int | None: "NUMBER", Path | None: "FILE"}


class ServeCommand(TyperCommand):
    """`fxtrace serve`, with a flag for each setting. They are looked up when they are needed: that takes a moment."""

    def get_params(self, ctx: Any) -> Any:
        """The parameters of `serve`, and the settings."""
        own = super().get_params(ctx)
        return own if absent_packages("server") else [*own, *_flags()]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the arguments; without what serving needs, only `--help` can be asked for.

        Raises:
            DependencyMissing: something that serving needs is not installed.
        """
        if not {*args} & {*ctx.help_option_names}:
            require("server")
        return super().parse_args(ctx, args)


def _flags() -> list[Any]:
    """An option for each setting."""
    from fxtrace.service.settings import Settings

    fields = {name: field for name, field in Settings.model_fields.items() if name not in _OWN}
    return make_options({name: _option(name, field) for name, field in fields.items()})


def _option(name: str, field: Any) -> Any:
    flag, default = f"--{name.replace('_', '-')}", ""
    if field.default is not None and field.default_factory is None and field.annotation is not bool:
        human = getattr(field.default, "human_readable", lambda: _number(field.default))
        default = f" By default {human()}."
    how = {"help": f"{field.description}{default}", "show_default": False, "rich_help_panel": "Settings"}
    if field.annotation is bool:
        return option(bool | None, flag, **how)
    unit = "NAME" if get_origin(field.annotation) is Literal else _UNITS.get(field.annotation, "SIZE")
    return option(str | None, flag, metavar=unit, **how)


def _number(value: object) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def serve(
    context: typer.Context,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, metavar="PORT", help="0 picks a free one. By default 50051.", show_default=False
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Beyond this machine only with TLS and known callers. By default 127.0.0.1.", show_default=False
        ),
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
    """Serve the traces of a folder over gRPC.

    Until Ctrl-C or SIGTERM.
    """
    from fxtrace.cli.output import echo_json
    from fxtrace.models import Registry
    from fxtrace.service import server
    from fxtrace.service.engine import Engine
    from fxtrace.service.logs import set_up_logs
    from fxtrace.service.settings import Settings

    own = {"host": host, "port": port, "models": models or None, "hf": hf or None, "store": store}
    settings = Settings.load(config, **own, **given(context))
    set_up_logs(settings.log_level, settings.log_format)
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
