"""The object over one trace: the same in this process, over a store and over a server."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxtrace
from fxtrace.service.engine import Engine
from tests.conftest import Served

ROLE = "decoder.0.cross_attention.weights"


@pytest.fixture(scope="module")
def made() -> fxtrace.Trace:
    return fxtrace.trace("reference")


@pytest.fixture(params=["session", "engine", "client"])
def trace(
    request: pytest.FixtureRequest, made: fxtrace.Trace, served: Served, tmp_path: Path
) -> Iterator[fxtrace.Trace]:
    match request.param:
        case "session":
            yield made
        case "engine":
            with Engine.open(tmp_path) as engine:
                yield engine.trace("reference")
        case _:
            with fxtrace.Client(served.address) as client:
                yield client.trace("reference")


def test_the_same_object_from_everywhere(trace: fxtrace.Trace, made: fxtrace.Trace) -> None:
    assert trace.id == made.id
    assert trace.graph == made.graph
    assert trace.model == "reference"
    assert trace.configuration["d_model"] == 128
    assert torch.equal(trace[ROLE], made[ROLE])
    assert trace[ROLE].shape == (1, 4, 5, 6)
    spec = trace.roles[ROLE].spec
    assert spec is not None
    assert spec.shape == (1, 4, 5, 6)
    assert len(trace.snapshots) == 43
    assert trace.explain(ROLE) == made.explain(ROLE)
    assert trace.explain("34").title == made.explain("34").title
    assert trace.draw(format="dot").data == made.draw(format="dot").data
    assert str(trace) == str(made)
    assert len(trace) == len(list(trace)) == trace.info.tensor_count


def test_what_can_be_asked_for_by_name(trace: fxtrace.Trace) -> None:
    assert list(trace["decoder.0.cross_attention"]) == [
        name for name in trace.roles if name.startswith("decoder.0.cross_attention.")
    ]
    weights = trace['kind == "softmax"']
    assert list(weights) == [f"softmax{n}" for n in ("", "_1", "_2", "_3", "_4", "_5")]
    assert all(torch.allclose(each.sum(-1), torch.ones(())) for each in weights.values())
    assert list(trace["#34"]) == [each.variable for each in trace.snapshots[33].tensors]
    assert trace.read("softmax", "0,0,0").shape == (6,)
    assert ROLE in trace
    assert "decoder.0" in trace
    assert "decoder.9" not in trace
    assert 'kind == "softmax"' not in trace


@pytest.mark.parametrize("name", ["decoder.0.cross_attention.weight", "softmaks", "#99", "", "a b", "ü", "x" * 1000])
def test_what_is_not_there_is_a_lookup_error(name: str, made: fxtrace.Trace) -> None:
    with pytest.raises(fxtrace.NotFound) as caught:
        made[name]
    assert isinstance(caught.value, LookupError)
    assert len(str(caught.value)) < 2000


def test_a_condition_that_is_none_says_where(made: fxtrace.Trace) -> None:
    with pytest.raises(fxtrace.QueryInvalid, match="column"):
        made['kind == "softmax" &']
    with pytest.raises(fxtrace.OptionInvalid, match="got int"):
        made[3]  # type: ignore[index]


def test_nodes_are_chosen(trace: fxtrace.Trace) -> None:
    assert trace.nodes().names == tuple(node.name for node in trace.graph.nodes)
    assert trace.nodes('kind == "softmax"').names[0] == "softmax"
    paths = trace.nodes(path=("decoder.0.cross_attention.scores", ROLE))
    assert paths.paths
    assert ROLE in str(paths)
    assert "<table>" in paths._repr_html_()


def test_numbers_come_as_they_are_wanted(made: fxtrace.Trace, served: Served) -> None:
    with fxtrace.Client(served.address, arrays="numpy") as client:
        array = client.trace("reference")[ROLE]
    assert isinstance(array, np.ndarray)
    tensor = made[ROLE]
    assert isinstance(tensor, Tensor)
    assert np.array_equal(array, tensor.numpy())
    tensor += 1  # one of its own
    assert not torch.equal(tensor, made[ROLE])


def test_traces_of_different_places_are_compared(made: fxtrace.Trace, served: Served, tmp_path: Path) -> None:
    with fxtrace.Client(served.address) as client, Engine.open(tmp_path) as engine:
        there, kept = client.trace("reference", d_ff=64), engine.trace("reference", d_ff=64)
        for before, after in ((made, there), (made, kept)):
            diff = before.diff(after)
            assert set(diff.explained) == {"d_ff"}
            assert diff.unexplained == 0
        assert not there.diff(kept).changed
        assert [each.name for each in kept.diff(made).fields] == ["d_ff"]


def test_formulas_where_variants_can_be_run(made: fxtrace.Trace) -> None:
    assert made.formulas().shape("softmax_3")[1] == "n_heads"
    of_a_module = fxtrace.trace(nn.Linear(4, 2), torch.ones(3, 4))
    with pytest.raises(fxtrace.ModelNotFound):
        of_a_module.formulas()


class _Tags(HTMLParser):
    """Collects tags, and what was not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_notebook_shows_the_picture_and_the_table(made: fxtrace.Trace) -> None:
    shown = made._repr_mimebundle_(include=None, exclude=None)
    tags = _Tags()
    tags.feed(shown["text/html"])
    assert tags.open == []
    assert {"table", "svg", "td"} <= tags.seen
    assert shown["text/plain"] == str(made)


def test_names_of_a_model_are_never_markup() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("<script>alert(1)</script>", nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            (inner,) = self.children()
            y: Tensor = inner(x)
            return y

    Wrong.__name__ = "<img src=x>]]>"
    t = fxtrace.trace(Wrong(), torch.ones(1, 2))
    html = t._repr_mimebundle_()["text/html"]
    assert "<script" not in html
    assert "<img" not in html


def test_what_is_printed_is_short(made: fxtrace.Trace) -> None:
    for each in (made, made.roles, made.nodes(), made.draw(format="dot"), made.snapshots[0], made.graph, made.info):
        assert len(repr(each)) < 160, repr(each)
        assert "\n" not in repr(each)
    assert all(len(line) <= 160 for line in str(made).splitlines())
    assert "bit-equal" in str(made)


def test_like_layers_are_one_row() -> None:
    model: Any = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(6)))
    text = str(fxtrace.trace(model, torch.ones(2, 4)))
    assert "0 ×6" in text
    assert "none of" in text  # no attention or the like


def test_a_picture_is_written(made: fxtrace.Trace, tmp_path: Path) -> None:
    picture = made.draw(tmp_path / "made.svg", highlight=ROLE)
    assert (tmp_path / "made.svg").read_bytes() == picture.data
    assert picture._repr_svg_() == picture.data.decode()
    with pytest.raises(fxtrace.OptionInvalid, match=r"\.svg"):
        made.draw(tmp_path / "made.gif")


def test_a_server_traces_no_module(served: Served) -> None:
    with fxtrace.Client(served.address) as client, pytest.raises(fxtrace.NameInvalid, match=r"fxtrace\.trace"):
        client.trace(nn.Linear(2, 2), torch.ones(1, 2))  # type: ignore[arg-type]
