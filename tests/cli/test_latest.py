"""Which trace `latest` is, that a trace is reused without its model, and that a trace remembers its model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.conftest import Served

TINY = Path(__file__).parent.parent / "service" / "tiny.py"

MODEL = """
from dataclasses import dataclass

import torch

from parts import Half

@dataclass
class Config:
    width: int = 8
    deep: bool = False

def build(config):
    print("building")
    return Half(config.width)

def example_inputs(config):
    return {"x": torch.ones(3, config.width)}
"""
PARTS = """
import torch

class Half(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = torch.nn.Linear(width, width // 2)

    def forward(self, x):
        return self.linear(x)
"""
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails
from fxtrace.cli import app
app(sys.argv[1:])
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file with a neighbour."""
    (tmp_path / "parts.py").write_text(PARTS)
    (tmp_path / "mine.py").write_text(MODEL)
    return tmp_path / "mine.py"


def traced(run: Run, *args: object) -> dict[str, Any]:
    result = run("trace", *args, "--json")
    assert result.exit_code == 0, result.stderr
    told: dict[str, Any] = json.loads(result.stdout)  # what a model prints is not among it
    return told


def listed(run: Run, *args: object) -> list[str]:
    return [trace["id"] for trace in json.loads(run("traces", "--json", *args).stdout)]


# ------------------------------------------------------------------------------------------------------------ reused


def test_the_same_request_is_answered_without_the_model(run: Run, model: Path, tmp_path: Path) -> None:
    first = traced(run, model, "--set", "width=6")
    assert not first["reused"]
    command = ("trace", str(model), "--set", "width=6", "--json", "--store", str(tmp_path / "store"))
    again = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *command], capture_output=True, text=True, check=True)
    assert json.loads(again.stdout) == {**first, "reused": True}
    assert "traced before" in run("trace", model, "--set", "width=6").stdout


@pytest.mark.parametrize("changed", ["mine.py", "parts.py"])
def test_a_changed_source_is_another_trace(run: Run, model: Path, changed: str) -> None:
    first = traced(run, model)
    file = model.with_name(changed)
    text = file.read_text()
    file.write_text(text.replace("width // 2", "width // 4").replace('x": torch.ones(3', 'x": torch.ones(5'))
    other = traced(run, model)
    assert not other["reused"]
    assert other["id"] != first["id"]
    assert other["node_count"] == first["node_count"]
    assert other["tensor_bytes"] != first["tensor_bytes"]  # the neighbour was run anew, too
    file.write_text(text)
    assert traced(run, model) == {**first, "reused": True}


@pytest.mark.parametrize(
    "options",
    [
        ["--set", "width=10"],
        ["--seed", "1"],
        ["--shapes-only"],
        ["--training"],
        ["--rung", "record"],
        ["--shape", "x=7,8"],
        ["--weightless"],
        ["--unfused"],
    ],
    ids=" ".join,
)
def test_another_request_is_another_trace(run: Run, model: Path, options: list[str]) -> None:
    first, other = traced(run, model), traced(run, model, *options)
    assert not other["reused"]
    assert first["id"] != other["id"]
    assert traced(run, model, *options)["reused"]


def test_a_deleted_or_damaged_trace_is_made_again(run: Run, model: Path, tmp_path: Path) -> None:
    first = traced(run, model)
    run("delete", first["id"])
    assert not traced(run, model)["reused"]
    [file] = (tmp_path / "store" / "tensors").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    again = traced(run, model)
    assert (again["id"], again["reused"]) == (first["id"], False)
    assert run("explain", "output").exit_code == 0


def test_a_model_that_reads_a_file_is_asked_each_time(run: Run, tmp_path: Path) -> None:
    (tmp_path / "width.txt").write_text("8")
    model = tmp_path / "reads.py"
    width = f"int(__import__('pathlib').Path({str(tmp_path / 'width.txt')!r}).read_text())"
    text = TINY.read_text()
    assert "width: int = " in text
    model.write_text("\n".join(f"    width: int = {width}" if "width: int =" in x else x for x in text.splitlines()))
    first = traced(run, model)
    assert traced(run, model)["reused"]  # after it was loaded
    (tmp_path / "width.txt").write_text("10")
    other = traced(run, model)
    assert (other["reused"], other["configuration"]["width"]) == (False, 10)
    assert other["id"] != first["id"]


