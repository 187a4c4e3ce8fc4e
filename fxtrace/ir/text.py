"""How an object is shown: one short line as its `repr`, lines to read as its `str`. Plain tables of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_SHORT = 120
"""Characters of a `repr`, at most."""

_LINE = 120
"""Characters of a line of a `str`, at most; longer ones are continued on the next line, deeper in."""

_CELL, _NARROWEST = 48, 8
"""Characters of a table's cell, at most: as many as the line has room for, between the two."""

MOST_ROWS = 40
"""Rows of a table in a `str`, at most; the others are counted."""


class Readable:
    """Gives a class its `repr` and its `str`, both from the same lines.

    A subclass writes `_lines`: a headline, then the details. `repr` is the class's name with the headline, cut to one
    short line; `str` is all lines. A class whose `str` is a name or a formula, which others compute with, writes
    `__str__` in its place. A dataclass says `repr=False`, so that it keeps what it inherits.

    Example:
        >>> class Interval(Readable):
        ...     def _lines(self):
        ...         yield "from 1 to 5"
        ...         yield "  step  2"
        >>> Interval()
        <Interval from 1 to 5>
    """

    __slots__ = ()

    def _lines(self) -> Iterator[str]:
        yield from str(self).splitlines()

    def __repr__(self) -> str:
        name = type(self).__name__
        headline = cut(next(self._lines(), ""), _SHORT - len(name) - 3)
        return f"<{name} {headline}>" if headline else f"<{name}>"

    def __str__(self) -> str:
        return "\n".join(part for line in self._lines() for part in _wrapped(line))


def cut(text: object, longest: int) -> str:
    """A text as one line of at most so many characters; what is no visible character becomes a space."""
    # The first characters say enough: a text of megabytes is not searched to its end.
    start = str(text)[: 4 * longest]
    line = " ".join("".join(char if char.isprintable() else " " for char in start).split())
    return line if len(line) <= longest and len(start) == len(str(text)) else f"{line[: longest - 1]}…"


def listed(texts: Iterable[object], most: int = 4) -> str:
    """The first of several, and how many more there are: `a, b, c and 7 more`."""
    every = list(map(str, texts))
    rest = f" and {len(every) - most:,} more" if len(every) > most else ""
    return ", ".join(every[:most]) + rest


def assigned(values: Mapping[str, Any] | Iterable[tuple[str, Any]], most: int = 8) -> str:
    """Names with their values: `d_model=64, n_heads=2`."""
    pairs = values.items() if isinstance(values, Mapping) else values
    return listed((f"{name}={value_text(value)}" for name, value in pairs), most)


def facts(*pairs: tuple[str, object]) -> Iterator[str]:
    """Lines of names with texts, the texts below one another; empty texts are left out."""
    kept = [(cut(name, _CELL), str(text)) for name, text in pairs if str(text)]
    width = max((len(name) for name, _ in kept), default=0)
    for name, text in kept:
        first, *more = [part for line in text.splitlines() for part in _wrapped(line, _LINE - width - 4, deeper=0)]
        yield f"  {name:<{width}}  {first}"
        yield from (f"  {'':<{width}}  {line}" for line in more)


def table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, indent: int = 2) -> Iterator[str]:
    """Lines of a table after an empty one: the first rows, and how many more there are; nothing where there is none."""
    every = list(rows)
    if every:
        yield ""
        text = aligned(headings, every[:MOST_ROWS], more=len(every) - MOST_ROWS)
        yield from (f"{'':{indent}}{line}" for line in text.splitlines())


def aligned(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, more: int = 0) -> str:
    """Rows under headings, in columns of plain text; `more` rows that are not shown are counted in a last line."""
    cells = [tuple(cut(cell, _CELL) if "\n" in cell else cell for cell in row) for row in rows]
    longest = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    room = _LINE - 2 * len(headings)
    widest = next((w for w in range(_CELL, _NARROWEST, -1) if sum(min(w, n) for n in longest) <= room), _NARROWEST)
    short = [tuple(cell if len(cell) <= widest else f"{cell[: widest - 1]}…" for cell in row) for row in cells]
    widths = [max(map(len, column)) for column in zip(headings, *short, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (headings, *short)]
    return "\n".join((*lines, f"… and {more:,} more") if more > 0 else lines)


def count_text(number: int, word: str) -> str:
    """A number with the word for what it counts: `1 role`, `2 roles`."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def bytes_text(count: float) -> str:
    """A number of bytes: `480 B`, `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def value_text(value: Any) -> str:
    """A value as Python writes it; long ones cut, and of containers no more than fits."""
    match value:
        case bytes() | bytearray() | memoryview():
            return f"<{bytes_text(len(value))}>"
        case str():
            return cut(repr(value[:_CELL] if len(value) <= _CELL else f"{value[:_CELL]}…"), _CELL + 4)
        case Mapping():
            return f"{{{listed((f'{key}: {value_text(item)}' for key, item in value.items()))}}}"
        case list() | tuple():
            inside = listed(map(value_text, value))
            return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
        case _:
            return repr(value)


def _wrapped(line: str, width: int = _LINE, *, deeper: int = 4) -> list[str]:
    if len(line) <= width:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + deeper)
    return textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False) or [""]
