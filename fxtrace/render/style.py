"""Colours, fonts and families of ops: what a picture looks like, apart from what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from fxtrace.ir.trace import Theme

# The font that fxtrace carries (see fonts/), then those of the same metrics: what is laid out with one fits the others.
FONT = "Arimo,Helvetica,Arial,sans-serif"

FAMILIES: Mapping[str, str] = {
    "linear": "matmul / linear",
    "matmul": "matmul / linear",
    "convolution": "convolution",
    "recurrent": "recurrent",
    "embedding": "embedding",
    "attention": "attention",
    "softmax": "attention",
    "norm": "norm",
    "activation": "activation",
    "module": "module",
    "constant": "constant",
    "create": "constant",
}
"""The family an op's kind is coloured and listed under; every other kind is `other`."""

OTHER = "view / elementwise"

PILLS = frozenset(
    {"activation", "dropout", "add", "sub", "mul", "div", "mask", "view", "join", "select", "reduce", "create", "cast"}
    | {"elementwise", "constant"}
)
"""Kinds drawn as a pale pill; the rest are boxes with a coloured head."""


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of a theme, as `#rrggbb`.

    `heads` are the families' colours: the head of a box with `head_ink` on it, and the outline of a pill, whose fill is
    in `pills`. `clusters` are the fills of modules by nesting, outermost first, repeated from the second on.
    `changes` are for what a comparison found: `added`, `removed`, `changed` and `equal`.
    """

    paper: str
    ink: str
    muted: str
    edge: str
    body: str
    head_ink: str
    head_muted: str
    port: str
    port_ink: str
    port_muted: str
    note: str
    cluster_line: str
    clusters: tuple[str, ...]
    heads: Mapping[str, str]
    pills: Mapping[str, str]
    residual: str
    crossing: str
    highlight: str
    changes: Mapping[str, str]

    def head(self, family: str) -> str:
        """A family's own colour."""
        return self.heads.get(family, self.heads[OTHER])

    def pill(self, family: str) -> str:
        """A family's pale colour."""
        return self.pills.get(family, self.pills[OTHER])

    def tinted(self, change: str) -> Palette:
        """The palette for what changed in this way: of one colour, and pale for what is equal."""
        colour = self.changes[change]
        fill = _mix(colour, self.paper, 0.85)
        all_heads = dict.fromkeys(self.heads, colour)
        pale = replace(self, heads=all_heads, pills=dict.fromkeys(self.pills, fill), note=colour, edge=colour)
        if change == "equal":
            pale = replace(pale, ink=self.muted, port=colour, residual=self.note, crossing=self.edge, edge=self.edge)
            grey = self.muted
            return replace(pale, head_ink=grey, head_muted=grey, port_ink=grey, port_muted=grey)
        strong = replace(pale, port=colour, residual=colour, crossing=colour, muted=self.ink)
        return replace(strong, port_ink=self.head_ink, port_muted=self.head_muted)

    def dimmed(self, amount: float = 0.45) -> Palette:
        """The palette moved towards the paper, for what a highlight leaves in the background."""

        def dim(colour: Any) -> Any:
            match colour:
                case str():
                    return _mix(colour, self.paper, amount)
                case tuple():
                    return tuple(map(dim, colour))
                case _:
                    return {name: dim(each) for name, each in colour.items()}

        return Palette(**{field.name: dim(getattr(self, field.name)) for field in fields(self)})


def _mix(colour: str, other: str, amount: float) -> str:
    pairs = ((int(colour[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a * (1 - amount) + b * amount):02x}" for a, b in pairs)


_LIGHT = Palette(
    paper="#ffffff",
    ink="#1b2433",
    muted="#5f6b7c",
    edge="#8f9bad",
    body="#ffffff",
    head_ink="#ffffff",
    head_muted="#dfe6f2",
    port="#1f2937",
    port_ink="#ffffff",
    port_muted="#c3ccd9",
    note="#a8b2c1",
    cluster_line="#c5d0e0",
    clusters=("#f6f8fc", "#ebf1f9", "#e1e9f5"),
    heads={
        "matmul / linear": "#2c5fb3",
        "convolution": "#1f7a8c",
        "recurrent": "#3f6f73",
        "embedding": "#6a4bb0",
        "attention": "#b23467",
        "norm": "#2b7d58",
        "activation": "#b07a16",
        "module": "#46566e",
        OTHER: "#8b97a8",
    },
    pills={"activation": "#fdf3dc", OTHER: "#f4f6f9"},
    residual="#2a6bdc",
    crossing="#c2560a",
    highlight="#f08c00",
    changes={"added": "#16794c", "removed": "#c0392b", "changed": "#2457c5", "equal": "#e3e8ef"},
)

_DARK = Palette(
    paper="#0f1624",
    ink="#e6ecf5",
    muted="#97a4b8",
    edge="#66748a",
    body="#182235",
    head_ink="#ffffff",
    head_muted="#d4deee",
    port="#e6ecf5",
    port_ink="#121a29",
    port_muted="#4a586d",
    note="#55637a",
    cluster_line="#33425c",
    clusters=("#141d2f", "#1a253a", "#202d45"),
    heads={
        "matmul / linear": "#3a6fc9",
        "convolution": "#23889c",
        "recurrent": "#4b8388",
        "embedding": "#7d5fc8",
        "attention": "#c24479",
        "norm": "#318f65",
        "activation": "#d09a32",
        "module": "#5a6c88",
        OTHER: "#5f6d83",
    },
    pills={"activation": "#3a2f17", OTHER: "#212d42"},
    residual="#5b95f5",
    crossing="#ef8a3c",
    highlight="#ffb224",
    changes={"added": "#1f9d63", "removed": "#d9534a", "changed": "#4a83f0", "equal": "#273349"},
)

PALETTES: Mapping[Theme, Palette] = {"light": _LIGHT, "dark": _DARK}
