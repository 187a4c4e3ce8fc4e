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
    assert result.exit_code == 0
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
    assert result.exit_code == 0
    assert file.read_bytes().startswith(begin)


def test_a_model_file_s_traces_are_found_by_the_start_of_their_ids(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "mine.py"
    model.write_text(TINY.read_text())
    ids = [json.loads(run("trace", model, "--set", f"width={n}", "--json").stdout)["id"] for n in (4, 5)]
    short = next(n for n in range(1, 32) if ids[0][:n] != ids[1][:n])
    result = run("diff", ids[0][:short], ids[1][:short])
    assert result.exit_code == 0
    assert "4 → 5 explains 8 nodes" in " ".join(result.stdout.split())
    (tmp_path / "store" / "index.sqlite3").rename(tmp_path / "lost")  # and with it, where the model was
    result = run("diff", ids[0], ids[1])
    assert "trace a model by its name, its file (mine.py) or its import path" in " ".join(result.stdout.split())
    assert run("diff", ids[0], ids[0]).stdout.splitlines()[0].endswith(" nodes equal, 0 changed, 0 added, 0 removed")


def test_nodes_without_a_role_are_no_wall_of_rows(run: Run, served: Served) -> None:
    place = ("--store", served.engine.store.place)
    recorded = json.loads(run("trace", "reference", "--rung", "record", "--json", *place).stdout)["id"]
    lines = run("diff", served.reference.id, recorded, *place).stdout.splitlines()
    assert any("without a role: 87 constant" in line for line in lines)
    assert any("without a role: 51 size" in line for line in lines)
    assert len(lines) < 20


def test_fields_of_one_model_alone_are_told_in_a_row(run: Run, served: Served) -> None:
    place = ("--store", served.engine.store.place)
    lines = run("diff", served.reference.id, "reference --set d_ff=8", *place).stdout.splitlines()
    assert not any("only" in line for line in lines)
    lines = run("diff", served.reference.id, served.dtypes.id, *place).stdout.splitlines()
    assert sum(" only before " in line for line in lines) == 1
    assert "d_ff" in next(line for line in lines if " only before " in line)


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
