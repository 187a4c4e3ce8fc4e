"""The source files of a model, known without running it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from fxtrace.models import Registry
from fxtrace.models.imports import from_file
from fxtrace.models.references import digest_unloaded
from fxtrace.models.sources import Sources, find_module, sources_of_file, sources_of_module

CONTRACT = """
from dataclasses import dataclass

@dataclass
class Config:
    width: int = 8

def build(config): ...
def example_inputs(config): ...
"""


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def of(folder: Path, files: Mapping[str, str]) -> Sources:
    write(folder, files)
    return sources_of_file(folder / "mine.py")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"mine.py": ""}, {"mine.py"}),
        ({"mine.py": "import parts", "parts.py": "", "others.py": ""}, {"mine.py", "parts.py"}),
        ({"mine.py": "from parts import Half", "parts.py": "import deep", "deep.py": "import mine"}, None),
        ({"mine.py": "def build(c):\n    from parts import Half", "parts.py": ""}, {"mine.py", "parts.py"}),
        ({"mine.py": "import a.b.c", "a/__init__.py": "", "a/b/__init__.py": "", "a/b/c.py": "", "a/d.py": ""}, None),
        ({"mine.py": "from a import b", "a/__init__.py": "", "a/b.py": ""}, None),
        ({"mine.py": "from a.b import Half", "a/b.py": ""}, None),  # without __init__.py
        ({"mine.py": "import a", "a/__init__.py": "from .b import x", "a/b.py": "from . import c", "a/c.py": ""}, None),
        ({"mine.py": "try:\n    import parts\nexcept ImportError:\n    pass"}, {"mine.py"}),
        ({"mine.py": "import math, json, torch, numpy as np"}, {"mine.py"}),
    ],
)
def test_a_file_and_its_neighbours(tmp_path: Path, files: dict[str, str], expected: set[str] | None) -> None:
    found = set(of(tmp_path, files).files)
    if expected is None:  # all but what nothing imports
        expected = set(files) - {"a/d.py"}
    assert found == expected


def test_the_digest_is_of_every_file(tmp_path: Path) -> None:
    files = {"mine.py": "import parts", "parts.py": "x = 1", "unrelated.py": "x = 1"}
    first = of(tmp_path, files).digest
    assert of(tmp_path, {"unrelated.py": "x = 2"}).digest == first
    assert of(tmp_path, {"parts.py": "x = 2"}).digest != first
    assert of(tmp_path, files).digest == first
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert of(elsewhere, files).digest == first


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("import torch, math", True),
        ("import numpy", True),
        ("model.eval()", True),
        ("import nobody_has_this", False),  # of no version
        ("x = open('config.json').read()", False),
        ("import os\nx = os.environ['WIDTH']", False),
        ("from os import getenv\nx = getenv('WIDTH')", False),
        ("import importlib\nimportlib.import_module('parts')", False),
        ("x = eval('1')", False),
        ("import torch\nx = torch.load('weights.pt')", False),
        ("def broken(:", False),
    ],
)
def test_what_else_decides_is_a_doubt(tmp_path: Path, text: str, known: bool) -> None:
    sources = of(tmp_path, {"mine.py": text})
    assert sources.are_known is known
    assert bool(digest_unloaded(str(tmp_path / "mine.py"))) is known


def test_it_is_the_digest_of_the_model_as_it_is_loaded(tmp_path: Path) -> None:
    file = write(tmp_path, {"mine.py": f"import parts\n{CONTRACT}", "parts.py": ""}) / "mine.py"
    assert digest_unloaded(str(file)) == from_file(file).digest
    registry = Registry.installed()
    assert registry.digest_unloaded("reference") == registry.get("reference").digest
    assert registry.digest_unloaded("refrence") == ""
    assert registry.digest_unloaded(str(tmp_path / "none.py")) == ""


def test_a_package_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = f"models_{tmp_path.name}"
    write(
        tmp_path,
        {
            f"{package}/__init__.py": "raise RuntimeError('it is run')",
            f"{package}/mine.py": f"from {package}.parts import x\nfrom . import more\nimport beside",
            f"{package}/parts.py": "",
            f"{package}/more.py": "",
            f"{package}/unrelated.py": "",
            "beside.py": "",
        },
    )
    monkeypatch.chdir(tmp_path)
    file = find_module(f"{package}.mine", Path.cwd())
    assert file == tmp_path / package / "mine.py"
    assert package not in sys.modules
    assert set(sources_of_module(f"{package}.mine", file).files) == {
        "__init__.py",
        "mine.py",
        "parts.py",
        "more.py",
        "../beside.py",
    }
    assert digest_unloaded(f"{package}.mine:factory")
    assert find_module("nobody_has_this") is None


def test_neighbours_are_run_anew_and_the_callers_own_modules_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"parts_{tmp_path.name}"
    model = f"import {name}\n{CONTRACT.replace('= 8', f'= {name}.WIDTH')}"
    one = write(tmp_path / "one", {"mine.py": model, f"{name}.py": "WIDTH = 1"}) / "mine.py"
    two = write(tmp_path / "two", {"mine.py": model, f"{name}.py": "WIDTH = 2"}) / "mine.py"

    def width(file: Path) -> object:
        loaded = from_file(file)
        return loaded.fields(loaded.resolve({}))["width"]

    assert [width(one), width(two), width(one)] == [1, 2, 1]
    write(tmp_path / "one", {f"{name}.py": "WIDTH = 33"})
    assert width(one) == 33
    sys.modules.pop(name)
    monkeypatch.syspath_prepend(tmp_path / "one")
    mine = __import__(name)
    write(tmp_path / "one", {f"{name}.py": "WIDTH = 444"})
    assert width(one) == 444
    assert sys.modules[name] is mine
    del sys.modules[name]
