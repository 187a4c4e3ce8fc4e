"""Every command, the client, the engine and the README's Python, from the wheel, with no extra, `torch` and `all`."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import fxtrace
from fxtrace import Engine, TraceRequest
from fxtrace.cli import COMMANDS as NAMES
from fxtrace.models import Registry
from fxtrace.service.server import serving
from tests.wheel.commands import COMMANDS, DEMO, ELSEWHERE, MINE, PYTHON, SERVE, Use, is_one_line
from tests.wheel.environments import ROOT, Environment

DRIVER = Path(__file__).with_name("driver.py")
Result = tuple[int, str, str]


@dataclass
class Place:
    """An environment, the folder in which its processes work, and what their command lines are about."""

    environment: Environment
    home: Path
    names: dict[str, str]

    def run(self, *command: object, **how: object) -> subprocess.CompletedProcess[str]:
        """Runs a program of the environment."""
        variables = self.environment.variables(self.home)
        arguments = [str(part) for part in command]
        return subprocess.run(  # type: ignore[call-overload]
            arguments, cwd=self.home, env=variables, capture_output=True, text=True, check=False, timeout=300, **how
        )

    def fxtrace(self, use: Use) -> Result:
        """Runs a command line in a process of its own."""
        done = self.run(self.environment.fxtrace, *shlex.split(self.text(use)))
        return done.returncode, done.stdout, done.stderr

    def drive(self, uses: Iterable[tuple[str, str]]) -> list[Result]:
        """Runs command lines and lines of Python in one process."""
        done = self.run(self.environment.python, "-P", DRIVER, input=json.dumps(list(uses)))
        assert done.returncode == 0, done.stderr
        return [(code, out, said) for code, out, said in json.loads(done.stdout)]

    def text(self, use: Use) -> str:
        """The use's text, about what is here."""
        return use.text.format(**self.names)

    def check(self, use: Use, result: Result) -> str:
        """What is wrong with a result: it has to work, or to be the one line that names an extra; empty if it is."""
        code, _, said = result
        absent = use.absent(self.environment.extras)
        right = is_one_line(said, absent) and code == 1 if absent else code == 0
        return "" if right else f"{use.text}\n  exit code {code}, without {absent}: {said[-2000:]}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A store with two traces, and the names that uses have for them and for a server that has them, too."""
    store = tmp_path_factory.mktemp("served")
    models = Registry.installed()
    with Engine.open(store, models) as engine:
        a, b = (engine.create_trace(TraceRequest("reference", {"d_model": d, "n_heads": 2})).id for d in (16, 24))
        engine.find_formulas(a)
    copy = shutil.copytree(store, tmp_path_factory.mktemp("copies") / "store")
    with Engine.open(store, models) as engine, serving(engine) as address:
        yield copy, {"a": a, "b": b, "server": address}


@pytest.fixture(scope="module", params=["", "torch", "all"], ids=["none", "torch", "all"])
def place(
    request: pytest.FixtureRequest,
    environment_with: Callable[[str], Environment],
    served: tuple[Path, dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Place:
    home = tmp_path_factory.mktemp("home")
    environment = environment_with(request.param)
    (home / "mine.py").write_text(MINE)
    names = {**served[1], "out": str(home)}
    shutil.copytree(served[0], home / "store")
    return Place(environment, home, names)


def test_every_command_is_used() -> None:
    used = {use.text.split()[0] for use in (*COMMANDS, DEMO, *SERVE)}
    assert {*NAMES} <= used


def test_commands_and_python(place: Place) -> None:
    kinds = [*((("command", use)) for use in COMMANDS), *((("python", use)) for use in PYTHON)]
    results = place.drive((kind, place.text(use)) for kind, use in kinds)
    wrong = [place.check(use, result) for (_, use), result in zip(kinds, results, strict=True)]
    assert not any(wrong), "\n".join(each for each in wrong if each)


def test_places_of_other_stores(place: Place) -> None:
    for use in ELSEWHERE:
        code, _, said = place.fxtrace(use)
        assert code == 1
        assert len(said.strip().splitlines()) == 1, said
        assert is_one_line(said, list(use.needs)) == bool(use.absent(place.environment.extras)), said


def test_the_demo(place: Place) -> None:
    result = place.fxtrace(DEMO)
    assert not place.check(DEMO, result), result
    if not DEMO.absent(place.environment.extras):
        assert "43/43 snapshots agree" in result[1]
        lines = result[1].partition("Try next:\n")[2].splitlines()
        assert len(lines) == 2
        for line in lines:
            done = place.run("/bin/sh", "-c", line)
            assert done.returncode == 0, done.stderr
        assert "decoder.0.cross_attention.weights" in done.stdout


@pytest.mark.parametrize("use", SERVE, ids=lambda use: use.needs[-1])
def test_a_server(place: Place, use: Use) -> None:
    command = [str(place.environment.fxtrace), *shlex.split(place.text(use))]
    variables = {**place.environment.variables(place.home), "OTEL_TRACES_EXPORTER": "none"}
    with subprocess.Popen(
        command, cwd=place.home, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        try:
            if line:
                with fxtrace.Client(json.loads(line)["address"], connect_timeout=60) as client:
                    assert {trace.id for trace in client.list_traces()} >= {place.names["a"]}
        finally:
            server.terminate()
            _, said = server.communicate(timeout=60)
        assert bool(line) == (not use.absent(place.environment.extras)), said
        assert not place.check(use, (server.returncode, line, said))


BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)

# What the README's prose has said by then.
_BEFORE = """
import torch
from dataclasses import dataclass
from typing import Annotated
from fxtrace import *
from fxtrace.capture import capture
from fxtrace.roles import label
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

module = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)).eval()
ids = torch.ones(2, 5, dtype=torch.long)
"""


def test_the_readme_s_python(place: Place) -> None:
    if place.environment.extra != "all":
        pytest.skip("the README presumes PyTorch and transformers")
    assert len(BLOCKS) > 3
    text = "\n".join((_BEFORE, *BLOCKS)).replace("127.0.0.1:50051", place.names["server"])
    ((code, _, said),) = place.drive([("python", text)])
    assert code == 0, said
