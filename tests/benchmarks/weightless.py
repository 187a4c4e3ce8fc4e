"""What a model costs to capture and label without its weights, against a bare torch.export: `python -m` this module.

Both are given the same module, inputs and symbolic sizes. Each measurement is a process of its own, so that its peak
memory is its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from torch.export import Dim

SIZES: dict[str, dict[str, Any]] = {
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    },
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "405B": {
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
"""Llama's published configurations."""


def request(size: str, symbolic: bool) -> Any:
    """What `fxtrace trace hf:llama --weightless` asks for."""
    from fxtrace.ir.trace import TraceRequest

    names = dict.fromkeys(("input_ids", "attention_mask"), ("batch", "sequence"))
    configuration = {"preset": "default", "batch": 2, "seq_len": 128, **SIZES[size]}
    return TraceRequest("hf:llama", configuration, weightless=True, symbolic=names if symbolic else {})


def ours(size: str, symbolic: bool) -> dict[str, Any]:
    """Captures, tries the roles on a shrunken copy, and labels."""
    from fxtrace.models.hf import HuggingFaceModel
    from fxtrace.service.tracing import Tracing

    start, cpu = time.perf_counter(), time.process_time()
    times: dict[str, float] = {}
    tracing = Tracing(
        HuggingFaceModel("hf:llama"), request(size, symbolic), lambda at: times.update({at.stage: time.perf_counter()})
    )
    data = tracing.run()
    trace, graph = data.info, data.graph
    end = time.perf_counter()
    return {
        "seconds": end - start,
        "cpu": time.process_time() - cpu,
        "label_seconds": end - times["label"],
        "nodes": trace.node_count,
        "labelled": trace.labelled_count,
        "without_shape": sum(not node.values for node in graph.nodes if node.op != "output"),
        "parameters": trace.parameter_count,
    }


def bare(size: str, symbolic: bool) -> dict[str, Any]:
    """torch.export on fake tensors, and nothing else."""
    from fxtrace.capture.fakes import with_fakes
    from fxtrace.models.hf import HuggingFaceModel

    start, cpu = time.perf_counter(), time.process_time()
    source = HuggingFaceModel("hf:llama")
    config = source.resolve(request(size, symbolic).configuration)
    with torch.device("meta"):
        model = source.build(config)
    inputs = with_fakes(model, source.example_inputs(config))
    sizes = {name: {0: Dim.AUTO, 1: Dim.AUTO} for name in inputs} if symbolic else None
    with torch.no_grad():
        program = torch.export.export(model, (), inputs, dynamic_shapes=sizes, strict=False)
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "nodes": len(program.graph.nodes),
    }


def in_a_process(what: str, size: str, sizes: str) -> dict[str, Any]:
    """Runs one of the two in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.weightless", what, size, sizes]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def main() -> None:
    """Prints the table; of three pairs of runs, the one with the middle ratio."""
    print("| model | capture + label | of it label | bare export | CPU ratio | peak memory | bare | nodes | labelled |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for size, sizes in (("7B", "fixed"), *((size, "symbolic") for size in SIZES)):
        pairs = [(in_a_process("ours", size, sizes), in_a_process("bare", size, sizes)) for _ in range(3)]
        mine, floor = sorted(pairs, key=lambda pair: pair[0]["cpu"] / pair[1]["cpu"])[1]
        print(
            f"| Llama {size} ({mine['parameters'] / 1e9:.1f} billion), {sizes} sizes | {mine['seconds']:.2f} s "
            f"| {mine['label_seconds']:.2f} s | {floor['seconds']:.2f} s | {mine['cpu'] / floor['cpu']:.2f} "
            f"| {mine['megabytes']:.0f} MB | {floor['megabytes']:.0f} MB | {mine['nodes']} | {mine['labelled']} |",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        measured = {"ours": ours, "bare": bare}[sys.argv[1]](sys.argv[2], sys.argv[3] == "symbolic")
        measured["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(measured))
    else:
        main()
