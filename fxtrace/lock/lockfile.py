"""A lockfile's text: one line for each thing, in a stable order, so that what moved is a line of a diff.

    fxtrace-lock 1
    model reference

    [settings]              the fields that were set
    d_ff = 512

    [configuration]         every field, as the model resolved it
    d_model = 128

    [sizes]                 of inputs, where no field decides them
    batch = 1

    [trials]                other configurations on which the formulas were seen to hold
    d_model=192 n_heads=6

    [roles]                 also [inputs], [outputs] and [parameters]: name, dtype, sizes as formulas
    encoder.0.self_attention.scores  float32  (1, n_heads, src_len, src_len)

    [end]                   a file without it was cut off

A size without a confirmed formula is a number with a question mark: `64?`. Empty lines and lines that begin with `#`
mean nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from fxtrace.dims import Formula
from fxtrace.errors import InvalidRequest, nearest
from fxtrace.ir.text import Readable, assigned, count_text, facts, table
from fxtrace.ir.trace import Json

FORMAT = 1
SECTIONS = ("inputs", "roles", "outputs", "parameters")

_HEAD = (
    "# What every tensor is made of, written by `fxtrace lock` and held by `fxtrace check`. Review changes like code."
)
_END = "end"
_NUMBER = re.compile(r"\d{1,18}")
_TENSOR = re.compile(r"(\S+)\s+(\w+)\s+\((.*)\)")
_SAFE = "._-:[]<>()*/$@!,;=+~'\""  # and letters and digits; of names, the rest is written as in URLs


@dataclass(frozen=True, slots=True, repr=False)
class Locked(Readable):
    """A tensor's dtype and sizes: a formula each, or a number and `?` where none was confirmed."""

    dtype: str
    sizes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.dtype}  ({', '.join(self.sizes)})"

    def shape(self, sizes: Mapping[str, int]) -> tuple[int | None, ...]:
        """The sizes under a configuration; None for those that cannot be told."""
        return tuple(None if formula is None else formula.value(sizes) for formula in self.formulas)

    @property
    def formulas(self) -> tuple[Formula | None, ...]:
        """The confirmed formulas, with None for the other sizes."""
        return tuple(None if each.endswith("?") else Formula(each) for each in self.sizes)

    @property
    def names(self) -> frozenset[str]:
        """The fields that the sizes are made of."""
        return frozenset(name for formula in self.formulas if formula is not None for name in formula.names)


@dataclass(frozen=True, repr=False)
class Lock(Readable):
    """What a lockfile says.

    Attributes:
        model: the model's name.
        settings: the fields that were set.
        configuration: every field, as the model resolved it; those in nests by the way to them.
        sizes: of inputs, where no field decides them, by the names that formulas have for them.
        trials: the integers of other configurations on which the formulas were seen to hold.
        tensors: by section and name.
    """

    model: str
    settings: Mapping[str, Json]
    configuration: Mapping[str, Json]
    sizes: Mapping[str, int]
    trials: tuple[Mapping[str, int], ...]
    tensors: Mapping[tuple[str, str], Locked]

    def _lines(self) -> Iterator[str]:
        yield f"{self.model}({assigned(self.settings)}): {count_text(len(self.tensors), 'tensor')} locked"
        yield from facts(
            ("configuration", assigned(self.configuration, 24)),
            ("sizes", assigned(self.sizes)),
            ("held on", "\n".join(map(assigned, self.trials))),
        )
        rows = ((section, name, each.dtype, ", ".join(each.sizes)) for (section, name), each in self.tensors.items())
        yield from table(("section", "name", "dtype", "made of"), rows)


def dumps(lock: Lock) -> str:
    """The lockfile's text."""
    return "\n".join(_lines(lock)) + "\n"


def _lines(lock: Lock) -> Iterator[str]:
    yield _HEAD
    yield f"fxtrace-lock {FORMAT}"
    yield f"model {lock.model}"
    settings = (("settings", lock.settings), ("configuration", lock.configuration), ("sizes", lock.sizes))
    for section, fields in settings:
        if fields:
            yield from ("", f"[{section}]")
            yield from (f"{_quoted(name)} = {json.dumps(value, sort_keys=True)}" for name, value in fields.items())
    if lock.trials:
        yield from ("", "[trials]")
        yield from (" ".join(f"{_quoted(name)}={size}" for name, size in trial.items()) for trial in lock.trials)
    for section in SECTIONS:
        tensors = {name: each for (where, name), each in lock.tensors.items() if where == section}
        if tensors:
            yield from ("", f"[{section}]")
            yield from (f"{_quoted(name)}  {each}" for name, each in tensors.items())
    yield from ("", "[end]")


