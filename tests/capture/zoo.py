"""Models of many kinds, none of which is there for its numbers: what they have in common is that they must be captured.

Each entry of `ZOO` makes a module and its inputs, from the random state as it is.
"""

from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Made = tuple[nn.Module, dict[str, Any]]
ZOO: dict[str, Callable[[], Made]] = {}


def model(make: Callable[[], Made]) -> Callable[[], Made]:
    ZOO[make.__name__] = make
    return make


class Function(nn.Module):
    """A function as a module; it may use the modules given by name."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleDict(modules)

    def forward(self, x: Any) -> Any:
        return self.function(x, **self.parts) if self.parts else self.function(x)


def of(function: Callable[..., Any], *shape: int, **modules: nn.Module) -> Made:
    return Function(function, **modules), {"x": torch.randn(shape or (3, 4))}


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        y = self.second(F.gelu(self.first(x.reshape(b * t, c))))
        return y.view(b, t, -1)


@model
def mlp() -> Made:
    return MLP(), {"x": torch.randn(2, 3, 4)}


@model
def cnn() -> Made:
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return layers, {"input": torch.randn(2, 3, 8, 8)}


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(8, 4, 2, 2), nn.ConvTranspose2d(8, 1, 2, 2)])

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for layer in self.down:
            x = F.max_pool2d(F.relu(layer(x)), 2)
            skips.append(x)
        x = self.up[0](skips.pop())
        if x.shape != skips[-1].shape:
            x = F.interpolate(x, size=skips[-1].shape[-2:])
        return self.up[1](torch.cat([x, skips.pop()], dim=1))


@model
def unet() -> Made:
    return UNet(), {"x": torch.randn(1, 1, 10, 10)}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.gru, self.cell = nn.GRU(10, 3), nn.LSTMCell(3, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y, (h, c) = self.lstm(x)
        y, _ = self.gru(y)
        state = None
        for step in y.unbind(1):
            state = self.cell(step, state)
        return {"last": state, "h": h, "c": c}


@model
def recurrent() -> Made:
    return Recurrent(), {"x": torch.randn(2, 3, 4)}


@model
def packed_sequence() -> Made:
    def forward(x: Tensor, lstm: nn.Module) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]), batch_first=True)
        return nn.utils.rnn.pad_packed_sequence(lstm(packed)[0], batch_first=True)[0]

    return of(forward, 2, 3, 4, lstm=nn.LSTM(4, 5, batch_first=True))


@model
def transformer() -> Made:
    module = nn.Transformer(16, 2, 2, 2, 32, batch_first=True)
    mask = module.generate_square_subsequent_mask(4)
    return module, {"src": torch.randn(2, 5, 16), "tgt": torch.randn(2, 4, 16), "tgt_mask": mask}


@model
def transformer_with_padding() -> Made:
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    inputs = {"src": torch.randn(2, 5, 16), "tgt": torch.randn(2, 4, 16), "src_key_padding_mask": padding}
    return nn.Transformer(16, 2, 1, 1, 32, activation="gelu", batch_first=True), inputs


class Attention(nn.Module):
    def __init__(self, need_weights: bool, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **options)
        self.need_weights = need_weights

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None, padding: Tensor | None = None) -> Any:
        return self.attention(
            x,
            y,
            y,
            attn_mask=mask,
            key_padding_mask=padding,
            need_weights=self.need_weights,
            average_attn_weights=False,
        )


def _attention(need_weights: bool, width: int = 8, **options: Any) -> Made:
    module = Attention(need_weights, **options)
    mask = torch.ones(3, 4, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False] * 4, [False] * 3 + [True]])
    return module, {"x": torch.randn(3, 2, 8), "y": torch.randn(4, 2, width), "mask": mask, "padding": padding}


@model
def attention_with_weights() -> Made:
    return _attention(True)


@model
def attention_without_weights() -> Made:
    return _attention(False, dropout=0.1)


@model
def attention_with_other_widths_and_biases() -> Made:
    return _attention(True, width=6, kdim=6, vdim=6, add_bias_kv=True, add_zero_attn=True)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = torch.topk(self.gate(x).softmax(-1), 2)
        result = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows, slot = torch.where(chosen == i)
            if len(rows):
                result[rows] += weights[rows, slot, None] * expert(x[rows])
        return result


@model
def experts() -> Made:
    return Experts(), {"x": torch.randn(5, 4)}


class ListInput(nn.Module):
    def forward(self, images: list[Tensor], sizes: dict[str, Any]) -> Tensor:
        return torch.stack([image.mean() for image in images]) + sizes["all"][0].sum()


@model
def list_input() -> Made:
    return ListInput(), {"images": [torch.randn(2, 3), torch.randn(4)], "sizes": {"all": (torch.ones(2),), "n": 3}}


@dataclass
class Batch:
    tokens: Tensor
    mask: Tensor | None = None


class DataclassInput(nn.Module):
    def forward(self, batch: Batch) -> Batch:
        batch.tokens *= 2  # a copy of the caller's
        return Batch(batch.tokens + 1, None if batch.mask is None else ~batch.mask)


@model
def dataclass_input() -> Made:
    return DataclassInput(), {"batch": Batch(torch.randn(2), torch.tensor([True, False]))}


class OptionalMask(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = x @ x.mT
        if mask is not None:
            scores = scores.masked_fill(mask, -torch.inf)
        return scores.softmax(-1) @ x


@model
def optional_mask_given() -> Made:
    return OptionalMask(), {"x": torch.randn(3, 4), "mask": torch.eye(3).bool()}


@model
def optional_mask_left_out() -> Made:
    return OptionalMask(), {"x": torch.randn(3, 4)}


@model
def in_place() -> Made:
    def forward(x: Tensor) -> Tensor:
        y = x.clone()
        y += 1
        y[0] = 0
        y[:, 1:] *= 2
        y[y > 1] = x.max()
        y.masked_fill_(y < 0, 0.5).sqrt_()
        F.relu(y, inplace=True)
        torch.add(y, 1, out=y)
        view = y[1]
        view.zero_()
        y.T.mul_(3)
        return y + view

    return of(forward)


@model
def views() -> Made:
    def forward(x: Tensor) -> tuple[Tensor, ...]:
        a, b = x.chunk(2, dim=-1)
        c = x.T.contiguous().view(-1).reshape(2, -1).transpose(0, 1)
        return a.expand(2, 3, 2), b.squeeze(), c.flatten(), x.mT.mH, x.as_strided((2, 2), (1, 1))

    return of(forward)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids)
        if hidden.size(0) > 1:
            hidden = hidden + hidden @ self.embedding.weight.T @ self.embedding.weight
        return self.head(hidden)


@model
def tied_weights() -> Made:
    return Tied(), {"ids": torch.tensor([[1, 2], [3, 4]])}


class Made_(nn.Module):  # noqa: N801
    """Makes tensors in every way there is."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.arange(4.0)  # neither a parameter nor a buffer
        self.tables = [torch.ones(4)]
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(x.sum(0))
        self.table.mul_(2)
        made = [
            torch.arange(x.size(1), device=x.device, dtype=x.dtype),
            x.new_zeros(4) + torch.tensor([1.0, 2, 3, 4]),
            torch.from_numpy(np.arange(4.0)).to(x),
            torch.tensor(np.ones(4), dtype=x.dtype),
            torch.nn.Parameter(torch.ones(4)),
            torch.Tensor([1, 2, 3, 4]),
            torch.full((4,), x.max().item()),
            torch.ones(4, 4).tril()[1],
        ]
        return torch.stack(made).sum(0) + self.table + self.tables[0] + self.seen


