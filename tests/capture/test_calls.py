"""Calls as they are made: by position and by name, with nests, flags and None; functions, methods and partials."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from fxtrace.capture import Capture, capture
from fxtrace.capture.compare import bit_equal
from fxtrace.errors import CaptureFailed, InputError, OptionInvalid

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
Pair = namedtuple("Pair", "x y")


@dataclass
class Batch:
    x: Tensor
    mask: Tensor | None = None


class Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(X)

    def forward(self) -> Tensor:
        return self.weight * 2


class Star(nn.Module):
    def forward(self, *xs: Tensor, scale: float = 1.0) -> Tensor:
        return torch.stack(xs).sum(0) * scale


class FirstThenStar(nn.Module):
    def forward(self, x: Tensor, *more: Tensor, **named: Tensor) -> Tensor:
        for each in (*more, *named.values()):
            x = x + each
        return x.tanh()


class ByPosition(nn.Module):
    def forward(self, x: Tensor, y: Tensor | None = None, /, z: Tensor | None = None) -> Tensor:
        return sum((each for each in (y, z) if each is not None), x)


class ByName(nn.Module):
    def forward(self, *, x: Tensor, mode: str = "sum") -> Tensor:
        return x.sum(0) if mode == "sum" else x.mean(0)


class Nests(nn.Module):
    def forward(self, nest: Any) -> dict[str, Any]:
        x = nest.x if isinstance(nest, Batch | Pair) else nest["a"][0]["x"] if isinstance(nest, dict) else nest[0]
        return {"doubled": x * 2, "list": [x + 1, (x + 2, None)]}


class Flagged(nn.Module):
    def forward(self, x: Tensor, flag: bool = False, times: int = 1) -> Tensor:
        for _ in range(times):
            x = x.sin() if flag else x.cos()
        return x


class WritesItsInput(nn.Module):
    def forward(self, x: Tensor, log: dict[str, Any]) -> Tensor:
        log["seen"] = log.get("seen", 0) + 1
        return x.add_(1)


class Returns(nn.Module):
    def forward(self, x: Tensor) -> Batch:
        return Batch(x * 2, x > 0)


class Modes(nn.Module):
    def forward(self, x: Tensor, nest: Any = None) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = x @ x.T
        return y.float() + 1


CALLS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "no arguments": (Nothing(), (), {}),
    "*xs": (Star(), (X, X + 1, X * 2), {}),
    "*xs and a keyword": (Star(), (X, X + 1), {"scale": 0.5}),
    "first and *more": (FirstThenStar(), (X, X + 1), {}),
    "first, *more and **named": (FirstThenStar(), (X, X + 1), {"other": X * 3}),
    "positional only": (ByPosition(), (X, X + 1), {}),
    "positional only and a keyword": (ByPosition(), (X,), {"z": X}),
    "keyword only": (ByName(), (), {"x": X}),
    "a string decides": (ByName(), (), {"x": X, "mode": "mean"}),
    "dict of lists of dicts": (Nests(), ({"a": [{"x": X}], "b": None},), {}),
    "dataclass": (Nests(), (Batch(X),), {}),
    "namedtuple": (Nests(), (Pair(X, X),), {}),
    "list": (Nests(), ([X, 3, "text"],), {}),
    "a flag decides": (Flagged(), (X, True), {"times": 3}),
    "a flag left out": (Flagged(), (X,), {}),
    "None": (ByPosition(), (X, None), {"z": None}),
    "empty tensor": (Flagged(), (X[:0],), {}),
    "the same tensor twice": (Star(), (X, X), {}),
    "a leaf that wants gradients": (Flagged(), (X.clone().requires_grad_(),), {}),
    "writes to its input": (WritesItsInput(), (X,), {"log": {}}),
    "returns a dataclass": (Returns(), (X,), {}),
    "sets mixed precision": (Modes(), (X,), {"nest": [X]}),
    "LSTM with a state": (nn.LSTM(4, 5), (X[None], (torch.zeros(1, 3, 5), torch.zeros(1, 3, 5))), {}),
    "multi-head attention": (nn.MultiheadAttention(4, 2), (X, X, X), {"need_weights": False}),
    "transformer": (nn.Transformer(4, 2, 1, 1, 8, batch_first=True), (X[None], X[None]), {}),
}


def called(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    return copy.deepcopy(CALLS[name])


@pytest.mark.parametrize("rung", ["", "record"])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_captured_as_it_is_made(name: str, rung: Any) -> None:
    module, args, kwargs = called(name)
    module.eval()
    again, other_args, other_kwargs = called(name)
    with torch.no_grad(), without_fast_paths():
        expected = again.eval()(*other_args, **other_kwargs)
    taken = capture(module, kwargs, args=args, rung=rung)
    assert taken.output_equal
    _, untouched_args, untouched_kwargs = called(name)
    assert bit_equal((args, kwargs), (untouched_args, untouched_kwargs))  # copies were run

    modes = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    made = taken.graph_module
    assert isinstance(made, fx.GraphModule)
    made.graph.lint()
    assert [node.name for node in made.graph.nodes] == [node.name for node in taken.graph.nodes]
    with torch.no_grad():
        result = made(*args, **kwargs)
    assert modes == (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"))
    if isinstance(result, dict) and isinstance(expected, Batch):
        result = Batch(**result)
    assert flat(result) == flat(expected)


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """A capture takes nn.Transformer's fused kernels apart, which round otherwise."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def flat(value: Any) -> list[Any]:
    """Leaves, tensors as nested lists; a list and a tuple are one."""
    if isinstance(value, Tensor):
        return [value.tolist()]
    if isinstance(value, Batch):
        return [*flat(value.x), *flat(value.mask)]
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in (key, *flat(item))]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in flat(item)]
    return [value]


