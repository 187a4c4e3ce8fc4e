"""Finding the formula of each size from what it came to under many configurations.

A size that one field alone changes depends on that field; the formula is looked for among those fields only, the
simplest kind first, and must give every size seen, exactly. Some of the configurations have no part in the search: a
formula counts as confirmed if it gives those, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, islice, permutations, product

import numpy as np
from numpy.typing import NDArray

from fxtrace.dims.formula import Columns, Formula
from fxtrace.ir.text import Readable, assigned, count_text, facts

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_MAX_DENOMINATOR = 64
_MAX_TRIALS = 6000
"""How many sums of terms are tried for a size before it stays a number."""
_STRIDES = range(2, 33)


@dataclass(frozen=True, slots=True, repr=False)
class Probe(Readable):
    """A configuration that was tried: every named size, and which one alone differs from the first probe's."""

    sizes: Mapping[str, int]
    changed: str = ""

    def _lines(self) -> Iterator[str]:
        yield assigned(self.sizes)
        yield from facts(("changed", self.changed))


@dataclass(frozen=True, slots=True, repr=False)
class Finding(Readable):
    """What was found of one size.

    Attributes:
        formula: the formula that gives it in every probe; None where none was found.
        depends_on: the named sizes that change it when they alone change.
        confirmations: in how many configurations that had no part in the search the formula was right.
        reason: why there is none, where more is known than that none was found.
    """

    formula: Formula | None
    depends_on: tuple[str, ...] = ()
    confirmations: int = 0
    reason: str = ""

    def _lines(self) -> Iterator[str]:
        if self.formula is None:
            yield f"no formula: {self.reason or 'none was found'}"
        else:
            yield f"{self.formula}, confirmed on {count_text(self.confirmations, 'configuration')}"
        yield from facts(("depends on", ", ".join(self.depends_on)))


def find_formulas(probes: Sequence[Probe], observed: Ints, held_out: int) -> list[Finding]:
    """The formula of each size.

    Args:
        probes: the configurations; the first one is the base, the last `held_out` only confirm.
        observed: a row for each probe, a column for each size.
        held_out: how many; at least 2, in which more than one named size differs from the base's.
    """
    names = sorted(probes[0].sizes)
    columns = {name: np.array([probe.sizes[name] for probe in probes], np.int64) for name in names}
    search = _Search(columns, [probe.changed for probe in probes], len(probes) - held_out)
    different: dict[bytes, Ints] = {column.tobytes(): column for column in observed.T}
    # What depends on less comes first: sums and quotients of it may be part of the others.
    by_need = sorted(different.items(), key=lambda item: len(search.needs(item[1])))
    found = {key: search.solve(column) for key, column in by_need}
    return [found[column.tobytes()] for column in observed.T]


