"""Small models that do what real ones do: each a factory of (module, example inputs), named in `MODELS`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Made = tuple[nn.Module, Mapping[str, Any]]


def _image(channels: int = 3, side: int = 32) -> Tensor:
    return torch.randn(2, channels, side, side)


def _words(length: int = 9, vocabulary: int = 50) -> Tensor:
    return torch.randint(vocabulary, (2, length))


# ------------------------------------------------------------------------------------------------------------- vision


def cnn() -> Made:
    """Convolutions, batch norm, pooling, and a classifier."""
    layers = [
        layer
        for before, after in ((3, 8), (8, 16), (16, 32))
        for layer in (nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2))
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10)), {"input": _image()}


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(after) for _ in range(2))
        self.skip = nn.Conv2d(before, after, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.first(x)), inplace=True)
        y = self.norms[1](self.second(y))
        y += self.skip(x)
        return F.relu_(y)


def resnet() -> Made:
    """Residual blocks with in-place sums and activations."""
    blocks = (_Residual(8, 8, 1), _Residual(8, 16, 2), _Residual(16, 32, 2))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), *blocks, *head), {"input": _image()}


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 8), (8, 16), (16, 32)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in ((32, 16), (16, 8)))
        self.join = nn.ModuleList(nn.Conv2d(2 * b, b, 3, padding=1) for b in (16, 8))
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        kept = []
        x = image
        for level, layer in enumerate(self.down):
            x = F.relu(layer(x if level == 0 else F.max_pool2d(x, 2)))
            kept.append(x)
        kept.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = F.relu(join(torch.cat([up(x), kept.pop()], 1)))
        return self.last(x)


def unet() -> Made:
    """Down and up again, with skips that are popped from a list."""
    return _UNet(), {"image": _image()}


def depthwise() -> Made:
    """Depthwise separable convolutions with squeeze and excitation."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.each, self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Conv2d(width, width, 1)
            self.squeeze, self.excite = nn.Linear(width, 4), nn.Linear(4, width)

        def forward(self, x: Tensor) -> Tensor:
            gate = torch.sigmoid(self.excite(F.silu(self.squeeze(x.mean((2, 3))))))
            return x + self.mix(F.hardswish(self.each(x))) * gate[:, :, None, None]

    return nn.Sequential(nn.Conv2d(3, 16, 3, 2), Block(16), Block(16)), {"input": _image()}


class _PatchAttention(nn.Module):
    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 17, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 64, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        batch = image.shape[0]
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(batch, -1, -1), x], 1) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, 0]))


def vit() -> Made:
    """A vision transformer on PyTorch's own encoder layers."""
    return _PatchAttention(), {"image": _image()}


class _Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 8), (8, 16), (16, 32)))
        self.flat = nn.ModuleList(nn.Conv2d(width, 8, 1) for width in (8, 16, 32))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        levels, x = [], image
        for step in self.steps:
            x = step(x).relu()
            levels.append(x)
        above = self.flat[2](levels[2])
        found = {"p3": above}
        for number in (1, 0):
            above = self.flat[number](levels[number]) + F.interpolate(above, scale_factor=2.0, mode="nearest")
            found[f"p{number + 1}"] = above
        return found


def pyramid() -> Made:
    """A feature pyramid that returns a dict."""
    return _Pyramid(), {"image": _image()}


# ---------------------------------------------------------------------------------------------------------- sequences


