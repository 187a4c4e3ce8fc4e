from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from fxtrace.cli.steps import short_ids
from tests.cli.conftest import Run
from tests.cli.terminal import Shown, on_terminal, words_of

TINY = Path(__file__).parents[1] / "service" / "tiny.py"
ROLE = "decoder.0.cross_attention.weights"

# On one store, in this order; the steps that a group's commands print are run before the next group.
GROUPS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("models",), ("models", "reference"), ("traces",), ("store", "ls")),
    (
        ("trace", str(TINY)),
        ("snapshots",),
        ("graph",),
        ("graph", "--refused"),
        ("explain", "ids"),
        ("tensor", "x"),
        ("models", str(TINY)),
    ),
    (
        ("trace", "reference"),
        ("snapshots",),
        ("snapshots", "--all"),
        ("explain", "34"),
        ("explain", ROLE),
        ("explain", "decoder.0"),
        ("explain", "d_model"),
        ("graph",),
        ("graph", "--role", "decoder.0"),
        ("query", 'kind == "softmax"'),
        ("query", "rank == 9"),
        ("query", "--path", "src_ids", ROLE),
        ("tensor", ROLE),
        ("tensor", ROLE, "--slice", "0"),
        ("tensor", ROLE, "-o", "weights.npy"),
        ("render", "-o", "model.dot"),
        ("export", "model.graphml"),
        ("render", "-o", "model.dot", "--depth", "1", "--module", "dec_layers"),
        ("diff", "reference", "reference --set d_ff=64"),
        ("diff", "reference", "reference --set d_ff=64", "-o", "diff.dot"),
        ("sweep", "reference", "--grid", "d_ff=64,128"),
        ("sweep", "reference", "--grid", "d_ff=64,128", "-o", "sweep.csv"),
        ("formulas",),
        ("store", "pin", "latest"),
        ("store", "unpin", "latest"),
        ("store", "verify"),
        ("store", "gc"),
        ("traces",),
        ("keys", "new", "alice", "--scope", "read", "--keys", "keys.json"),
    ),
    (("trace", "reference", "--shapes-only"), ("explain", ROLE), ("explain", "34"), ("snapshots",)),
    (("delete", "latest"),),
)


class Done(NamedTuple):
    command: tuple[str, ...]
    shown: Shown


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("session")


@pytest.fixture(scope="module")
def session(folder: Path) -> tuple[list[Done], list[Done]]:
    """What every command of `GROUPS` showed, and what the steps showed that they named."""
    commands, steps = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FXTRACE_STORE", str(folder / "store"))
        for group in GROUPS:
            commands += list(map(Done, group, on_terminal(*group, folder=folder)))
            lines = dict.fromkeys(step for done in commands[-len(group) :] for step in done.shown.steps)
            named = [tuple(words_of(line)) for line in lines]
            steps += list(map(Done, named, on_terminal(*named, folder=folder)))
    return commands, steps


def test_every_command_ends_with_one_step(session: tuple[list[Done], list[Done]]) -> None:
    for command, shown in session[0]:
        assert shown.code == 0, (command, shown.text)
        assert len(shown.steps) == 1, (command, shown.text)
        assert shown.lines[-1] == f"next: {shown.steps[0]}", command


def test_every_step_works(session: tuple[list[Done], list[Done]]) -> None:
    assert len(session[1]) > 20
    for command, shown in session[1]:
        assert shown.code == 0, (command, shown.text)


def test_every_command_fits_the_terminal(session: tuple[list[Done], list[Done]]) -> None:
    for command, shown in (*session[0], *session[1]):
        if command[0] != "tensor":  # NumPy folds numbers; a long row of them in a narrow terminal may not fit
            wide = [line for line in shown.lines if len(line) > 80 and not line.startswith("next: ")]
            assert not wide, (command, wide)


def test_a_step_is_a_line_for_a_shell(
    session: tuple[list[Done], list[Done]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FXTRACE_STORE", str(folder / "store"))
    [line] = next(shown.steps for command, shown in session[0] if command[0] == "diff")
    done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr


def test_a_step_stays_with_the_trace_and_the_store(folder: Path, tmp_path: Path, run: Run) -> None:
    for seed in (1, 2):
        assert run("trace", TINY, "--seed", seed, "--store", tmp_path / "my store").exit_code == 0
    other = json.loads(run("traces", "--json", "--store", tmp_path / "my store").stdout)[1]["id"][:12]
    for command in (("graph", other), ("explain", "ids", "--trace", other), ("snapshots", "--trace", other)):
        [shown] = on_terminal((*command, "--store", str(tmp_path / "my store")), folder=folder)
        words = words_of(shown.steps[0])
        assert words[words.index("--trace") + 1] == other
        assert words[words.index("--store") + 1] == str(tmp_path / "my store")


@pytest.mark.parametrize("args", [("models",), ("models", "--json"), ("traces",)])
def test_a_pipe_gets_no_step(run: Run, args: tuple[str, ...]) -> None:
    result = run(*args)
    assert "next:" not in result.stdout + result.stderr


def test_json_gets_no_step_on_a_terminal(folder: Path) -> None:
    [shown] = on_terminal(("models", "--json"), folder=folder)
    assert json.loads(shown.text)
    assert not shown.steps


def test_the_step_after_listing_keys_serves_with_them(folder: Path, run: Run, tmp_path: Path) -> None:
    assert run("keys", "new", "alice", "--scope", "read", "--keys", tmp_path / "keys.json").exit_code == 0
    [shown] = on_terminal(("keys", "ls", "--keys", str(tmp_path / "keys.json")), folder=folder)
    command = f"exec {shown.steps[0]} --port 0 --json --store {tmp_path}/store"
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
    assert "address" in json.loads(line)


def test_short_ids_tell_traces_apart() -> None:
    assert short_ids(["a" * 32, "b" * 32]) == {"a" * 32: "a" * 8, "b" * 32: "b" * 8}
    near = [f"{'a' * 9}{end:023x}" for end in range(2**20, 2**20 + 3)]
    short = short_ids(near)
    assert len(set(short.values())) == 3
    assert all(each.startswith(short[each]) for each in near)
    assert short_ids([]) == {}


def test_a_module_is_called_by_its_interpreter() -> None:
    code = "import sys; from fxtrace.cli.steps import program; print(program())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shlex.split(done.stdout) == [sys.executable, "-m", "fxtrace"]
