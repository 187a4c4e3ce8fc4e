from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Run
from tests.conftest import Served

BUILD_IS_INTERRUPTED = """
from dataclasses import dataclass

@dataclass
class Config:
    size: int = 1

def build(config):
    raise KeyboardInterrupt

def example_inputs(config):
    return {}
"""

# The call, its exit code, and what it says on stderr. {} stands for the trace, FILES for a folder.
BAD_CALLS = [
    (["trace", "referense"], 1, "no model named 'referense'; did you mean 'reference'?"),
    (["trace", "reference", "--set", "d_modle=64"], 1, "no configuration field of model 'reference' named 'd_modle'"),
    (["trace", "reference", "--set", "d_model=65"], 1, "n_heads must divide d_model: 65 / 4 is not whole"),
    (["trace", "reference", "--set", "d_model=wide"], 1, "field 'd_model': "),
    (["trace", "reference", "--set", "source=hello mars"], 1, "the word 'mars', which is outside its vocabulary"),
    (["trace", "reference", "--set", "d_model"], 2, "expected NAME=VALUE, got 'd_model'"),
    (["trace", "reference", "--shape", "src_ids=six"], 2, "expected sizes as in src_ids=1,6, got 'src_ids=six'"),
    (["trace", "reference", "--shape", "src_id=3"], 1, "no input named 'src_id'; did you mean 'src_ids'?"),
    (["trace", "reference", "--shape", "src_ids=99999999999"], 1, "takes 799999999992 bytes"),
    (["trace", "reference", "--shape", "src_ids=2,3,4"], 1, "transformer.py"),
    (["trace", "reference", "--input", "src_ids=FILES/float.npy"], 1, "'src_ids': expected dtype int64, got float32"),
    (["trace", "reference", "--input", "src_ids=FILES/none.npy"], 1, "none.npy: No such file or directory"),
    (["trace", "reference", "--input", "src_ids=FILES/text.npy"], 1, "cannot be read from"),
    (["trace", "reference", "--input", "src_ids=FILES/text.txt"], 1, "expected a .npy or a .safetensors file"),
    (["trace", "reference", "--input", "src_ids=FILES/text.safetensors"], 1, "expected a header of"),
    (["trace", "reference", "--rung", "ladder"], 2, "'ladder' is not"),
    (["trace", "reference", "--seed", "seven"], 2, "Invalid value for '--seed'"),
    (["trace", "FILES/none.py"], 1, "no model file at"),
    (["trace", "FILES/text.py"], 1, "model file text.py cannot be imported: NameError"),
    (["trace"], 2, "Missing argument 'MODEL'"),
    (["models", "referense"], 1, "did you mean 'reference'?"),
    (["snapshots", "my-trace"], 1, "expected a trace's id, the start of one, or 'latest'; got 'my-trace'"),
    (["snapshots", "0123456789abcdef"], 1, "no trace's id starts with '0123456789abcdef'"),
    (["snapshots", "0" * 32], 1, f"no trace with the id {'0' * 32}"),
    (["delete", "0" * 32], 1, f"no trace with the id {'0' * 32}"),
    (["delete"], 2, "Missing argument"),
    (["explain", "44", "--trace", "{}"], 1, "no snapshot 44; there are 1 to 43"),
    (
        ["explain", "encoder.0.self_attention.score", "--trace", "{}"],
        1,
        "did you mean 'encoder.0.self_attention.scores'?",
    ),
    (["explain", "", "--trace", "{}"], 1, "named ''. Known: encoder, "),
    (["explain", "add:7", "--trace", "{}"], 1, "named 'add:7'; did you mean 'add_7'?"),
    (["explain", "9" * 5000, "--trace", "{}"], 1, f"snapshot number named '{'9' * 100}…'. Known: "),
    (["explain", "d_modle", "--trace", "{}"], 1, "did you mean 'd_model'? Known: encoder, encoder.embedding, "),
    (["diff", "{}", "{}", "-o", "FILES/no/x.svg"], 1, "No such file or directory"),
    (["diff", "{}", "0" * 32], 1, f"no trace with the id {'0' * 32}"),
    (["diff", "{}", "referense"], 1, "named 'referense'; did you mean 'reference'?"),
    (["formulas", "referense"], 1, "did you mean 'reference'?"),
    (["graph", "{}", "--module", "encoder"], 1, "no module named 'encoder'"),
    (["graph", "{}", "--role", "decoder.7"], 1, "no role named 'decoder.7'"),
    (
        ["query", "shape[-1] == d_modl", "--trace", "{}"],
        1,
        "column 14: no name named 'd_modl'; did you mean",
    ),
    (["query", "--pattern", "matmul soft", "--trace", "{}"], 1, "pattern, column 8: no kind named 'soft'"),
    (["query", "--path", "src_id", "add", "--trace", "{}"], 1, "path: no node or role named 'src_id'; did you mean"),
    (["query", "--path", "src_ids", "add", "--pattern", "add", "--trace", "{}"], 1, "a path or a pattern; got both"),
    (["query", "--depth", "2", "--trace", "{}"], 1, "expected ancestors_of or descendants_of with it"),
    (["query", "--ancestors", "add", "--depth", "0", "--trace", "{}"], 2, "Invalid value for '--depth'"),
    (["tensor", "logit", "--trace", "{}"], 1, "no tensor or role named 'logit'"),
    (["tensor", "src_ids", "--slice", "6", "--trace", "{}"], 1, "expected an index from -6 to 5, got 6"),
    (["tensor", "src_ids", "--slice", "0,0", "--trace", "{}"], 1, "expected at most 1 indices, got 2"),
    (["tensor", "src_ids", "--slice", "[0]", "--trace", "{}"], 1, "got '[0]'"),
    (["tensor", "src_ids", "--out", "FILES/x.csv", "--trace", "{}"], 1, "expected a .npy or .safetensors file"),
    (["tensor", "src_ids", "--out", "FILES/no/x.npy", "--trace", "{}"], 1, "No such file or directory"),
    (["tensor", "src_ids", "--out", "FILES/no/x.safetensors", "--trace", "{}"], 1, "No such file or directory"),
    (["render", "{}"], 2, "Missing option '--out'"),
    (["render", "{}", "-o", "FILES/x.gif"], 1, "expected a file that ends in .dot, .svg, .png, .pdf, got 'x.gif'"),
    (["render", "{}", "-o", "FILES/no/x.dot"], 1, "No such file or directory"),
    (["render", "{}", "-o", "FILES/x.dot", "--depth", "-1"], 2, "Invalid value for '--depth'"),
    (["render", "{}", "-o", "FILES/x.dot", "--highlight", "encodr"], 1, "no node, role or role prefix named 'encodr'"),
    (["render", "{}", "-o", "FILES/x.dot", "--highlight", "#44"], 1, "no snapshot named '#44'"),
    (["render", "{}", "-o", "FILES/x.dot", "--module", "encoder"], 1, "no module named 'encoder'"),
    (["render", "{}", "-o", "FILES/x.dot", "--direction", "up"], 2, "'up' is not one of 'TB', 'LR'"),
]
LOCAL_BAD_CALLS = [
    (["serve", "--port", "65536"], 2, "Invalid value for '--port'"),
    (["serve", "--host", "0.0.0.0", "--port", "0"], 1, "expected a loopback address"),
    (["serve", "--model", "FILES/none.py"], 1, "no model file at"),
    (["snapshots", "--store", "FILES/text.txt"], 1, "cannot be used: "),
    (["snapshots", "--store", "FILES", "--server", "127.0.0.1:1"], 2, "a server has a store of its own"),
    (["snapshots", "--colour"], 2, "No such option"),
    (["formulas", "--ca", "FILES/none.pem", "--server", "127.0.0.1:1"], 1, "none.pem"),
    (["lock", "reference", "-o", "FILES/no/x.lock"], 1, "no/x.lock: No such file or directory"),
    (["lock", "reference", "-o", "FILES"], 1, "Is a directory"),
    (["demo", "--out", "FILES/text.txt"], 1, "cannot write to"),
    (["snapshot"], 2, "No such command 'snapshot'"),
]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    np.save(tmp_path / "float.npy", np.zeros(6, np.float32))
    for name in ("text.npy", "text.txt", "text.py", "text.safetensors"):
        (tmp_path / name).write_text("neither_code_nor_numbers")
    return tmp_path


