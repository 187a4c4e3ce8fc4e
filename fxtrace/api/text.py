"""Small tables as plain text and as HTML; nothing else, and nothing of the model is taken for markup."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

_WIDEST = 48


def aligned(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, more: int = 0) -> str:
    """Rows under headings, in columns of plain text; `more` rows that are not shown are counted in a last line."""
    cut = [tuple(_cut(cell) for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *cut, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (headings, *cut)]
    return "\n".join((*lines, f"… and {more:,} more") if more > 0 else lines)


def html_table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, more: int = 0) -> str:
    """The same as an HTML table."""
    head = "".join(f"<th style='text-align:left'>{escape(each)}</th>" for each in headings)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    rest = f"<p>… and {more:,} more</p>" if more > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"


def _cut(cell: str) -> str:
    line = cell.replace("\n", " ")
    return line if len(line) <= _WIDEST else f"{line[: _WIDEST - 1]}…"
