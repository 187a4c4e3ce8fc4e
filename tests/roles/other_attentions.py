"""Attentions that are more than softmax(q kᵀ) v, small, each telling the truth about its own tensors.

Each has one way to be what it is, and some a look-alike beside it that must not be labelled.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.roles.variants import Zog

WIDTH, HEADS, HEAD = 24, 3, 8


def given(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def split(x: Tensor) -> Tensor:
    return x.view(*x.shape[:-1], -1, HEAD).transpose(-3, -2)


def merge(x: Tensor) -> Tensor:
    return x.transpose(-3, -2).flatten(-2)


class Attend(Zog):
    """Projections, and softmax(q kᵀ) v between them, over what the caller makes of it."""

    def __init__(self, where: str, width: int = WIDTH, inner: int = WIDTH) -> None:
        super().__init__()
        self.where = where
        self.q, self.k, self.v, self.o = (nn.Linear(width, inner) for _ in range(4))
        self.o = nn.Linear(inner, width)

    def weigh(self, scores: Tensor, masked: Tensor) -> Tensor:
        self.tell("scores", scores)
        return self.tell("weights", masked.softmax(-1))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = split(self.q(x)), split(self.k(keys)), split(self.tell("value", self.v(values)))
        scores = q @ k.transpose(-2, -1) / math.sqrt(HEAD)
        heads = self.weigh(scores, scores if mask is None else scores + mask) @ v
        return self.tell("output", self.o(self.tell("concat", merge(self.tell("head_outputs", heads)))))


class Structure(Zog):
    """A model of this file, its inputs, and the attention blocks that are in it."""

    inputs: tuple[Tensor, ...] = ()
    blocks: frozenset[str] = frozenset()

    def learn_truth(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Every tensor by the role it has by construction."""
        truth: dict[str, Tensor] = {}
        zogs = [each for each in self.modules() if isinstance(each, Zog)]
        for zog in zogs:
            zog.truth = truth
        with torch.no_grad():
            self.eval()(*inputs)
        for zog in zogs:
            zog.truth = None
        return truth


class Queries(Structure):
    """Positions are added to what queries and keys read, and a decoder starts from nothing but learned positions.

    (Carion et al. 2020, "End-to-End Object Detection with Transformers")
    """

    inputs = (given(2, 5, WIDTH), torch.ones(2, 5, 1))
    blocks = frozenset(
        {
            "encoder.0.self_attention",
            "encoder.1.self_attention",
            "decoder.0.self_attention",
            "decoder.0.cross_attention",
        }
    )

    def __init__(self, positions: Callable[[Tensor, Tensor], Tensor] | None = None, *, anew: bool = False) -> None:
        super().__init__()
        self.anew = anew
        self.at, self.asked = nn.Parameter(given(5, WIDTH)), nn.Parameter(given(4, WIDTH))
        self.positions = positions or (lambda _x, _y: self.at)
        self.one, self.more = Attend("encoder.0.self_attention"), Attend("encoder.1.self_attention")
        self.two = Attend("decoder.0.self_attention")
        self.three = Attend("decoder.0.cross_attention")
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        at = self.positions(x, y)
        x = self.norms[3](x + self.one(x + at, x + at, x))
        if self.anew:
            at = self.positions(x, y)
        memory = self.norms[0](x + self.more(x + at, x + at, x))
        asked = self.asked.expand(len(x), -1, -1)
        y = torch.zeros_like(asked)
        y = self.norms[1](y + self.two(y + asked, y + asked, y))
        return self.norms[2](y + self.three(y + asked, memory + at, memory))


class Windows(Structure):
    """Attention inside windows that are rolled by half a window, under a bias and a mask.

    (Liu et al. 2021, "Swin Transformer")
    """

    inputs = (given(2, 10, WIDTH),)
    blocks = frozenset({"encoder.0.self_attention"})

    def __init__(self, cosine: bool = False, elsewhere: bool = False) -> None:
        super().__init__()
        self.a = Attend("encoder.0.self_attention")
        self.norm, self.other = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.tilt, self.heat = nn.Parameter(given(HEADS, 4, 4)), nn.Parameter(given(HEADS, 1, 1))
        self.cosine, self.elsewhere = cosine, elsewhere

    def forward(self, x: Tensor) -> Tensor:
        batch = len(x)
        read = self.other(x).relu() if self.elsewhere else self.norm(x)
        w = functional.pad(read, (0, 0, 0, 2)).roll(-2, 1).reshape(batch * 3, 4, WIDTH)
        q, k, v = split(self.a.q(w)), split(self.a.k(w)), split(self.a.v(w))
        if self.cosine:
            scores = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-2, -1)
            scores = scores * self.heat.clamp(max=4.0).exp()
        else:
            scores = q @ k.transpose(-2, -1) * HEAD**-0.5
        wall = torch.zeros(3, 4, 4)
        wall[-1, :2, 2:] = wall[-1, 2:, :2] = -100.0
        masked = (scores + self.tilt).view(batch, 3, HEADS, 4, 4) + wall[None, :, None]
        heads = self.a.weigh(scores, masked.view(-1, HEADS, 4, 4)) @ v
        y = self.a.tell("output", self.a.o(merge(self.a.tell("head_outputs", heads))))
        return x + y.reshape(batch, 12, WIDTH).roll(2, 1)[:, :10]


