"""One run of a module, captured: its graph with specs, its values, and whether the graph computes the same."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fxtrace.capture.constants import fold_constants
from fxtrace.capture.convert import to_graph
from fxtrace.capture.restore import as_found
from fxtrace.capture.source import user_source
from fxtrace.capture.symbolic import trace_symbolically
from fxtrace.errors import CaptureFailed, FxtraceError, InputError, OptionInvalid, unknown
from fxtrace.graph import Graph
from fxtrace.shapes import ShapeInterpreter, leaves
from fxtrace.trace import RUNGS, Progress, Rung

RUNG_NOTES: Mapping[Rung, tuple[str, ...]] = {
    "symbolic": (
        "Branches on Python values were taken as they fell at capture; sizes are followed, so the graph holds for "
        "other sizes too.",
    ),
}


@dataclass(frozen=True, slots=True)
class Capture:
    """A captured run.

    Attributes:
        graph: every node with its specs, kind, module and source line; no roles yet.
        values: every tensor as it was when it was produced, contiguous, by tensor name; empty without values.
        known: what labelling may look at: `values`, or without them the tensors that the graph computes from
            buffers and sizes alone, such as masks.
        rung: the rung that ran; `rung_notes` say what it cannot show.
        output_equal: whether the graph's output is bit-equal to the module's own; None without values.
    """

    graph: Graph
    values: Mapping[str, Tensor] = field(repr=False)
    known: Mapping[str, Tensor] = field(repr=False)
    rung: Rung
    rung_notes: tuple[str, ...]
    output_equal: bool | None


def capture(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    rung: Rung | Literal[""] = "",
    values: bool = True,
    training: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Capture:
    """Captures one call `module(**inputs)`.

    The module, its buffers and mode, the inputs and the random state are left as they were found. With values, the
    module also runs once by itself, from the same random state, and the two outputs are compared.

    Args:
        module: any module; it is traced in evaluation mode unless `training`.
        inputs: tensors by the names of `forward`'s parameters; parameters with defaults may be left out.
        rung: the rung to use; empty lets fxtrace choose.
        values: keep every tensor; False propagates shapes on fake tensors, with no compute.
        training: run in training mode.
        progress: called as the work goes on; an exception it raises stops the work.

    Raises:
        InputError: an input is unknown, or one without a default is missing.
        CaptureFailed: the module raised, or the rung cannot follow it; the message has the user's own line.
    """
    if rung and rung not in RUNGS:
        raise OptionInvalid(unknown("capture rung", rung, RUNGS), field="rung", rung=rung)
    report = progress or (lambda _: None)
    _check_inputs(module, inputs)
    with as_found(module) as rewind, torch.random.fork_rng(devices=[]), torch.no_grad():
        module.train(training)
        random_state = torch.get_rng_state()
        eager: object = None
        if values:
            report(Progress("run"))
            with model_errors("the model raised"):
                eager = module(**_copies(inputs))
            rewind()
        report(Progress("capture"))
        with model_errors("symbolic tracing cannot follow this model"):
            traced = trace_symbolically(module, tuple(inputs))
        rewind()

        torch.set_rng_state(random_state)
        kept: dict[str, Tensor] = {}

        def keep(name: str, tensor: Tensor) -> None:
            kept[name] = tensor.clone(memory_format=torch.contiguous_format)

        step = None if progress is None else lambda done, total: report(Progress("propagate", done, total))
        interpreter = ShapeInterpreter(traced, keep if values else None, step)
        placeholders = [str(node.target) for node in traced.graph.find_nodes(op="placeholder")]
        mode: AbstractContextManager[object] = nullcontext()
        given = _copies(inputs)
        if not values:
            mode = fake = FakeTensorMode(allow_non_fake_inputs=True)
            given = {name: fake.from_tensor(tensor) for name, tensor in given.items()}
        with model_errors("the captured graph raised"), mode:
            result = interpreter.run(*(given[name] for name in placeholders))
        with model_errors("the captured graph raised"):
            known = kept if values else fold_constants(traced, interpreter.plain)
        graph = to_graph(module, traced, interpreter.values)
    return Capture(
        graph=graph,
        values=kept,
        known=known,
        rung="symbolic",
        rung_notes=RUNG_NOTES["symbolic"],
        output_equal=bit_equal(eager, result) if values else None,
    )


def bit_equal(a: object, b: object) -> bool:
    """Whether two nests of tensors have the same structure and the same numbers, NaN equal to NaN."""
    left, right = list(leaves(a)), list(leaves(b))
    return len(left) == len(right) and all(
        path == other_path and _same_leaf(x, y) for (path, x), (other_path, y) in zip(left, right, strict=True)
    )


def _same_leaf(x: object, y: object) -> bool:
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        return type(x) is type(y) and bool(x == y)
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    if not (x.is_floating_point() or x.is_complex()):
        return torch.equal(x, y)
    nan = x.isnan()
    return torch.equal(nan, y.isnan()) and torch.equal(x[~nan], y[~nan])


def _copies(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in inputs.items()}


def _check_inputs(module: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    parameters = inspect.signature(module.forward).parameters
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {name: p for name, p in parameters.items() if p.kind not in variadic}
    for name in inputs:
        if name not in named:
            message = f"{unknown('input', name, named)} These are the parameters of {type(module).__name__}.forward."
            raise InputError(message, field=f"inputs.{name}", input=name)
    missing = [name for name, p in named.items() if p.default is p.empty and name not in inputs]
    if missing:
        raise InputError(
            f"{type(module).__name__}.forward needs {', '.join(missing)}, and the inputs give only "
            f"{', '.join(inputs) or 'nothing'}",
            field="inputs",
            missing=", ".join(missing),
        )


@contextmanager
def model_errors(what: str) -> Iterator[None]:
    """Reports an exception of the user's code with the user's line; fxtrace's own pass through.

    Raises:
        CaptureFailed: in place of any exception that is not an `FxtraceError`; `what` begins its message.
    """
    try:
        yield
    except FxtraceError:
        raise
    except Exception as error:
        frames = reversed(list(traceback.walk_tb(error.__traceback__)))
        source = next(filter(None, (user_source(frame, line) for frame, line in frames)), None)
        where = f" at {source.file}:{source.line} (`{source.code}`)" if source else ""
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise CaptureFailed(
            f"{what}{where}: {type(error).__name__}: {first_line}",
            error=type(error).__name__,
            file=source.file if source else "",
            line=source.line if source else "",
        ) from error
