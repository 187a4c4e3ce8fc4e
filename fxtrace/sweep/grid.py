"""Grids of configurations: `d_model=64,128,256` and `n_heads=1..16`, and every combination of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from fxtrace.errors import OptionInvalid, TooLarge
from fxtrace.ir.text import Readable, count_text, listed, value_text
from fxtrace.ir.trace import Json

MAX_CONFIGURATIONS = 1_000_000
"""Configurations of one sweep, at most, where nothing else is set."""

_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?::(-?\d{1,18}))?")
_MAX_LISTED = 100_000
_FORM = "expected FIELD=VALUE,VALUE,… or FIELD=FIRST..LAST or FIELD=FIRST..LAST:STEP"


@dataclass(frozen=True, slots=True, repr=False)
class Axis(Readable):
    """A configuration field and the values that it is to take, each once.

    Attributes:
        field: its name.
        values: the values; integers at equal distances may be a `range`, of any length.
    """

    field: str
    values: tuple[Json, ...] | range

    @property
    def count(self) -> int:
        """How many values there are, also where they are more than `len` counts."""
        if isinstance(self.values, range):
            return max(0, -(-(self.values.stop - self.values.start) // self.values.step))
        return len(self.values)

    def _lines(self) -> Iterator[str]:
        if isinstance(self.values, range):
            step = f":{self.values.step}" if self.values.step != 1 else ""
            yield f"{self.field}={self.values.start}..{self.values.stop - 1}{step}"
        else:
            yield f"{self.field}={listed(map(value_text, self.values), 16)}"


@dataclass(frozen=True, repr=False)
class Grid(Readable):
    """Every combination of the axes' values; the last axis changes fastest.

    Raises:
        OptionInvalid: there is no axis, two are of one field, or one has no value, the same value twice, a value that
            JSON does not have, or a range that runs backwards.

    Example:
        >>> grid = parse_grid(["d_model=64,128", "n_heads=1..4"])
        >>> grid.size, grid[5]
        (8, {'d_model': 128, 'n_heads': 2})
    """

    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        if not self.axes:
            raise OptionInvalid(f"grid: {_FORM}; got nothing", field="grid")
        seen = set()
        for axis in self.axes:
            if axis.field in seen:
                raise _invalid(axis.field, "the field is given twice; give all its values at once")
            seen.add(axis.field)
            if isinstance(axis.values, range):
                if axis.values.step < 1:
                    raise _invalid(axis.field, f"expected a range with a step of at least 1, got {axis.values.step}")
                if not axis.values:
                    ends = f"{axis.values.start} to before {axis.values.stop}"
                    raise _invalid(axis.field, f"expected at least one value, got a range from {ends}")
            elif not axis.values:
                raise _invalid(axis.field, "expected at least one value, got none")
            else:
                texts = [_text(axis.field, value) for value in axis.values]
                if len(set(texts)) < len(texts):
                    twice = next(text for text in texts if texts.count(text) > 1)
                    raise _invalid(axis.field, f"the value {twice} is given twice")

    @property
    def size(self) -> int:
        """How many configurations there are."""
        return math.prod(axis.count for axis in self.axes)

    def __getitem__(self, index: int) -> dict[str, Json]:
        """The values of one configuration."""
        if not 0 <= index < self.size:
            raise IndexError(index)
        values: dict[str, Json] = {}
        for axis in reversed(self.axes):
            index, place = divmod(index, axis.count)
            values[axis.field] = axis.values[place]
        return {axis.field: values[axis.field] for axis in self.axes}

    def _lines(self) -> Iterator[str]:
        yield f"{count_text(self.size, 'configuration')}: {self._lengths}"
        yield from (f"  {axis}" for axis in self.axes)

    @property
    def _lengths(self) -> str:
        return " × ".join(f"{axis.count:,} of {axis.field}" for axis in self.axes)

    def require_at_most(self, most: int) -> None:
        """Returns where the grid has no more configurations than that.

        Raises:
            TooLarge: it has more; the message has the count.
        """
        if self.size > most:
            raise TooLarge(
                f"grid: {self.size:,} configurations ({self._lengths}), expected at most {most:,}; take fewer values, "
                "or larger steps as in 64..4096:64",
                field="grid",
                count=self.size,
                maximum=most,
            )


def parse_grid(texts: Iterable[str]) -> Grid:
    """The grid that texts such as `d_model=64,128,256`, `n_heads=1..16` or `d_ff=64..512:64` describe.

    Values are JSON, or else text; ranges include their last value, and may stand among other values.

    Raises:
        OptionInvalid: a text has another form, or the grid is none: see `Grid`.
    """
    return Grid(tuple(map(_parse_axis, texts)))


def _parse_axis(text: str) -> Axis:
    field, equals, listed = text.partition("=")
    field = field.strip()
    if not (field and equals):
        raise OptionInvalid(f"grid: {_FORM}; got '{text}'", field="grid")
    parts = [_parse_part(field, part.strip()) for part in _split(listed)]
    if len(parts) == 1 and isinstance(parts[0], range):
        return Axis(field, parts[0])
    if sum(map(len, parts)) > _MAX_LISTED:
        raise _invalid(field, f"expected at most {_MAX_LISTED:,} values besides a range alone")
    return Axis(field, tuple(chain.from_iterable(parts)))


def _split(listed: str) -> list[str]:
    """The values between commas; JSON's own lists, objects and texts keep theirs."""
    try:
        whole = json.loads(f"[{listed}]")
        return [json.dumps(each, ensure_ascii=False) for each in whole]
    except ValueError:
        return listed.split(",")


def _parse_part(field: str, part: str) -> Sequence[Json]:
    if not part:
        raise _invalid(field, "expected a value, got none")
    if match := _RANGE.fullmatch(part):
        first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
        if step < 1:
            raise _invalid(field, f"the step of {part} must be at least 1")
        if last < first:
            raise _invalid(field, f"{part} is empty: its last value is less than its first")
        return range(first, last + 1, step)
    if ".." in part and not part.startswith('"'):
        raise _invalid(field, f"'{part}' is no range; a range is FIRST..LAST or FIRST..LAST:STEP, of integers")
    try:
        value: Json = json.loads(part)
    except ValueError:
        return (part,)
    return (value,)


def _text(field: str, value: Json) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError):
        raise _invalid(field, f"expected values that JSON has, got {value!r}") from None


def _invalid(field: str, problem: str) -> OptionInvalid:
    return OptionInvalid(f"grid: field '{field}': {problem}", field=f"grid.{field}", name=field)
