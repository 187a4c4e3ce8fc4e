"""For all tests: property tests take no notice of the clock, a server that many tests share, and no server may give an
error that the protos do not list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from fxtrace.errors import FxtraceError
    from fxtrace.ir.trace import TraceInfo
    from fxtrace.service.engine import Engine

settings.register_profile("fxtrace", deadline=None, max_examples=40)
settings.load_profile("fxtrace")

MODELS = Path(__file__).parent / "service"


@pytest.fixture(scope="session")
def errors_told() -> Iterator[list[tuple[str, str]]]:
    """(RPC, reason) of every error that a server in this process answers with."""
    from fxtrace.service.interceptors import Edge

    told: list[tuple[str, str]] = []
    tell = Edge._told

    def note(edge: Edge, raised: BaseException, request_id: str, method: str) -> FxtraceError:
        error = tell(edge, raised, request_id, method)
        told.append((method, error.reason))
        return error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Edge, "_told", note)
        yield told


@pytest.fixture(autouse=True)
def errors_are_listed(errors_told: list[tuple[str, str]]) -> Iterator[None]:
    """Fails a test whose server gave an error that the RPC's comment in the protos does not list."""
    errors_told.clear()
    yield
    for method, reason in errors_told:
        service, _, name = method.strip("/").rpartition("/")
        if service == "fxtrace.v1.TraceService":
            from tests.protos.compiled import listed

            errors = listed()[""] | listed()[name]
            assert reason in {each for _, each in errors}, f"{name} ended with {reason}, which its comment lacks"


@dataclass(frozen=True)
class Served:
    """A server on a loopback port, the engine behind it, and traces of its models, which no test deletes."""

    engine: Engine
    address: str
    reference: TraceInfo
    dtypes: TraceInfo


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    from fxtrace.ir.trace import TraceRequest
    from fxtrace.models import Registry
    from fxtrace.service.engine import Engine
    from fxtrace.service.server import serving

    models = Registry.installed()
    for name in ("decoder", "dtypes", "slow", "tiny"):
        models.add_file(MODELS / f"{name}.py")
    with Engine.open(tmp_path_factory.mktemp("served"), models) as engine, serving(engine) as address:
        reference, dtypes = (engine.create_trace(TraceRequest(name)) for name in ("reference", "dtypes"))
        yield Served(engine, address, reference, dtypes)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--refresh-goldens", action="store_true", help="write the golden DOT sources anew")
