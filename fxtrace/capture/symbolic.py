"""The `symbolic` rung: torch.fx symbolic tracing, exact for every input of the same structure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import CodeType
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.graph import CodeGen, _PyTreeCodeGen
from torch.utils._pytree import tree_unflatten

from fxtrace.capture.compare import bit_equal
from fxtrace.capture.constants import fold_constants
from fxtrace.capture.convert import to_graph
from fxtrace.capture.fakes import Fakes
from fxtrace.capture.memory import Memory
from fxtrace.capture.run import Run, Taken, copies, keeping, map_tensors, model_errors, show_source
from fxtrace.capture.source import calling_source
from fxtrace.ir.trace import Progress
from fxtrace.shapes import ShapeInterpreter, has_tensor


def symbolic(run: Run) -> Taken:
    """Traces the module, then runs the graph once for specs and values.

    Raises:
        CaptureFailed: torch.fx cannot follow the module.
    """
    what = "symbolic tracing cannot follow this model"
    with model_errors(what, run.module):
        _check_wrapper(run.module)
    run.rewind()
    with model_errors(what, run.module), run.inside:
        traced = trace_symbolically(run.module, run.inputs, run.by_position)
    run.rewind()
    kept: dict[str, Tensor] = {}
    placeholders = [str(node.target) for node in traced.graph.find_nodes(op="placeholder")]
    mode: AbstractContextManager[object] = nullcontext()
    memory = Memory()
    given = copies(run.inputs)
    if not run.values:
        mode = fake = Fakes()
        given = map_tensors(fake.from_tensor, given)
        memory = Memory(fake)
    interpreter = ShapeInterpreter(
        traced,
        memory.and_then(keeping(kept) if run.values else None),
        lambda done, total: run.report(Progress("propagate", done, total)),
    )
    with model_errors("the captured graph raised"), mode:
        result = interpreter.run(*(given[name] for name in placeholders))
    with model_errors("the captured graph raised"):
        known = kept if run.values else fold_constants(traced, traced.graph, interpreter.plain)
    equal = bit_equal(run.eager, result) if run.values else None
    doubt = "the traced graph's output differs from the module's" if equal is False else _hidden(traced)
    graph = to_graph(run.module, traced.graph, interpreter.values)
    return Taken(graph, kept, known, equal, memory.bases, doubt=doubt, make_graph_module=lambda: traced)


def _check_wrapper(module: nn.Module) -> None:
    """Refuses a forward behind a decorator whose wrapper has other parameters than the forward itself.

    torch.fx looks at the innermost function's parameters and hands them, `*args` and `**kwargs` made positional, to the
    outermost. It would fail all the same, later and with a message that says nothing of decorators.
    """
    outer = getattr(type(module).forward, "__code__", None)
    inner = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    if outer is None or inner is None or not (inner.co_kwonlyargcount or inner.co_flags & _VARIADIC):
        return
    if outer.co_flags & _VARIADIC and _layout(outer) != _layout(inner):
        decorator = outer.co_qualname.partition(".<locals>")[0]
        raise TypeError(f"torch.fx cannot follow forward through '{decorator}', a decorator of *args and **kwargs")


_VARIADIC = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS


def _layout(code: CodeType) -> tuple[int, int]:
    return code.co_argcount + code.co_kwonlyargcount, code.co_flags & _VARIADIC


def _hidden(traced: fx.GraphModule) -> str:
    """Says which call hides a composition, where one does; torch.fx does not look into PyTorch's own modules."""
    for node in traced.graph.nodes:
        composed = node.op == "call_module" and any(traced.get_submodule(str(node.target)).children())
        if composed or node.target is nn.functional.multi_head_attention_forward:
            what = str(node.target) if composed else "multi_head_attention_forward"
            return f"'{what}' is one call, what happens inside would not be seen{show_source(node.meta['source'])}"
    return ""


class _Tracer(fx.Tracer):
    """Notes for each node the module it runs in and the user's line, and gives left-out parameters their defaults."""

    # Without it, a slice of a buffer by a traced size fails: the buffer would be a plain tensor.
    proxy_buffer_attributes = True

    def __init__(self, module: nn.Module, inputs: Mapping[str, Any], by_position: int) -> None:
        super().__init__()
        self._inputs = inputs
        named = inspect.signature(module.forward).parameters
        names = list(inputs)
        self._beyond = [name for name in names[:by_position] if name not in named]
        self._rest = [name for name in names[by_position:] if name not in named]

    def create_node(
        self,
        kind: str,
        target: fx.node.Target,
        args: tuple[fx.node.Argument, ...],
        kwargs: dict[str, fx.node.Argument],
        name: str | None = None,
        type_expr: Any | None = None,
    ) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        node.meta["module"] = self.scope.module_path
        node.meta["source"] = calling_source(trace_nodes.__code__)
        return node

    def create_proxy(
        self,
        kind: str,
        target: fx.node.Target,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
        proxy_factory_fn: Callable[[fx.Node], fx.Proxy] | None = None,
    ) -> Any:
        if kind == "placeholder" and str(target).startswith("**"):
            return {name: self._input(name) for name in self._rest}
        if kind == "placeholder" and str(target).startswith("*"):
            return tuple(map(self._input, self._beyond))
        if kind == "placeholder" and target not in self._inputs and args:
            return args[0]  # the parameter's default, so that `if mask is None` is decided here
        if kind == "placeholder" and target in self._inputs:
            return self._input(str(target))
        return super().create_proxy(kind, target, args, kwargs, name, type_expr, proxy_factory_fn)

    def _input(self, name: str) -> Any:
        """What stands for an input: a proxy for a tensor, and for a flag the flag itself, so that it decides branches.

        Raises:
            TypeError: it is a nest of tensors. A proxy of one is of no type that the model could ask for.
        """
        value = self._inputs[name]
        if not isinstance(value, Tensor) and has_tensor(value):
            raise TypeError(f"input '{name}' is a {type(value).__name__} of tensors, which torch.fx cannot follow")
        proxy = super().create_proxy("placeholder", name, (), {})
        return proxy if isinstance(value, Tensor) else value


def trace_symbolically(module: nn.Module, inputs: Mapping[str, Any], by_position: int = 0) -> fx.GraphModule:
    """Traces a module, with a placeholder for each of the inputs; other parameters keep their defaults.

    Each node's `meta` has `module`, the path it runs in, and `source`, the user's line (None for inputs).
    """
    return fx.GraphModule(module, trace_nodes(module, inputs, by_position), type(module).__name__)


def trace_nodes(module: nn.Module, inputs: Mapping[str, Any], by_position: int = 0) -> fx.Graph:
    """The graph of `trace_symbolically` alone; constants that it met are left on the module."""
    graph = _Tracer(module, inputs, by_position).trace(module)
    codegen = graph._codegen
    if isinstance(codegen, _PyTreeCodeGen):
        # torch.fx flattens the inputs and outputs of a forward with keyword-only or variadic parameters: its own
        # placeholders would not be the graph's. What goes in is flat here already; what comes out gets its form back.
        output = graph.output_node()
        output.args = (tree_unflatten(list(output.args[0]), codegen.pytree_info.out_spec),)  # type: ignore[arg-type]
        graph.set_codegen(CodeGen())
    graph._tracer_cls = fx.Tracer  # what reads a pickled GraphModule again
    placeholders = {str(node.target): node for node in graph.find_nodes(op="placeholder")}
    for name in reversed([*inputs]):  # torch.fx puts those that only go by name before those of `*args`
        if name in placeholders:
            graph._root.append(placeholders[name])
    return graph
