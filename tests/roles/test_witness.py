"""What a labelled copy with values says of a graph without."""

from __future__ import annotations

from fxtrace.graph import Check, Graph, Node, Refusal, Role
from fxtrace.roles.witness import Witness

OPEN = Check("sum", "c = a + b", None, "no values: shapes only")
HELD = Check("sum", "c = a + b", True, "largest difference 0.0e+00, allowed 1.0e-06")


def graph(*roles: tuple[str, Check], refusals: tuple[Refusal, ...] = ()) -> Graph:
    """A node for each role, named as the role is; a place is written stack.layer.block.part or stack.block.part."""
    nodes = []
    for i, (name, check) in enumerate(roles):
        stack, *layer, block, part = name.split(".")
        role = Role(stack, int(layer[0]) if layer else None, block, part, "a sum", (check,))
        nodes.append(Node(f"n{i}", "call_function", "add", "add", roles=(role,)))
    return Graph("M", tuple(nodes), refusals=refusals)


def says(copy: Graph, *roles: str) -> tuple[dict[str, bool | None], dict[str, str]]:
    """What each role's check says afterwards, and the refusals."""
    labelled = Witness(copy, "a copy")(graph(*((role, OPEN) for role in roles)))
    return (
        {name: node.roles[0].checks[0].held for name, node in labelled.by_role.items()},
        {refusal.role: refusal.reason for refusal in labelled.refusals},
    )


def test_what_held_on_the_copy_is_said() -> None:
    labelled = Witness(graph(("decoder.0.attention.out", HELD)), "a copy")(graph(("decoder.0.attention.out", OPEN)))
    (role,) = labelled.nodes[0].roles
    assert role.evidence == "a sum; held on a copy"
    assert role.checks == (Check("sum", "c = a + b", True, f"on a copy: {HELD.detail}"),)


def test_a_layer_is_held_against_all_that_have_its_blocks() -> None:
    copy = graph(
        *(
            (f"decoder.{layer}.{block}.out", HELD)
            for layer, block in ((0, "attention"), (2, "attention"), (1, "mixer"))
        ),
        refusals=(Refusal("decoder.2.attention.mask", "at 'x', it does not hold"),),
    )
    held, refused = says(
        copy,
        *("decoder.7.attention.out", "decoder.7.attention.mask", "decoder.8.mixer.out", "decoder.8.mixer.mask"),
    )
    assert held == {"decoder.7.attention.out": True, "decoder.8.mixer.out": True, "decoder.8.mixer.mask": None}
    assert refused == {"decoder.7.attention.mask": "on a copy, at 'x', it does not hold"}


def test_a_block_that_the_copy_lacks_is_refused() -> None:
    copy = graph(
        ("decoder.0.attention.out", HELD),
        refusals=(Refusal("attention at 'softmax'", "scores do not hold"), Refusal("output.logits", "none")),
    )
    held, refused = says(copy, "decoder.5.masked_attention.out", "encoder.0.attention.out", "decoder.5.attention.out")
    assert held == {"decoder.5.attention.out": True}
    because = "(attention at 'softmax': scores do not hold)"
    assert refused == {
        "decoder.5.masked_attention.out": f"on a copy, there is no decoder.masked_attention {because}",
        "encoder.0.attention.out": f"on a copy, there is no encoder.attention {because}",
    }


def test_what_is_in_no_layer_is_held_against_its_like() -> None:
    copy = graph(
        ("decoder.embedding.tokens", HELD), refusals=(Refusal("decoder.embedding.positions", "it does not hold"),)
    )
    held, refused = says(copy, "decoder.embedding.tokens", "decoder.embedding.positions", "decoder.embedding.output")
    assert held == {"decoder.embedding.tokens": True, "decoder.embedding.output": None}
    assert refused == {"decoder.embedding.positions": "on a copy, it does not hold"}


def test_what_the_graphs_own_values_showed_stays() -> None:
    own = Check("sum", "c = a + b", True, "equal")
    labelled = Witness(graph(("decoder.0.attention.mask", HELD)), "a copy")(graph(("decoder.0.attention.mask", own)))
    assert labelled.nodes[0].roles[0].checks == (own,)
