"""The title line of a picture, and the legend of just what is in it."""

from __future__ import annotations

from collections import Counter
from math import prod

from fxtrace.render import labels
from fxtrace.render.labels import font
from fxtrace.render.style import FAMILIES, OTHER, Palette
from fxtrace.render.view import View, within


def heading(
    view: View, title: str, palette: Palette, legend: list[tuple[str, str]], facts: list[str] | None = None
) -> str:
    """The title, what the picture is of in numbers (or `facts`), and the legend (text and colour), as one label."""
    told = " · ".join(_facts(view, title) if facts is None else facts)
    name = title or view.graph.name
    signs = "&nbsp;&nbsp;&nbsp; ".join(
        f"{font('■', colour, 12)}&nbsp; {font(text, palette.muted, 8.5)}" for text, colour in legend
    )
    rows = (
        font(f"{name} · {view.scope}" if view.scope else name, palette.ink, 17, bold=True),
        font(told, palette.muted, 9.5),
        signs,
    )
    cells = (f'<TR><TD ALIGN="LEFT" CELLPADDING="3">{row}</TD></TR>' for row in rows if row)
    return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0">{"".join(cells)}</TABLE>>'


def _facts(view: View, title: str) -> list[str]:
    graph, scope = view.graph, view.scope
    drawn = sum(box.form not in ("port", "note") for box in view.boxes.values())
    stored = [p for m in graph.modules if within(m.path, scope) for p in m.parameters if not p.buffer]
    names = {p.same_as or p.name for p in stored}
    count = sum(prod(graph.parameters[name].shape) for name in names)
    module = graph.modules_by_path.get(scope)
    facts = [module.type] if scope and module else [graph.name] if title and title != graph.name else []
    facts += [f"{labels.short_count(count)} params", f"{view.calls[scope]} ops ({drawn} shown)"]
    if view.repeats:
        facts.append("identical layers folded " + ", ".join(f"×{n}" for n in dict.fromkeys(view.repeats.values())))
    dtypes = Counter(spec.dtype for node in graph.nodes if within(node.module, scope) for _, spec in node.tensors)
    return [*facts, *(labels.short_dtype(dtype) for dtype, _ in dtypes.most_common(1))]


def legend(view: View, palette: Palette, *, lit: bool) -> list[tuple[str, str]]:
    """What the colours in a picture mean."""
    families = {box.family for box in view.boxes.values() if box.form in ("op", "pill", "module")}
    kinds = {link.kind for link in view.links}
    entries = [(name, palette.head(name)) for name in dict.fromkeys((*FAMILIES.values(), OTHER)) if name in families]
    entries += [("residual", palette.residual)] if "residual" in kinds else []
    entries += [("crosses stacks", palette.crossing)] if "crossing" in kinds else []
    return [*entries, ("highlight", palette.highlight)] if lit else entries
