"""Graphs as other tools read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import pygraphviz
import pytest

from fxtrace import Trace
from fxtrace.export import export, to_networkx
from fxtrace.export.rows import ATTRIBUTES
from fxtrace.graph import refs
from tests.export.models import MODELS, ODD, traced


@pytest.fixture(params=MODELS)
def trace(request: pytest.FixtureRequest) -> Trace:
    return traced(request.param)


def used(trace: Trace) -> list[tuple[str, str]]:
    """(node, reader) of every use, counted without what is tested."""
    nodes = trace.graph.nodes
    return [(name, node.name) for node in nodes for arg in (*node.args, *node.kwargs.values()) for name in refs(arg)]


# ---------------------------------------------------------------------------------------------------------- networkx


def test_networkx_has_every_node_and_every_use(trace: Trace) -> None:
    network = trace.to_networkx()
    assert list(network) == [node.name for node in trace.graph.nodes]
    assert sorted(network.edges()) == sorted(used(trace))
    assert nx.is_directed_acyclic_graph(network)
    assert all(set(known) == set(ATTRIBUTES) for _, known in network.nodes(data=True))
    for node in trace.graph.nodes:
        known = network.nodes[node.name]
        assert known["roles"] == tuple(map(str, node.roles))
        assert known["shape"] == (node.spec.shape if node.spec else None)
        assert known["nbytes"] == sum(spec.nbytes for _, spec in node.tensors)


def test_a_value_that_is_read_twice_has_two_edges() -> None:
    edges = traced("every type").to_networkx()["x"]["add"]
    assert edges == {"0": {"argument": "0", "tensor": "x"}, "1": {"argument": "1", "tensor": "x"}}


def test_an_edge_names_the_tensor_that_goes_along_it() -> None:
    trace = traced("recurrent")
    network = trace.to_networkx()
    lstm = next(node for node in trace.graph.nodes if len(node.values) == 3)
    along = [known["tensor"] for _, _, known in network.out_edges(lstm.name, data=True)]
    assert along == [f"{lstm.name}:0", None]  # the second reader takes a pair of tensors
    inner = {known["tensor"] for _, _, known in network.edges(data=True)} & {name for name, _ in trace.graph.tensors()}
    assert len(inner) > 4


def test_arguments_are_named_by_their_place() -> None:
    trace = traced("odd names")
    places = {place for _, reader, place in trace.to_networkx().edges(keys=True) if reader == "output"}
    assert places == {f"0[{ODD!r}]", "0['nested']['x'][0]", "0['nested']['x'][1]"}


def test_a_part_of_a_graph_has_the_edges_within_it() -> None:
    part = traced("reference").graph.within(module="enc_layers.0")
    network = to_networkx(part)
    assert set(network) == {node.name for node in part.nodes}
    assert 0 < network.number_of_edges() < traced("reference").to_networkx().number_of_edges()


# ----------------------------------------------------------------------------------------------------------- GraphML


def test_graphml_round_trips(trace: Trace, tmp_path: Path) -> None:
    file = trace.export(tmp_path / "x.graphml")
    read = nx.read_graphml(file, force_multigraph=True)
    network = trace.to_networkx()
    assert list(read) == list(network)
    assert sorted(read.edges()) == sorted(network.edges())
    assert read.graph["trace"] == trace.id
    edges = ElementTree.parse(file).iter("{http://graphml.graphdrawing.org/xmlns}edge")
    assert len({edge.attrib["id"] for edge in edges}) == read.number_of_edges()
    for name, known in network.nodes(data=True):
        for attribute, value in known.items():
            got: Any = read.nodes[name].get(attribute)
            if isinstance(value, tuple):
                assert tuple(json.loads(got)) == value
            elif not isinstance(value, str) or value.isprintable():
                assert got == value, attribute


def test_graphml_writes_what_xml_cannot_hold_as_python_would(tmp_path: Path) -> None:
    read = nx.read_graphml(traced("odd names").export(tmp_path / "x.graphml"), force_multigraph=True)
    assert {known["module"] for _, known in read.nodes(data=True)} == {"", "a/b <ü>\n\"'"}
    arguments = {known["argument"] for _, _, known in read.edges(data=True)}
    assert f"0[{ODD!r}]" in arguments
    trace = traced("one op")
    node = trace.graph.nodes[0]
    odd = type(trace.graph)("\x00\ud800\r", (type(node)(ODD, "placeholder", ODD, "input"),))
    other = type("Other", (), {"graph": odd, "info": trace.info, "api": trace.api})
    read = nx.read_graphml(export(other(), tmp_path / "y.graphml"))
    assert list(read) == [ODD.replace("\x01", "\\x01").replace("\r", "\\r")]
    assert read.nodes[next(iter(read))]["target"] == next(iter(read))
    assert read.graph["name"] == "\\x00\\ud800\\r"


# --------------------------------------------------------------------------------------------------------------- DOT


def test_graphviz_reads_dot_and_every_op_on_the_inputs_is_drawn(trace: Trace, tmp_path: Path) -> None:
    drawn = pygraphviz.AGraph(string=trace.export(tmp_path / "x.dot").read_text())
    network = trace.to_networkx()
    tensors: nx.MultiDiGraph[str] = nx.MultiDiGraph()
    tensors.add_edges_from((tail, head) for tail, head, known in network.edges(data=True) if known["tensor"])
    inputs = [name for name, known in network.nodes(data=True) if known["op"] == "placeholder" and name in tensors]
    returning = {node.name for node in trace.graph.nodes if node.tensors}
    reached = {name for each in inputs for name in nx.descendants(tensors, each)} & returning
    assert reached
    assert reached <= set(drawn.nodes())
    assert drawn.number_of_edges() >= len(reached)
    assert trace.model in drawn.graph_attr["label"]


# -------------------------------------------------------------------------------------------------------------- JSON


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def test_json_has_the_whole_graph(trace: Trace, tmp_path: Path) -> None:
    file = trace.export(tmp_path / "x.json")
    read = json.loads(file.read_bytes(), parse_constant=refuse)
    assert json.loads(json.dumps(read)) == read
    assert (read["format"], read["version"]) == ("fxtrace.graph", 1)
    assert set(read) == {"format", "version", "trace", "graph", "snapshots", "formulas"}
    assert read["trace"]["id"] == trace.id
    assert [node["name"] for node in read["graph"]["nodes"]] == [node.name for node in trace.graph.nodes]
    assert [each["number"] for each in read["snapshots"]] == [each.number for each in trace.snapshots]
    names = {node["name"] for node in read["graph"]["nodes"]}
    for node, known in zip(trace.graph.nodes, read["graph"]["nodes"], strict=True):
        assert set(known) == {
            *("name", "op", "target", "kind", "args", "kwargs", "values", "module", "parameters", "source", "roles"),
            *("inputs", "users"),
        }
        assert known["inputs"] == list(node.inputs)
        assert set(known["users"]) <= names
        assert [role["name"] for role in known["roles"]] == list(map(str, node.roles))
        assert [each["spec"]["shape"] for each in known["values"] if each["spec"]] == [
            list(spec.shape) for _, spec in node.tensors
        ]
        assert [each for arg in known["args"] for each in found(arg)] == [
            each for arg in node.args for each in refs(arg)
        ]


def found(arg: Any) -> list[str]:
    """The nodes in an argument, by what the document says of its form."""
    match arg:
        case {"node": name}:
            return [name]
        case {"slice": items} | list(items):
            return [name for item in items for name in found(item)]
        case {"map": items}:
            return [name for item in items.values() for name in found(item)]
    return []


def test_json_keeps_what_json_lacks(tmp_path: Path) -> None:
    read = json.loads(traced("odd names").export(tmp_path / "x.json").read_bytes())
    assert ODD in read["graph"]["nodes"][-1]["args"][0]["map"]
    assert "Infinity" in [arg for node in read["graph"]["nodes"] for arg in node["args"] if isinstance(arg, str)]


def test_formulas_are_told_where_they_were_found(tmp_path: Path) -> None:
    trace = traced("reference")
    untold = json.loads(traced("shapes").export(tmp_path / "x.json").read_bytes())
    assert untold["formulas"] is None
    formulas = trace.formulas()
    read = json.loads(trace.export(tmp_path / "x.json").read_bytes())
    assert read["formulas"] == {name: list(formulas.shape(name)) for name in trace}
    graph = nx.read_graphml(trace.export(tmp_path / "x.graphml"), force_multigraph=True)
    assert json.loads(graph.nodes["softmax"]["formula"]) == list(formulas.shape("softmax"))
