"""The picture of a comparison: a golden source, and signs besides colours."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fxtrace.diff import FieldChange, compare
from fxtrace.errors import NodeNotFound
from fxtrace.graph import Graph, Node
from fxtrace.ir.trace import THEMES, RenderOptions, Theme
from fxtrace.render import diff_to_dot, to_dot, to_image
from fxtrace.render.style import PALETTES
from tests.render.graphs import spec, transformer

GOLDEN = Path(__file__).parent / "goldens" / "diff.dot"
BEFORE = transformer()


def wider(node: Node) -> Node:
    """The node, where it is a feed-forward's hidden tensor with twice the width."""
    if node.spec is None or not any(role.part == "hidden" for role in node.roles):
        return node
    shape = (*node.spec.shape[:-1], 2 * node.spec.shape[-1])
    return replace(node, values=(replace(node.values[0], spec=spec(shape)),))


AFTER = replace(BEFORE, nodes=tuple(map(wider, BEFORE.nodes)))
SHORTER = transformer(layers=1)
FIELDS = (FieldChange("d_ff", 64, 128),)


def drawn(first: Graph, second: Graph, options: RenderOptions = RenderOptions()) -> str:  # noqa: B008
    return diff_to_dot(first, second, compare(first, second, FIELDS), options)


def test_golden(pytestconfig: pytest.Config) -> None:
    source = drawn(SHORTER, AFTER, RenderOptions(depth=2))
    if pytestconfig.getoption("--refresh-goldens"):
        GOLDEN.write_text(source, encoding="utf-8")
    assert source == GOLDEN.read_text(encoding="utf-8"), "refresh wanted changes with --refresh-goldens"


@pytest.mark.parametrize("theme", THEMES)
def test_colour_is_not_the_only_sign(theme: Theme) -> None:
    colours = PALETTES[theme].changes
    plain = to_dot(BEFORE, RenderOptions(theme=theme))
    signs = {"added": "+", "removed": "−", "changed": "≠"}
    for change, first, second in (("added", SHORTER, BEFORE), ("removed", BEFORE, SHORTER), ("changed", BEFORE, AFTER)):
        source = drawn(first, second, RenderOptions(theme=theme))
        assert re.search(rf'<FONT COLOR="{colours[change]}" POINT-SIZE="9"><B>{re.escape(signs[change])}', source)
        assert f'BORDER="2" CELLBORDER="0" CELLPADDING="1" CELLSPACING="1" COLOR="{colours[change]}"' in source
        assert ('STYLE="DASHED"' in source) == (change == "removed")
        assert not any(colour in plain for colour in colours.values())
        for other in signs.keys() - {change}:
            assert f'POINT-SIZE="9"><B>{signs[other]}' not in source


def test_a_changed_shape_is_drawn_with_the_one_before() -> None:
    hidden = next(node for node in BEFORE.nodes if node.spec and any(role.part == "hidden" for role in node.roles))
    assert hidden.spec is not None
    before = "×".join(map(str, hidden.spec.shape))
    assert f"{before} → " in drawn(BEFORE, AFTER)
    assert " → " not in drawn(BEFORE, BEFORE).replace("d_ff 64 → 128", "").split("edgetooltip")[0]


def test_everything_of_both_graphs_is_drawn_once() -> None:
    ids = re.findall(r'\bid="?([\w.@:]+)', drawn(BEFORE, SHORTER, RenderOptions(fold_layers=False)))
    assert len(ids) == len(set(ids))
    alone = set(re.findall(r'\bid="?([\w.@:]+)', to_dot(BEFORE, RenderOptions(fold_layers=False))))
    assert sum("@" not in name for name in ids) == sum("@" not in name for name in alone)


def test_layers_fold_only_where_the_same_became_of_them() -> None:
    assert "×2" in drawn(BEFORE, BEFORE)
    changed = replace(
        BEFORE, nodes=tuple(wider(n) if n.module.startswith("encoder.layers.1") else n for n in BEFORE.nodes)
    )
    source = drawn(BEFORE, changed)
    assert "cluster_encoder.layers.1" in source


def test_graphviz_draws_it() -> None:
    assert to_image(drawn(BEFORE, SHORTER), "svg").startswith(b"<?xml")


def test_options_name_what_is_there_after() -> None:
    with pytest.raises(NodeNotFound, match="no module named 'nowhere'"):
        drawn(BEFORE, AFTER, RenderOptions(module="nowhere"))
