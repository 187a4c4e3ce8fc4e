from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from fxtrace.ir.trace import TraceRequest
from fxtrace.service.engine import Engine
from tests.cli.conftest import Run
from tests.conftest import Served

TINY = Path(__file__).parent.parent / "service" / "tiny.py"
ROLE = "decoder.0.cross_attention.weights"
MASK = "decoder.0.masked_self_attention.mask"


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def parse(text: str) -> Any:
    return json.loads(text, parse_constant=refuse)


def place(served: Served) -> str:
    return served.engine._store.place


# What each command says of the reference's trace; {} stands for the trace.
READS = [
    ("models", "reference"),
    ("snapshots", "{}"),
    ("explain", "33", "--trace", "{}"),
    ("explain", "#12", "--trace", "{}"),
    ("explain", ROLE, "--trace", "{}"),
    ("explain", "src_ids", "--trace", "{}"),
    ("graph", "{}"),
    ("graph", "{}", "--role", "decoder.0.cross_attention"),
    ("graph", "{}", "--role", ROLE, "--module", "dec_layers.0"),
    ("query", "--trace", "{}"),
    ("query", 'kind == "matmul" && shape[-1] == src_len', "--trace", "{}"),
    ("query", "--path", "src_ids", ROLE, "--trace", "{}"),
    ("query", "--pattern", "matmul pointwise* softmax", "--trace", "{}"),
    ("query", "rank == 4", "--ancestors", ROLE, "--descendants", "src_ids", "--depth", "9", "--trace", "{}"),
    ("tensor", ROLE, "--trace", "{}"),
    ("tensor", ROLE, "--slice", "0,0,:2", "--trace", "{}"),
    ("tensor", MASK, "--trace", "{}"),
]


@pytest.mark.parametrize("args", READS, ids=" ".join)
def test_reads_the_same_here_and_from_a_server(run: Run, served: Served, args: tuple[str, ...]) -> None:
    args = tuple(arg.format(served.reference.id) for arg in args)
    here, there = ("--store", place(served)), ("--server", served.address)
    for result in (run(*args, *here), run(*args, *here, "--json"), run(*args, *there), run(*args, *there, "--json")):
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout
    assert run(*args, *here).stdout == run(*args, *there).stdout
    assert parse(run(*args, *here, "--json").stdout) == parse(run(*args, *there, "--json").stdout)


# ---------------------------------------------------------------------------------------------------- what is printed


def test_models(run: Run) -> None:
    table = run("models").stdout
    assert "reference" in table
    [model] = parse(run("models", "--json").stdout)
    assert set(model) == {"name", "summary", "fields", "schema"}
    field = next(field for field in parse(run("models", "reference", "--json").stdout)["fields"] if field["dimension"])
    assert set(field) == {"name", "type", "default", "description", "dimension"}
    assert field["name"] in run("models", "reference").stdout


def test_snapshots(run: Run, served: Served) -> None:
    rows = parse(run("snapshots", served.reference.id, "--store", place(served), "--json").stdout)
    assert [row["number"] for row in rows] == list(range(1, 44))
    assert set(rows[0]) == {
        *("number", "title", "section", "roles", "variables", "dims"),
        *("tensors", "explanation", "checks", "reason"),
    }
    assert set(rows[0]["tensors"][0]) == {"variable", "tensor", "node", "role", "shape", "symbolic"}
    assert set(rows[0]["checks"][0]) == {"name", "statement", "held", "detail"}
    table = run("snapshots", served.reference.id, "--store", place(served)).stdout
    for row in rows:
        [line] = [line for line in table.splitlines() if line.split()[:1] == [str(row["number"])]]
        for cell in (row["title"], row["roles"][0], "×".join(row["dims"]), row["tensors"][0]["node"], "✓ shape"):
            assert cell in line


