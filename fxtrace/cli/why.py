"""What people see of an explanation."""

from __future__ import annotations

from rich.text import Text

from fxtrace.cli.layout import Block, Column, Paragraph, Stack, facts, table
from fxtrace.cli.tables import check_table
from fxtrace.explain import Explanation


def explanation_facts(explanation: Explanation, *, whole: bool) -> list[Block]:
    """An explanation; where not the `whole` is wanted, without what is shown beside it: title, users and checks."""
    grid = table(
        "" if whole else "Made of",
        "tensor",
        Column("role", below=True),
        Column("shape", prose=True),
        Column("how", prose=True, below=True),
    )
    for each in explanation.tensors:
        grid.add(each.name, "\n".join(each.roles), str(each), "\n".join(each.rules))
    parts: list[Block] = []
    if whole:
        parts.append(Paragraph(Text(explanation.title, "bold")))
    if explanation.tensors:
        parts.append(grid)
    if not whole and explanation.inputs:
        parts.append(
            facts("From", *((each.roles[0] if each.roles else each.name, str(each)) for each in explanation.inputs))
        )
    if explanation.facts or explanation.numbers:
        said = [Paragraph(f"• {fact}", indent=2) for fact in explanation.facts]
        parts.append(Stack((*said, *(Paragraph(f"  {row}", indent=4) for row in explanation.numbers))))
    if whole and explanation.checks:
        parts.append(check_table(explanation.checks))
    if explanation.notes:
        parts.append(Stack(tuple(Paragraph(Text(note, "yellow"), indent=2) for note in explanation.notes)))
    return parts
