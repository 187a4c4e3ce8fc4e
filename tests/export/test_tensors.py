"""Tensors and tables as other tools read them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors import safe_open

import fxtrace
from fxtrace import DependencyMissing, OptionInvalid, StoreDamaged, TensorNotFound, ValuesAbsent
from fxtrace.export import FORMATS, export
from fxtrace.export.rows import ATTRIBUTES, row
from fxtrace.export.whole import whole
from tests.export.models import MODELS, traced

ROLE = "decoder.0.cross_attention.weights"
VALUES = [name for name in MODELS if name not in ("shapes", "weightless")]
TENSOR_FORMATS = [ending for ending, each in FORMATS.items() if each.tensors]


# ------------------------------------------------------------------------------------------------------- safetensors


@pytest.mark.parametrize("name", VALUES)
def test_safetensors_has_every_tensor(name: str, tmp_path: Path) -> None:
    trace = traced(name)
    file = trace.export(tmp_path / "x.safetensors")
    with safe_open(file, framework="pt") as read:
        assert set(read.keys()) == set(trace)
        told = read.metadata()
        assert (told["trace"], told["model"]) == (trace.id, trace.model)
        raw = json.loads(told.get("raw", "{}"))
        for tensor in trace:
            got, wanted = read.get_tensor(tensor), trace.read(tensor)
            if tensor in raw:
                assert raw[tensor] == {"dtype": str(wanted.dtype)[6:], "shape": list(wanted.shape)}
                got = got.view(wanted.dtype).reshape(wanted.shape)
            assert got.dtype == wanted.dtype
            assert torch.equal(got, wanted)
    assert set(raw) == {tensor for tensor, spec in trace.graph.tensors() if spec.dtype == "complex128"}


def test_an_export_is_no_trace_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreDamaged, match="not a trace's file"):
        fxtrace.load(traced("one op").export(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    ("chosen", "count"),
    [(ROLE, 1), ("softmax", 1), ("decoder.0.cross_attention", 10), ("decoder", 50)],
)
def test_a_part_is_chosen_by_name(chosen: str, count: int, tmp_path: Path) -> None:
    trace = traced("reference")
    export(trace, tmp_path / "x.safetensors", tensor=chosen)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as read:
        keys = set(read.keys())
    if count == 1:
        assert keys == {trace.graph.resolve_tensor(chosen)}
    else:
        wanted = {node.name for role, node in trace.roles.items() if role.startswith(f"{chosen}.")}
        assert keys == wanted
        assert len(wanted) >= count


def test_a_node_of_several_tensors_is_chosen(tmp_path: Path) -> None:
    trace = traced("recurrent")
    node = next(node for node in trace.graph.nodes if len(node.tensors) == 3)
    export(trace, tmp_path / "x.npz", tensor=node.name)
    with np.load(tmp_path / "x.npz") as read:
        assert set(read.files) == {name for name, _ in node.tensors}
    with pytest.raises(OptionInvalid, match=f"'{node.name}' has 3 .*npz or .safetensors"):
        export(trace, tmp_path / "x.npy", tensor=node.name)


# ------------------------------------------------------------------------------------------------------------- NumPy


@pytest.mark.parametrize("name", [name for name in VALUES if name != "every type"])
def test_npz_has_every_tensor(name: str, tmp_path: Path) -> None:
    trace = traced(name)
    with np.load(trace.export(tmp_path / "x.npz"), allow_pickle=False) as read:
        assert set(read.files) == set(trace)
        for tensor in trace:
            wanted = trace.read(tensor).numpy()
            assert read[tensor].dtype == wanted.dtype
            assert np.array_equal(read[tensor], wanted)
    again = trace.export(tmp_path / "y.npz")
    assert again.read_bytes() == (tmp_path / "x.npz").read_bytes()


@pytest.mark.parametrize("chosen", [ROLE, "src_ids", "logits", "decoder.0.masked_self_attention.mask"])
def test_npy_has_one_tensor(chosen: str, tmp_path: Path) -> None:
    trace = traced("reference")
    if chosen == "logits":
        chosen = next(iter(trace.outputs))
    file = export(trace, tmp_path / "x.npy", tensor=chosen)
    assert np.array_equal(np.load(file, allow_pickle=False), trace.read(chosen).numpy())


@pytest.mark.parametrize("name", ["one op", "in place", "graph"])
def test_npy_has_the_output_where_there_is_one(name: str, tmp_path: Path) -> None:
    trace = traced(name)
    [wanted] = trace.outputs.values()
    assert np.array_equal(np.load(trace.export(tmp_path / "x.npy")), wanted.numpy())


def test_values_are_those_of_the_moment(tmp_path: Path) -> None:
    trace = traced("in place")
    with np.load(trace.export(tmp_path / "x.npz")) as read:
        assert np.array_equal(read["x"], np.arange(6.0).reshape(3, 2))
        assert np.array_equal(read["add_"], read["x"] + 1)
        assert np.array_equal(read["mul_"], (read["x"] + 1) * 2)


@pytest.mark.parametrize("ending", [".npy", ".npz"])
@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_what_numpy_cannot_hold_is_refused(ending: str, dtype: str, tmp_path: Path) -> None:
    trace = traced("every type")
    tensor = next(name for name, spec in trace.graph.tensors() if spec.dtype == dtype)
    with pytest.raises(OptionInvalid, match=f"cannot hold {dtype}, which tensor '{tensor}' has; write a .safetensors"):
        export(trace, tmp_path / f"x{ending}", tensor=tensor)
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------------- Parquet


@pytest.mark.parametrize("name", MODELS)
def test_parquet_has_a_row_for_every_node(name: str, tmp_path: Path) -> None:
    trace = traced(name)
    read = pyarrow.parquet.read_table(trace.export(tmp_path / "x.parquet"))
    assert read.column_names == list(ATTRIBUTES)
    assert read.schema.metadata[b"fxtrace.trace"].decode() == trace.id
    for node, got in zip(trace.graph.nodes, read.to_pylist(), strict=True):
        known = row(trace.graph, node, None)
        del known["formula"], got["formula"]  # another test may have looked for formulas
        assert got == {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}


def test_tables_of_different_models_are_alike(tmp_path: Path) -> None:
    schemas = {
        str(pyarrow.parquet.read_schema(traced(name).export(tmp_path / "x.parquet")).remove_metadata())
        for name in MODELS
    }
    assert len(schemas) == 1


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("ending", TENSOR_FORMATS)
@pytest.mark.parametrize("name", ["shapes", "weightless"])
def test_shapes_have_no_numbers(name: str, ending: str, tmp_path: Path) -> None:
    with pytest.raises(ValuesAbsent, match="holds shapes only; trace it again with values"):
        export(traced(name), tmp_path / f"x{ending}", tensor="softmax" if name == "shapes" else "src_ids")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "format", "said"),
    [
        ("x.graphm", "", "expected a file that ends in .json, .*; got 'x.graphm'; did you mean '.graphml'?"),
        ("x.safetensor", "", "did you mean '.safetensors'?"),
        ("x", "", r"got 'x' \(or name the format\)"),
        ("x.npz", "graphlm", "format: expected json, graphml, .*; got 'graphlm'; did you mean 'graphml'?"),
        ("x.npz", ".npz", "did you mean 'npz'"),
        ("no/x.json", "", "cannot write .*no/x.json: No such file or directory"),
        ("folder.json", "", "cannot write .*folder.json: Is a directory"),
    ],
)
def test_files_that_cannot_be(path: str, format: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(OptionInvalid, match=said) as caught:
        traced("one op").export(tmp_path / path, format)
    assert "\n" not in caught.value.message
    assert [each.name for each in tmp_path.iterdir()] == ["folder.json"]


@pytest.mark.parametrize("ending", ["JSON", "Npz", "model-explorer.JSON"])
def test_endings_in_capitals(ending: str, tmp_path: Path) -> None:
    file = traced("one op").export(tmp_path / f"x.{ending}")
    assert file.stat().st_size


def test_the_format_counts_more_than_the_ending(tmp_path: Path) -> None:
    file = traced("one op").export(tmp_path / "x.json", "model-explorer")
    assert set(json.loads(file.read_bytes())) == {"label", "graphs"}


@pytest.mark.parametrize("ending", [ending for ending, each in FORMATS.items() if not each.tensors])
def test_a_graph_is_no_tensor(ending: str, tmp_path: Path) -> None:
    with pytest.raises(OptionInvalid, match=r"holds the whole graph.*write a .npy, .npz or .safetensors"):
        export(traced("one op"), tmp_path / f"x{ending}", tensor="x")


@pytest.mark.parametrize("ending", TENSOR_FORMATS)
def test_the_nearest_tensor_is_suggested(ending: str, tmp_path: Path) -> None:
    with pytest.raises(TensorNotFound, match="did you mean 'softmax'"):
        export(traced("reference"), tmp_path / f"x{ending}", tensor="softmaxx")
    assert not list(tmp_path.iterdir())


def test_an_absent_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DependencyMissing, match=r"pip install 'fxtrace\[tables\]'"):
        traced("one op").export(tmp_path / "x.parquet")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------- whole files


@pytest.mark.parametrize("ending", FORMATS)
def test_what_was_there_is_replaced(ending: str, tmp_path: Path) -> None:
    trace = traced("one op")
    fresh = trace.export(tmp_path / f"fresh{ending}").read_bytes()
    file = tmp_path / f"x{ending}"
    file.write_text("before" * 100_000)
    assert trace.export(file).read_bytes() == fresh
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("ending", TENSOR_FORMATS)
def test_what_was_there_stays_where_an_export_fails(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"x{ending}"
    file.write_text("before")
    with pytest.raises(ValuesAbsent):
        export(traced("shapes"), file, tensor=ROLE)
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_half_a_file_is_none(tmp_path: Path) -> None:
    with pytest.raises(TypeError), whole(tmp_path / "x") as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert not list(tmp_path.iterdir())
    with whole(tmp_path / "x") as file:
        file.write(b"half")
        assert not (tmp_path / "x").exists()
    (tmp_path / "plain").touch()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_is_followed_and_a_name_may_be_long(tmp_path: Path) -> None:
    target = tmp_path / f"{'x' * 250}.npy"
    link = tmp_path / "link.npy"
    link.symlink_to(target)
    traced("one op").export(link)
    assert link.is_symlink()
    assert np.load(target).shape == (2,)


def test_a_pipe_is_written(tmp_path: Path) -> None:
    code = "import fxtrace, torch\nfxtrace.trace(torch.relu, torch.ones(2)).export('/dev/stdout', 'json')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(done.stdout)["format"] == "fxtrace.graph"
