"""The 43 numbered snapshots of an encoder–decoder transformer, as a table over roles.

Numbers, titles, variables and named shapes are data, in snapshots.json. Here is which roles each snapshot shows, and
the words that say what the tensor is and why it has its shape, to be filled with a graph's own sizes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files

from fxtrace.dims import aligned, bind, fit
from fxtrace.graph import Check, Dim, Graph, Node, Snapshot, SnapshotTensor, show_shape

_ENCODER = "encoder.0.self_attention"
_MASKED = "decoder.0.masked_self_attention"
_CROSS = "decoder.0.cross_attention"
_TABLE: dict[int, tuple[tuple[str, ...], str]] = {
    1: (
        ("encoder.embedding.tokens",),
        "The source sentence as token ids: one integer for each of its {src_len} tokens, so one dimension of size "
        "{src_len}. There is no feature dimension yet: an id is only the number of a row in the embedding table.",
    ),
    2: (
        ("decoder.embedding.tokens",),
        "The target sentence as token ids, {tgt_len} of them. The target's length is its own; nothing ties it to "
        "the source's {src_len}, and cross-attention is where the two lengths meet.",
    ),
    3: (
        ("encoder.embedding.weight_slice",),
        "The upper left corner of the source embedding table. The table has a row for each of the {src_vocab} words"
        " of the vocabulary and {d_model} columns, one for each feature; the corner shows the first features of the"
        " first words.",
    ),
    4: (
        ("encoder.embedding.token_embeddings",),
        "Each token id replaced by its row of the embedding table. Every one of the {src_len} ids becomes a vector "
        "of d_model = {d_model} numbers, so the ids' shape gains a last dimension of {d_model}; batch is {batch}.",
    ),
    5: (
        ("encoder.embedding.output",),
        "The embeddings plus a table of positions. The sum is element by element, so the {src_len} × {d_model} "
        "table is added to every sentence of the batch and the shape stays as it was; from here on order is in the "
        "numbers.",
    ),
    6: (
        ("encoder.0.input",),
        "What the first encoder layer reads: the embedded source. Every layer takes and gives {src_len} vectors of "
        "d_model = {d_model}, which is what lets layers be stacked and residuals be added.",
    ),
    7: (
        (f"{_ENCODER}.query",),
        "The queries of all heads side by side: what each source token looks for. A {d_model} × {d_model} "
        "projection acts on each token alone, so {src_len} tokens stay {src_len}; the {d_model} features are "
        "{n_heads} heads × {d_head}.",
    ),
    8: (
        (f"{_ENCODER}.key",),
        "The keys of all heads side by side: what each source token offers to be found by. They come from the same "
        "{src_len} tokens as the queries, and share their width because each query is multiplied with each key.",
    ),
    9: (
        (f"{_ENCODER}.value",),
        "The values of all heads side by side: what each source token hands on when it is found. There is one for "
        "each key, so {src_len}; their {d_model} features become the block's result.",
    ),
    10: (
        (f"{_ENCODER}.scores",),
        "How well each query fits each key, in each head: ({src_len} × {d_head}) · ({d_head} × {src_len}) = "
        "{src_len} × {src_len}, for {n_heads} heads. It is square because queries (rows) and keys (columns) are the"
        " same {src_len} source tokens; d_head = {d_head} is summed away.",
    ),
    11: (
        (f"{_ENCODER}.weights",),
        "The scores of each row turned into shares that sum to 1: how much of each of the {src_len} tokens "
        "(columns) goes into each of the {src_len} results (rows). Softmax works along the last dimension and "
        "leaves the shape alone.",
    ),
    12: (
        (f"{_ENCODER}.query_heads", f"{_ENCODER}.key_heads", f"{_ENCODER}.value_heads"),
        "Queries, keys and values cut into heads: the {d_model} features become {n_heads} heads × d_head = "
        "{d_model} / {n_heads} = {d_head}, and the head dimension moves before the length, so that each head "
        "multiplies its own {src_len} × {d_head} matrices.",
    ),
    13: (
        (f"{_ENCODER}.concat",),
        "The heads' results side by side again: {n_heads} heads × {d_head} = {d_model} features for each of the "
        "{src_len} tokens, back in the width of the stream.",
    ),
    14: (
        (f"{_ENCODER}.residual_a", f"{_ENCODER}.residual_b"),
        "The two tensors that the residual connection adds: the block's input and the attention's result. They are "
        "added element by element, so both must be {src_len} × {d_model}; this is why d_model never changes along a"
        " stack.",
    ),
    15: (
        (f"{_ENCODER}.norm_output",),
        "The residual sum with each token's {d_model} features centred, scaled to unit variance, and then scaled "
        "and shifted by learned γ and β of size {d_model}. Tokens are normalised one by one, so the shape stays.",
    ),
    16: (
        ("encoder.0.feed_forward.input",),
        "What the feed-forward block reads: {src_len} tokens of width {d_model}. Attention mixed the tokens; from "
        "here each token is worked on alone.",
    ),
    17: (
        ("encoder.0.feed_forward.hidden",),
        "Each token widened from {d_model} to d_ff = {d_ff} features by the first linear map, before the "
        "activation. Only the last dimension changes, because the map acts on each of the {src_len} tokens alone.",
    ),
    18: (
        ("encoder.0.feed_forward.output",),
        "Each token brought back from {d_ff} to {d_model} features by the second linear map. It must be {d_model} "
        "again, to be added to the block's input.",
    ),
    19: (
        ("encoder.0.output",),
        "The result of the first encoder layer, after its second residual connection. It has the shape of the "
        "layer's input, {src_len} × {d_model}, so the next layer can read it.",
    ),
    20: (
        ("decoder.0.input",),
        "What the first decoder layer reads: the embedded target with its positions, a vector of {d_model} for each"
        " of the {tgt_len} target tokens. The width is the encoder's, the length is the target's own.",
    ),
    21: (
        (f"{_MASKED}.query",),
        "The queries of masked self-attention, all heads side by side: one for each of the {tgt_len} target tokens,"
        " {n_heads} heads × {d_head} = {d_model} features.",
    ),
    22: (
        (f"{_MASKED}.key",),
        "The keys of masked self-attention. They come from the same {tgt_len} target tokens as the queries, with "
        "the same {d_model} features, since the two are multiplied.",
    ),
    23: (
        (f"{_MASKED}.value",),
        "The values of masked self-attention: what each of the {tgt_len} target tokens hands on, one for each key.",
    ),
    24: (
        (f"{_MASKED}.scores",),
        "How well each target token fits each other one, in each of {n_heads} heads, before the mask: {tgt_len} "
        "queries × {tgt_len} keys, square because both are the target. Later tokens still have scores here.",
    ),
    25: (
        (f"{_MASKED}.mask",),
        "Which of the {tgt_len} keys (columns) each of the {tgt_len} queries (rows) may see: itself and what is "
        "before it. The mask is the same for every sentence and every head, so those two dimensions, where it has "
        "them, are 1 and are broadcast over {n_heads} heads.",
    ),
    26: (
        (f"{_MASKED}.weights",),
        "The attention weights under the mask: a score of −∞ becomes exactly 0 under softmax, so row i has shares "
        "only up to column i, and they sum to 1. Mask and softmax leave the scores' {tgt_len} × {tgt_len} alone.",
    ),
    27: (
        (f"{_MASKED}.query_heads", f"{_MASKED}.key_heads", f"{_MASKED}.value_heads"),
        "Queries, keys and values of the target cut into {n_heads} heads of d_head = {d_model} / {n_heads} = "
        "{d_head}, for {tgt_len} tokens each.",
    ),
    28: (
        (f"{_MASKED}.concat",),
        "The heads' results for the target side by side: {n_heads} × {d_head} = {d_model} features for each of the "
        "{tgt_len} tokens.",
    ),
    29: (
        (f"{_MASKED}.norm_output",),
        "The target's stream after masked self-attention, added and normalised token by token: still {tgt_len} × "
        "{d_model}. Cross-attention takes its queries from here.",
    ),
    30: (
        (f"{_CROSS}.query",),
        "The queries of cross-attention come from the decoder: what each of the {tgt_len} target tokens looks for "
        "in the source.",
    ),
    31: (
        (f"{_CROSS}.key",),
        "The keys of cross-attention come from the encoder's output, so there are {src_len} of them, not {tgt_len}."
        " Their width is the queries' {d_model}, since the two are multiplied.",
    ),
    32: (
        (f"{_CROSS}.value",),
        "The values of cross-attention come from the encoder's output too, one for each key: {src_len}. They are "
        "what the target takes from the source.",
    ),
    33: (
        (f"{_CROSS}.scores",),
        "How well each target token fits each source token, in each of {n_heads} heads: ({tgt_len} × {d_head}) · "
        "({d_head} × {src_len}) = {tgt_len} × {src_len}. Rows are queries from the decoder, columns keys from the "
        "encoder: two sequences, so it is rectangular.",
    ),
    34: (
        (f"{_CROSS}.weights",),
        "For each of the {tgt_len} target tokens, how its attention is shared among the {src_len} source tokens: "
        "each row sums to 1. There is no mask, since the whole source is known.",
    ),
    35: (
        (f"{_CROSS}.concat",),
        "What the target took from the source, heads side by side: ({tgt_len} × {src_len}) · ({src_len} × {d_head})"
        " sums the source away, so {tgt_len} rows are left, of {n_heads} × {d_head} = {d_model}.",
    ),
    36: (
        (f"{_CROSS}.norm_output",),
        "The target's stream after cross-attention, added and normalised: {tgt_len} × {d_model}, the source's "
        "length is gone.",
    ),
    37: (
        ("decoder.0.feed_forward.input",),
        "What the decoder's feed-forward block reads: {tgt_len} target tokens of width {d_model}.",
    ),
    38: (
        ("decoder.0.feed_forward.hidden",),
        "Each target token widened from {d_model} to d_ff = {d_ff} features, before the activation.",
    ),
    39: (
        ("decoder.0.feed_forward.output",),
        "Each target token brought back from {d_ff} to {d_model} features, to be added to the block's input.",
    ),
    40: (
        ("decoder.0.output",),
        "The result of the first decoder layer, of the shape of its input: {tgt_len} × {d_model}.",
    ),
    41: (
        ("output.hidden",),
        "The last state of the target, which the output projection reads: one vector of {d_model} for each of the "
        "{tgt_len} positions.",
    ),
    42: (
        ("output.logits",),
        "A number for each word of the target vocabulary at each position: the projection takes each of the "
        "{tgt_len} vectors from d_model = {d_model} to tgt_vocab = {tgt_vocab}. A softmax of them would be the "
        "prediction.",
    ),
    43: (
        ("output.logits_slice",),
        "The first logits of one position, at most 10 of the {tgt_vocab}: a vector cut out of the tensor before.",
    ),
}


@cache
def _rows() -> tuple[Snapshot, ...]:
    """The snapshots as they stand in the table, of no graph."""
    data = json.loads(files("fxtrace.roles").joinpath("snapshots.json").read_text(encoding="utf-8"))
    return tuple(
        Snapshot(
            number=row["number"],
            title=row["title"],
            section=row["section"],
            roles=_TABLE[row["number"]][0],
            variables=tuple(row["variables"]),
            dims=tuple(map(str, row["dims"])),
        )
        for row in data["snapshots"]
    )


def take_snapshots(graph: Graph, tables: Mapping[str, tuple[int, ...]]) -> tuple[tuple[Dim, ...], tuple[Snapshot, ...]]:
    """The named sizes of a labelled graph, and its snapshots.

    Sizes are read off the tensors the snapshots show: a snapshot's formula against its shape; symbols have the names
    that they were given.

    Args:
        graph: with roles.
        tables: shape of each stack's embedding table, by the stack's name.
    """
    specs = [
        (row.dims, node.spec)
        for row in _rows()
        for role in row.roles
        if (node := graph.by_role.get(role)) is not None and node.spec is not None
    ]
    named_tables = {"encoder": "src_vocab", "decoder": "tgt_vocab"}
    shapes = [((named_tables[stack], "d_model"), shape) for stack, shape in tables.items() if stack in named_tables]
    inputs = [spec for node in graph.nodes if node.kind == "input" for _, spec in node.tensors if spec.symbolic]
    specs += [(spec.symbolic, spec) for spec in inputs]
    sizes = bind([*((formula, spec.shape) for formula, spec in specs), *shapes])
    texts = bind((formula, spec.symbolic or tuple(map(str, spec.shape))) for formula, spec in specs)
    texts = {name: str(size) for name, size in sizes.items()} | texts
    refusals = {refusal.role: refusal.reason for refusal in graph.refusals}
    snapshots = tuple(_take(row, graph, sizes, texts, refusals) for row in _rows())
    return tuple(Dim(name, size) for name, size in sizes.items()), snapshots


def _take(
    row: Snapshot, graph: Graph, sizes: Mapping[str, int], texts: Mapping[str, str], refusals: Mapping[str, str]
) -> Snapshot:
    nodes = [graph.by_role.get(role) for role in row.roles]
    found = [node for node in nodes if node is not None]
    if len(found) < len(nodes):
        missing = [role for role, node in zip(row.roles, nodes, strict=True) if node is None]
        return replace(row, reason="; ".join(_why(role, graph, refusals) for role in missing))
    tensors = tuple(
        SnapshotTensor(variable, node.name, node.name, role, node.spec.shape, node.spec.symbolic)
        for variable, node, role in zip(row.variables, found, row.roles, strict=True)
        if node.spec is not None
    )
    dims = fit(row.dims, tensors[0].shape, sizes)
    return replace(
        row,
        dims=dims,
        tensors=tensors,
        explanation=_TABLE[row.number][1].format_map(_Sizes(texts)),
        checks=(_shape_check(row.dims, dims, tensors), *_checks(row.roles, found)),
    )


def _shape_check(formula: tuple[str, ...], dims: tuple[str, ...], tensors: tuple[SnapshotTensor, ...]) -> Check:
    """Whether the shape is what the formula says, a size of 1 standing for any that is broadcast.

    The formula is the usual one, not a law: where key heads are shared, say, another shape is right too. So it holds,
    or is not tried.
    """
    expected = aligned(formula, tensors[0].shape)
    fits = len(dims) == len(expected) and all(
        found in (usual, "1") for found, usual in zip(dims, expected, strict=True)
    )
    alike = len({tensor.shape for tensor in tensors}) == 1
    return Check(
        "shape",
        f"shape = {show_shape(dims)}" + ("" if dims == expected else f", where {show_shape(expected)} is usual"),
        True if fits and alike else None,
        " and ".join(dict.fromkeys(show_shape(tensor.shape) for tensor in tensors)),
    )


def _checks(roles: tuple[str, ...], nodes: list[Node]) -> tuple[Check, ...]:
    """The checks of a snapshot's own roles; where they have none, of the other roles of the same tensors."""
    own = [
        check
        for name, node in zip(roles, nodes, strict=True)
        for r in node.roles
        if str(r) == name
        for check in r.checks
    ]
    other = [check for node in nodes for role in node.roles for check in role.checks]
    return tuple(dict.fromkeys(own or other))


def _why(role: str, graph: Graph, refusals: Mapping[str, str]) -> str:
    """Why a role is not in a graph: its own refusal, or that of the nearest thing around it."""
    if role in refusals:
        return f"{role}: {refusals[role]}"
    prefix = role
    while "." in prefix:
        prefix = prefix.rpartition(".")[0]
        if prefix in refusals:
            return f"{role}: {refusals[prefix]}"
        if any(name.startswith(f"{prefix}.") for name in graph.by_role):
            break
    missing = role[: len(prefix) + 1 + role[len(prefix) + 1 :].find(".")] if "." in role[len(prefix) + 1 :] else role
    general = "; ".join(f"{where}: {why}" for where, why in refusals.items() if " at " in where)
    return f"{role}: the graph has no {missing}" + (f" ({general})" if general else "")


class _Sizes(dict[str, str]):
    """Sizes for a text: one that could not be read off the graph stays its name."""

    def __missing__(self, name: str) -> str:
        return name