def test_a_graph_module_shares_the_parameters_and_can_be_kept() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    for rung in ("symbolic", "record", "export"):
        made = capture(module, args=(X,), rung=rung).graph_module
        assert {id(each) for each in made.parameters()} == {id(each) for each in module.parameters()}
        loaded = pickle.loads(pickle.dumps(made))
        assert torch.equal(loaded(X), module(X))
        assert torch.equal(fx.Interpreter(made).run(X), module(X))
        made(X).sum().backward()
        assert all(each.grad is not None for each in module.parameters())
        module.zero_grad()


def test_without_values_there_is_nothing_to_run() -> None:
    taken = capture(nn.LSTM(4, 5), args=(X[None],), rung="record", values=False)
    with pytest.raises(CaptureFailed, match="with weights and values"):
        _ = taken.graph_module


# ------------------------------------------------------------------------------------------------------- callables

LINEAR = nn.Linear(4, 2)


def uses_a_global(x: Tensor) -> Tensor:
    return LINEAR(x).relu()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 2)

    def encode(self, x: Tensor, scale: float = 2.0) -> Tensor:
        return self.inner(x) * scale


class Wrapper:
    def __init__(self) -> None:
        self.model = Model()

    def __call__(self, x: Tensor) -> Tensor:
        return self.model.encode(x)

    def run(self, x: Tensor) -> Tensor:
        return self.model.encode(x, 3.0)