# ------------------------------------------------------------------------------------------------------------ latest


def test_latest_is_the_trace_last_made_or_asked_for(run: Run) -> None:
    one, two = traced(run, TINY)["id"], traced(run, TINY, "--seed", 1)["id"]

    def latest() -> str:
        return str(json.loads(run("tensor", "x", "--json").stdout)["trace"])

    assert latest() == two
    assert traced(run, TINY)["id"] == one
    assert latest() == one
    assert listed(run) == [two, one]
    run("delete", one)
    assert latest() == two


@pytest.mark.parametrize("where", ["here", "server"])
def test_by_products_are_not_kept_and_never_the_latest(run: Run, served: Served, where: str) -> None:
    place = ("--server", served.address) if where == "server" else ("--store", served.engine.store.place)
    mine = traced(run, "tiny" if where == "server" else TINY, "--seed", 77, *place)["id"]
    before = listed(run, *place)
    for command in (
        ("diff", "tiny --set width=9", "tiny --set width=11"),
        ("diff", mine, "--set", "width=9"),
        ("diff", "reference", "--set", "d_ff=100"),
        ("diff", "reference", "reference"),  # which is there: it stays
        ("formulas", "tiny --set width=13"),
    ):
        words = [word.replace("tiny", str(TINY)) if where == "here" else word for word in command]
        result = run(*words, *place, "--json")
        assert result.exit_code == 0, result.stderr
        assert listed(run, *place) == before
        assert json.loads(run("tensor", "x", "--json", *place).stdout)["trace"] == mine
    assert served.reference.id in before


def test_a_side_with_other_settings(run: Run) -> None:
    wide = traced(run, TINY, "--set", "width=6", "--seed", "3")
    told = json.loads(run("diff", "latest", "--set", "width=7", "--json").stdout)
    assert told["before"] == wide["id"]
    assert told["diff"]["fields"] == [{"name": "width", "before": 6, "after": 7}]
    assert told["unexplained"] == 0
    assert run("diff", TINY).exit_code == 2
    assert "did you mean 'width'" in run("diff", "latest", "--set", "widht=7").stderr


# ------------------------------------------------------------------------------------------- the model is remembered


def test_a_trace_remembers_its_model(run: Run, model: Path) -> None:
    traced(run, model)
    assert json.loads(run("formulas", "--json").stdout)["sizes"]
    assert "width" in run("explain", "linear").stdout
    told = json.loads(run("diff", "latest", "--set", "width=6", "--json").stdout)
    assert told["unexplained"] == 0


def test_a_model_that_changed_is_told(run: Run, model: Path) -> None:
    traced(run, model)
    model.with_name("parts.py").write_text(PARTS.replace("// 2", "// 4"))
    result = run("formulas")
    assert result.exit_code == 1
    assert f"was made of {model}, which has changed since; trace it again with `fxtrace trace {model}`" in result.stderr


def test_a_model_that_is_gone_is_told(run: Run, model: Path) -> None:
    traced(run, model)
    model.unlink()
    for result in (run("formulas"), run("diff", "latest", "--set", "width=6")):
        assert result.exit_code == 1
        assert f"{model}" in result.stderr
    assert run("graph").exit_code == 0


def test_a_file_named_like_an_installed_model_is_meant(run: Run, model: Path) -> None:
    other = model.rename(model.with_name("reference.py"))
    traced(run, other)
    found = json.loads(run("formulas", "--json").stdout)
    assert "width" in json.dumps(found["shapes"]["linear"])


def test_a_server_does_not_know_where_models_are(run: Run, served: Served, model: Path) -> None:
    mine = traced(run, model, "--store", served.engine.store.place)["id"]
    result = run("formulas", mine, "--server", served.address)
    assert result.exit_code == 1
    assert str(model.parent) not in result.stderr
    assert "mine" in result.stderr
