"""One row of the coverage table: a model, traced, labelled, held against the truth, and timed."""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from fxtrace.capture import capture
from fxtrace.graph import Graph
from fxtrace.models import Model, Registry
from fxtrace.roles import label
from tests.benchmarks.coverage.truth import KINDS, TrueAttention, true_attentions

TENSOR_TYPES = ("Tensor", "Parameter")


@dataclass
class Score:
    """Blocks of one kind: how many there are, and what became of them."""

    expected: int = 0
    found: int = 0
    right: int = 0
    wrong: int = 0

    @property
    def refused(self) -> int:
        return max(0, self.expected - self.found)


@dataclass
class Row:
    """What was measured of one model; times in seconds, and in words where something could not be measured."""

    case: str
    attention: str = ""
    rung: str = ""
    nodes: int = 0
    with_shape: float = 0.0
    output_equal: bool | None = None
    notes: tuple[str, ...] = ()
    truth: bool = False
    scores: dict[str, Score] = field(default_factory=dict)
    refusals: tuple[tuple[str, str], ...] = ()
    eager: float = 0.0
    capture: float = 0.0
    torchlens: float | str = ""
    torchview: float | str = ""
    error: str = ""


def measure(reference: str, attention: str, *, rivals: bool = True) -> Row:
    """The row of a model: `hf:<type>` or an import path; `attention` is `eager`, `sdpa` or empty."""
    model = Registry().load(reference)
    row = Row(reference, attention)
    config = model.resolve({"attn_implementation": attention} if attention else {})
    torch.manual_seed(0)
    module, inputs = model.build(config).eval(), model.example_inputs(config)
    captured = capture(module, inputs)
    graph, _ = label(captured.graph, captured.known, module.state_dict())
    row.rung, row.nodes, row.output_equal, row.notes = (
        captured.rung,
        len(graph.nodes),
        captured.output_equal,
        captured.rung_notes,
    )
    values = [value for node in graph.nodes for value in node.values if value.spec or value.type in TENSOR_TYPES]
    row.with_shape = sum(value.spec is not None for value in values) / len(values)
    row.refusals = tuple((refusal.role, refusal.reason) for refusal in graph.refusals)
    truth = _truth(model, module, inputs, attention) if reference.startswith("hf:") else ()
    row.truth = bool(truth)
    row.scores = score(graph, captured.values, truth)
    row.eager = _median(lambda: module(**inputs))
    row.capture = _median(lambda: capture(module, inputs), rounds=3)
    if rivals:
        row.torchlens = _rival(lambda: _torchlens(module, inputs))
        row.torchview = _rival(lambda: _torchview(module, inputs))
    return row


def _truth(model: Model, module: nn.Module, inputs: Mapping[str, Tensor], attention: str) -> tuple[TrueAttention, ...]:
    if attention == "eager":
        return true_attentions(module, inputs)
    twin = model.build(model.resolve({"attn_implementation": "eager"})).eval()
    twin.load_state_dict(module.state_dict())
    return true_attentions(twin, inputs)


def score(graph: Graph, values: Mapping[str, Tensor], truth: tuple[TrueAttention, ...]) -> dict[str, Score]:
    """Found attention blocks against the true ones, by kind.

    A block is right where its weights are a true attention's of its kind, or where those weights make its head outputs
    of its values, if they are computed in one op; each true attention counts once. It is wrong where it is another
    kind's, or nobody's.
    """
    scores = {kind: Score(expected=sum(each.kind == kind for each in truth)) for kind in KINDS}
    left = list(truth)
    blocks = dict.fromkeys(
        (role.stack, role.layer, role.block) for node in graph.nodes for role in node.roles if role.block in KINDS
    )
    for stack, layer, kind in blocks:
        scores[kind].found += 1
        prefix = ".".join(str(each) for each in (stack, layer, kind) if each is not None)
        parts = {
            part: values[node.name]
            for part in ("weights", "value_heads", "head_outputs")
            if (node := graph.by_role.get(f"{prefix}.{part}")) is not None and node.name in values
        }
        if not truth or not parts:
            continue
        mine = next((each for each in left if each.kind == kind and _shows(each.weights, parts)), None)
        if mine is None:
            scores[kind].wrong += 1
        else:
            scores[kind].right += 1
            left.remove(mine)
    return scores


def _shows(true: Tensor, parts: Mapping[str, Tensor]) -> bool:
    if "weights" in parts:
        return _same(true, parts["weights"])
    if not {"value_heads", "head_outputs"} <= set(parts):
        return False
    values = parts["value_heads"]
    fits = values.dim() == true.dim() == 4 and values.shape[-2] == true.shape[-1] and values.shape[0] == true.shape[0]
    if not fits or true.shape[1] % values.shape[1]:
        return False
    return _same(true @ values.repeat_interleave(true.shape[1] // values.shape[1], 1), parts["head_outputs"])


def _same(true: Tensor, found: Tensor) -> bool:
    return true.numel() == found.numel() and torch.allclose(true.reshape(-1), found.reshape(-1), rtol=1e-4, atol=1e-6)


def _median(run: Callable[[], object], rounds: int = 7) -> float:
    times = []
    with torch.no_grad():
        run()
        for _ in range(rounds):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _rival(run: Callable[[], object]) -> float | str:
    """How long another tool takes for the same, once; or what it says."""
    start = time.perf_counter()
    try:
        with torch.no_grad():
            run()
    except Exception as error:  # noqa: BLE001 - whatever it raises is its row's content
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return time.perf_counter() - start


def _torchlens(module: nn.Module, inputs: Mapping[str, Tensor]) -> object:
    import torchlens

    return torchlens.trace(module, [], dict(inputs), save="all")


def _torchview(module: nn.Module, inputs: Mapping[str, Tensor]) -> object:
    import torchview

    return torchview.draw_graph(module, input_data=dict(inputs), depth=100, device="cpu", save_graph=False)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    case, attention, rivals = sys.argv[1:]
    try:
        made = measure(case, attention, rivals=rivals == "rivals")
    except Exception as error:  # noqa: BLE001 - a row that failed is a row
        made = Row(case, attention, error=f"{type(error).__name__}: {error}")
    print(json.dumps(asdict(made)))
