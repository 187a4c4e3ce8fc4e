"""Writes every call of one real run into a torch.fx graph."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.backends import cuda
from torch.nn import functional
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from fxtrace.capture.callables import content
from fxtrace.capture.calls import invoke
from fxtrace.capture.source import Place, calling_place
from fxtrace.graph import Source, Value, tensor_name
from fxtrace.shapes import Part, Sink, has_tensor, noted, parts, tensors


class Recorder(TorchFunctionMode):
    """Records one run of a module.

    A call is recorded at its outermost: what `F.softmax` calls inside is not. The one exception is
    `F.multi_head_attention_forward`, which is taken apart. Tensors are known by identity: one that is changed in place
    is, from then on, what the changing call returned; one that is changed through a view of it is `written`, a node
    made where it is next read. A call that gives back its own input unchanged is no node. What is not a tensor, sizes
    above all, is a constant of the graph.

    Nothing is patched: PyTorch keeps the modes of each thread apart, and which module a call ran in is read off the
    stack.

    Args:
        module: the module to run.
        sink: takes every tensor at the moment it is there.
        report: told how many calls are recorded, at each one; raising from it stops the run.
        fake: whether the run is one on fake tensors.

    Attributes:
        graph: what was recorded. Each node's `meta` has `module`, the path it ran in, and `source`, the user's line.
        values: the leaves of what each node returned.
        constants: the tensors that no recorded call made and no attribute of a module holds, by the graph's names.
        outside: where such tensors were first used.
        unused: names of tensors that went to the sink and are no node's in the end: nothing reads them.
        reads: where numbers were read out of tensors.
        took_attention_apart: whether `F.multi_head_attention_forward` was met.
    """

    def __init__(
        self, module: nn.Module, sink: Sink | None, report: Callable[[int], None], *, fake: bool = False
    ) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.values: dict[fx.Node, tuple[Value, ...]] = {}
        self.constants: dict[str, Tensor] = {}
        self.outside: dict[Source | None, None] = {}
        self.unused: list[str] = []
        self.reads: dict[Source | None, None] = {}
        self.took_attention_apart = False
        self._module = module
        self._sink = sink
        self._fake = fake
        self._report = report
        self._bound: dict[int, _Bound] = {}
        self._paths = {id(each): path for path, each in module.named_modules()}
        self._owned = _owned_tensors(module)
        self._modes = current_modes()
        self._derived: list[fx.Node] = []
        self._here: Place | None = _OUTSIDE
        self._writers: dict[int, _Writers] = {}

    def run(self, inputs: Mapping[str, Any], inside: AbstractContextManager[object], by_position: int = 0) -> object:
        """Runs the module in a context, and returns what it returned; the first inputs may have to go by position."""
        for name, value in inputs.items():
            node = self._note(self.graph.placeholder(name), value)
            for way, tensor in tensors(value):
                self._bind(tensor, node, way)
        with self, inside:
            output = invoke(self._module, inputs, by_position)
        self._here = _OUTSIDE
        self._note(self.graph.output(self._returned(output)), None)
        for node in reversed(self._derived):
            if not node.users:
                self.graph.erase_node(node)
                leaves = self.values.pop(node)
                self.unused += [tensor_name(node.name, leaf.path) for leaf in leaves if leaf.spec is not None]
        return output

    def root(self) -> nn.Module:
        """Where the graph finds its tensors: the module's own attributes, and copies of the constants."""
        root = nn.Module()
        vars(root).update(vars(self._module))
        constants = {name: tensor.clone() for name, tensor in self.constants.items()}
        vars(root)["_buffers"] = {**self._module._buffers, **constants}
        return root

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs one call and records it. PyTorch calls this, with the mode itself turned off."""
        kwargs = kwargs or {}
        self._here = None
        form = _form(func)
        if form.takes_apart is not None:
            self.took_attention_apart |= is_attention_forward(func)
            with self:
                return form.takes_apart(*args, **kwargs)
        if form.attribute and not isinstance(result := func(*args, **kwargs), Tensor):
            return result  # sizes, dtypes and the like, asked for often
        if torch._C._are_functorch_transforms_active():
            self.outside.setdefault(self._place().source)  # its tensors live inside the transform only
            return func(*args, **kwargs)
        written, written_kwargs = form.arrange(self._argument(args)), self._argument(kwargs)
        if not form.attribute:
            result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            if self._is_unchanged(result, form):
                return result
            if self._fake and not isinstance(result, FakeTensor):
                return result  # fake tensors' own work: the model makes no other kind
        elif result is None:
            if not any(isinstance(each, fx.Node) for each in (*written, *written_kwargs.values())):
                return result
        elif not has_tensor(result):
            if form.reads:
                self.reads.setdefault(self._place().source)
            return result
        self._keep_up_with_modes()
        node = self.graph.create_node(form.op, form.target)
        node.args = written  # given at creation, they would be searched for symbolic sizes
        if written_kwargs:
            node.kwargs = written_kwargs
        value = args[0] if form.target is setitem else result
        if (form.writes or form.target is setitem) and isinstance(value, Tensor):
            self._remember_writing(value, node)
        self._note(node, value)
        if isinstance(value, Tensor):
            self._bind(value, node)
        else:
            for way, tensor in tensors(value):
                self._bind(tensor, node, way)
        self._report(len(self.values))
        return result

    def _is_unchanged(self, result: Tensor, form: _Form) -> bool:
        """Whether a call gave back a tensor that was there before, as it was."""
        bound = self._bound.get(id(result))
        if bound is None or bound.tensor() is not result:
            return False
        return not form.writes and bound.version == _version(result)

    def _note(self, node: fx.Node, value: object) -> fx.Node:
        node.meta["source"], node.meta["module"] = self._place()
        self.values[node] = () if node.op == "output" else noted(node.name, value, self._sink)
        return node

    def _bind(self, tensor: Tensor, node: fx.Node, way: tuple[Part, ...] = ()) -> None:
        """Remembers where a tensor comes from."""
        way = way and (*way[:-1], way[-1]._replace(value=None))  # what it leads to is not to be kept alive
        self._bound[id(tensor)] = _Bound(weakref.ref(tensor), node, way, _version(tensor))

    def _keep_up_with_modes(self) -> None:
        """Records that gradients or mixed precision were turned on or off, where they were."""
        modes = current_modes()
        if modes != self._modes:
            self._modes = modes
            self._note(self.graph.call_function(set_modes, modes), None)

    def _argument(self, value: Any) -> Any:
        """An argument as torch.fx has it: nodes in place of tensors."""
        if type(value) in _CONSTANTS:
            return value
        if isinstance(value, Tensor):
            return self._node(value)
        if isinstance(value, tuple | list):
            items = [self._argument(item) for item in value]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, dict):
            return {key: self._argument(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*map(self._argument, (value.start, value.stop, value.step)))
        return value

    def _node(self, tensor: Tensor) -> fx.Node:
        """The node whose value a tensor is; made now where it is a parameter, a constant or an item of a nest."""
        bound = self._bound.get(id(tensor))
        if bound is not None and bound.tensor() is tensor:
            if not bound.way and bound.version == _version(tensor):
                return bound.node
            node = bound.node
            for access, key, value in bound.way:
                node = self._derive("call_function", access, (node, key), tensor if value is None else value)
            if bound.version != _version(tensor):
                writers = self._writers_since(tensor, bound.version)
                node = self._derive("call_function", written, (node, *writers), tensor)
        else:
            name, owned = self._owned.get(id(tensor), ("", None))
            node = self._derive("get_attr", name if owned is tensor else self._constant(tensor), (), tensor)
        self._bind(tensor, node)
        return node

    def _remember_writing(self, tensor: Tensor, node: fx.Node) -> None:
        base = tensor if tensor._base is None else tensor._base
        writers = self._writers.get(id(base))
        if writers is None or writers.base() is not base:
            writers = self._writers[id(base)] = _Writers(weakref.ref(base), [])
        writers.nodes.append((_version(base), node))

    def _writers_since(self, tensor: Tensor, version: int) -> list[fx.Node]:
        base = tensor if tensor._base is None else tensor._base
        writers = self._writers.get(id(base))
        known = writers.nodes if writers is not None and writers.base() is base else []
        return [node for after, node in known if after > version]

    def _derive(self, op: str, target: Any, args: tuple[Any, ...], value: object) -> fx.Node:
        node = self._note(self.graph.create_node(op, target, args), value)
        self._derived.append(node)
        return node

    def _constant(self, tensor: Tensor) -> str:
        name = f"_constant_{len(self.constants)}"
        # On fake tensors nothing is re-run, and this may be one without numbers.
        self.constants[name] = tensor if self._fake else tensor.detach().clone()
        self.outside.setdefault(self._place().source)
        return name

    def _returned(self, value: object, within: tuple[int, ...] = ()) -> Any:
        """The module's output as torch.fx has it: tuples, lists and dicts of nodes.

        `within` are the ids of the nests around it: what refers back to one of them is left out.
        """
        if isinstance(value, Tensor):
            return self._node(value)
        if not has_tensor(value):
            return value
        within = (*within, id(value))
        items = {
            str(part.key): self._returned(part.value, within) for part in parts(value) if id(part.value) not in within
        }
        return tuple(items.values()) if isinstance(value, tuple | list) else items

    def _place(self) -> Place:
        """Where the model is; looked up once for each call."""
        if self._here is None:
            self._here = calling_place(Recorder.run.__code__, self._paths)
        return self._here


_OUTSIDE = Place(None, "")
"""Where the model's inputs and outputs are."""


