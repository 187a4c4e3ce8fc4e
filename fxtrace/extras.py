"""Extras: the packages that are optional, and the one line that says which extra installs an absent one.

Code that needs an optional package imports it within `needed_for`:

    with needed_for("an object store"):
        import obstore

Where it is absent, that raises

    DependencyMissing: obstore is needed for an object store and is not installed; install it with: pip install
    'fxtrace[s3]'
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from fxtrace.errors import DependencyMissing


@dataclass(frozen=True, slots=True)
class Extra:
    """What an extra of fxtrace gives, the packages it installs as they are imported, and the extras it includes."""

    gives: str
    packages: tuple[str, ...]
    includes: tuple[str, ...] = ()


EXTRAS = {
    "torch": Extra("capturing models in this process", ("torch",)),
    "server": Extra(
        "running a server", ("grpc_health", "grpc_reflection", "pydantic_settings"), includes=("torch", "query")
    ),
    "query": Extra("conditions in queries", ("cel_expr_python",)),
    "images": Extra("pictures as SVG, PNG and PDF", ("pygraphviz",)),
    "hf": Extra("models of transformers", ("transformers",), includes=("torch",)),
    "postgres": Extra("a store's index in PostgreSQL", ("psycopg",)),
    "s3": Extra("a store's files in S3", ("obstore",)),
    "metrics": Extra("metrics for Prometheus", ("prometheus_client",)),
    "otel": Extra(
        "spans of OpenTelemetry", ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http", "opentelemetry")
    ),
    "tables": Extra("Parquet files", ("pyarrow",)),
    "plots": Extra("plots of sweeps", ("matplotlib",)),
}
"""Every extra but `all`, which is all of these. A test compares them with pyproject.toml."""


@contextmanager
def needed_for(what: str = "", extra: str = "") -> Iterator[None]:
    """Wraps imports of optional packages.

    Args:
        what: what they are needed for, such as `an object store`; by default what their extra gives.
        extra: the extra to install for it; by default the absent package's own.

    Raises:
        DependencyMissing: a package is absent, and an extra installs it.
        ModuleNotFoundError: a module is absent that no extra installs.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        line = missing(error, what, extra)
        if line is None:
            raise
        raise line from error


def missing(error: ModuleNotFoundError, what: str = "", extra: str = "") -> DependencyMissing | None:
    """Returns the line for an absent package; None where the absent module is not of an extra."""
    name = error.name or ""
    if name.partition(".")[0] == "fxtrace":
        return None
    extra = extra or _extra_of(name)
    return _line(name, what or EXTRAS[extra].gives, extra) if extra else None


def require(extra: str, what: str = "") -> None:
    """Checks, without importing anything, that an extra and the extras it includes are installed.

    Args:
        extra: one of `EXTRAS`.
        what: what it is needed for; by default what the extra gives.

    Raises:
        DependencyMissing: one of its packages is absent.
    """
    absent = absent_packages(extra)
    if absent:
        raise _line(absent[0], what or EXTRAS[extra].gives, extra)


def absent_packages(extra: str) -> list[str]:
    """Returns the packages of an extra, and of the extras it includes, that are not installed."""
    own = EXTRAS[extra]
    absent = [package for package in own.packages if not is_installed(package)]
    return absent + [package for included in own.includes for package in absent_packages(included)]


def is_installed(package: str) -> bool:
    """Returns whether a package can be imported. Only its parents are imported, not the package itself."""
    if package in sys.modules:
        return sys.modules[package] is not None
    try:
        return find_spec(package) is not None
    except ImportError:  # of a parent
        return False


def _extra_of(module: str) -> str:
    """The extra that installs a module, by the module's own name or by a parent's; empty if there is none."""
    while module:
        for name, extra in EXTRAS.items():
            if module in extra.packages:
                return name
        module = module.rpartition(".")[0]
    return ""


def _line(module: str, what: str, extra: str) -> DependencyMissing:
    package = "PyTorch" if module == "torch" else module.partition(".")[0]
    return DependencyMissing(
        f"{package} is needed for {what} and is not installed; install it with: pip install 'fxtrace[{extra}]'",
        package=module,
    )
