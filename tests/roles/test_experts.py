"""Mixtures of experts written in many ways, and what only looks like one."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxtrace.capture import capture
from fxtrace.graph import Graph
from fxtrace.roles import label

WIDTH, INNER, EXPERTS, CHOSEN = 16, 24, 4, 2
BLOCK = "stack.0.mixture_of_experts"
X = torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class Variant:
    """One way of writing it."""

    router: str = "softmax, top-k"
    experts: str = "loop"
    gated: bool = False
    shared: str = ""
    chosen: int = CHOSEN
    norm: bool = True
    bias: bool = False


class Expert(nn.Module):
    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.gate = nn.Linear(WIDTH, INNER) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x)
        return self.two(functional.silu(self.gate(x)) * hidden if self.gate is not None else hidden.relu())


class Mixture(nn.Module):
    """x + Σ weight · expert(norm(x)), which keeps what it knows of itself in `truth`."""

    def __init__(self, v: Variant) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.v, self.truth = v, dict[str, Tensor]()
        self.norm = nn.LayerNorm(WIDTH)
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.correction = nn.Parameter(torch.randn(EXPERTS) / 4)
        self.experts = nn.ModuleList(Expert(v.gated) for _ in range(EXPERTS))
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER) / 4)
        self.up_bias = nn.Parameter(torch.randn(EXPERTS, INNER) / 4)
        self.down = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH) / 4)
        self.down_bias = nn.Parameter(torch.randn(EXPERTS, WIDTH) / 4)
        self.shared, self.shared_gate = Expert(gated=True), nn.Linear(WIDTH, 1)
        self.last_bias = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x) if self.v.norm else x
        flat = y.reshape(-1, WIDTH)
        weights, chosen = self.route(flat)
        mixed = getattr(self, f"by_{self.v.experts.replace(' ', '_')}")(flat, weights, chosen)
        self.truth["routed"] = mixed
        if self.v.shared:
            shared = self.shared(flat)
            if self.v.shared == "gated":
                self.truth["shared_expert.weight"] = self.shared_gate(flat).sigmoid()
                shared = self.truth["shared_expert.weight"] * shared
            mixed = mixed * 1.5 + shared if self.v.shared == "scaled" else mixed + shared
        if self.v.bias:
            mixed = mixed + self.last_bias
        self.truth["output"] = mixed
        return x + mixed.view_as(x)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(weights, chosen): tokens × k; or the weights of all experts."""
        k, logits = self.v.chosen, self.router(x)
        self.truth["logits"] = logits
        if self.v.router.startswith("top-k"):
            top, chosen = logits.topk(k, -1)
            weights = top.softmax(-1)
        elif self.v.router == "sigmoid, corrected":
            p = self.truth["probabilities"] = logits.sigmoid()
            self.truth["selection"] = p + self.correction
            chosen = self.truth["selection"].topk(k, -1).indices
            top = p.gather(1, chosen)
            weights = top / top.sum(-1, keepdim=True) * 2.5
        else:
            p = self.truth["probabilities"] = logits.softmax(-1)
            if self.v.router == "soft":
                self.truth["weights"] = p
                return p, torch.arange(EXPERTS).expand(len(x), -1)
            if self.v.router == "argmax":
                chosen = p.argmax(-1, keepdim=True)
                weights = p.gather(1, chosen)
            else:
                weights, chosen = p.topk(k, -1)
            if "normalised" in self.v.router:
                weights = weights / weights.sum(-1, keepdim=True)
        if "dense" in self.v.router:
            weights = torch.zeros_like(logits).scatter(1, chosen, weights)
        self.truth |= {"weights": weights, "chosen": chosen}
        return weights, chosen

    def kept(self, e: int, output: Tensor) -> Tensor:
        self.truth[f"expert_{e}.output"] = output
        return output

    def by_loop(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        mixed = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, place = torch.where(chosen == e)
            mixed.index_add_(0, token, self.kept(e, expert(x[token])) * weights[token, place, None])
        return mixed

    def by_loop_over_hits(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        mixed = torch.zeros_like(x)
        mask = functional.one_hot(chosen, EXPERTS).permute(2, 1, 0)
        for hit in mask.sum((-1, -2)).greater(0).nonzero():
            place, token = torch.where(mask[hit[0]])
            output = self.experts[int(hit)](x[token])
            mixed[token] += self.kept(int(hit), output) * weights[token, place].unsqueeze(-1)
        return mixed

    def by_all_experts(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        mixed = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            mixed = mixed + self.kept(e, expert(x)) * weights[:, e, None]
        return mixed

    def by_stack(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        outputs = torch.stack([self.kept(e, expert(x)) for e, expert in enumerate(self.experts)], 1)
        return torch.einsum("te,ted->td", weights, outputs)

    def by_product(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        hidden = torch.einsum("td,edf->etf", x, self.up).relu()
        self.truth["experts.output"] = torch.einsum("etf,efd->etd", hidden, self.down)
        return (self.truth["experts.output"] * weights.t().unsqueeze(-1)).sum(0)

    def by_product_with_bias(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        hidden = (x.expand(EXPERTS, -1, -1).bmm(self.up) + self.up_bias[:, None]).relu()
        self.truth["experts.hidden"] = x @ self.up + self.up_bias[:, None]
        self.truth["experts.output"] = outputs = hidden.bmm(self.down) + self.down_bias[:, None]
        return (outputs * weights.transpose(0, 1)[..., None]).sum(0)

    def by_rows(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        rows, ids = x.repeat_interleave(chosen.shape[1], 0), chosen.reshape(-1)
        hidden = (rows[:, None] @ self.up[ids]).squeeze(1).relu()
        self.truth["experts.output"] = outputs = (hidden[:, None] @ self.down[ids]).squeeze(1)
        return (outputs * weights.reshape(-1, 1)).view(len(x), -1, WIDTH).sum(1)

    def by_capacity(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Every expert has room for so many tokens; the rest is dropped (Lepikhin et al. 2020, GShard)."""
        room = 3
        mask = functional.one_hot(chosen[:, 0], EXPERTS)
        place = mask.cumsum(0) * mask - 1
        slots = functional.one_hot(place.clamp(0, room - 1), room) * ((place >= 0) & (place < room))[..., None]
        sent = torch.einsum("tec,td->ecd", slots.to(x.dtype), x)
        outputs = sent.bmm(self.up).relu().bmm(self.down)
        self.truth["experts.output"] = outputs
        shares = slots * weights[:, :, None]
        return torch.einsum("tec,ecd->td", shares, outputs)


VARIANTS = {
    "plain": Variant(),
    "normalised": Variant(router="softmax, top-k, normalised"),
    "softmax of the chosen": Variant(router="top-k, softmax"),
    "sigmoid, corrected, scaled": Variant(router="sigmoid, corrected"),
    "one chosen": Variant(router="argmax", chosen=1),
    "all chosen": Variant(chosen=EXPERTS),
    "gated experts": Variant(gated=True),
    "a shared expert": Variant(shared="plain"),
    "a shared expert with a gate": Variant(shared="gated", gated=True),
    "scaled before the shared expert": Variant(shared="scaled"),
    "a bias at the end": Variant(bias=True),
    "no norm": Variant(norm=False),
    "a loop over those that are hit": Variant(experts="loop over hits"),
    "every expert on every token": Variant(router="softmax, top-k, dense", experts="all experts"),
    "every expert, one chosen": Variant(router="softmax, top-k, dense", experts="all experts", chosen=1),
    "stacked outputs": Variant(router="softmax, top-k, dense", experts="stack"),
    "stacked weights": Variant(router="softmax, top-k, dense", experts="product"),
    "stacked weights with biases": Variant(router="top-k, softmax, dense", experts="product with bias"),
    "weights looked up for each row": Variant(experts="rows"),
    "soft": Variant(router="soft", experts="all experts"),
    "soft, stacked weights": Variant(router="soft", experts="product"),
}


def labelled(module: nn.Module, *, values: bool = True, **inputs: Tensor) -> tuple[Graph, dict[str, Tensor]]:
    captured = capture(module, inputs, values=values)
    return label(captured.graph, captured.known, module.state_dict())[0], dict(captured.values)


@pytest.mark.parametrize("name", VARIANTS)
def test_labels_are_right_and_complete(name: str) -> None:
    model = Mixture(VARIANTS[name])
    model(X)
    truth = {f"{BLOCK}.{part}": tensor.clone() for part, tensor in model.truth.items()}
    graph, values = labelled(model, x=X)
    wrong = [
        role
        for role, tensor in truth.items()
        if (node := graph.by_role.get(role)) and not torch.equal(values[node.name].reshape(-1), tensor.reshape(-1))
    ]
    assert wrong == []
    assert set(truth) <= set(graph.by_role), [(r.role, r.reason) for r in graph.refusals]
    checks = [check for node in graph.nodes for role in node.roles for check in role.checks]
    assert all(check.held for check in checks if check.name in ("mixture", "top-k", "weights", "linear"))
    assert {"mixture", "linear"} <= {check.name for check in checks}
    assert [role for role in graph.by_role if role.endswith("residual_sum")] == [f"{BLOCK}.residual_sum"]


@pytest.mark.parametrize("name", [name for name, v in VARIANTS.items() if not v.experts.startswith("loop")])
def test_shapes_alone_give_the_same_labels(name: str) -> None:
    model = Mixture(VARIANTS[name])
    with_values, _ = labelled(model, x=X)
    without, _ = labelled(model, values=False, x=X)
    here = {role: node.name for role, node in without.by_role.items()}
    assert here == {role: node.name for role, node in with_values.by_role.items()}
    assert f"{BLOCK}.weights" in here


def test_layers_may_have_a_mixture_or_a_feed_forward() -> None:
    """Layers are counted the same, whichever stands after the attention."""

    class Layer(nn.Module):
        def __init__(self, mixture: bool) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
            self.mixture = Mixture(Variant(shared="plain")) if mixture else None
            self.plain = Expert(gated=False)

        def forward(self, x: Tensor) -> Tensor:
            weights = (self.q(x) @ self.k(x).transpose(1, 2) / 4).softmax(-1)
            x = x + self.o(weights @ self.v(x))
            return self.mixture(x) if self.mixture is not None else x + self.plain(x)

    graph, _ = labelled(nn.Sequential(*(Layer(mixture) for mixture in (False, True, False, True))), input=X)
    blocks = {role.rpartition(".")[0] for role in graph.by_role if role.endswith("residual_sum")}
    assert blocks == {f"encoder.{layer}.self_attention" for layer in range(4)} | {
        "encoder.0.feed_forward",
        "encoder.1.mixture_of_experts",
        "encoder.2.feed_forward",
        "encoder.3.mixture_of_experts",
    }
    assert not [role for role in graph.refusals if "attention at" in role.role]


class Spoiled(Mixture):
    """A mixture that does not do what its router says."""

    def __init__(self, how: str) -> None:
        super().__init__(
            Variant(router="softmax, top-k, dense", experts="all experts") if how == "dense" else Variant()
        )
        self.how = how

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = super().route(x)
        if self.how == "other experts":
            return weights, (chosen + 1) % EXPERTS
        if self.how == "other tokens":
            return weights.roll(1, 0), chosen
        return weights.roll(1, 1), chosen


@pytest.mark.parametrize("how", ["other experts", "other tokens", "dense"])
def test_a_spoiled_mixture_is_refused(how: str) -> None:
    graph, _ = labelled(Spoiled(how), x=X)
    assert not [role for role in graph.by_role if "mixture_of_experts" in role]
    assert [refusal for refusal in graph.refusals if "does not hold" in refusal.reason]


def test_what_is_not_shown_is_refused() -> None:
    """Dispatch and combine tensors have the weights only together with the places in the experts' buffers."""
    graph, _ = labelled(Mixture(Variant(router="argmax", experts="capacity", chosen=1)), x=X)
    assert not [role for role in graph.by_role if "mixture_of_experts" in role]
    reasons = {refusal.role: refusal.reason for refusal in graph.refusals}
    assert reasons["mixture of experts at 'softmax'"] == "no one tensor holds the weights of all experts"


class LookAlike(nn.Module):
    """What has a router's parts, and no experts."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.kind = kind
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gate, self.two = nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, 2)
        self.one, self.other = Expert(gated=False), Expert(gated=False)

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "beam":
                scores, ids = self.a(x).log_softmax(-1).topk(3, -1)
                return (scores.unsqueeze(-1) + self.b(x).unsqueeze(2)).sum(2) + ids.sum(-1, keepdim=True)
            case "gated features":
                return x + self.b(self.a(x).softmax(-1) * self.one(x))
            case "pruned features":
                scores = self.a(x)
                kept = torch.zeros_like(scores).scatter(-1, scores.topk(4, -1).indices, 1.0)
                return x + self.b((self.one(x) * kept).relu())
            case "pruned tokens":
                rows = self.a(x).mean(-1).topk(3, 1).indices
                return x + self.one(x).sum(1, keepdim=True) + x.gather(1, rows[..., None].expand(-1, -1, WIDTH)).mean()
            case "one branch, one share":
                return x + self.one(x) * self.two(x).softmax(-1)[..., :1]
            case "two branches of two inputs":
                shares = self.two(x).softmax(-1)
                return x + self.one(x) * shares[..., :1] + self.other(x * 2) * shares[..., 1:]
            case "shares of another tensor":
                shares = self.two(x.flip(1)).softmax(-1)
                return x + (self.one(x) * shares[..., :1] + self.other(x) * shares[..., 1:])
            case _:  # memory of learnt vectors
                return x + self.gate(x).softmax(-1) @ self.a.weight[:EXPERTS]


@pytest.mark.parametrize("values", [True, False], ids=["values", "shapes only"])
@pytest.mark.parametrize(
    "kind",
    [
        "beam",
        "gated features",
        "pruned features",
        "pruned tokens",
        "one branch, one share",
        "two branches of two inputs",
        "shares of another tensor",
        "learnt vectors",
    ],
)
def test_what_only_looks_like_a_mixture_is_none(kind: str, values: bool) -> None:
    graph, _ = labelled(LookAlike(kind), values=values, x=X)
    assert not [role for role in graph.by_role if "mixture_of_experts" in role]
