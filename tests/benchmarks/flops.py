"""FLOPs by fxtrace against those that PyTorch counts while a model runs.

    python -m tests.benchmarks.flops [FAMILY …]

Families of transformers, small and with random weights. `torch.utils.flop_counter.FlopCounterMode` counts an eager run,
with attention's kernel the one of plain products: it does not know the CPU's fused one. Nor does it know grouped
products; here it is told to count each group by its rows, as the offsets of that run have them. fxtrace counts from the
shapes in a graph without values (`propagation`), or where the path depends on numbers from that of a run (`run`), and
from the graph of torch.export, where that can follow the model. Prints a table; exits 1 where numbers differ.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fxtrace.capture import ValuesNeeded, capture
from fxtrace.errors import CaptureFailed
from fxtrace.ir.trace import Rung
from fxtrace.models import Registry
from fxtrace.sweep import Costs

FAMILIES = (
    *("bert", "roberta", "distilbert", "albert", "deberta", "gpt2", "gpt_neo", "opt", "bloom", "llama", "qwen2"),
    *("gemma", "phi", "deepseek_v3", "t5", "bart", "vit", "swin", "convnext", "whisper", "wav2vec2", "clip", "mamba"),
    *("mixtral", "qwen3_moe", "gpt_oss", "granitemoe", "switch_transformers", "nllb-moe", "jetmoe"),
)


def grouped(a: Tensor, b: Tensor, offs: Tensor, *_: object, **__: object) -> int:
    """FLOPs of a grouped product, from the rows that are in groups."""
    assert (a.dim(), b.dim()) == (2, 3)
    return 2 * int(offs[-1]) * a.shape[1] * b.shape[2]


grouped._get_raw = True  # type: ignore[attr-defined]  # the counter's own way to say: give it the tensors


def counted(module: nn.Module, inputs: dict[str, Any]) -> int:
    """What PyTorch counts in a run."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: grouped})
    with counter, sdpa_kernel(SDPBackend.MATH):
        module.eval()(**inputs)
    return int(counter.get_total_flops())


def ours(module: nn.Module, inputs: dict[str, Any], rung: Rung) -> tuple[int | str | None, str]:
    """What fxtrace counts, and how."""
    how: str = "propagation"
    try:
        taken = capture(module, inputs, rung=rung, values=False)
    except ValuesNeeded:
        if rung == "export":
            return "refused", how
        taken, how = capture(module, inputs, rung=rung), "run"
    except CaptureFailed:
        return "refused", how
    return Costs(taken.graph, taken.bases).cost().flops, how


def main() -> int:
    """Prints the table."""
    torch.set_num_threads(1)
    print("| family | PyTorch's counter | fxtrace | how | by export | equal |\n" + "| --- " * 6 + "|")
    different = 0
    for family in sys.argv[1:] or FAMILIES:
        model = Registry.installed().load(f"hf:{family}")
        config = model.resolve({})
        module, inputs = model.build(config), dict(model.example_inputs(config))
        expected = counted(module, inputs)
        (found, how), (exported, _) = ours(module, inputs, "record"), ours(module, inputs, "export")
        equal = found == expected and exported in (expected, "refused")
        different += not equal
        print(f"| {family} | {expected:,} | {found:,} | {how} | {exported} | {'yes' if equal else 'NO'} |", flush=True)
    return min(1, different)


if __name__ == "__main__":
    sys.exit(main())
