from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxtrace.errors import NodeNotFound, QueryInvalid
from fxtrace.graph import Graph
from fxtrace.ir.trace import NodeQuery
from fxtrace.query import MAX_PATH_NODES, MAX_PATHS, find
from tests.query.graphs import large, random_graphs, small, wired

SMALL, LARGE = small(), large()
SCORES = "decoder.0.self_attention.scores"
TWO = st.tuples(st.integers(0, 6), st.integers(0, 6))


def names(query: NodeQuery, graph: Graph = SMALL) -> str:
    result = find(graph, query)
    assert (result.paths, result.truncated) == ((), False)
    return " ".join(node.name for node in result.nodes)


def paths(query: NodeQuery, graph: Graph = SMALL) -> list[str]:
    result = find(graph, query)
    assert [node.name for node in result.nodes] == list(dict.fromkeys(name for path in result.paths for name in path))
    assert not result.truncated
    return [" ".join(path) for path in result.paths]


def test_the_empty_query_means_every_node() -> None:
    assert find(SMALL, NodeQuery()).nodes == SMALL.nodes


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (NodeQuery(ancestors_of="scores"), "x q k"),
        (NodeQuery(ancestors_of=SCORES), "x q k"),
        (NodeQuery(ancestors_of="scores", max_depth=1), "q k"),
        (NodeQuery(descendants_of="weights"), "sum lstm size output"),
        (NodeQuery(descendants_of="weights", max_depth=2), "sum lstm"),
        (NodeQuery(ancestors_of="weights", descendants_of=SCORES), "scaled masked"),
        (NodeQuery('kind == "linear"', ancestors_of="weights"), "q k"),
        (NodeQuery("rank == 4", ancestors_of="lstm", descendants_of="k", max_depth=3), "masked"),
        (NodeQuery(descendants_of="output"), ""),
    ],
)
def test_what_flows_in_and_out(query: NodeQuery, expected: str) -> None:
    assert set(names(query).split()) == set(expected.split())


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (NodeQuery(path=("x", "sum")), ["x sum"]),
        (NodeQuery(path=("x", SCORES)), ["x q scores", "x k scores"]),
        (NodeQuery('kind != "linear" || name == "q"', path=("x", SCORES)), ["x q scores"]),
        (NodeQuery('kind == "linear"', path=("x", "sum")), ["x sum"]),
        (NodeQuery('kind == "matmul"', path=("x", "weights")), []),
        (NodeQuery(path=("sum", "x")), []),
        (NodeQuery(path=("x", "x")), ["x"]),
        (NodeQuery("rank == 4", pattern="linear .*"), [f"{each} scores scaled masked weights" for each in "qk"]),
        (NodeQuery(pattern="div add", ancestors_of="masked"), []),
        (NodeQuery(pattern="div .*", descendants_of="scores", ancestors_of="sum"), ["scaled masked weights"]),
    ],
)
def test_paths(query: NodeQuery, expected: list[str]) -> None:
    assert sorted(paths(query)) == sorted(expected)


@pytest.mark.parametrize(
    ("query", "error", "said"),
    [
        (NodeQuery(ancestors_of="score"), NodeNotFound, "ancestors_of: no node or role named 'score'; did you mean"),
        (NodeQuery(descendants_of="decoder.0"), NodeNotFound, "descendants_of: no node or role named 'decoder.0'"),
        (NodeQuery(path=("x", "weight")), NodeNotFound, "did you mean 'weights'?"),
        (NodeQuery(path=("", "weights")), NodeNotFound, "path: no node or role named ''"),
        (NodeQuery(path=("x", "q"), pattern="add"), QueryInvalid, "expected a path or a pattern; got both"),
        (NodeQuery(max_depth=2), QueryInvalid, "expected ancestors_of or descendants_of with it"),
        (NodeQuery(ancestors_of="q", max_depth=0), QueryInvalid, "max_depth: expected 1 or more; got 0"),
    ],
)
def test_what_is_wrong(query: NodeQuery, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as e:
        find(SMALL, query)
    assert said in str(e.value)


def flow(graph: Graph) -> nx.DiGraph[object]:
    edges: nx.DiGraph[object] = nx.DiGraph([(name, node.name) for node in graph.nodes for name in node.inputs])
    edges.add_nodes_from(graph.by_name)
    return edges


@given(random_graphs(), TWO, st.none() | st.integers(1, 4))
def test_ancestors_and_descendants_are_those_of_the_graph(
    graph: Graph, ends: tuple[int, int], depth: int | None
) -> None:
    a, b = (f"n{i % len(graph.nodes)}" for i in ends)
    edges = flow(graph)
    near = {name for name in graph.by_name if depth is None or _distance(edges, name, b) <= depth}
    assert set(names(NodeQuery(ancestors_of=b, max_depth=depth), graph).split()) == nx.ancestors(edges, b) & near
    between = nx.ancestors(edges, b) & nx.descendants(edges, a)
    assert set(names(NodeQuery(ancestors_of=b, descendants_of=a), graph).split()) == between


@given(random_graphs(), TWO)
def test_paths_are_the_shortest(graph: Graph, ends: tuple[int, int]) -> None:
    a, b = (f"n{i % len(graph.nodes)}" for i in ends)
    every = [[a]] if a == b else list(nx.all_simple_paths(flow(graph), a, b))
    shortest = min(map(len, every), default=0)
    expected = sorted(" ".join(map(str, path)) for path in every if len(path) == shortest)
    assert sorted(paths(NodeQuery(path=(a, b)), graph)) == expected


def _distance(edges: nx.DiGraph[object], source: str, target: str) -> float:
    return nx.shortest_path_length(edges, source, target) if nx.has_path(edges, source, target) else float("inf")


def test_a_large_graph() -> None:
    assert len(find(LARGE, NodeQuery(pattern="matmul pointwise* softmax")).paths) == 2222
    assert [len(path) for path in find(LARGE, NodeQuery(path=("x", "sum_2221"))).paths] == [2223]
    assert len(find(LARGE, NodeQuery(ancestors_of="sum_1000")).nodes) == 9 * 1001
    near = find(LARGE, NodeQuery('kind == "linear"', descendants_of="sum_1000", max_depth=2)).nodes
    assert [node.name for node in near] == [f"{each}_{i}" for i in (1001, 1002) for each in "qkv"]


@pytest.mark.parametrize("pattern", [". .", ".*", ".+ softmax", ".{64}", ".? .? .? .? .{2,}"])
def test_no_more_paths_than_fit_are_looked_for(pattern: str) -> None:
    result = find(LARGE, NodeQuery(pattern=pattern))
    assert result.truncated
    assert 1 <= len(result.paths) <= MAX_PATHS
    assert sum(map(len, result.paths)) <= MAX_PATH_NODES or len(result.paths) == 1


def test_no_more_shortest_paths_than_fit_are_looked_for() -> None:
    # 2⁴⁰ shortest paths: 40 diamonds in a row.
    edges: dict[int, list[int]] = {0: []}
    for i in range(0, 120, 3):
        edges |= {i + 1: [i], i + 2: [i], i + 3: [i + 1, i + 2]}
    diamonds = wired(["add"] * 121, edges)
    result = find(diamonds, NodeQuery(path=("n0", "n120")))
    assert result.truncated
    assert {len(path) for path in result.paths} == {81}
    assert len(set(result.paths)) == len(result.paths) == MAX_PATH_NODES // 81
