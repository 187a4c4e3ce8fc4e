from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fxtrace.export import FORMATS
from tests.cli.conftest import Run
from tests.cli.terminal import on_terminal
from tests.conftest import Served

TINY = Path(__file__).parents[1] / "service" / "tiny.py"
ROLE = "decoder.0.cross_attention.weights"


@pytest.mark.parametrize("ending", FORMATS)
def test_writes_the_same_here_and_from_a_server(run: Run, served: Served, tmp_path: Path, ending: str) -> None:
    tensor = ("--tensor", ROLE) if FORMATS[ending].tensors else ()
    args = ("-t", served.reference.id, *tensor)
    here, there = tmp_path / f"here{ending}", tmp_path / f"there{ending}"
    told = run("export", here, *args, "--store", served.engine.store.place)
    assert (told.exit_code, told.stderr) == (0, "")
    assert told.stdout == f"wrote {here} ({here.stat().st_size:,} bytes)\n"
    told = run("export", there, *args, "--server", served.address, "--json")
    assert json.loads(told.stdout) == {
        "file": str(there),
        "format": FORMATS[ending].name,
        "nbytes": there.stat().st_size,
    }
    assert here.read_bytes() == there.read_bytes()


def test_one_tensor_by_its_role(run: Run, served: Served, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    run("export", file, "--format", "npy", "--tensor", ROLE, "-t", served.reference.id, "--server", served.address)
    wanted = served.engine.read_tensor(served.reference.id, ROLE)
    assert np.array_equal(np.load(file), wanted)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("x.grapml",), 1, "did you mean '.graphml'"),
        (("x.json", "--format", "grphml"), 1, "did you mean 'graphml'"),
        (("x.json", "--tensor", ROLE), 1, "holds the whole graph, not a tensor"),
        (("x.npy", "--tensor", "softmaks"), 1, "no tensor or role named 'softmaks'; did you mean 'softmax'"),
        (("x.npy",), 1, "the model returns 3"),
        (("no/x.json",), 1, "No such file or directory"),
        (("x.json", "-t", "f" * 32), 1, "no trace with the id"),
        ((), 2, "Missing argument 'FILE'"),
    ],
)
def test_errors_are_one_line(
    run: Run,
    served: Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (("--server", served.address), ("--store", served.engine.store.place)):
        trace = () if "-t" in args else ("-t", served.reference.id)
        result = run("export", *args, *trace, *place)
        assert result.exit_code == code
        assert said in result.stderr
        assert code == 2 or result.stderr.count("\n") == 1
        told = run("export", *args, *trace, *place, "--json")
        assert code == 2 or said in json.loads(told.stderr)["message"]
    assert not list(tmp_path.iterdir())


def test_shapes_only_has_one_clear_error(run: Run, tmp_path: Path) -> None:
    assert run("trace", TINY, "--shapes-only").exit_code == 0
    assert run("export", tmp_path / "x.json").exit_code == 0
    result = run("export", tmp_path / "x.safetensors")
    assert result.exit_code == 1
    assert "holds shapes only" in result.stderr
    assert not (tmp_path / "x.safetensors").exists()


def test_a_step_follows(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXTRACE_STORE", str(tmp_path / "store"))
    shown = on_terminal(
        ("trace", str(TINY)), ("export", "x.graphml"), ("export", "x.npy", "--tensor", "x"), folder=tmp_path
    )
    assert [each.code for each in shown] == [0, 0, 0]
    steps = [step.rpartition("fxtrace ")[2] for each in shown[1:] for step in each.steps]
    assert steps == ["graph", "explain x"]