class _Bound(NamedTuple):
    """Where a tensor comes from: the node that returned it, and the way to it where the node returned a nest."""

    tensor: weakref.ref[Tensor]
    node: fx.Node
    way: tuple[Part, ...]
    version: int


class _Writers(NamedTuple):
    """The calls that changed a tensor in place, through whichever view, each with the version it left."""

    base: weakref.ref[Tensor]
    nodes: list[tuple[int, fx.Node]]


class _Form(NamedTuple):
    """How calls of a function are written."""

    op: str
    target: Any
    attribute: bool = False
    """Whether it only reads an attribute of a tensor."""
    writes: bool = False
    """Whether its name says that it works in place."""
    reads: bool = False
    """Whether it reads numbers out of a tensor."""
    takes_apart: Callable[..., Any] | None = None
    """What to run in its place, recording what that calls."""
    arrange: Callable[[tuple[Any, ...]], tuple[Any, ...]] = tuple
    """From the arguments it was called with to those of the target."""


Modes = tuple[bool, tuple[bool, ...], tuple[str, bool, torch.dtype], tuple[str, bool, torch.dtype]]


# What `torch.nn.attention.sdpa_kernel` chooses among; on the CPU, too. Each kernel rounds in its own way.
_KERNELS: tuple[tuple[Callable[[], bool], Callable[[bool], None]], ...] = (
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    (cuda.math_sdp_enabled, cuda.enable_math_sdp),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
)


