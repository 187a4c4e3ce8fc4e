"""Locking a model file, and telling what moved after it was edited."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fxtrace
from fxtrace.errors import InvalidRequest
from fxtrace.lock import dumps, loads, make_lock
from tests.cli.conftest import Run
from tests.cli.conftest import run as run  # the fixture

MODEL = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Config:
    width: int = 8
    inner: int = 12
    heads: int = 2
    layers: int = 2
    length: int = 5

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (nn.Linear(config.width, config.width) for _ in range(4))
        self.up, self.down = nn.Linear(config.width, config.inner), nn.Linear(config.inner, config.width)
        self.one, self.two = nn.LayerNorm(config.width), nn.LayerNorm(config.width)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (each(x).view(b, n, self.heads, d // self.heads).transpose(1, 2) for each in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / (d // self.heads) ** 0.5, -1)
        x = self.one(x + self.o((weights @ v).transpose(1, 2).reshape(b, n, d)))
        return self.two(x + self.down(torch.relu(self.up(x))))

class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed = nn.Embedding(10, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return x

def build(config):
    return Net(config)

def example_inputs(config):
    return {"ids": torch.arange(config.length)[None] % 10}
"""
UP = "nn.Linear(config.width, config.inner), nn.Linear(config.inner, config.width)"
WIDER = "nn.Linear(config.width, 3 * config.inner), nn.Linear(3 * config.inner, config.width)"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model file, and the text of its lockfile."""
    file = tmp_path_factory.mktemp("locked") / "net.py"
    file.write_text(MODEL)
    return file, dumps(make_lock(str(file)))


def test_a_lock_says_what_everything_is_made_of(locked: tuple[Path, str]) -> None:
    lock = loads(locked[1])
    assert str(lock.tensors["roles", "encoder.1.self_attention.scores"]) == "float32  (batch, heads, length, length)"
    assert (
        str(lock.tensors["roles", "encoder.1.self_attention.key_heads"])
        == "float32  (batch, heads, length, width/heads)"
    )
    assert str(lock.tensors["inputs", "ids"]) == "int64  (batch, length)"
    assert str(lock.tensors["outputs", "0"]) == "float32  (batch, length, width)"
    assert str(lock.tensors["parameters", "blocks.0.up.weight"]) == "float32  (inner, width)"
    assert lock.configuration == {"width": 8, "inner": 12, "heads": 2, "layers": 2, "length": 5}
    assert {name for trial in lock.trials for name in trial} == {"width", "inner", "heads", "length"}


@pytest.mark.parametrize(
    ("old", "new", "moved", "causes", "told"),
    [
        ("", "", 0, set(), ""),
        ("torch.relu(self.up(x))", "self.up(x).relu()", 0, set(), ""),
        ("inner: int = 12", "inner: int = 16", 10, {("inner",)}, "inner) = 1×5×12 → 1×5×16 (because of inner)"),
        (
            "layers: int = 2",
            "layers: int = 3",
            42,
            {("layers",)},
            "not there → float32  (batch, length, width) = 1×5×8",
        ),
        (UP, WIDER, 10, {()}, "(batch, length, inner) = 1×5×12 → float32  (batch, length, 3*inner) = 1×5×36"),
        # The same sizes now, by another formula: only the trials can tell.
        (
            UP,
            UP.replace("config.inner", "(config.width + 4)"),
            10,
            {()},
            "→ float32  (batch, length, width + 4) = 1×5×12",
        ),
        ("return x\n\ndef", "return x.half()\n\ndef", 2, {()}, "float32  (batch, length, width) = 1×5×8 → float16"),
    ],
    ids=["nothing", "another spelling", "a default", "a layer", "a formula", "a formula, same sizes", "a dtype"],
)
def test_what_moved_is_told_with_its_reason(
    locked: tuple[Path, str], tmp_path: Path, old: str, new: str, moved: int, causes: set[tuple[str, ...]], told: str
) -> None:
    model, lock = tmp_path / "net.py", tmp_path / "shapes.lock"
    model.write_text(MODEL.replace(old, new))
    lock.write_text(locked[1].replace(str(locked[0]), str(model)))
    found = fxtrace.check_lock(lock)
    assert bool(found) == bool(moved)
    assert len(found.moves) == moved
    assert {move.causes for move in found.moves} <= causes
    assert any(told in str(move) for move in found.moves) or not moved


def test_a_project_is_held_to_its_lockfile(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(MODEL)
    assert run("lock", "net.py", "--set", "layers=1", "-o", "shapes.lock").exit_code == 0
    assert run("check").stdout == "shapes.lock: nothing moved\n"
    Path("net.py").write_text(MODEL.replace("inner: int = 12", "inner: int = 16"))
    result = run("check", "shapes.lock")
    assert result.exit_code == 1
    assert "inner: 12 → 16" in result.stdout
    assert "because of inner" in result.stdout
    told = json.loads(run("check", "--json").stdout)["shapes.lock"]
    assert {tuple(move["causes"]) for move in told["moves"]} == {("inner",)}


def test_the_readme_s_pytest_line_holds_a_project(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(def test_shapes.*?)```", readme, re.DOTALL)
    assert block is not None
    (tmp_path / "test_shapes.py").write_text(f"import fxtrace\n\n{block[1]}")
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "shapes.lock").write_text("fxtrace-lock 1\nmodel net.py\n[inputs]\nids  int64  (1, 5?)\n[end]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "not there" in done.stdout
    assert "parameter embed.weight: not there" in done.stdout


def test_the_readme_s_hook_runs_the_check(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    entry = re.search(r"repos: \[.*entry: (\S+ \S+), files: '(.*)', pass_filenames: false", readme)
    assert entry is not None
    program, command = entry[1].split()
    assert re.search(entry[2], "net.py")
    assert re.search(entry[2], "shapes.lock")
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "shapes.lock").write_text("fxtrace-lock 1\nmodel net.py\n[inputs]\nids  int64  (1, 5?)\n[end]\n")
    done = subprocess.run([sys.executable, "-m", program, command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "shapes.lock: " in done.stdout


def test_a_model_that_is_gone_or_refuses_is_told_with_the_lockfile(run: Run, tmp_path: Path) -> None:
    model, lock = tmp_path / "net.py", tmp_path / "my.lock"
    lock.write_text(f"fxtrace-lock 1\nmodel {model}\n[settings]\nheads = 3\n[end]\n")
    gone = run("check", lock).stderr
    assert f"{lock} cannot be checked: no model file at {model}" in gone
    model.write_text(MODEL)
    refused = run("check", lock, "--json")
    assert refused.exit_code == 1
    told = json.loads(refused.stderr)
    assert told["metadata"]["lock"] == str(lock)
    assert "shape '[1, 5, 3, 2]' is invalid" in told["message"]


def test_a_lockfile_that_is_not_there_is_told(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot read the lockfile .*: No such file or directory"):
        fxtrace.check_lock(tmp_path / "none.lock")
    (tmp_path / "bad.lock").write_bytes(b"\xff")
    result = run("check", tmp_path / "bad.lock")
    assert result.exit_code == 1
    assert "it is not text in UTF-8" in result.stderr
