"""Sweeping a model over a grid: by formulas where they are confirmed, by propagation where they are not.

Every configuration is shown to the model's own check. Those that pass are put into groups in which nothing differs but
integers; of a large group the formulas are found (see `fxtrace.probe`), tried on a sample drawn at random, and then
give all of it. Where a formula's division is not whole, or the sample shows other sizes, the model is really built and
propagated, which also gives the reason where its modules refuse what its configuration did not.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from fxtrace.dims import Formulas, integers, replaced
from fxtrace.errors import CaptureFailed, FxtraceError, OptionInvalid, TensorNotFound, unknown
from fxtrace.ir.trace import Json, Progress, Rung
from fxtrace.models import Model
from fxtrace.probe import Prober
from fxtrace.service.propagating import Propagated, Propagator, difference
from fxtrace.sweep import MAX_CONFIGURATIONS, Costs, NoFormula, SweepBatch, SweepRequest, SweepRow

_BATCH = 1000
_FEW = 32
"""Up to so many configurations are propagated one by one: finding formulas would take longer."""
_LEAST_SAMPLE = 3
"""Of each group at least so many configurations are propagated to confirm its formulas."""
_BASES = 8
"""How many configurations of a group are tried as the one that formulas are found around."""
_SAMPLED = 200_000_000
"""Elements of parameters up to which a configuration may be drawn for the sample: it is really built."""

_RAN = (
    "Of {:,} configurations the path depends on numbers, such as those by which a router chooses experts. They were "
    "run, on the model's own example inputs with random weights: other numbers may come to other bytes and FLOPs."
)

T = TypeVar("T")


@dataclass(frozen=True)
class _Group:
    """Configurations in which nothing differs but integers: where each is in the grid, and its integers by name."""

    indices: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.int64]]

    @property
    def varying(self) -> list[str]:
        """The integers that are not the same in all of them."""
        return [name for name, column in self.columns.items() if (column != column[0]).any()]

    def only(self, rows: NDArray[np.bool_]) -> _Group:
        """Those of these rows."""
        return _Group(self.indices[rows], {name: column[rows] for name, column in self.columns.items()})

    def smallest_first(self) -> NDArray[np.int64]:
        """The rows, those with the smallest integers first."""
        return np.argsort(sum(np.log2(self.columns[name]) for name in self.varying), kind="stable")

    def apart(self, names: Iterable[str]) -> list[_Group]:
        """Groups in each of which these integers are the same."""
        keys = np.stack([self.columns[name] for name in names], axis=1)
        return self.alike(keys)

    def alike(self, keys: NDArray[np.int64] | NDArray[np.bool_]) -> list[_Group]:
        """Groups in each of which the rows of these keys are the same."""
        _, which = np.unique(keys, axis=0, return_inverse=True)
        return [self.only(which.ravel() == part) for part in range(int(which.max()) + 1)]


class Sweeping:
    """One sweep.

    Args:
        model: the model that the request names.
        request: what is to be swept.
        report: called as the work goes on; what it raises stops the work.

    Raises:
        TooLarge: the grid has too many configurations.
        ConfigurationError: the model has no such field.
        OptionInvalid: a field is in the grid and among the settings, or the sample is less than none.
    """

    def __init__(
        self, model: Model, request: SweepRequest, report: Callable[[Progress], None] = lambda _: None
    ) -> None:
        request.grid.require_at_most(MAX_CONFIGURATIONS)
        self._model, self._request, self._grid, self._report = model, request, request.grid, report
        if request.sample < 0:
            raise OptionInvalid(f"sample: expected 0 or more, got {request.sample}", field="sample")
        self._check_fields()
        self._propagator = Propagator(model, request.configuration, request.tensors)
        self._chance = random.Random(request.seed)
        self._valid = 0

    def batches(self) -> Iterator[SweepBatch]:
        """The rows, as they come.

        Raises:
            TensorNotFound: a tensor is asked for that neither the smallest nor the largest configuration has.
        """
        members: dict[tuple[object, ...], list[_Group]] = defaultdict(list)
        yield from self._read(members)
        groups = [_joined(each) for each in members.values()]
        if self._request.tensors and groups:
            self._check_tensors(groups)
        self._valid = sum(len(group.indices) for group in groups)
        for group in groups:
            yield from self._group(group)

    # ------------------------------------------------------------------------------------ which configurations are any

    def _check_fields(self) -> None:
        """Unknown fields are told before the work: the model's own error names the nearest."""
        known = {field.name for field in self._model.info().fields}
        settings = self._request.configuration
        for axis in self._grid.axes:
            if axis.field in settings:
                raise OptionInvalid(
                    f"grid: field '{axis.field}' is in the grid and has a setting, too; give one of the two",
                    field=f"grid.{axis.field}",
                    name=axis.field,
                )
        for name, value in (*settings.items(), *((axis.field, axis.values[0]) for axis in self._grid.axes)):
            if name not in known:
                self._model.resolve({name: value})

    def _check_tensors(self, groups: Sequence[_Group]) -> None:
        """What no graph has is told before the work: the smallest configuration's, or the largest one's, has it."""
        names: list[str] = []
        missing = set(self._request.tensors)
        for group, step in ((groups[0], 1), (groups[-1], -1)):
            for row in group.smallest_first()[::step][:_BASES]:
                seen = self._propagator.labelled(self._grid[int(group.indices[row])])
                if not isinstance(seen, str):
                    missing -= set(self._propagator.tensors(seen.graph))
                    names += (*seen.graph.by_role, *(name for name, _ in seen.graph.tensors()))
                    break
            if not missing:
                return
        if names:  # else the model accepts none of them, and the rows say why
            name = min(missing)
            message = unknown("tensor or role", name, dict.fromkeys(names))
            raise TensorNotFound(message, field="tensors", tensor=name)

    def _read(self, members: dict[tuple[object, ...], list[_Group]]) -> Iterator[SweepBatch]:
        """Shows every configuration to the model's own check; gives those that it refuses."""
        fields = [axis.field for axis in self._grid.axes]
        every = enumerate(product(*(axis.values for axis in self._grid.axes)))
        done = 0
        for chunk in _chunks(every, _BATCH):
            self._report(Progress("resolve", done, self._grid.size))
            refused: list[SweepRow] = []
            found: dict[tuple[object, ...], list[tuple[int, dict[str, int]]]] = defaultdict(list)
            for index, values in chunk:
                chosen = dict(zip(fields, values, strict=True))
                try:
                    taken = self._model.fields(self._model.resolve({**self._request.configuration, **chosen}))
                    reason = _replacement(chosen, taken)
                except FxtraceError as error:
                    reason = error.message
                if reason:
                    refused.append(SweepRow(index, chosen, reason))
                    continue
                sizes, key = _split(taken)
                found[key].append((index, sizes))
            for key, rows in found.items():
                indices = np.array([index for index, _ in rows], np.int64)
                table = np.array([list(sizes.values()) for _, sizes in rows], np.int64).reshape(len(rows), -1)
                members[key].append(_Group(indices, dict(zip(rows[0][1], table.T, strict=True))))
            done += len(chunk)
            if refused:
                yield SweepBatch(tuple(refused))

    # ------------------------------------------------------------------------------------------- what each comes to

    def _group(self, group: _Group) -> Iterator[SweepBatch]:
        varying = group.varying
        if len(group.indices) <= _FEW or not varying:
            yield from self._propagate(group.indices)
            return
        self._report(Progress("probe"))
        base = self._base(group)
        if base is None or base[1].how == "run":
            yield from self._propagate(group.indices)
            return
        row, seen = base
        try:
            formulas = self._formulas(int(group.indices[row]), seen, varying)
        except CaptureFailed as error:
            yield SweepBatch(notes=(f"no formulas were found, so each configuration is propagated: {error.message}",))
            yield from self._propagate(group.indices)
            return
        alone = {*formulas.structural, *formulas.fixed, *formulas.tied, *formulas.tied.values()} & set(varying)
        if alone:
            for part in group.apart(sorted(alone)):
                if group.indices[row] in part.indices:
                    yield from self._by_memory(part, seen, formulas)
                else:
                    yield from self._group(part)
        else:
            yield from self._by_memory(group, seen, formulas)

    def _base(self, group: _Group) -> tuple[int, Propagated] | None:
        """The row of the smallest configuration that can be propagated, and what it gives."""
        for row in group.smallest_first()[:_BASES]:
            seen = self._propagator.labelled(self._grid[int(group.indices[row])])
            if not isinstance(seen, str):
                return int(row), seen
        return None

    def _formulas(self, index: int, seen: Propagated, names: Sequence[str]) -> Formulas:
        config = self._model.resolve({**self._request.configuration, **self._grid[index]})
        return Prober(self._model, config, names=names, rung=seen.rung, report=self._report).formulas(seen.graph)

    def _by_memory(self, group: _Group, seen: Propagated, formulas: Formulas) -> Iterator[SweepBatch]:
        """Rows by formulas, those apart in which other sizes are 1: `.contiguous()` of one head copies nothing."""
        try:
            costs = Costs(seen.graph, seen.bases, formulas)
        except NoFormula as error:
            yield SweepBatch(notes=(f"{error}, so {len(group.indices)} configurations are propagated",))
            yield from self._propagate(group.indices, seen.rung)
            return
        parts = group.alike(costs.ones(_columns(group, formulas), len(group.indices)))
        for part in parts:
            self._report(Progress("probe"))
            if len(parts) > 1 and len(part.indices) <= _LEAST_SAMPLE:
                yield from self._propagate(part.indices, seen.rung)
                continue
            like = (0, seen) if len(parts) == 1 else self._base(part)
            if like is None:
                yield from self._propagate(part.indices)
                continue
            row, other = like
            unlike = len(parts) > 1 and difference(seen.graph, formulas, _sizes(part, row, formulas), other.graph)
            if unlike or other.how == "run":
                yield from self._group(part)
            else:
                yield from self._by_formula(part, other, formulas)

    def _by_formula(self, group: _Group, like: Propagated, formulas: Formulas) -> Iterator[SweepBatch]:
        rung, count = like.rung, len(group.indices)
        costs = Costs(like.graph, like.bases, formulas, self._propagator.tensors(like.graph))
        self._report(Progress("sweep", 0, count))
        notes = [f"FLOPs are not told: {', '.join(costs.hidden)} may hide products"] if costs.hidden else []
        found = costs.costs(_columns(group, formulas), count)
        sure = found.fits & ~found.too_large
        small = np.flatnonzero(sure & (found.parameters <= _SAMPLED))
        if len(small) < sure.sum():
            notes.append(f"{sure.sum() - len(small)} configurations are too large to be drawn for the sample")
        confirmed, mismatches = 0, []
        share = math.ceil(self._request.sample * count / self._valid)
        size = min(len(small), max(share, _LEAST_SAMPLE)) if self._request.sample else 0
        for number, row in enumerate(self._chance.sample(small.tolist(), size)):
            self._report(Progress("confirm", number, size))
            chosen = self._grid[int(group.indices[row])]
            seen = self._propagator.graph(chosen, rung)
            if isinstance(seen, str):
                problem = seen
            else:
                problem = difference(like.graph, formulas, _sizes(group, row, formulas), seen.graph)
                problem = problem or found.difference(row, seen.cost())
            if problem:
                told = ", ".join(f"{name}={value}" for name, value in chosen.items())
                mismatches.append(f"{told}: {problem}")
            else:
                confirmed += 1
        yield SweepBatch(confirmed=confirmed, mismatches=tuple(mismatches), notes=tuple(notes))
        if mismatches:
            yield from self._propagate(group.indices, rung)
            return
        for start in range(0, len(group.indices), _BATCH):
            self._report(Progress("sweep", start, len(group.indices)))
            part = slice(start, start + _BATCH)
            indices, chosen_rows = group.indices[part].tolist(), sure[part].tolist()
            shapes = {asked: [sizes[part].tolist() for sizes in shape] for asked, shape in found.shapes.items()}
            numbers = zip(
                indices,
                found.parameters[part].tolist(),
                found.activation_bytes[part].tolist(),
                found.peak_activation_bytes[part].tolist(),
                [None] * len(indices) if found.flops is None else found.flops[part].tolist(),
                strict=True,
            )
            yield SweepBatch(
                tuple(
                    SweepRow(
                        index,
                        self._grid[index],
                        "",
                        "formula",
                        parameters,
                        nbytes,
                        peak,
                        flops,
                        {asked: tuple(sizes[row] for sizes in shape) for asked, shape in shapes.items()},
                    )
                    for row, (index, parameters, nbytes, peak, flops) in enumerate(numbers)
                    if chosen_rows[row]
                )
            )
        large = group.indices[found.fits & found.too_large].tolist()
        reason = "too large: a number would take more than 62 bits"
        if large:
            yield SweepBatch(tuple(SweepRow(index, self._grid[index], reason) for index in large))
        yield from self._propagate(group.indices[~found.fits], rung)

    def _propagate(self, indices: NDArray[np.int64], rung: Rung | Literal[""] = "") -> Iterator[SweepBatch]:
        """The rows of configurations that are propagated one by one."""
        ran = 0
        for number, index in enumerate(indices.tolist()):
            self._report(Progress("propagate", number, len(indices)))
            row = self._propagator.row(index, self._grid[index], rung)
            ran += row.how == "run"
            yield SweepBatch((row,))
        if ran:
            yield SweepBatch(notes=(_RAN.format(ran),))


