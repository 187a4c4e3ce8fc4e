"""What only a process of its own can show: what it imports, signals, and the demo as a whole."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.conftest import Served

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails, as where it is not installed
from fxtrace.cli import app
try:
    app(sys.argv[1:])
finally:
    heavy = [name for name in ("sqlalchemy", "fxtrace.service.engine", "grpc") if name in sys.modules]
    print(*heavy, sep=" ", file=sys.stderr)
"""


MODEL = """
from dataclasses import dataclass

@dataclass
class Config:
    size: int = 1

def build(config): ...
def example_inputs(config): ...
"""


def without_torch(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *args], capture_output=True, text=True, check=False)


def test_help_imports_next_to_nothing() -> None:
    done = without_torch("--help")
    assert (done.returncode, done.stderr.split()) == (0, [])
    assert "Usage" in done.stdout


def test_a_server_is_asked_without_torch_or_database(served: Served) -> None:
    done = without_torch("tensor", "src_ids", "--trace", served.reference.id, "--server", served.address)
    assert (done.returncode, done.stderr.split()) == (0, ["grpc"])
    assert "[3 2 0 1 5 4]" in done.stdout


def test_a_store_is_read_without_torch(served: Served) -> None:
    store = str(served.engine._store.place)
    done = without_torch("explain", "1", "--trace", served.reference.id, "--store", store)
    assert (done.returncode, done.stderr.split()) == (0, ["fxtrace.service.engine"])
    assert "[3 2 0 1 5 4]" in done.stdout


def test_tracing_without_torch_says_what_is_missing(tmp_path: Path) -> None:
    done = without_torch("trace", "reference", "--store", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: PyTorch is needed for model 'reference' and is not installed; install it with: "
    )


def test_prints_its_version(run: Run) -> None:
    assert run("--version").stdout == "fxtrace 0.1.0\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_says_where_it_is_and_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    model = tmp_path / "mine.py"
    model.write_text(MODEL)
    command = [sys.executable, "-m", "fxtrace", "serve", "--port", "0", "--model", str(model), "--store", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("fxtrace serves mine, reference at 127.0.0.1:")
        process.send_signal(number)
        assert process.communicate() == ("", "")
    assert process.returncode == 0


def reachable(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_the_demo(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fxtrace", "demo", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    assert all(re.fullmatch(r"[a-z ]+ \.\.\.( \d+/\d+)?", line) for line in done.stderr.splitlines()), done.stderr
    lines = done.stdout.splitlines()
    assert "43/43 snapshots agree with the known shapes and values" in lines
    assert sum("✓ shape" in line for line in lines) == 43
    wrote = [Path(line.removeprefix("wrote ")) for line in lines if line.startswith("wrote ")]
    assert sorted(wrote) == sorted((tmp_path / "out").iterdir())
    assert {file.suffix for file in wrote} == {".svg", ".png", ".json"}
    graph = json.loads((tmp_path / "out" / "graph.json").read_text())
    assert sum(bool(node["roles"]) for node in graph["nodes"]) > 100
    address = lines[0].removeprefix("server at ")
    assert not reachable(address)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]  # its store is gone
    assert lines[-3] == "Try next:"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_stops_its_server(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "fxtrace", "demo", "--out", str(tmp_path / "out")]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("server at ").strip()
        assert reachable(address)
        process.send_signal(number)
        process.communicate()
    assert process.returncode == 128 + number
    assert not reachable(address)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
