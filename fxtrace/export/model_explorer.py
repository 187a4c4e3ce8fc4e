"""Graphs for Google's Model Explorer: https://github.com/google-ai-edge/model-explorer.

Its page opens the file as it is: `model-explorer reference.model-explorer.json`. The keys are those of its
`graph_builder.GraphCollection`. Modules are nested layers; a node's attributes are in the side panel, the shape and
dtype of what it returns on its edges.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import BinaryIO

from fxtrace.export.document import plain
from fxtrace.export.rows import edges, formula_of, row
from fxtrace.export.subject import Subject
from fxtrace.graph import Graph, Module, Node, show, show_shape, show_sizes, tensor_name
from fxtrace.ir.trace import Json

_SLASH = "\N{DIVISION SLASH}"
"""In place of a slash in a module's name: a slash parts the layers there."""

_SHOWN = ("op", "target", "kind", "roles", "returns", "nbytes", "parameters", "source", "code")
"""The attributes that a node shows."""


def collection(subject: Subject) -> dict[str, Json]:
    """A trace as a collection of one graph."""
    graph, info = subject.graph, subject.info
    whole: dict[str, Json] = {"trace": info.id, "model": info.model, "class": graph.name, "rung": info.rung}
    whole |= {name: json.dumps(plain(value)) for name, value in info.configuration.items()}
    groups: dict[str, Json] = {_namespace(module.path): dict(_module(module)) for module in graph.modules}
    groups[""] = whole
    drawn: Json = {"id": info.model, "nodes": list(_nodes(subject)), "groupNodeAttributes": groups}
    return {"label": info.model, "graphs": [drawn]}


def write_model_explorer(subject: Subject, file: BinaryIO) -> None:
    """Writes `collection`."""
    file.write(json.dumps(collection(subject), separators=(",", ":")).encode() + b"\n")


def _nodes(subject: Subject) -> Iterator[dict[str, Json]]:
    graph = subject.graph
    incoming: dict[str, list[tuple[Node, str, str]]] = {node.name: [] for node in graph.nodes}
    for node, reader, argument, tensor in edges(graph):
        incoming[reader.name].append((node, argument, tensor))
    for node in graph.nodes:
        label, namespace = _place(graph, node)
        yield {
            "id": node.name,
            "label": label,
            "namespace": namespace,
            "attrs": _pairs(dict(_attributes(subject, node))),
            "incomingEdges": [
                {
                    "sourceNodeId": source.name,
                    "sourceNodeOutputId": str(_output(source, tensor)),
                    "targetNodeInputId": str(index),
                }
                for index, (source, _, tensor) in enumerate(incoming[node.name])
            ],
            "inputsMetadata": [
                {"id": str(index), "attrs": _pairs({"argument": argument})}
                for index, (_, argument, _) in enumerate(incoming[node.name])
            ],
            "outputsMetadata": list(_outputs(subject, node)),
        }


def _place(graph: Graph, node: Node) -> tuple[str, str]:
    """What a node is called, and the layer that it is in."""
    if node.op == "call_module" and node.module == node.target:  # a layer of its own for one node would tell nothing
        outer, _, own = node.module.rpartition(".")
        module = graph.modules_by_path.get(node.module)
        return f"{own}: {module.type}" if module else own, _namespace(outer)
    label = node.target.rpartition(".")[2] if node.op.startswith("call") else node.name
    return label, _namespace(node.module)


def _namespace(path: str) -> str:
    return path.replace("/", _SLASH).replace(".", "/")


def _attributes(subject: Subject, node: Node) -> Iterator[tuple[str, str]]:
    known = row(subject.graph, node)
    for name in _SHOWN:
        value = known[name]
        if value not in (None, ()):
            yield name, ", ".join(value) if isinstance(value, tuple) else str(value)
    if formula := formula_of(node.name, subject.formulas):
        yield "formula", show_shape(tuple(each or "?" for each in formula))
    for role in node.roles:
        if role.evidence:
            yield f"why {role}", role.evidence
    for name, arg in (*((str(index), arg) for index, arg in enumerate(node.args)), *node.kwargs.items()):
        yield f"argument {name}", show(arg)


def _outputs(subject: Subject, node: Node) -> Iterator[Json]:
    for index, value in enumerate(node.values):
        if value.spec is None:
            continue
        name = tensor_name(node.name, value.path)
        told = {
            "__tensor_tag": name,
            "tensor_shape": f"{value.spec.dtype}[{','.join(map(str, value.spec.shape))}]",
            "sizes": show_sizes(value.spec),
        }
        if formula := formula_of(name, subject.formulas):
            told["formula"] = show_shape(tuple(each or "?" for each in formula))
        yield {"id": str(index), "attrs": _pairs(told)}


def _output(node: Node, tensor: str) -> int:
    """Which of a node's values a tensor is."""
    names = [tensor_name(node.name, value.path) for value in node.values]
    return names.index(tensor) if tensor in names else 0


def _module(module: Module) -> Iterator[tuple[str, str]]:
    yield "class", module.type
    for name, value in module.settings.items():
        yield name, show(value)
    for parameter in module.parameters:
        yield parameter.name.rpartition(".")[2], f"{show_shape(parameter.shape)} {parameter.dtype}"


def _pairs(attributes: dict[str, str]) -> list[Json]:
    return [{"key": key, "value": value} for key, value in attributes.items()]
