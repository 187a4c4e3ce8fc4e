from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fxtrace.cli.sweep_files import check_output, write_sweep
from tests.cli.conftest import Run
from tests.conftest import MODELS, Served

SWEPT = MODELS / "swept.py"
GRID = ("--grid", "width=4,8,9", "--grid", "activation=relu,gelu")


def test_a_table_for_people(run: Run) -> None:
    shown = run("sweep", SWEPT, *GRID, "--node", "last").stdout
    assert "6 configurations: 4 accepted, 2 not" in shown
    assert "RuntimeError: 2 heads do not divide 9" in shown
    assert "3×2×8" in shown


def test_json_for_machines(run: Run) -> None:
    told = json.loads(run("sweep", SWEPT, *GRID, "--set", "layers=2", "--node", "last", "--json").stdout)
    assert [row["configuration"] for row in told["rows"]][:2] == [
        {"width": 4, "activation": "relu"},
        {"width": 4, "activation": "gelu"},
    ]
    assert told["rows"][0] == {
        "index": 0,
        "configuration": {"width": 4, "activation": "relu"},
        "how": "propagation",
        "parameters": 2 * (4 * 4 + 4) + 2 * 4 + 4,
        "activation_bytes": 4 * (2 * 2 * 3 * 4 + 3 * 2 * 4),
        "peak_activation_bytes": 4 * (3 * 4 + 3 * 2 * 4),  # the last activation and the result
        "flops": 2 * (2 * 3 * 4 * 4 + 3 * 2 * 2 * 4),
        "shapes": {"last": [3, 2, 4]},
    }
    assert told["rows"][4]["reason"] == "RuntimeError: 2 heads do not divide 9"


def test_formulas_are_confirmed_on_a_stated_sample(run: Run) -> None:
    shown = run("sweep", SWEPT, "--grid", "width=4..80:2", "--sample", "5", "--seed", "3").stdout
    assert "5 of them, drawn at random (seed 3), by propagation" in shown
    assert "39 configurations: 39 accepted, 0 not; the first 20 are shown" in shown


@pytest.mark.parametrize("ending", ["csv", "json", "parquet", "svg", "png", "pdf"])
def test_files(run: Run, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"sweep.{ending}"
    assert f"wrote {out}" in run("sweep", SWEPT, *GRID, "--node", "last", "-o", out).stdout
    assert list(tmp_path.glob("*sweep*")) == [out]
    data = out.read_bytes()
    match ending:
        case "csv":
            first, *_, last = csv.DictReader(data.decode().splitlines())
            assert (first["width"], first["activation"], first["parameters"], first["last"]) == (
                "4",
                "relu",
                "32",
                "3x2x4",
            )
            assert (last["width"], last["reason"], last["flops"]) == ("9", "RuntimeError: 2 heads do not divide 9", "")
        case "json":
            assert len(json.loads(data)["rows"]) == 6
        case "parquet":
            parquet = pytest.importorskip("pyarrow.parquet")
            table = parquet.read_table(out).to_pylist()
            assert [row["width"] for row in table] == [4, 4, 8, 8, 9, 9]
            assert (table[2]["shape last"], table[4]["flops"]) == ([3, 2, 8], None)
        case "svg":
            assert all(word in data.decode() for word in ("Activation memory by width", "activation", "gelu", "</svg>"))
        case "png":
            assert data.startswith(b"\x89PNG")
        case "pdf":
            assert data.startswith(b"%PDF")


def test_a_plot_is_the_same_each_time(run: Run, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        run("sweep", SWEPT, *GRID, "--y", "flops", "--x", "width", "-o", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--grid", "widht=1,2"], "did you mean 'width'"),
        (["--grid", "width=4..1"], "4..1 is empty"),
        (["--grid", "width=1,2", "--grid", "width=3"], "the field is given twice"),
        (["--grid", "width=1..1000000000"], "1,000,000,000 configurations"),
        (["--grid", "width="], "'width': expected at least one value, got none"),
        (["--grid", "width=1..2.5"], "'1..2.5' is no range; a range is FIRST..LAST or FIRST..LAST:STEP, of integers"),
        (["--grid", "width=NaN"], "expected values that JSON has, got nan"),
        (["--grid", "width=4", "-o", "sweep.xls"], "a file that ends in .csv, .parquet, .json"),
        (["--grid", "width=4", "-o", "/nowhere/sweep.csv"], "there is no folder /nowhere"),
        (["--grid", "width=4", "--x", "heads"], "no field of the grid named 'heads'"),
        (["--grid", "width=4", "--y", "flop"], "did you mean 'flops'"),
        (["--grid", "activation=relu,gelu", "-o", "sweep.svg"], "nothing to plot"),
    ],
)
def test_bad_input_is_one_clear_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("sweep", SWEPT, *args)
    assert result.exit_code == 1
    assert problem in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("*sweep*"))


def test_a_sweep_of_a_server(run: Run, served: Served) -> None:
    args = ("sweep", "tiny", "--grid", "width=4,8", "--json")
    there, here = run(*args, "--server", served.address), run("sweep", MODELS / "tiny.py", *args[2:])
    assert json.loads(there.stdout) == json.loads(here.stdout)


def test_an_interrupt_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    out = tmp_path / "sweep.csv"
    out.write_text("before")
    log = tmp_path / "log"
    command = [
        sys.executable,
        "-m",
        "fxtrace",
        "sweep",
        str(MODELS / "slow.py"),
        "--grid",
        "steps=20..50",
        "-o",
        str(out),
    ]
    command += ["--set", f"log={log}", "--store", str(tmp_path / "store")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not log.exists():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert out.read_text() == "before"
    assert sorted(path.name for path in tmp_path.glob("*sweep*")) == ["sweep.csv"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    from fxtrace.cli.sweep import Swept
    from fxtrace.errors import OptionInvalid

    (tmp_path / "sweep.csv").mkdir()
    swept = Swept(("width",), ())
    check_output(swept, tmp_path / "sweep.csv", "", "flops")
    with pytest.raises(OptionInvalid, match="cannot write"):
        write_sweep(swept, tmp_path / "sweep.csv", "", "flops")
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.csv"]
