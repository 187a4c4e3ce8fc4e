"""Imports go one way, and what is light stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fxtrace

ROOT = Path(fxtrace.__file__).parent

# Each layer may import from itself and from the layers before it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "extras", "ops"),
    ("ir.text", "ir.arguments", "ir.roles"),
    ("graph", "dtypes", "slices"),
    ("ir",),
    ("v1", "records", "tensorfile"),
    ("dims", "sweep", "diff", "explain", "query", "render", "export", "wire", "status", "frames", "tls"),
    ("api",),
    ("roles",),
    ("shapes", "models"),
    ("capture",),
    ("probing",),
    ("probe", "trials", "alike", "transfer"),
    ("lock",),
    ("store",),
    ("client", "connection", "remote"),
    (
        "engine",
        *(
            "service.engine",
            "service.inputs",
            "service.paging",
            "service.reading",
            "service.requests",
            "service.tracing",
        ),
        *("service.attributing", "service.comparing", "service.diffing", "service.numbers"),
        *("service.sweeping", "service.propagating", "service.witness"),
    ),
    ("service",),
    ("cli", "doctor", "__main__"),
)


def layer_of(module: str) -> int:
    path = module.removeprefix("fxtrace.")
    matches = [
        (len(name), number)
        for number, names in enumerate(LAYERS)
        for name in names
        if path == name or path.startswith(f"{name}.")
    ]
    assert matches, f"{module} is in no layer: add it to LAYERS"
    return max(matches)[1]


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fxtrace"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("fxtrace.")}
    return {name for name in found if name != "fxtrace.__version__"}


FILES = [f for f in sorted(ROOT.rglob("*.py")) if "v1" not in f.parts and f != ROOT / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_imports_go_down_only(file: Path) -> None:
    module = ".".join(("fxtrace", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    here = layer_of(module)
    for name in imports_of(file):
        assert layer_of(name) <= here, f"{module} imports {name}, which is above it"


@pytest.mark.parametrize("file", sorted((ROOT.parent / "model").glob("*.py")), ids=lambda f: f.name)
def test_the_reference_model_knows_nothing_of_fxtrace(file: Path) -> None:
    assert not imports_of(file)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_no_name_of_the_reference_models_modules_is_in_fxtrace(file: Path) -> None:
    names = {"W_q", "W_k", "W_v", "W_o", "enc_layers", "dec_layers", "self_mha", "cross_mha", "fc1", "fc2", "to_vocab"}
    names |= {"src_embedding", "tgt_embedding", "norm1", "norm2", "norm3"}
    words = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
    words |= {
        word
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for word in node.value.replace(".", " ").replace("`", " ").split()
    }
    assert not names & words


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("fxtrace", ("torch", "grpc", "sqlalchemy")),
        ("fxtrace.client", ("torch", "sqlalchemy")),
        ("fxtrace.cli", ("torch", "sqlalchemy", "numpy", "pydantic", "rich", "fxtrace.graph")),
        ("fxtrace.store", ("torch", "grpc")),
        ("fxtrace.render", ("torch", "grpc")),
    ],
)
def test_importing_stays_light(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*[m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_facade_names_what_there_is() -> None:
    assert list(fxtrace.__all__) == sorted(fxtrace.__all__)
    for name in fxtrace.__all__:
        assert getattr(fxtrace, name) is not None
    assert set(fxtrace.__all__) <= set(dir(fxtrace))
    with pytest.raises(AttributeError, match="no attribute 'Klient'"):
        _ = fxtrace.Klient
