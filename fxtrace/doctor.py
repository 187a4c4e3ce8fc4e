"""Checks of an installation and of a server, each with what to do where something is wrong."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import fxtrace
from fxtrace import __version__
from fxtrace.errors import DependencyMissing, FxtraceError, Unauthenticated
from fxtrace.extras import EXTRAS, absent_packages, is_installed

if TYPE_CHECKING:
    from fxtrace.client import Client
    from fxtrace.tls import Tls

State = Literal["ok", "absent", "broken"]

# Run in a process of its own, which a broken PyTorch may end. It prints a line about PyTorch where that is wanted, and
# one about fxtrace's modules: how many there are, and which cannot be imported though what they need is installed.
_IMPORTS = """
import importlib, json, pkgutil, sys
if sys.argv[1:]:
    import torch
    assert torch.ones(2).sum().item() == 2
    print(json.dumps([torch.__version__, torch.cuda.device_count()]), flush=True)
import fxtrace
from fxtrace.errors import DependencyMissing
names = [m.name for m in pkgutil.walk_packages(fxtrace.__path__, "fxtrace.", onerror=lambda _: None)]
names = [name for name in names if not name.endswith("__main__") and not name.startswith("fxtrace.reference")]
problems = []
for name in names:
    try:
        importlib.import_module(name)
    except DependencyMissing:
        pass
    except Exception as error:
        problems.append(f"{name}: {error}")
print(json.dumps([len(names), problems]))
"""
_IMPORT_SECONDS = 300
_REINSTALL = "pip install --force-reinstall --no-deps fxtrace"
_QUICK_BYTES = 64 << 20  # of traces that are verified
_LITTLE_DISK = 1 << 30
_SHORT = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it is, what it says, and what to do about it.

    `absent` is what need not be there.
    """

    name: str
    state: State
    message: str
    advice: str = ""


def check_installation(place: str | None) -> Iterator[Check]:
    """Checks fxtrace itself, Python, packages, extras, pictures and a store.

    Args:
        place: the store's; by default `fxtrace.store.default_place()`.
    """
    with _Imports(torch=is_installed("torch")) as imports:  # the slowest, so it is begun first
        yield Check(
            "fxtrace", "ok", f"{__version__} in {Path(fxtrace.__file__).parent}, Python {sys.version.split()[0]}"
        )
        yield _files()
        packages = _packages()
        yield packages
        pictures = _pictures()
        torch, modules = imports.checks()
    yield modules
    yield torch
    yield from (_extra(name) for name in EXTRAS if name not in ("torch", "images"))
    yield pictures
    if packages.state == modules.state == "ok":
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
            message = f"the server runs {server.version}, this is {__version__}"
            yield Check("version", "broken", message, f"pip install 'fxtrace=={server.version}', or update the server")
        whose = f"{server.key_id}, " if server.key_id else "none wanted; "
        yield Check("key", "ok", f"{whose}may {'read and write' if server.scope == 'write' else 'read'}")


def _files() -> Check:
    """Whether every file of the package is as it was installed. A checkout has no list of its files."""
    distribution = _distribution()
    if distribution is None:
        return Check("files", "ok", f"used from the checkout {Path(fxtrace.__file__).parents[1]}")
    files = distribution.files or []
    damaged = [file for file in files if file.size is not None and not _is_whole(Path(str(file.locate())), file.size)]
    if damaged:
        message = f"{len(damaged)} of {len(files)} are missing or changed, such as {damaged[0]}"
        return Check("files", "broken", message, _REINSTALL)
    return Check("files", "ok", f"all {len(files)} are as they were installed")


def _distribution() -> Distribution | None:
    """The installed distribution that this very package is of; None for a checkout."""
    for found in distributions(name="fxtrace"):
        installed = Path(str(found.locate_file("fxtrace/__init__.py")))
        if found.read_text("RECORD") and installed.is_file() and installed.samefile(fxtrace.__file__):
            return found
    return None


