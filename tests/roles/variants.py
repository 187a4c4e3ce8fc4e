"""Encoder–decoder transformers written in many ways, each telling the truth about its own tensors.

Every name is nonsense on purpose. When `truth` is set to a dict, a forward puts each tensor into it under the name of
the role it has by construction; tracing leaves it None, so the graph knows nothing of it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Variant:
    """How to write the model. The defaults are the reference's way."""

    projections: str = "separate"  # separate, chunked, split_late, functional, matrix
    softmax: str = "method"  # method, torch, functional, module
    scale: str = "after_div"  # after_div, after_mul, before, buffer, none
    product: str = "matmul"  # matmul, einsum, bmm, permuted
    mask: str = "add"  # add, fill, where, inline
    kernel: str = "explicit"  # explicit, fused, fused_flag
    norm: str = "post"  # post, pre, sandwich, parallel
    norm_op: str = "module"  # module, functional, written
    shared: int = 1  # query heads to a key and value head
    rotary: bool = False
    cap: float = 0.0
    biased: bool = False  # a learned bias besides the mask
    scaled_branch: bool = False
    activation: str = "relu"  # relu, gelu, module
    feed_forward: str = "two"  # two, gated
    dropout: bool = False
    batch: int = 1
    layers: tuple[int, int] = (2, 2)
    heads: int = 4
    width: int = 32
    inner: int = 48
    lengths: tuple[int, int] = (6, 5)


class Zog(nn.Module):
    """A module that can tell the truth."""

    truth: dict[str, Tensor] | None = None
    where: str = ""

    def tell(self, part: str, tensor: Tensor) -> Tensor:
        if self.truth is not None:
            self.truth[f"{self.where}.{part}"] = tensor.detach().clone()
        return tensor


