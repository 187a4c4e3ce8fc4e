"""Streams of blocks that are no attentions: layers, names and residual roles; and what is no stream."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxtrace.capture import capture
from fxtrace.graph import Graph
from fxtrace.roles import label

WIDTH, LENGTH = 8, 7
X = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(2))


def labelled(module: nn.Module) -> tuple[Graph, dict[str, Tensor]]:
    captured = capture(module.eval(), {"x": X})
    return label(captured.graph, captured.known, module.state_dict())[0], dict(captured.known)


class Fourier(nn.Module):
    """(Lee-Thorp et al. 2021, "FNet".)"""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x).real


class Recurrence(nn.Module):
    """A gated linear recurrence, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.take, self.gate, self.give = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        a, u = self.gate(x).sigmoid(), self.take(x)
        state = torch.zeros_like(u[:, 0])
        states = []
        for i in range(LENGTH):
            state = a[:, i] * state + (1 - a[:, i]) * u[:, i]
            states.append(state)
        y: Tensor = self.give(torch.stack(states, 1))
        return y


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        wall = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)
        w = (self.q(x) @ self.k(x).transpose(1, 2) / WIDTH**0.5 + wall).softmax(-1)
        y: Tensor = self.o(w @ self.v(x))
        return y


class FeedForward(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, 3 * WIDTH), nn.GELU(), nn.Linear(3 * WIDTH, WIDTH))


class Blocks(nn.Module):
    """Residual blocks in a row, with a norm before each branch or after each sum."""

    def __init__(self, *branches: Callable[[], nn.Module], post: bool = False, keep: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.branches = nn.ModuleList(branch() for branch in branches)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in branches)
        self.last = nn.LayerNorm(WIDTH)
        self.post, self.keep = post, keep

    def forward(self, x: Tensor) -> Tensor:
        for branch, norm in zip(self.branches, self.norms, strict=True):
            x = norm(x * self.keep + branch(x)) if self.post else x + branch(norm(x))
        y: Tensor = self.last(x)
        return y


def blocks(graph: Graph) -> list[str]:
    return [role.removesuffix(".residual_sum") for role in graph.by_role if role.endswith(".residual_sum")]


@pytest.mark.parametrize("post", [False, True], ids=["pre-norm", "post-norm"])
@pytest.mark.parametrize("mixer", [Fourier, Recurrence])
def test_unknown_branches_are_blocks_of_layers(mixer: type[nn.Module], post: bool) -> None:
    graph, values = labelled(Blocks(mixer, FeedForward, mixer, FeedForward, post=post))
    assert blocks(graph) == [f"stack.{i}.{block}" for i in (0, 1) for block in ("branch", "feed_forward")]
    for i in (0, 1):
        at = f"stack.{i}.branch"
        found = {part: values[graph.by_role[f"{at}.{part}"].name] for part in ("input", "output", "residual_sum")}
        assert torch.equal(found["residual_sum"], values[graph.by_role[f"{at}.residual_a"].name] + found["output"])
        entered = graph.by_role[f"{at}.input"]
        assert (entered.kind == "norm") == (not post or i > 0)
        assert f"{at}.norm_output" in graph.by_role
    assert [refusal for refusal in graph.refusals if refusal.role.startswith("block at")]


def test_layers_of_unknown_branches_alone_repeat_by_their_ops() -> None:
    graph, _ = labelled(Blocks(Recurrence, Fourier, Recurrence, Fourier))
    assert blocks(graph) == [f"stack.{i}.{block}" for i in (0, 1) for block in ("branch", "branch_2")]


def test_a_hybrid_has_its_layers_where_its_attention_is_unlike_the_rest() -> None:
    graph, _ = labelled(Blocks(Recurrence, FeedForward, Attention, FeedForward, Recurrence, FeedForward))
    assert blocks(graph) == [
        "decoder.0.branch",
        "decoder.0.feed_forward",
        "decoder.1.masked_self_attention",
        "decoder.1.feed_forward",
        "decoder.2.branch",
        "decoder.2.feed_forward",
    ]


