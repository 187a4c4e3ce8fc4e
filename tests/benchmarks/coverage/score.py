"""Found roles against the truth: right, wrong, or not found."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxtrace.graph import Graph, Node, Role
from tests.benchmarks.coverage.parts import PARTS
from tests.benchmarks.coverage.truth import KINDS, Passed, TrueAttention

MIXTURE = "mixture_of_experts"


@dataclass
class Score:
    """Blocks or parts of one kind: how many there are, and what became of them."""

    expected: int = 0
    found: int = 0
    right: int = 0
    wrong: int = 0
    untold: int = 0
    """Found, where the model does not tell that attention's weights."""
    refused: int = 0
    """Those not found."""


@dataclass(frozen=True)
class Subject:
    """A module and its inputs, and what is known of it besides the trace.

    Attributes:
        truth: its attentions, where it tells them.
        parts: its feed-forwards, norms and residual sums.
        passed: what its modules took and gave.
        expected: how many attentions of each kind there are.
        differs: in words, where that is not what the configuration says.
    """

    module: nn.Module
    inputs: Mapping[str, Any]
    truth: tuple[TrueAttention, ...]
    parts: Mapping[str, Sequence[Tensor]]
    passed: tuple[Passed, ...]
    expected: Mapping[str, int]
    differs: str = ""


def score_attentions(graph: Graph, values: Mapping[str, Tensor], it: Subject) -> dict[str, Score]:
    """Found attention blocks against the true ones, by kind.

    A block is right where its weights are a true attention's of its kind, or where those weights make its head outputs
    of its values, if they are computed in one op; each true attention counts once. It is wrong where it is another
    kind's, or another block's, or nobody's while one of its kind is left; what is found beyond all that the model tells
    is untold. Where only the number of attentions is known, blocks are counted: more than there are are wrong.
    """
    scores = {kind: Score(expected=it.expected.get(kind, 0)) for kind in KINDS}
    left = list(it.truth)
    unmatched: list[tuple[str, dict[str, Tensor]]] = []
    claimed: list[Node] = []
    blocks = dict.fromkeys(
        (role.stack, role.layer, role.block) for node in graph.nodes for role in node.roles if role.block in KINDS
    )
    for stack, layer, kind in blocks:
        of_kind = scores[kind]
        of_kind.found += 1
        prefix = ".".join(str(each) for each in (stack, layer, kind) if each is not None)
        nodes = {
            part: node
            for part in ("weights", "value_heads", "head_outputs")
            if (node := graph.by_role.get(f"{prefix}.{part}")) is not None and node.name in values
        }
        parts = {part: values[node.name] for part, node in nodes.items()}
        mine = next((each for each in left if each.kind == kind and _shows(each.weights, parts)), None)
        another = any(node in claimed for node in nodes.values())
        claimed += nodes.values()
        if it.truth and another:
            of_kind.wrong += 1
        elif it.truth and mine is not None:
            left.remove(mine)
            of_kind.right += 1
        elif it.truth or not it.expected:
            unmatched.append((kind, parts))
        else:
            of_kind.right, of_kind.wrong = (
                min(of_kind.found, of_kind.expected),
                max(0, of_kind.found - of_kind.expected),
            )
    for kind, parts in unmatched:
        of_others = any(each.kind != kind and _shows(each.weights, parts) for each in it.truth)
        contradicted = of_others or any(each.kind == kind for each in left)
        scores[kind].wrong += bool(parts) and contradicted
        scores[kind].untold += not contradicted
    for score in scores.values():
        score.refused = max(0, score.expected - score.found)
    return scores


def _shows(true: Tensor, parts: Mapping[str, Tensor]) -> bool:
    if "weights" in parts:
        found = parts["weights"]
        if true.dim() == 3 and true.numel() < found.numel() and found.numel() % true.numel() == 0:
            found = found.reshape(len(true), -1, *true.shape[1:]).mean(1)  # PyTorch's own module tells the heads' mean
        return _same(true, found)
    if not {"value_heads", "head_outputs"} <= set(parts):
        return False
    values = parts["value_heads"]
    fits = values.dim() == true.dim() == 4 and values.shape[-2] == true.shape[-1] and values.shape[0] == true.shape[0]
    if not fits or true.shape[1] % values.shape[1]:
        return False
    copies = true.shape[1] // values.shape[1]  # which query heads share a value head is the model's own choice
    shared = (values.repeat_interleave(copies, 1), values.repeat(1, copies, 1, 1))
    return any(_same(true @ each, parts["head_outputs"]) for each in shared)


def _same(true: Tensor, found: Tensor) -> bool:
    if true.is_floating_point() != found.is_floating_point():
        return False
    # Not bit by bit: in a plain run PyTorch's own modules may take fused kernels, which round otherwise.
    return true.numel() == found.numel() and torch.allclose(true.reshape(-1), found.reshape(-1), rtol=1e-4, atol=3e-6)


