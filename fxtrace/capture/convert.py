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


def to_graph(module: nn.Module, traced: fx.Graph, values: Mapping[fx.Node, tuple[Value, ...]]) -> Graph:
    """The plain graph: one node for each of `traced`'s, with the leaves noted when it ran."""
    modules = _modules(module)
    owned = {parameter.name for each in modules for parameter in each.parameters}
    nodes: dict[str, Node] = {}
    for fx_node in traced.nodes:
        node = Node(
            name=fx_node.name,
            op=fx_node.op,
            target=_target(fx_node),
            kind="",
            args=tuple(map(_arg, fx_node.args)) if fx_node.op != "placeholder" else (),
            kwargs={name: _arg(value) for name, value in fx_node.kwargs.items()},
            values=values[fx_node],
            module=fx_node.meta["module"],
            parameters=_parameters(module, fx_node, owned),
            source=fx_node.meta["source"],
        )
        nodes[node.name] = _with_kind(node, module, nodes)
    return Graph(name=type(module).__name__, nodes=tuple(nodes.values()), modules=modules)


def _with_kind(node: Node, module: nn.Module, before: Mapping[str, Node]) -> Node:
    match node.op:
        case "placeholder":
            kind = "input"
        case "get_attr":
            kind = "constant"
        case "output":
            kind = "output"
        case _ if all(value.spec is None for value in node.values):
            kind = "size"
        case "call_module":
            kind = module_kind(module.get_submodule(node.target))
        case _:
            kind = function_kind(node, before)
    return Node(node.name, node.op, node.target, kind, *_rest(node))


def _rest(node: Node) -> tuple[Any, ...]:
    return (node.args, node.kwargs, node.values, node.module, node.parameters, node.source, node.roles)


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
    match value:
        case fx.Node():
            return Ref(value.name)
        case None | bool() | int() | float() | str():
            return value
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
    target = str(node.target)
    if node.op == "get_attr":
        return (target,) if target in owned else ()  # other tensors are constants of no module
    if node.op == "call_module":
        called = module.get_submodule(target)
        own = (*called.named_parameters(), *called.named_buffers())
        return tuple(f"{target}.{name}" for name, _ in own)
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
                        dtype=str(tensor.dtype).removeprefix("torch."),
                        trainable=tensor.requires_grad,
                        buffer=buffer,
                        same_as="" if owner == qualified else owner,
                    )
                )
    return tuple(found)
