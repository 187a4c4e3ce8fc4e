"""What people see of an explanation."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from fxtrace.cli.tables import add, check_table, facts, table
from fxtrace.explain import Explanation


def explanation_facts(explanation: Explanation, *, whole: bool) -> Group:
    """An explanation; where not the `whole` is wanted, without what is shown beside it: title, users and checks."""
    grid = table("" if whole else "Made of", "tensor", "role", "shape", "how")
    for each in explanation.tensors:
        add(grid, each.name, "\n".join(each.roles), str(each), "\n".join(each.rules))
    parts: list[RenderableType] = []
    if whole:
        parts.append(Text(f"{explanation.title}\n", style="bold"))
    if explanation.tensors:
        parts.append(grid)
    if not whole and explanation.inputs:
        parts.append(
            facts("From", *((each.roles[0] if each.roles else each.name, str(each)) for each in explanation.inputs))
        )
    parts += [Text(f"• {fact}") for fact in explanation.facts]
    parts += [Text(f"  {row}") for row in explanation.numbers]
    if whole and explanation.checks:
        parts.append(check_table(explanation.checks))
    parts += [Text(note, style="yellow") for note in explanation.notes]
    return Group(*parts)
