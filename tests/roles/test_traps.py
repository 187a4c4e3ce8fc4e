"""Models that look like a transformer here and there: what is not shown must not be labelled."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxtrace.capture import capture
from fxtrace.graph import Graph
from fxtrace.roles import label

WIDTH = 16


def labelled(module: nn.Module, *, values: bool = True, **inputs: Tensor) -> Graph:
    captured = capture(module, inputs, values=values)
    return label(captured.graph, captured.known, module.state_dict())[0]


class Attend(nn.Module):
    """One attention block over x, with places to go wrong."""

    def __init__(
        self,
        scores: Callable[[Tensor], Tensor] = lambda s: s,
        weights: Callable[[Tensor], Tensor] = lambda w: w,
        branch: Callable[[Tensor], Tensor] = lambda b: b,
        value: bool = True,
    ) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH)
        self.scores, self.weights, self.branch, self.projects_values = scores, weights, branch, value

    def forward(self, x: Tensor) -> Tensor:
        s = self.q(x) @ self.k(x).transpose(1, 2) / math.sqrt(WIDTH)
        w = self.weights(self.scores(s).softmax(-1))
        y = w @ (self.v(x) if self.projects_values else x)
        return self.norm(x + self.branch(self.o(y)))


X = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))


def test_the_untouched_block_is_found() -> None:
    graph = labelled(Attend(), x=X)
    assert {"encoder.0.self_attention.scores", "encoder.0.self_attention.weights"} <= set(graph.by_role)
    heads = [refusal for refusal in graph.refusals if refusal.role.endswith("query_heads")]
    assert "no dimension for heads" in heads[0].reason


@pytest.mark.parametrize("values", [True, False], ids=["values", "shapes only"])
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(Attend(scores=lambda s: s.transpose(1, 2)), id="scores transposed before softmax"),
        pytest.param(Attend(weights=lambda w: w.transpose(1, 2)), id="weights transposed before the product"),
        pytest.param(Attend(weights=lambda w: w / w.amax(-1, keepdim=True)), id="weights rescaled"),
        pytest.param(Attend(scores=lambda s: s.cumsum(-1)), id="an unknown op between product and softmax"),
        pytest.param(Attend(branch=torch.sin), id="an op after the output projection"),
    ],
)
def test_a_spoiled_attention_is_refused(block: Attend, values: bool) -> None:
    graph = labelled(block, values=values, x=X)
    assert not [role for role in graph.by_role if "attention" in role]
    assert graph.refusals
    assert all(refusal.reason for refusal in graph.refusals)


class Softmaxes(nn.Module):
    """Softmaxes that are no attention: a gate over experts, a pooling by a learned query, a product along rows."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.query = nn.Parameter(torch.randn(WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "gate":
            return x + self.c(self.a(x).softmax(-1) * self.b(x))
        if self.kind == "pooling":
            return (x @ self.query).softmax(1).transpose(1, 2) @ x
        if self.kind == "columns":
            return x + self.c((self.a(x) @ self.b(x).transpose(1, 2)).softmax(1) @ self.c(x))
        return (self.a(x) @ self.b(x).transpose(1, 2)).softmax(-1) @ x  # no residual


@pytest.mark.parametrize("kind", ["gate", "pooling", "columns", "no residual"])
def test_other_softmaxes_are_not_attention(kind: str) -> None:
    graph = labelled(Softmaxes(kind), x=X)
    assert not [role for role in graph.by_role if "attention" in role]
    assert [refusal for refusal in graph.refusals if "softmax" in refusal.role]


def test_values_that_are_not_projected_get_no_value_role() -> None:
    graph = labelled(Attend(value=False), x=X)
    assert "encoder.0.self_attention.query" in graph.by_role
    assert "encoder.0.self_attention.value" not in graph.by_role
    reasons = {refusal.role: refusal.reason for refusal in graph.refusals}
    assert "does not come from one projection" in reasons["encoder.0.self_attention.value"]


def test_training_with_dropout_keeps_the_labels() -> None:
    block = Attend(weights=nn.Dropout(0.5))
    captured = capture(block, {"x": X}, training=True)
    graph, _ = label(captured.graph, captured.known, block.state_dict())
    assert captured.output_equal
    node = graph.by_role["encoder.0.self_attention.head_outputs"]
    checks = {check.statement: check.held for role in node.roles for check in role.checks}
    assert checks == {"head_outputs = dropout(weights) · value_heads": True}


class Stacked(nn.Module):
    """Decoder-only or encoder-only: ids in, logits out."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, 9)
        wall = torch.full((5, 5), -math.inf).triu(1)
        mask = (lambda s: s + wall) if causal else (lambda s: s)
        self.blocks = nn.ModuleList(Attend(scores=mask) for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize(
    ("causal", "stack", "block"),
    [(True, "decoder", "masked_self_attention"), (False, "encoder", "self_attention")],
)
def test_one_stack_is_named_by_its_mask(causal: bool, stack: str, block: str) -> None:
    graph = labelled(Stacked(causal), ids=torch.tensor([[1, 2, 3, 4, 5]]))
    attentions = {role.rpartition(".")[0] for role in graph.by_role if "attention" in role}
    assert attentions == {f"{stack}.{layer}.{block}" for layer in range(3)}
    assert {"output.logits", f"{stack}.embedding.tokens"} <= set(graph.by_role)


def test_a_single_position_cannot_show_a_causal_mask() -> None:
    block = Attend(scores=lambda s: s + torch.zeros(1, 1))
    graph = labelled(block, x=X[:, :1])
    assert not [role for role in graph.by_role if "attention" in role]
    assert any("cannot be told" in refusal.reason for refusal in graph.refusals)


class Towers(nn.Module):
    """Two encoders side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Attend(), Attend()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.left(x).mean(1) * functional.normalize(self.right(y).mean(1), dim=-1)


def test_streams_of_a_kind_are_numbered() -> None:
    graph = labelled(Towers(), x=X, y=X + 1)
    blocks = {role.rpartition(".")[0] for role in graph.by_role if "attention" in role}
    assert blocks == {"encoder.0.self_attention", "encoder_2.0.self_attention"}
    assert graph.by_role["encoder_2.embedding.output"].name == "y"
    assert "output.hidden" not in graph.by_role


class SharedInput(nn.Module):
    """Encoder and decoder read the same ids: inputs do not tell the stacks apart, streams do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, WIDTH)
        self.encoder, self.decoder = Attend(), Attend()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.wall: Tensor
        self.register_buffer("wall", torch.full((5, 5), -math.inf).triu(1))
        self.decoder.scores = lambda s: s + self.wall

    def forward(self, ids: Tensor) -> Tensor:
        memory = self.encoder(self.embed(ids) + 1)
        y = self.decoder(self.embed(ids))
        w = (self.q(y) @ self.k(memory).transpose(1, 2)).softmax(-1)
        return y + self.o(w @ self.v(memory))


def test_cross_attention_is_told_by_the_stream() -> None:
    graph = labelled(SharedInput(), ids=torch.tensor([[1, 2, 3, 4, 5]]))
    blocks = {role.rpartition(".")[0] for role in graph.by_role if "attention" in role}
    assert blocks == {"encoder.0.self_attention", "decoder.0.masked_self_attention", "decoder.0.cross_attention"}


class NotAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.conv(image)))
        return self.out(x.mean((2, 3)))


def test_a_convolutional_network_has_no_roles() -> None:
    graph = labelled(NotAttention(), image=torch.randn(2, 3, 8, 8))
    assert not graph.by_role