class _Search:
    def __init__(self, columns: Columns, changed: Sequence[str], fitted: int) -> None:
        self._columns = columns
        self._alone = [(row, name) for row, name in enumerate(changed[:fitted]) if name]
        self._fitted = fitted
        self._rows = len(changed)
        self._solved: dict[str, Ints] = {}
        self._parts: dict[str, tuple[str, ...]] = {}

    def needs(self, size: Ints) -> tuple[str, ...]:
        """The named sizes that change it when they alone change."""
        return tuple(dict.fromkeys(name for row, name in self._alone if size[row] != size[0]))

    def solve(self, size: Ints) -> Finding:
        needs = self.needs(size)
        for text in islice(self._candidates(size, needs), 64):
            values = self._values(text)
            if values is None or not (values[: self._fitted] == size[: self._fitted]).all():
                continue
            confirmations = int((values[self._fitted :] == size[self._fitted :]).sum())
            if confirmations < self._rows - self._fitted:
                continue
            text = _bare(text)
            if text not in self._columns and not text.isdigit():
                self._solved.setdefault(text, size)
                self._parts[text] = needs
            return Finding(Formula(text), needs, confirmations)
        return Finding(None, needs)

    def _values(self, text: str) -> Ints | None:
        formula = Formula(text)
        values = []
        for row in range(self._rows):
            value = formula.value({name: int(self._columns[name][row]) for name in formula.names})
            if value is None:
                return None
            values.append(value)
        return np.array(values, np.int64)

    def _candidates(self, size: Ints, needs: tuple[str, ...]) -> Iterator[str]:
        """Formulas that give the size in the probes that are fitted, up to rounding; the simplest kinds first."""
        fitted = size[: self._fitted]
        if (size == size[0]).all():
            yield str(size[0])
            return
        terms = list(self._terms(needs))
        yield from self._sums(fitted, terms, 1, needs)
        yield from self._choices(fitted, needs)
        yield from self._sums(fitted, terms, 2, needs)
        yield from self._floors(fitted, needs)
        yield from self._sums(fitted, terms, 3, needs)
        yield from self._sums(fitted, terms, 4, needs)

    def _terms(self, needs: tuple[str, ...]) -> Iterator[_Term]:
        """Products and quotients of the named sizes, and of the sizes solved before that are made of them alone."""
        atoms: list[tuple[str, tuple[str, ...], Ints]] = [(name, (name,), self._columns[name]) for name in needs]
        atoms += [
            (f"({text})", self._parts[text], values)
            for text, values in self._solved.items()
            if set(self._parts[text]) <= set(needs) and ("//" in text or "min" in text or "max" in text)
        ]
        atoms += [
            (f"({a}//{b})", (a, b), self._columns[a] // self._columns[b])
            for a, b in permutations(needs, 2)
            if f"{a}//{b}" not in self._solved
            and (self._columns[a] % self._columns[b]).any()
            and (self._columns[a] >= self._columns[b]).all()
        ]
        exponents = (0, 1, 2, -1, -2) if len(atoms) <= 3 else (0, 1, -1) if len(atoms) <= 6 else (0, 1)
        powers = sorted(_products(len(atoms), exponents), key=lambda each: sum(map(abs, each)) + (min(each) < 0))
        for each in powers[:200]:
            value = np.ones(self._fitted)
            uses: set[str] = set()
            for (_, parts, values), power in zip(atoms, each, strict=True):
                if power:
                    with np.errstate(divide="ignore"):
                        value = value * values[: self._fitted].astype(np.float64) ** power
                    uses |= set(parts)
            if np.isfinite(value).all():
                over = [(name, p) for (name, _, _), p in zip(atoms, each, strict=True) if p > 0]
                under = [(name, -p) for (name, _, _), p in zip(atoms, each, strict=True) if p < 0]
                yield _Term(tuple(over), tuple(under), frozenset(uses), value)

    def _sums(self, size: Ints, terms: list[_Term], count: int, needs: tuple[str, ...]) -> Iterator[str]:
        """Sums of so many terms, each with a factor."""
        wanted, target = set(needs), size.astype(np.float64)
        limit = next((n for n in range(len(terms), count, -1) if _choose(n, count) <= _MAX_TRIALS), count)
        for chosen in combinations(terms[: max(limit, count)], count):
            if not wanted <= set().union(*(term.uses for term in chosen)):
                continue
            matrix = np.stack([term.values for term in chosen], axis=1)
            scale = matrix.max(axis=0)
            factors, _, rank, _ = np.linalg.lstsq(matrix / scale, target, rcond=None)
            if rank < count or not np.allclose(matrix / scale @ factors, target, rtol=1e-9, atol=1e-6):
                continue
            exact = [
                Fraction(float(f / s)).limit_denominator(_MAX_DENOMINATOR) for f, s in zip(factors, scale, strict=True)
            ]
            if all(exact):
                yield _written(zip(exact, chosen, strict=True))

    def _choices(self, size: Ints, needs: tuple[str, ...]) -> Iterator[str]:
        """The lesser or the greater of two sizes."""
        pool: dict[str, Ints] = {str(each): np.full(self._fitted, each) for each in np.unique(size)}
        pool |= {name: values[: self._fitted] for name, values in self._columns.items()}
        pool |= {text: values[: self._fitted] for text, values in self._solved.items() if "min" not in text}
        for function, choose in (("min", np.minimum), ("max", np.maximum)):
            bounds = [
                each for each in pool.items() if ((each[1] >= size) if function == "min" else (each[1] <= size)).all()
            ]
            for (a, first), (b, second) in combinations(bounds, 2):
                if (choose(first, second) == size).all() and set(needs) <= Formula(a).names | Formula(b).names:
                    yield f"{function}({a}, {b})"

    def _floors(self, size: Ints, needs: tuple[str, ...]) -> Iterator[str]:
        """Sizes divided and rounded down, as windows and strides do: `(length - kernel)//stride + 1`."""
        bases = {name: self._columns[name] for name in needs}
        bases |= {f"({text})": values for text, values in self._solved.items() if set(self._parts[text]) <= set(needs)}
        bases |= {  # heads' widths, halved
            f"({a}//{b})": self._columns[a] // self._columns[b]
            for a, b in permutations(needs, 2)
            if (self._columns[a] >= self._columns[b]).all()
        }
        named = {name: self._columns[name][: self._fitted] for name in needs}
        strides = {**named, **{str(each): np.full(self._fitted, each) for each in _STRIDES}}
        for (base, values), (stride, by) in product(bases.items(), strides.items()):
            if base == stride or (by < 1).any():
                continue
            length = values[: self._fitted]
            for kernel, width in ({} if base in named else named | {}).items() or named.items():
                if kernel in (base, stride):
                    continue
                yield from _offset(size, length - width, by, f"{base} - {kernel}", stride)
            yield from _offset(size, length, by, base, stride)


def _offset(size: Ints, length: Ints, by: Ints, text: str, stride: str) -> Iterator[str]:
    """`(length + offset)//by` for the offsets with which it gives the size, the one nearest to none first."""
    # size <= (length + offset)/by < size + 1
    least, most = int((size * by - length).max()), int((size * by + by - 1 - length).min())
    if least > most:
        return
    offset = 0 if least <= 0 <= most else least if least > 0 else most
    sign = f" {'+' if offset > 0 else '-'} {abs(offset)}" if offset else ""
    plain = not sign and " " not in text
    yield f"{text}//{stride}" if plain else f"({text}{sign})//{stride}"


@dataclass(frozen=True, slots=True)
class _Term:
    """A product of powers: of what is over the line, and of what is under it."""

    over: tuple[tuple[str, int], ...]
    under: tuple[tuple[str, int], ...]
    uses: frozenset[str]
    values: Floats


def _bare(text: str) -> str:
    """A formula without the brackets around the whole of it."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return _bare(text[1:-1]) if place == len(text) - 1 > 0 else text
    return text


def _written(sum_of: Iterable[tuple[Fraction, _Term]]) -> str:
    text = ""
    for factor, term in sorted(sum_of, key=lambda item: (item[0] < 0, not item[1].over)):
        over = [_power(*each) for each in term.over]
        under = [_power(*each) for each in term.under]
        if abs(factor.numerator) != 1 or not over:
            over.insert(0, str(abs(factor.numerator)))
        if factor.denominator != 1:
            under.insert(0, str(factor.denominator))
        line = _bare(over[0]) if len(over) == 1 and not under and factor > 0 else "*".join(over)
        if under:
            line += "/" + (under[0] if len(under) == 1 and "*" not in under[0] else f"({'*'.join(under)})")
        text += ("-" if factor < 0 else "") + line if not text else (" - " if factor < 0 else " + ") + line
    return text


def _power(name: str, power: int) -> str:
    return name if power == 1 else f"{name}**{power}"


def _products(count: int, exponents: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Exponents for each of `count` factors, at most four of them other than 0."""
    for chosen in range(min(count, 4) + 1):
        for places in combinations(range(count), chosen):
            for powers in product([e for e in exponents if e], repeat=chosen):
                each = [0] * count
                for place, power in zip(places, powers, strict=True):
                    each[place] = power
                yield tuple(each)


def _choose(n: int, k: int) -> int:
    result = 1
    for i in range(k):
        result = result * (n - i) // (i + 1)
    return result
