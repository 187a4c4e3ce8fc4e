"""Small tables as HTML; nothing of the model is taken for markup."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def html_table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, more: int = 0) -> str:
    """Rows under headings, as an HTML table; `more` rows that are not shown are counted below it."""
    head = "".join(f"<th style='text-align:left'>{escape(each)}</th>" for each in headings)
    body = "".join(
        "<tr>"
        + "".join(f"<td style='text-align:left;white-space:pre-wrap'>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    rest = f"<p>… and {more:,} more</p>" if more > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"
