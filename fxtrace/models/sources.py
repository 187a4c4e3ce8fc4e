"""The source files that a model is made of, as far as they can be known without running any.

They are the model's own file and what it imports from around it, found by parsing: the neighbours in its folder, or the
modules of its package. What is imported from elsewhere counts by its distribution's version.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from itertools import accumulate
from pathlib import Path

# A configuration may be read from elsewhere than the sources: then these say too little.
_OUTSIDE_NAMES = frozenset({"__import__", "compile", "eval", "exec", "input", "open"})
_OUTSIDE_ATTRIBUTES = frozenset(
    """
    environ environb getenv argv getcwd cwd home expanduser read_text read_bytes
    read_csv stat exists is_file is_dir iterdir listdir scandir glob rglob
    load load_file load_state_dict_from_url loadtxt genfromtxt fromfile memmap from_file from_json_file from_pretrained
    import_module find_spec run_path run_module urlopen urlretrieve hf_hub_download snapshot_download now today
    time time_ns monotonic perf_counter getpid uname node gethostname cpu_count device_count
    is_available version_info
    """.split()  # noqa: SIM905
)
_ALREADY_COUNTED = frozenset({"fxtrace", "torch"})  # in a trace's id by their own
_MOST_FILES = 2000


@dataclass
class Sources:
    """The files of a model, and what they import from elsewhere.

    Attributes:
        root: the folder in which imports are searched.
        base: the folder that the files' names begin at.
        own: the one top-level package of the root that counts; empty where all of them do.
        files: the content of every file, by its name.
        outside: top-level names of what is imported from elsewhere.
        whole: whether nothing but these decides what the model is; else it may read a file, or a variable.
    """

    root: Path
    base: Path
    own: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    outside: set[str] = field(default_factory=set)
    whole: bool = True

    @cached_property
    def digest(self) -> str:
        """Of the files, and of the versions of what they import from elsewhere."""
        digest = hashlib.sha256()
        for name, source in sorted(self.files.items()):
            digest.update(f"{name}\0{len(source)}\0".encode() + source)
        for name in sorted(self.outside - _ALREADY_COUNTED):
            digest.update(f"{name}={version_of(name) or ''}\0".encode())
        return digest.hexdigest()

    @property
    def are_known(self) -> bool:
        """Whether the digest changes whenever the model may be another."""
        return self.whole and all(version_of(name) for name in self.outside - _ALREADY_COUNTED)

    def add(self, file: Path) -> None:
        """Adds a file, and what it imports, and so on."""
        waiting = [file]
        while waiting:
            file = waiting.pop()
            name = Path(os.path.relpath(file, self.base)).as_posix()
            if name not in self.files:
                self.files[name] = file.read_bytes()
                self.whole &= len(self.files) <= _MOST_FILES
                waiting += self._imported(file, self.files[name]) if self.whole else ()

    def _imported(self, file: Path, source: bytes) -> Iterator[Path]:
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            self.whole = False  # importing it will say why
            return
        package = file.parent.relative_to(self.root).parts
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from self._found(alias.name)
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else ()
                module = ".".join((*above, node.module) if node.module else above)
                for alias in node.names:
                    self.whole &= alias.name not in _OUTSIDE_ATTRIBUTES
                    yield from self._found(f"{module}.{alias.name}" if module else alias.name)
            elif isinstance(node, ast.Name):
                self.whole &= node.id not in _OUTSIDE_NAMES
            elif isinstance(node, ast.Attribute):
                self.whole &= node.attr not in _OUTSIDE_ATTRIBUTES

    def modules(self) -> dict[str, Path]:
        """The files by the names that they are imported under."""
        found = {}
        for name in self.files:
            file = Path(os.path.normpath(self.base / name))
            parts = file.relative_to(self.root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
        return found

    def _found(self, module: str) -> list[Path]:
        """The files of a module, or of a name in one, and of its packages; none where it is from elsewhere."""
        files: list[Path] = []
        top = module.partition(".")[0]
        if self.own in ("", top):
            for path in accumulate(module.split("."), lambda folder, name: folder / name, initial=self.root):
                found = [file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()]
                files += found[:1] if path != self.root else ()
        if not files and top not in ("", self.own) and top not in sys.stdlib_module_names:
            self.outside.add(top)
        return files


def sources_of_file(file: Path) -> Sources:
    """The sources of a model file: it, and the neighbours that it imports. Raises OSError."""
    sources = Sources(file.parent, file.parent)
    sources.add(file)
    return sources


def sources_of_module(name: str, file: Path) -> Sources:
    """The sources of an importable module: it, or all of its package, and what it imports from around it.

    Raises:
        OSError: a file cannot be read.
    """
    parts = name.split(".")
    is_package = file.name == "__init__.py"
    if parts[0] in _ALREADY_COUNTED or not _is_at(file, parts):  # a package that is mapped to some folder
        root, own = (file.parent.parent, file.parent.name) if is_package else (file.parent, "")
        parents = []
    else:
        root = file.parents[len(parts) - (not is_package)]
        own = parts[0] if _is_shared(root) else ""
        parents = [root.joinpath(*parts[:length], "__init__.py") for length in range(1, len(parts))]
    sources = Sources(root, file.parent, own)
    for each in (*filter(Path.is_file, parents), *(sorted(file.parent.rglob("*.py")) if is_package else (file,))):
        sources.add(each)
    return sources


def _is_at(file: Path, parts: list[str]) -> bool:
    """Whether a module's file lies where the module's name says."""
    names = (*parts, "__init__") if file.name == "__init__.py" else tuple(parts)
    return file.with_suffix("").parts[-len(names) :] == names and len(file.parts) > len(names)


def find_module(name: str, folder: Path | None = None) -> Path | None:
    """The file of a module, without importing it or its packages; None where there is none of Python source.

    Args:
        name: the module's.
        folder: searched before everything else.
    """
    path: list[str] | None = None
    for full in accumulate(name.split("."), "{}.{}".format):
        spec = None
        for finder in sys.meta_path:
            searched = [str(folder), *sys.path] if path is None and folder is not None else path
            spec = finder.find_spec(full, searched)
            if spec is not None:
                break
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None


def version_of(name: str) -> str | None:
    """The version of the distribution that gives a top-level name; None where none has its name, or it is editable."""
    try:
        distribution = metadata.distribution(name)
        url = json.loads(distribution.read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return None
    return None if url.get("dir_info", {}).get("editable") else distribution.version


def _is_shared(folder: Path) -> bool:
    """Whether packages of others are in a folder, too."""
    return folder.name in ("site-packages", "dist-packages") or (folder / "typing.py").is_file()