def loads(text: str, file: str = "shapes.lock") -> Lock:
    """What a lockfile's text says.

    Args:
        text: the text.
        file: what to call it in errors.

    Raises:
        InvalidRequest: it is no lockfile, of a newer format, or a line cannot be understood; the line is named.
    """
    return _Reader(text, file).lock()


class _Reader:
    def __init__(self, text: str, file: str) -> None:
        lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
        self._lines = iter([(number, line) for number, line in lines if line and not line.startswith("#")])
        self._file, self._number = file, 0

    def lock(self) -> Lock:
        form = self._after("fxtrace-lock")
        if not _NUMBER.fullmatch(form):
            raise self._wrong(f"expected the number of a format after 'fxtrace-lock', got '{form}'")
        if int(form) > FORMAT:
            raise self._wrong(f"format {form} is newer than {FORMAT}, which this fxtrace reads; update fxtrace")
        model = self._after("model")
        settings: dict[str, Json] = {}
        configuration: dict[str, Json] = {}
        sizes: dict[str, int] = {}
        trials: list[Mapping[str, int]] = []
        tensors: dict[tuple[str, str], Locked] = {}
        section = ""
        for self._number, line in self._lines:  # noqa: B020 - errors name it
            if heading := re.fullmatch(r"\[(\w+)\]", line):
                section = heading[1]
                known = ("settings", "configuration", "sizes", "trials", *SECTIONS, _END)
                if section not in known:
                    near = nearest(section, known)
                    raise self._wrong(f"no section '{section}'" + (f"; did you mean '{near}'?" if near else ""))
            elif section == _END:
                raise self._wrong(f"expected nothing after [{_END}], got '{line}'")
            elif section in ("settings", "configuration"):
                self._add(settings if section == "settings" else configuration, *self._field(line))
            elif section == "sizes":
                name, size = self._field(line)
                if not isinstance(size, int) or isinstance(size, bool):
                    raise self._wrong(f"expected a size as in 'batch = 1', got '{line}'")
                self._add(sizes, name, size)
            elif section == "trials":
                trials.append(self._trial(line))
            elif section:
                name, locked = self._tensor(line)
                self._add(tensors, (section, name), locked)
            else:
                raise self._wrong(f"expected a section such as [roles], got '{line}'")
        if section != _END:
            raise self._wrong(f"the file ends before its [{_END}]: it was cut off; restore it, or lock anew")
        return Lock(model, settings, configuration, sizes, tuple(trials), tensors)

    def _after(self, word: str) -> str:
        self._number, line = next(self._lines, (self._number + 1, ""))
        first, _, rest = line.partition(" ")
        if first != word or not rest.strip():
            raise self._wrong(f"expected '{word} …', got '{line}'; `fxtrace lock MODEL -o FILE` writes a lockfile")
        return rest.strip()

    def _field(self, line: str) -> tuple[str, Json]:
        name, _, value = line.partition(" = ")
        try:
            return unquote(name), json.loads(value)
        except ValueError:
            raise self._wrong(f"expected 'name = value' with a value in JSON, got '{line}'") from None

    def _trial(self, line: str) -> Mapping[str, int]:
        pairs = [each.partition("=") for each in line.split()]
        if not all(name and _NUMBER.fullmatch(value) for name, _, value in pairs):
            raise self._wrong(f"expected sizes as in 'd_model=192 n_heads=6', got '{line}'")
        return {unquote(name): int(value) for name, _, value in pairs}

    def _tensor(self, line: str) -> tuple[str, Locked]:
        match = _TENSOR.fullmatch(line)
        if match is None:
            raise self._wrong(f"expected 'name  dtype  (size, size)', got '{line}'")
        sizes = tuple(_split(match[3]))
        for size in sizes:
            if not re.fullmatch(r"\d+\?", size):
                try:
                    Formula(size)
                except InvalidRequest as error:
                    raise self._wrong(error.message) from None
        return unquote(match[1]), Locked(match[2], sizes)

    def _add(self, into: dict[Any, Any], key: str | tuple[str, str], value: object) -> None:
        if key in into:
            raise self._wrong(f"'{key[1] if isinstance(key, tuple) else key}' is there twice")
        into[key] = value

    def _wrong(self, problem: str) -> InvalidRequest:
        return InvalidRequest(f"{self._file}, line {self._number}: {problem}", field="lock", line=self._number)


def _split(sizes: str) -> Iterator[str]:
    """The formulas between commas, but not those inside brackets: `min(a, b), c`."""
    depth, start = 0, 0
    for place, letter in enumerate(sizes):
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            yield sizes[start:place].strip()
            start = place + 1
    if sizes[start:].strip():
        yield sizes[start:].strip()


def _quoted(name: str) -> str:
    return quote(name, safe=_SAFE)
