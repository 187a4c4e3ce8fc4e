"""Tables, facts and paragraphs as lines of text: they fit a terminal, and are plain in a pipe.

On a terminal, a name, a shape or a number is never broken: where room lacks, prose is broken between words, a column
of names goes below its row, and the least important columns are left out, which a last line says.
Without a width, as in a pipe, every row is one line with every column. No line ends in blanks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Protocol

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

Cell = str | Text

NO_BREAK = "\N{NO-BREAK SPACE}"
"""A space at which no line is broken; it is printed as any other."""

_GAP = 2
_LEAST_PROSE = 14  # columns of a terminal that prose is not squeezed below
_WORD = re.compile(r"(?:[^ \n] )?[^ \n]+")  # a mark of one character stays with the word after it


class Block(Protocol):
    """Something that can be shown."""

    def lines(self, width: int | None) -> Iterator[Text]:
        """Its lines, at most `width` columns wide where its words allow; without a width, as wide as they are."""


def show_on_stdout(*blocks: Block) -> None:
    """Prints blocks, with an empty line between them; to a terminal they fit, to anything else they go whole."""
    console = Console(highlight=False)
    width = console.width if sys.stdout.isatty() else None
    for number, block in enumerate(blocks):
        lines = list(block.lines(width))
        if number and lines:
            typer.echo()
        if width is None:
            typer.echo("\n".join(line.plain.rstrip() for line in lines).replace(NO_BREAK, " "))
        else:
            for line in lines:
                line.plain = line.plain.replace(NO_BREAK, " ")
                console.print(line, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        heading: what it is called.
        rank: the columns of the highest rank are left out first where room lacks; those of rank 0 never are.
        prose: may be broken between words; other columns are never broken.
        below: goes below the row where there is no room beside it.
        right: aligned to the right, as numbers are.
    """

    heading: str
    rank: int = 0
    prose: bool = False
    below: bool = False
    right: bool = False


