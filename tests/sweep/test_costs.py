from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxtrace.capture import capture
from fxtrace.dims import Finding, Formula, Formulas
from fxtrace.errors import CaptureFailed
from fxtrace.graph import Graph, Node, Parameter, TensorSpec, Value
from fxtrace.graph import Module as GraphModule
from fxtrace.ir.trace import Rung
from fxtrace.models import Registry
from fxtrace.sweep import Costs, NoFormula, products
from tests.benchmarks.flops import counted


class EveryProduct(nn.Module):
    """The matrix products that PyTorch has, spelled in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 5)
        self.conv = nn.Conv2d(4, 8, 3, groups=2, stride=2)
        self.transposed = nn.ConvTranspose1d(4, 6, 3, groups=2)
        self.weight = nn.Parameter(torch.randn(5, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor, image: Tensor, sound: Tensor) -> tuple[Tensor, ...]:
        a = self.linear(x)
        b = x @ self.weight.T
        return (
            torch.einsum("bik,bjk->bij", a, b),
            torch.addmm(a[0], x[0], self.weight.T),
            torch.baddbmm(torch.zeros(2, 3, 3), a, b.mT),
            torch.matmul(other=b.mT, input=a),
            torch.nn.functional.linear(weight=self.weight, input=x),
            torch.mv(a[0], b[0, 0]),
            torch.dot(a[0, 0], b[0, 0]),
            self.conv(image),
            self.transposed(sound),
            torch.nn.functional.scaled_dot_product_attention(x[None], x[None, :, :2], b[None, :, :2]),
            self.attention(x, x, x)[0],
        )


INPUTS = {"x": torch.randn(2, 3, 4), "image": torch.randn(1, 4, 9, 9), "sound": torch.randn(2, 4, 5)}


@pytest.mark.parametrize("rung", ["record", "export"])
def test_flops_are_what_pytorch_counts(rung: Rung) -> None:
    module = EveryProduct()
    taken = capture(module, INPUTS, rung=rung, values=False)
    found = products(taken.graph)
    assert found.hidden == ()
    # PyTorch's counter does not know mv and dot: 2·3·5 and 2·5.
    assert Costs(taken.graph, taken.bases).cost().flops == counted(module, INPUTS) + 30 + 10


@pytest.mark.parametrize("name", ["reference", "hf:t5", "hf:convnext", "hf:mixtral"])
def test_flops_and_parameters_of_models_are_what_pytorch_counts(name: str) -> None:
    model = Registry.installed().load(name)
    config = model.resolve({})
    module, inputs = model.build(config), model.example_inputs(config)
    taken = capture(module, inputs)
    cost = Costs(taken.graph, taken.bases).cost()
    assert cost.flops == counted(module, inputs) > 0
    assert cost.parameters == sum(each.numel() for each in module.parameters())


class Grouped(nn.Module):
    """Grouped products: rows in groups, columns in groups, what is summed over in groups, and matrix by matrix."""

    def forward(self, rows: Tensor, stacked: Tensor, columns: Tensor, more: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
        product = torch.nn.functional.grouped_mm
        return (
            product(rows, stacked, offs=ends),
            product(stacked.mT, columns, offs=ends),
            product(rows.mT, more, offs=ends),
            product(mat_b=stacked, mat_a=stacked.mT),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_products_have_the_shapes_and_flops_of_a_run(dtype: torch.dtype) -> None:
    shapes = {"rows": (16, 24), "stacked": (2, 24, 40), "columns": (24, 16), "more": (16, 32)}
    inputs = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    inputs["ends"] = torch.tensor([8, 16], dtype=torch.int32)
    taken, run = (capture(Grouped(), inputs, values=values) for values in (False, True))
    assert list(taken.graph.tensors()) == list(run.graph.tensors())
    flops = 2 * (16 * 24 * 40 + 40 * 24 * 16 + 24 * 16 * 32 + 2 * 40 * 24 * 40)
    assert Costs(taken.graph, taken.bases).cost().flops == flops


@pytest.mark.parametrize("width", [6, 7])
def test_grouped_products_without_numbers_are_refused_as_a_run_refuses_them(width: int) -> None:
    inputs = {"rows": torch.randn(16, width), "stacked": torch.randn(2, 6, 40), "columns": torch.randn(6, 16)}
    inputs |= {"more": torch.randn(16, 32), "ends": torch.tensor([8, 16], dtype=torch.int32)}
    problems = []
    for values in (False, True):
        with pytest.raises(CaptureFailed, match=r"strides should be multiple of 16 bytes|contraction dimension") as e:
            capture(Grouped(), inputs, rung="record", values=values)
        problems.append(e.value.message.partition(": ")[2])
    assert problems[0] == problems[1]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5)

    def forward(self, x: Tensor) -> Any:
        return self.lstm(x)[0]


def test_products_that_cannot_be_seen_leave_flops_untold() -> None:
    taken = capture(Recurrent(), {"x": torch.randn(3, 2, 4)})
    costs = Costs(taken.graph, taken.bases)
    assert costs.hidden
    assert costs.cost().flops is None
    assert costs.cost().parameters == 4 * 5 * 5 + 4 * 5 * 5 - 4 * 5 + 2 * 4 * 5


def small() -> tuple[Graph, Formulas]:
    def node(name: str, kind: str, shape: tuple[int, ...], dtype: str = "float32") -> Node:
        return Node(name, "call_function", kind, kind, (), {}, (Value("", "Tensor", spec(shape, dtype)),))

    def spec(shape: tuple[int, ...], dtype: str) -> TensorSpec:
        return TensorSpec(shape, dtype, (), "cpu", True, 0)

    modules = (GraphModule("", "M", (Parameter("w", (8, 2), "float32", True),)),)
    graph = Graph("M", (node("x", "input", (3, 8)), node("h", "elementwise", (3, 4), "bfloat16")), modules)
    tensors = {"x": ("length", "width"), "h": ("length", "width/heads")}

    def findings(texts: tuple[str, ...]) -> tuple[Finding, ...]:
        return tuple(Finding(Formula(text)) for text in texts)

    sizes = {"length": 3, "width": 8, "heads": 2}
    shapes = {name: findings(texts) for name, texts in tensors.items()}
    return graph, Formulas(sizes, shapes, {"w": findings(("width", "heads"))})


def test_formulas_give_many_configurations_at_once() -> None:
    graph, formulas = small()
    columns = {
        "length": np.array([3, 5, 7, 2**40]),
        "width": np.array([8, 12, 9, 2**40]),
        "heads": np.array([2, 3, 2, 1]),
    }
    found = Costs(graph, {}, formulas, {"hidden": "h"}).costs(columns, 4)
    assert found.fits.tolist() == [True, True, False, True]  # 9 / 2 is not whole
    assert found.too_large.tolist() == [False, False, False, True]
    assert found.parameters[:2].tolist() == [16, 36]
    assert found.activation_bytes[:2].tolist() == [3 * 4 * 2, 5 * 4 * 2]
    assert [sizes[1] for sizes in found.shapes["hidden"]] == [5, 4]
    assert found.flops is not None
    assert not found.flops.any()


def test_a_size_without_a_formula_is_told() -> None:
    graph, formulas = small()
    unknown = Formulas(
        formulas.sizes, {**formulas.tensors, "h": (Finding(Formula("3")), Finding(None))}, formulas.parameters
    )
    with pytest.raises(NoFormula, match="size 1 of 'h', 4, has no formula"):
        Costs(graph, {}, unknown)
