from __future__ import annotations

import pytest
from rich.cells import cell_len
from rich.text import Text

from fxtrace.cli.layout import Block, Column, Paragraph, Table, facts, table, wrapped

ROLES = ("decoder.0.masked_self_attention.residual_sum", "encoder.0.input")
SHAPE = "1×n_heads×tgt_len×d_model/n_heads"


def shown(block: Block, width: int | None) -> list[str]:
    return [line.plain for line in block.lines(width)]


@pytest.fixture
def nodes() -> Table:
    grid = table(
        "Nodes",
        "node",
        Column("bytes", rank=1, right=True),
        Column("why", rank=2, prose=True),
        Column("role", below=True),
    )
    grid.add("add_5", "12", "one thing and another thing and a third", "\n".join(ROLES))
    grid.add("enc_layers_0_self_mha_w_q", "3,456", "[bold]no markup[/bold]", "")
    return grid


@pytest.mark.parametrize("width", [None, 300, 160, 100, 80, 60, 50])
def test_tables_fit_and_break_no_name(nodes: Table, width: int | None) -> None:
    lines = shown(nodes, width)
    assert all(line == line.rstrip() for line in lines)
    assert all(cell_len(line) <= (width or 1000) for line in lines)
    text = "\n".join(lines)
    for name in ("add_5", "enc_layers_0_self_mha_w_q", *ROLES):
        assert name in text
    hidden = [line for line in lines if line.startswith("(hidden at this width: ")]
    for heading, value in (("bytes", "3,456"), ("why", "markup[/bold]")):
        assert (value in text) != any(heading in line for line in hidden)


def test_a_pipe_gets_a_row_a_line_with_everything(nodes: Table) -> None:
    assert shown(nodes, None) == [
        "Nodes",
        "node                       bytes  why                                      role",
        f"add_5                         12  one thing and another thing and a third  {', '.join(ROLES)}",
        "enc_layers_0_self_mha_w_q  3,456  [bold]no markup[/bold]",
    ]


def test_the_least_important_column_goes_first_and_is_named() -> None:
    grid = table("", "id", Column("most", rank=1), Column("least", rank=2))
    grid.add("a" * 10, "b" * 10, "c" * 10)
    assert shown(grid, 34)[-1] == f"{'a' * 10}  {'b' * 10}  {'c' * 10}"
    assert " ".join(shown(grid, 33)).endswith("(hidden at this width: least; --json has all)")
    assert " ".join(shown(grid, 21)).endswith("(hidden at this width: most, least; --json has all)")


def test_names_that_fit_nowhere_are_still_whole() -> None:
    grid = table("", "id", Column("role", below=True))
    grid.add("a" * 30, ROLES[0])
    assert shown(grid, 20)[-2:] == ["a" * 30, f"  {ROLES[0]}"]


def test_columns_that_say_nothing_are_not_shown() -> None:
    grid = table("", "id", "role")
    grid.add("a", "")
    assert "role" not in " ".join(shown(grid, 80) + shown(grid, None))
    assert shown(table("Empty", "id"), 80) == shown(table("Empty", "id"), None) == ["Empty"]


def test_facts_wrap_beside_their_names_or_below_them() -> None:
    block = facts("From", ("role", "one two three"), ("absent", ""), ("x", "1\n2"))
    assert shown(block, 17) == ["From", "  role  one two", "        three", "  x     1", "        2"]
    assert shown(block, None) == ["From", "  role  one two three", "  x     1", "        2"]
    assert shown(facts("", (ROLES[0], f"{SHAPE} = 1×4×5×32")), 60) == [f"  {ROLES[0]}", f"    {SHAPE} = 1×4×5×32"]


def test_paragraphs_break_between_words_only() -> None:
    assert shown(Paragraph("• to be or not", indent=2), 9) == ["• to be", "  or not"]
    assert [line.plain for line in wrapped(Text("✓ held ✗ not"), 6)] == ["✓ held", "✗ not"]
    assert [line.plain for line in wrapped(Text(f"of {SHAPE} it"), 5)] == ["of", SHAPE, "it"]
    assert [line.plain for line in wrapped(Text("two words"), None)] == ["two words"]
    assert [line.plain for line in wrapped(Text("宽字 宽字"), 5)] == ["宽字", "宽字"]


def test_styles_survive_a_break() -> None:
    first, second = wrapped(Text.assemble(("red words", "red"), " plain"), 4)[:2]
    assert [span.style for span in (*first.spans, *second.spans)] == ["red", "red"]
