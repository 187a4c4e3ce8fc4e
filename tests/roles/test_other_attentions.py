"""Attentions of other structures than the textbook's: found with every tensor right, their look-alikes refused."""

import pytest
import torch
from torch import Tensor, nn

from fxtrace.capture import capture
from fxtrace.graph import Graph
from fxtrace.roles import label
from tests.roles.other_attentions import (
    WIDTH,
    Mixed,
    Queries,
    Reduced,
    Relative,
    Structure,
    Summed,
    Windows,
    structures,
)


class OfTheStream(nn.Module):
    """What is added is made of the stream itself: no positions."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        made: Tensor = self.f(x)
        return made


STRUCTURES = dict(structures())


def labelled(model: Structure, *, values: bool = True) -> tuple[Graph, dict[str, Tensor]]:
    captured = capture(model, dict(zip("xy", model.inputs, strict=False)), values=values)
    return label(captured.graph, captured.known, model.state_dict())[0], dict(captured.values)


def blocks(graph: Graph) -> set[str]:
    return {role.rpartition(".")[0] for role in graph.by_role if "attention" in role}


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_tensor_of_a_structure_is_right(name: str) -> None:
    model = STRUCTURES[name]
    truth = model.learn_truth(*model.inputs)
    graph, values = labelled(model)
    assert blocks(graph) == model.blocks, [str(refusal) for refusal in graph.refusals]
    assert [
        role
        for role in truth
        if role in graph.by_role and not torch.equal(truth[role], values[graph.by_role[role].name])
    ] == []
    # What is there and not found is explained, and no block goes without its core.
    assert {role for role in truth if role not in graph.by_role} <= {str(refusal.role) for refusal in graph.refusals}
    assert {f"{block}.{part}" for block in model.blocks for part in ("scores", "weights", "head_outputs")} <= set(
        graph.by_role
    )
    checks = [check for node in graph.nodes for role in node.roles for check in role.checks]
    assert all(check.held for check in checks if check.name in ("scores", "softmax", "mix", "sum"))


@pytest.mark.parametrize("name", STRUCTURES)
def test_shapes_alone_show_no_other_blocks(name: str) -> None:
    graph, _ = labelled(STRUCTURES[name], values=False)
    assert blocks(graph) <= STRUCTURES[name].blocks


def test_what_the_masks_do_is_said() -> None:
    graph, _ = labelled(Relative())
    said = {check.statement for node in graph.nodes for role in node.roles for check in role.checks}
    assert "masked_scores = (scores + mask1) · scale − mask2" in said


@pytest.mark.parametrize(
    ("model", "missing", "why"),
    [
        pytest.param(
            Queries(OfTheStream(), anew=True),
            "encoder.0.self_attention",
            "starts neither",
            id="x + f(x) is no position",
        ),
        pytest.param(
            Windows(elsewhere=True), "encoder.0.self_attention", "starts neither", id="windows of another tensor"
        ),
        pytest.param(
            Reduced(of_another=True),
            "encoder_2.0.self_attention",
            "neither of its own stack nor",
            id="another stack's, reduced",
        ),
        pytest.param(
            Summed(own=True), "encoder.0.self_attention", "no product of two", id="two products of one stream"
        ),
        pytest.param(
            Relative(swapped=True), "encoder.0.self_attention", "left factor", id="weights transposed in the equation"
        ),
        pytest.param(
            Mixed("attention"), "encoder.0.self_attention", "2 attentions at once", id="two attentions, one projection"
        ),
    ],
)
def test_a_look_alike_is_refused(model: Structure, missing: str, why: str) -> None:
    graph, _ = labelled(model)
    assert missing not in blocks(graph)
    assert [refusal for refusal in graph.refusals if why in refusal.reason], [
        str(refusal) for refusal in graph.refusals
    ]
