"""The `export` rung: torch.export, which needs no weights and so no numbers; the graph is one of ATen's ops.

Sizes that are to be symbols are followed for a limited time. Where that fails they are numbers; and where torch.export
cannot follow a model at all and its weights are there, torch.export.draft_export goes on with the numbers at hand. Each
step down is told in a note.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from sympy import Expr, Integer, Symbol
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_unflatten

from fxtrace.capture.constants import fold_constants
from fxtrace.capture.convert import to_graph
from fxtrace.capture.fakes import with_fakes, without_weights
from fxtrace.capture.graph_module import maker
from fxtrace.capture.quiet import quiet
from fxtrace.capture.run import Run, Taken, copies, model_errors, needing_values
from fxtrace.capture.unlift import Unlifted
from fxtrace.errors import CaptureFailed
from fxtrace.ir.trace import Progress
from fxtrace.shapes import tensor_spec


def export(run: Run) -> Taken:
    """Exports the module, with no compute; what is on the meta device is taken for a tensor on the CPU.

    Raises:
        CaptureFailed: torch.export cannot follow the module.
    """
    program, given_up = _program(run)
    names, told = ({}, given_up) if given_up else _names(run, program)
    unlifted = Unlifted(run.module, program, names)
    graph = to_graph(run.module, unlifted.graph, unlifted.values)
    run.rewind()
    with model_errors("the captured graph raised"):
        known = fold_constants(unlifted.root(), unlifted.graph, unlifted.sizes, copies(run.inputs))
    # Without the blocks' autocast modes, what was computed in them may come out in another precision.
    dtypes = {name: spec.dtype for name, spec in graph.tensors()}
    known = {name: tensor for name, tensor in known.items() if tensor_spec(tensor).dtype == dtypes[name]}
    symbols = ", ".join(dict.fromkeys(map(str, names.values())))
    sizes = f"Symbols: {symbols}; other sizes are" if symbols else "Sizes are"
    notes = (f"{sizes} numbers as this input has them.", *told)
    made = None if without_weights(run.module) else maker(unlifted.root(), unlifted.graph, graph.name)
    return Taken(graph, {}, known, None, unlifted.memory.bases, notes, make_graph_module=made)


def _program(run: Run) -> tuple[ExportedProgram, tuple[str, ...]]:
    """The program of the first way that works, and a note for each that does not."""
    notes: list[str] = []
    has_weights = not without_weights(run.module)
    if run.symbolic:
        try:
            return _exported(run, symbolic=True), ()
        except _TimeUp:
            reason = f"following them took more than {run.symbolic_timeout:g} s of computing; raise symbolic_timeout"
        except CaptureFailed as error:
            reason = error.message
        notes.append(f"The sizes that were to be symbols are numbers: {reason}.")
    try:
        return _exported(run), tuple(notes)
    except CaptureFailed as error:
        if not has_weights:
            raise
        try:
            program = _exported(run, torch.export.draft_export)
        except CaptureFailed:
            raise error from None
        return program, (
            *notes,
            "Partial, by torch.export.draft_export: the graph holds for inputs whose numbers lead the same way. "
            f"Without it, {error.message}.",
        )


def _exported(run: Run, way: Callable[..., ExportedProgram] = torch.export.export, *, symbolic: bool = False) -> Any:
    """Exports the module from the state in which it was found.

    Raises:
        CaptureFailed: it cannot be exported this way.
        _TimeUp: following symbolic sizes took too long.
    """
    run.rewind()
    given = with_fakes(run.module, copies(run.inputs))
    watch = _Watch(run.report, run.symbolic_timeout if symbolic else None)
    with model_errors("torch.export cannot follow this model", run.module), needing_values(), quiet():
        try:
            with watch, run.inside:
                shapes = _dynamic(run) if symbolic else None
                names = list(given)
                first = tuple(given.pop(name) for name in names[: run.by_position])
                program = way(run.module, first, given, dynamic_shapes=shapes, strict=False)
        finally:
            if watch.stopped is not None:  # the model may have caught it, or torch.export put its own error around it
                raise watch.stopped
    return program


class _TimeUp(CaptureFailed):
    """Following symbolic sizes took too long."""


class _Watch(TorchFunctionMode):
    """Looks at each call of PyTorch's whether the caller, or the clock, says stop: a thread cannot be ended otherwise.

    One call may itself take seconds, where sizes have grown into long expressions. The clock is the thread's own, so
    that what comes out does not hang on what else the machine does.
    """

    def __init__(self, report: Callable[[Progress], None], seconds: float | None) -> None:
        super().__init__()
        self.stopped: Exception | None = None
        self._report = report
        self._until = None if seconds is None else time.thread_time() + seconds
        self._calls = 0

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._calls += 1
        try:
            self._report(Progress("export", self._calls))
            if self._until is not None and time.thread_time() > self._until:
                raise _TimeUp("following symbolic sizes took too long")
        except Exception as stopped:
            self.stopped = stopped
            raise
        return function(*args, **(kwargs or {}))


def _dynamic(run: Run) -> dict[str, Any]:
    """What torch.export is to keep as symbols, input by input."""
    named = {name: {i for i, size in enumerate(sizes) if size} for name, sizes in run.symbolic.items()}
    examples = {run.inputs[name].shape[i] for name, sizes in named.items() for i in sizes}
    # A mask's sizes follow those of the ids it is for: kept as numbers, they would fix them.
    following = {
        name: {i for i, size in enumerate(tensor.shape) if size in examples}
        for name, tensor in run.inputs.items()
        if isinstance(tensor, Tensor) and name not in named
    }
    kept = named | following
    return {name: dict.fromkeys(kept[name], Dim.AUTO) if name in kept else None for name in run.inputs}


def _names(run: Run, program: ExportedProgram) -> tuple[dict[Symbol, Symbol], tuple[str, ...]]:
    """Names for torch.export's own symbols, and a note for each size that is no symbol of its own."""
    spec = program.call_spec.in_spec
    if not run.symbolic or spec is None:
        return {}, ()
    values = {node.name: node.meta["val"] for node in program.graph.find_nodes(op="placeholder")}
    _, inputs = tree_unflatten([values.get(str(name)) for name in program.graph_signature.user_inputs], spec)
    asked = [
        (where, name, _expression(size))
        for where, sizes in run.symbolic.items()
        for name, size in zip(sizes, inputs[where].shape, strict=True)
        if name
    ]
    following = [
        (where, f"{where}_{i}", _expression(size))
        for where, tensor in inputs.items()
        if isinstance(tensor, Tensor) and where not in run.symbolic
        for i, size in enumerate(tensor.shape)
    ]
    names: dict[Symbol, Symbol] = {}
    for _, name, size in (*asked, *following):
        if isinstance(size, Symbol):
            names.setdefault(size, Symbol(name, integer=True, positive=True))
    told = []
    for where, name, size in asked:
        if size.is_number:
            told.append(f"'{name}' of '{where}' is no symbol: the model fixes this size at {size}.")
        elif str(shown := size.xreplace(names)) != name:
            told.append(f"'{name}' of '{where}' is written {shown}: the model ties the two.")
    return names, tuple(told)


def _expression(size: Any) -> Expr:
    return size.node.expr if isinstance(size, torch.SymInt) else Integer(size)
