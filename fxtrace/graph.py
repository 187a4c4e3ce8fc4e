"""The traced graph as plain data: what the store keeps, the wire carries, and every later stage reads. No torch here.

A `Graph` is a `torch.fx` graph whose nodes also know their tensor specs, op kind, module, source line and roles.
Order matters: nodes stand in execution order, so a node's inputs come before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

from fxtrace.errors import NodeNotFound, TensorNotFound, unknown
from fxtrace.ir.arguments import Arg, Ref, SliceArg, Symbol, refs, show, show_shape, show_sizes
from fxtrace.ir.roles import Check, Refusal, Role, Snapshot, SnapshotTensor
from fxtrace.ir.text import MOST_ROWS, Readable, assigned, bytes_text, count_text, facts, listed, table

__all__ = [
    "Arg",
    "Check",
    "Dim",
    "Graph",
    "Module",
    "Node",
    "Parameter",
    "Ref",
    "Refusal",
    "Role",
    "SliceArg",
    "Snapshot",
    "SnapshotTensor",
    "Source",
    "Symbol",
    "TensorSpec",
    "Value",
    "refs",
    "show",
    "show_shape",
    "show_sizes",
    "tensor_name",
]


@dataclass(frozen=True, slots=True, repr=False)
class TensorSpec(Readable):
    """What is known of a tensor besides its numbers.

    `shape` and `stride` are counted in elements, `nbytes` is shape × element size (a view counts its own elements,
    not its base's). `dtype` is PyTorch's name without the prefix: `float32`, `bfloat16`, `int64`. Where sizes were
    traced as symbols, `symbolic` has each size as an expression of them (`batch`, `2*sequence`, `64`) and `shape` the
    example's; otherwise it is empty.
    """

    shape: tuple[int, ...]
    dtype: str
    stride: tuple[int, ...]
    device: str
    contiguous: bool
    nbytes: int
    symbolic: tuple[str, ...] = ()

    def _lines(self) -> Iterator[str]:
        stride = "" if self.contiguous else f", stride {show(self.stride)}"
        yield f"{show_sizes(self)} {self.dtype}, {bytes_text(self.nbytes)} on {self.device}{stride}"


@dataclass(frozen=True, slots=True, repr=False)
class Value(Readable):
    """One leaf of what a node returns.

    A node that returns one tensor has one value with an empty `path`; one that returns a tuple or a dict has a value
    for each leaf, with a path such as `0` or `1.hidden`. `spec` is set for tensors; for the rest `text` shows the
    value as it is (`6`, `torch.Size([1, 6, 128])`). `type` is the Python type's name.
    """

    path: str
    type: str
    spec: TensorSpec | None = None
    text: str = ""

    def _lines(self) -> Iterator[str]:
        what = self.text if self.spec is None else f"{show_sizes(self.spec)} {self.spec.dtype}"
        yield f"{f'{self.path}: ' if self.path else ''}{self.type} {what}".rstrip()


@dataclass(frozen=True, slots=True, repr=False)
class Source(Readable):
    """The line of the user's code that made a node."""

    file: str
    line: int
    code: str = ""
    function: str = ""

    def _lines(self) -> Iterator[str]:
        yield f"{self.file}:{self.line}" + (f" in {self.function}" if self.function else "")
        if self.code:
            yield f"  {self.code}"


@dataclass(frozen=True, slots=True, repr=False)
class Node(Readable):
    """One node of the graph.

    Attributes:
        name: unique in the graph; also the name of its tensor where it returns just one.
        op: torch.fx's opcode: placeholder, get_attr, call_function, call_method, call_module or output.
        target: what is called, in words a person would type: `torch.matmul`, `softmax`, `blocks.0.linear`.
        kind: what the op does, independent of how it is spelled; one of `fxtrace.ops.KINDS`.
        args, kwargs: the call's arguments, nodes as `Ref`.
        values: what the node returns; empty for `output`.
        module: path of the innermost module the call ran in; empty at the top.
        parameters: qualified names of the parameters and buffers this node itself reads.
        source: the line of the user's code, where there is one.
        roles: the roles its value was shown to have.
    """

    name: str
    op: str
    target: str
    kind: str
    args: tuple[Arg, ...] = ()
    kwargs: dict[str, Arg] = field(default_factory=dict)
    values: tuple[Value, ...] = ()
    module: str = ""
    parameters: tuple[str, ...] = ()
    source: Source | None = None
    roles: tuple[Role, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the nodes among the arguments, in order, each once."""
        return tuple(dict.fromkeys(ref for arg in (*self.args, *self.kwargs.values()) for ref in refs(arg)))

    @property
    def spec(self) -> TensorSpec | None:
        """The spec of the node's tensor, where it returns exactly one tensor and nothing else."""
        return self.values[0].spec if len(self.values) == 1 and not self.values[0].path else None

    @property
    def tensors(self) -> tuple[tuple[str, TensorSpec], ...]:
        """(tensor name, spec) of each tensor the node returns; see `tensor_name`."""
        return tuple((tensor_name(self.name, v.path), v.spec) for v in self.values if v.spec is not None)

    @property
    def returns(self) -> str:
        """The shapes and dtypes of what the node returns, as text: `1×4×5×6 float32`; of other values, the values."""
        sizes = listed(show_sizes(each.spec) if each.spec else each.text or each.type for each in self.values)
        dtypes = ", ".join(dict.fromkeys(each.spec.dtype for each in self.values if each.spec))
        return f"{sizes} {dtypes}".strip() or self.op

    @property
    def _call(self) -> str:
        arguments = (*map(show, self.args), *(f"{name}={show(arg)}" for name, arg in self.kwargs.items()))
        return f"{self.target}({', '.join(arguments)})"

    def _lines(self) -> Iterator[str]:
        role = f", {listed(self.roles, 1)}" if self.roles else ""
        yield f"{self.name}: {self.returns}{role}"
        yield from facts(
            ("op", f"{self.op}, {self.kind}"),
            ("call", self._call if self.op != "placeholder" else ""),
            ("returns", "\n".join(map(str, self.values[:MOST_ROWS])) if len(self.values) > 1 else ""),
            ("module", self.module),
            ("parameters", "\n".join(self.parameters[:MOST_ROWS])),
            ("source", self.source or ""),
            ("roles", "\n".join(f"{role}: {role.evidence}" for role in self.roles)),
        )


@dataclass(frozen=True, slots=True, repr=False)
class Parameter(Readable):
    """A parameter or buffer of a module; `name` is qualified from the root, `same_as` the first owner's if shared."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool
    buffer: bool = False
    same_as: str = ""

    def _lines(self) -> Iterator[str]:
        kind = "buffer" if self.buffer else "parameter" if self.trainable else "frozen parameter"
        same = f", the same as {self.same_as}" if self.same_as else ""
        yield f"{self.name}: {kind}, {show_shape(self.shape)} {self.dtype}{same}"


@dataclass(frozen=True, slots=True, repr=False)
class Module(Readable):
    """A module of the model: its path from the root (empty for the root), class name, and its own parameters.

    `settings` are the constants that the module's class declares: a norm's `eps`, a convolution's `stride`.
    """

    path: str
    type: str
    parameters: tuple[Parameter, ...] = ()
    settings: dict[str, Arg] = field(default_factory=dict)

    def _lines(self) -> Iterator[str]:
        own = ", ".join(each.name.rpartition(".")[2] for each in self.parameters[:4])
        more = f" and {len(self.parameters) - 4:,} more" if len(self.parameters) > 4 else ""
        yield f"{self.path or 'the model'}: {self.type}" + (f" with {own}{more}" if own else "")
        yield from facts(*((name, show(value)) for name, value in self.settings.items()))
        rows = ((each.name, show_shape(each.shape), each.dtype) for each in self.parameters)
        yield from table(("parameter", "shape", "dtype"), rows)


@dataclass(frozen=True, slots=True, repr=False)
class Dim(Readable):
    """A named size."""

    name: str
    size: int

    def _lines(self) -> Iterator[str]:
        yield f"{self.name} = {self.size}"


@dataclass(frozen=True, repr=False)
class Graph(Readable):
    """A traced graph: nodes in execution order, the modules they ran in, and what labelling found.

    `name` is the root module's class name. `dims` are the sizes labelling could name. `refusals` are the roles that
    were looked for and not given.
    """

    name: str
    nodes: tuple[Node, ...]
    modules: tuple[Module, ...] = ()
    dims: tuple[Dim, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def users(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the nodes that read each node's value, in execution order; in a filtered graph, of those kept."""
        users: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                if name in users:
                    users[name].append(node.name)
        return {name: tuple(readers) for name, readers in users.items()}

    @cached_property
    def modules_by_path(self) -> Mapping[str, Module]:
        """Modules by path."""
        return {module.path: module for module in self.modules}

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """Parameters and buffers of all modules, by qualified name."""
        return {parameter.name: parameter for module in self.modules for parameter in module.parameters}

    @cached_property
    def by_role(self) -> Mapping[str, Node]:
        """Nodes by role name. A role belongs to one node; a node may have several roles."""
        return {str(role): node for node in self.nodes for role in node.roles}

    @property
    def parameter_count(self) -> int:
        """Number of trainable and frozen parameters' elements, shared ones counted once, buffers not at all."""
        return sum(prod(p.shape) for m in self.modules for p in m.parameters if not p.buffer and not p.same_as)

    def node(self, name: str) -> Node:
        """The node of that name.

        Raises:
            NodeNotFound: no such node; the nearest name is suggested.
        """
        try:
            return self.by_name[name]
        except KeyError:
            raise NodeNotFound(unknown("node", name, self.by_name), field="node", node=name) from None

    def within(self, module: str = "", role: str = "") -> Graph:
        """This graph with only the nodes of a module and those inside it, and of a role or those below it.

        Raises:
            NodeNotFound: no such module or role; the nearest is suggested.
        """
        nodes = self.nodes
        if module:
            if module not in self.modules_by_path:
                known = [path for path in self.modules_by_path if path]
                raise NodeNotFound(unknown("module", module, known), field="module", module=module)
            nodes = tuple(node for node in nodes if _is_within(node.module, module))
        if role:
            if not any(_is_within(name, role) for name in self.by_role):
                raise NodeNotFound(unknown("role", role, self.by_role), field="role", role=role)
            nodes = tuple(node for node in nodes if any(_is_within(str(each), role) for each in node.roles))
        return replace(self, nodes=nodes)

    def tensors(self) -> Iterator[tuple[str, TensorSpec]]:
        """(name, spec) of every tensor in the graph, in execution order."""
        for node in self.nodes:
            yield from node.tensors

    @cached_property
    def returned(self) -> tuple[Node, ...]:
        """The nodes whose values the model returns, every one once; of a filtered graph, those that are in it."""
        names = (name for node in self.nodes if node.op == "output" for name in node.inputs)
        return tuple(self.by_name[name] for name in dict.fromkeys(names) if name in self.by_name)

    def why_absent(self, what: str, name: str, known: Iterable[str]) -> str:
        """What is said of a name that is not there: why it was refused, where it is a role that was; or the nearest.

        Args:
            what: what it was taken for, such as `tensor or role`.
            name: the name.
            known: the names that there are.
        """
        reasons = [each.reason for each in self.refusals if each.role == name]
        return f"no '{name}' in this graph: {reasons[0]}" if reasons else unknown(what, name, known)

    def tensor(self, name: str) -> TensorSpec:
        """The spec of a tensor, by its name or by the name of a role.

        Raises:
            TensorNotFound: no such tensor; the nearest name is suggested.
        """
        return self._tensors[self.resolve_tensor(name)]

    def resolve_tensor(self, name: str) -> str:
        """The tensor's own name, given that name or a role's (`decoder.0.cross_attention.weights`).

        Raises:
            TensorNotFound: no such tensor or role; the nearest name is suggested.
        """
        if name in self._tensors:
            return name
        node = self.by_role.get(name)
        if node is not None and len(node.tensors) == 1:
            return node.tensors[0][0]
        raise TensorNotFound(
            self.why_absent("tensor or role", name, (*self._tensors, *self.by_role)), field="tensor", tensor=name
        )

    def _lines(self) -> Iterator[str]:
        labelled = sum(bool(node.roles) for node in self.nodes)
        yield f"{self.name}: {count_text(len(self.nodes), 'node')}, {labelled:,} with a role"
        yield from facts(
            ("parameters", f"{self.parameter_count:,} in {count_text(len(self.modules), 'module')}"),
            ("sizes", assigned((dim.name, dim.size) for dim in self.dims)),
            ("refused", f"{count_text(len(self.refusals), 'role')}, with reasons" if self.refusals else ""),
        )
        rows = ((each.name, each.kind, each.returns, listed(each.roles, 1)) for each in self.nodes)
        yield from table(("node", "kind", "returns", "role"), rows)

    @cached_property
    def _tensors(self) -> Mapping[str, TensorSpec]:
        return dict(self.tensors())


def _is_within(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}.")


def tensor_name(node: str, path: str) -> str:
    """The name of a node's tensor: the node's own name, or `node:path` for a leaf of a tuple or a dict."""
    return f"{node}:{path}" if path else node
