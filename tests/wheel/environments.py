"""The sdist, the wheel, and clean environments that the wheel is installed into.

An environment is a new `venv`, outside the checkout, that holds the wheel and the packages that the wheel's own
metadata asks for, with what they ask for, and nothing else. These packages are not fetched once more: they are linked
from the environment that runs the tests, which has the very versions of constraints.txt. So an environment with PyTorch
is there within a second and without a network, and a requirement that the wheel forgets is as absent as it is for a
user. What linking leaves untested is pip's choice of versions: `python -m tests.benchmarks.install` installs by pip.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import venv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fxtrace.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Environment:
    """A virtual environment with fxtrace and some of its extras."""

    folder: Path
    extra: str

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def fxtrace(self) -> Path:
        """Its command `fxtrace`."""
        return self.folder / "bin" / "fxtrace"

    @property
    def extras(self) -> frozenset[str]:
        """The extras that are installed."""
        return frozenset(EXTRAS) if self.extra == "all" else frozenset(_with_included(self.extra))

    def variables(self, home: Path) -> dict[str, str]:
        """The variables of its processes: nothing of this process's Python, and no program but its own."""
        own = {
            "PATH": str(self.folder / "bin"),
            "HOME": str(home),
            "TMPDIR": str(home),
            "FXTRACE_STORE": str(home / "store"),
        }
        return own | {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def _with_included(extra: str) -> Iterator[str]:
    if extra:
        yield extra
        for included in EXTRAS[extra].includes:
            yield from _with_included(included)


def build(folder: Path) -> tuple[Path, Path]:
    """Builds the checkout's sdist, and the wheel from that sdist, as `python -m build` does.

    Returns:
        The sdist and the wheel.
    """
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def make_environment(folder: Path, wheel: Path, extra: str) -> Environment:
    """Makes an environment with the wheel and what it asks for with an extra; an empty extra is none."""
    venv.create(folder, symlinks=True)
    environment = Environment(folder, extra)
    pip = [sys.executable, "-m", "pip", "--python", str(environment.python), "install", "--quiet", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--disable-pip-version-check", str(wheel)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (own,) = site.glob("fxtrace-*.dist-info")
    link(closure(Distribution.at(own).requires or [], extra), site)
    return environment


def closure(requirements: Iterable[str], extra: str) -> list[Distribution]:
    """The installed distributions that requirements lead to; an `extra` of the first is followed.

    Raises:
        PackageNotFoundError: one of them is not installed.
        AssertionError: one of them has a version that is not asked for.
    """
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()

    def follow(lines: Iterable[str], extra: str) -> None:
        for line in lines:
            wanted = Requirement(line)
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
                continue
            name = canonicalize_name(wanted.name)
            if name == "fxtrace":  # an extra that consists of others
                for each in sorted(wanted.extras):
                    follow(lines, each)
                continue
            found[name] = distribution(name)
            assert wanted.specifier.contains(found[name].version, prereleases=True), (line, found[name].version)
            for each in ("", *sorted(wanted.extras)):
                if (name, each) not in seen:
                    seen.add((name, each))
                    follow(found[name].requires or [], each)

    follow(list(requirements), extra)
    return list(found.values())


def link(distributions: Iterable[Distribution], site: Path) -> None:
    """Links distributions into a folder of packages: a folder as a whole where it is of one distribution alone."""
    files: dict[str, Path] = {}
    owners: dict[str, set[int]] = {}
    for number, each in enumerate(distributions):
        root = Path(str(each.locate_file("")))
        for name, *_ in csv.reader((each.read_text("RECORD") or "").splitlines()):
            if not name.startswith(("..", "/")):  # where scripts go
                files[name] = root
                owners.setdefault(name.partition("/")[0], set()).add(number)
    shared = {name: root for name, root in files.items() if len(owners[name.partition("/")[0]]) > 1}
    alone = {name.partition("/")[0]: root for name, root in files.items() if name not in shared}
    for name, root in (alone | shared).items():
        if (root / name).exists():  # what is compiled may be gone
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).symlink_to(root / name)
