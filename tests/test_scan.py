"""Nothing that comes over the wire is imported, evaluated, unpickled or used as a path: what the source says.

`tests/service/test_hostile.py` shows the same of a running server.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fxtrace

ROOT = Path(fxtrace.__file__).parent

# All that bytes, messages and what is made of them pass through.
PARTS = ("service", "store", "query", "wire.py", "records.py", "frames.py", "status.py", "tensorfile.py", "slices.py")
FILES = sorted(
    file for part in PARTS for file in ([ROOT / part] if part.endswith(".py") else (ROOT / part).rglob("*.py"))
)

BUILTINS = {"eval", "exec", "compile", "__import__"}  # CEL's and re's own methods of such names make no code
RUNS_CODE = {"import_module", "exec_module", "load_module", "run_path", "run_module", "system", "popen"}
UNPICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml"}
OPENS = {"Path", "open", "fdopen", "mkdtemp", "mkstemp", "memmap", "fromfile", "loadtxt", "safe_open", "load_file"}
READS = {"read_bytes", "read_text", "write_bytes", "write_text", "save_file", "glob", "rglob", "listdir"}
CHANGES = {"unlink", "rename", "mkdir", "rmtree", "stat", "is_file", "exists", "disk_usage"}
TOUCHES_FILES = OPENS | READS | CHANGES

# Where files are touched, and whose word the place is. None of these is a caller's.
MAY_TOUCH_FILES = {
    "service/keys.py": "the operator's file",
    "service/watched.py": "the operator's files",
    "service/settings.py": "the operator's file",
    "service/worker.py": "/proc, and the store's place",
    "service/temporary.py": "folders' names, made by the system",
    "service/engine.py": "the store, by an id that was checked",
    "store/blobs.py": "names that the store makes of checked ids: see NAME there",
    "store/files.py": "names that the store makes of checked ids: see NAME there",
    "store/memory.py": "a store in memory, by an id that was checked",
    "store/migrate.py": "the store's place",
    "store/place.py": "the operator's place",
    "store/single.py": "the user's file: no RPC leads there",
    "store/store.py": "the store's place",
    "tensorfile.py": "the operator's file",
}


def calls(file: Path) -> Iterator[tuple[ast.Call, str, bool]]:
    """Each call, the last part of what is called, and whether that is a bare name."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Name(name):
                    yield node, name, True
                case ast.Attribute(_, name):
                    yield node, name, False


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_code_is_made_of_data(file: Path) -> None:
    for call, name, bare in calls(file):
        source = ast.unparse(call)
        assert name not in (BUILTINS if bare else RUNS_CODE), source
        assert not any(keyword.arg == "shell" for keyword in call.keywords), source
        assert not (name in ("load", "loads") and "torch" in source), source
        assert "allow_pickle" not in source, source


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nothing_is_unpickled(file: Path) -> None:
    imported = {
        alias.name.partition(".")[0]
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        (node.module or "").partition(".")[0]
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom)
    }
    assert not imported & UNPICKLES
    # A pipe's `recv` unpickles. A worker reads so what the front says, and the front nothing of what a worker says.
    receives = [ast.unparse(call) for call, name, _ in calls(file) if name == "recv"]
    assert not receives or name_of(file) == "service/worker.py", receives


def test_files_are_touched_only_where_no_caller_names_them() -> None:
    touching = {name_of(file) for file in FILES if any(name in TOUCHES_FILES for _, name, _ in calls(file))}
    assert touching <= set(MAY_TOUCH_FILES)


@pytest.mark.parametrize("file", ["service/servicer.py", "service/isolated.py", "service/paging.py", "wire.py"])
def test_what_reads_requests_touches_no_file(file: str) -> None:
    assert file not in MAY_TOUCH_FILES
    modules = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not modules & {"pathlib", "shutil", "glob", "io", "tempfile", "subprocess", "importlib", "runpy"}


@pytest.mark.parametrize(
    ("file", "function", "field"),
    [
        ("service/servicer.py", "", "name"),
        ("service/servicer.py", "", "trace"),
        ("wire.py", "decode_trace_request", "model"),
    ],
)
def test_names_of_resources_go_through_a_parser(file: str, function: str, field: str) -> None:
    tree: ast.AST = ast.parse((ROOT / file).read_text())
    if function:
        tree = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function)
    used = [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == field]
    parsed = [
        ast.unparse(call.args[0])
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func).endswith(("parse_trace_name", "parse_sought_trace", "parse_model_name"))
    ]
    read = [text for text in used if text == f"request.{field}"]
    assert read
    assert read == [text for text in parsed if text == f"request.{field}"]
