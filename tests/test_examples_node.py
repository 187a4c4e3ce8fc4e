"""The Node example, against a real server."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc import error_details_pb2, status_pb2

from fxtrace.client import Client
from fxtrace.service.keys import new_key
from fxtrace.service.server import serving
from fxtrace.service.settings import Settings
from tests.conftest import Served
from tests.protos.compiled import compiled
from tests.service.certificates import write_authority, write_pair
from tests.service.dtypes import DTYPES

FOLDER = Path(__file__).parent.parent / "examples/node"
WEIGHTS = "decoder.0.cross_attention.weights"
NODE = shutil.which("node") or ""

pytestmark = pytest.mark.skipif(not NODE, reason="Node is not installed")


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    assert (FOLDER / "node_modules/@grpc").is_dir(), "`make test` runs npm ci in examples/node first"


def command(address: str, *arguments: str) -> list[str]:
    return [NODE, str(FOLDER / "fxtrace.mjs"), "--server", address, *arguments]


def run(address: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(address, *arguments), capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


def output(address: str, *arguments: str) -> list[str]:
    done = run(address, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def script(address: str, body: str) -> Any:
    """What a script with a `client` gives, as JSON."""
    text = f"""
        import {{ Client }} from {json.dumps((FOLDER / "client.mjs").as_uri())};
        const client = new Client({json.dumps(address)});
        const exact = (_, each) => (typeof each === "bigint" ? Number(each) : Number.isNaN(each) ? "nan" : each);
        try {{ console.log(JSON.stringify(await (async () => {{ {body} }})(), exact)); }} finally {{ client.close(); }}
    """
    done = subprocess.run([NODE, "--input-type=module", "-e", text], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def of(served: Served) -> tuple[str, str]:
    return "--trace", f"traces/{served.reference.id}"


def test_trace_with_progress(served: Served) -> None:
    done = run(
        served.address, "trace", "reference", "--set", "d_ff=96", "--set", "source=team project from cairo egypt hello"
    )
    assert done.returncode == 0, done.stderr
    name = done.stdout.split()[0]
    assert done.stdout == f"{name}  205 nodes, 153 tensors, RUNG_SYMBOLIC\n"
    stages = done.stderr.split()
    assert stages[0] == "build"
    assert stages[-3:] == ["propagate", "label", "store"]
    with Client(served.address) as client:
        configuration = client.get_trace(name.removeprefix("traces/")).configuration
    assert (configuration["d_ff"], configuration["source"]) == (96, "team project from cairo egypt hello")


def test_snapshots(served: Served) -> None:
    lines = output(served.address, "snapshots", *of(served))
    assert [int(line.split()[0]) for line in lines] == list(range(1, 44))
    assert lines[32].startswith("33  Cross-attention score matrix before softmax  [batch,n_heads,tgt_len,src_len]  ")
    assert lines[32].endswith("[1,4,5,6]")


def test_a_slice_of_a_tensor(served: Served) -> None:
    about, numbers = output(served.address, "tensor", WEIGHTS, "--slice", "0,0,-1", *of(served))
    with Client(served.address) as client:
        weights = client.read_tensor(served.reference.id, WEIGHTS, "0,0,-1")
    assert about.endswith("[6]  float32 in a Float32Array")
    assert [float(each) for each in numbers.split()] == weights.tolist()


def test_a_tensor_in_many_chunks(served: Served) -> None:
    name = served.engine.get_graph(served.dtypes.id).nodes[-2].name
    found = script(
        served.address,
        f"""
        const {{ values, shape }} = await client.readTensor("traces/{served.dtypes.id}", "{name}");
        return {{ shape, type: values.constructor.name, wrong: values.findIndex((each, i) => each !== i + 1) }};
        """,
    )
    assert found == {"shape": [8 << 18], "type": "Float32Array", "wrong": -1}


def test_every_element_type(served: Served) -> None:
    """The numbers of each type, or that it has no array."""
    specs = dict(served.engine.get_graph(served.dtypes.id).tensors())
    names = [name for name in specs if specs[name].shape == (2, 3, 4, 5)]
    found = script(
        served.address,
        f"""
        const found = {{}};
        for (const name of {json.dumps(names)}) {{
          try {{
            const {{ dtype, shape, values }} = await client.readTensor("traces/{served.dtypes.id}", name);
            found[name] = {{ dtype, shape, type: values.constructor.name, values: Array.from(values) }};
          }} catch (error) {{
            found[name] = `${{error}}`;
          }}
        }}
        return found;
        """,
    )
    assert {specs[name].dtype for name in names} >= {str(dtype).removeprefix("torch.") for dtype in DTYPES}
    for name, spec in specs.items():
        if name in found and spec.dtype.startswith(("complex", "float8")):
            assert found[name].startswith(f"TypeError: {spec.dtype} has no typed array; expected one of bool, uint8")
        elif name in found:
            expected = served.engine.read_tensor(served.dtypes.id, name)
            assert (found[name]["dtype"], found[name]["shape"]) == (spec.dtype, list(spec.shape))
            assert found[name]["values"] == expected.astype(np.float64).ravel().tolist()
            wide = {"float16": "Float32Array", "bfloat16": "Float32Array", "float32": "Float32Array"}
            assert wide.get(spec.dtype, found[name]["type"]) == found[name]["type"]


def test_every_float_of_16_bits(served: Served) -> None:
    """All 65,536 of each kind are widened as NumPy does it."""
    import ml_dtypes

    bits = np.arange(1 << 16, dtype=np.uint16)
    found = script(
        served.address,
        f"""
        const {{ typedArray }} = await import({json.dumps((FOLDER / "tensors.mjs").as_uri())});
        const bits = Uint16Array.from({{ length: 65536 }}, (_, i) => i).buffer;
        const text = (each) => Number.isFinite(each) ? (Object.is(each, -0) ? "-0" : each) : String(each);
        return ["float16", "bfloat16"].map((dtype) => Array.from(typedArray(dtype, bits), text));
        """,
    )
    for dtype, values in zip((np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)), found, strict=True):
        assert len(values) == 1 << 16
        with np.errstate(invalid="ignore"):  # of NaNs
            exact = bits.view(dtype).astype(np.float64)
        for expected, got in zip(exact, map(float, values), strict=True):
            assert (expected == got and math.copysign(1, expected) == math.copysign(1, got)) or got != got != expected


def test_render_to_a_file(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "graph.svg"
    assert output(served.address, "render", str(file), *of(served)) == [str(file)]
    with Client(served.address) as client:
        assert file.read_bytes() == client.render_graph(served.reference.id, "svg")
    done = run(served.address, "render", str(tmp_path / "graph.gif"), *of(served))
    assert done.returncode == 1
    assert "no format 'gif'; known: IMAGE_FORMAT_DOT" in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["graph.svg"]


def test_an_interrupt_cancels_the_call_on_the_server(
    served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fxtrace.service")
    asked = command(served.address, "trace", "slow", "--set", f"log={tmp_path / 'log'}", "--set", "steps=200")
    with subprocess.Popen(asked, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip() == "propagate":
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.endswith("CANCELLED: Cancelled on client\n")
    while not any("CreateTrace code=CANCELLED" in each.getMessage() for each in caplog.records):
        time.sleep(0.01)  # until the server has heard of it


def test_a_signal_that_has_fired_cancels_every_kind_of_call(served: Served) -> None:
    trace = f"traces/{served.reference.id}"
    told = script(
        served.address,
        f"""
        const signal = AbortSignal.abort();
        const calls = [
          client.listSnapshots("{trace}", {{ signal }}),
          client.readTensor("{trace}", "{WEIGHTS}", {{ signal }}),
          client.renderGraph("{trace}", "dot", {{ signal }}).next(),
          client.listTraces({{ signal }}).next(),
        ];
        return (await Promise.allSettled(calls)).map(({{ reason }}) => [reason.name, reason.status, reason.reason]);
        """,
    )
    assert told == [["FxtraceError", "CANCELLED", ""]] * 4


def test_errors_say_their_reason(served: Served) -> None:
    done = run(served.address, "trace", "reference", "--set", "d_modl=4")
    first, *rest = done.stderr.splitlines()
    assert done.returncode == 1
    assert first.startswith("INVALID_ARGUMENT CONFIGURATION_INVALID: no configuration field of model 'reference' named")
    assert sorted(rest) == ["  model: reference", "  name: d_modl"]
    told = script(
        served.address,
        """
        const asked = { model: "models/reference", configuration: { d_modl: 4 } };
        try { await client.createTrace(asked); } catch (error) { return { ...error, name: error.name }; }
        """,
    )
    assert len(told.pop("requestId")) == 16
    assert told == {
        "name": "FxtraceError",
        "status": "INVALID_ARGUMENT",
        "reason": "CONFIGURATION_INVALID",
        "metadata": {"name": "d_modl", "model": "reference"},
        "field": "configuration.d_modl",
        "retryAfter": 0,
    }
    assert (
        run(served.address, "trail").stderr == "error: expected one of trace, snapshots, tensor, render; got 'trail'\n"
    )


def test_the_readme_s_lines(served: Served) -> None:
    (lines,) = re.findall(
        r"^```js\n(.*?)^```$", (FOLDER.parent.parent / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    text = lines.replace("127.0.0.1:50051", served.address) + "\nconsole.log(trace.name, shape.join(), values.length);"
    done = subprocess.run(
        [NODE, "--input-type=module", "-e", text], capture_output=True, text=True, timeout=120, cwd=FOLDER.parent.parent
    )
    name, shape, length = done.stdout.split()
    assert (name[:7], shape, length) == ("traces/", "1,4,5,6", "120")


def test_a_key_and_tls(served: Served, tmp_path: Path) -> None:
    _, key = new_key(tmp_path / "keys.json", "reader", "read")
    authority = trustme.CA()
    ca = write_authority(tmp_path, authority)
    certificate, private = write_pair(tmp_path, authority.issue_cert("localhost", "127.0.0.1"))
    settings = Settings(keys=tmp_path / "keys.json", tls_certificate=certificate, tls_key=private)
    with serving(served.engine, "localhost:0", settings=settings) as address:
        asked = ("snapshots", "--ca", str(ca), *of(served))
        assert len(run(address, *asked, FXTRACE_TOKEN=key).stdout.splitlines()) == 43
        assert run(address, *asked).stderr.startswith("UNAUTHENTICATED UNAUTHENTICATED: this server wants a key")
        refused = run(address, "trace", "tiny", "--ca", str(ca), FXTRACE_TOKEN=key)
        assert refused.stderr.startswith("PERMISSION_DENIED PERMISSION_DENIED: CreateTrace needs a key")
        assert run(address, "snapshots", "--tls", FXTRACE_TOKEN=key).stderr.startswith("UNAVAILABLE: ")
    done = run("example.org:50051", "snapshots", FXTRACE_TOKEN="fxt_x")
    assert "a key is not sent for all to read" in done.stderr


def test_its_google_rpc_is_google_s() -> None:
    """Every field is the official one: same name, number and type."""
    (ours,) = compiled(FOLDER, "google_rpc.proto")
    for message in ours.message_type:
        official = FileDescriptorProto()
        (status_pb2 if message.name == "Status" else error_details_pb2).DESCRIPTOR.CopyToProto(official)
        (theirs,) = (each for each in official.message_type if each.name == message.name)
        fields = {
            (f.name, f.number, f.type, f.type_name) for each in (message, *message.nested_type) for f in each.field
        }
        assert fields <= {
            (f.name, f.number, f.type, f.type_name) for each in (theirs, *theirs.nested_type) for f in each.field
        }
