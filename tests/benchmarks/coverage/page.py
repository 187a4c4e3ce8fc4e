"""The tables in Markdown: every row, each family's roles, and the totals."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from tests.benchmarks.coverage.row import FULL, Row
from tests.benchmarks.coverage.truth import KINDS

Rows = Sequence[tuple[str, Row]]
"""(group, row)."""

_HEADS = {
    "self_attention": "self",
    "masked_self_attention": "masked self",
    "cross_attention": "cross",
    "mixture_of_experts": "mixture of experts",
}
_PART_HEADS = {"feed_forward": "feed-forward outputs", "norm": "norm outputs", "residual": "residual sums"}


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
    for kind, head in _HEADS.items():
        counts = {part: sum(getattr(row.scores[kind], part) for row in traced) for part in _PARTS}
        yield (
            f"| {head}{'-attention' if kind in KINDS else ''} blocks | "
            + ", ".join(f"{n} {part}" for part, n in counts.items())
            + " |"
        )
    for part, head in _PART_HEADS.items():
        counts = {each: sum(getattr(row.scores[part], each) for row in traced) for each in ("found", "right", "wrong")}
        yield f"| {head} | " + ", ".join(f"{n} {each}" for each, n in counts.items()) + " |"
    ours = statistics.median(row.capture / row.eager for row in traced)
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

_PARTS = ("expected", "found", "right", "refused", "wrong")


def full(rows: Rows) -> Iterator[str]:
    """Every row, then why roles were refused."""
    yield "# Coverage"
    yield ""
    yield "Written by `make coverage`. Attention blocks are expected / right / refused / wrong, held by value against"
    yield "what the model itself says its attention weights are; so are mixtures of experts, held against what its"
    yield "routers and experts take and give; other parts are right / wrong, held against what its"
    yield "modules take and give. Times are medians, on one thread of one machine; the other tools run on eager models."
    yield ""
    yield from totals(rows)
    yield ""
    yield (
        "| group | model | attention | rung | nodes | with shape | output | "
        + " | ".join((*_HEADS.values(), *_PART_HEADS.values()))
        + " | ÷ eager | TorchLens ÷ ours | full TorchLens ÷ ours | torchview ÷ ours |"
    )
    yield "| --- " * (11 + len(_HEADS) + len(_PART_HEADS)) + "|"
    for group, row in rows:
        yield "| " + " | ".join(_cells(group, row)) + " |"
    yield ""
    yield "## Why blocks were refused"
    yield ""
    yield "| rows | reason | for example |"
    yield "| --- | --- | --- |"
    reasons: dict[str, list[str]] = defaultdict(list)
    for _, row in rows:
        if any(row.scores[kind].refused for kind in _HEADS if row.scores):
            for reason in {_plain(reason) for role, reason in row.refusals if not role.startswith("output")}:
                reasons[reason].append(row.case)
    for reason, found in sorted(reasons.items(), key=lambda item: -len(item[1])):
        yield f"| {len(found)} | {reason} | {', '.join(sorted(set(found))[:4])} |"


def _cells(group: str, row: Row) -> Iterator[str]:
    yield from (group, row.case, row.attention or "—")
    if row.error:
        yield from (_cell(row.error), *[""] * (7 + len(_HEADS) + len(_PART_HEADS)))
        return
    equal = {True: "equal", False: "not equal: " + _cell(row.notes[-1] if row.notes else ""), None: "—"}
    yield from (row.rung, str(row.nodes), f"{row.with_shape:.0%}", equal[row.output_equal])
    for kind in _HEADS:
        score = row.scores[kind]
        some = score.expected or score.found
        yield f"{score.expected} / {score.right} / {score.refused} / {score.wrong}" if some else ""
    for part in _PART_HEADS:
        score = row.scores[part]
        yield f"{score.right} / {score.wrong}" if score.found else ""
    yield f"{row.capture / row.eager:.1f}"
    for seconds in (getattr(row, tool) for tool in _TOOLS):
        yield f"{seconds / row.capture:.1f}" if isinstance(seconds, float) else _cell(seconds)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:160]


def _plain(reason: str) -> str:
    return re.sub(r"\d+(\.\d+)?(e-?\d+)?", "…", re.sub(r"'[^']*'", "…", reason))
