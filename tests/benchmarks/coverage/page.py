"""The tables in Markdown: every row, each family's roles, and the totals."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from tests.benchmarks.coverage.row import FULL, ONE_IN, Row
from tests.benchmarks.coverage.score import MIXTURE
from tests.benchmarks.coverage.truth import KINDS

Rows = Sequence[tuple[str, Row]]
"""(group, row)."""

_PART_HEADS = {
    "self_attention": "self-attention blocks",
    "masked_self_attention": "masked self-attention blocks",
    "cross_attention": "cross-attention blocks",
    "mixture_of_experts": "mixture-of-experts blocks",
    "feed_forward": "feed-forward outputs",
    "norm": "norm outputs",
    "residual": "residual sums",
}


def totals(rows: Rows) -> Iterator[str]:
    """The totals, as the README has them."""
    traced = [row for _, row in rows if not row.error]
    families = {row.case for _, row in rows if row.case.startswith("hf:")}
    plain = {row.case for _, row in rows if row.case.startswith("zoo:")}
    equal = sum(row.output_equal is True for row in traced)
    told = sum(row.output_equal is not True for row in traced)
    shaped = sum(row.with_shape == 1 for row in traced)
    rungs = Counter(row.rung for row in traced)
    yield f"{len(families)} families of transformers, eager and fused attention, and {len(plain)} plain PyTorch models:"
    yield ""
    yield "| | |"
    yield "| --- | --- |"
    by_rung = ", ".join(f"{count} by `{rung}`" for rung, count in rungs.most_common())
    yield f"| traced | {len(traced)} of {len(rows)}: {by_rung} |"
    yield f"| output bit-equal on the graph's re-run | {equal}; {told} told to be not, with the op to blame |"
    yield f"| every tensor with a shape | {shaped} of {len(traced)} |"
    for part, head in _PART_HEADS.items():
        counts = {each: sum(getattr(row.scores[part], each) for row in traced) for each in _COUNTS}
        yield f"| {head} | " + ", ".join(f"{n} {each}" for each, n in counts.items()) + " |"
    ours = statistics.median(row.capture / row.eager for row in traced if row.eager)
    yield f"| a capture with every value ÷ an eager run, median | {ours:.1f} |"
    for tool, name in _TOOLS.items():
        ratios = [seconds / row.capture for row in traced if isinstance(seconds := getattr(row, tool), float)]
        if ratios:
            failed = sum(isinstance(said := getattr(row, tool), str) and said != "" for row in traced)
            yield f"| {name} ÷ ours, median | {statistics.median(ratios):.1f} (it fails on {failed}) |"


_TOOLS = {
    "torchlens": "TorchLens's trace as called by default (every tensor)",
    "torchlens_full": "TorchLens's full trace (every tensor, argument and source line, able to be re-run)",
    "torchview": "torchview's graph (shapes, no values)",
}

_COUNTS = ("expected", "found", "right", "refused", "wrong")


def full(rows: Rows) -> Iterator[str]:
    """Every row, every family's roles, and why roles were refused."""
    yield "# Coverage"
    yield ""
    yield "Written by `make coverage`. Times are medians of processor time, on one thread of one machine; the other"
    yield "tools run on eager models."
    yield ""
    yield "A capture runs the module by itself, records a second run with every value, argument and source line, and"
    yield "then runs the graph to check it. Against it: `torchlens.trace(model, inputs)`; on one model in"
    yield f"{ONE_IN}, full, with"
    yield f"`CaptureOptions({', '.join(f'{name}={value}' for name, value in FULL.items())})`; and"
    yield "`torchview.draw_graph(model, inputs, depth=100)`."
    yield ""
    yield from totals(rows)
    yield ""
    heads = ("group", "model", "attention", "rung", "nodes", "with shape", "output", "÷ eager")
    yield from _head(*heads, "TorchLens ÷ ours", "full TorchLens ÷ ours", "torchview ÷ ours")
    for group, row in rows:
        yield "| " + " | ".join(_cells(group, row)) + " |"
    yield ""
    yield "## Roles"
    yield ""
    yield "Expected / found / right / refused / wrong. Attention blocks are expected as the configuration says (layers"
    yield "× kinds) and held by value against what the model itself says its attention weights are, mixtures of experts"
    yield "against what its routers and experts take and give; the other parts are expected as the modules of one run"
    yield "take and give them, and held against those by value."
    yield ""
    yield from _head("group", "model", "attention", *_PART_HEADS.values())
    for group, row in rows:
        if row.scores:
            yield "| " + " | ".join((group, row.case, row.attention or "—", *_role_cells(row))) + " |"
    yield ""
    yield "## Where the configuration and the model differ"
    yield ""
    yield "A model that tells other attentions than its configuration's layers and kinds is believed. What a fused"
    yield "model attends to is told by the same model run eagerly, unless that gives another output."
    yield ""
    yield from _head("model", "attention blocks")
    for case, differs in dict.fromkeys((row.case, row.differs) for _, row in rows if row.differs):
        yield f"| {case} | {differs} |"
    yield ""
    yield "## Why blocks were refused"
    yield ""
    yield from _head("rows", "reason", "for example")
    reasons: dict[str, list[str]] = defaultdict(list)
    for _, row in rows:
        if any(row.scores[kind].refused for kind in (*KINDS, MIXTURE) if row.scores):
            for reason in {_plain(reason) for role, reason in row.refusals if not role.startswith("output")}:
                reasons[reason].append(row.case)
    for reason, found in sorted(reasons.items(), key=lambda item: -len(item[1])):
        yield f"| {len(found)} | {reason} | {', '.join(sorted(set(found))[:4])} |"


def _head(*names: str) -> Iterator[str]:
    yield "| " + " | ".join(names) + " |"
    yield "| --- " * len(names) + "|"


def _cells(group: str, row: Row) -> Iterator[str]:
    yield from (group, row.case, row.attention or "—")
    if row.error:
        yield from (_cell(row.error), *[""] * 7)
        return
    equal = {True: "equal", False: "not equal: " + _cell(row.notes[-1] if row.notes else ""), None: "—"}
    yield from (row.rung, str(row.nodes), f"{row.with_shape:.0%}", equal[row.output_equal])
    yield f"{row.capture / row.eager:.1f}" if row.eager else ""
    for seconds in (getattr(row, tool) for tool in _TOOLS):
        yield f"{seconds / row.capture:.1f}" if isinstance(seconds, float) else _cell(seconds)


def _role_cells(row: Row) -> Iterator[str]:
    for part in _PART_HEADS:
        counts = [getattr(row.scores[part], each) for each in _COUNTS]
        yield " / ".join(map(str, counts)) if any(counts) else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:160]


def _plain(reason: str) -> str:
    return re.sub(r"\d+(\.\d+)?(e-?\d+)?", "…", re.sub(r"'[^']*'", "…", reason))
