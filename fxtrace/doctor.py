"""Checks of an installation and of a server, each with what to do where something is wrong."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from fxtrace import __version__
from fxtrace.errors import FxtraceError, Unauthenticated

if TYPE_CHECKING:
    from fxtrace.client import Client
    from fxtrace.tls import Tls

State = Literal["ok", "absent", "broken"]

# What each extra is for, and the packages it brings that are imported.
EXTRAS = {
    "server": ("running a server", ("grpc_health", "grpc_reflection", "pydantic_settings")),
    "query": ("conditions in queries", ("cel_expr_python",)),
    "hf": ("models of transformers", ("transformers",)),
    "postgres": ("a store's index in PostgreSQL", ("psycopg",)),
    "s3": ("a store's files in S3", ("obstore",)),
    "metrics": ("metrics for Prometheus", ("prometheus_client",)),
    "otel": ("spans of OpenTelemetry", ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")),
    "tables": ("Parquet files of sweeps", ("pyarrow",)),
    "plots": ("plots of sweeps", ("matplotlib",)),
}

_TORCH = """
import json, torch
assert torch.ones(2).sum().item() == 2
print(json.dumps([torch.__version__, torch.cuda.device_count()]))
"""
_TORCH_SECONDS = 300
_QUICK_BYTES = 64 << 20  # of traces that are verified
_LITTLE_DISK = 1 << 30
_SHORT = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it is, what was found, and what to do about it.

    `absent` is what need not be there.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def check_installation(place: str | None) -> Iterator[Check]:
    """Checks Python, packages, pictures and a store.

    Args:
        place: the store's; by default `fxtrace.store.default_place()`.
    """
    yield Check("fxtrace", "ok", f"{__version__} with Python {sys.version.split()[0]}")
    yield _packages()
    yield _torch()
    for extra, (what, modules) in EXTRAS.items():
        missing = [module for module in modules if not _is_there(module)]
        if missing:
            yield Check(extra, "absent", f"no {what}", f"pip install 'fxtrace[{extra}]'")
        else:
            yield Check(extra, "ok", what)
    yield _pictures()
    yield from _store(place)


def check_server(address: str, tls: Tls | None, connect: Callable[[], Client[Any]]) -> Iterator[Check]:
    """Checks a server.

    Args:
        address: the server's `host:port`.
        tls: how `connect` encrypts; None where it does not.
        connect: makes a client of it.
    """
    try:
        client = connect()
    except FxtraceError as error:
        yield Check("server", "broken", error.message)
        return
    with client:
        yield Check("server", "ok", f"answers at {address}{', encrypted' if tls else ''}")
        if tls is not None:
            yield _certificate(address, tls)
        healthy = client.is_serving()
        yield Check("health", *(("ok", "serving") if healthy else ("broken", "not serving", "it is stopping; wait")))
        try:
            server = client.get_server()
        except Unauthenticated as error:
            yield Check("key", "broken", error.message)
            return
        except FxtraceError as error:
            yield Check("version", "broken", error.message)
            return
        if server.version == __version__:
            yield Check("version", "ok", server.version)
        else:
            found = f"the server runs {server.version}, this is {__version__}"
            yield Check("version", "broken", found, f"pip install 'fxtrace=={server.version}', or update the server")
        whose = f"{server.key_id}, " if server.key_id else "none wanted; "
        yield Check("key", "ok", f"{whose}may {'read and write' if server.scope == 'write' else 'read'}")


def _packages() -> Check:
    """Whether what fxtrace always needs is installed."""
    needed = [line for line in requires("fxtrace") or () if "extra ==" not in line]
    names = [line.replace(">", " ").replace("=", " ").replace("<", " ").replace(";", " ").split()[0] for line in needed]
    missing = [name for name in names if not _installed(name)]
    if missing:
        return Check("packages", "broken", f"missing: {', '.join(missing)}", "pip install --force-reinstall fxtrace")
    return Check("packages", "ok", f"all {len(names)} are there")


def _torch() -> Check:
    if not _is_there("torch"):
        return Check("torch", "absent", "no captures in this process", "pip install 'fxtrace[torch]'")
    command = [sys.executable, "-c", _TORCH]  # a broken one may end its process
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TORCH_SECONDS, check=True)
        number, devices = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().rpartition("\n")[2]
        return Check("torch", "broken", f"cannot be used: {said}", "pip install --force-reinstall torch")
    return Check("torch", "ok", f"{number}, {devices} GPUs" if devices else number)


def _pictures() -> Check:
    from fxtrace.errors import DependencyMissing
    from fxtrace.render import to_image

    by = "dot" if shutil.which("dot") else "pygraphviz"
    try:
        for image_format in ("svg", "png", "pdf"):
            to_image('digraph { graph [fontname="Arimo"]; a [label="×" fontname="Arimo"]; a -> b }', image_format, 60)
    except DependencyMissing:
        return Check("images", "absent", "DOT text only", "pip install 'fxtrace[images]'")
    except (FxtraceError, OSError) as error:
        return Check("images", "broken", f"{by} fails: {error}", "pip install --force-reinstall 'fxtrace[images]'")
    return Check("images", "ok", f"SVG, PNG and PDF by {by}, in the font that fxtrace brings along")


def _store(place: str | None) -> Iterator[Check]:
    from fxtrace.store import Store, default_place
    from fxtrace.store.place import parse_place

    place = place or default_place()
    try:
        shown = place if "://" not in place else str(parse_place(place))
        with closing(Store(place)) as store:
            store.check_writable()
            chosen, total = [], 0
            kept = store.stored()
            for each in kept:
                total += each.nbytes
                if total <= _QUICK_BYTES:
                    chosen.append(each.trace.id)
            problems = store.verify(chosen) if chosen else {}
    except FxtraceError as error:
        yield Check("store", "broken", error.message)
        return
    yield Check("store", "ok", f"{shown}, writable, {len(kept)} traces")
    if problems:
        yield Check("traces", "broken", next(iter(problems.values())), "fxtrace store verify tells of all")
    else:
        yield Check("traces", "ok", f"the latest {len(chosen)} are as they were written")
    if "://" not in place:
        free = shutil.disk_usage(place).free
        found = f"{free / (1 << 30):.1f} GiB free"
        if free < _LITTLE_DISK:
            yield Check("disk", "broken", found, "make room, or fxtrace store gc --quota SIZE")
        else:
            yield Check("disk", "ok", found)


def _certificate(address: str, tls: Tls) -> Check:
    """Until when the server's certificate is valid; that it is, gRPC has found."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)
    context.set_alpn_protocols(["h2"])
    if tls.certificate and tls.key:
        context.load_cert_chain(tls.certificate, tls.key)
    name = host.strip("[]")
    try:
        with (
            socket.create_connection((name, int(port)), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname=name) as secure,
        ):
            certificate = secure.getpeercert() or {}
        until = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
    except (OSError, KeyError, ValueError) as error:
        return Check(
            "certificate", "broken", f"cannot be read: {error}", "openssl s_client -alpn h2 -connect " + address
        )
    left = until - datetime.now(UTC)
    found = f"valid until {until:%Y-%m-%d %H:%M} UTC, {left.days} days"
    return Check("certificate", "broken" if left < _SHORT else "ok", found, "renew it" if left < _SHORT else "")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False
