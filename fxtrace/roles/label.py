"""Gives nodes their roles.

Structure proposes, identities decide: a role that dataflow suggests is kept unless an identity it implies fails on the
captured values; then it is refused, with the failure as the reason. What dataflow does not show is refused too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from fxtrace.graph import Check, Graph, Node, Refusal, Role, Snapshot, show_shape
from fxtrace.roles import expert_identities
from fxtrace.roles import identities as identity
from fxtrace.roles.attention import Attention, find_attentions
from fxtrace.roles.blocks import Block, find_blocks
from fxtrace.roles.experts import Mixture, find_mixtures
from fxtrace.roles.feed_forward import FeedForward, Unknown
from fxtrace.roles.flow import MOVES, Flow, numel, shape_of
from fxtrace.roles.identities import Values
from fxtrace.roles.scores import applies
from fxtrace.roles.snapshots import take_snapshots
from fxtrace.roles.stacks import (
    UNKNOWN,
    UNKNOWN_ATTENTION,
    Head,
    Layer,
    Stack,
    Streams,
    attention_kind,
    find_head,
    find_stacks,
)

if TYPE_CHECKING:
    from torch import Tensor


def label(
    graph: Graph,
    values: Mapping[str, Tensor],
    state: Mapping[str, Tensor] | None = None,
    witness: Callable[[Graph], Graph] | None = None,
) -> tuple[Graph, tuple[Snapshot, ...]]:
    """Finds the roles in a graph, and the numbered snapshots they define.

    Args:
        graph: as captured.
        values: tensors by name, as captured. Where one is absent the identities that need it are not tried.
        state: the module's parameters and buffers by qualified name.
        witness: has a last say on the roles, before the snapshots are taken; see `fxtrace.roles.witness`.

    Returns:
        The graph with its nodes' roles, its named sizes and the refused roles; and all snapshots in order, those that
        are not in this graph with the reason.
    """
    labels = _Labels(graph, Values(values, state or {}))
    labels.find()
    nodes = tuple(replace(node, roles=tuple(labels.roles.get(node.name, ()))) for node in graph.nodes)
    labelled = replace(
        graph, nodes=nodes, refusals=tuple(Refusal(role, reason) for role, reason in labels.refused.items())
    )
    if witness is not None:
        labelled = witness(labelled)
    dims, snapshots = take_snapshots(labelled, labels.tables)
    return replace(labelled, dims=dims), snapshots


class _Labels:
    """Roles by node name and refusals by role name, as they are gathered."""

    def __init__(self, graph: Graph, value: Values) -> None:
        self.graph = graph
        self.value = value
        self.flow = Flow(graph)
        self.roles: dict[str, list[Role]] = {}
        self.refused: dict[str, str] = {}
        self.core_checks: dict[str, dict[str, Check]] = {}
        """The identities of each attention's core, by the core's name: tried once, for its kind and for its roles."""
        self.tables: dict[str, tuple[int, ...]] = {}
        """Shape of each stack's embedding table, by the stack's name."""

    def find(self) -> None:
        flow = self.flow
        attentions, no_attention = find_attentions(flow)
        mixtures, no_mixture = find_mixtures(flow)
        blocks = find_blocks(flow, attentions, mixtures)
        streams = Streams(flow, blocks)
        routers = {name for mixture in mixtures for name in mixture.router.routing}
        self.refused |= {
            f"attention at '{name}'": reason for name, reason in no_attention.items() if name not in routers
        }
        self.refused |= {f"mixture of experts at '{name}'": reason for name, reason in no_mixture.items()}
        in_blocks = {
            id(part)
            for block in blocks
            for part in (block.core.parts if isinstance(block.core, Attention) else (block.core,))
        }
        for attention in attentions:
            if id(attention) not in in_blocks:
                self.refused[f"attention at '{attention.core.name}'"] = _no_block(flow, attention, attentions)
        alone = "its output is not added back to a residual stream"
        for mixture in mixtures:
            if id(mixture) not in in_blocks:
                self.refused[f"mixture of experts at '{mixture.logits.name}'"] = alone
        kinds = {block.name: self._kind(streams, block) for block in blocks}
        stacks = find_stacks(flow, streams, blocks, kinds)
        for stack in stacks:
            self._stack(stack)
        decoders = [stack for stack in stacks if stack.kind == "decoder"] or stacks
        self._head(
            find_head(flow, streams, decoders[0])
            if len(decoders) == 1
            else f"there are {len(decoders) or 'no'} stacks that could end in it"
        )

    def _kind(self, streams: Streams, block: Block) -> str:
        """What kind of block it is. It is unknown where its core identity fails or its kind cannot be told."""
        if isinstance(block.core, Unknown):
            self.refused[f"block at '{block.total.name}'"] = block.core.reason
            return UNKNOWN
        if isinstance(block.core, FeedForward):
            return "feed_forward"
        if isinstance(block.core, Mixture):
            return self._mixture_kind(block.core)
        attention = block.core
        for part in attention.parts:
            self.core_checks[part.core.name] = self._core_checks(part)
        checks = [check for part in attention.parts for check in self.core_checks[part.core.name].values()]
        failed = next((check for check in checks if check.held is False), None)
        if failed is None:
            kinds = {
                attention_kind(self.flow, streams, replace(block, core=part), self._causal) for part in attention.parts
            }
            kind = kinds.pop() if len(kinds) == 1 else ": its segments are of several kinds"
            if not kind.startswith(":"):
                return kind
        reason = kind[2:] if failed is None else f"{failed.statement} does not hold: {failed.detail}"
        self.refused[f"attention at '{attention.core.name}'"] = reason
        return UNKNOWN_ATTENTION

    def _causal(self, attention: Attention) -> bool | str:
        return identity.is_causal(self.value, attention)

    def _mixture_kind(self, mixture: Mixture) -> str:
        mixture.numbers = expert_identities.number_experts(self.value, mixture)
        check = expert_identities.routed(self.value, mixture)
        self.core_checks[mixture.logits.name] = {"routed": check}
        if check.held or (check.held is None and mixture.logits.name not in self.value.captured):
            return "mixture_of_experts"
        shown = "does not hold" if check.held is False else "cannot be tried"
        reason = f"{check.statement} {shown}: {check.detail}"
        self.refused[f"mixture of experts at '{mixture.logits.name}'"] = reason
        return UNKNOWN

    def _core_checks(self, attention: Attention) -> dict[str, Check]:
        """The identities that make it an attention, by the part they are about."""
        checks = {"head_outputs": identity.head_outputs(self.value, attention)}
        if attention.scores is not None:
            checks["scores"] = identity.scores(self.value, attention)
        if attention.weights is not None:
            entry = self.flow.data_input(attention.core)
            assert entry is not None
            checks["weights"] = identity.softmax(self.value, attention, entry)
        return checks

    def _stack(self, stack: Stack) -> None:
        self._embedding(stack)
        for number, layer in enumerate(stack.layers):
            self._layer(stack.name, number, layer)
            for kind, block in layer.blocks.items():
                if kind.startswith(UNKNOWN_ATTENTION):
                    continue
                self._residual(stack.name, number, kind, block)
                if kind.startswith(UNKNOWN):
                    self._give(block.branch, _Place(stack.name, number, kind)("output"), "what the branch ends in")
                elif isinstance(block.core, Attention):
                    self._attention(stack.name, number, kind, block.core)
                elif isinstance(block.core, FeedForward):
                    self._feed_forward(_Place(stack.name, number, kind), block.core)
                elif isinstance(block.core, Mixture):
                    self._mixture(_Place(stack.name, number, kind), block.core)

    def _embedding(self, stack: Stack) -> None:
        found, at = stack.embedding, _Place(stack.name, None, "embedding")
        checks: list[Check] = []
        if found.lookup is not None and found.tokens is not None:
            ids = self.flow.data_input(found.lookup) or found.tokens
            checks = [identity.lookup(self.value, ids, found.weight, found.lookup)]
            self._give(
                found.tokens, at("tokens"), f"a model input, the ids that '{found.lookup.name}' looks up", checks
            )
            self._give(found.lookup, at("token_embeddings"), f"rows of '{found.weight}' at the ids", checks)
            table = next((p for m in self.graph.modules for p in m.parameters if p.name == found.weight), None)
            if table is not None:
                self.tables[stack.name] = table.shape
        result_checks = checks
        if found.lookup is not None and found.positions is not None and found.plain and not found.scaled:
            statement = "output = token_embeddings + positions"
            result_checks = [identity.total(self.value, found.lookup, found.positions, found.result, statement)]
        if found.positions is not None:
            self._give(
                found.positions, at("positions"), f"added to '{found.lookup and found.lookup.name}'", result_checks
            )
        self._give(found.result, at("output"), "what the first block of the stack reads", result_checks)
        if found.weight_slice is not None:
            part, weight = found.weight_slice, found.weight
            corner = tuple(slice(0, size) for size in shape_of(part) or ())
            check = identity.equal(
                "slice",
                f"weight_slice = table[{', '.join(f':{size}' for size in shape_of(part) or ())}]",
                self.value,
                part,
                lambda: self.value.table(weight)[corner],
            )
            self._give(part, at("weight_slice"), f"a slice of '{weight}', the table that the ids look up", [check])
        self._refuse(at, found.refused)

    def _layer(self, stack: str, number: int, layer: Layer) -> None:
        at = _Place(stack, number, "")
        first = next(iter(layer.blocks.values()))
        self._give(layer.source, at("input"), f"the residual stream where '{first.total.name}' adds to it")
        self._give(layer.result, at("output"), "the residual stream after the layer's last block")

    def _residual(self, stack: str, number: int, kind: str, block: Block) -> None:
        at = _Place(stack, number, kind)
        if block.unadded:
            self._give(block.source, at("input"), "what the block's projections read")
            self._refuse(at, dict.fromkeys(("residual_a", "residual_b", "residual_sum", "norm_output"), block.unadded))
            return
        checks = []
        if not block.parallel:
            statement = "residual_sum = residual_a + residual_b"
            checks = [identity.total(self.value, block.kept, block.branch, block.total, statement)]
        scaled = "" if block.kept is block.skip else ", scaled"
        self._give(block.kept, at("residual_a"), f"the stream, past the block{scaled}", checks)
        self._give(block.branch, at("residual_b"), "the block's own result", checks)
        together = "the stream plus all parallel branches" if block.parallel else "the sum of the two"
        self._give(block.total, at("residual_sum"), together, checks)
        if block.normed is None:
            self._refuse(at, {"norm_output": f"no single norm reads the residual sum '{block.total.name}'"})
        else:
            where = "which opens the next block (pre-norm)" if block.pre_norm else "which closes the block (post-norm)"
            self._give(
                block.normed,
                at("norm_output"),
                f"the norm of the residual sum, {where}",
                [self._norm(block.total, block.normed)],
            )
        if isinstance(block.core, Unknown) and block.core.entry is None:
            self._refuse(at, {"input": "the branch reads the stream in several places, or in none that is known"})
            return
        opened = "the norm of the stream (pre-norm)" if block.pre_norm else "the stream itself (post-norm)"
        if block.source.kind == "add" and block.source is not block.skip:
            opened += ", and what is added to it for the queries"
        self._give(block.source, at("input"), f"what the block's projections read: {opened}")

    def _norm(self, source: Node, result: Node) -> Check:
        written = self.flow.written_norms.get(result.name)
        if written is None:
            return identity.norm(self.value, source, result)
        return identity.written_norm(self.value, source, self.graph.by_name[written.normalised])

    def _attention(self, stack: str, number: int, kind: str, found: Attention) -> None:
        at, value = _Place(stack, number, kind), self.value
        for part in ("query", "key", "value"):
            projection, source = found.projections.get(part), found.sources.get(part)
            whole = found.projected.get(part)
            if projection is not None and source is not None and whole is not None:
                fused = "" if whole.name == projection.name else f", a part of the fused projection '{projection.name}'"
                read = self.flow.data_input(projection) or source
                check = identity.linear(value, projection, read, "projection = x Wᵀ + b")
                self._give(whole, at(part), f"leads to the {part} of '{found.core.name}'{fused}", [check])
        by_latent: dict[str, list[str]] = {}
        for part, latent in found.latents.items():
            by_latent.setdefault(latent.name, []).append(part)
        for name, parts in by_latent.items():
            read_by = f"the low-rank tensor that '{found.projections[parts[0]].name}' projects"
            self._give(self.graph.by_name[name], at("_".join((*parts, "latent"))), read_by)
        if kind == "cross_attention":
            self._give(found.sources["key"], at("memory"), "the other stack's output, which keys and values read")
        for i, segment in enumerate(found.segments):
            of_all = {*found.refused, *found.projected, "concat", "output"}
            of_its_own = {part: why for part, why in segment.refused.items() if part not in of_all}
            self._weighing(at.inside(f"segment_{i}"), kind, segment, of_its_own)
        if not found.segments:
            self._weighing(at, kind, found, found.refused)
        if found.concat is not None and found.head_outputs is not None and not found.segments:
            check = identity.concat_heads(value, found.head_outputs, found.concat, found.orders.get("head_outputs"))
            self._give(
                found.concat, at("concat"), "the heads' outputs side by side, read by the output projection", [check]
            )
        if found.output is not None and (joined := found.concat or self.flow.data_input(found.output)) is not None:
            what = "concat" if found.concat is not None else joined.name
            check = identity.linear(value, found.output, joined, f"output = {what} Wᵀ + b")
            self._give(found.output, at("output"), "the projection of the heads' outputs", [check])
        self._refuse(at, found.refused)

    def _weighing(self, at: _Place, kind: str, found: Attention, refused: Mapping[str, str]) -> None:
        """The parts between the projections, of an attention or of one of its segments."""
        value, core = self.value, self.core_checks[found.core.name]
        for part in ("query", "key", "value"):
            whole, heads = found.projected.get(part), f"{part}_heads"
            if heads not in found.refused:
                checks = []
                if whole is not None and self._only_moved(found.heads[part], whole):
                    checks = [identity.split_heads(value, part, whole, found.heads[part], found.orders.get(part))]
                self._give(found.heads[part], at(heads), f"the {part} as it enters the product, before scaling", checks)
        masks = [(op, mask) for op, mask in found.masks if applies(op) != "floors"]
        if len(masks) == 1:
            causal = [identity.causal_mask(value, *masks[0])] if kind == "masked_self_attention" else []
            self._give(masks[0][1], at("mask"), "applied to the scores", causal)
        elif "mask" not in found.refused and kind == "masked_self_attention":
            self._refuse(at, {"mask": "no mask is applied to the scores"})
        if found.scores is not None:
            self._give(
                found.scores,
                at("scores"),
                "the scaled product of query and key heads, before any mask",
                [core["scores"]],
            )
        if found.masks and not found.fused:
            after = found.masks[-1][0]
            checks = [identity.masked(value, found)] if found.scores is not None else []
            self._give(after, at("masked_scores"), "the scores with the mask", checks)
        if found.weights is not None:
            checks = [core["weights"]]
            if kind == "masked_self_attention":
                checks.append(identity.causal_weights(value, found.weights))
            self._give(found.weights, at("weights"), "the softmax between the two products", checks)
            if found.sink is not None:
                evidence = (
                    "softmaxed beside the scores, of no key, and cut off the weights: their rows sum to less than 1"
                )
                self._give(found.sink, at("sink"), evidence, [core["weights"]])
        if found.head_outputs is not None:
            self._give(
                found.head_outputs,
                at("head_outputs"),
                "weights times value heads",
                [core["head_outputs"]],
            )
        self._refuse(at, refused)

    def _only_moved(self, node: Node, source: Node) -> bool:
        """Whether one tensor is all of another, moved: neither rotated nor normed, and not one segment's rows of it."""
        return numel(node) == numel(source) and all(
            each.kind in MOVES for each in self.flow.path_back(node, source)[1:]
        )

    def _feed_forward(self, at: _Place, found: FeedForward) -> None:
        value = self.value
        for part, node in (("gate", found.gate), ("up", found.up)):
            if node is not None:
                check = identity.linear(value, node, found.source, f"{part} = input Wᵀ + b")
                self._give(node, at(part), "one of the two projections that meet in the gate", [check])
        if found.hidden is not None:
            check = identity.linear(value, found.hidden, found.source, "hidden = input W₁ᵀ + b₁")
            self._give(found.hidden, at("hidden"), "the first projection", [check])
        self._give(found.activated, at("activation"), "what the last projection reads")
        check = identity.linear(value, found.output, found.activated, "output = activation W₂ᵀ + b₂")
        self._give(found.output, at("output"), "the last projection", [check])
        self._refuse(at, found.refused)

    def _mixture(self, at: _Place, found: Mixture) -> None:
        value, routed = self.value, self.core_checks[found.logits.name]["routed"]
        check = identity.linear(value, found.logits, found.source, "logits = input Wᵀ + b")
        self._give(found.logits, at("logits"), "a projection of each token to a number for each expert", [check])
        if found.probabilities is not None:
            check = expert_identities.probabilities(value, found)
            self._give(found.probabilities, at("probabilities"), "taken of the logits of all experts", [check])
        if found.chosen is not None:
            by = found.selection
            checks = [expert_identities.chosen(value, found)]
            if by is not None and by.name not in (found.logits.name, found.probabilities and found.probabilities.name):
                self._give(by, at("selection"), "what the experts are chosen by: corrected or masked scores", checks)
            self._give(found.chosen, at("chosen"), "the numbers of the experts that each token goes to", checks)
        formula = expert_identities.weights(value, found)
        where = "what the experts read" if found.before else "the experts' outputs"
        whose = "of all experts" if found.dense else "of the chosen experts"
        checks = [routed] if formula is None else [routed, formula]
        self._give(found.weights, at("weights"), f"the weights {whose}, which multiply {where}", checks)
        self._experts(at, found)
        if found.shared is not None:
            inside = at.inside("shared_expert")
            self._feed_forward(inside, found.shared)
            if found.shared_weight is not None:
                checks = [expert_identities.shared(value, found)]
                self._give(found.shared_weight, inside("weight"), "one number a token, times the shared expert", checks)
        self._give(found.routed, at("routed"), "where the experts' outputs have been added up", [routed])
        together = [routed] if found.added is None else [expert_identities.output(value, found)]
        self._give(found.output, at("output"), "the experts' outputs together", together)
        self._refuse(at, found.refused)

    def _experts(self, at: _Place, found: Mixture) -> None:
        for expert, result, number in zip(found.experts, found.results, found.numbers, strict=True):
            if found.stacked:
                inside = at.inside("experts")
            elif number is not None:
                inside = at.inside(f"expert_{number}")
            else:
                self._refuse(at, {f"expert at '{result.name}'": "which of the experts it is cannot be told"})
                continue
            self._give(expert.source, inside("input"), "the rows of the tokens that it works on")
            for part, node in (("hidden", expert.hidden), ("gate", expert.gate), ("up", expert.up)):
                if node is not None:
                    check = expert_identities.project(
                        self.value, found, node, expert.source, f"{part} = input Wₑᵀ + bₑ"
                    )
                    self._give(node, inside(part), "a first projection", [check])
            self._give(expert.activated, inside("activation"), "what the last projection reads")
            check = expert_identities.project(
                self.value, found, result, expert.activated, "output = activation Wₑᵀ + bₑ"
            )
            self._give(result, inside("output"), "the last projection, not yet weighted", [check])
            self._refuse(inside, expert.refused)

    def _head(self, found: Head | str) -> None:
        at = _Place("", None, "output")
        if isinstance(found, str):
            self._refuse(at, dict.fromkeys(("hidden", "logits", "logits_slice"), found))
            return
        if found.logits is None:
            self._give(found.hidden, at("hidden"), "the last state, which is the output")
            self._refuse(at, dict.fromkeys(("logits", "logits_slice"), "no projection of the last state is an output"))
            return
        logits = found.logits
        check = identity.logits(self.value, found)
        self._give(found.hidden, at("hidden"), "the last state, which the output projection reads", [check])
        self._give(logits, at("logits"), "the projection of the last state that reaches the output", [check])
        if found.logits_slice is None:
            self._refuse(at, {"logits_slice": "the graph cuts no single vector out of the logits"})
            return
        part, length = found.logits_slice, (shape_of(found.logits_slice) or (0,))[0]
        check = identity.equal(
            "slice",
            f"logits_slice = logits[0, …, 0, :{length}]",
            self.value,
            part,
            lambda: self.value(logits).flatten(0, -2)[0, :length],
        )
        self._give(
            part, at("logits_slice"), f"a vector of {show_shape(shape_of(part) or ())} cut out of the logits", [check]
        )

    def _give(self, node: Node, role: Role, evidence: str, checks: list[Check] | None = None) -> None:
        failed = next((check for check in checks or () if check.held is False), None)
        if failed is not None:
            self.refused[str(role)] = f"at '{node.name}', {failed.statement} does not hold: {failed.detail}"
        else:
            self.roles.setdefault(node.name, []).append(replace(role, evidence=evidence, checks=tuple(checks or ())))

    def _refuse(self, at: _Place, reasons: Mapping[str, str]) -> None:
        for part, reason in reasons.items():
            self.refused.setdefault(str(at(part)), reason)


_NOT_ADDED = "its output is not added back to a residual stream"


def _no_block(flow: Flow, attention: Attention, attentions: list[Attention]) -> str:
    """Why an attention is in no residual block."""
    output = attention.output
    if output is not None and sum(each.output is output for each in attentions) > 1:
        return f"its result is one of several that '{output.name}' projects at once: a part of a block"
    path = flow.forward(attention.output, MOVES, lambda user: user.kind == "join") if attention.output else None
    if path:
        return f"its output, '{path[0].name}', is joined with other results in '{path[-1].name}': a part of a block"
    return _NOT_ADDED


class _Place:
    """A block's place; called with a part, the role there."""

    def __init__(self, stack: str, layer: int | None, block: str, *, within: str = "") -> None:
        self._place, self._within = (stack, layer, block), within

    def __call__(self, part: str) -> Role:
        return Role(*self._place, f"{self._within}{part}")

    def inside(self, part: str) -> _Place:
        """The place of a part that has parts of its own."""
        return _Place(*self._place, within=f"{part}.")
