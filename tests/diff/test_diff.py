from collections.abc import Iterator

import pytest

from fxtrace.diff import GraphDiff
from fxtrace.service.engine import Engine
from fxtrace.trace import TraceRequest


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine.open(tmp_path_factory.mktemp("store")) as opened:
        yield opened


def difference(engine: Engine, before: dict[str, int], after: dict[str, int]) -> GraphDiff:
    ids = [engine.create_trace(TraceRequest("reference", each)).id for each in (before, after)]
    return engine.diff_traces(*ids)


def test_what_is_the_same_is_equal(engine: Engine) -> None:
    found = difference(engine, {}, {})
    assert len(found.pairs) == 205
    assert (found.changed, found.added, found.removed, found.fields) == ((), (), (), ())


@pytest.mark.parametrize(
    ("after", "causes"),
    [
        ({"d_ff": 512}, {"d_ff"}),
        ({"src_len": 9}, {"src_len"}),
        ({"d_model": 64, "n_heads": 8}, {"d_model", "n_heads"}),
    ],
)
def test_every_changed_size_is_explained(engine: Engine, after: dict[str, int], causes: set[str]) -> None:
    found = difference(engine, {}, after)
    assert found.changed
    assert set(found.explained) == causes
    assert found.unexplained == 0
    assert (found.added, found.removed) == ((), ())


def test_added_nodes_are_explained(engine: Engine) -> None:
    found = difference(engine, {}, {"encoder_layers": 3, "d_ff": 300})
    assert len(found.added) == 32
    assert {each.causes for each in found.added} == {("encoder_layers",)}
    assert not found.removed
    assert set(found.explained) == {"d_ff"}
    back = difference(engine, {"encoder_layers": 3, "d_ff": 300}, {})
    assert [each.node for each in back.removed] == [each.node for each in found.added]
