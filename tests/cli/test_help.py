"""The list of commands, which names them without importing them, and what a shell completes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from fxtrace.cli import COMMANDS, app, load
from fxtrace.cli.complete import complete, models, roles, traces
from tests.cli.conftest import Run
from tests.conftest import Served


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says(name: str) -> None:
    command = load(name, COMMANDS[name])
    assert command.name == name
    assert command.help is not None
    first = " ".join(command.help.split("\n\n")[0].split())
    assert COMMANDS[name].help == first


def test_help_lists_every_command_and_imports_none(run: Run) -> None:
    code = "import sys\nfrom fxtrace.cli import app\ntry:\n    app(['--help'])\nfinally:\n    print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    help_text, _, imported = done.stdout.rstrip().rpartition("\n")
    assert [name for name in COMMANDS if not re.search(rf"^  {name} ", help_text, re.MULTILINE)] == []
    places = {f"fxtrace.cli.{entry.place.partition(':')[0]}" for entry in COMMANDS.values()}
    assert places & set(imported.split()) == set()
    assert not {"numpy", "pydantic", "fxtrace.graph"} & set(imported.split())


def commands() -> list[list[str]]:
    """Every command, those of groups, too."""
    found = []
    for name, entry in COMMANDS.items():
        command = load(name, entry)
        found += [[name, sub] for sub in command.commands] if isinstance(command, TyperGroup) else [[name]]
    return [[], *found]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_h_is_help(run: Run, command: list[str]) -> None:
    short = run(*command, "-h")
    assert short.exit_code == 0
    assert "Usage: " in short.stdout
    assert short.stdout == run(*command, "--help").stdout


@pytest.mark.parametrize("command", [["snapshots"], ["graph"], ["formulas"], ["render", "-o", "FILE"], ["delete"]])
def test_a_trace_can_be_named_by_its_place_or_by_option(
    run: Run, served: Served, command: list[str], tmp_path: Path
) -> None:
    command = [word.replace("FILE", str(tmp_path / "x.dot")) for word in command]
    place = ("--store", served.engine.store.place)
    wrong = "f" * 32
    for given in ([wrong], ["-t", wrong], ["--trace", wrong]):
        assert f"no trace with the id {wrong}" in run(*command, *given, *place).stderr
    both = run(*command, served.reference.id, "-t", served.reference.id, *place)
    assert both.exit_code == 2
    assert "given twice" in both.stderr


@pytest.mark.parametrize("command", [["explain", "1"], ["tensor", "src_ids"], ["query"]])
def test_where_the_place_is_taken_a_trace_is_an_option(run: Run, served: Served, command: list[str]) -> None:
    place = ("--store", served.engine.store.place, "--json")
    texts = {run(*command, name, served.reference.id, *place).stdout for name in ("-t", "--trace")}
    assert len(texts) == 1
    assert texts != {""}


# -------------------------------------------------------------------------------------------------------- completion


def completed(words: str, shell: str = "bash", **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'fxtrace'; from fxtrace.cli import main; main()"],
        env={
            "_FXTRACE_COMPLETE": f"complete_{shell}",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1]


def test_a_shell_completes_commands_traces_models_and_roles(served: Served) -> None:
    place = str(served.engine.store.place)
    assert completed("fxtrace tra") == ["trace", "traces"]
    assert "reference" in completed("fxtrace trace ref", FXTRACE_STORE=place)
    assert "hf:llama" in completed("fxtrace trace hf:lla", FXTRACE_STORE=place)
    short = served.reference.id[:8]
    assert completed(f"fxtrace graph {short}", FXTRACE_STORE=place) == [served.reference.id]
    assert completed(f"fxtrace explain 3 --trace {short}", FXTRACE_STORE=place) == [served.reference.id]
    role = completed(f"fxtrace explain --store {place} --trace {short} decoder.0.cross_attention.w")
    assert role == ["decoder.0.cross_attention.weights"]
    there = completed(f"fxtrace explain --server {served.address} --trace {short} decoder.0.cross_attention.w")
    assert there == role


@pytest.mark.parametrize(
    "words",
    ["fxtrace graph --server 127.0.0.1:1 a", "fxtrace graph --store FILE a", "fxtrace explain --trace none enc"],
)
def test_what_goes_wrong_completes_nothing(tmp_path: Path, words: str) -> None:
    (tmp_path / "file").write_text("no store")
    assert completed(words.replace("FILE", str(tmp_path / "file")), FXTRACE_STORE=str(tmp_path / "none")) in ([], [""])
    assert not (tmp_path / "none").exists()  # nothing was made, either


def test_completion_never_raises(tmp_path: Path) -> None:
    context = typer.Context(typer.main.get_command(app))
    context.params = {"store": str(tmp_path / "none"), "server": None}
    for offered in (traces, roles):
        assert complete(offered, context, "") == []
    assert complete(models, context, "refe") == ["reference"]
