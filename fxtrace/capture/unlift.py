"""From an exported program to an ordinary torch.fx graph: parameters are nodes, blocks are inlined, guards are gone."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from sympy import Symbol
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import TreeSpec
from torch.utils._sympy.functions import FloorDiv

from fxtrace.capture.memory import Memory
from fxtrace.capture.recorder import written
from fxtrace.capture.run import map_tensors, show_source
from fxtrace.capture.source import stack_source
from fxtrace.errors import CaptureFailed
from fxtrace.graph import TensorSpec, Value, tensor_name
from fxtrace.shapes import leaves, noted, tensors


def _example(tensor: Tensor) -> Tensor:
    """A meta tensor of the example's sizes for one with symbolic sizes."""

    def numbers(sizes: Iterable[Any]) -> list[int]:
        return [size.node.hint if isinstance(size, torch.SymInt) else size for size in sizes]

    return torch.empty_strided(numbers(tensor.shape), numbers(tensor.stride()), dtype=tensor.dtype, device="meta")


# Blocks under `torch.no_grad()` or `torch.autocast()` are exported as functions that a call runs in that mode.
_WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")

# What export adds to guard its own assumptions.
_GUARDS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "_functional_assert_async")


class Unlifted:
    """An exported program as an ordinary torch.fx graph: parameters are `get_attr` nodes before their first use."""

    def __init__(self, module: nn.Module, program: ExportedProgram, names: Mapping[Symbol, Symbol]) -> None:
        self.graph = fx.Graph()
        self.values: dict[fx.Node, tuple[Value, ...]] = {}
        self.constants: dict[str, Tensor] = {}
        self.sizes: dict[fx.Node, Any] = {}
        self.memory = Memory()
        self._names = names
        self._module = module
        self._paths = {path for path, _ in module.named_modules(remove_duplicate=False)}
        self._program = program
        self._owned = _owned(module)
        self._specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self._attributes: dict[str, fx.Node] = {}
        results = self._inline(program.graph_module, {})
        self._note(self.graph.output(_nested(iter(results), program.call_spec.out_spec)), None)
        for node in reversed(self.graph.nodes):  # what only a guard has read
            if isinstance(node.meta.get("val"), torch.SymBool | torch.SymInt | torch.SymFloat) and not node.users:
                self.graph.erase_node(node)

    def root(self) -> nn.Module:
        """Where the graph finds its tensors and subgraphs."""
        root = nn.Module()
        vars(root).update(vars(self._module))
        vars(root)["_buffers"] = {**self._module._buffers, **self.constants}
        vars(root)["_modules"] = {**self._program.graph_module._modules, **self._module._modules}
        return root

    def _inline(self, module: fx.GraphModule, copied: dict[fx.Node, Any]) -> Any:
        """Copies a graph's nodes, given what stands for its placeholders; returns what stands for its results."""

        def found(node: fx.Node) -> Any:
            if node not in copied:
                copied[node] = self._attribute(node)  # before its first use
            return copied[node]

        for node in module.graph.nodes:
            if node.op == "output":
                return fx.node.map_arg(node.args[0], found)
            if node.op == "get_attr" or node in copied or self._is_owned(node):
                continue
            name = _base_name(node)
            if name in _GUARDS and not node.users:
                continue
            if name in _WRAPPERS:
                at = next(i for i, arg in enumerate(node.args) if isinstance(arg, fx.Node) and arg.op == "get_attr")
                block = getattr(module, str(cast(fx.Node, node.args[at]).target))
                names = block.graph.find_nodes(op="placeholder")
                given = (fx.node.map_arg(arg, found) for arg in node.args[at + 1 :])
                copied[node] = self._inline(block, dict(zip(names, given, strict=True)))
            elif _gives_back(node, name):
                copied[node] = found(node.args[0])
            elif name == "getitem" and isinstance(items := found(node.args[0]), tuple | list):
                copied[node] = items[node.args[1]]
            else:
                copied[node] = self._note(self.graph.node_copy(node, found), node.meta.get("val"))
                for whole in _written_through(node):
                    if any(user not in copied for user in whole.users):  # it is read again
                        changed = self.graph.call_function(written, (found(whole), copied[node]))
                        changed.meta = dict(node.meta)
                        copied[whole] = self._note(changed, whole.meta.get("val"))
        raise AssertionError("a torch.fx graph ends with its output")

    def _is_owned(self, node: fx.Node) -> bool:
        return node.op == "placeholder" and self._specs[node.name].kind is not InputKind.USER_INPUT

    def _attribute(self, node: fx.Node) -> fx.Node:
        """The node for a parameter, a buffer, a constant or a subgraph."""
        if node.op == "get_attr":
            name, value = str(node.target), None
        else:
            name, value = self._tensor(str(self._specs[node.name].target))
        if name not in self._attributes:
            attribute = self.graph.create_node("get_attr", name)
            self._remember(attribute, node.meta.get("val"))  # what the program's views are views of
            self._attributes[name] = self._note(attribute, value)
        return self._attributes[name]

    def _tensor(self, name: str) -> tuple[str, Tensor | None]:
        """A tensor with the first of the names that the module has for it; a constant of no module gets a new one."""
        if name in self._owned:
            return self._owned[name]
        value = self._program.constants[name]
        name = f"_constant_{len(self.constants)}"
        self.constants[name] = value
        return name, value

    def _note(self, node: fx.Node, value: object) -> fx.Node:
        stack = tuple(node.meta.get("nn_module_stack", {}).values())
        path = str(stack[-1][0]).partition("@")[0] if stack else ""  # `name@1` is the second call of a module
        node.meta["module"] = path if path in self._paths else ""
        node.meta["source"] = stack_source(node.meta.get("stack_trace") or "")
        sizes: list[Any] = [size for _, tensor in tensors(value) for size in tensor.shape]
        sizes = [size.node for size in sizes if isinstance(size, torch.SymInt)]
        if not all(size.has_hint() for size in sizes):
            raise CaptureFailed(
                f"a tensor's size depends on the numbers in another{show_source(node.meta['source'])}, and a capture "
                "without values has none; capture it with values",
                node=node.name,
            )
        if node.op != "get_attr":
            self._remember(node, value)
        if isinstance(value, torch.SymInt | torch.SymBool) and value.node.has_hint():
            self.sizes[node] = value.node.hint
            self.values[node] = (Value("", type(value.node.hint).__name__, text=self._text(value)),)
        elif sizes:
            given = (tensor for _, tensor in tensors(value))
            self.values[node] = tuple(
                replace(each, spec=self._symbolic(each.spec, next(given))) if each.spec else each
                for each in noted(node.name, map_tensors(_example, value))
            )
        else:
            self.values[node] = () if node.op == "output" or value is None else noted(node.name, value)
        return node

    def _remember(self, node: fx.Node, value: object) -> None:
        for path, leaf in leaves(value):
            if isinstance(leaf, Tensor):
                self.memory.note(tensor_name(node.name, path), leaf)

    def _symbolic(self, spec: TensorSpec, tensor: Tensor) -> TensorSpec:
        return replace(spec, device=str(tensor.device), symbolic=tuple(map(self._text, tensor.shape)))

    def _text(self, size: Any) -> str:
        if not isinstance(size, torch.SymInt | torch.SymBool):
            return str(size)
        expression = size.node.expr.xreplace(self._names)
        return str(expression)[1:-1] if isinstance(expression, FloorDiv) else str(expression)  # which is in parentheses


