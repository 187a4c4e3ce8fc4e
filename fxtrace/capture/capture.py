"""One run of a module, captured: its graph with specs, its values, and whether the graph computes the same."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy

from fxtrace.capture.attention import StepByStep
from fxtrace.capture.callables import as_module
from fxtrace.capture.calls import bind, check, invoke
from fxtrace.capture.compare import largest_difference
from fxtrace.capture.fakes import without_weights
from fxtrace.capture.record import record
from fxtrace.capture.restore import as_found
from fxtrace.capture.run import Run, Taken, copies, model_errors
from fxtrace.capture.symbolic import symbolic as symbolic_rung
from fxtrace.errors import CaptureFailed, InputError, OptionInvalid, unknown
from fxtrace.graph import Graph
from fxtrace.ir.trace import RUNGS, SYMBOLIC_TIMEOUT, Progress, Rung

_LADDER: tuple[Rung, ...] = ("symbolic", "record")
"""The rungs that are tried where none is asked for, in this order."""


def _export(run: Run) -> Taken:
    from fxtrace.capture.export import export  # with SymPy, which takes longer to import than most models to capture

    return export(run)


_RUNGS: Mapping[Rung, Callable[[Run], Taken]] = {"symbolic": symbolic_rung, "record": record, "export": _export}

RUNG_NOTES: Mapping[Rung, tuple[str, ...]] = {
    "symbolic": (
        "Branches on Python values were taken as they fell at capture; sizes are followed, so the graph holds for "
        "other sizes too.",
    ),
    "record": (
        "This is the path that this input took: sizes, branches and loops are fixed as they fell.",
        "A call that gave back its own input (dropout in evaluation mode, `.to()` or `.contiguous()` with nothing to "
        "do) has no node.",
    ),
    "export": (
        "This is a graph of ATen's ops, with shapes and without values; branches are taken as this input took them.",
        "A source line is the innermost one in a module's forward: torch.export notes no other.",
    ),
}

_UNFUSED = "Fused attention was computed step by step, not by the kernels that the model runs with."

_ALONE = threading.RLock()
"""One capture at a time in a process: torch.fx patches nn.Module while it traces, and there is one random state."""


@dataclass(frozen=True, slots=True)
class Capture:
    """A captured run.

    Attributes:
        graph: every node with its specs, kind, module and source line; no roles yet.
        values: every tensor as it was when it was produced, contiguous, by tensor name; empty without values.
        known: what labelling may look at: `values`, or without them the tensors that the graph computes without
            parameters, such as masks; from sizes, buffers and, by `export`, the inputs.
        rung: the rung that ran; `rung_notes` say what it cannot show, and why the rungs before it did not do.
        output_equal: whether the graph's output is bit-equal to the module's own; None without values.
        bases: for each tensor in the memory of an earlier one (a view, a part, or what a call wrote in place), the
            name of the earliest.
    """

    graph: Graph
    values: Mapping[str, Tensor] = field(repr=False)
    known: Mapping[str, Tensor] = field(repr=False)
    rung: Rung
    rung_notes: tuple[str, ...]
    output_equal: bool | None
    bases: Mapping[str, str] = field(repr=False)
    make_graph_module: Callable[[], GraphModule] | None = field(default=None, repr=False)

    @property
    def graph_module(self) -> GraphModule:
        """The graph as torch.fx has it: it takes what the module takes, and returns what it returns.

        Its parameters are the module's own; the names of its nodes are those of `graph`. It is made when it is first
        asked for.

        Raises:
            CaptureFailed: it was captured without weights or values; or a constant cannot be written as code.
        """
        if self.make_graph_module is None:
            raise CaptureFailed("expected a capture with weights and values, for there to be something to run")
        return self.make_graph_module()


def capture(
    module: nn.Module | Callable[..., Any],
    inputs: Mapping[str, Any] = MappingProxyType({}),
    *,
    args: tuple[Any, ...] = (),
    rung: Rung | Literal[""] = "",
    values: bool = True,
    training: bool = False,
    symbolic: Mapping[str, tuple[str, ...]] | None = None,
    symbolic_timeout: float = SYMBOLIC_TIMEOUT,
    unfused: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Capture:
    """Captures one call `module(*args, **inputs)`.

    The module, its buffers and mode, the inputs and the random state are left as they were found. With values, the
    module also runs once by itself, from the same random state, and the two outputs are compared. Captures in several
    threads take turns.

    Args:
        module: any module; it is traced in evaluation mode unless `training`. Or any callable: the modules that it
            uses are submodules of the graph's root. Of a compiled module it is the module inside; a note says so.
        inputs: tensors, nests of them, flags, None: by the names of `forward`'s parameters; parameters with defaults
            may be left out.
        args: those that go by position.
        rung: the rung to use; empty lets fxtrace choose: the first of `symbolic` and `record` that can follow the
            module, or `export` where its parameters are on the meta device.
        values: keep every tensor; False propagates shapes on fake tensors, with no compute. `export` has no values.
        training: run in training mode.
        symbolic: names for sizes of the inputs, such as `{"ids": ("batch", "length")}`, that `export` keeps as symbols
            (see `TensorSpec.symbolic`); an empty name for a size that is not one. Sizes of one name are equal, and 2 or
            more in the example. One that the model itself fixes comes out as a number, and a note says so. Of inputs
            that are not named, sizes that equal these in the example may follow them.
        symbolic_timeout: seconds of computing that following symbolic sizes may take, looked at between calls; after
            that they are numbers, and a note says so.
        unfused: compute `F.scaled_dot_product_attention` step by step, so that its scores and weights are tensors of
            the graph. Its output then differs from the fused kernels' in the last digits; a note says by how much.
        progress: called as the work goes on; an exception it raises stops the work.

    Raises:
        InputError: an input is unknown, one without a default is missing, or `symbolic` does not fit the inputs.
        OptionInvalid: the rung is unknown, or is not `export` where sizes are to be symbolic; or the timeout is not
            above 0.
        CaptureFailed: the module raised, or no rung can follow it; the message has the user's own line.
    """
    module, unwrapped = as_module(module)
    inputs, by_position = bind(module, args, inputs)
    check(module, inputs, by_position)
    if rung and rung not in RUNGS:
        raise OptionInvalid(unknown("capture rung", rung, RUNGS), field="rung", rung=rung)
    symbolic = {name: sizes for name, sizes in (symbolic or {}).items() if any(sizes)}
    if symbolic and rung not in ("", "export"):
        raise OptionInvalid(f"symbolic sizes need the rung 'export', not '{rung}'", field="rung", rung=rung)
    if not symbolic_timeout > 0:
        message = f"symbolic_timeout: expected seconds above 0, got {symbolic_timeout:g}"
        raise OptionInvalid(message, field="symbolic_timeout", symbolic_timeout=symbolic_timeout)
    rungs = (rung,) if rung else ("export",) if symbolic or without_weights(module) else _LADDER
    values = values and rungs != ("export",)
    report = progress or (lambda _: None)
    _check_symbolic(symbolic, inputs)
    _check_parameters(module)
    with in_turn(module) as rewind:
        module.train(training)
        eager: object = None
        if values:
            report(Progress("run"))
            with model_errors("the model raised"):
                eager = invoke(module, copies(inputs), by_position)
        inside: AbstractContextManager[object] = StepByStep() if unfused else nullcontext()
        notes: tuple[str, ...] = ()
        if unfused:
            notes, fused = (_UNFUSED,), eager
            if values:
                rewind()
                with model_errors("the model raised"), inside:
                    eager = invoke(module, copies(inputs), by_position)
                notes = (
                    f"{_UNFUSED} The output differs from theirs by at most {largest_difference(fused, eager):.1e}.",
                )
        run = Run(module, inputs, values, eager, report, rewind, symbolic, symbolic_timeout, inside, by_position)
        taken, chosen, refused = _climb(run, rungs)
    return Capture(
        graph=taken.graph,
        values=taken.values,
        known=taken.known,
        rung=chosen,
        rung_notes=(*unwrapped, *RUNG_NOTES[chosen], *notes, *taken.notes, *refused),
        output_equal=taken.output_equal,
        bases=taken.bases,
        make_graph_module=taken.make_graph_module,
    )


def _climb(run: Run, rungs: tuple[Rung, ...]) -> tuple[Taken, Rung, list[str]]:
    """The first rung that can follow the run, and for each before it one line that says why it was passed over."""
    refused: list[str] = []
    for rung in rungs[:-1]:
        run.report(Progress("capture"))
        try:
            taken = _RUNGS[rung](run)
        except CaptureFailed as error:
            refused.append(f"Not {rung}: {error.message}")
            continue
        if not taken.doubt:
            return taken, rung, refused
        refused.append(f"Not {rung}: {taken.doubt}")
    run.report(Progress("capture"))
    return _RUNGS[rungs[-1]](run), rungs[-1], refused


@contextmanager
def in_turn(module: nn.Module) -> Iterator[Callable[[], None]]:
    """Within, no other capture runs in this process, and the module may be run and traced; see `as_found`."""
    with _ALONE, as_found(module) as rewind, _unfused(), _uncompiled(), torch.no_grad():
        yield rewind


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Runs what torch.compile compiled, wherever in the model, as it was written: compiled code has no calls to see."""
    if "torch._dynamo.eval_frame" not in sys.modules:  # then nothing is compiled; importing it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _unfused() -> Iterator[None]:
    """Turns off the fused kernels of nn.MultiheadAttention and nn.Transformer: they show nothing of what they do."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _check_parameters(module: nn.Module) -> None:
    for path, each in module.named_modules():
        if any(is_lazy(parameter) for parameter in (*each._parameters.values(), *each._buffers.values())):
            raise CaptureFailed(
                f"'{path or type(each).__name__}' ({type(each).__name__}) has parameters without a shape yet: expected "
                "an initialised module; call the model once on an example input before it is captured",
                module=path,
            )


def _check_symbolic(symbolic: Mapping[str, tuple[str, ...]], inputs: Mapping[str, Any]) -> None:
    sizes: dict[str, tuple[str, int]] = {}
    for name, given in symbolic.items():

        def refuse(problem: str, at: str = name) -> InputError:
            return InputError(problem, field=f"symbolic.{at}", input=at)

        if not isinstance(tensor := inputs.get(name), Tensor):
            tensors = [each for each, value in inputs.items() if isinstance(value, Tensor)]
            raise refuse(unknown("tensor among the inputs", name, tensors))
        if len(given) != tensor.dim():
            raise refuse(
                f"'{name}' is of shape {tuple(tensor.shape)}: expected {tensor.dim()} names, empty for a size that is "
                f"to be a number, got {len(given)} ({','.join(given)})"
            )
        for size, each in zip(given, tensor.shape, strict=True):
            if not size:
                continue
            if not size.isidentifier():
                raise refuse(
                    f"'{size}' is no name for a size of '{name}': expected letters, digits and _, such as batch"
                )
            if each < 2:
                raise refuse(
                    f"'{size}' of '{name}' is {each}: a size that is to be a symbol needs an example of 2 or more, "
                    "since 1 is broadcast"
                )
            where, known = sizes.setdefault(size, (name, each))
            if known != each:
                raise refuse(f"'{size}' is {known} in '{where}' and {each} in '{name}': sizes of one name are equal")