class _Recurrent(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.words, self.cell, self.head = nn.Embedding(50, 16), cell, nn.Linear(48, 5)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.cell(self.words(ids))
        return self.head(states[:, -1])


def lstm() -> Made:
    """Two bidirectional layers."""
    return _Recurrent(nn.LSTM(16, 24, 2, batch_first=True, bidirectional=True)), {"ids": _words()}


def gru() -> Made:
    """One layer that gives back its last state."""
    return _Recurrent(nn.GRU(16, 48, batch_first=True)), {"ids": _words()}


class _Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(8, 16), nn.Linear(16, 8)

    def forward(self, sequence: Tensor) -> Tensor:
        hidden = sequence.new_zeros(sequence.size(0), 16)
        cell = torch.zeros_like(hidden)
        made = []
        for step in sequence.unbind(1):
            hidden, cell = self.cell(step, (hidden, cell))
            made.append(self.head(hidden))
        return torch.stack(made, 1)


def lstm_cell() -> Made:
    """A cell, step by step, from states made inside."""
    return _Steps(), {"sequence": torch.randn(2, 6, 8)}


def conv1d() -> Made:
    """Dilated causal convolutions with gates, as in WaveNet."""

    class Gate(nn.Module):
        def __init__(self, dilation: int) -> None:
            super().__init__()
            self.conv, self.dilation = nn.Conv1d(8, 16, 2, dilation=dilation), dilation

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.conv(F.pad(x, (self.dilation, 0))).chunk(2, 1)
            return x + torch.tanh(a) * torch.sigmoid(b)

    return nn.Sequential(nn.Conv1d(1, 8, 1), *(Gate(2**n) for n in range(4))), {"input": torch.randn(2, 1, 40)}


class _Selective(nn.Module):
    """A diagonal state space whose steps hang on the input."""

    def __init__(self, width: int = 16, states: int = 4) -> None:
        super().__init__()
        self.decay = nn.Parameter(-torch.rand(width, states))
        self.step, self.mix = nn.Linear(width, width), nn.Linear(width, 2 * states)

    def forward(self, x: Tensor) -> Tensor:
        delta = F.softplus(self.step(x)).unsqueeze(-1)
        read, write = self.mix(x).chunk(2, -1)
        state = x.new_zeros(x.shape[0], *self.decay.shape)
        out = []
        for t in range(x.shape[1]):
            state = state * torch.exp(delta[:, t] * self.decay) + delta[:, t] * write[:, t, None] * x[:, t, :, None]
            out.append((state * read[:, t, None]).sum(-1))
        return torch.stack(out, 1) * F.silu(x)


def state_space() -> Made:
    """A selective scan, written as a loop."""
    return nn.Sequential(nn.Linear(8, 16), _Selective(), nn.Linear(16, 8)), {"input": torch.randn(2, 7, 8)}


# ---------------------------------------------------------------------------------------------------------- attention


class _Attention(nn.Module):
    def __init__(self, width: int = 32, heads: int = 4, *, causal: bool = False) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if self.causal:
            ahead = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(ahead, float("-inf"))
        if mask is not None:
            scores = scores + (1.0 - mask)[:, None, None, :] * -1e4
        weights = scores.softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))


class _Block(nn.Module):
    def __init__(self, width: int = 32, *, causal: bool = False) -> None:
        super().__init__()
        self.attention = _Attention(width, causal=causal)
        self.inner, self.outer = nn.Linear(width, 64), nn.Linear(64, width)
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.before(x), mask)
        return x + self.outer(F.gelu(self.inner(self.after(x))))


class _Language(nn.Module):
    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 32), nn.Embedding(64, 32)
        self.blocks = nn.ModuleList(_Block(causal=causal) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 50, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


def tied_language_model() -> Made:
    """A causal decoder whose head is its embedding; the mask is made inside."""
    return _Language(causal=True), {"ids": _words()}


def optional_mask() -> Made:
    """An encoder with a padding mask that may be left out."""
    return _Language(causal=False), {"ids": _words(), "mask": torch.ones(2, 9).index_fill(1, torch.tensor([8]), 0.0)}


class _Multihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm = nn.LayerNorm(32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        attended, weights = self.attention(x, x, x, need_weights=True, average_attn_weights=False)
        return self.norm(x + attended), weights


def multihead_attention() -> Made:
    """PyTorch's own attention, weights asked for."""
    return _Multihead(), {"x": torch.randn(2, 9, 32)}


class _Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(50, 32), nn.Embedding(40, 32)
        self.core = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)
        self.head = nn.Linear(32, 40)

    def forward(self, source_ids: Tensor, target_ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target_ids.shape[1])
        made = self.core(self.source(source_ids), self.target(target_ids), tgt_mask=mask)
        return self.head(made)


def nn_transformer() -> Made:
    """`nn.Transformer`, encoder and decoder."""
    return _Translator(), {"source_ids": _words(), "target_ids": _words(6, 40)}


class _Pooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, 32))
        self.key, self.value, self.head = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(96, 4)

    def forward(self, items: Tensor) -> Tensor:
        weights = F.softmax(torch.einsum("qd,bnd->bqn", self.queries, self.key(items)) / 32**0.5, -1)
        return self.head(torch.einsum("bqn,bnd->bqd", weights, self.value(items)).flatten(1))


