"""For all tests: property tests take no notice of the clock, and a server that many tests share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from fxtrace.service.engine import Engine
    from fxtrace.trace import Trace

settings.register_profile("fxtrace", deadline=None, max_examples=40)
settings.load_profile("fxtrace")

MODELS = Path(__file__).parent / "service"


@dataclass(frozen=True)
class Served:
    """A server on a loopback port, the engine behind it, and traces of its models, which no test deletes."""

    engine: Engine
    address: str
    reference: Trace
    dtypes: Trace


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    from fxtrace.models import Registry
    from fxtrace.service.engine import Engine
    from fxtrace.service.server import serving
    from fxtrace.trace import TraceRequest

    models = Registry.installed()
    for name in ("decoder", "dtypes", "slow", "tiny"):
        models.add_file(MODELS / f"{name}.py")
    with Engine.open(tmp_path_factory.mktemp("served"), models) as engine, serving(engine) as address:
        reference, dtypes = (engine.create_trace(TraceRequest(name)) for name in ("reference", "dtypes"))
        yield Served(engine, address, reference, dtypes)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--refresh-goldens", action="store_true", help="write the golden DOT sources anew")
