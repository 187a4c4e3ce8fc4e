from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxtrace.errors import QueryInvalid, TooLarge
from fxtrace.graph import Graph
from fxtrace.ops import KINDS, POINTWISE
from fxtrace.query import patterns
from fxtrace.query.patterns import MAX_PATTERN, Pattern, Step
from tests.query.graphs import random_graphs, small, wired

SMALL = small()


def found(pattern: str, graph: Graph = SMALL) -> list[str]:
    return [" ".join(path) for path in Pattern.parse(pattern).paths(graph, graph.by_name)]


GOOD = [
    ("matmul (add|mul|div|view)* softmax", ["scores scaled masked weights"]),
    ("matmul pointwise* softmax", ["scores scaled masked weights"]),
    ("  matmul   pointwise * softmax ".replace(" *", "*"), ["scores scaled masked weights"]),
    ("matmul.{2}softmax", ["scores scaled masked weights"]),
    ("matmul .{,2} softmax".replace("{,", "{0,"), ["scores scaled masked weights"]),
    ("matmul . softmax", []),
    ("linear matmul", ["q scores", "k scores"]),
    ("input linear? matmul? div", ["x q scores scaled", "x k scores scaled"]),
    ("softmax pointwise+", ["weights sum"]),
    ("add", ["masked", "sum"]),
    ("add+", ["masked", "sum"]),
    ("( div | add )*", ["scaled masked", "sum"]),
    ("div* add", ["scaled masked", "sum"]),
    ("div{0,2} add{1,}", ["scaled masked", "sum"]),
    ("recurrent (output|size)", ["lstm size", "lstm output"]),
    ("(.|add) output", ["lstm output"]),
    ("input add recurrent", ["x sum lstm"]),
    ("convolution .*", []),
]


@pytest.mark.parametrize(("pattern", "expected"), GOOD, ids=[pattern for pattern, _ in GOOD])
def test_what_matches(pattern: str, expected: list[str]) -> None:
    assert found(pattern) == expected


@pytest.mark.parametrize(
    ("marked", "said"),
    [
        ("matmul ▸matmull softmax", "no kind named 'matmull'; did you mean 'matmul'?"),
        ("matmul (add|▸mull)*", "no kind named 'mull'; did you mean 'mul'?"),
        ("matmul ▸(add|", "expected a kind, (kind|kind) or '.'"),
        ("matmul*▸*", "expected a kind"),
        ("add▸|mul", "expected a kind"),
        ("add ▸() mul", "expected a kind"),
        ("add ▸(add mul)", "expected a kind"),
        ("add ▸* mul", "expected a kind"),
        ("add▸{x}", "expected a kind"),
        ("add▸{1000}", "expected a kind"),
        ("add\n▸?", "expected a kind"),
        ("add{▸3,1}", "expected {n,m} with m at least n and 1; got add{3,1}"),
        ("add{▸0}", "expected {n,m} with m at least n and 1; got add{0}"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(marked: str, said: str) -> None:
    place, pattern = marked.index("▸"), marked.replace("▸", "")
    with pytest.raises(QueryInvalid) as e:
        Pattern.parse(pattern)
    assert said in e.value.message
    assert e.value.field == "query.pattern"
    _, excerpt, pointer = e.value.message.split("\n")
    assert excerpt[pointer.index("^") :] == pattern[place:].split("\n")[0]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (" ", "expected at least one step; got none"),
        ("add " * MAX_PATTERN, f"expected at most {MAX_PATTERN} characters; got {4 * MAX_PATTERN}"),
        ("add{65}", "expected at most 64 nodes; got more"),
        ("add{999,}", "expected at most 64 nodes; got more"),
        ("add " * 65, "expected at most 64 nodes; got more"),
    ],
)
def test_what_is_wrong_as_a_whole(pattern: str, said: str) -> None:
    with pytest.raises(QueryInvalid, match=r"^pattern: ") as e:
        Pattern.parse(pattern)
    assert said in e.value.message


PIECES = ["add", "(add|mul)", ".", "*", "+", "?", "{2}", "{0,1}", "(", ")", "|", " "]


@given(st.one_of(st.text(max_size=30), st.lists(st.sampled_from(PIECES)).map("".join)))
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    with suppress(QueryInvalid):
        for path in Pattern.parse(text).paths(SMALL, SMALL.by_name):
            assert set(path) <= SMALL.by_name.keys()


LETTERS = {"add": "a", "mul": "m", "matmul": "x"}
STEPS = st.builds(
    lambda kinds, least, more: Step(kinds, least, None if more is None else max(1, least + more)),
    st.frozensets(st.sampled_from(sorted(LETTERS)), min_size=1),
    st.integers(0, 2),
    st.none() | st.integers(0, 2),
)


def text(steps: list[Step]) -> str:
    return " ".join(f"({'|'.join(sorted(s.kinds))}){{{s.least},{'' if s.most is None else s.most}}}" for s in steps)


def every_path(graph: Graph, names: Collection[str]) -> Iterator[tuple[str, ...]]:
    paths: list[tuple[str, ...]] = [(name,) for name in names]
    while paths:
        path = paths.pop()
        yield path
        paths += [(*path, user) for user in graph.users[path[-1]] if user in names]


@given(random_graphs(), st.lists(STEPS, min_size=1, max_size=4), st.data())
def test_matches_are_those_of_a_regular_expression_on_every_path(
    graph: Graph, steps: list[Step], data: st.DataObject
) -> None:
    names = data.draw(st.sets(st.sampled_from(sorted(graph.by_name))))
    regex = re.compile(
        "".join(
            f"[{''.join(LETTERS[kind] for kind in step.kinds)}]{{{step.least},{step.most or ''}}}" for step in steps
        )
    )
    matches = {
        path
        for path in every_path(graph, names)
        if regex.fullmatch("".join(LETTERS[graph.by_name[name].kind] for name in path))
    }
    inside = {path[:end] for path in matches for end in range(1, len(path))} | {path[1:] for path in matches}
    got = list(Pattern.parse(text(steps)).paths(graph, names))
    assert len(got) == len(set(got))
    assert set(got) == matches - inside
    order = [graph.nodes.index(graph.by_name[path[0]]) for path in got]
    assert order == sorted(order)


def test_steps_are_what_their_text_says() -> None:
    graph = wired(["add", "mul", "matmul"], {0: [], 1: [0], 2: [1]})
    steps = [Step(POINTWISE, 0, None), Step(frozenset(KINDS))]
    assert list(Pattern(steps).paths(graph, graph.by_name)) == [("n0", "n1", "n2")]


def test_too_many_partial_matches_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MAX_STEPS", 3)
    assert found("matmul . .") == ["scores scaled masked"]
    with pytest.raises(TooLarge, match="too many partial matches"):
        found("matmul . . .")
