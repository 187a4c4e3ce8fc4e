"""Capture: the graph computes what the module does, says so, and leaves everything as it was found."""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fxtrace.capture import capture
from fxtrace.capture.compare import bit_equal
from fxtrace.errors import Cancelled, CaptureFailed, InputError, OptionInvalid
from fxtrace.graph import Node, SliceArg
from fxtrace.ir.trace import Progress, Rung

X = torch.arange(6.0).reshape(2, 3)


class Function(nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4)
        self.table: Tensor
        self.register_buffer("table", torch.arange(8.0).reshape(2, 4))

    def forward(self, x: Tensor, scale: float = 2.0, bias: Tensor | None = None) -> Tensor:
        y = self.inner(x) * scale
        if bias is not None:
            y = y + bias
        return y + self.table[: x.size(0)]


def by_name(module: nn.Module, *, values: bool = True, **inputs: Tensor) -> dict[str, Node]:
    return dict(capture(module, inputs, values=values).graph.by_name)


def test_specs_modules_parameters_and_source_lines() -> None:
    nodes = by_name(Linear(), x=X)
    inner = nodes["inner"]
    assert inner.spec is not None
    assert inner.spec.shape == (2, 4)
    assert (inner.spec.dtype, inner.spec.stride, inner.spec.nbytes) == ("float32", (4, 1), 32)
    assert (inner.module, inner.kind, inner.op) == ("inner", "linear", "call_module")
    assert inner.parameters == ("inner.weight", "inner.bias")
    assert inner.source is not None
    assert inner.source.file.endswith("test_capture.py")
    assert inner.source.code == "y = self.inner(x) * scale"
    assert inner.source.function == "Linear.forward"
    assert nodes["x"].source is None


def test_sizes_are_shown_as_what_they_are() -> None:
    nodes = by_name(Linear(), x=X)
    assert [(v.type, v.text, v.spec) for v in nodes["size"].values] == [("int", "2", None)]
    assert nodes["size"].kind == "size"
    assert isinstance(nodes["getitem"].args[1], SliceArg)


def test_every_leaf_of_a_nest_has_its_spec() -> None:
    def split(x: Tensor) -> dict[str, Any]:
        halves = torch.split(x, [1, 2], dim=1)
        return {"halves": halves, "shape": x.shape}

    captured = capture(Function(split), {"x": X})
    node = captured.graph.node("split")
    assert [(v.path, v.spec.shape) for v in node.values if v.spec] == [("0", (2, 1)), ("1", (2, 2))]
    assert node.tensors[1][0] == "split:1"
    assert torch.equal(captured.values["split:1"], X[:, 1:])
    assert captured.output_equal


def test_a_value_is_the_value_at_that_moment() -> None:
    def forward(x: Tensor) -> Tensor:
        y = x * 2
        view = y[0]
        y.add_(100)
        return view + 0

    captured = capture(Function(forward), {"x": X})
    assert torch.equal(captured.values["mul"], X * 2)
    assert torch.equal(captured.values["getitem"], (X * 2)[0])
    assert torch.equal(captured.values["add_"], X * 2 + 100)
    assert torch.equal(captured.values["add"], (X * 2 + 100)[0])
    assert captured.output_equal


def test_an_input_changed_in_place_is_left_as_it_was() -> None:
    given = X.clone()
    captured = capture(Function(lambda x: x.mul_(3)), {"x": given})
    assert torch.equal(given, X)
    assert torch.equal(captured.values["x"], X)
    assert torch.equal(captured.values["mul_"], X * 3)


