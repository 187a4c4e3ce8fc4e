"""The DOT text: golden sources, options, errors, and names that mean harm."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxtrace.errors import FxtraceError, NodeNotFound, OptionInvalid, SnapshotNotFound
from fxtrace.graph import Graph, Ref, Snapshot, SnapshotTensor
from fxtrace.ir.trace import RenderOptions, Theme
from fxtrace.render import to_dot, to_image
from fxtrace.render.labels import clean
from fxtrace.render.style import PALETTES
from tests.render.graphs import Emitter, transformer

GOLDENS = Path(__file__).parent / "goldens"
MODEL = transformer()
SCORES = "decoder.0.cross_attention.scores"


def snapshot(number: int, role: str) -> Snapshot:
    node = MODEL.by_role[role]
    assert node.spec is not None
    tensor = SnapshotTensor("c_scores", node.name, node.name, role, node.spec.shape)
    return Snapshot(number, "Scores", "decoder", (role,), ("c_scores",), ("1",), (tensor,))


SNAPSHOTS = (snapshot(33, SCORES), replace(snapshot(34, SCORES), tensors=(), reason="fused"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("whole", RenderOptions()),
        ("depth1_unfolded", RenderOptions(depth=1, fold_layers=False)),
        ("module_views", RenderOptions(module="decoder.layers.0.cross_attn", views=True)),
        ("highlight_dark_lr", RenderOptions(highlight=("#33",), theme="dark", direction="LR", depth=2)),
    ],
)
def test_golden(name: str, options: RenderOptions, pytestconfig: pytest.Config) -> None:
    source = to_dot(MODEL, options, snapshots=SNAPSHOTS, title="reference")
    golden = GOLDENS / f"{name}.dot"
    if pytestconfig.getoption("--refresh-goldens"):
        golden.write_text(source, encoding="utf-8")
    assert source == golden.read_text(encoding="utf-8"), "refresh wanted changes with --refresh-goldens"


def test_the_title_counts_and_the_legend_has_just_what_is_drawn() -> None:
    source = to_dot(MODEL)
    for text in (">Seq2Seq<", "identical layers folded ×2", "f32", "matmul / linear", "residual", "crosses stacks"):
        assert text in source
    for absent in ("convolution", "recurrent", ">highlight<", ">module<"):
        assert absent not in source
    assert ">module<" in to_dot(MODEL, RenderOptions(depth=0))
    parameters = sum(
        p.shape[0] * (p.shape[1] if len(p.shape) > 1 else 1) for p in MODEL.parameters.values() if not p.buffer
    )
    assert f"{parameters / 1e3:.1f} K params" in source


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_theme_uses_its_own_colours_only(theme: Theme) -> None:
    source = to_dot(MODEL, RenderOptions(theme=theme))
    palette = PALETTES[theme]
    allowed = {palette.ink, palette.residual, palette.crossing, *palette.heads.values(), *palette.clusters}
    other = PALETTES["dark" if theme == "light" else "light"]
    found = set(re.findall(r"#[0-9a-f]{6}", source))
    assert f'bgcolor="{palette.paper}"' in source
    assert {palette.ink, palette.residual, palette.crossing} <= found & allowed
    assert not found & ({other.paper, other.ink, other.residual, *other.clusters} - {"#ffffff"})


@pytest.mark.parametrize(
    ("highlight", "lit"),
    [
        (SCORES, {MODEL.by_role[SCORES].name}),
        ("#33", {MODEL.by_role[SCORES].name}),
        ("encoder_layers_0_norm1", {"encoder_layers_0_norm1"}),
        ("decoder.output", {"lm_head", "out_logits"}),  # the value, and the output that it is
        ("decoder.0.cross_attention.query_heads", {MODEL.by_role["decoder.0.cross_attention.query_heads"].name}),
    ],
)
def test_highlight_brings_out_just_what_is_named(highlight: str, lit: set[str]) -> None:
    source = to_dot(MODEL, RenderOptions(highlight=(highlight,)), snapshots=SNAPSHOTS)
    outlined = [line for line in source.splitlines() if PALETTES["light"].highlight in line and "tooltip" in line]
    assert {line.split()[0] for line in outlined} == lit
    assert "×2" in source  # the layers are folded as before


def test_a_role_prefix_lights_the_block_and_what_lies_between() -> None:
    source = to_dot(MODEL, RenderOptions(highlight=("decoder.1.cross_attention",), fold_layers=False))
    outlined = {
        line.split()[0] for line in source.splitlines() if PALETTES["light"].highlight in line and "tooltip" in line
    }
    inside = {n.name for n in MODEL.nodes if n.module.startswith("decoder.layers.1.cross_attn") and n.kind != "view"}
    assert outlined == inside | {MODEL.by_role["decoder.1.cross_attention.residual_sum"].name, "decoder_layers_1_norm2"}


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (RenderOptions(depth=-1), OptionInvalid, "depth must be 0 or more, got -1"),
        (RenderOptions(direction="UP"), OptionInvalid, "no direction named 'UP'"),  # type: ignore[arg-type]
        (RenderOptions(theme="drak"), OptionInvalid, "did you mean 'dark'?"),  # type: ignore[arg-type]
        (RenderOptions(module="decoder.layer.0"), NodeNotFound, "did you mean 'decoder.layers.0'?"),
        (RenderOptions(module="tables"), NodeNotFound, "nothing ran in module 'tables'"),
        (RenderOptions(highlight=("decoder.0.cross_attention.score",)), NodeNotFound, f"did you mean '{SCORES}'?"),
        (RenderOptions(highlight=("lm_haed",)), NodeNotFound, "did you mean 'lm_head'?"),
        (RenderOptions(highlight=("",)), NodeNotFound, "no node, role or role prefix named ''"),
        (RenderOptions(highlight=("#99",)), SnapshotNotFound, "no snapshot named '#99'"),
        (RenderOptions(highlight=("#34",)), SnapshotNotFound, "snapshot #34 (Scores) is not in this graph: fused"),
    ],
)
def test_errors(options: RenderOptions, error: type[FxtraceError], says: str) -> None:
    with pytest.raises(error, match=re.escape(says)) as caught:
        to_dot(MODEL, options, snapshots=SNAPSHOTS)
    assert caught.value.field


def test_modules_and_roles_called_alike_are_not_mixed_up() -> None:
    """`layers.1` is no prefix of `layers.10`."""
    graph = transformer(layers=11)
    source = to_dot(graph, RenderOptions(module="encoder.layers.1", fold_layers=False))
    assert "encoder_layers_1_norm1" in source
    assert "encoder_layers_10" not in source.replace("→ encoder_layers_10", "")


def hostile(names: list[str]) -> Graph:
    """A chain of ops, each with a bad name for its node, target, module and parameter."""
    e = Emitter()
    x = e.input("x", (2, 4))
    for name in names:
        with e.module(name.replace(".", "") or "m", name):
            made = e.nodes.pop(e.node("linear", name, (x,), (2, 4)).node)
            e.nodes[name], x = replace(made, name=name), Ref(name)
    e.output(**dict.fromkeys(names, x))
    return e.graph()


names = st.text(
    st.one_of(st.characters(), st.sampled_from("<>&\"'\\{}|\n\r\t:;@#%[]→\ud800\x00")), min_size=1, max_size=12
)


@settings(max_examples=8)
@given(st.lists(names, min_size=4, max_size=8, unique=True))
@pytest.mark.filterwarnings("error")
def test_hostile_names_are_shown_as_they_are(bad: list[str]) -> None:
    bad = [name for name in bad if name not in ("x", "output")]
    svg = to_image(to_dot(hostile(bad), RenderOptions(fold_layers=False)), "svg")
    shown = "".join("".join(ElementTree.fromstring(svg).itertext()).split())
    for name in bad:
        assert "".join(clean(name.rpartition(".")[2]).split()).strip("_") in shown


def test_an_empty_graph_is_a_title() -> None:
    assert ">Empty<" in to_dot(Graph("Empty", ()))
