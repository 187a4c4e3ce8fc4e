"""Every example runs from a clean checkout."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fxtrace.models import Registry
from fxtrace.service.engine import Engine
from fxtrace.service.server import serving
from fxtrace.trace import TraceRequest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Engine.open(tmp_path_factory.mktemp("store")) as engine, serving(engine) as address:
        yield address


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cross_attention_by_role(address: str) -> None:
    lines = run(sys.executable, str(EXAMPLES / "cross_attention.py"), address).splitlines()
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


def test_node(address: str) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    assert (EXAMPLES / "node/node_modules/@grpc").is_dir(), "`make test` runs npm ci in examples/node first"
    lines = run(node, str(EXAMPLES / "node/snapshots.mjs"), address).splitlines()
    assert [int(line.split()[0]) for line in lines[:43]] == list(range(1, 44))
    assert "Cross-attention score matrix before softmax  [batch,n_heads,tgt_len,src_len]" in lines[32]
    weights = re.findall(r"0\.\d{4}", lines[43])
    assert len(weights) == 6
    assert sum(map(float, weights)) == pytest.approx(1, abs=1e-3)
