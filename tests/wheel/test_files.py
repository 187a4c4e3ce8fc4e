"""What is in the wheel and in the sdist."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from tests.wheel.environments import ROOT, Environment

_LEFT = {"__pycache__", ".git"}


def on_disk(folder: str) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not _LEFT & {*path.parts} and path.suffix != ".pyc" and not path.name.startswith(".")
    }


def tracked() -> set[str]:
    """What git has of the checkout; in an unpacked sdist, which git does not know, what its own list has."""
    done = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=False)
    if done.returncode == 0 and done.stdout:
        names = done.stdout.split("\0")
    else:
        names = (ROOT / "fxtrace.egg-info" / "SOURCES.txt").read_text().splitlines()
    return {name for name in names if name and (ROOT / name).is_file() and not name.startswith("fxtrace.egg-info/")}


def test_the_wheel_has_the_package_whole_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    model = {name.replace("model/", "fxtrace/reference/", 1) for name in on_disk("model")}
    assert names == on_disk("fxtrace") | model


def test_the_wheel_claims_one_top_level_name(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        tops = {PurePosixPath(name).parts[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fxtrace"}


def test_the_sdist_has_all_that_building_and_testing_need(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as sdist:
        names = {PurePosixPath(*PurePosixPath(m.name).parts[1:]).as_posix() for m in sdist if m.isfile()}
    assert tracked() <= names
    assert {"Makefile", "constraints.txt", "pyproject.toml", "LICENSE", ".ci/run"} <= names
    folders = {PurePosixPath(name).parts[0] for name in names}
    assert {"fxtrace", "model", "protos", "tests", "examples"} <= folders
    assert not {folder for folder in folders if folder in (".venv", "out", "build", ".git")}


def test_the_version_is_said_once(environment_with: Callable[[str], Environment]) -> None:
    code = (
        "import fxtrace, importlib.metadata as m; print(fxtrace.__version__ == m.version('fxtrace'), fxtrace.__file__)"
    )
    environment = environment_with("")
    done = subprocess.run([environment.python, "-P", "-c", code], capture_output=True, text=True, check=True)
    same, file = done.stdout.split()
    assert same == "True"
    assert Path(file).is_relative_to(environment.folder)