def attention_pooling() -> Made:
    """Learnt queries, written with einsum."""
    return _Pooling(), {"items": torch.randn(2, 8, 16)}


class _Experts(nn.Module):
    def __init__(self, width: int = 16, experts: int = 4, chosen: int = 2) -> None:
        super().__init__()
        self.router, self.chosen = nn.Linear(width, experts), chosen
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 32), nn.SiLU(), nn.Linear(32, width)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        shares, picked = self.router(flat).softmax(-1).topk(self.chosen, -1)
        mixed = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(picked == number)
            if token.numel():
                mixed.index_add_(0, token, expert(flat[token]) * shares[token, place, None])
        return x + mixed.view_as(x)


def mixture_of_experts() -> Made:
    """Each token goes to two of four experts; which ones hangs on the values."""
    return _Experts(), {"x": torch.randn(2, 6, 16)}


# --------------------------------------------------------------------------------------------------------- generative


class _Variational(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.both, self.outside = nn.Linear(20, 32), nn.Linear(32, 16), nn.Linear(8, 20)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, spread = self.both(F.relu(self.inside(x))).split(8, -1)
        latent = mean + torch.randn_like(mean) * (0.5 * spread).exp()
        return torch.sigmoid(self.outside(latent)), mean, spread


def vae() -> Made:
    """A variational autoencoder; the noise is drawn inside."""
    return _Variational(), {"x": torch.randn(3, 20)}


class _Adversaries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maker = nn.Sequential(nn.Linear(8, 128), nn.Unflatten(1, (8, 4, 4)), nn.ConvTranspose2d(8, 3, 4, 2, 1))
        self.judge = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(128, 1))

    def forward(self, noise: Tensor, real: Tensor) -> dict[str, Tensor]:
        made = torch.tanh(self.maker(noise))
        return {"made": made, "of_made": self.judge(made), "of_real": self.judge(real)}


def gan() -> Made:
    """A maker and a judge, the judge called twice."""
    return _Adversaries(), {"noise": torch.randn(2, 8), "real": _image(side=8)}


class _Quantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(12, 8), nn.Linear(8, 12)
        self.codes: Tensor
        self.register_buffer("codes", torch.randn(16, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.inside(x)
        nearest = torch.cdist(z, self.codes).argmin(-1)
        return self.outside(z + (self.codes[nearest] - z).detach()), nearest


def vector_quantiser() -> Made:
    """The nearest of some codes, passed straight through."""
    return _Quantised(), {"x": torch.randn(5, 12)}


# ------------------------------------------------------------------------------------------------- graphs and the rest


class _Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(16, 8), nn.GRUCell(8, 8)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        for _ in range(2):
            said = F.relu(self.message(torch.cat([nodes[source], nodes[target]], -1)))
            heard = torch.zeros_like(nodes).scatter_add_(0, target[:, None].expand_as(said), said)
            degree = torch.bincount(target, minlength=nodes.shape[0]).clamp(min=1)
            nodes = self.update(heard / degree[:, None], nodes)
        return nodes.amax(0)


def graph_network() -> Made:
    """Messages along edges, gathered by scattering."""
    return _Graph(), {"nodes": torch.randn(6, 8), "edges": torch.randint(6, (2, 14))}


class _InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        y[:, :2] = 0
        y[:, 2].mul_(2)
        z = y.t()
        z.add_(1)
        return y.clamp_(min=0) + torch.zeros(8).index_copy_(0, torch.tensor([1, 3]), torch.ones(2))


def in_place() -> Made:
    """Writes into slices, into a transposed view, and into a tensor made inside."""
    return _InPlace(), {"x": torch.randn(4, 8)}


class _Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        y = self.linear(x).view(batch, length, 3, width // 3).permute(0, 2, 1, 3)
        y = y.unfold(2, 2, 1).flatten(3).narrow(2, 0, length - 2)
        first, *rest = y.unbind(1)
        return torch.stack([first.diagonal(dim1=1, dim2=2), *(each.mT.diagonal(dim1=1, dim2=2) for each in rest)])


def views() -> Made:
    """Sizes unpacked, and every kind of view."""
    return _Views(), {"x": torch.randn(2, 7, 12)}


class _Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.each, self.all = nn.ModuleList(nn.Linear(n, 8) for n in (4, 6)), nn.Linear(24, 3)

    def forward(self, parts: list[Tensor], options: dict[str, Tensor]) -> list[Tensor]:
        seen = [layer(part) for layer, part in zip(self.each, parts, strict=True)]
        seen.append(options["bias"].expand_as(seen[0]))
        return [self.all(torch.cat(seen, -1)), *seen]


def list_inputs() -> Made:
    """A list and a dict of tensors go in, a list comes out."""
    return _Lists(), {"parts": [torch.randn(2, 4), torch.randn(2, 6)], "options": {"bias": torch.randn(8)}}


class _Halting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step, self.halt = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        rounds = 0
        while rounds < 6 and float(x.norm()) > 1.0:
            x = torch.tanh(self.step(x)) * 0.7
            rounds += 1
        return x * rounds if self.halt(x).sum() > 0 else x - rounds


def data_dependent_loop() -> Made:
    """Goes on until the norm is small, and branches on a sum."""
    return _Halting(), {"x": torch.randn(2, 8) * 3}


class _Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 8))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = F.normalize(self.tower(left), dim=-1), F.normalize(self.tower(right), dim=-1)
        return self.scale.exp() * a @ b.T


def two_towers() -> Made:
    """One tower for two inputs, as in contrastive learning."""
    return _Towers(), {"left": torch.randn(4, 10), "right": torch.randn(4, 10)}


class _Recommender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(20, 8, mode="sum") for _ in range(2))
        self.dense, self.top = nn.Linear(5, 8), nn.Linear(11, 1)

    def forward(self, numbers: Tensor, bags: Tensor) -> Tensor:
        found = [self.dense(numbers), *(table(bag) for table, bag in zip(self.tables, bags, strict=True))]
        stacked = torch.stack(found, 1)
        row, column = torch.tril_indices(3, 3, -1)
        pairs = torch.bmm(stacked, stacked.mT)[:, row, column]
        return self.top(torch.cat([found[0], pairs], -1)).squeeze(-1)