def test_explains_a_snapshot(run: Run, served: Served) -> None:
    args = ("explain", 34, "--trace", served.reference.id, "--store", place(served))
    told = parse(run(*args, "--json").stdout)
    assert set(told) == {"snapshot", "first_numbers", "explanation"}
    [(variable, numbers)] = told["first_numbers"].items()
    assert np.allclose(numbers, served.engine.read_tensor(served.reference.id, ROLE, "0,0,0,:8"))
    text = run(*args).stdout
    for part in (told["snapshot"]["explanation"], variable, "1×4×5×6", "✓ softmax", str(numbers[0])[:6]):
        assert part in text


def test_explains_a_node(run: Run, served: Served) -> None:
    args = ("explain", ROLE, "--trace", served.reference.id, "--store", place(served))
    told = parse(run(*args, "--json").stdout)
    assert set(told) == {"node", "users", "snapshots", "explanation"}
    assert told["snapshots"] == [34]
    node = told["node"]
    assert set(node) == {
        *("name", "op", "target", "kind", "args", "kwargs", "values"),
        *("module", "parameters", "source", "roles", "inputs"),
    }
    assert node["inputs"] == [node["args"][0]["node"]]
    role = node["roles"][0]
    assert set(role) == {"name", "stack", "layer", "block", "part", "evidence", "checks"}
    assert role["name"] == ROLE
    text = run(*args).stdout
    source = f"{node['source']['file']}:{node['source']['line']}"
    for part in (node["name"], "softmax", node["module"], source, node["source"]["code"], role["evidence"]):
        assert part in text
    for other in (*node["inputs"], *told["users"]):
        shape = served.engine.get_graph(served.reference.id).node(other).tensors[0][1].shape
        assert f"{other}  {'×'.join(map(str, shape))}" in text


def test_the_whole_graph_as_json(run: Run, served: Served) -> None:
    told = parse(run("graph", served.reference.id, "--store", place(served), "--json").stdout)
    graph = served.engine.get_graph(served.reference.id)
    assert set(told) == {"name", "nodes", "modules", "dims", "refusals"}
    assert [node["name"] for node in told["nodes"]] == [node.name for node in graph.nodes]
    assert [node["users"] for node in told["nodes"]] == [list(graph.users[node.name]) for node in graph.nodes]
    slices = [arg for node in told["nodes"] for arg in node["args"] if isinstance(arg, list)]
    assert any(isinstance(item, dict) and "slice" in item for arg in slices for item in arg)
    assert {dim["name"]: dim["size"] for dim in told["dims"]}["d_model"] == 128


def test_queries(run: Run, served: Served) -> None:
    here = ("--trace", served.reference.id, "--store", place(served))
    args = ("query", "shape == [batch, n_heads, tgt_len, src_len]", *here)
    graph = served.engine.get_graph(served.reference.id)
    told = parse(run(*args, "--json").stdout)
    assert set(told) == {"nodes", "paths", "truncated"}
    expected = [node.name for node in graph.nodes if node.spec and node.spec.shape == (1, 4, 5, 6)]
    assert [node["name"] for node in told["nodes"]] == expected
    rows = run(*args).stdout.splitlines()
    assert rows[0] == f"{len(expected)} nodes"
    assert [row.split()[0] for row in rows if "1×4×5×6" in row] == expected


def test_queries_for_paths(run: Run, served: Served) -> None:
    here = ("--trace", served.reference.id, "--store", place(served))
    args = ("query", "--pattern", "matmul pointwise* softmax", *here)
    told = parse(run(*args, "--json").stdout)
    weights = served.engine.get_graph(served.reference.id).by_role[ROLE].name
    [path] = [path for path in told["paths"] if path[-1] == weights]
    rows = run(*args).stdout.splitlines()
    assert rows[0] == "6 paths"
    [row] = [row for row in rows if weights + " " in row]
    assert " → ".join(f"{name} 1×4×5×6" for name in path) in row


