from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fxtrace.client import Client
from fxtrace.errors import CaptureFailed, FxtraceError, ModelInvalid, NameInvalid, StoreDamaged, Unmet
from fxtrace.ir.trace import TraceRequest
from fxtrace.models import Registry
from fxtrace.service.engine import Engine
from fxtrace.service.redact import redact, without_paths
from fxtrace.service.server import serving
from fxtrace.sweep import SweepRequest, parse_grid
from tests.conftest import MODELS

LEAKY = """
from dataclasses import dataclass
import torch

@dataclass
class Config:
    where: str = "build"

class Model(torch.nn.Module):
    def forward(self, x):
        open("{folder}/secret/weights.bin")

def build(config):
    if config.where == "build":
        open("{folder}/secret/weights.bin")
    return Model()

def example_inputs(config):
    return {{"x": torch.zeros(2)}}
"""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read /srv/models/mine.py: no", "cannot read …/mine.py: no"),
        ("File '/srv/a b'", "File '…/a b'"),
        ("(opening postgresql+psycopg://me:***@db/fxtrace#s3://traces/mine)", "(opening …/mine)"),
        ("(opening sqlite:////srv/index.sqlite3#/srv/tensors)", "(opening …/tensors)"),
        ("see https://example.org/a/b and and/or 1/2", "see https://example.org/a/b and and/or 1/2"),
        ("at /srv/x/y.py:12", "at …/y.py:12"),
        ("FileNotFoundError: [Errno 2] '/secret/'", "FileNotFoundError: [Errno 2] '/secret/'"),
    ],
)
def test_of_a_path_only_the_end_is_shown(text: str, shown: str) -> None:
    assert without_paths(text) == shown


def test_what_a_caller_sent_is_said_back_as_it_was() -> None:
    ours = Unmet("cannot write /srv/a/b", folder="/srv/a")
    theirs = NameInvalid("got '/etc/passwd'", name="/etc/passwd")
    assert (redact(ours), ours.message, ours.metadata, str(ours)) == (
        True,
        "cannot write …/b",
        {"folder": "…/a"},
        "cannot write …/b",
    )
    assert (redact(theirs), theirs.message) == (False, "got '/etc/passwd'")


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("leaky")
    (folder / "leaky.py").write_text(LEAKY.format(folder=folder))
    (folder / "broken.py").write_text(f"open({str(folder / 'secret' / 'weights.bin')!r})")
    models = Registry()
    for name in ("leaky", "broken"):
        models.offer(str(folder / f"{name}.py"))
    with Engine.open(folder / "store", models) as engine, serving(engine) as address:
        yield folder, address


def test_no_caller_learns_where_the_server_s_files_are(
    leaky: tuple[Path, str], served: object, caplog: pytest.LogCaptureFixture
) -> None:
    folder, address = leaky
    told: list[FxtraceError] = []
    with Client(address) as client:
        summaries = [model.summary for model in client.list_models()]
        assert any("weights.bin" in summary for summary in summaries)
        for request in (
            TraceRequest("broken"),
            TraceRequest("leaky"),
            TraceRequest("leaky", {"where": "forward"}),
        ):
            with pytest.raises((ModelInvalid, CaptureFailed), match=r"weights\.bin") as e:
                client.create_trace(request)
            told.append(e.value)
        (swept,) = client.sweep_shapes(SweepRequest("leaky", parse_grid(["where=build"])))
        assert "weights.bin" in swept.rows[0].reason
        summaries.append(swept.rows[0].reason)
        with Engine.open(folder / "store") as other:
            trace = other.create_trace(TraceRequest("reference"))
        (file,) = (folder / "store" / "tensors").glob(f"{trace.id}*")
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(StoreDamaged) as damaged:
            client.get_graph(trace.id)
        told.append(damaged.value)
    for text in summaries + [f"{error.message} {error.metadata} {error.field}" for error in told]:
        assert str(folder) not in text
        assert "Traceback" not in text
        assert ".py:" not in text.replace("leaky.py:", "")
    log = "\n".join(record.exc_text or "" for record in caplog.records)
    assert str(folder / "secret") in log
    logged = {str(r.args["request"]) for r in caplog.records if isinstance(r.args, dict) and r.exc_info}
    assert {error.request_id for error in told} <= logged


def test_nor_from_what_a_reply_says_of_a_model_s_errors(tmp_path: Path) -> None:
    file = tmp_path / "tiny.py"
    file.write_text((MODELS / "tiny.py").read_text())
    whole, broken = Registry(), Registry()
    for registry in (whole, broken):
        registry.offer(str(file))
    with Engine.open(tmp_path / "store", whole) as engine:
        traces = [engine.create_trace(TraceRequest("tiny", {"width": width})).id for width in (4, 5)]
    file.write_text(f"open({str(tmp_path / 'weights.bin')!r})")
    with Engine.open(tmp_path / "store", broken) as engine, serving(engine) as address, Client(address) as client:
        notes = " ".join(client.diff_traces(*traces).notes)
    assert "weights.bin" in notes
    assert str(tmp_path) not in notes