def check(run: Run, args: list[str], code: int, message: str) -> str:
    """The call fails as it should, with nothing on stdout and no traceback; returns what it said."""
    result = run(*args)
    # Work tells its stages first, and usage errors are framed, and so folded.
    lines = [line for line in result.stderr.splitlines() if not re.search(r" \.\.\.( \d+/\d+)?$", line)]
    said = " ".join(" ".join(lines).replace("│", " ").split())
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(("args", "code", "message"), BAD_CALLS, ids=lambda value: str(value)[:60])
def test_bad_calls_fail_alike_here_and_through_a_server(
    run: Run, served: Served, files: Path, args: list[str], code: int, message: str
) -> None:
    args = [arg.replace("{}", served.reference.id).replace("FILES", str(files)) for arg in args]
    here = check(run, [*args, "--store", str(served.engine._store.place)], code, message)
    if code == 1 and not args[-1].endswith(".py"):  # files are traced here only
        assert here.startswith("error: ")
        there = check(run, [*args, "--server", served.address], code, message)
        assert there.split(" Known: ")[0] == here.split(" Known: ")[0]  # the server offers more models


@pytest.mark.parametrize(("args", "code", "message"), LOCAL_BAD_CALLS, ids=lambda value: str(value)[:60])
def test_bad_calls(run: Run, files: Path, args: list[str], code: int, message: str) -> None:
    check(run, [arg.replace("FILES", str(files)) for arg in args], code, message)