def test_tensors(run: Run, served: Served) -> None:
    args = ("tensor", MASK, "--trace", served.reference.id, "--store", place(served))
    told = parse(run(*args, "--slice", "0,0,:2", "--json").stdout)
    assert set(told) == {"trace", "tensor", "spec", "slice", "shape", "values"}
    assert set(told["spec"]) == {"shape", "dtype", "stride", "device", "contiguous", "nbytes", "symbolic"}
    assert (told["trace"], told["shape"], told["slice"]) == (served.reference.id, [2, 5], "0,0,:2")
    assert told["values"] == [[0.0, *["-Infinity"] * 4], [0.0, 0.0, *["-Infinity"] * 3]]
    text = run(*args, "--slice", "0,0,:2").stdout
    assert "1×1×5×5  float32" in text
    assert "[  0. -inf -inf -inf -inf]" in text


def test_every_dtype_as_json_and_in_files(run: Run, served: Served, tmp_path: Path) -> None:
    for name, spec in served.engine.get_graph(served.dtypes.id).tensors():
        if spec.nbytes > 10_000:
            continue
        wanted = served.engine.read_tensor(served.dtypes.id, name)
        args = ("tensor", name, "--trace", served.dtypes.id, "--store", place(served))
        told = parse(run(*args, "--json").stdout)
        numbers = np.array(told["values"])
        if wanted.dtype.kind == "c":
            numbers = numbers[..., 0] + 1j * numbers[..., 1]
        assert told["shape"] == list(wanted.shape)
        assert numbers.shape == wanted.shape or not wanted.size  # nested lists cannot say 2×0×4×5
        assert np.array_equal(numbers.reshape(wanted.shape), wanted.astype(numbers.dtype))
        if wanted.dtype.isbuiltin == 1:
            told = parse(run(*args, "--out", tmp_path / "x.npy", "--json").stdout)
            assert told["file"] == str(tmp_path / "x.npy")
            assert np.array_equal(np.load(tmp_path / "x.npy"), wanted)
        else:
            refused = run(*args, "--out", tmp_path / "x.npy")
            assert refused.exit_code == 1
            assert f"cannot hold {spec.dtype}; write a .safetensors file" in refused.stderr
        written = run(*args, "--out", tmp_path / "x.safetensors")
        if spec.dtype == "complex128":
            assert written.exit_code == 1
            assert "cannot hold complex128; write a .npy file" in written.stderr
        else:
            assert written.exit_code == 0
            with safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
                if wanted.dtype.isbuiltin == 1:
                    assert np.array_equal(file.get_tensor(name), wanted)


