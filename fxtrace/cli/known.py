"""The known values of the 43 snapshots, and the comparison of a trace with them.

A value is known to the digits it is printed with, so a number agrees with it when they differ by at most half a unit of
its last printed digit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxtrace.graph import Snapshot, show_shape
from fxtrace.ir.trace import Json

Read = Callable[[str, str], NDArray[Any]]
"""Reads the part of a tensor that a slice expression means."""


@dataclass(frozen=True, slots=True)
class KnownSnapshot:
    """What is known of a snapshot: its shape, printed numbers by slice expression, and rules its values keep."""

    number: int
    variables: tuple[str, ...]
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    numbers: Mapping[str, tuple[Decimal, ...]]
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """The known snapshots, and the settings they hold for."""

    settings: Mapping[str, Json]
    snapshots: tuple[KnownSnapshot, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison found: what agrees, and each thing that does not."""

    agreed: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether everything agrees."""
        return not self.problems


def load_known() -> Known:
    """The known values that come with fxtrace."""
    text = files("fxtrace").joinpath("roles", "snapshots.json").read_text(encoding="utf-8")
    # Decimals keep the digits as they are printed.
    data = json.loads(text, parse_float=Decimal)
    settings = {**data["config"], **{name: data[name] for name in ("seed", "source", "target")}}
    return Known(settings, tuple(map(_known_snapshot, data["snapshots"])))


def _known_snapshot(row: dict[str, Any]) -> KnownSnapshot:
    values = dict(row["values"])
    rules = values.pop("rule", "")
    return KnownSnapshot(
        number=row["number"],
        variables=tuple(row["variables"]),
        dims=tuple(map(str, row["dims"])),
        shape=tuple(row["shape"]),
        numbers={key.strip("[]"): tuple(map(Decimal, printed)) for key, printed in values.items()},
        rules=tuple(filter(None, rules.split("; "))),
    )


def agrees(value: float, printed: Decimal) -> bool:
    """Whether a value is what was printed: at most half a unit of the last printed digit away.

    Example:
        >>> agrees(0.12349, Decimal("0.1235")), agrees(0.12344, Decimal("0.1235"))
        (True, False)
    """
    half_a_unit = Decimal(1).scaleb(int(printed.as_tuple().exponent)) / 2
    return math.isfinite(value) and abs(Decimal(value) - printed) <= half_a_unit


def compare(known: KnownSnapshot, found: Snapshot, read: Read) -> Comparison:
    """Compares a snapshot with what is known of it: shape, identities, printed numbers and rules."""
    if not found.found:
        return Comparison((), (f"not found: {found.reason}",))
    problems = [*_shape_problems(known, found)]
    problems += [f"{check.statement}: {check.detail}" for check in found.checks if check.held is False]
    agreed = ["shape"]
    count = 0
    for expression, printed in known.numbers.items():
        # Only snapshots of one tensor have known numbers.
        (tensor,) = found.tensors
        values = read(tensor.tensor, expression)
        if values.shape != (len(printed),):
            problems.append(f"[{expression}]: expected {len(printed)} numbers, got {show_shape(values.shape)}")
            continue
        for value, number in zip(values.tolist(), printed, strict=True):
            count += 1
            if not agrees(value, number):
                problems.append(f"[{expression}]: expected {number}, got {value:.8g}")
    if count:
        agreed.append(f"{count} numbers")
    for rule in known.rules:
        values = read(found.tensors[0].tensor, "")
        if _RULES[rule](values):
            agreed.append(rule)
        else:
            problems.append(f"not so: {rule}")
    return Comparison(tuple(agreed), tuple(problems))


def _shape_problems(known: KnownSnapshot, found: Snapshot) -> Iterator[str]:
    for what, expected, got in (("variables", known.variables, found.variables), ("dims", known.dims, found.dims)):
        if expected != got:
            yield f"{what}: expected {', '.join(expected)}, got {', '.join(got)}"
    if len(found.tensors) != len(known.variables):
        yield f"expected {len(known.variables)} tensors, got {len(found.tensors)}"
    for tensor in found.tensors:
        if tensor.shape != known.shape:
            yield f"{tensor.variable}: expected shape {show_shape(known.shape)}, got {show_shape(tensor.shape)}"


def _rows_sum_to_1(values: NDArray[Any]) -> bool:
    rounding = values.shape[-1] * np.finfo(values.dtype).eps
    return bool((np.abs(values.sum(-1, dtype=np.float64) - 1) <= rounding).all())


def _zero_above_the_diagonal(values: NDArray[Any]) -> bool:
    return not np.triu(values, 1).any()


def _causal_mask(values: NDArray[Any]) -> bool:
    above = np.triu(np.ones(values.shape[-2:], bool), 1)
    return bool((values == np.where(above, -np.inf, 0)).all())


_RULES: Mapping[str, Callable[[NDArray[Any]], bool]] = {
    "rows sum to 1": _rows_sum_to_1,
    "exactly 0 above the diagonal": _zero_above_the_diagonal,
    "0 on and below the diagonal, -inf above it": _causal_mask,
}
