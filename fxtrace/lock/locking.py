"""Locking what a model's sizes are made of, and telling what moved since."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fxtrace.capture import capture, model_errors
from fxtrace.diff import FieldChange, changed_fields, put_field
from fxtrace.dims import Finding, Formulas, integers, replaced
from fxtrace.errors import CaptureFailed, FxtraceError, InvalidRequest, OptionInvalid
from fxtrace.graph import Graph, TensorSpec
from fxtrace.ir.text import Readable
from fxtrace.ir.trace import Json, Progress
from fxtrace.lock.lockfile import Lock, Locked, dumps, loads
from fxtrace.models import Model, Registry
from fxtrace.probe import Prober
from fxtrace.trials import candidates

Report = Callable[[Progress], None]
Key = tuple[str, str]

_MOST_GROWTH = 3
"""On trials, how many times a size's own value it has at most."""
_TRIALS, _VALUES = 2, 6
"""On how many configurations beside its own a lock is held, and how many values of a field are tried for them."""


@dataclass(frozen=True, slots=True, repr=False)
class Move(Readable):
    """Something that is not as it was locked.

    Attributes:
        section: which of a lockfile's.
        name: of the role, input, output or parameter.
        before: dtype and sizes as locked, with the numbers of the locked configuration; empty where it was not there.
        after: the same as it is now; empty where it is gone.
        causes: the changed fields that account for it. Empty where the model itself changed: its code, or what it
            stands on.
    """

    section: str
    name: str
    before: str
    after: str
    causes: tuple[str, ...] = ()

    def __str__(self) -> str:
        reason = f"because of {', '.join(self.causes)}" if self.causes else "the model changed"
        (formulas, _, _), (now, _, numbers) = self.before.partition(" = "), self.after.partition(" = ")
        after = numbers if numbers and formulas == now else self.after or "gone"
        return f"{self.section[:-1]} {self.name}: {self.before or 'not there'} → {after} ({reason})"


@dataclass(frozen=True, slots=True, repr=False)
class Checked(Readable):
    """What came of a check: the configuration's fields that are not as they were, and all that moved."""

    fields: tuple[FieldChange, ...]
    moves: tuple[Move, ...]

    def __bool__(self) -> bool:
        """Whether anything moved."""
        return bool(self.moves)

    def __str__(self) -> str:
        """A line for each field, and for each kind of move: what became the same for the same reason stands in one."""
        groups: dict[tuple[str, str, str, tuple[str, ...]], list[Move]] = {}
        for move in self.moves:
            groups.setdefault((move.section, move.before, move.after, move.causes), []).append(move)
        lines = [f"{field.name}: {field.before} → {field.after}" for field in self.fields]
        lines += (str(first) + (f", and so {len(more)} more" if more else "") for first, *more in groups.values())
        return "\n".join(lines) or "nothing moved"

    def ensure(self) -> None:
        """Raises an AssertionError that says what moved, where something did."""
        assert not self, f"{len(self.moves)} moved\n{self}"


def make_lock(model: str, settings: Mapping[str, Json] | None = None, report: Report = lambda _: None) -> Lock:
    """Finds what a model's sizes are made of.

    Args:
        model: a model's name, file or import path; see `fxtrace.models`.
        settings: fields to set; the rest keep the model's defaults.
        report: called as the work goes on.

    Raises:
        ModelNotFound, ModelInvalid, ConfigurationError
        CaptureFailed: the model cannot be captured.
    """
    loaded = Registry.installed().load(model)
    made = _Made(loaded, settings or {}, report)
    formulas = made.prober.formulas(made.graph)
    tensors = {key: _locked(spec, findings) for key, spec, findings in _tensors(made.graph, formulas)}
    sizes = {name: size for name, size in formulas.sizes.items() if name not in made.sizes}
    lock = Lock(model, dict(settings or {}), flat(made.fields), sizes, (), tensors)
    return replace(lock, trials=tuple(_trials(lock, made, formulas)))


def write_lock(lock: Lock, path: str | Path) -> None:
    """Writes a lockfile.

    Raises:
        OptionInvalid: it cannot be written.
    """
    try:
        Path(path).write_text(dumps(lock), encoding="utf-8")
    except OSError as error:
        raise OptionInvalid(f"cannot write {path}: {error.strerror}", field="out", out=path) from error


