"""Which tensors of a small graph are made as those of a large one."""

import pytest

from fxtrace.alike import alike, transferred, transferred_parameters
from fxtrace.dims import Finding, Formula, Formulas
from fxtrace.graph import Graph, Module, Node, Parameter, Ref, TensorSpec, Value

SPEC = TensorSpec((2,), "float32", (1,), "cpu", True, 8)


def node(name: str, target: str, *inputs: str, module: str = "") -> Node:
    op = "call_function" if inputs else "placeholder"
    return Node(name, op, target, target, tuple(map(Ref, inputs)), values=(Value("", "Tensor", SPEC),), module=module)


def graph(layers: int) -> Graph:
    """Layers of x + exp(sin(x)), and a sum in the end; with a scalar that only one of them has."""
    nodes, last = [node("x", "x")], "x"
    for layer in range(layers):
        module = f"layers.{layer}"
        nodes += [
            node(f"sin_{layer}", "sin", last, module=module),
            node(f"exp_{layer}", "exp", f"sin_{layer}", module=module),
            node(f"add_{layer}", "add", last, f"exp_{layer}", module=module),
        ]
        last = f"add_{layer}"
    size = Node("size", "call_function", "sym_size", "size", (Ref(last),), values=(Value("", "int", text="2"),))
    parameters = tuple(Parameter(f"layers.{i}.w", (2,), "float32", True) for i in range(layers))
    modules = (Module("", "M", parameters),)
    return Graph("M", (*nodes, *([size] if layers > 2 else []), node("sum", "sum", last)), modules)


def findings(**formulas: str) -> dict[str, tuple[Finding, ...]]:
    return {name: (Finding(Formula(text), (text,), 6),) for name, text in formulas.items()}


NAMES = ("sin", "exp", "add")
LIKE = {f"{name}_{layer}": name for name in NAMES for layer in range(2)}


def test_every_layer_is_like_the_copy_s() -> None:
    groups = alike(graph(2), graph(6))
    for layer in range(6):
        for name in NAMES:
            assert {each.partition("_")[0] for each in groups[f"{name}_{layer}"][0]} == {name}
    assert (groups["x"][0], groups["sum"][0]) == (["x"], ["sum"])
    assert groups["sin_0"][0] == ["sin_0"]  # it alone reads the input
    assert groups["add_5"][0] == ["add_1"]  # and this is summed


def test_layers_share_formulas() -> None:
    found = Formulas({}, findings(x="a", sum="z", **LIKE), {})
    guessed = transferred(found, alike(graph(2), graph(6)), graph(6))
    assert {str(guessed[f"{name}_{layer}"][0].formula) for name in NAMES for layer in range(6)} == set(NAMES)
    assert all(str(guessed[f"exp_{layer}"][0].formula) == "exp" for layer in range(6))


def test_where_the_copy_s_layers_differ_the_number_of_the_layer_counts() -> None:
    own = {f"{name}_{layer}": f"{name}{layer}" for name in NAMES for layer in range(2)}
    guessed = transferred(Formulas({}, findings(x="a", sum="z", **own), {}), alike(graph(2), graph(6)), graph(6))
    assert [str(guessed[f"exp_{layer}"][0].formula) for layer in (0, 1)] == ["exp0", "exp1"]
    assert guessed["exp_3"][0].formula is None
    assert guessed["exp_3"][0].reason == "what is made alike in the smaller copy differs: exp0, exp1"


def test_what_the_copy_lacks_has_no_formula() -> None:
    whole = graph(3)
    whole = Graph("M", (*whole.nodes, node("tan", "tan", "sum")))
    guessed = transferred(Formulas({}, findings(x="a", sum="z", **LIKE), {}), alike(graph(2), whole), whole)
    assert guessed["tan"] == (Finding(None, reason="nothing in the smaller copy is made alike"),)


@pytest.mark.parametrize(("second", "expected"), [("a", ["a"] * 4), ("b", ["a", "b", "None", "None"])])
def test_parameters_go_by_their_names(second: str, expected: list[str]) -> None:
    found = Formulas({}, {}, {**findings(**{"layers.0.w": "a", "layers.1.w": second})})
    guessed = transferred_parameters(found, graph(4))
    assert [str(guessed[f"layers.{layer}.w"][0].formula) for layer in range(4)] == expected
