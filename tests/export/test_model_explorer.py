"""Graphs as Google's Model Explorer takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fxtrace import Trace
from tests.export.models import MODELS, ODD, traced


def drawn(trace: Trace, folder: Path) -> dict[str, Any]:
    read = json.loads(trace.export(folder / "x.model-explorer.json").read_bytes())
    assert set(read) == {"label", "graphs"}  # by these two, its page knows a collection
    [graph] = read["graphs"]
    return dict(graph)


@pytest.mark.parametrize("name", MODELS)
def test_every_edge_has_its_ends(name: str, tmp_path: Path) -> None:
    trace = traced(name)
    graph = drawn(trace, tmp_path)
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert list(nodes) == [node.name for node in trace.graph.nodes]
    edges = [(edge["sourceNodeId"], node["id"]) for node in graph["nodes"] for edge in node["incomingEdges"]]
    assert sorted(edges) == sorted(trace.to_networkx().edges())
    for node in graph["nodes"]:
        outputs = {each["id"] for each in node["outputsMetadata"]}
        tensors = trace.graph.node(node["id"]).tensors
        assert len(outputs) == len(tensors)
        assert [pairs(each)["__tensor_tag"] for each in node["outputsMetadata"]] == [name for name, _ in tensors]
        inputs = [each["targetNodeInputId"] for each in node["incomingEdges"]]
        assert inputs == [each["id"] for each in node["inputsMetadata"]]
        for edge in node["incomingEdges"]:
            source = nodes[edge["sourceNodeId"]]
            if source["outputsMetadata"]:
                assert edge["sourceNodeOutputId"] in {each["id"] for each in source["outputsMetadata"]}


def pairs(item: dict[str, Any]) -> dict[str, str]:
    return {each["key"]: each["value"] for each in item["attrs"]}


def test_layers_are_nested_as_the_modules_are(tmp_path: Path) -> None:
    trace = traced("reference")
    graph = drawn(trace, tmp_path)
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert nodes["softmax"]["namespace"] == "enc_layers/0/self_mha"
    assert (nodes["softmax"]["label"], nodes["src_ids"]["label"]) == ("softmax", "src_ids")
    norm = nodes["enc_layers_0_norm2"]
    assert (norm["label"], norm["namespace"]) == ("norm2: LayerNorm", "enc_layers/0")
    assert graph["groupNodeAttributes"]["enc_layers/0/self_mha"]["class"] == "MultiHeadAttention"
    assert graph["groupNodeAttributes"][""]["trace"] == trace.id
    known = pairs(nodes["softmax"])
    assert known["roles"] == "encoder.0.self_attention.weights"
    assert known["source"].startswith("fxtrace/reference/transformer.py:")
    assert pairs(nodes["softmax"]["outputsMetadata"][0])["tensor_shape"] == "float32[1,4,6,6]"


def test_a_slash_in_a_modules_name_parts_no_layers(tmp_path: Path) -> None:
    namespaces = {node["namespace"] for node in drawn(traced("odd names"), tmp_path)["nodes"]}
    assert namespaces == {"", "a\N{DIVISION SLASH}b <ü>\n\"'"}


def test_one_of_several_outputs_is_told(tmp_path: Path) -> None:
    trace = traced("recurrent")
    ids = [
        edge["sourceNodeOutputId"]
        for node in drawn(trace, tmp_path)["nodes"]
        for edge in node["incomingEdges"]
        if len(trace.graph.node(edge["sourceNodeId"]).values) == 2
    ]
    assert ids == ["0", "1"]


@pytest.mark.parametrize("name", MODELS)
def test_the_package_itself_takes_it(name: str, tmp_path: Path) -> None:
    """Its own dataclasses, strictly, through the reader that it depends on."""
    reason = "pip install ai-edge-model-explorer to check the files with the package itself"
    builder = pytest.importorskip("model_explorer.graph_builder", reason=reason)
    dacite = pytest.importorskip("dacite", reason=reason)
    read = json.loads(traced(name).export(tmp_path / "x.model-explorer.json").read_bytes())
    made = dacite.from_dict(builder.GraphCollection, read, dacite.Config(strict=True))
    assert [node.id for node in made.graphs[0].nodes] == [node.name for node in traced(name).graph.nodes]
    with pytest.raises(dacite.DaciteError):
        dacite.from_dict(builder.GraphCollection, {**read, ODD: 1}, dacite.Config(strict=True))
