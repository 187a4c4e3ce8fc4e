"""What one line shows: fxtrace, torchinfo, torchview and TorchLens on the twelve models of examples/twelve.py.

python -m tests.benchmarks.one_line [model ...]

A row is a model and a tool: whether its one line works on the call as it is, how many tensors, shapes and modules it
shows, and the processor seconds of the second call in a process (the first one imports).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch

from examples.twelve import TWELVE

ROOT = Path(__file__).parents[2]
Args: TypeAlias = tuple[Any, ...]
Kwargs: TypeAlias = dict[str, Any]


def fxtrace_line(model: Any, args: Args, kwargs: Kwargs) -> str:
    import fxtrace

    t = fxtrace.trace(model, *args, **kwargs)
    return f"{t.info.tensor_count} tensors with values, {len(t.roles)} roles, output equal {t.info.output_equal}"


def torchinfo_line(model: Any, args: Args, kwargs: Kwargs) -> str:
    import torchinfo

    found = torchinfo.summary(model, input_data=[*args], verbose=0, **kwargs)
    return f"{len(found.summary_list)} modules with output shapes"


def torchview_line(model: Any, args: Args, kwargs: Kwargs) -> str:
    import torchview

    graph = torchview.draw_graph(model, input_data=[*args], **kwargs)
    return f"a picture of {len(graph.visual_graph.body)} lines of DOT"


def torchlens_line(model: Any, args: Args, kwargs: Kwargs) -> str:
    import torchlens

    log = torchlens.trace(model, [*args], kwargs)
    return f"{len(log)} tensors with values"


TOOLS: dict[str, Callable[[Any, Args, Kwargs], str]] = {
    "fxtrace": fxtrace_line,
    "torchinfo": torchinfo_line,
    "torchview": torchview_line,
    "TorchLens": torchlens_line,
}


def main(names: list[str]) -> None:
    print("| model | tool | shows | processor seconds |\n| --- | --- | --- | ---: |")
    for name in names or TWELVE:
        for tool, line in TOOLS.items():
            torch.manual_seed(0)
            model, args, kwargs = TWELVE[name]()
            model.eval()
            try:
                line(model, args, kwargs)
                start = time.process_time()
                shows = line(model, args, kwargs)
                seconds = f"{time.process_time() - start:.3f}"
            except Exception as error:  # noqa: BLE001 - whatever a peer raises is what it shows
                shows, seconds = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:90]}", ""
            print(f"| {name} | {tool} | {shows} | {seconds} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
