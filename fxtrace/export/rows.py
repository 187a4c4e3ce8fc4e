"""What is known of a node, flat: the attributes that graphs and tables of other tools have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fxtrace.graph import Arg, Graph, Node, Ref, SliceArg, tensor_name

if TYPE_CHECKING:
    from fxtrace.dims import Formulas

# By name: what it is. A node has them all; None or an empty tuple where there is nothing of the kind.
ATTRIBUTES = {
    "name": "the node's own",
    "op": "torch.fx's opcode",
    "target": "what is called",
    "kind": "what the op does: matmul, softmax, view …",
    "role": "the first role",
    "roles": "every role",
    "module": "path of the innermost module that it ran in",
    "module_type": "that module's class",
    "shape": "of its tensor, where it returns just one",
    "dtype": "likewise",
    "formula": "what each of these sizes is made of, where formulas were found",
    "nbytes": "of all its tensors",
    "returns": "what it returns, as text: 1×4×5×6 float32",
    "parameters": "qualified names of the parameters and buffers that it reads",
    "source": "file:line of the user's code",
    "code": "that line",
}
"""The attributes, and what they are."""


def row(graph: Graph, node: Node, formulas: Formulas | None = None) -> dict[str, Any]:
    """The `ATTRIBUTES` of a node."""
    spec, source = node.spec, node.source
    module = graph.modules_by_path.get(node.module)
    roles = tuple(map(str, node.roles))
    return {
        "name": node.name,
        "op": node.op,
        "target": node.target,
        "kind": node.kind,
        "role": roles[0] if roles else None,
        "roles": roles,
        "module": node.module,
        "module_type": module.type if module else None,
        "shape": spec.shape if spec else None,
        "dtype": spec.dtype if spec else None,
        "formula": formula_of(node.name, formulas) if spec else None,
        "nbytes": sum(each.nbytes for _, each in node.tensors),
        "returns": node.returns,
        "parameters": node.parameters,
        "source": f"{source.file}:{source.line}" if source else None,
        "code": source.code if source else None,
    }


def formula_of(tensor: str, formulas: Formulas | None) -> tuple[str, ...] | None:
    """What each of a tensor's sizes is made of, empty where it has no formula; None where none were looked for."""
    return formulas.shape(tensor) if formulas and tensor in formulas.tensors else None


def uses(node: Node) -> Iterator[tuple[str, str]]:
    """(argument, name of the node that it is) for every node among a node's arguments, in order, repeats included.

    Arguments are named by their place: `0`, `mask`, `0[1]`, `0['logits']`, `1[0].stop`. No two have the same name.
    """
    for index, arg in enumerate(node.args):
        yield from _places(str(index), arg)
    for name, arg in node.kwargs.items():
        yield from _places(name, arg)


def _places(place: str, arg: Arg) -> Iterator[tuple[str, str]]:
    match arg:
        case Ref(node):
            yield place, node
        case tuple():
            for index, item in enumerate(arg):
                yield from _places(f"{place}[{index}]", item)
        case dict():
            for key, item in arg.items():
                yield from _places(f"{place}[{key!r}]", item)
        case SliceArg(start, stop, step):
            for name, item in (("start", start), ("stop", stop), ("step", step)):
                yield from _places(f"{place}.{name}", item)
        case _:
            return


def edges(graph: Graph) -> Iterator[tuple[Node, Node, str, str]]:
    """(node, reader, argument, tensor) for every use of a node's value in the graph, in execution order.

    `tensor` is the name of the tensor that is used; empty where it is no tensor, or several.
    """
    for reader in graph.nodes:
        for argument, name in uses(reader):
            if node := graph.by_name.get(name):  # of a filtered graph, some are not
                path = _picked(node, reader)
                tensors = [tensor for tensor, _ in node.tensors]
                wanted = tensor_name(node.name, path) if path else tensors[0] if len(tensors) == 1 else ""
                yield node, reader, argument, wanted if wanted in tensors else ""


def _picked(node: Node, reader: Node) -> str:
    """The path of the one value, of several that a node returns, that its reader is; empty where it is not one."""
    match reader:
        case Node(target="operator.getitem", args=(Ref(name), int() | str() as key)) if name == node.name:
            return str(key) if len(node.values) > 1 else ""
    return ""