def _columns(group: _Group, formulas: Formulas) -> dict[str, NDArray[np.int64]]:
    """The named sizes of formulas, an entry for each of a group's configurations."""
    # What no field decides (the batch of the model's own inputs) is the same everywhere.
    count = len(group.indices)
    inputs = {name: np.full(count, size) for name, size in formulas.sizes.items() if name not in group.columns}
    return {**inputs, **group.columns}


def _sizes(group: _Group, row: int, formulas: Formulas) -> dict[str, int]:
    """The named sizes of formulas in one of a group's configurations."""
    return {**formulas.sizes, **{name: int(column[row]) for name, column in group.columns.items()}}


def _joined(groups: Sequence[_Group]) -> _Group:
    first = groups[0]
    return _Group(
        np.concatenate([each.indices for each in groups]),
        {name: np.concatenate([each.columns[name] for each in groups]) for name in first.columns},
    )


def _split(fields: Mapping[str, Json]) -> tuple[dict[str, int], tuple[object, ...]]:
    """A configuration's integers by name, and everything else of it."""
    sizes: dict[str, int] = {}
    rest: list[object] = []
    for name, value in fields.items():
        if type(value) is int and value > 0:
            sizes[name] = value
        elif isinstance(value, list | dict):
            inside = dict(integers({name: value}))
            sizes |= inside
            rest.append(repr(replaced({name: value}, dict.fromkeys(inside, 0)) if inside else value))
        else:
            rest.append((type(value), value))
    return sizes, (*sizes, *rest)


def _replacement(chosen: Mapping[str, Json], taken: Mapping[str, Json]) -> str:
    """Why a configuration is not the one that was asked for: the model put another value in a field's place."""
    for name, value in chosen.items():
        if name in taken and taken[name] != value and str(taken[name]) != str(value):
            return f"field '{name}': the model puts {taken[name]!r} in the place of {value!r}"
    return ""


def _chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while chunk := list(islice(items, size)):
        yield chunk
