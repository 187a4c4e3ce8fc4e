"""Attentions of many structures, each in a small decoder that tells what it computed; and their look-alikes."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxtrace.capture import capture
from fxtrace.graph import Graph
from fxtrace.roles import label

WIDTH, HEADS, SIZE, LENGTH, WORDS = 16, 4, 4, 6, 11
HIDDEN = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
WALL = torch.zeros(LENGTH, LENGTH).masked_fill(HIDDEN, -math.inf)


def cut(x: Tensor) -> Tensor:
    return torch.unflatten(x, -1, (-1, SIZE)).transpose(1, 2)


def side_by_side(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(-2)


class Attend(nn.Module):
    """Plain attention; `told` holds what it computed, by part."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.told: dict[str, Tensor] = {}

    def tell(self, part: str, tensor: Tensor) -> Tensor:
        self.told[part] = tensor.detach().clone()
        return tensor

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return cut(self.q(x)), cut(self.k(x)), cut(self.v(x))

    def weights(self, scores: Tensor) -> Tensor:
        return self.tell("masked_scores", scores + WALL).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        self.tell("query_heads", q), self.tell("key_heads", k), self.tell("value_heads", v)
        copies = HEADS // k.shape[1]
        k, v = (each.repeat_interleave(copies, 1) for each in (k, v)) if copies > 1 else (k, v)
        w = self.tell("weights", self.weights(self.tell("scores", q @ k.transpose(2, 3) * SIZE**-0.5)))
        return self.o(self.tell("concat", side_by_side(self.tell("head_outputs", w @ v))))


class Sink(Attend):
    """The softmax has a column of no key. (Xiao et al. 2023, "Efficient Streaming Language Models with Sinks".)"""

    def __init__(self, first: bool = False, shifted: bool = False, kept: str = "keys") -> None:
        super().__init__()
        self.drain = nn.Parameter(torch.randn(HEADS, 1, 1))
        self.first, self.shifted, self.kept = first, shifted, kept

    def weights(self, scores: Tensor) -> Tensor:
        s = self.tell("masked_scores", scores + WALL)
        drain = self.tell("sink", self.drain.expand(len(s), HEADS, LENGTH, 1))
        s = torch.cat((drain, s) if self.first else (s, drain), -1)
        if self.shifted:
            s = s - s.max(dim=-1, keepdim=True).values
        w = s.softmax(-1)
        if self.kept == "sink":  # and all keys but one
            return w[..., :-1] if self.first else w[..., 1:]
        return w[..., 1:] if self.first else w[..., :-1]


class Gated(Attend):
    def weights(self, scores: Tensor) -> Tensor:
        open_ = (~HIDDEN).float()
        return self.tell("masked_scores", scores * open_ + -1e4 * (1 - open_)).softmax(-1)


class Floored(Attend):
    def weights(self, scores: Tensor) -> Tensor:
        lowest = torch.tensor(torch.finfo(scores.dtype).min)
        return self.tell("masked_scores", torch.max(scores + WALL, lowest)).softmax(-1)


