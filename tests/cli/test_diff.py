from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.conftest import Served

TINY = Path(__file__).parents[1] / "service" / "tiny.py"


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_comparison_is_grouped_by_field(run: Run, served: Served, where: str) -> None:
    place = ("--store", served.engine.store.place) if where == "here" else ("--server", served.address)
    model = str(TINY) if where == "here" else "tiny"
    sides = (model, f"{model} --set width=6 --set scale=2.5")
    result = run("diff", *sides, *place)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = " ".join(result.stdout.split())
    assert "4 → 6 explains 8 nodes" in lines
    assert "scale 1.0 → 2.5 explains none" in lines or "scale 1 → 2.5 explains none" in lines
    assert "0 unexplained" in lines
    assert "Because of width" in lines
    told = json.loads(run("diff", *sides, *place, "--json").stdout)
    assert (told["explained"], told["unexplained"]) == ({"width": 8}, 0)
    assert len(told["diff"]["pairs"]) == told["diff"]["before"]["nodes"]


@pytest.mark.parametrize(("ending", "begin"), [("dot", b"digraph"), ("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_draws(run: Run, tmp_path: Path, ending: str, begin: bytes) -> None:
    file = tmp_path / f"diff.{ending}"
    result = run("diff", TINY, f"{TINY} --set scale=2", "-o", file, "--theme", "dark")
    assert (result.exit_code, result.stderr) == (0, "")
    assert file.read_bytes().startswith(begin)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("", "latest", "expected a trace or a model, got nothing"),
        ("latest", "latest", "there are no traces yet"),
        (str(TINY), f"{TINY} --get x", "expected a model and settings, as in"),
        (str(TINY), f"{TINY} --set widht=3", "did you mean 'width'"),
        ("abcd", "latest", "no trace's id starts with 'abcd'"),
        ("refrence", "reference", "did you mean 'reference'"),
        (f"{TINY} 'x", "reference", "a quotation is not closed"),
    ],
)
def test_bad_sides_are_told(run: Run, before: str, after: str, told: str) -> None:
    result = run("diff", before, after)
    assert result.exit_code == 1
    assert told in result.stderr
