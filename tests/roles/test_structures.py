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
    return x.view(*x.shape[:-1], -1, SIZE).transpose(1, 2)


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
        return self.project(self.tell("concat", side_by_side(self.tell("head_outputs", w @ v))))

    def project(self, x: Tensor) -> Tensor:
        y: Tensor = self.o(x)
        return y


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


class Turned(Attend):
    """Rotations by complex numbers."""

    def turn(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(LENGTH), torch.tensor([1.0, 0.1]))
        pairs = torch.view_as_complex(torch.unflatten(x, -1, (-1, 2)))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x)
        return self.turn(q), self.turn(k), v


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


class Routed(Attend):
    """Each token has its queries and its results projected by one of two experts. (Shen et al. 2024, "JetMoE".)"""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 2)
        self.asks, self.says = (nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2)) for _ in range(2))

    def routed(self, x: Tensor, experts: nn.ModuleList) -> Tensor:
        flat = x.reshape(-1, WIDTH)
        rows = [torch.nonzero(self.choice == i)[:, 0] for i in range(2)]
        parts = torch.cat([expert(flat[each]) for expert, each in zip(experts, rows, strict=True)])
        return torch.zeros_like(flat).index_add(0, torch.cat(rows), parts).view_as(x)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return cut(self.routed(x, self.asks)), cut(self.k(x)), cut(self.v(x))

    def forward(self, x: Tensor) -> Tensor:
        self.choice = self.router(x).argmax(-1).flatten()
        return super().forward(x)

    def project(self, x: Tensor) -> Tensor:
        return self.routed(x, self.says)


class GoesOn(Attend):
    """The branch has a feed-forward after the attention, and reads the embeddings beside the stream."""

    def __init__(self, after: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(2 * WIDTH, WIDTH) for _ in range(3))
        self.first, self.second = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(torch.cat((x, x.flip(1)), -1))
        return self.after(y) if self.after else self.second(self.first(y).relu())


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
    "rotations by complex numbers": (Turned, set()),
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


def test_an_attention_between_experts_is_found_and_its_query_refused() -> None:
    torch.manual_seed(4)
    model = Decoder(Routed).eval()
    graph, values = labelled(model)
    for i, attention in enumerate(model.attentions):
        assert isinstance(attention, Attend)
        at = f"decoder.{i}.masked_self_attention"
        for part in ("query_heads", "key_heads", "value_heads", "weights", "head_outputs"):
            assert torch.equal(values[graph.by_role[f"{at}.{part}"].name], attention.told[part])
        assert f"{at}.residual_sum" in graph.by_role
        reasons = {refusal.role: refusal.reason for refusal in graph.refusals}
        assert "2 projections each give a part" in reasons[f"{at}.query"]
        assert "a part of the heads' outputs" in reasons[f"{at}.output"]


def test_an_attention_whose_branch_goes_on_is_found_without_a_residual_of_its_own() -> None:
    model = Decoder(GoesOn).eval()
    graph, values = labelled(model)
    at = "decoder.0.masked_self_attention"
    attention = model.attentions[0]
    assert isinstance(attention, Attend)
    assert torch.equal(values[graph.by_role[f"{at}.weights"].name], attention.told["weights"])
    assert not [role for role in graph.by_role if role.startswith(f"{at}.residual")]
    reasons = {refusal.role: refusal.reason for refusal in graph.refusals}
    assert "goes on after the attention" in reasons[f"{at}.residual_sum"]


def test_an_unknown_op_on_an_attentions_result_is_no_further_step() -> None:
    graph, _ = labelled(Decoder(lambda: GoesOn(after=torch.sin)).eval())
    assert not [role for role in graph.by_role if "attention" in role]


class Pool(nn.Module):
    """An encoder whose result a learned query pools."""

    def __init__(self, probes: int = 1, residual: bool = True) -> None:
        super().__init__()
        self.see = nn.Linear(5, WIDTH)
        self.look, self.pool = Bare(), nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.norm, self.wide, self.narrow = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.probe = nn.Parameter(torch.randn(1, probes, WIDTH))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        x = self.see(x)
        x = x + self.look(x)
        y, _ = self.pool(self.probe.repeat(len(x), 1, 1), x, x)
        z = self.narrow(torch.relu(self.wide(self.norm(y))))
        return y + z if self.residual else z


class Bare(Attend):
    """Attention without a mask."""

    def weights(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)


@pytest.mark.parametrize("probes", [1, 3])
def test_a_stream_may_start_from_an_attention_by_a_learned_query(probes: int) -> None:
    torch.manual_seed(5)
    model, x = Pool(probes).eval(), torch.randn(2, LENGTH, 5)
    captured = capture(model, {"x": x})
    graph, _ = label(captured.graph, captured.values, model.state_dict())
    attentions = {role.rpartition(".")[0] for role in graph.by_role if "attention" in role}
    assert attentions == {"encoder.0.self_attention", "decoder.0.cross_attention"}
    with torch.no_grad():
        seen = model.see(x)
        seen = seen + model.look(seen)
        _, weights = model.pool(model.probe.repeat(2, 1, 1), seen, seen, average_attn_weights=False)
    found = captured.values[graph.by_role["decoder.0.cross_attention.weights"].name]
    assert torch.allclose(found.view_as(weights), weights)
    reasons = {refusal.role: refusal.reason for refusal in graph.refusals}
    assert "a stream starts from it" in reasons["decoder.0.cross_attention.residual_sum"]
    assert "decoder.0.feed_forward.residual_sum" in graph.by_role


def test_a_learned_query_whose_result_starts_no_stream_is_refused() -> None:
    model = Pool(residual=False).eval()
    captured = capture(model, {"x": torch.randn(2, LENGTH, 5)})
    graph, _ = label(captured.graph, captured.values, model.state_dict())
    assert {role.rpartition(".")[0] for role in graph.by_role if "attention" in role} == {"encoder.0.self_attention"}
    assert any("not added back" in refusal.reason for refusal in graph.refusals)


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