def _owned(module: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """For every qualified name of a tensor: the first of the names that this tensor has, and the tensor."""
    first: dict[int, tuple[str, Tensor]] = {}
    owned: dict[str, tuple[str, Tensor]] = {}
    for path, each in module.named_modules(remove_duplicate=False):
        for table in (each._parameters, each._buffers, vars(each)):
            for name, tensor in table.items():
                if isinstance(tensor, Tensor):
                    qualified = f"{path}.{name}" if path else name
                    owned[qualified] = first.setdefault(id(tensor), (qualified, tensor))
    return owned


def _base_name(node: fx.Node) -> str:
    """What a node calls, without its namespace and overload."""
    match node.target:
        case OpOverload():
            return str(node.target.overloadpacket.__name__)
        case _:
            return str(getattr(node.target, "__name__", ""))


def _written_through(node: fx.Node) -> Iterator[fx.Node]:
    """The tensors that a call changes in place through a view of them: what the view is of, and so on."""
    if isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
        view = node.args[0] if node.args else None
        while isinstance(view, fx.Node) and _is_view(view):
            view = view.args[0]
            if isinstance(view, fx.Node) and isinstance(view.meta.get("val"), Tensor):
                yield view


def _is_view(node: fx.Node) -> bool:
    """Whether a call's result shares the memory of its first argument, by its schema."""
    if not isinstance(node.target, OpOverload):
        return node.target is operator.getitem
    arguments, returns = node.target._schema.arguments, node.target._schema.returns
    shared = arguments[0].alias_info if arguments else None
    return bool(shared is not None and not shared.is_write and returns and returns[0].alias_info is not None)


def _gives_back(node: fx.Node, name: str) -> bool:
    """Whether a call has nothing to do and returns the very tensor it is given."""
    match name, node.args, node.meta.get("val"):
        case "dropout", (fx.Node(), _, False), _:
            return True
        case (("to" | "contiguous"), (fx.Node() as given, *rest), Tensor() as result):
            copying = True in (*rest, *node.kwargs.values())
            return not copying and _layout(given.meta["val"]) == _layout(result)
        case _:
            return False


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.device, tensor.stride()


def _nested(results: Iterator[Any], spec: TreeSpec) -> Any:
    """The flat results of an export as the tuples and dicts that the module returned."""
    if spec.is_leaf():
        return next(results)
    items = [_nested(results, child) for child in spec.children()]
    if not isinstance(spec.type, type) or issubclass(spec.type, tuple | list):  # a named tuple's type is a function
        return tuple(items)
    keys = spec.context if isinstance(spec.context, list) and len(spec.context) == len(items) else range(len(items))
    return dict(zip(map(str, keys), items, strict=True))