def _is_whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _packages() -> Check:
    """Whether the packages that fxtrace always needs are installed."""
    lines = next((found.requires or [] for found in distributions(name="fxtrace")), [])
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines if "extra ==" not in line]
    missing = [name for name in names if not _is_installed_distribution(name)]
    if missing:
        return Check("packages", "broken", f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    if not names:
        return Check(
            "packages", "broken", "fxtrace is not installed, only imported", "pip install -e . in its checkout"
        )
    return Check("packages", "ok", f"all {len(names)} that fxtrace always needs are installed")


class _Imports:
    """Imports PyTorch and all of fxtrace in a process that runs meanwhile."""

    def __init__(self, *, torch: bool) -> None:
        self._torch = torch
        command = [sys.executable, "-P", "-c", _IMPORTS, *(["torch"] if torch else [])]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> _Imports:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def checks(self) -> tuple[Check, Check]:
        """Returns how PyTorch is, and how fxtrace's modules are."""
        try:
            output, errors = self._process.communicate(timeout=_IMPORT_SECONDS)
        except subprocess.TimeoutExpired:
            output, errors = "", f"no answer within {_IMPORT_SECONDS} s"
        said = errors.strip().rpartition("\n")[2] or f"the process ended with code {self._process.returncode}"
        lines = [json.loads(line) for line in output.splitlines() if line.startswith("[")]
        torch = _torch(lines.pop(0) if lines else None, said) if self._torch else _extra("torch")
        return torch, _modules(lines[0] if lines else None, said, torch)


def _torch(answer: list[Any] | None, said: str) -> Check:
    if answer is None:
        return Check("torch", "broken", f"cannot be used: {said}", "pip install --force-reinstall torch")
    number, devices = answer
    return Check("torch", "ok", f"{EXTRAS['torch'].gives}: {number}" + (f", {devices} GPUs" if devices else ""))


def _modules(answer: list[Any] | None, said: str, torch: Check) -> Check:
    if answer is None:
        if torch.state == "broken":
            return Check("modules", "broken", "not tried, for PyTorch cannot be used", torch.advice)
        return Check("modules", "broken", f"importing them ended the process: {said}", _REINSTALL)
    count, problems = answer
    if problems:
        return Check("modules", "broken", f"{len(problems)} of {count} cannot be imported: {problems[0]}", _REINSTALL)
    return Check("modules", "ok", f"all {count} of fxtrace can be imported")


def _extra(name: str) -> Check:
    """Whether an extra is installed."""
    absent = absent_packages(name)
    if absent:
        message = f"not installed: {EXTRAS[name].gives} (needs {', '.join(absent)})"
        return Check(name, "absent", message, f"pip install 'fxtrace[{name}]'")
    return Check(name, "ok", EXTRAS[name].gives)


def _pictures() -> Check:
    from fxtrace.render import find_graphviz, to_image

    try:
        by = "dot on PATH" if len(find_graphviz()) == 1 else "the bundled Graphviz"
    except DependencyMissing:
        return _extra("images")
    try:
        for image_format in ("svg", "png", "pdf"):
            to_image('digraph { graph [fontname="Arimo"]; a [label="×" fontname="Arimo"]; a -> b }', image_format, 60)
    except (FxtraceError, OSError) as error:
        return Check("images", "broken", f"{by} fails: {error}", "pip install --force-reinstall 'fxtrace[images]'")
    return Check("images", "ok", f"{EXTRAS['images'].gives}, by {by}, in fxtrace's own font")


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
    yield Check("store", "ok", f"{shown}, writable, traces: {len(kept)}")
    if problems:
        yield Check("traces", "broken", next(iter(problems.values())), "fxtrace store verify lists all")
    elif kept:
        yield Check("traces", "ok", f"as they were written: the latest {len(chosen)} of {len(kept)}")
    if "://" not in place:
        free = shutil.disk_usage(place).free
        message = f"{free / (1 << 30):.1f} GiB free"
        if free < _LITTLE_DISK:
            yield Check("disk", "broken", message, "make room, or fxtrace store gc --quota SIZE")
        else:
            yield Check("disk", "ok", message)


def _certificate(address: str, tls: Tls) -> Check:
    """Until when the server's certificate is valid; that it is valid now, gRPC has checked."""
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
    message = f"valid until {until:%Y-%m-%d %H:%M} UTC, {left.days} days"
    return Check("certificate", "broken" if left < _SHORT else "ok", message, "renew it" if left < _SHORT else "")


def _is_installed_distribution(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False
