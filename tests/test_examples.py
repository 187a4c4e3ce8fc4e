"""Every example runs from a clean checkout."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fxtrace.ir.trace import TraceRequest
from fxtrace.models import Registry
from fxtrace.service.engine import Engine
from tests.conftest import Served

ROOT = Path(__file__).parent.parent
EXAMPLES, README = ROOT / "examples", ROOT / "README.md"


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cross_attention_by_role(served: Served) -> None:
    lines = run(sys.executable, str(EXAMPLES / "cross_attention.py"), served.address).splitlines()
    assert lines[0].endswith("decoder.1.cross_attention.weights  (1, 4, 5, 6)")
    assert [line.split()[0] for line in lines[1:]] == ["we", "are", "debugging", "transformer", "today"]
    words = {"hello", "from", "cairo", "egypt", "team", "project"}
    assert all(set(line.split()[1::2]) <= words for line in lines[1:])


def test_a_model_file_of_ones_own(tmp_path: Path) -> None:
    model = Registry().add_file(EXAMPLES / "my_model.py")
    registry = Registry()
    registry.add_file(EXAMPLES / "my_model.py")
    with Engine.open(tmp_path, registry) as engine:
        trace = engine.create_trace(TraceRequest(model.name, {"width": 64, "n_heads": 8}))
        assert trace.output_equal
        roles = set(engine.get_graph(trace.id).by_role)
    blocks = {f"decoder.{layer}.{block}" for layer in (0, 1) for block in ("masked_self_attention", "feed_forward")}
    assert {f"{block}.norm_output" for block in blocks} <= roles
    assert {f"decoder.{layer}.masked_self_attention.weights" for layer in (0, 1)} <= roles
    assert {"output.logits", "decoder.embedding.tokens"} <= roles


def test_reflection(served: Served) -> None:
    def ask(*arguments: str) -> str:
        return run(sys.executable, str(EXAMPLES / "reflection.py"), "-plaintext", *arguments)

    assert "fxtrace.v1.TraceService" in ask(served.address, "list").splitlines()
    service = ask(served.address, "describe", "fxtrace.v1.TraceService").splitlines()
    assert (
        "  rpc ReadTensor ( .fxtrace.v1.ReadTensorRequest ) returns ( stream .fxtrace.v1.ReadTensorResponse );"
        in service
    )
    message = ask(served.address, "describe", "fxtrace.v1.ReadTensorRequest").splitlines()
    assert message[1:4] == ["  string trace = 1;", "  string tensor = 2;", "  .fxtrace.v1.TensorSlice slice = 3;"]
    request = json.dumps({"trace": f"traces/{served.reference.id}", "numbers": [33]})
    (snapshot,) = json.loads(ask("-d", request, served.address, "fxtrace.v1.TraceService/ListSnapshots"))["snapshots"]
    assert snapshot["dims"] == ["batch", "n_heads", "tgt_len", "src_len"]


SECTION = re.search(r"^## Call it from …$.*?(?=^## )", README.read_text(), re.MULTILINE | re.DOTALL)
ROWS = re.findall(r"^\| (.+?) \| `(.+)` \|$", SECTION[0] if SECTION else "", re.MULTILINE)


@pytest.mark.parametrize(("place", "line"), ROWS, ids=[place for place, _ in ROWS])
def test_call_it_from(served: Served, place: str, line: str) -> None:
    """A line of the README as it stands there, but for the address; each of them prints the trace's id."""
    program, *arguments = shlex.split(line.replace("127.0.0.1:50051", served.address))
    ours = {"python": [sys.executable], "fxtrace": [sys.executable, "-m", "fxtrace"]}
    command = ours.get(program, [program])
    if shutil.which(command[0]) is None:
        pytest.skip(f"{program} is not installed")
    assert served.reference.id in run(*command, *arguments)


def test_the_table_of_callers() -> None:
    lines = dict(ROWS)
    assert len(lines) == 5
    by_grpcurl, by_python = (lines[place] for place in lines if "reflection" in place)
    assert by_grpcurl.removeprefix("grpcurl") == by_python.removeprefix("python examples/reflection.py")
