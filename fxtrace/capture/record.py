"""The `record` rung: one real run of the module, written down call by call and re-run to check it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, fx

from fxtrace.capture.compare import bit_equal, same_tensor
from fxtrace.capture.constants import fold_constants
from fxtrace.capture.convert import to_graph
from fxtrace.capture.fakes import Fakes
from fxtrace.capture.graph_module import maker
from fxtrace.capture.memory import Memory
from fxtrace.capture.recorder import Recorder, current_modes, set_modes
from fxtrace.capture.run import Run, Taken, copies, keeping, map_tensors, model_errors, needing_values, show_source
from fxtrace.errors import CaptureFailed
from fxtrace.graph import Source
from fxtrace.ir.trace import Progress
from fxtrace.shapes import Interpreter, ShapeInterpreter


def record(run: Run) -> Taken:
    """Runs the module once more, writing down every call; then re-runs what was written, and compares.

    Raises:
        CaptureFailed: the module raised; a part of it is scripted; or there are no values, and it needs them.
    """
    for path, module in run.module.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureFailed(
                f"'{path or type(module).__name__}' is a scripted module: its calls cannot be seen; capture the module "
                "it was scripted from",
                module=path,
            )
    run.rewind()
    kept: dict[str, Tensor] = {}
    given = copies(run.inputs)
    mode: AbstractContextManager[object] = nullcontext()
    memory = Memory()
    if not run.values:
        mode = fake = Fakes()
        given = map_tensors(fake.from_tensor, given)
        memory = Memory(fake)
    recorder = Recorder(
        run.module,
        memory.and_then(keeping(kept) if run.values else None),
        lambda done: run.report(Progress("record", done)),
        fake=not run.values,
    )
    with model_errors("the model raised"), mode, needing_values():
        output = recorder.run(given, run.inside, run.by_position)
    run.rewind()
    graph = to_graph(run.module, recorder.graph, recorder.values)
    notes = _notes(recorder)
    if not run.values:
        with model_errors("the captured graph raised"):
            known = fold_constants(recorder.root(), recorder.graph, {})
        return Taken(graph, {}, known, None, memory.bases, notes)  # its constants are fake: nothing could be run
    for name in recorder.unused:
        del kept[name]
    difference = _difference(run, recorder, output, kept)
    told = (*notes, difference) if difference else notes
    made = maker(recorder.root(), recorder.graph, graph.name)
    return Taken(graph, kept, kept, not difference, memory.bases, told, make_graph_module=made)


def _difference(run: Run, recorder: Recorder, output: object, kept: Mapping[str, Tensor]) -> str:
    """Re-runs the graph on the same inputs, from the same state; says what differs from the module, if anything."""
    if not bit_equal(run.eager, output):
        return "The module itself gives another output when it is run again from the same random state."
    modes = current_modes()
    try:
        again = Interpreter(recorder.root(), recorder.graph)
        if bit_equal(run.eager, again.run(*copies(run.inputs).values())):
            return ""
        run.rewind()
        set_modes(*modes)
        differing = _first_difference(recorder, copies(run.inputs).values(), kept)
    except Exception as error:  # noqa: BLE001 - whatever an op may raise the second time
        return f"The graph cannot be re-run: {type(error).__name__}: {error}"
    finally:
        set_modes(*modes)
    if differing is None:
        return "The graph's output differs from the module's, though every tensor in it is the same."
    source = show_source(differing.meta["source"])
    return f"The graph's re-run differs from the module's run, first in '{differing.name}'{source}."


def _first_difference(recorder: Recorder, inputs: Iterable[object], kept: Mapping[str, Tensor]) -> fx.Node | None:
    differing: list[str] = []

    def compare(name: str, tensor: Tensor) -> None:
        if name in kept and not same_tensor(kept[name], tensor):
            differing.append(name.partition(":")[0])

    ShapeInterpreter(recorder.root(), compare, graph=recorder.graph).run(*inputs)
    return next((node for node in recorder.graph.nodes if node.name in differing[:1]), None)


def _notes(recorder: Recorder) -> tuple[str, ...]:
    notes = []
    if recorder.reads:
        notes.append(f"Numbers were read out of tensors{_places(recorder.reads)}: they are fixed as they were.")
    if recorder.outside:
        notes.append(
            f"Tensors that no recorded call made{_places(recorder.outside)} are constants here: they come from a "
            "closure, from NumPy, from scripted code or from a torch.func transform."
        )
    if recorder.took_attention_apart:
        notes.append("nn.MultiheadAttention was run step by step, its fused kernel turned off.")
    return tuple(notes)


def _places(sources: Iterable[Source | None]) -> str:
    known = [f"{source.file}:{source.line} (`{source.code}`)" for source in sources if source is not None]
    more = f" and {len(known) - 3} more lines" if len(known) > 3 else ""
    return f" at {', '.join(known[:3])}{more}" if known else ""