class Restless(nn.Module):
    """Changes everything a forward can change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)
        self.calls = 0
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(3))
        self.last: object = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        self.seen.add_(1)
        return self.drop(self.norm(x)) + self.seen


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("values", [True, False])
def test_the_module_and_the_random_state_are_left_as_found(training: bool, values: bool) -> None:
    module = Restless()
    module.norm.eval()  # modes may differ inside
    called: list[str] = []
    module.norm.register_forward_hook(lambda *_: called.append("norm"))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [m.training for m in module.modules()]
    hooks = len(module.norm._forward_hooks)
    random_state = torch.get_rng_state()
    captured = capture(module, {"x": X}, training=training, values=values)
    assert captured.output_equal is (True if values else None)
    assert {name: tensor.tolist() for name, tensor in module.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in before.items()
    }
    assert [m.training for m in module.modules()] == modes
    assert (module.calls, module.last, len(module.norm._forward_hooks)) == (0, None, hooks)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_module_is_left_as_found_when_it_raises() -> None:
    module = Restless()
    with pytest.raises(CaptureFailed):
        capture(module, {"x": torch.ones(2, 7)})
    assert module.calls == 0
    assert module.training
    assert not module.seen.any()


def test_shapes_without_compute_equal_those_with() -> None:
    full, bare = capture(Linear(), {"x": X}), capture(Linear(), {"x": X}, values=False)
    assert [node.values for node in bare.graph.nodes] == [node.values for node in full.graph.nodes]
    assert bare.values == {}
    assert set(bare.known) == {"table", "getitem"}


def test_fake_propagation_allocates_nothing() -> None:
    captured = capture(Function(lambda x: x.expand(10**6, 10**6, 3, 2, 3) + 1), {"x": X}, values=False)
    assert captured.graph.node("add").values[0].spec is not None
    assert captured.graph.node("add").tensors[0][1].nbytes == 72 * 10**12


@pytest.mark.parametrize(
    ("given", "output_kinds"),
    [({"x": X}, ["mul", "add"]), ({"x": X, "bias": torch.ones(4)}, ["mul", "add", "add"])],
)
def test_parameters_with_defaults_may_be_left_out(given: dict[str, Tensor], output_kinds: list[str]) -> None:
    captured = capture(Linear(), given)
    assert captured.output_equal
    assert [n.kind for n in captured.graph.nodes if n.kind in ("mul", "add")] == output_kinds
    assert [n.name for n in captured.graph.nodes if n.kind == "input"] == list(given)


def branches(x: Tensor) -> Tensor:
    if x.sum() > 0:
        return x
    return -x


def raises(x: Tensor) -> Tensor:
    raise ValueError("the model does not like this input")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (branches, r"symbolic tracing cannot follow this model at .*test_capture.py:\d+ \(`if x.sum\(\) > 0:`\)"),
        (raises, r"the model raised at .*test_capture.py:\d+ .*: ValueError: the model does not like this input"),
        (lambda x: x @ x, r"the model raised at .*RuntimeError"),
    ],
)
def test_a_failure_names_the_users_line(function: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(CaptureFailed, match=message):
        capture(Function(function), {"x": X}, rung="symbolic")


def wrapped(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    return call


class Decorated(nn.Module):
    @wrapped
    def forward(self, x: Tensor, scale: float = 2.0, **options: Any) -> Any:
        return x * scale


class DecoratedPlainly(nn.Module):
    """torch.fx goes through a decorator where the forward itself takes neither *args nor **kwargs."""

    @wrapped
    def forward(self, x: Tensor) -> Any:
        return {"double": x * 2}


class Options(nn.Module):
    @wrapped
    def forward(self, *args: Any, **options: Any) -> Any:
        return {"double": options["x"] * 2, "halves": [options["x"] / 2]}


def test_a_decorator_that_torch_fx_cannot_follow_is_named() -> None:
    captured = capture(Decorated(), {"x": X})
    assert (captured.rung, captured.output_equal) == ("record", True)
    (refusal,) = (note for note in captured.rung_notes if note.startswith("Not symbolic: "))
    assert "test_capture.py:" in refusal
    assert "(`@wrapped`): TypeError: torch.fx cannot follow forward through 'wrapped'" in refusal


@pytest.mark.parametrize("module", [DecoratedPlainly(), Options()])
def test_other_decorated_forwards_are_followed(module: nn.Module) -> None:
    captured = capture(module, {"x": X})
    assert (captured.rung, captured.output_equal) == ("symbolic", True)


def test_values_carry_no_gradient_where_a_model_turns_gradients_on() -> None:
    def forward(x: Tensor) -> Tensor:
        with torch.enable_grad():
            return (x.requires_grad_() * 2).detach()

    captured = capture(Function(forward), {"x": X}, rung="record")
    assert not any(value.requires_grad for value in captured.values.values())


def test_inputs_are_checked_against_forward() -> None:
    with pytest.raises(InputError, match="no input named 'bais'; did you mean 'bias'"):
        capture(Linear(), {"x": X, "bais": X})
    with pytest.raises(InputError, match="needs x; got bias"):
        capture(Linear(), {"bias": X})
    with pytest.raises(OptionInvalid, match="did you mean 'symbolic'"):
        capture(Linear(), {"x": X}, rung="symbolik")  # type: ignore[arg-type]


def test_progress_is_reported_and_can_cancel() -> None:
    seen: list[Progress] = []
    capture(Linear(), {"x": X}, progress=seen.append)
    assert [p.stage for p in seen[:2]] == ["run", "capture"]
    assert (seen[-1].stage, seen[-1].done) == ("propagate", seen[-1].total)

    def cancel(progress: Progress) -> None:
        if progress.done == 3:
            raise Cancelled("enough")

    module = Restless()
    with pytest.raises(Cancelled):
        capture(module, {"x": X}, progress=cancel)
    assert module.calls == 0


def test_shared_and_frozen_parameters_are_marked() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    module[0].bias.requires_grad_(False)
    graph = capture(module, {"input": X}).graph
    parameters = {p.name: p for m in graph.modules for p in m.parameters}
    assert parameters["1.weight"].same_as == "0.weight"
    assert not parameters["0.bias"].trainable
    assert graph.parameter_count == 9 + 3 + 3


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ([torch.tensor([math.nan, 1])], [torch.tensor([math.nan, 1])], True),
        ([torch.tensor([math.nan, 1])], [torch.tensor([1, math.nan])], False),
        ([torch.tensor([math.inf])], [torch.tensor([torch.finfo(torch.float32).max])], False),
        ([torch.tensor([1.0])], [torch.tensor([1.0 + 2**-23])], False),
        ([torch.tensor([1])], [torch.tensor([1.0])], False),
        ([torch.tensor([1])], {"0": torch.tensor([1])}, True),
        ([torch.tensor([1])], [torch.tensor([1]), torch.tensor([1])], False),
        ((torch.tensor(True), 3), (torch.tensor(True), 4), False),
    ],
)
def test_bit_equal(a: object, b: object, same: bool) -> None:
    assert bit_equal(a, b) is same


class Mismatched(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@pytest.mark.parametrize("rung", ["symbolic", "record", "export"])
def test_what_pytorch_logs_of_an_error_is_not_heard(rung: Rung) -> None:
    heard: list[logging.LogRecord] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record)

    handler = Listener()
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(handler)
    try:
        with pytest.raises(CaptureFailed, match="broadcast"):
            capture(Mismatched(), {"x": torch.ones(2), "y": torch.ones(3)}, rung=rung, values=False)
        assert not heard
        with FakeTensorMode(), pytest.raises(RuntimeError, match="broadcast"):
            _ = torch.ones(2) + torch.ones(3)
        assert heard
    finally:
        logger.removeHandler(handler)
