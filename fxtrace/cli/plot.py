"""A sweep as a plot: one number against one field, a line for each value of a second one."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

from fxtrace.errors import OptionInvalid
from fxtrace.ir.trace import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fxtrace.cli.sweep import Swept
    from fxtrace.sweep import SweepRow

_TITLES = {
    "activation_bytes": "Activation memory",
    "peak_activation_bytes": "Peak activation memory",
    "parameters": "Parameters",
    "flops": "FLOPs of matrix products",
}
_BYTES = ("activation_bytes", "peak_activation_bytes")
_MOST_LINES = 8
_WIDE = 8  # times the least that the most is where a scale is logarithmic
_INK, _FAINT = "#1f2933", "#d5dae0"


def plot(swept: Swept, x: str, y: str, image_format: str) -> bytes:
    """The picture. Other fields than these two show as a band from least to most, the line being their median.

    Args:
        swept: the sweep.
        x: the field to the right; empty for the one with the most numbers.
        y: one of `fxtrace.cli.sweep_files.NUMBERS`.
        image_format: svg, png or pdf.

    Raises:
        OptionInvalid: no configuration has such numbers.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = [row for row in swept.rows if not row.reason and getattr(row, y) is not None]
    numeric = [name for name in swept.fields if all(_is_number(row.configuration[name]) for row in rows)]
    if not rows or not numeric or (x and x not in numeric):
        raise OptionInvalid(
            f"nothing to plot: expected accepted configurations with numbers for {x or 'a field'}", field="out"
        )
    counts = {name: len({str(row.configuration[name]) for row in rows}) for name in swept.fields}
    x = x or max(numeric, key=lambda name: counts[name])
    others = [name for name in swept.fields if name != x and counts[name] > 1]
    hue = max(others, key=lambda name: counts[name], default="")
    with mpl.rc_context(
        {
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "svg.fonttype": "none",
            "svg.hashsalt": "fxtrace",
            "text.color": _INK,
            "axes.labelcolor": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
        }
    ):
        figure = Figure(figsize=(7, 4.2), dpi=160, layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, rows, x, y, hue)
        axes.set_title(f"{_TITLES[y]} by {x}", loc="left", fontweight="bold", fontsize=11, pad=18)
        rest = [name for name in others if name != hue]
        told = f"{len(rows):,} configurations"
        if rest:
            told += f"; line: median, band: least to most, over {', '.join(rest)}"
        axes.text(0, 1.02, told, transform=axes.transAxes, fontsize=8, alpha=0.7)
        picture = io.BytesIO()
        figure.savefig(picture, format=image_format, metadata={"Date": None} if image_format == "svg" else None)
    return picture.getvalue()


def _draw(axes: Axes, rows: list[SweepRow], x: str, y: str, hue: str) -> None:
    import matplotlib as mpl

    lines: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    order: dict[str, Json] = {}
    for row in rows:
        key = str(row.configuration[hue]) if hue else ""
        order[key] = row.configuration[hue] if hue else 0
        lines[key][_number(row.configuration[x])].append(getattr(row, y))
    keys = sorted(order, key=lambda key: (0, _number(order[key]), "") if _is_number(order[key]) else (1, 0, key))
    colours = mpl.colormaps["viridis"]
    for place, key in enumerate(keys):
        colour = colours(0.9 * place / max(1, len(keys) - 1))
        points = sorted(lines[key].items())
        along = [each for each, _ in points]
        axes.fill_between(
            along, [min(v) for _, v in points], [max(v) for _, v in points], color=colour, alpha=0.18, lw=0
        )
        marker = "o" if len(along) <= 24 else ""
        axes.plot(along, [median(v) for _, v in points], color=colour, lw=1.6, marker=marker, ms=3.5)
        named = len(keys) <= _MOST_LINES or place in (0, len(keys) - 1)
        if hue and named:
            axes.plot([], [], color=colour, lw=1.6, label=key)
    _dress(
        axes, sorted({each for line in lines.values() for each in line}), sorted(getattr(row, y) for row in rows), x, y
    )
    if hue:
        title = hue if len(keys) <= _MOST_LINES else f"{hue}\n({len(keys)} values)"
        axes.legend(title=title, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)


def _dress(axes: Axes, along: list[float], up: list[float], x: str, y: str) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, MultipleLocator, NullLocator

    steps = {b - a for a, b in pairwise(along)}
    if len(steps) > 1 and along[0] > 0 and along[-1] / along[0] >= _WIDE:
        axes.set_xscale("log", base=2)
        axes.set_xticks(along if len(along) <= 12 else along[:: len(along) // 8])
        axes.xaxis.set_minor_locator(NullLocator())
    if up[0] > 0 and up[-1] / up[0] >= _WIDE and axes.get_xscale() == "log":
        axes.set_yscale("log", base=2 if y in _BYTES else 10)
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, 1.05 * up[-1] or 1)
        if y in _BYTES:
            axes.yaxis.set_major_locator(MultipleLocator(2.0 ** math.ceil(math.log2(max(1, up[-1]) / 5))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    binary = FuncFormatter(lambda value, _: _bytes(value))
    axes.yaxis.set_major_formatter(binary if y in _BYTES else EngFormatter(sep=" "))
    axes.set_xlabel(x)
    axes.grid(axis="y", color=_FAINT, lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    axes.tick_params(length=0)


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            return f"{value:,.3g} {unit}"
        value /= 1024
    return f"{value:,.3g} PiB"


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Json) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