@model
def tensors_made_inside() -> Made:
    return Made_(), {"x": torch.randn(3, 4)}


Point = namedtuple("Point", "x y")


class Pair(NamedTuple):
    left: Tensor
    right: tuple[Tensor, int]


@dataclass
class Out:
    hidden: Tensor
    pair: Pair
    count: int = 3
    nothing: Tensor | None = None


class Holder:
    """A class of the user's own, as a cache is; it refers back to itself."""

    def __init__(self, tensor: Tensor) -> None:
        self.layers = [tensor]
        self.me = self


@model
def dict_output() -> Made:
    return of(lambda x: {"a": x + 1, "b": {"c": (x * 2, [x - 1])}, "name": "x", 3: x.sum()})


@model
def named_tuple_output() -> Made:
    return of(lambda x: Point(x + 1, Pair(x * 2, (x - 1, 7))))


@model
def dataclass_output() -> Made:
    return of(lambda x: Out(x + 1, Pair(x * 2, (x, 1))))


@model
def object_output() -> Made:
    return of(lambda x: Holder(x + 1))


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.linear(inputs["x"]) + inputs.get("y", 1)


@model
def keywords_only() -> Made:
    return Keywords(), {"x": torch.randn(3, 4), "y": torch.randn(4)}


@model
def loop_on_data() -> Made:
    def forward(x: Tensor) -> Tensor:
        for _ in range(int(x.abs().sum()) % 5 + 1):
            x = x / 2 if x.norm() > 0.1 else x * 2
        for row in x:
            x = x + row
        return 2 - x + 1 / x + 2**x + (x % 2) + (x // 2) - (-x) ** 2

    return of(forward)


@model
def branches_on_data() -> Made:
    return of(lambda x: x + 1 if bool((x > 0).any()) and float(x.max()) < 100 else x.tolist())


@model
def noise() -> Made:
    def forward(x: Tensor, drop: nn.Module) -> Tensor:
        np_noise = torch.from_numpy(np.random.rand(4)).to(x)
        return (
            F.dropout(drop(x) + torch.randn_like(x) * torch.rand(4), 0.5)
            + torch.bernoulli(torch.full((4,), 0.5))
            + np_noise
        )

    return of(forward, drop=nn.Dropout(0.3))


class Cached(nn.Module):
    """Keeps what it made the first time, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, Tensor] = {}
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(self.calls))
        if len(x) not in self.cache:
            self.cache[len(x)] = torch.ones(len(x), 1).cumsum(0)
        return x * self.cache[len(x)] + len(self.calls)


@model
def cached() -> Made:
    return Cached(), {"x": torch.randn(3, 4)}


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grads[0]


@model
def own_autograd_function() -> Made:
    return of(lambda x: Square.apply(x) + torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=False))  # type: ignore[no-untyped-call]


@model
def own_grad_and_autocast() -> Made:
    def forward(x: Tensor, linear: nn.Module) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(linear(leaf).square().sum(), leaf)
        return slope.to(x.dtype) * 2

    return of(forward, linear=nn.Linear(4, 4))


@model
def generator_output() -> Made:
    def rows(x: Tensor) -> Iterator[Tensor]:
        yield from x

    return of(lambda x: [row * 2 for row in rows(x)])