@pytest.mark.parametrize(("ending", "begin"), [("dot", b"digraph"), ("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_renders(run: Run, served: Served, tmp_path: Path, ending: str, begin: bytes) -> None:
    out = tmp_path / f"picture.{ending}"
    args = ("render", served.reference.id, "-o", out, "--depth", 1, "--highlight", "#33", "--highlight", "encoder.0")
    told = parse(run(*args, "--server", served.address, "--json").stdout)
    data = out.read_bytes()
    assert data.startswith(begin)
    assert told == {"file": str(out), "format": ending, "nbytes": len(data)}
    out.unlink()
    assert run(*args, "--store", place(served)).stdout == f"wrote {out} ({len(data):,} bytes)\n"
    assert out.read_bytes() == data


def test_the_options_of_a_picture_reach_it(run: Run, served: Served, tmp_path: Path) -> None:
    sources = set()
    choices = ["", "--depth 1", "--highlight #33", "--module enc_layers.0", "--direction LR", "--theme dark"]
    choices += ["--views", "--unfold"]
    for options in choices:
        run("render", served.reference.id, "-o", tmp_path / "x.dot", *options.split(), "--store", place(served))
        sources.add((tmp_path / "x.dot").read_text())
    assert len(sources) == len(choices)


# ------------------------------------------------------------------------------------------------------------ tracing


def test_traces_a_file_with_everything_set(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([1, 2], ">i8"))
    save_file({"other": np.zeros(1), "x": np.ones((2, 6), np.float32)}, tmp_path / "x.safetensors")
    result = run(
        *("trace", TINY, "--set", "width=6", "--set", "scale=0.5", "--set", "fails=no", "--seed", -3, "--training"),
        *("--input", f"ids={tmp_path / 'ids.npy'}", "--input", f"x={tmp_path / 'x.safetensors'}"),
        *("--shape", "keep=2", "--rung", "symbolic", "--json"),
    )
    assert result.stderr == ""
    trace = parse(result.stdout)
    assert set(trace) == {
        *("id", "model", "configuration", "inputs", "rung", "rung_notes", "values", "training", "seed"),
        *("torch_version", "fxtrace_version", "output_equal", "node_count", "tensor_count", "labelled_count"),
        *("parameter_count", "tensor_bytes", "created", "seconds", "weightless", "state", "state_sha256"),
        "reused",
    }
    assert trace["configuration"] == {"width": 6, "words": 10, "scale": 0.5, "fails": "no"}
    assert (trace["seed"], trace["training"], trace["values"]) == (-3, True, True)
    assert [(each["name"], each["spec"]["shape"], each["fill"]) for each in trace["inputs"]] == [
        ("ids", [2], "given"),
        ("x", [2, 6], "given"),
        ("keep", [2], "random"),
    ]
    assert parse(run("tensor", "ids", "--json").stdout)["values"] == [1, 2]
    assert parse(run("tensor", "x", "--slice", "0", "--json").stdout)["values"] == [1.0] * 6


def test_an_only_tensor_of_a_file_needs_no_name(run: Run, tmp_path: Path) -> None:
    save_file({"whatever": np.array([7, 8], np.int64)}, tmp_path / "a.safetensors")
    run("trace", TINY, "--input", f"ids={tmp_path / 'a.safetensors'}", "--shape", "x=2,4", "--shape", "keep=2")
    assert parse(run("tensor", "ids", "--json").stdout)["values"] == [7, 8]


def test_shapes_only(run: Run) -> None:
    assert "shapes only" in run("trace", TINY, "--shapes-only").stdout
    assert parse(run("traces", "--json").stdout)[0]["output_equal"] is None
    assert "shapes only" in run("traces").stdout
    refused = run("tensor", "x")
    assert refused.exit_code == 1
    assert "shapes only" in refused.stderr
    assert run("explain", "1", "--json").exit_code == 0


def test_symbolic_sizes_are_printed_here_and_by_a_server(run: Run, served: Served, tmp_path: Path) -> None:
    asked = ("--weightless", "--symbolic", "ids=batch,sequence", "--set", "n_layers=1", "--set", "max_len=8")
    for where in ((), ("--server", served.address)):
        model = "decoder" if where else Path(__file__).parents[1] / "service" / "decoder.py"
        told = run("trace", model, *asked, *where).stdout
        assert "ids (batch, sequence) int64" in told
        assert "evaluation, seed 0, built without weights" in told
        assert "Symbols: batch, sequence; other sizes are numbers" in told
        role = "decoder.0.masked_self_attention.weights"
        for command in (("graph", "--role", role), ("explain", role), ("query", 'symbolic[-1] == "sequence"')):
            assert "(batch, 32, sequence, sequence)" in run(*command, *where).stdout
        assert "(batch, 32, sequence, sequence)" in run("snapshots", *where).stdout
        assert "sequence queries × sequence keys" in run("explain", "24", *where).stdout
        picture = tmp_path / "graph.dot"
        run("render", "-o", picture, *where)
        assert "(batch, sequence, 16384)" in picture.read_text()
        node = parse(run("explain", role, "--json", *where).stdout)["node"]
        assert node["values"][0]["spec"]["symbolic"] == ["batch", "32", "sequence", "sequence"]
        run("delete", *where)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--symbolic", "idz=batch,"), "error: no tensor among the inputs named 'idz'; did you mean 'ids'?"),
        (("--symbolic", "ids=a,b"), "expected 1 names"),
        (("--symbolic", "ids=2n"), "'2n' is no name for a size of 'ids'"),
        (("--weightless", "--rung", "record"), "captured by the rung 'export', not 'record'"),
        (("--symbolic", "ids=n", "--symbolic-timeout", "0"), "expected seconds above 0, got 0"),
    ],
)
def test_bad_symbolic_sizes_are_told(run: Run, args: tuple[str, ...], told: str) -> None:
    refused = run("trace", TINY, *args)
    assert refused.exit_code == 1
    assert told in refused.stderr


def test_text_that_is_no_json_is_text(run: Run) -> None:
    source = "team from cairo"
    trace = parse(run("trace", "reference", "--set", f"source={source}", "--set", "src_len=3", "--json").stdout)
    assert trace["configuration"]["source"] == source
    assert parse(run("tensor", "src_ids", "--json").stdout)["values"] == [5, 2, 0]


def test_traces_through_a_server(run: Run, served: Served) -> None:
    told = run("trace", "tiny", "--set", "width=3", "--server", served.address)
    trace = next(trace for trace in served.engine.list_traces() if trace.configuration.get("width") == 3)
    assert told.stdout.startswith(f"tiny (Tiny) · {trace.parameter_count} parameters · trace {trace.id[:8]}\n")
    for part in (trace.id, "width=3", "ids 3 int64\n", "bit-equal", f"none of {trace.node_count} nodes"):
        assert part in told.stdout
    assert (
        parse(run("trace", "tiny", "--set", "width=3", "--server", served.address, "--json").stdout)["id"] == trace.id
    )
    told = run("delete", trace.id[:12], "--server", served.address)
    assert told.stdout == f"deleted {trace.id}\n"
    assert trace not in served.engine.list_traces()


# ------------------------------------------------------------------------------------------------------ which trace


def test_a_trace_is_named_by_id_start_or_latest(run: Run, tmp_path: Path) -> None:
    with Engine.open(tmp_path / "store") as engine:
        ids = [engine.create_trace(TraceRequest(str(TINY), seed=seed)).id for seed in range(18)]
    assert [trace["id"] for trace in parse(run("traces", "--json").stdout)] == ids[::-1]
    listed = run("traces").stdout
    assert all(each[:8] in listed for each in ids)

    def read(*trace: str) -> Any:
        return parse(run("tensor", "x", "--json", *trace).stdout)["trace"]

    assert read() == read("--trace", "latest") == ids[-1]
    assert read("--trace", ids[3]) == read("--trace", ids[3][:20]) == ids[3]
    # Of 18 ids two begin with the same digit.
    first = [each[0] for each in ids]
    digit = max(first, key=first.count)
    refused = run("snapshots", digit)
    assert refused.exit_code == 1
    assert f"'{digit}' is the start of several traces' ids" in refused.stderr
    assert parse(run("delete", ids[5], "--json").stdout) == {"deleted": ids[5]}
    assert ids[5][:8] not in run("traces").stdout


def test_an_empty_store_says_what_to_do(run: Run) -> None:
    for command in (["snapshots"], ["graph"], ["explain", "3"], ["tensor", "x"], ["render", "-o", "x.svg"]):
        refused = run(*command)
        assert refused.exit_code == 1
        assert "there are no traces yet; `fxtrace trace reference` makes one" in refused.stderr
    assert parse(run("traces", "--json").stdout) == []


def test_bfloat16_prints_as_numbers(run: Run, served: Served) -> None:
    name = next(n for n, spec in served.engine.get_graph(served.dtypes.id).tensors() if spec.dtype == "bfloat16")
    assert served.engine.read_tensor(served.dtypes.id, name).dtype == ml_dtypes.bfloat16
    text = run("tensor", name, "--slice", "0,0,0", "--trace", served.dtypes.id, "--store", place(served)).stdout
    assert "[0 1 2 3 4]" in text


def test_the_weights_that_a_trace_was_made_with(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nimport torch\n\n"
        "@dataclass\nclass Config:\n    width: int = 4\n\n"
        "def build(config): return torch.nn.Linear(config.width, 2)\n"
        "def example_inputs(config): return {'input': torch.ones(1, config.width)}\n"
    )
    file = tmp_path / "weights.safetensors"
    save_file({"weight": np.ones((2, 4), np.float32), "bias": np.zeros(2, np.float32)}, file)
    shown = "".join(run("trace", tmp_path / "mine.py", "--state", file).stdout.split())
    assert f"weightsweights.safetensors,sha256{hashlib.sha256(file.read_bytes()).hexdigest()}" in shown
    assert str(tmp_path) not in shown