def check_lock(path: str | Path, report: Report = lambda _: None) -> Checked:
    """What moved since a lockfile was written; false where nothing did.

    The model is captured under the locked configuration and under the trials. Only where something moved is it probed.

    Raises:
        InvalidRequest: the file cannot be read, is no lockfile, or of a newer format; the line is named.
        ModelNotFound, ModelInvalid, ConfigurationError, CaptureFailed: of the model.

    Example:
        def test_shapes():
            fxtrace.check_lock("shapes.lock").ensure()
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise InvalidRequest(f"cannot read the lockfile {path}: {reason}", field="lock") from error
    lock = loads(text, str(path))
    try:
        made = _Made(Registry.installed().load(lock.model), lock.settings, report)
        fields = changed_fields(lock.configuration, flat(made.fields))
        return Checked(fields, tuple(_Check(lock, made, fields).moves()))
    except FxtraceError as error:
        problem = f"{path} cannot be checked: {error.message}"
        raise type(error)(problem, field=error.field, **{"lock": path, **error.metadata}) from error


class _Made:
    """A model under some settings, and its graph."""

    def __init__(self, model: Model, settings: Mapping[str, Json], report: Report) -> None:
        self.config: Any = model.resolve(settings)
        self.fields = model.fields(self.config)
        self.prober = Prober(model, self.config, report=report)
        graph = self.prober.graph_of(self.fields)
        if graph is None:
            raise _reason(model, self.config)
        self.graph = graph
        self.sizes = dict(integers(self.fields))

    def trial(self, sizes: Mapping[str, int]) -> Graph | None:
        """The graph with these integers put in their places."""
        return self.prober.graph_of(replaced(self.fields, sizes))


def _reason(model: Model, config: Any) -> FxtraceError:
    """Why a model cannot be captured under a configuration."""
    try:
        with model_errors(f"building model '{model.name}' raised"):
            module, inputs = model.build(config), model.example_inputs(config)
        capture(module, inputs, rung="record")
    except FxtraceError as error:
        return error
    return CaptureFailed(f"model '{model.name}' cannot be captured under this configuration", model=model.name)


class _Check:
    def __init__(self, lock: Lock, made: _Made, fields: Sequence[FieldChange]) -> None:
        self._lock, self._made, self._fields = lock, made, fields
        self._now = {key: spec for key, spec, _ in _tensors(made.graph)}
        self._before = {**lock.sizes, **dict(integers(lock.configuration))}
        self._sizes = {**lock.sizes, **made.sizes}

    def moves(self) -> Iterator[Move]:
        lock, now = self._lock, self._now
        other = {key for key, locked in lock.tensors.items() if key in now and not self._as_locked(key, locked)}
        other |= self._on_trials()
        alone = {key for key in (*lock.tensors, *now) if (key in lock.tensors) != (key in now)}
        if not (other or alone):
            # Fields may have changed all the same: a shape that they move has moved.
            yield from self._moved_by_fields()
            return
        formulas = self._made.prober.formulas(self._made.graph)
        after = {key: _locked(spec, findings) for key, spec, findings in _tensors(self._made.graph, formulas)}
        causes = self._causes(alone)
        for key in dict.fromkeys((*lock.tensors, *now)):
            if key in other or key in alone:
                before = self._told(lock.tensors.get(key), self._before)
                yield Move(*key, before, self._told(after.get(key), formulas.sizes), causes.get(key, ()))
        yield from self._moved_by_fields(other | alone)

    def _as_locked(self, key: Key, locked: Locked) -> bool:
        """Whether a tensor is what its formulas make of the configuration as it is now.

        A size without a formula is held to its number as long as the configuration is the locked one.
        """
        spec = self._now[key]
        return _holds(locked, spec, self._sizes) and (
            bool(self._fields)
            or all(size in (f"{seen}?", size.rstrip("?")) for size, seen in zip(locked.sizes, spec.shape, strict=True))
        )

    def _on_trials(self) -> set[Key]:
        """What is not as its formulas say under one of the trials."""
        wrong: set[Key] = set()
        for trial in self._lock.trials:
            sizes = {**self._sizes, **trial}
            graph = self._made.trial(trial)
            seen = {key: spec for key, spec, _ in _tensors(graph)} if graph is not None else {}
            wrong |= {
                key
                for key, locked in self._lock.tensors.items()
                if key in self._now and key in seen and not _holds(locked, seen[key], sizes)
            }
        return wrong

    def _moved_by_fields(self, but: set[Key] | None = None) -> Iterator[Move]:
        """What the locked formulas say that the changed fields moved."""
        changed = {each.name for each in self._fields}
        for key, locked in self._lock.tensors.items():
            old, new = locked.shape(self._before), locked.shape(self._sizes)
            if old != new and key not in (but or set()):
                told = self._told(locked, self._before), self._told(locked, self._sizes)
                yield Move(*key, *told, tuple(sorted(locked.names & changed)))

    def _causes(self, alone: set[Key]) -> Mapping[Key, tuple[str, ...]]:
        """For what is new or gone: the changed fields that undo it when they alone are put back."""
        found: dict[Key, list[str]] = {}
        for field in self._fields if alone else ():
            graph = self._made.prober.graph_of(put_field(self._made.fields, field.name, field.before))
            if graph is not None:
                seen = {key for key, _, _ in _tensors(graph)}
                for key in alone:
                    if (key in seen) != (key in self._now):
                        found.setdefault(key, []).append(field.name)
        return {key: tuple(names) for key, names in found.items()}

    def _told(self, locked: Locked | None, sizes: Mapping[str, int]) -> str:
        if locked is None:
            return ""
        numbers = ("?" if size is None else str(size) for size in locked.shape(sizes))
        shape = "×".join(numbers) or "scalar"
        return f"{locked}" if all(size.isdecimal() for size in locked.sizes) else f"{locked} = {shape}"


def _holds(locked: Locked, spec: TensorSpec, sizes: Mapping[str, int]) -> bool:
    """Whether a tensor is what its formulas make of these sizes, as far as there are formulas."""
    expected = locked.shape(sizes)
    return (
        locked.dtype == spec.dtype
        and len(expected) == len(spec.shape)
        and all(
            size == seen or formula is None
            for size, seen, formula in zip(expected, spec.shape, locked.formulas, strict=True)
        )
    )


def _tensors(graph: Graph, formulas: Formulas | None = None) -> Iterator[tuple[Key, TensorSpec, tuple[Finding, ...]]]:
    """What is locked of a graph: (section and name, spec, what was found of its sizes)."""
    found = formulas.tensors if formulas else {}
    for node in graph.nodes:
        for place, (tensor, spec) in enumerate(node.tensors):
            end = "" if len(node.tensors) == 1 else f":{place}"
            if node.op == "placeholder":
                yield ("inputs", node.target + end), spec, found.get(tensor, ())
            for role in node.roles:
                yield ("roles", f"{role}{end}"), spec, found.get(tensor, ())
    for place, node in enumerate(graph.returned):
        for tensor, spec in node.tensors:
            yield ("outputs", f"{place}{tensor.removeprefix(node.name)}"), spec, found.get(tensor, ())
    for parameter in graph.parameters.values():
        shape = parameter.shape
        spec = TensorSpec(shape, parameter.dtype, (), "", True, 0)
        yield ("parameters", parameter.name), spec, formulas.parameters.get(parameter.name, ()) if formulas else ()


def _locked(spec: TensorSpec, findings: tuple[Finding, ...]) -> Locked:
    known = [finding.formula for finding in findings] or [None] * len(spec.shape)
    return Locked(
        spec.dtype,
        tuple(str(formula) if formula else f"{size}?" for formula, size in zip(known, spec.shape, strict=True)),
    )


def _trials(lock: Lock, made: _Made, formulas: Formulas) -> Iterator[dict[str, int]]:
    """Configurations with as many sizes changed at once as the model takes, where every formula holds."""
    names = {name for locked in lock.tensors.values() for name in locked.names}
    free = [name for name in made.sizes if name in names and name not in formulas.structural]
    for seed in range(_TRIALS):
        trial = _Trial(lock, made, random.Random(seed))
        trial.add(free)
        if trial.chosen:
            yield {name: trial.chosen[name] for name in free if name in trial.chosen}


class _Trial:
    def __init__(self, lock: Lock, made: _Made, chance: random.Random) -> None:
        self._lock, self._made, self._chance = lock, made, chance
        self.chosen: dict[str, int] = {}

    def add(self, names: Sequence[str]) -> None:
        """Changes these sizes, too, as far as the model takes it: all at once, else by halves."""
        for _ in range(1 if len(names) > 1 else _VALUES):
            more = {name: self._chance.choice(_nearby(self._made.sizes[name])) for name in names}
            if self._holds({**self.chosen, **more}):
                self.chosen |= more
                return
        if len(names) > 1:
            self.add(names[: len(names) // 2])
            self.add(names[len(names) // 2 :])

    def _holds(self, sizes: Mapping[str, int]) -> bool:
        graph = self._made.trial(sizes)
        seen = {key: spec for key, spec, _ in _tensors(graph)} if graph is not None else {}
        tensors, every = self._lock.tensors, {**self._lock.sizes, **self._made.sizes, **sizes}
        return seen.keys() == tensors.keys() and all(_holds(tensors[key], seen[key], every) for key in seen)


def _nearby(size: int) -> tuple[int, ...]:
    """Values to try a size at along with all others: many fields that each grow much make a huge model."""
    return tuple(each for each in candidates(size) if each <= _MOST_GROWTH * size) or candidates(size)


def flat(fields: Mapping[str, Json], prefix: str = "") -> dict[str, Json]:
    """A configuration's fields, those in nests by the way to them: `text_config.hidden_size`, `conv_kernel[0]`."""
    found: dict[str, Json] = {}
    for key, value in fields.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            found |= flat(value, f"{name}.")
        elif isinstance(value, list) and value:
            found |= {f"{name}[{index}]": each for index, each in enumerate(value)}
        else:
            found[name] = value
    return found
