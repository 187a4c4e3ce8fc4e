"""Graphs to ask: a small one in which every field has a value, random ones, and one of 20,000 nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from hypothesis import strategies as st

from fxtrace.graph import Dim, Graph, Module, Node, Parameter, Ref, Role, Source, TensorSpec, Value

Shape = tuple[int, ...]


def tensor(*shape: int, path: str = "", dtype: str = "float32", symbolic: tuple[str, ...] = ()) -> Value:
    spec = TensorSpec(shape, dtype, (1,) * len(shape), "cpu", len(shape) != 3, 4 * prod(shape), symbolic)
    return Value(path, "Tensor", spec)


def node(
    name: str, kind: str, *inputs: str, values: tuple[Value, ...] = (), module: str = "", role: tuple[Role, ...] = ()
) -> Node:
    op = {"input": "placeholder", "output": "output"}.get(kind, "call_function")
    source = Source("model.py", 7, f"y = {name}('shape[-1]')", "forward") if inputs else None
    parameters = (f"{module}.weight", f"{module}.bias", f"{module}.steps") if kind == "linear" else ()
    args = tuple(map(Ref, inputs))
    return Node(name, op, f"torch.{name}", kind, args, {}, values, module, parameters, source, role)


def small() -> Graph:
    """A self-attention with an LSTM after it, and no numbers."""
    attention = ("decoder", 0, "self_attention")
    nodes = (
        node("x", "input", values=(tensor(1, 5, 8, dtype="int64"),)),
        node("q", "linear", "x", values=(tensor(1, 2, 5, 4),), module="attn.q", role=(Role(*attention, "query"),)),
        node("k", "linear", "x", values=(tensor(1, 2, 4, 5),), module="attn.k", role=(Role(*attention, "key"),)),
        node("scores", "matmul", "q", "k", values=(tensor(1, 2, 5, 5),), role=(Role(*attention, "scores"),)),
        node("scaled", "div", "scores", values=(tensor(1, 2, 5, 5),)),
        node("masked", "add", "scaled", values=(tensor(1, 2, 5, 5),)),
        node("weights", "softmax", "masked", values=(tensor(1, 2, 5, 5),), role=(Role(*attention, "weights"),)),
        node("sum", "add", "weights", "x", role=(Role("decoder", None, "output", "hidden"), Role("", 1, "", "extra"))),
        node(
            "lstm",
            "recurrent",
            "sum",
            values=(tensor(5, 3, path="0", symbolic=("length", "2*length")), tensor(2, path="1", dtype="bfloat16")),
        ),
        node("size", "size", "lstm", values=(Value("", "int", text="5"),)),
        node("output", "output", "lstm"),
    )
    modules = (
        Module("", "Model"),
        *(
            Module(
                f"attn.{name}",
                "Linear",
                (
                    Parameter(f"attn.{name}.weight", (8, 8), "float32", True),
                    Parameter(f"attn.{name}.bias", (8,), "float32", True),
                    Parameter(f"attn.{name}.steps", (99,), "int64", False, buffer=True),
                ),
            )
            for name in "qk"
        ),
    )
    dims = (Dim("batch", 1), Dim("n_heads", 2), Dim("tgt_len", 5), Dim("d_model", 8), Dim("rank", 77))
    return Graph("Small", nodes, modules, dims)


def wired(kinds: Sequence[str], edges: Mapping[int, Sequence[int]]) -> Graph:
    """A graph of these kinds; `edges` gives the numbers of the nodes that each node reads."""
    return Graph("Wired", tuple(node(f"n{i}", kind, *(f"n{j}" for j in edges[i])) for i, kind in enumerate(kinds)))


@st.composite
def random_graphs(draw: st.DrawFn, kinds: Sequence[str] = ("add", "mul", "matmul"), most: int = 7) -> Graph:
    drawn = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=most))
    edges = {i: draw(st.lists(st.integers(0, i - 1), unique=True, max_size=3)) if i else [] for i in range(len(drawn))}
    return wired(drawn, edges)


def large(layers: int = 2222) -> Graph:
    """9 nodes a layer, 19,999 in all: a residual stream with an attention beside it in each layer."""
    nodes = [node("x", "input", values=(tensor(1, 6, 128),))]
    stream = "x"
    for i in range(layers):
        scores = (Role("decoder", i, "self_attention", "scores"),)
        square = (tensor(1, 4, 6, 6),)
        nodes += (
            node(f"{each}_{i}", "linear", stream, values=(tensor(1, 4, 6, 32),), module=f"layers.{i}.{each}")
            for each in "qkv"
        )
        nodes += (
            node(f"scores_{i}", "matmul", f"q_{i}", f"k_{i}", values=square, role=scores),
            node(f"scaled_{i}", "div", f"scores_{i}", values=square),
            node(f"masked_{i}", "add", f"scaled_{i}", values=square),
            node(f"weights_{i}", "softmax", f"masked_{i}", values=square),
            node(f"heads_{i}", "matmul", f"weights_{i}", f"v_{i}", values=(tensor(1, 6, 128),)),
            node(f"sum_{i}", "add", f"heads_{i}", stream, values=(tensor(1, 6, 128),)),
        )
        stream = f"sum_{i}"
    return Graph("Large", tuple(nodes), (), (Dim("src_len", 6), Dim("n_heads", 4), Dim("d_model", 128)))