class OneKeyHead(Attend):
    """All heads share one key and one value head, cut out of one projection with a dimension for it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, WIDTH + 2 * SIZE)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x)[:, None].split((WIDTH, SIZE, SIZE), -1)
        self.tell("query", q), self.tell("key", k), self.tell("value", v)
        return q.reshape(len(x), LENGTH, HEADS, SIZE).transpose(1, 2), k, v


class Latent(Attend):
    """Multi-head latent attention: all through low-rank tensors, but for a part of the keys that heads share."""

    def __init__(self, rank: int = 6, written: bool = False) -> None:
        super().__init__()
        self.q_down, self.q_norm, self.q_up = nn.Linear(WIDTH, rank), nn.LayerNorm(rank), nn.Linear(rank, WIDTH)
        self.down, self.norm, self.up = nn.Linear(WIDTH, rank + 1), nn.LayerNorm(rank), nn.Linear(rank, 7 * HEADS)
        self.rank, self.written = rank, written

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.tell("query", self.q_up(self.tell("query_latent", self.q_norm(self.q_down(x)))))
        low, shared = self.down(x).split((self.rank, 1), -1)
        up = self.up(self.tell("key_value_latent", self.norm(low))).unflatten(-1, (HEADS, 7)).transpose(1, 2)
        own, v = up.split((SIZE - 1, SIZE), -1)
        shared = shared[:, None].expand(-1, HEADS, -1, -1)
        if not self.written:
            return cut(q), torch.cat((own, shared), -1), v
        k = own.new_empty(len(x), HEADS, LENGTH, SIZE)
        k[..., : SIZE - 1].copy_(own)
        k[..., SIZE - 1 :].copy_(shared)
        return cut(q), k, v


class Decoder(nn.Module):
    """Two pre-norm layers of an attention and a feed-forward, from ids to logits."""

    def __init__(self, make: Callable[[], nn.Module], images: bool = False, beside: bool = False) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        self.attentions = nn.ModuleList(make() for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(5))
        self.wide = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(2))
        self.see, self.blend = nn.Linear(5, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.images, self.beside = images, beside

    def forward(self, ids: Tensor, images: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        if images is not None:
            x = x.masked_scatter((ids == 0)[..., None], self.see(images))
        for i in range(2):
            a = self.norms[2 * i](x)
            if self.beside:  # something else than attention reads the same, each reading it scaled
                x = x + (self.blend((a * 0.5).cumsum(1)) * 2.0 + self.attentions[i](a * 3.0) * 0.25)
            else:
                x = x + self.attentions[i](a)
            x = x + self.narrow[i](functional.gelu(self.wide[i](self.norms[2 * i + 1](x))))
        return self.head(self.norms[4](x))


IDS = torch.tensor([[1, 2, 3, 4, 5, 6], [0, 0, 7, 8, 9, 10]])


def labelled(model: nn.Module, **inputs: Tensor) -> tuple[Graph, dict[str, Tensor]]:
    captured = capture(model, {"ids": IDS, **inputs})
    assert captured.output_equal
    with torch.no_grad():
        model(IDS, **inputs)  # capturing leaves the module as it was: it has told nothing yet
    return label(captured.graph, captured.values, model.state_dict())[0], dict(captured.values)


STRUCTURES: dict[str, tuple[Callable[[], Attend], set[str]]] = {
    # with the parts that no tensor of the graph is
    "plain": (Attend, set()),
    "sink": (Sink, set()),
    "sink first": (lambda: Sink(first=True), set()),
    "sink, shifted by the largest score": (lambda: Sink(shifted=True), set()),
    "gate and wall": (Gated, {"mask"}),
    "floor": (Floored, set()),
    "one key head": (OneKeyHead, set()),
    "latent": (Latent, {"key", "value"}),
    "latent, keys written in place": (lambda: Latent(written=True), {"key", "value"}),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_part_is_found_and_right(name: str) -> None:
    torch.manual_seed(2)
    make, unheld = STRUCTURES[name]
    model = Decoder(make).eval()
    graph, values = labelled(model)
    for i, attention in enumerate(model.attentions):
        assert isinstance(attention, Attend)
        assert len(attention.told) >= 8
        for part, tensor in attention.told.items():
            node = graph.by_role.get(f"decoder.{i}.masked_self_attention.{part}")
            assert node is not None, part
            assert torch.equal(values[node.name], tensor), part
        refused = {r.role.rpartition(".")[2] for r in graph.refusals if r.role.startswith(f"decoder.{i}.masked_self")}
        assert refused == unheld
        assert f"decoder.{i}.feed_forward.output" in graph.by_role
    checks = [check for node in graph.nodes for role in node.roles for check in role.checks]
    assert all(check.held for check in checks if check.name in ("softmax", "mix", "scores", "sum"))


def test_a_sinks_weights_say_that_they_do_not_sum_to_one() -> None:
    graph, values = labelled(Decoder(Sink).eval())
    node = graph.by_role["decoder.0.masked_self_attention.weights"]
    (role,) = (role for role in node.roles if role.part == "weights")
    assert "rows sum to 1 minus the sink's share" in role.checks[0].statement
    assert bool((values[node.name].sum(-1) < 1).all())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda: Sink(kept="sink"), "not cut off the weights", id="a key is cut off, not the sink"),
        pytest.param(lambda: Sink(first=True, kept="sink"), "not cut off the weights", id="the same, sink first"),
        pytest.param(lambda: Latent(rank=WIDTH), "starts neither at", id="a pair of projections of full rank"),
    ],
)
def test_look_alikes_are_refused(make: Callable[[], Attend], reason: str) -> None:
    graph, _ = labelled(Decoder(make).eval())
    assert not [role for role in graph.by_role if "attention" in role]
    assert any(reason in refusal.reason for refusal in graph.refusals)


def test_features_put_in_the_places_of_tokens_leave_the_embedding_found() -> None:
    graph, values = labelled(Decoder(Attend).eval(), images=torch.randn(2, 5))
    assert graph.by_role["decoder.embedding.tokens"].name == "ids"
    merged = graph.by_role["decoder.embedding.output"]
    looked_up = graph.by_role["decoder.embedding.token_embeddings"]
    assert merged.target == "masked_scatter"
    assert not torch.equal(values[merged.name], values[looked_up.name])


def test_an_attention_beside_something_else_is_found() -> None:
    model = Decoder(Attend, beside=True).eval()
    graph, values = labelled(model)
    for i, attention in enumerate(model.attentions):
        assert isinstance(attention, Attend)
        weights = graph.by_role[f"decoder.{i}.masked_self_attention.weights"]
        assert torch.equal(values[weights.name], attention.told["weights"])
    assert [refusal for refusal in graph.refusals if "neither an attention nor a feed-forward" in refusal.reason]


class Capped(Decoder):
    def forward(self, ids: Tensor, images: Tensor | None = None) -> Tensor:
        return torch.tanh(super().forward(ids, images) / 5.0) * 5.0


class Scaled(Decoder):
    def forward(self, ids: Tensor, images: Tensor | None = None) -> Tensor:
        return super().forward(ids, images) * 0.125


class Squashed(Decoder):
    def forward(self, ids: Tensor, images: Tensor | None = None) -> Tensor:
        return torch.sin(super().forward(ids, images))


@pytest.mark.parametrize(("kind", "how"), [(Capped, "capped("), (Scaled, "· scale")])
def test_logits_may_be_scaled_or_capped(kind: type[Decoder], how: str) -> None:
    model = kind(Attend).eval()
    graph, values = labelled(model)
    node = graph.by_role["output.logits"]
    assert torch.equal(values[node.name], model(IDS))
    (role,) = (role for role in node.roles if role.part == "logits")
    assert role.checks[0].held
    assert how in role.checks[0].statement


def test_other_functions_of_the_logits_are_no_logits() -> None:
    graph, _ = labelled(Squashed(Attend).eval())
    assert "output.logits" not in graph.by_role
