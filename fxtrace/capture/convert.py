"""From a torch.fx graph, run once, to plain data."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch._ops import HigherOrderOperator, OpOverload

from fxtrace.capture.kinds import function_kind, module_kind
from fxtrace.graph import Arg, Graph, Module, Node, Parameter, Ref, SliceArg, Symbol, Value
from fxtrace.shapes import dtype_name


def to_graph(module: nn.Module, traced: fx.Graph, values: Mapping[fx.Node, tuple[Value, ...]]) -> Graph:
    """The plain graph: one node for each of `traced`'s, with the leaves noted when it ran."""
    modules = _modules(module)
    owned = {parameter.name for each in modules for parameter in each.parameters}
    nodes: dict[str, Node] = {}
    for fx_node in traced.nodes:
        args = tuple(map(_arg, fx_node.args)) if fx_node.op != "placeholder" else ()
        target, leaves = _target(fx_node), values[fx_node]
        nodes[fx_node.name] = Node(
            name=fx_node.name,
            op=fx_node.op,
            target=target,
            kind=_kind(fx_node, target, args, leaves, module, nodes),
            args=args,
            kwargs={name: _arg(value) for name, value in fx_node.kwargs.items()},
            values=leaves,
            module=fx_node.meta["module"],
            parameters=_parameters(module, fx_node, owned),
            source=fx_node.meta["source"],
        )
    return Graph(name=type(module).__name__, nodes=tuple(nodes.values()), modules=modules)


def _kind(
    node: fx.Node,
    target: str,
    args: tuple[Arg, ...],
    values: tuple[Value, ...],
    module: nn.Module,
    before: Mapping[str, Node],
) -> str:
    match node.op:
        case "placeholder":
            return "input"
        case "get_attr":
            return "constant"
        case "output":
            return "output"
        case _ if all(value.spec is None for value in values):
            return "size"
        case "call_module":
            return module_kind(module.get_submodule(target))
        case _:
            return function_kind(target, args, (before[each.name] for each in node.all_input_nodes), before)


def _target(node: fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    return _function_name(node.target)


@cache
def _function_name(function: Callable[..., Any]) -> str:
    if isinstance(function, OpOverload):
        return str(function.overloadpacket)  # the arguments say which overload it is
    if isinstance(function, HigherOrderOperator):
        return str(function)
    if getattr(operator, function.__name__, None) is function:
        return f"operator.{function.__name__}"
    for namespace in (torch, nn.functional):
        if getattr(namespace, function.__name__, None) is function:
            return f"{namespace.__name__}.{function.__name__}"
    module = function.__module__ or ""
    return f"{module}.{function.__qualname__}" if module and module != "builtins" else function.__qualname__


def _arg(value: Any) -> Arg:
    if isinstance(value, fx.Node):
        return Ref(value.name)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    match value:
        case slice():
            return SliceArg(_arg(value.start), _arg(value.stop), _arg(value.step))
        case tuple() | list():
            return tuple(map(_arg, value))
        case dict():
            return {str(key): _arg(item) for key, item in value.items()}
        case _:
            text = "..." if value is ... else str(value)
            return Symbol(type(value).__name__ if " at 0x" in text else text)


def _parameters(module: nn.Module, node: fx.Node, owned: Collection[str]) -> tuple[str, ...]:
    if node.op == "get_attr":
        return (str(node.target),) if node.target in owned else ()  # other tensors are constants of no module
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        own = (*called.named_parameters(), *called.named_buffers())
        return tuple(f"{node.target}.{name}" for name, _ in own)
    return ()


def _modules(root: nn.Module) -> tuple[Module, ...]:
    first: dict[int, str] = {}
    return tuple(
        Module(path, type(module).__name__, _own_parameters(path, module, first), _settings(module))
        for path, module in root.named_modules(remove_duplicate=False)
    )


def _settings(module: nn.Module) -> dict[str, Arg]:
    """What a class lists in `__constants__`, as PyTorch's own modules do."""
    declared = {name: getattr(module, name, None) for name in getattr(type(module), "__constants__", ())}
    return {name: _arg(value) for name, value in declared.items() if not isinstance(value, nn.Module | torch.Tensor)}


def _own_parameters(path: str, module: nn.Module, first: dict[int, str]) -> tuple[Parameter, ...]:
    found = []
    for buffer, table in ((False, module._parameters), (True, module._buffers)):
        for name, tensor in table.items():
            if tensor is not None:
                qualified = f"{path}.{name}" if path else name
                owner = first.setdefault(id(tensor), qualified)
                found.append(
                    Parameter(
                        name=qualified,
                        shape=tuple(tensor.shape),
                        dtype=dtype_name(tensor.dtype),
                        trainable=tensor.requires_grad,
                        buffer=buffer,
                        same_as="" if owner == qualified else owner,
                    )
                )
    return tuple(found)
