"""Graphs of networkx, and GraphML."""

from __future__ import annotations

import json
import re
from typing import Any, BinaryIO

import networkx as nx

from fxtrace.dims import Formulas
from fxtrace.export.rows import edges, row
from fxtrace.export.subject import Subject
from fxtrace.graph import Graph

_NOT_IN_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot hold, or (a carriage return) does not give back."""


def to_networkx(graph: Graph, formulas: Formulas | None = None) -> nx.MultiDiGraph[str]:
    """Returns a graph for networkx: a node for every node, and an edge for every use of its value.

    Nodes have what `fxtrace.export.rows.ATTRIBUTES` lists: `op`, `target`, `kind`, `role`, `module`, `shape` … An edge
    goes from a node to one that reads it. Its key and its attribute `argument` say as which argument: `0`, `mask`,
    `0[1]`; its `tensor` names the tensor that goes along it. A node that is read twice by another has two edges to it.

    Args:
        graph: a trace's graph, or a part of it: then only the edges within it.
        formulas: its formulas, for the attribute `formula`.

    Example:
        >>> network = to_networkx(fxtrace.trace("reference").graph)
        >>> nx.dag_longest_path_length(network)
    """
    network: nx.MultiDiGraph[str] = nx.MultiDiGraph(name=graph.name)
    network.graph["dims"] = {dim.name: dim.size for dim in graph.dims}
    for node in graph.nodes:
        network.add_node(node.name, **row(graph, node, formulas))
    for node, reader, argument, tensor in edges(graph):
        network.add_edge(node.name, reader.name, key=argument, argument=argument, tensor=tensor or None)
    return network


def write_graphml(subject: Subject, file: BinaryIO) -> None:
    """Writes GraphML: tuples as JSON text (`[1, 4, 5, 6]`), no attribute where there is no value."""
    network = to_networkx(subject.graph, subject.formulas)
    info = subject.info
    network.graph |= {"trace": info.id, "model": info.model, "rung": info.rung, "torch": info.torch_version}
    plain: nx.MultiDiGraph[str] = nx.MultiDiGraph(**_scalars(network.graph))
    for name, attributes in network.nodes(data=True):
        plain.add_node(_text(name), **_scalars(attributes))
    for index, (tail, head, attributes) in enumerate(network.edges(data=True)):  # an edge's id is the file's only one
        plain.add_edge(_text(tail), _text(head), key=f"e{index}", **_scalars(attributes))
    nx.write_graphml(plain, file, named_key_ids=True)


def _scalars(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: _scalar(value) for name, value in attributes.items() if value is not None}


def _scalar(value: Any) -> str | int | float | bool:
    if isinstance(value, tuple | dict):
        return _text(json.dumps(value, ensure_ascii=False))
    return _text(value) if isinstance(value, str) else value


def _text(value: str) -> str:
    r"""A text that XML can hold: other characters as Python would write them, `\x00`."""
    return _NOT_IN_XML.sub(lambda found: found[0].encode("unicode_escape").decode(), value)