def test_a_scaled_stream_is_kept_as_it_is_added() -> None:
    graph, values = labelled(Blocks(Attention, FeedForward, Attention, FeedForward, post=True, keep=2.5))
    assert blocks(graph)[:2] == ["decoder.0.masked_self_attention", "decoder.0.feed_forward"]
    kept, stream = (graph.by_role[f"decoder.1.{part}"] for part in ("feed_forward.residual_a", "feed_forward.input"))
    assert torch.equal(values[kept.name], values[stream.name] * 2.5)


class Flat(Blocks):
    """Rows are laid out anew between a sum and its norm, as for experts or a kernel that wants a matrix."""

    def forward(self, x: Tensor) -> Tensor:
        for branch, norm in zip(self.branches, self.norms, strict=True):
            rows = norm(x.reshape(-1, WIDTH))
            x = x + branch(rows.view(x.shape))
        y: Tensor = self.last(x)
        return y


def test_a_norm_of_the_same_rows_is_the_norm_of_the_sum() -> None:
    model = Flat(Attention, FeedForward, Attention, FeedForward)
    graph, values = labelled(model)
    normed = graph.by_role["decoder.0.masked_self_attention.norm_output"]
    total = graph.by_role["decoder.0.masked_self_attention.residual_sum"]
    assert torch.equal(values[normed.name], model.norms[1](values[total.name].reshape(-1, WIDTH)))


class Written(nn.Module):
    """An activation written out (`x + 0.04 x³`), twice: sums with what is computed of them, but no blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = (x + 0.044715 * x**3).tanh()
        y: Tensor = self.norm(x)
        return y


def test_sums_without_norms_are_no_stack() -> None:
    graph, _ = labelled(Written())
    assert not graph.by_role


class Packed(Attention):
    """The tokens of several sequences in one row: each attends within its own."""

    lengths = (2, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.split(cut(each(x)), list(self.lengths), 2) for each in (self.q, self.k, self.v))
        outputs = [
            ((a @ b.transpose(2, 3) / 2).softmax(-1) @ c).transpose(1, 2) for a, b, c in zip(q, k, v, strict=True)
        ]
        y: Tensor = self.o(torch.cat(outputs, 1).reshape(x.shape))
        return y


class ByHead(Attention):
    """One head after the other: those are not sequences of their own."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (cut(each(x)) for each in (self.q, self.k, self.v))
        heads = [(q[:, [h]] @ k[:, [h]].transpose(2, 3) / 2).softmax(-1) @ v[:, [h]] for h in range(q.shape[1])]
        y: Tensor = self.o(torch.cat(heads, 1).transpose(1, 2).reshape(x.shape))
        return y


def cut(x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], 2, WIDTH // 2).transpose(1, 2)


def test_packed_sequences_are_segments_of_one_attention() -> None:
    model = Blocks(Packed, FeedForward, Packed, FeedForward)
    graph, values = labelled(model)
    assert blocks(graph)[:2] == ["encoder.0.self_attention", "encoder.0.feed_forward"]
    for i, length in enumerate(Packed.lengths):
        weights = values[graph.by_role[f"encoder.1.self_attention.segment_{i}.weights"].name]
        assert weights.shape == (2, 2, length, length)
        assert f"encoder.1.self_attention.segment_{i}.query_heads" in graph.by_role
    assert graph.by_role["encoder.1.self_attention.output"].module == "branches.2.o"
    assert "encoder.1.self_attention.weights" not in graph.by_role


def test_heads_computed_one_by_one_are_no_segments() -> None:
    graph, _ = labelled(Blocks(ByHead, FeedForward, ByHead, FeedForward))
    assert not [role for role in graph.by_role if "segment" in role]
    assert any("at once" in refusal.reason for refusal in graph.refusals)