class Reduced(Structure):
    """Keys and values from fewer places: a convolution of the stream; or of another model's stream, a look-alike.

    (Wang et al. 2021, "Pyramid Vision Transformer")
    """

    inputs = (given(2, 8, WIDTH),)
    blocks = frozenset({"encoder.0.self_attention", "encoder_2.0.self_attention"})

    def __init__(self, of_another: bool = False) -> None:
        super().__init__()
        self.one, self.two = Attend("encoder.0.self_attention"), Attend("encoder_2.0.self_attention")
        self.fewer, self.step = nn.Conv1d(WIDTH, WIDTH, 2, 2), nn.Linear(WIDTH, WIDTH)
        self.norm, self.first = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.of_another = of_another

    def forward(self, x: Tensor) -> Tensor:
        before = x + self.one(x, x, x)
        y = self.step(before)
        read = self.first(y)
        source = before if self.of_another else read
        keys = self.norm(self.fewer(source.transpose(1, 2)).transpose(1, 2))
        return y + self.two(read, keys, keys)


class Summed(Structure):
    """Two streams whose scores are added to each other; with `own`, both products are of one stream: a look-alike.

    (Wang et al. 2022, "LiLT")
    """

    inputs = (given(2, 5, WIDTH), given(2, 5, WIDTH, seed=2))
    blocks = frozenset({"encoder.0.self_attention", "encoder_2.0.self_attention"})

    def __init__(self, own: bool = False) -> None:
        super().__init__()
        self.one, self.two = Attend("encoder.0.self_attention"), Attend("encoder_2.0.self_attention")
        self.own = own

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        other = x if self.own else y
        s = split(self.one.q(x)) @ split(self.one.k(x)).transpose(-2, -1) / math.sqrt(HEAD)
        t = split(self.two.q(other)) @ split(self.two.k(other)).transpose(-2, -1) / math.sqrt(HEAD)
        a = self.one.weigh(s, s + t) @ split(self.one.v(x))
        if self.own:
            return x + self.one.o(merge(a)), y
        b = self.two.weigh(t, t + s) @ split(self.two.v(y))
        return x + self.one.o(merge(a)), y + self.two.o(merge(b))


class Relative(Structure):
    """Length first, einsums throughout, scores of positions added, then scaled, then a mask subtracted.

    (Yang et al. 2019, "XLNet")
    """

    inputs = (given(5, 2, WIDTH),)
    blocks = frozenset({"encoder.0.self_attention"})

    def __init__(self, swapped: bool = False) -> None:
        super().__init__()
        self.a = Attend("encoder.0.self_attention")
        self.q, self.k, self.v, self.r, self.o = (nn.Parameter(given(WIDTH, HEADS, HEAD, seed=i)) for i in range(5))
        self.at, self.u, self.w = nn.Parameter(given(5, WIDTH)), nn.Parameter(given(HEADS, HEAD)), given(HEADS, HEAD)
        self.norm, self.swapped = nn.LayerNorm(WIDTH), swapped

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("ibh,hnd->ibnd", x, each) for each in (self.q, self.k, self.v))
        self.a.tell("key_heads", k), self.a.tell("value_heads", v)
        r = torch.einsum("jh,hnd->jnd", self.at, self.r)
        scores = torch.einsum("ibnd,jbnd->bnij", q + self.u, k)
        positions = torch.einsum("ibnd,jnd->bnij", q + self.w, r)
        wall = torch.zeros(5, 5)
        wall[0, 3] = 1.0
        masked = (scores + positions + 0) * HEAD**-0.5 - 1e30 * wall
        weights = self.a.weigh(scores, masked)
        mix = "bnji,jbnd->ibnd" if self.swapped else "bnij,jbnd->ibnd"
        y = torch.einsum("ibnd,hnd->ibh", self.a.tell("head_outputs", torch.einsum(mix, weights, v)), self.o)
        return self.norm(x + self.a.tell("output", y))


