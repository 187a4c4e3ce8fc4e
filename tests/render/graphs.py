"""Graphs written by hand: a post-norm encoder–decoder transformer as a tracer would give it, with its roles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

from fxtrace.graph import Arg, Check, Graph, Module, Node, Parameter, Ref, Role, Source, TensorSpec, Value

Shape = tuple[int, ...]


def spec(shape: Shape, dtype: str = "float32") -> TensorSpec:
    stride = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
    return TensorSpec(shape, dtype, stride, "cpu", True, prod(shape) * (8 if dtype == "int64" else 4))


@dataclass
class Emitter:
    """Writes nodes one after another, each in the module that is open."""

    name: str = "Seq2Seq"
    nodes: dict[str, Node] = field(default_factory=dict)
    modules: dict[str, Module] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    at: str = ""

    def graph(self) -> Graph:
        return Graph(self.name, tuple(self.nodes.values()), (Module("", self.name), *self.modules.values()))

    @contextmanager
    def module(self, name: str, type_: str, **parameters: Shape) -> Iterator[str]:
        outer, self.at = self.at, f"{self.at}.{name}" if self.at else name
        own = (Parameter(f"{self.at}.{key}", shape, "float32", True) for key, shape in parameters.items())
        self.modules.setdefault(self.at, Module(self.at, type_, tuple(own)))
        yield self.at
        self.at = outer

    def node(
        self,
        kind: str,
        target: str,
        args: tuple[Arg, ...],
        shape: Shape | None,
        role: str = "",
        *,
        op: str = "call_function",
        dtype: str = "float32",
        text: str = "",
        parameters: tuple[str, ...] = (),
    ) -> Ref:
        stem = target.rpartition(".")[2] if op == "call_function" else target.replace(".", "_")
        count = self.counts[stem] = self.counts.get(stem, -1) + 1
        name = f"{stem}_{count}" if count else stem
        values = (Value("", "Tensor", spec(shape, dtype)),) if shape is not None else (Value("", "int", text=text),)
        source = Source("model.py", len(self.nodes) + 1, f"{target}(...)", "forward") if op != "placeholder" else None
        roles = tuple(map(parse_role, role.split()))
        self.nodes[name] = Node(name, op, target, kind, args, {}, values, self.at, parameters, source, roles)
        return Ref(name)

    def input(self, name: str, shape: Shape, dtype: str = "float32") -> Ref:
        return self.node("input", name, (), shape, op="placeholder", dtype=dtype)

    def buffer(self, name: str, shape: Shape) -> Ref:
        root = self.modules.setdefault("tables", Module("tables", "Tables"))
        if not any(p.name == name for p in root.parameters):
            stored = Parameter(name, shape, "float32", False, buffer=True)
            self.modules["tables"] = Module("tables", "Tables", (*root.parameters, stored))
        return self.node("constant", name, (), shape, op="get_attr", parameters=(name,))

    def output(self, **values: Arg) -> None:
        self.nodes["output"] = Node("output", "output", "output", "output", (dict(values),))

    def call(self, kind: str, name: str, type_: str, x: Ref, shape: Shape, role: str = "", **parameters: Shape) -> Ref:
        with self.module(name, type_, **parameters) as path:
            owned = tuple(f"{path}.{key}" for key in parameters)
            return self.node(kind, path, (x,), shape, role, op="call_module", parameters=owned)

    def linear(self, name: str, x: Ref, into: int, role: str = "") -> Ref:
        shape = self.shape(x)
        return self.call("linear", name, "Linear", x, (*shape[:-1], into), role, weight=(into, shape[-1]), bias=(into,))

    def shape(self, x: Ref) -> Shape:
        found = self.nodes[x.node].spec
        assert found is not None
        return found.shape


def parse_role(name: str) -> Role:
    stack, *middle, part = name.split(".")
    layer = int(middle.pop(0)) if middle[0].isdigit() else None
    checks = (Check("rows", "each row sums to 1", True, "off by 1e-7"),) if part == "weights" else ()
    return Role(stack, layer, ".".join(middle), part, "shown by its dataflow", checks)


def transformer(layers: int = 2, width: int = 128, heads: int = 4, src: int = 6, tgt: int = 5) -> Graph:
    """An encoder–decoder transformer, post-norm, with as many layers on each side."""
    e = Emitter()
    src_ids, tgt_ids = e.input("src_ids", (1, src), "int64"), e.input("tgt_ids", (1, tgt), "int64")
    with e.module("encoder", "Encoder"):
        x = _embed(e, src_ids, src, width, "encoder")
        for layer in range(layers):
            with e.module(f"layers.{layer}", "EncoderLayer"):
                role = f"encoder.{layer}"
                x = _attend(e, "self_attn", x, x, None, heads, f"{role}.self_attention", "norm1")
                x = _feed_forward(e, x, f"{role}.feed_forward", "norm2")
    memory = x
    with e.module("decoder", "Decoder"):
        y = _embed(e, tgt_ids, tgt, width, "decoder")
        mask = e.buffer("causal_mask", (1, 1, tgt, tgt))
        for layer in range(layers):
            with e.module(f"layers.{layer}", "DecoderLayer"):
                role = f"decoder.{layer}"
                y = _attend(e, "self_attn", y, y, mask, heads, f"{role}.masked_self_attention", "norm1")
                y = _attend(e, "cross_attn", y, memory, None, heads, f"{role}.cross_attention", "norm2")
                y = _feed_forward(e, y, f"{role}.feed_forward", "norm3")
    logits = e.linear("lm_head", y, 10, "decoder.output.logits")
    first = e.node("select", "operator.getitem", (logits, (0, 0)), (10,))
    e.output(logits=logits, first=first)
    for stack in ("encoder", "decoder"):
        e.modules[f"{stack}.layers"] = Module(f"{stack}.layers", "ModuleList")
    return e.graph()


def _embed(e: Emitter, ids: Ref, length: int, width: int, stack: str) -> Ref:
    tokens = e.call(
        "embedding", "embed", "Embedding", ids, (1, length, width), f"{stack}.embedding.tokens", weight=(10, width)
    )
    size = e.node("size", "size", (tokens, 1), None, text=str(length))
    table = e.buffer("positions", (16, width))
    rows = e.node("select", "operator.getitem", (table, (size,)), (length, width))
    return e.node("add", "operator.add", (tokens, rows), (1, length, width), f"{stack}.embedding.sum")


def _attend(e: Emitter, name: str, x: Ref, context: Ref, mask: Ref | None, heads: int, role: str, norm: str) -> Ref:
    (batch, length, width), reach = e.shape(x), e.shape(context)[1]
    with e.module(name, "MultiHeadAttention"):
        split = []
        for part, source in (("query", x), ("key", context), ("value", context)):
            flat = e.linear(f"{part[0]}_proj", source, width, f"{role}.{part}")
            shape = (batch, e.shape(source)[1], heads, width // heads)
            view = e.node("view", "view", (flat, *shape), shape)
            split.append(
                e.node("view", "transpose", (view, 1, 2), (shape[0], heads, shape[1], shape[3]), f"{role}.{part}_heads")
            )
        query, key, value = split
        turned = e.node("view", "transpose", (key, -2, -1), (batch, heads, width // heads, reach))
        product = e.node("matmul", "torch.matmul", (query, turned), (batch, heads, length, reach))
        root = (width / heads) ** 0.5
        scores = e.node("div", "operator.truediv", (product, root), (batch, heads, length, reach), f"{role}.scores")
        if mask is not None:
            scores = e.node("add", "operator.add", (scores, mask), (batch, heads, length, reach), f"{role}.masked")
        weights = e.node("softmax", "torch.softmax", (scores, -1), (batch, heads, length, reach), f"{role}.weights")
        mixed = e.node("matmul", "torch.matmul", (weights, value), (batch, heads, length, width // heads))
        turned = e.node("view", "transpose", (mixed, 1, 2), (batch, length, heads, width // heads))
        joined = e.node("view", "reshape", (turned, batch, length, width), (batch, length, width), f"{role}.concat")
        out = e.linear("out_proj", joined, width, f"{role}.residual_b {role}.output")
    return _add_norm(e, x, out, role, norm)


def _feed_forward(e: Emitter, x: Ref, role: str, norm: str) -> Ref:
    width = e.shape(x)[-1]
    with e.module("mlp", "FeedForward"):
        up = e.linear("up", x, 2 * width, f"{role}.hidden")
        active = e.node("activation", "torch.relu", (up,), e.shape(up))
        down = e.linear("down", active, width, f"{role}.residual_b {role}.output")
    return _add_norm(e, x, down, role, norm)


def _add_norm(e: Emitter, x: Ref, branch: Ref, role: str, norm: str) -> Ref:
    width = e.shape(x)[-1]
    total = e.node("add", "operator.add", (x, branch), e.shape(x), f"{role}.residual_sum")
    return e.call("norm", norm, "LayerNorm", total, e.shape(x), f"{role}.norm_output", weight=(width,), bias=(width,))
