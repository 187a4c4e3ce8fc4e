"""Everything that can be set about a server, in one place.

Each field is a flag of `fxtrace serve` (`--queue-length 8`), an environment variable (`FXTRACE_QUEUE_LENGTH=8`) and a
key of a TOML file (`queue_length = 8`, the file named by `--config` or FXTRACE_CONFIG). A flag goes before the
environment, that before the file, and that before the default. Sizes are bytes or have a unit: 64MiB.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ByteSize, Field, ValidationError

from fxtrace.errors import OptionInvalid, unknown
from fxtrace.extras import needed_for
from fxtrace.sweep import MAX_CONFIGURATIONS

with needed_for("a server's settings"):
    from pydantic_settings import (
        BaseSettings,
        InitSettingsSource,
        NoDecode,
        PydanticBaseSettingsSource,
        SettingsConfigDict,
    )

PREFIX = "FXTRACE_"
FILE_VARIABLE = "FXTRACE_CONFIG"


def _listed(value: object) -> object:
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def _third_of_memory() -> ByteSize:
    """A third of the machine's memory, so that two captures and their tensors' files fit; 8 GiB where it is unknown."""
    try:
        return ByteSize(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 3)
    except (AttributeError, OSError, ValueError):
        return ByteSize(8 << 30)


class Settings(BaseSettings):
    """How a server is to be. Made by `Settings.load`, or directly: then the environment counts, too."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """The address to listen on; beyond this machine only with TLS and known callers."""
    port: int = Field(default=50051, ge=0, le=65535)
    """The port to listen on; 0 picks a free one."""
    store: str | None = None
    """Where the traces are: a folder, or INDEX#FILES; by default the user's data folder."""
    models: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)] = ()
    """Models to offer: model files, package.module:factory, hf:<architecture>. In a variable, with commas between."""
    hf: bool = False
    """Whether every architecture of transformers is offered, as hf:..."""

    tls_certificate: Path | None = None
    """The server's certificate and those between it and its authority's, PEM: calls are encrypted."""
    tls_key: Path | None = None
    """The certificate's private key, PEM."""
    tls_client_ca: Path | None = None
    """Authorities, PEM: callers must show a certificate of one of them."""
    keys: Path | None = None
    """The keys of `fxtrace keys`: callers must show one."""
    insecure: bool = False
    """Whether to listen beyond this machine without TLS, or for callers whom nobody knows."""

    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """What is logged on stderr: debug, info (a line for each call), warning or error."""
    log_format: Literal["text", "json"] = "text"
    """Lines of text, or of json."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """A port of 127.0.0.1 where Prometheus finds metrics, under /metrics."""
    spans: bool = False
    """Whether calls and their stages are spans of OpenTelemetry, exported as its OTEL_ variables say."""

    workers: int = Field(default=2, ge=1, le=256)
    """Captures that run at once, each in a process of its own. One more process is kept."""
    worker_calls: int = Field(default=100, ge=1)
    """Calls after which a new process takes a worker's place. 1 keeps what models leave behind from one another."""
    queue_length: int = Field(default=32, ge=0)
    """Captures that may wait for a worker, and pictures likewise; more are told when to come again."""
    capture_seconds: float = Field(default=600, gt=0)
    """Seconds that one capture may run. A client's own limit may be shorter."""
    capture_memory: ByteSize = Field(default_factory=_third_of_memory, ge=1 << 20)
    """Memory that one capture may take; by default a third of the machine's."""
    sweep_configurations: int = Field(default=100_000, ge=1, le=MAX_CONFIGURATIONS)
    """Configurations that one sweep's grid may have."""
    sweep_seconds: float = Field(default=600, gt=0)
    """Seconds that one sweep may run, in one of the processes for captures."""
    model_seconds: float = Field(default=60, gt=0)
    """Seconds that importing a model may take, to list it."""

    render_workers: int = Field(default=2, ge=1, le=256)
    """Pictures that are drawn at once, each in a process of its own."""
    render_seconds: float = Field(default=120, gt=0)
    """Seconds that drawing one picture may take."""
    render_memory: ByteSize = Field(default=ByteSize(2 << 30), ge=1 << 20)
    """Memory that drawing one picture may take."""

    concurrent_calls: int = Field(default=256, ge=1)
    """Calls that may be under way at once; more are refused."""
    message_size: ByteSize = Field(default=ByteSize(64 << 20), ge=1 << 10)
    """Bytes of the largest request; a model's inputs come in one."""
    keepalive_seconds: float = Field(default=30, ge=1)
    """Seconds of silence after which a caller is pinged."""
    keepalive_timeout: float = Field(default=10, gt=0)
    """Seconds that it has to answer, or its connection is closed."""
    ping_seconds: float = Field(default=10, ge=0)
    """Seconds to leave between a caller's own pings; one that pings more often is cut off."""
    stop_grace: float = Field(default=5, ge=0)
    """Seconds that running calls have to end when the server stops."""

    page_items: int = Field(default=1000, ge=1, le=1000)
    """Models or traces on a page, at most."""
    page_nodes: int = Field(default=5000, ge=1, le=100_000)
    """Nodes or paths on a page, at most."""
    batch_reads: int = Field(default=64, ge=1, le=10_000)
    """Tensors that one batch may read."""
    batch_size: ByteSize = Field(default=ByteSize(3 << 20), ge=1)
    """Bytes of tensors in one batch."""
    reply_cache: ByteSize = Field(default=ByteSize(128 << 20), ge=0)
    """Memory for replies about graphs that are kept to be given again."""
    disk_quota: ByteSize | None = Field(default=None, ge=1 << 20)
    """Bytes of disk that the traces may take; the least recently used make room. By default there is no limit."""

    @classmethod
    def load(cls, file: Path | None = None, **flags: Any) -> Settings:
        """The settings of these flags, the environment and a file.

        Args:
            file: a TOML file; by default the one that FXTRACE_CONFIG names, if it names one.
            flags: fields; those that are None are not set.

        Raises:
            OptionInvalid: a value does not fit, there is no such field, or the file cannot be read.
        """
        if file is None and (named := os.environ.get(FILE_VARIABLE)):
            file = Path(named)
        table = {} if file is None else _read(file)
        known = cls.model_fields
        if strange := [name for name in table if name not in known]:
            raise OptionInvalid(f"{file}: {unknown('setting', strange[0], known, limit=40)}", field=strange[0])

        class Layered(cls):  # type: ignore[valid-type, misc]
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                **_: PydanticBaseSettingsSource,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                return init_settings, env_settings, InitSettingsSource(settings_cls, table)

        try:
            made: Settings = Layered(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            if name in flags and flags[name] is not None:
                origin = f"--{name.replace('_', '-')}"
            elif PREFIX + name.upper() in os.environ:
                origin = PREFIX + name.upper()
            else:
                origin = f"{file}: {name}"
            problem = first["msg"][0].lower() + first["msg"][1:]
            raise OptionInvalid(f"{origin}: {problem}, got {first['input']!r}", field=name) from None
        return made


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionInvalid(f"cannot read {file}: {error.strerror}", field="config", file=file) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionInvalid(f"{file} is not TOML: {error}", field="config", file=file) from None