def recommender() -> Made:
    """Bags of embeddings and the products of their pairs, as in DLRM."""
    return _Recommender(), {"numbers": torch.randn(3, 5), "bags": torch.randint(20, (2, 3, 4))}


class _Physics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modes = nn.Parameter(torch.randn(4, 4, 8, dtype=torch.cfloat) * 0.1)
        self.point = nn.Conv1d(4, 4, 1)

    def forward(self, signal: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(signal)
        kept = torch.einsum("bim,iom->bom", spectrum[..., :8], self.modes)
        padded = torch.zeros_like(spectrum)
        padded[..., :8] = kept
        return F.gelu(torch.fft.irfft(padded, n=signal.shape[-1]) + self.point(signal))


def fourier_operator() -> Made:
    """A Fourier neural operator: complex numbers inside."""
    return _Physics(), {"signal": torch.randn(2, 4, 32)}


class Outcome(NamedTuple):
    """What `named_output` returns."""

    scores: Tensor
    best: Tensor


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor, *, temperature: float = 0.5) -> Outcome:
        scores = F.log_softmax(self.linear(x) / temperature, -1)
        return Outcome(scores, scores.max(-1).indices)


def named_output() -> Made:
    """A keyword with a default goes in, a named tuple comes out."""
    return _Named(), {"x": torch.randn(3, 6)}


# A factory, and how many attentions of each kind it has.
MODELS: Mapping[Callable[[], Made], Mapping[str, int]] = {
    cnn: {},
    resnet: {},
    unet: {},
    depthwise: {},
    vit: {"self_attention": 2},
    pyramid: {},
    lstm: {},
    gru: {},
    lstm_cell: {},
    conv1d: {},
    state_space: {},
    tied_language_model: {"masked_self_attention": 2},
    optional_mask: {"self_attention": 2},
    multihead_attention: {"self_attention": 1},
    nn_transformer: {"self_attention": 2, "masked_self_attention": 2, "cross_attention": 2},
    attention_pooling: {},
    mixture_of_experts: {"mixture_of_experts": 1},
    vae: {},
    gan: {},
    vector_quantiser: {},
    graph_network: {},
    in_place: {},
    views: {},
    list_inputs: {},
    data_dependent_loop: {},
    two_towers: {},
    recommender: {},
    fourier_operator: {},
    named_output: {},
}