class Mixed(Structure):
    """Heads beside something else under one projection: a convolution joined or added; or another attention.

    (Jiang et al. 2020, "ConvBERT"; Dong et al. 2022, "CSWin Transformer")
    """

    inputs = (given(2, 5, WIDTH),)
    blocks = frozenset({"encoder.0.self_attention"})

    def __init__(self, by: str) -> None:
        super().__init__()
        self.a, self.b = Attend("encoder.0.self_attention"), Attend("")
        self.by, self.near = by, nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.o = nn.Linear(WIDTH if by == "add" else 2 * WIDTH, WIDTH)

    def heads(self, a: Attend, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = split(a.q(x)), split(a.k(x)), split(a.v(x))
        scores = q @ k.transpose(-2, -1) / math.sqrt(HEAD)
        return a.tell("head_outputs", a.weigh(scores, scores) @ v), v

    def forward(self, x: Tensor) -> Tensor:
        heads, v = self.heads(self.a, x)
        if self.by == "add":
            near = split(self.near(merge(v).transpose(1, 2)).transpose(1, 2))
            return x + self.a.tell("output", self.o(merge(heads + near)))
        other = merge(self.heads(self.b, x)[0]) if self.by == "attention" else self.near(x.mT).mT
        return x + self.a.tell("output", self.o(torch.cat((merge(heads), other), -1)))


class Blocked(Structure):
    """Queries in blocks, each over its own block and those beside it.

    (Guo et al. 2022, "LongT5")
    """

    inputs = (given(2, 7, WIDTH),)
    blocks = frozenset({"encoder.0.self_attention"})

    def __init__(self) -> None:
        super().__init__()
        self.a = Attend("encoder.0.self_attention")

    def blocked(self, x: Tensor, length: int) -> Tensor:
        return functional.pad(x.view(len(x), -1, HEADS, HEAD), (0, 0, 0, 0, 0, 1)).view(len(x), -1, length, HEADS, HEAD)

    def beside(self, x: Tensor) -> Tensor:
        x = functional.pad(x, (0, 0, 0, 0, 0, 0, 1, 1))
        return torch.cat((x[:, :-2], x[:, 1:-1], x[:, 2:]), 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.a.q(x), self.a.k(x), self.a.v(x)
        q, k, v = self.blocked(q, 4), self.beside(self.blocked(k, 4)), self.beside(self.blocked(v, 4))
        scores = torch.einsum("...qhd,...khd->...hqk", q, k)
        heads = torch.einsum("...hqk,...khd->...qhd", self.a.weigh(scores, scores), v)
        flat = self.a.tell("head_outputs", heads).reshape(len(x), -1, WIDTH)[:, :7]
        return x + self.a.tell("output", self.a.o(flat))


class SharedStart(Structure):
    """Encoder and decoder begin at one tensor: two streams all the same."""

    inputs = (given(2, 5, WIDTH),)
    blocks = frozenset({"encoder.0.self_attention", "decoder.0.masked_self_attention", "decoder.0.cross_attention"})

    def __init__(self) -> None:
        super().__init__()
        self.one = Attend("encoder.0.self_attention")
        self.two = Attend("decoder.0.masked_self_attention")
        self.three = Attend("decoder.0.cross_attention")
        self.embed = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        memory = x + self.one(x, x, x)
        y = x + self.two(x, x, x, torch.full((5, 5), -math.inf).triu(1))
        return y + self.three(y, memory, memory)


def structures() -> Iterable[tuple[str, Structure]]:
    """Every structure that must be found, by what it is."""
    yield "positions for queries and keys, learned queries", Queries()
    yield "positions counted in a mask", Queries(lambda _, y: torch.sin(y.cumsum(1) * torch.arange(WIDTH)))
    yield "rolled windows", Windows()
    yield "cosine attention in windows", Windows(cosine=True)
    yield "reduced keys", Reduced()
    yield "scores of two streams added", Summed()
    yield "relative positions by einsum", Relative()
    yield "joined with a convolution", Mixed("join")
    yield "with a convolution of the values", Mixed("add")
    yield "blocks and those beside them", Blocked()
    yield "two streams from one tensor", SharedStart()