def callables() -> dict[str, tuple[Any, int]]:
    """Callables, and how many parameters they use."""
    inner = nn.Linear(4, 2)
    layers = [nn.Linear(4, 4), nn.Linear(4, 4)]

    def closes_over(x: Tensor) -> Tensor:
        return inner(x).softmax(-1)

    def over_a_list(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    def calls(x: Tensor) -> Tensor:
        return closes_over(x) + 1

    @functools.wraps(closes_over)
    def wrapped(*args: Any, **kwargs: Any) -> Tensor:
        return closes_over(*args, **kwargs)

    def with_a_module(module: nn.Module, x: Tensor) -> Tensor:
        return module(x)

    return {
        "closure": (closes_over, 10),
        "list in a closure": (over_a_list, 40),
        "function in a closure": (calls, 10),
        "wrapped": (wrapped, 10),
        "global": (uses_a_global, 10),
        "lambda": (lambda x: inner(x) * 2, 10),
        "method": (Model().encode, 10),
        "partial": (functools.partial(Model().encode, scale=5.0), 10),
        "partial of a module": (functools.partial(with_a_module, inner), 10),
        "callable object": (Wrapper(), 10),
        "method of an object": (Wrapper().run, 10),
        "PyTorch's own": (torch.sin, 0),
        "functional": (functools.partial(functional.softmax, dim=-1), 0),
    }


@pytest.mark.parametrize("name", callables())
def test_a_callable_is_captured_with_its_parameters(name: str) -> None:
    function, parameters = callables()[name]
    taken = capture(function, args=(X,))
    with torch.no_grad():
        assert torch.equal(next(reversed([*taken.values.values()])), function(X))
        assert torch.equal(taken.graph_module(X), function(X))
    assert taken.output_equal
    assert taken.graph.parameter_count == parameters
    assert not any("constants here" in note for note in taken.rung_notes), taken.rung_notes


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
def test_what_is_wrapped_around_a_module_is_taken_off() -> None:
    module = nn.Linear(4, 2)
    compiled: tuple[Any, ...] = (
        torch.compile(module),
        torch.compile(torch.compile(module)),
        torch.compile(module.forward),
    )
    for wrapper in (*compiled, nn.DataParallel(module), nn.DataParallel(torch.compile(module))):
        taken: Capture = capture(wrapper, args=(X,))
        assert taken.graph.name == "Linear"
        assert "taken off" in taken.rung_notes[0]
        with torch.no_grad():
            assert torch.equal(taken.graph_module(X), module(X))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
def test_what_is_compiled_within_a_model_runs_as_it_was_written() -> None:
    inside = nn.Linear(4, 4)
    in_place = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    in_place[0].compile()
    whole = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    whole.compile()
    function = torch.compile(lambda x: inside(x).relu())
    compiled: Any = torch.compile(inside)
    for model in (nn.Sequential(compiled, nn.ReLU()), in_place, whole, function):
        taken = capture(model, args=(X,))
        assert [node.kind for node in taken.graph.nodes if node.op.startswith("call")] == ["linear", "activation"]
        assert taken.graph.parameter_count == 20
        with torch.no_grad():
            assert torch.equal(taken.graph_module(X), model(X))


@pytest.mark.parametrize(
    ("model", "args", "kwargs", "error", "message"),
    [
        (3, (), {}, OptionInvalid, "got int"),
        (nn.Linear, (X,), {}, OptionInvalid, "the class Linear"),
        (nn.Linear(4, 2), (X, X), {}, InputError, "takes 1 inputs by position"),
        (nn.Linear(4, 2), (X,), {"input": X}, InputError, "given twice"),
        (nn.Linear(4, 2), (), {}, InputError, "needs input"),
        (nn.Linear(4, 2), (), {"inputs": X}, InputError, "did you mean 'input'"),
        (ByPosition(), (), {"x": X}, InputError, "by position only"),
        (Star(), (X,), {"scales": 2}, InputError, "did you mean 'scale'"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        capture(model, kwargs, args=args)


# ------------------------------------------------------------------------------------------- other tools' wrappers

WRAPS = {
    "functools.wraps": "functools.wraps(f)(lambda *a, **k: f(*a, **k))",
    "a bare closure": "lambda *a, **k: f(*a, **k)",
    "a renamed closure": "named(lambda *a, **k: f(*a, **k), f)",
    "a partial": "named(functools.partial(f), f)",  # PyTorch's own code needs the name
    "a callable object": "Counting(f)",
    "wrapped twice": "functools.wraps(f)(functools.partial(functools.wraps(f)(lambda *a, **k: f(*a, **k))))",
    "a C wrapper": "functools.lru_cache(maxsize=0)(f)",
}

SCRIPT = """
import functools, sys
import torch
from torch import nn
from torch.nn import functional

class Counting:
    def __init__(self, f): self.f = f; self.__name__ = f.__name__
    def __call__(self, *a, **k): return self.f(*a, **k)

def named(w, f): w.__name__ = f.__name__; return w

def wrapped(f):
    return {wrapper}

def wrap():
    for name in ("multi_head_attention_forward", "scaled_dot_product_attention", "softmax", "linear"):
        setattr(functional, name, wrapped(getattr(functional, name)))

if "{when}" == "before": wrap()
import fxtrace.capture
if "{when}" == "after": wrap()
module = nn.MultiheadAttention(8, 2).eval()
x = torch.randn(3, 1, 8)
taken = fxtrace.capture.capture(module, args=(x, x, x))
assert taken.output_equal, taken.rung_notes
print(len(taken.graph.nodes))
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("wrapper", WRAPS)
def test_functions_that_another_tool_has_wrapped(wrapper: str, when: str) -> None:
    script = SCRIPT.replace("{wrapper}", WRAPS[wrapper]).replace("{when}", when)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
