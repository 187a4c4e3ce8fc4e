"""The traced graph as plain data: what the store keeps, the wire carries, and every later stage reads. No torch here.

A `Graph` is a `torch.fx` graph whose nodes also know their tensor specs, op kind, module, source line and roles.
Order matters: nodes stand in execution order, so a node's inputs come before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from fxtrace.errors import NodeNotFound, TensorNotFound, unknown


@dataclass(frozen=True, slots=True)
class TensorSpec:
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


@dataclass(frozen=True, slots=True)
class Value:
    """One leaf of what a node returns.

    A node that returns one tensor has one value with an empty `path`; one that returns a tuple or a dict has a value
    for each leaf, with a path such as `0` or `1.hidden`. `spec` is set for tensors; for the rest `text` shows the
    value as it is (`6`, `torch.Size([1, 6, 128])`). `type` is the Python type's name.
    """

    path: str
    type: str
    spec: TensorSpec | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Ref:
    """An argument that is another node's value."""

    node: str


@dataclass(frozen=True, slots=True)
class SliceArg:
    """A Python slice among the arguments; its parts may be nodes."""

    start: Arg
    stop: Arg
    step: Arg


@dataclass(frozen=True, slots=True)
class Symbol:
    """An argument that is a constant with no plain form, as its text: `torch.float32`, `Ellipsis`, `cpu`."""

    text: str


Arg = None | bool | int | float | str | Ref | SliceArg | Symbol | tuple["Arg", ...] | dict[str, "Arg"]
"""An argument of a call: a constant, a reference to a node, or a nest of them. Lists are kept as tuples."""


@dataclass(frozen=True, slots=True)
class Source:
    """The line of the user's code that made a node."""

    file: str
    line: int
    code: str = ""
    function: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """An identity tried on the captured values.

    `statement` is the identity as a formula; `held` is None where it could not be tried, with `detail` saying why;
    otherwise `detail` gives the largest difference found and what was allowed.
    """

    name: str
    statement: str
    held: bool | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Role:
    """What a node's value is: a place in the transformer (stack, layer, block) and a part there.

    `layer` is None where a block belongs to no layer (the embedding, the output). `evidence` says in one sentence which
    dataflow showed it. `str(role)` is the role's name: `decoder.0.cross_attention.scores`, `encoder.embedding.tokens`.
    """

    stack: str
    layer: int | None
    block: str
    part: str
    evidence: str = ""
    checks: tuple[Check, ...] = ()

    def __str__(self) -> str:
        return ".".join(
            str(piece) for piece in (self.stack, self.layer, self.block, self.part) if piece not in ("", None)
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """A role that was looked for and not given, and why."""

    role: str
    reason: str


@dataclass(frozen=True, slots=True)
class Node:
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


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter or buffer of a module; `name` is qualified from the root, `same_as` the first owner's if shared."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool
    buffer: bool = False
    same_as: str = ""


@dataclass(frozen=True, slots=True)
class Module:
    """A module of the model: its path from the root (empty for the root), class name, and its own parameters.

    `settings` are the constants that the module's class declares: a norm's `eps`, a convolution's `stride`.
    """

    path: str
    type: str
    parameters: tuple[Parameter, ...] = ()
    settings: dict[str, Arg] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dim:
    """A named size."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class SnapshotTensor:
    """One tensor of a snapshot: the name it goes by, where it is in the graph, and the role that puts it there.

    `shape` and `symbolic` are its spec's.
    """

    variable: str
    tensor: str
    node: str
    role: str
    shape: tuple[int, ...]
    symbolic: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One numbered view of an encoder–decoder transformer.

    `dims` is its shape in named dimensions, one expression each (`n_heads`, `min(10,tgt_vocab)`, `1`). `tensors` is
    empty exactly when the snapshot is not in this graph; `reason` then says why. `explanation` says what the tensor is
    and why it has that shape, with this graph's sizes put in. `roles` are the role names it is defined by.
    """

    number: int
    title: str
    section: str
    roles: tuple[str, ...]
    variables: tuple[str, ...]
    dims: tuple[str, ...]
    tensors: tuple[SnapshotTensor, ...] = ()
    explanation: str = ""
    checks: tuple[Check, ...] = ()
    reason: str = ""

    @property
    def found(self) -> bool:
        """Whether every tensor of the snapshot was found."""
        return bool(self.tensors)


@dataclass(frozen=True)
class Graph:
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
        return sum(_product(p.shape) for m in self.modules for p in m.parameters if not p.buffer and not p.same_as)

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
            unknown("tensor or role", name, (*self._tensors, *self.by_role)), field="tensor", tensor=name
        )

    @cached_property
    def _tensors(self) -> Mapping[str, TensorSpec]:
        return dict(self.tensors())


def _is_within(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}.")


def tensor_name(node: str, path: str) -> str:
    """The name of a node's tensor: the node's own name, or `node:path` for a leaf of a tuple or a dict."""
    return f"{node}:{path}" if path else node


def refs(arg: Arg) -> Iterator[str]:
    """Names of the nodes an argument refers to, in order, repeats included."""
    match arg:
        case Ref(node):
            yield node
        case tuple():
            for item in arg:
                yield from refs(item)
        case dict():
            for item in arg.values():
                yield from refs(item)
        case SliceArg(start, stop, step):
            for item in (start, stop, step):
                yield from refs(item)
        case _:
            return


def show(arg: Arg) -> str:
    """An argument as text, nodes as `%name`."""
    match arg:
        case Ref(node):
            return f"%{node}"
        case Symbol(text):
            return text
        case tuple():
            return "(" + ", ".join(map(show, arg)) + ("," if len(arg) == 1 else "") + ")"
        case dict():
            return "{" + ", ".join(f"{key}: {show(item)}" for key, item in arg.items()) + "}"
        case SliceArg(start, stop, step):
            parts = ["" if part is None else show(part) for part in (start, stop)]
            return ":".join(parts if step is None else [*parts, show(step)])
        case _:
            return repr(arg)


def show_shape(shape: tuple[int, ...] | tuple[str, ...]) -> str:
    """A shape as text: `1×4×5×6`, `batch×(length + 1)`, and `scalar` for a tensor of no dimensions."""
    return "×".join(map(_factor, shape)) or "scalar"


def _factor(size: int | str) -> str:
    """A size as one of several between `×`: a sum, or a division rounded down, in brackets."""
    text = outside = str(size)
    while (shorter := re.sub(r"\([^()]*\)", "", outside)) != outside:
        outside = shorter
    return f"({text})" if " " in outside or "//" in outside else text


def show_sizes(sized: TensorSpec | SnapshotTensor) -> str:
    """A tensor's shape as text; with its symbols where it has them: `(batch, 32, sequence, 2*sequence)`."""
    return show(tuple(map(Symbol, sized.symbolic))) if sized.symbolic else show_shape(sized.shape)


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
