"""What every rung is given, what it gives back, and how the user's exceptions are reported."""

from __future__ import annotations

import copy
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._pytree import tree_map

from fxtrace.capture.source import code_source, user_source
from fxtrace.errors import CaptureFailed, FxtraceError
from fxtrace.graph import Graph, Source
from fxtrace.ir.trace import SYMBOLIC_TIMEOUT, Progress
from fxtrace.shapes import Sink, has_tensor, parts


@dataclass(frozen=True, slots=True)
class Run:
    """One call `module(**inputs)` to be captured.

    Attributes:
        values: keep every tensor; False propagates shapes with no compute.
        eager: what the module itself returned; None without values.
        report: called as the work goes on.
        rewind: puts the module and the random states back as they were before the call; for a rung to call before it
            runs the module, and before it runs the graph.
        symbolic: names for sizes of the inputs that are to stay symbols, by input; an empty name for one that is not.
        symbolic_timeout: seconds of computing that following these may take.
        inside: entered around each call of the module.
        by_position: how many of the inputs, from the first on, go by position.
    """

    module: nn.Module
    inputs: Mapping[str, Any]
    values: bool
    eager: object
    report: Callable[[Progress], None]
    rewind: Callable[[], None]
    symbolic: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    symbolic_timeout: float = SYMBOLIC_TIMEOUT
    inside: AbstractContextManager[object] = field(default_factory=nullcontext)
    by_position: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """What a rung captured; `Capture` says what each is.

    `doubt` says why another rung should be tried; empty where there is no reason to.
    """

    graph: Graph
    values: Mapping[str, Tensor] = field(repr=False)
    known: Mapping[str, Tensor] = field(repr=False)
    output_equal: bool | None
    bases: Mapping[str, str] = field(repr=False)
    notes: tuple[str, ...] = ()
    doubt: str = ""
    make_graph_module: Callable[[], fx.GraphModule] | None = field(default=None, repr=False)


def copies(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with every tensor copied: a forward may write to its inputs."""
    return {name: map_tensors(lambda tensor: tensor.detach().clone(), value) for name, value in inputs.items()}


def map_tensors(function: Callable[[Tensor], Tensor], nest: Any) -> Any:
    """A nest like this one, with the function applied to each tensor."""

    def changed(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        if not has_tensor(leaf):
            return leaf
        # An object that torch's pytrees do not know.
        copied = copy.copy(leaf)
        for access, key, value in parts(leaf):
            if access is getattr:
                object.__setattr__(copied, key, map_tensors(function, value))
            else:
                copied[key] = map_tensors(function, value)
        return copied

    return tree_map(changed, nest)


def keeping(kept: dict[str, Tensor]) -> Sink:
    """A sink that keeps a contiguous copy of every tensor."""

    def keep(name: str, tensor: Tensor) -> None:
        value = tensor.clone(memory_format=torch.contiguous_format)
        kept[name] = value.detach() if value.requires_grad else value  # a model may have turned gradients on

    return keep


def show_source(source: Source | None) -> str:
    """` at file:line (code)`, for the end of a message; nothing where the place is not known."""
    return f" at {source.file}:{source.line} (`{source.code}`)" if source else ""


def error_source(error: BaseException) -> Source | None:
    """The user's line that an exception comes from."""
    frames = reversed(list(traceback.walk_tb(error.__traceback__)))
    return next(filter(None, (user_source(frame, line) for frame, line in frames)), None)


def forward_source(module: nn.Module) -> Source | None:
    """The line where a module's forward begins, where it is the user's."""
    forward = inspect.unwrap(module.forward)
    code = getattr(forward, "__code__", None)
    return code and code_source(code, forward.__globals__.get("__package__") or "")


@contextmanager
def model_errors(what: str, module: nn.Module | None = None) -> Iterator[None]:
    """Reports an exception of the user's code with the user's line; fxtrace's own pass through.

    Where no line of the user's was running, it is the one where `module`'s forward begins.

    Raises:
        CaptureFailed: in place of any exception that is not an `FxtraceError`; `what` begins its message.
    """
    try:
        yield
    except FxtraceError:
        raise
    except Exception as error:
        source = error_source(error) or (forward_source(module) if module is not None else None)
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise CaptureFailed(
            f"{what}{show_source(source)}: {type(error).__name__}: {first_line}",
            error=type(error).__name__,
            file=source.file if source else "",
            line=source.line if source else "",
        ) from error


class ValuesNeeded(CaptureFailed):
    """A model's path or sizes depend on numbers, and there are none."""


def _of_fakes() -> tuple[type[Exception], ...]:
    """The exceptions of fake tensors whose numbers are wanted."""
    # With SymPy, which takes a while to import: where the module is not there, nothing of it was raised.
    shapes = sys.modules.get("torch.fx.experimental.symbolic_shapes")
    of_symbols = () if shapes is None else (shapes.GuardOnDataDependentSymNode,)
    return DataDependentOutputException, DynamicOutputShapeException, *of_symbols


@contextmanager
def needing_values() -> Iterator[None]:
    """Reports that a model looked at numbers where there are none.

    Raises:
        ValuesNeeded: in place of the exceptions of fake tensors.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, _of_fakes()):
            raise
        source = error_source(error)
        raise ValuesNeeded(
            f"the model's path depends on the numbers in a tensor{show_source(source)}, and a capture without values "
            "has none; capture it with values",
            error=type(error).__name__,
            file=source.file if source else "",
            line=source.line if source else "",
        ) from error
