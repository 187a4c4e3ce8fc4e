from __future__ import annotations

import json
from pathlib import Path

import pytest

from fxtrace.cli.output import progress_bar
from fxtrace.ir.trace import Progress
from tests.cli.conftest import Run
from tests.cli.terminal import on_terminal

TINY = Path(__file__).parents[1] / "service" / "tiny.py"
NOISY = """
import sys, torch
from dataclasses import dataclass

@dataclass
class Config:
    width: int = 2

def build(config):
    print("building it")
    return torch.nn.Linear(config.width, 2)

def example_inputs(config):
    return {"input": torch.ones(1, config.width)}
"""


def test_a_pipe_gets_a_line_when_a_stage_begins(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as report:
        for _ in range(100):  # stages may take turns
            report(Progress("build"))
            report(Progress("run", 1, 9))
        report(Progress("a stage of a later version"))
    lines = ["building the model ...", "running the model ... 1/9", "a stage of a later version ..."]
    captured = capsys.readouterr()
    assert captured.err.splitlines() == lines
    assert captured.out == ""


def test_hidden_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(hidden=True) as report:
        report(Progress("build"))
    assert capsys.readouterr() == ("", "")


def test_what_a_model_prints_is_no_answer(run: Run, tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    result = run("trace", tmp_path / "noisy.py", "--json")
    assert json.loads(result.stdout)["model"] == "noisy"
    assert "building it" in result.stderr


def test_a_bar_leaves_nothing_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXTRACE_STORE", str(tmp_path / "store"))
    [shown] = on_terminal(("trace", TINY))
    assert shown.code == 0
    assert not any(stage in shown.text for stage in ("building the model", "starting", "━"))


def test_snapshots_of_another_model(run: Run) -> None:
    assert run("trace", TINY).exit_code == 0
    short = run("snapshots").stdout
    assert "none of 43 snapshots" in short
    assert "not here" not in short
    assert "no attention" in short
    assert run("snapshots", "--all").stdout.count("not here") == 43
    assert len(json.loads(run("snapshots", "--json").stdout)) == 43
    refused = json.loads(run("graph", "--refused", "--json").stdout)
    table = run("graph", "--refused").stdout
    assert refused
    assert all(each["role"] in table and each["reason"] in table for each in refused)
    summary = run("trace", TINY).stdout
    assert f"{len(refused)} roles looked for and not given: `fxtrace graph --refused` says why" in summary
    assert "no attention" in summary


@pytest.mark.parametrize("args", [("snapshots",), ("graph",), ("traces",), ("store", "ls"), ("models", "reference")])
def test_a_pipe_gets_no_trailing_blanks(run: Run, args: tuple[str, ...]) -> None:
    assert run("trace", "reference").exit_code == 0
    lines = run(*args).stdout.splitlines()
    assert lines
    assert not [line for line in lines if line != line.rstrip()]
    assert "─" not in "".join(lines)