class Mix(Zog):
    """Attention."""

    root: Tensor
    waves: Tensor

    def __init__(self, v: Variant) -> None:
        super().__init__()
        self.v, d = v, v.width
        self.h, self.e = v.heads, v.width // v.heads
        if v.projections in ("chunked", "split_late"):
            self.tri = nn.Linear(d, 3 * d)
        for name in "abc":
            if name != "a" and v.shared > 1:
                setattr(self, name, nn.Linear(d, d // v.shared))
            elif v.projections in ("functional", "matrix"):
                self.register_parameter(name, nn.Parameter(torch.randn(d, d) * 0.1))
                self.register_parameter(f"{name}_off", nn.Parameter(torch.randn(d) * 0.1))
            else:
                setattr(self, name, nn.Linear(d, d))
        self.z = nn.Linear(d, d)
        self.soft = nn.Softmax(dim=-1)
        self.drop = nn.Dropout(0.3)
        self.register_buffer("root", torch.tensor(math.sqrt(self.e)))
        angles = torch.outer(torch.arange(max(v.lengths)), torch.rand(self.e // 2)).repeat(1, 2)
        self.register_buffer("waves", torch.stack((angles.cos(), angles.sin())))
        self.tilt = nn.Parameter(torch.randn(v.heads, max(v.lengths), max(v.lengths)))

    def project(self, name: str, x: Tensor) -> Tensor:
        if self.v.projections == "functional":
            return functional.linear(x, getattr(self, name), getattr(self, f"{name}_off"))
        if self.v.projections == "matrix":
            return torch.matmul(x, getattr(self, name))
        return getattr(self, name)(x)

    def cut(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], -1, self.e).transpose(1, 2)

    def turn(self, x: Tensor) -> Tensor:
        if not self.v.rotary:
            return x
        left, right = x.chunk(2, dim=-1)
        cos, sin = self.waves[0, : x.shape[2]], self.waves[1, : x.shape[2]]
        return x * cos + torch.cat((-right, left), dim=-1) * sin

    def copy(self, x: Tensor) -> Tensor:
        if self.v.shared == 1:
            return x
        b, h, n, e = x.shape
        return x[:, :, None].expand(b, h, self.v.shared, n, e).reshape(b, h * self.v.shared, n, e)

    def heads(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.v.projections == "split_late" and x is y:
            qkv = self.tri(x).view(x.shape[0], x.shape[1], 3, self.h, self.e).permute(2, 0, 3, 1, 4)
            return qkv[0], qkv[1], qkv[2]
        if self.v.projections == "chunked" and x is y:
            q, k, v = self.tri(x).chunk(3, dim=-1)
        else:
            q, k, v = self.project("a", x), self.project("b", y), self.project("c", y)
        self.tell("query", q), self.tell("key", k), self.tell("value", v)
        return self.turn(self.cut(q)), self.turn(self.cut(k)), self.cut(v)

    def forward(self, x: Tensor, y: Tensor, m: Tensor | None = None) -> Tensor:
        self.tell("input", x)
        q, k, v = self.heads(x, y)
        self.tell("query_heads", q), self.tell("value_heads", v)
        if self.v.product != "permuted":
            self.tell("key_heads", k)
        k, v = self.copy(k), self.copy(v)
        o = self.fused(q, k, v, m) if self.v.kernel != "explicit" else self.explicit(q, k, v, m)
        self.tell("head_outputs", o)
        o = o.transpose(1, 2).reshape(x.shape[0], x.shape[1], self.h * self.e)
        self.tell("concat", o)
        return self.tell("output", self.z(o))

    def fused(self, q: Tensor, k: Tensor, v: Tensor, m: Tensor | None) -> Tensor:
        if m is None:
            return functional.scaled_dot_product_attention(q, k, v)
        if self.v.kernel == "fused_flag":
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=self.tell("mask", m))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        scale = self.v.scale
        if scale == "before":
            q = q / math.sqrt(self.e)
        if self.v.product == "einsum":
            s = torch.einsum("bhld,bhmd->bhlm", q, k)
        elif self.v.product == "bmm":
            b, h, n, e = q.shape
            s = torch.bmm(q.reshape(b * h, n, e), k.reshape(b * h, k.shape[2], e).transpose(1, 2))
            s = s.view(b, h, n, k.shape[2])
        elif self.v.product == "permuted":
            s = q @ k.transpose(1, 2).permute(0, 2, 3, 1)
        else:
            s = q @ k.transpose(-2, -1)
        if scale == "after_div":
            s = s / math.sqrt(self.e)
        elif scale == "after_mul":
            s = s * (q.shape[-1] ** -0.5)
        elif scale == "buffer":
            s = s / self.root
        if self.v.cap:
            s = torch.tanh(s / self.v.cap) * self.v.cap
        return self.tell("scores", s)

    def explicit(self, q: Tensor, k: Tensor, v: Tensor, m: Tensor | None) -> Tensor:
        s = self.scores(q, k)
        if self.v.biased:
            s = s + self.tilt[:, : s.shape[2], : s.shape[3]]
        if m is not None:
            if not self.v.biased:
                self.tell("mask", m)
            if self.v.mask in ("fill", "inline"):
                s = s.masked_fill(m, -math.inf)
            elif self.v.mask == "where":
                s = torch.where(m, s, torch.full_like(s, -math.inf))
            else:
                s = s + m
            self.tell("masked_scores", s)
        match self.v.softmax:
            case "torch":
                w = torch.softmax(s, -1)
            case "functional":
                w = functional.softmax(s, dim=-1)
            case "module":
                w = self.soft(s)
            case _:
                w = s.softmax(dim=-1)
        self.tell("weights", w)
        if self.v.dropout:
            w = self.drop(w)
        return w @ v


class Fat(Zog):
    """Feed-forward."""

    def __init__(self, v: Variant) -> None:
        super().__init__()
        self.v = v
        self.up, self.gate, self.down = (
            nn.Linear(v.width, v.inner),
            nn.Linear(v.width, v.inner),
            nn.Linear(v.inner, v.width),
        )
        self.act = nn.GELU()

    def activate(self, x: Tensor) -> Tensor:
        if self.v.activation == "module":
            return self.act(x)
        return functional.gelu(x) if self.v.activation == "gelu" else torch.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        self.tell("input", x)
        y = self.up(x)
        if self.v.feed_forward == "gated":
            y = functional.silu(self.tell("gate", self.gate(x))) * self.tell("up", y)
        else:
            self.tell("hidden", y)
            y = self.activate(y)
        self.tell("activation", y)
        return self.tell("output", self.down(y))


class Ring(Zog):
    """A residual block around another."""

    def __init__(self, v: Variant, inside: Zog) -> None:
        super().__init__()
        self.v, self.inside, self.drop = v, inside, nn.Dropout(0.1)
        self.n = nn.LayerNorm(v.width)
        nn.init.normal_(self.n.weight, 1.0, 0.1)
        nn.init.normal_(self.n.bias, 0.0, 0.1)
        self.after, self.gain = nn.LayerNorm(v.width), nn.Parameter(torch.rand(v.width))

    def level(self, x: Tensor) -> Tensor:
        if self.v.norm_op == "functional":
            return functional.layer_norm(x, (self.v.width,), self.n.weight, self.n.bias, self.n.eps)
        if self.v.norm_op == "written":
            return self.n.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        return self.n(x)

    def forward(self, x: Tensor, *rest: Tensor | None) -> Tensor:
        pre = self.v.norm != "post"
        a = self.tell("residual_a", x)
        inner = self.level(x) if pre else x
        given = [inner if each is x else each for each in rest]
        b = self.inside(inner, *given)
        if self.v.dropout:
            b = self.drop(b)
        if self.v.norm == "sandwich":
            b = self.after(b)
        if self.v.scaled_branch:
            b = b * self.gain
        self.tell("residual_b", b)
        s = self.tell("residual_sum", a + b)
        return s if pre else self.tell("norm_output", self.level(s))


class Rung(Zog):
    """A layer."""

    def __init__(self, v: Variant, crossed: bool) -> None:
        super().__init__()
        self.v = v
        self.one = Ring(v, Mix(v))
        self.two = Ring(v, Mix(v)) if crossed else None
        self.three = Ring(v, Fat(v))

    def forward(self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        self.tell("input", x)
        if self.v.norm == "parallel" and self.two is None:
            b, c = self.one.inside(self.one.level(x), self.one.level(x)), self.three.inside(self.one.level(x))
            return self.tell("output", x + (b + c))
        x = self.one(x, x, mask)
        if self.two is not None:
            x = self.two(x, memory)
        return self.tell("output", self.three(x))


class Blob(Zog):
    """The model."""

    waves: Tensor
    wall: Tensor

    def __init__(self, v: Variant) -> None:
        super().__init__()
        self.v = v
        self.p, self.q = nn.Embedding(11, v.width), nn.Embedding(7, v.width)
        self.left = nn.ModuleList(Rung(v, crossed=False) for _ in range(v.layers[0]))
        self.right = nn.ModuleList(Rung(v, crossed=True) for _ in range(v.layers[1]))
        self.end_p, self.end_q = nn.LayerNorm(v.width), nn.LayerNorm(v.width)
        self.w = nn.Linear(v.width, 7)
        self.register_buffer("waves", torch.randn(max(v.lengths), v.width))
        n = v.lengths[1]
        hidden = torch.ones(1, 1, n, n, dtype=torch.bool).triu(1)
        self.register_buffer(
            "wall",
            {"fill": hidden, "where": ~hidden}.get(v.mask, torch.zeros(1, 1, n, n).masked_fill(hidden, -math.inf)),
        )
        for name, part in (("encoder", self.left), ("decoder", self.right)):
            for i, rung in enumerate(part):
                assert isinstance(rung, Rung)
                rung.where = f"{name}.{i}"
                first = "masked_self_attention" if name == "decoder" else "self_attention"
                for ring, block in ((rung.one, first), (rung.two, "cross_attention"), (rung.three, "feed_forward")):
                    if ring is not None:
                        ring.where = ring.inside.where = f"{name}.{i}.{block}"

    def learn_truth(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Every tensor by the role it has by construction."""
        truth: dict[str, Tensor] = {}
        zogs = [m for m in self.modules() if isinstance(m, Zog)]
        for zog in zogs:
            zog.truth = truth
        with torch.no_grad():
            self.eval()(*inputs)
        for zog in zogs:
            zog.truth = None
        return truth

    def remember(self, role: str, tensor: Tensor) -> Tensor:
        if self.truth is not None:
            self.truth[role] = tensor.detach().clone()
        return tensor

    def forward(self, i: Tensor, j: Tensor) -> dict[str, Tensor]:
        self.remember("encoder.embedding.tokens", i), self.remember("decoder.embedding.tokens", j)
        x = self.remember("encoder.embedding.token_embeddings", self.p(i))
        x = self.remember("encoder.embedding.output", x + self.waves[: x.shape[1]])
        for rung in self.left:
            x = rung(x)
        if self.v.norm != "post":
            x = self.end_p(x)
        y = self.remember("decoder.embedding.token_embeddings", self.q(j))
        y = self.remember("decoder.embedding.output", y + self.waves[: y.shape[1]])
        wall = self.wall
        if self.v.mask == "inline":
            n = torch.arange(self.v.lengths[1])
            wall = n[None, None, None, :] > n[None, None, :, None]
        for rung in self.right:
            y = rung(y, x, wall)
        if self.v.norm != "post":
            y = self.end_q(y)
        self.remember("output.hidden", y)
        out = self.remember("output.logits", self.w(y))
        corner = self.remember("encoder.embedding.weight_slice", self.p.weight[:5, :5])
        return {"u": out, "u0": self.remember("output.logits_slice", out[0, 0, :10]), "c": corner}


def make(v: Variant) -> tuple[Blob, dict[str, Tensor]]:
    """The model and its inputs."""
    torch.manual_seed(3)
    model = Blob(v)
    return model, {
        "i": torch.randint(11, (v.batch, v.lengths[0])),
        "j": torch.randint(7, (v.batch, v.lengths[1])),
    }