@dataclass(slots=True)
class Table:
    """Rows under headings.

    Example:
        >>> grid = table("Traces", "id", Column("model", prose=True))
        >>> grid.add("a3a3d0bc", "reference")
    """

    title: str
    columns: tuple[Column, ...]
    rows: list[tuple[Text, ...]] = field(default_factory=list)

    def add(self, *cells: Cell) -> None:
        """Adds a row; text is shown as it is, brackets and all."""
        assert len(cells) == len(self.columns)
        self.rows.append(tuple(map(_text, cells)))

    def lines(self, width: int | None) -> Iterator[Text]:
        """The title, the headings, the rows, and which columns are left out."""
        columns = [n for n, column in enumerate(self.columns) if any(row[n].plain for row in self.rows)]
        if self.title:
            yield Text(self.title, "bold")
        if not columns:
            return
        if width is None:
            yield from self._plain(columns)
        else:
            yield from self._fitted(columns, width)

    def _plain(self, columns: list[int]) -> Iterator[Text]:
        """A line for each row, with every column that says something."""
        rows = [[Text(", ".join(row[n].plain.splitlines())) for n in columns] for row in self.rows]
        headings = [Text(self.columns[n].heading) for n in columns]
        widths = [max(cell.cell_len for cell in column) for column in zip(headings, *rows, strict=True)]
        for row in (headings, *rows):
            yield self._line(row, columns, widths)

    def _fitted(self, columns: list[int], width: int) -> Iterator[Text]:
        kept, below = self._plan(columns, width)
        widths = self._widths(kept, width)
        headings = [Text(self.columns[n].heading, "bold") for n in kept]
        if any(heading.plain for heading in headings):
            yield self._line(headings, kept, widths)
            yield Text("─" * min(width, sum(widths) + _GAP * (len(widths) - 1)), "dim")
        indent = _GAP + (widths[0] if self.columns[kept[0]].right else 0)  # past a number
        for row in self.rows:
            cells = [
                wrapped(row[n], room) if self.columns[n].prose else list(row[n].split())
                for n, room in zip(kept, widths, strict=True)
            ]
            for line in zip_longest(*cells, fillvalue=Text()):
                yield self._line(line, kept, widths)
            for under in self._under(row, below, width - indent):
                yield Text.assemble(" " * indent, under)
        hidden = [self.columns[n].heading for n in columns if n not in kept and n not in below]
        if hidden:
            yield from wrapped(Text(f"(hidden at this width: {', '.join(hidden)}; --json has all)", "dim"), width)

    def _under(self, row: Sequence[Text], below: Sequence[int], width: int) -> Iterator[Text]:
        """The lines below a row: names after one another, prose on lines of its own."""
        prose = [row[n] for n in below if self.columns[n].prose and row[n].plain]
        names = [Text(", ").join(row[n].split()) for n in below if not self.columns[n].prose and row[n].plain]
        for text in ([Text("  ").join(names)] if names else []) + prose:
            yield from wrapped(text, width)

    def _plan(self, columns: list[int], width: int) -> tuple[list[int], list[int]]:
        """The columns that are kept beside one another, and those below the row.

        As few as possible are left out; to have some below is as bad as to leave one out.
        """
        under = [n for n in columns if self.columns[n].below]
        plans = []
        for below in ([], under) if under else ([],):
            kept = [n for n in columns if n not in below]
            ranked = sorted((n for n in kept if self.columns[n].rank), key=lambda n: self.columns[n].rank)
            while ranked and self._least(kept) > width:
                kept.remove(ranked.pop())
            left_out = len(columns) - len(kept) - len(below)
            plans.append((max(0, self._least(kept) - width), left_out + bool(below), kept, below))
        _, _, kept, below = min(plans, key=lambda plan: plan[:2])
        return kept, below

    def _least(self, kept: Sequence[int]) -> int:
        """How much room these columns need."""
        return sum(self._squeezed(n) if self.columns[n].prose else self._natural(n) for n in kept) + self._gaps(kept)

    def _natural(self, n: int) -> int:
        return max(map(cell_len, (line for text in self._texts(n) for line in text.split("\n"))))

    def _squeezed(self, n: int) -> int:
        """How narrow a column of prose may be: its longest word must fit."""
        longest = max((cell_len(word) for text in self._texts(n) for word in _WORD.findall(text)), default=0)
        return max(longest, min(self._natural(n), _LEAST_PROSE))

    def _texts(self, n: int) -> Iterator[str]:
        yield self.columns[n].heading
        yield from (row[n].plain for row in self.rows)

    def _gaps(self, kept: Sequence[int]) -> int:
        return _GAP * (len(kept) - 1)

    def _widths(self, kept: Sequence[int], width: int) -> list[int]:
        """How wide every column is; those of prose share what the others leave."""
        natural = {n: self._natural(n) for n in kept}
        prose = sorted((n for n in kept if self.columns[n].prose), key=natural.__getitem__)
        spare = width - self._gaps(kept) - sum(self._squeezed(n) if n in prose else natural[n] for n in kept)
        for count, n in enumerate(prose):
            squeezed = self._squeezed(n)
            natural[n] = min(natural[n], squeezed + max(0, spare) // (len(prose) - count))
            spare -= natural[n] - squeezed
        return [natural[n] for n in kept]

    def _line(self, cells: Iterable[Text], columns: Sequence[int], widths: Sequence[int]) -> Text:
        line = Text()
        for cell, n, width in zip(cells, columns, widths, strict=True):
            blanks = " " * (width - cell.cell_len)
            line.append_text(Text.assemble(blanks, cell) if self.columns[n].right else Text.assemble(cell, blanks))
            line.append(" " * _GAP)
        line.rstrip()
        return line


@dataclass(frozen=True, slots=True)
class Facts:
    """A heading, and below it names with their values; those without a value are left out."""

    title: str
    rows: tuple[tuple[str, Cell], ...]

    def lines(self, width: int | None) -> Iterator[Text]:
        """The title, and a line or more for every name."""
        if self.title:
            yield from wrapped(Text(self.title, "bold"), width)
        rows = [(name, _text(value)) for name, value in self.rows]
        rows = [(name, value) for name, value in rows if value.plain]
        indent = max((cell_len(name) for name, _ in rows), default=0) + 2 * _GAP
        stacked = width is not None and 2 * indent > width  # names that leave values too little room
        for name, value in rows:
            if stacked:
                yield Text(" " * _GAP + name, "dim")
                indent = 2 * _GAP
            for number, line in enumerate(wrapped(value, width and width - indent)):
                label = Text(" " * _GAP + ("" if number or stacked else name), "dim")
                label.pad_right(indent - label.cell_len)
                yield Text.assemble(label, line)


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Prose; lines after the first are indented."""

    text: Cell
    indent: int = 0

    def lines(self, width: int | None) -> Iterator[Text]:
        """The prose, broken between words."""
        first, *rest = wrapped(_text(self.text), width and width - self.indent)
        yield first
        yield from (Text.assemble(" " * self.indent, line) for line in rest)


@dataclass(frozen=True, slots=True)
class Stack:
    """Blocks without empty lines between them."""

    blocks: tuple[Block, ...]

    def lines(self, width: int | None) -> Iterator[Text]:
        """The lines of all of them."""
        for block in self.blocks:
            yield from block.lines(width)


def table(title: str, *columns: str | Column) -> Table:
    """Returns an empty table; a column that is only a heading is never left out and never broken."""
    return Table(title, tuple(Column(each) if isinstance(each, str) else each for each in columns))


def facts(title: str, *rows: tuple[str, Cell]) -> Facts:
    """Returns names with their values, below a heading."""
    return Facts(title, rows)


def wrapped(text: Text, width: int | None) -> list[Text]:
    """Returns the lines of a text, broken between words where they are wider than `width`."""
    lines = []
    for line in text.split("\n", allow_blank=True):
        start, breaks = 0, []
        for word in _WORD.finditer(line.plain) if width is not None and line.cell_len > width else ():
            if word.start() > start and cell_len(line.plain[start : word.end()]) > (width or 0):
                start = word.start()
                breaks.append(start)
        for part in line.divide(breaks):
            part.rstrip()
            lines.append(part)
    return lines or [Text()]


def _text(cell: Cell) -> Text:
    return Text(cell) if isinstance(cell, str) else cell
