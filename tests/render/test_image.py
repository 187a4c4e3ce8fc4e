"""Images by a real Graphviz."""

from __future__ import annotations

import re
import struct
import sys
import zlib
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fxtrace.errors import DependencyMissing, InternalError, InvalidRequest, OptionInvalid, TimeLimit
from fxtrace.ir.trace import ImageFormat, RenderOptions
from fxtrace.render import image, to_dot, to_image
from fxtrace.render.style import FONT
from tests.render.graphs import transformer

SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}"
MODEL = transformer()


def png_size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def png_pixels(png: bytes) -> bytes:
    """The image's rows, still filtered: enough to tell a blank one."""
    data, at = b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += 12 + length
    return zlib.decompress(data)


def test_svg_has_the_text_and_tooltips_with_details() -> None:
    root = ElementTree.fromstring(to_image(to_dot(MODEL), "svg"))
    texts = {text.text for text in root.iter(f"{SVG}text")}
    assert {"Seq2Seq", "softmax", "weights", "256×128", "×2", "src_ids"} <= texts
    tips = [link.get(f"{XLINK}title", "") for link in root.iter(f"{SVG}a")]
    softmax = next(tip for tip in tips if "role encoder.0.self_attention.weights" in tip)
    for detail in ("softmax: torch.softmax", "in encoder.layers.0.self_attn", "1×4×6×6 float32", "model.py:"):
        assert detail in softmax
    assert "each row sums to 1: holds" in softmax


def curve(path: str, steps: int = 20) -> Iterator[tuple[float, float]]:
    """Points on an SVG path of cubic Bézier curves."""
    points = [complex(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", path)]
    for start in range(0, len(points) - 3, 3):
        a, b, c, d = points[start : start + 4]
        for t in (step / steps for step in range(steps + 1)):
            point = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
            yield point.real, point.imag


def test_no_link_runs_through_a_frame_s_title() -> None:
    root = ElementTree.fromstring(to_image(to_dot(MODEL), "svg"))
    titles, links = [], []
    for group in root.iter(f"{SVG}g"):
        if group.get("class") == "cluster":
            titles += [(text.text or "", text.attrib) for text in group.iter(f"{SVG}text")]
        elif group.get("class") == "edge":
            links += [point for path in group.iter(f"{SVG}path") for point in curve(path.get("d", ""))]
    assert len(titles) > 10
    for words, at in titles:
        x, y, size = (float(at[key]) for key in ("x", "y", "font-size"))
        width = 0.5 * size * len(words)  # of Arimo's letters, on average
        assert not [(a, b) for a, b in links if x <= a <= x + width and y - 0.7 * size <= b <= y], words


def test_svg_brings_its_font_along() -> None:
    style = next(ElementTree.fromstring(to_image("digraph {}", "svg")).iter(f"{SVG}style")).text or ""
    fonts = re.findall(r"font-weight:(\d+);src:url\(data:font/woff2;base64,([^)]+)\)", style)
    assert [weight for weight, _ in fonts] == ["400", "700"]
    assert all(b64decode(data).startswith(b"wOF2") for _, data in fonts)


@pytest.mark.parametrize("format", ["png", "pdf", "dot"])
def test_formats(format: ImageFormat) -> None:
    dot = to_dot(MODEL)
    data = to_image(dot, format)
    assert data.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "dot": dot.encode()}[format])


def test_png_is_crisp_and_not_blank() -> None:
    dot = to_dot(MODEL)
    root = ElementTree.fromstring(to_image(dot, "svg"))
    points = [float(root.get(side, "").removesuffix("pt")) for side in ("width", "height")]
    png = to_image(dot, "png")
    assert png_size(png) == pytest.approx([each * image.DPI / 72 for each in points], rel=0.05)
    assert len(set(png_pixels(png))) > 100


def test_text_is_set_in_the_carried_font() -> None:
    """Without it, a machine with no fonts draws a box for each letter, all of one width."""
    widths = []
    for text in ("iiiiiiiiii", "WWWWWWWWWW"):
        dot = f'digraph {{ a [label="{text}" fontname="{FONT}" shape=plain margin=0] }}'
        root = ElementTree.fromstring(to_image(dot, "svg"))
        widths.append(float(root.get("width", "").removesuffix("pt")) - 8)  # less the margin around a drawing
    assert widths == pytest.approx([10 * 14 * 0.222, 10 * 14 * 0.944], abs=3)


def test_a_huge_picture_stays_below_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_MAX_PIXELS", 250_000)
    width, height = png_size(to_image(to_dot(MODEL), "png"))
    assert width * height < 260_000


def test_two_thousand_nodes_are_drawn() -> None:
    graph = transformer(layers=29)
    assert len(graph.nodes) > 1900
    root = ElementTree.fromstring(to_image(to_dot(graph, RenderOptions(fold_layers=False)), "svg"))
    titles = {title.text for title in root.iter(f"{SVG}title")}
    assert {node.name for node in graph.nodes if node.kind in ("linear", "softmax", "norm")} <= titles


@pytest.mark.parametrize("dot", ["digraph {", "no graph at all", "digraph { a [label=<<B>] }"])
def test_bad_dot_is_an_invalid_request(dot: str) -> None:
    with pytest.raises(InvalidRequest, match="not DOT text"):
        to_image(dot, "svg")


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(OptionInvalid, match="did you mean 'png'"):
        to_image("digraph {}", "pgn")  # type: ignore[arg-type]


def test_a_layout_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(TimeLimit, match=r"longer than 0\.001 s; draw less: fold layers, set a depth"):
        to_image("digraph {}", "svg", 0.001)


def test_without_any_graphviz_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(DependencyMissing, match=r"pip install 'fxtrace\[images\]'"):
        to_image("digraph {}", "png")
    assert to_image("digraph {}", "dot") == b"digraph {}"


def test_dot_on_path_draws_only_where_no_graphviz_is_bundled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "dot"
    program.write_text('#!/bin/sh\necho "$@" >&2\nexit 3\n', encoding="utf-8")
    program.chmod(0o755)
    before = to_image("digraph { a -> b }", "svg")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert to_image("digraph { a -> b }", "svg") == before
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(InternalError, match="exit code 3: -Kdot -Tsvg -Gdpi=72"):
        to_image("digraph {}", "svg")