def test_a_model_file_is_not_for_a_server(run: Run, served: Served) -> None:
    check(run, ["trace", "mine.py", "--server", served.address], 1, "expected the name of a model that the server")


def test_a_port_that_is_taken(run: Run, served: Served) -> None:
    port = served.address.rpartition(":")[2]
    check(run, ["serve", "--port", port], 1, f"cannot listen on 127.0.0.1:{port}")


def test_serving_without_its_packages_says_what_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("fxtrace.service.server", "grpc_health"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("fxtrace.service.server")
    monkeypatch.setitem(sys.modules, "grpc_health", None)  # importing it fails, as where it is not installed
    check(run, ["serve"], 1, "install it with: pip install 'fxtrace[server]'")


def test_errors_are_json_where_json_is_asked_for(run: Run, served: Served) -> None:
    for where in (("--store", served.engine._store.place), ("--server", served.address)):
        args = ("tensor", "src_ids", "--slice", "6", "--trace", served.reference.id, *where)
        result = run(*args, "--json")
        assert (result.exit_code, result.stdout) == (1, "")
        told = json.loads(result.stderr)
        assert bool(told.pop("request_id", "")) == ("--server" in args)
        assert set(told) == {"reason", "message", "field", "metadata"}
        assert (told["reason"], told["field"]) == ("SLICE_INVALID", "slice")
        assert told["metadata"]["dimension"] == "0"
        assert told["message"] in run(*args).stderr


def test_an_interrupt_ends_quietly_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BUILD_IS_INTERRUPTED)
    result = run("trace", tmp_path / "mine.py")
    assert (result.exit_code, result.stdout, result.stderr.splitlines()[-1]) == (130, "", "error: interrupted")
    assert json.loads(run("traces", "--json").stdout) == []