def current_modes() -> Modes:
    """Whether gradients are on, which kernels attention may use, and for each kind of device its mixed precision."""
    return (
        torch.is_grad_enabled(),
        tuple(enabled() for enabled, _ in _KERNELS),
        ("cpu", torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        ("cuda", torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")),
    )


def set_modes(grad: bool, kernels: tuple[bool, ...], *autocast: tuple[str, bool, torch.dtype]) -> None:
    """Sets what `current_modes` gives, for the calls that follow."""
    torch.set_grad_enabled(grad)
    for (_, enable), enabled in zip(_KERNELS, kernels, strict=True):
        enable(enabled)
    for device, enabled, dtype in autocast:
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)


def setitem(tensor: Tensor, index: Any, value: Any) -> Tensor:
    """`tensor[index] = value`, as an expression."""
    tensor[index] = value
    return tensor


def written(tensor: Tensor, *_writers: Tensor) -> Tensor:
    """A tensor after calls that changed it in place through views of it: the calls' results are `writers`."""
    return tensor


def _python_code_of(function: Any) -> FunctionType | None:
    """The function itself, under what other tools have wrapped around it; None where it cannot be got at.

    A wrapper that is no `functools.wraps` has what it wraps in its closure.
    """
    left: list[Any] = [function]
    seen: list[Any] = []
    while left:
        each = left.pop()
        if any(each is other for other in seen):
            continue
        seen.append(each)
        code = getattr(each, "__code__", None)
        if code is not None and code.co_name == "multi_head_attention_forward" and not code.co_freevars:
            return each if isinstance(each, FunctionType) else None
        left += [value for value in (getattr(each, "__wrapped__", None), getattr(each, "func", None)) if value]
        cells = getattr(each, "__closure__", None) or ()
        left += [inside for cell in cells if callable(inside := content(cell))]
    return None


def _attention_taken_apart() -> Callable[..., Any] | None:
    """PyTorch's own code of multi-head attention, less its first step, which hands the whole call to the mode."""
    own = _python_code_of(functional.multi_head_attention_forward)
    if own is None:
        return None
    return FunctionType(
        own.__code__, {**own.__globals__, "has_torch_function": lambda _: False}, argdefs=own.__defaults__
    )


_multi_head_attention_forward = _attention_taken_apart()


def _takes_apart(func: Callable[..., Any]) -> Callable[..., Any] | None:
    """What is run in place of a call, for its own calls to be recorded; None for a call that is recorded itself."""
    if func is Tensor.__iter__:  # an iterator is no value that a graph could hold
        return lambda tensor: iter(tensor.unbind(0))
    # Another tool may have put a wrapper in its place, before this module was imported or after.
    if is_attention_forward(func):
        return _multi_head_attention_forward
    return None


def is_attention_forward(func: Callable[..., Any]) -> bool:
    """Whether it is `F.multi_head_attention_forward`, or what another tool has put in its place."""
    return func is functional.multi_head_attention_forward or (
        getattr(func, "__name__", "") == "multi_head_attention_forward" and _python_code_of(func) is not None
    )


_CONSTANTS = frozenset({int, float, bool, str, type(None), type(...), torch.dtype, torch.device})

_READS = frozenset(
    {"item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "__array__", "__contains__"}
    | {"__bool__", "__int__", "__float__", "__complex__", "__index__"}
)


@cache
def _form(func: Callable[..., Any]) -> _Form:
    name = getattr(func, "__name__", "")  # other tools wrap functions in what has none
    if name in ("__get__", "__set__"):
        attribute = func.__self__.__name__  # type: ignore[attr-defined]
        target = getattr if name == "__get__" else setattr
        return _Form("call_function", target, target is getattr, arrange=lambda args: (args[0], attribute, *args[1:2]))
    writes, reads = name.endswith("_") and not name.endswith("__"), name in _READS
    apart = _takes_apart(func)
    if not is_tensor_method_or_property(func) and getattr(Tensor, name, None) is not func:
        return _Form("call_function", func, writes=writes, reads=reads, takes_apart=apart)
    if name == "__setitem__":
        return _Form("call_function", setitem)
    spelled = getattr(operator, name, None) if name.startswith("__") else None
    if spelled is not None:
        return _Form("call_function", spelled, reads=reads)
    mirrored = getattr(operator, f"__{name.removeprefix('__r')}", None) if name.startswith("__r") else None
    if mirrored is not None:  # `2 - x` calls x.__rsub__(2)
        return _Form("call_function", mirrored, arrange=lambda args: args[::-1])
    return _Form("call_method", name, writes=writes, reads=reads, takes_apart=apart)


def _owned_tensors(module: nn.Module) -> dict[int, tuple[str, Tensor]]:
    """The tensors that modules hold, by identity: each with its first qualified name."""
    owned: dict[int, tuple[str, Tensor]] = {}
    for path, each in module.named_modules():
        for table in (each._parameters, each._buffers, vars(each)):
            for name, tensor in table.items():
                if isinstance(tensor, Tensor):
                    owned.setdefault(id(tensor), (f"{path}.{name}" if path else name, tensor))
    return owned


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