def score_mixtures(graph: Graph, values: Mapping[str, Tensor], it: Subject) -> dict[str, Score]:
    """Found mixtures of experts against what the model's routers and experts took and gave, by value.

    There is one for each router module outside the attentions. A mixture is right where some module gave its output,
    a router its logits, and routers and experts passed its weights and chosen experts; it is wrong where they pass
    others in their place, and untold where they pass none of that shape. Where only the number of mixtures is known
    they are counted.
    """
    outside = [each for each in it.passed if not re.search("attn|attention", each.path, re.I)]
    routers = [each for each in outside if re.search("router|gating", each.type, re.I) and each.came_out]
    experts = [each for each in outside if re.search("experts", each.type, re.I)]
    told = {"logits": routers, "chosen": routers + experts, "weights": routers + experts, "output": outside}
    score = Score(expected=len({each.path for each in routers}) or it.expected.get(MIXTURE, 0))
    blocks = {f"{role.stack}.{role.layer}.{role.block}" for role in _roles(graph) if role.block.startswith(MIXTURE)}
    for block in sorted(blocks):
        score.found += 1
        parts = {
            part: values[graph.by_role[f"{block}.{part}"].name] for part in told if f"{block}.{part}" in graph.by_role
        }
        said = {_said(part, tensor, parts, told[part]) for part, tensor in parts.items()}
        counted = not routers and MIXTURE in it.expected
        wrong = score.found > score.expected if counted else False in said or "output" not in parts
        score.wrong += wrong
        score.untold += not wrong and not counted and None in said
        score.right += not wrong and (counted or None not in said)
    score.refused = max(0, score.expected - score.found)
    return {MIXTURE: score}


def _said(part: str, found: Tensor, parts: Mapping[str, Tensor], told: list[Passed]) -> bool | None:
    """Whether the modules pass such a part; None where they pass nothing that it could be."""
    alike = [each.tensor for each in told if each.tensor.squeeze().shape == found.squeeze().shape]
    if any(_same(each, found) for each in alike) or (part == "output" and any(_same(e.tensor, found) for e in told)):
        return True
    marks = [each.tensor for each in told if part == "chosen" and each.tensor.shape == parts["logits"].shape]
    if any(_marks(each, found) for each in marks):
        return True
    return False if alike or part == "output" else None


def _marks(true: Tensor, chosen: Tensor) -> bool:
    """Whether a tensor of tokens × n_experts is zero but for the chosen experts."""
    marked = true.reshape(-1, true.shape[-1]) != 0 if true.dim() > 1 else true[:0]
    if not len(marked) or chosen.numel() % len(marked) or int(chosen.max()) >= marked.shape[1]:
        return False
    return torch.equal(marked, torch.zeros_like(marked).scatter(1, chosen.reshape(len(marked), -1), value=True))


def _roles(graph: Graph) -> list[Role]:
    return [role for node in graph.nodes for role in node.roles]


def score_parts(graph: Graph, values: Mapping[str, Tensor], it: Subject) -> dict[str, Score]:
    """Found feed-forwards, norms and residual sums against what the model's modules took and gave, by value.

    A feed-forward is right where some module that is no attention's gave its output; a norm where a module called a
    norm gave it; a residual sum where some module took it, or one with modules inside gave it. A sum that another
    residual sum adds to, with no module between, is seen by no module: it is untold.
    Refused are those that the model has, see `true_parts`, and that no role of the part found.
    """
    tests: Mapping[str, Callable[[Passed], object]] = {
        "feed_forward": lambda each: each.came_out and not re.search("attn|attention", each.path + each.type, re.I),
        "norm": lambda each: each.came_out and re.search("norm", each.type, re.I),
        "residual": lambda each: not each.came_out or not each.leaf,
    }
    scores = {part: Score(expected=len(it.parts[part])) for part in PARTS}
    left = {part: list(it.parts[part]) for part in PARTS}
    for node in graph.nodes:
        for part in dict.fromkeys(_part(role) for role in node.roles):  # a sum may end two blocks that run side by side
            if part is None or node.name not in values:
                continue
            left[part] = [each for each in left[part] if not _same(each, values[node.name])]
            right = any(tests[part](each) and _same(each.tensor, values[node.name]) for each in it.passed)
            scores[part].found += 1
            scores[part].right += right
            readers = [graph.by_name[name] for name in graph.users[node.name]]
            summed_on = all(any(r.part == "residual_sum" for r in reader.roles) for reader in readers)
            untold = part == "residual" and summed_on and not right
            scores[part].untold += untold
            scores[part].wrong += not (right or untold)
    for part, missed in left.items():
        scores[part].refused = len(missed)
    return scores


def _part(role: Role) -> str | None:
    if (role.block == "feed_forward" and role.part == "output") or role.part == "shared_expert.output":
        return "feed_forward"  # experts that see some of the tokens are none
    return {"norm_output": "norm", "residual_sum": "residual"}.get(role.part)
