"""Explains a tensor, a role, a block or a named size of a trace, from what the trace holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxtrace.dims import Formula, Formulas
from fxtrace.errors import NodeNotFound
from fxtrace.explain.explanation import Explanation, Sized
from fxtrace.explain.rules import rule
from fxtrace.graph import Graph, Node, Snapshot

Read = Callable[[str], NDArray[Any]]
"""Gives a tensor's numbers by its name."""

_ROWS = 12
_HELD_BYTES = 16 << 20  # of a mask, or of attention weights: a server explains several things at a time
_PRODUCTS = ("scores", "masked_scores", "weights")
_RESIDUALS = ("residual_a", "residual_b", "residual_sum")


def explain(
    graph: Graph,
    what: str,
    *,
    snapshot: Snapshot | None = None,
    formulas: Formulas | None = None,
    read: Read | None = None,
    trace_id: str = "",
) -> Explanation:
    """Why something has its shape.

    Args:
        graph: a labelled graph.
        what: a role, a node or a tensor by name; a block, layer or stack by the beginning of its roles' names
            (`decoder.0.cross_attention`); or a named size (`d_model`). Not looked at where a snapshot is given.
        snapshot: of the graph.
        formulas: of the graph's sizes, where they were found.
        read: where the trace has values.
        trace_id: for notes that say what to do.

    Raises:
        NodeNotFound: there is no such thing; the nearest is suggested.
    """
    explaining = _Explaining(graph, formulas, read)
    ways = f"`Trace.formulas()` or `fxtrace formulas {trace_id[:8]}`"
    notes = () if formulas else (f"Formulas of these sizes are not known yet; {ways} finds them.",)
    if snapshot is not None:
        title = f"Snapshot {snapshot.number}: {snapshot.title}"
        if not snapshot.found:
            return Explanation(title, (), notes=(f"Not in this graph: {snapshot.reason}",))
        return explaining.tensors(title, [graph.by_name[each.node] for each in snapshot.tensors], notes)
    node = graph.by_role.get(what) or graph.by_name.get(what) or _of_tensor(graph, what)
    nodes = [each for each in graph.nodes if any(str(role).startswith(f"{what}.") for role in each.roles)]
    if node is not None and (node.tensors or not nodes):
        return explaining.tensors(what, [node], notes)
    if nodes:
        return explaining.block(what, nodes, notes)
    sizes = explaining.named_sizes()
    if what in sizes:
        return explaining.size(what, sizes[what], notes)
    known = (*explaining.blocks(), *sizes, *graph.by_role, *graph.by_name)
    raise NodeNotFound(
        graph.why_absent("node, role, block, named size or snapshot number", what, known), field="what", node=what
    )


class _Explaining:
    def __init__(self, graph: Graph, formulas: Formulas | None, read: Read | None) -> None:
        self._graph, self._formulas, self._read = graph, formulas, read

    def named_sizes(self) -> dict[str, int]:
        """The sizes that have a name."""
        return {dim.name: dim.size for dim in self._graph.dims} | dict(self._formulas.sizes if self._formulas else {})

    def blocks(self) -> tuple[str, ...]:
        """The blocks, layers and stacks that roles are in."""
        names = (str(role).split(".") for node in self._graph.nodes for role in node.roles)
        return tuple(dict.fromkeys(".".join(name[:count]) for name in names for count in range(1, len(name))))

    # ------------------------------------------------------------------------------------------ what is explained

    def tensors(self, title: str, nodes: list[Node], notes: tuple[str, ...]) -> Explanation:
        """Of one role, node or snapshot."""
        facts = [fact for node in nodes for fact in self._facts(node)]
        numbers = [row for node in nodes for row in self._mask_rows(node)]
        makers = (self._graph.by_name[name] for node in nodes for name in self._makers(node))
        users = (self._graph.by_name[name] for node in nodes for name in self._graph.users[node.name])
        return Explanation(
            title,
            tuple(self._sized(nodes)),
            inputs=tuple(self._sized(makers, rules=False)),
            users=tuple(self._sized(users, rules=False)),
            checks=tuple(dict.fromkeys(check for node in nodes for role in node.roles for check in role.checks)),
            facts=tuple(dict.fromkeys(facts)),
            numbers=tuple(numbers),
            notes=notes,
        )

    def block(self, what: str, nodes: list[Node], notes: tuple[str, ...]) -> Explanation:
        """Of a block, layer or stack."""
        facts = [fact for node in nodes for fact in self._facts(node)]
        return Explanation(
            what,
            tuple(self._sized(nodes, within=what)),
            checks=tuple(
                dict.fromkeys(
                    check
                    for node in nodes
                    for role in node.roles
                    if str(role).startswith(f"{what}.")
                    for check in role.checks
                )
            ),
            facts=(*self._where_named(nodes), *dict.fromkeys(facts)),
            notes=notes,
        )

    def size(self, name: str, value: int, notes: tuple[str, ...]) -> Explanation:
        """Of a named size."""
        facts: list[str] = []
        if self._formulas is not None:
            facts += self._occurrences(name, self._formulas)
            for names, text in (
                (self._formulas.structural, "changes which nodes there are"),
                (self._formulas.tied, "holds only as long as it equals another"),
            ):
                if name in names:
                    facts.append(f"{name} {text}: {names[name]}.")
        sums = [node for node in self._graph.nodes if _has_part(node, "residual_sum") and node.spec]
        last = {self._formula(node)[-1] for node in sums}
        if last == {name}:
            facts.append(
                f"All {len(sums)} residual sums end in {name} = {value}: each adds a block's input to the block's "
                "output, number by number, so what comes out of a block is as wide as what went in."
            )
        having = [node for node in self._graph.nodes if node.roles and name in self._formula(node)]
        tensors = tuple(self._sized(having, rules=False))
        return Explanation(f"{name} = {value}", tensors, facts=tuple(facts), notes=notes)

    # ------------------------------------------------------------------------------------------------ what is said

    def _facts(self, node: Node) -> Iterator[str]:
        parts = {role.part for role in node.roles}
        for step in self._steps(node):
            if step.kind == "matmul":
                yield from self._product(step)
            elif step.kind == "linear":
                yield from self._linear(step)
        if parts & set(_PRODUCTS):
            yield from self._square(node)
        if parts & set(_RESIDUALS):
            yield from self._sums(node)
        if "mask" in parts:
            yield from self._masked(node)

    def _product(self, node: Node) -> Iterator[str]:
        """What the two sides of a product must share."""
        sides = [each for each in (self._graph.by_name[name] for name in node.inputs) if each.spec is not None]
        if len(sides) == 1:
            sides *= 2
        if len(sides) != 2 or any(len(side.spec.shape) < 2 for side in sides if side.spec):
            return
        (left, right), (rows, columns) = sides, map(self._formula, sides)
        if left.spec is None or right.spec is None or left.spec.shape[-1] != right.spec.shape[-2]:
            return
        shared = self._with_number(rows[-1], left.spec.shape[-1])
        yield (
            f"{self._from(left)} and {self._from(right)} are multiplied along {shared}, which both must have and which "
            f"is summed away; {self._with_number(rows[-2], left.spec.shape[-2])} rows of the one and "
            f"{self._with_number(columns[-1], right.spec.shape[-1])} columns of the other are left."
        )

    def _linear(self, node: Node) -> Iterator[str]:
        """Which size a parametrised projection sums away, and which it puts in its place."""
        given = next((each for each in (self._graph.by_name[name] for name in node.inputs) if each.spec), None)
        weight = next((name for name in node.parameters if len(self._graph.parameters[name].shape) == 2), None)
        if given is None or given.spec is None or node.spec is None or weight is None:
            return
        before, after = given.spec.shape, node.spec.shape
        if before[:-1] == after[:-1] and {before[-1], after[-1]} == set(self._graph.parameters[weight].shape):
            yield (
                f"Every row of {self._from(given)} is multiplied with {weight}, which puts "
                f"{self._with_number(self._formula(node)[-1], after[-1])} in the place of "
                f"{self._with_number(self._formula(given)[-1], before[-1])}; the sizes before it stay."
            )

    def _square(self, node: Node) -> Iterator[str]:
        """Why scores are square or not."""
        if node.spec is None or len(node.spec.shape) < 2:
            return
        (rows, columns), shape = self._formula(node)[-2:], node.spec.shape
        role = next(role for role in node.roles if role.part in _PRODUCTS)
        block = str(role).rpartition(".")[0]
        queries, memory = (self._graph.by_role.get(f"{block}.{part}") for part in ("input", "memory"))
        keys = memory or queries
        told = f"Rows are {self._with_number(rows, shape[-2])}, columns {self._with_number(columns, shape[-1])}"
        if queries is not None and keys is not None:
            told += f": queries are made of {_named(queries)}, keys of {_named(keys)}"
            told += ", the same tensor" if queries is keys else ", another tensor"
        yield f"{told}; so it is {'square' if rows == columns else 'rectangular'}."
        others = [(self._formula(each), block) for each, block in self._scores() if each.spec]
        for square in (True, False):
            alike = [block for formula, block in others if (formula[-2] == formula[-1]) is square]
            if alike:
                yield f"{'Square' if square else 'Rectangular'} in this graph: the scores of {', '.join(alike)}."

    def _scores(self) -> Iterator[tuple[Node, str]]:
        for node in self._graph.nodes:
            for role in node.roles:
                if role.part == "scores":
                    yield node, str(role).rpartition(".")[0]

    def _sums(self, node: Node) -> Iterator[str]:
        """What a residual sum adds."""
        readers = [self._graph.by_name[name] for name in self._graph.users[node.name]]
        for add in (each for each in (node, *readers) if _has_part(each, "residual_sum")):
            sides = [each for each in (self._graph.by_name[name] for name in add.inputs) if each.spec]
            if add.spec and len(sides) == 2 and all(side.spec and side.spec.shape == add.spec.shape for side in sides):
                yield (
                    f"{_named(add)} adds {_named(sides[0])} and {_named(sides[1])} element by element: both are "
                    f"{self._one(sides[0])}, so every number has its partner and the sum has that shape, too."
                )

    def _masked(self, node: Node) -> Iterator[str]:
        """What a mask does, read off the numbers: its own, and those of the weights that it leads to."""
        mask = self._matrix(node)
        if mask is None:
            return
        for role in (role for role in node.roles if role.part == "mask"):
            weights = self._graph.by_role.get(f"{str(role).rpartition('.')[0]}.weights")
            numbers = None if weights is None else self._numbers(weights)
            if weights is None or numbers is None:
                continue
            numbers = numbers.astype(np.float64)
            closed = _closed(mask, numbers) if numbers.shape[-2:] == mask.shape else None
            if closed is not None:
                by_row = ", ".join(str(int(row.sum())) for row in ~closed[:_ROWS])
                yield (
                    f"It closes {int(closed.sum())} of {closed.size} places; open by row: {by_row} of "
                    f"{closed.shape[1]} columns. In {_named(weights)} every closed place is 0, and every row sums to 1 "
                    f"(largest error {abs(numbers.sum(-1) - 1).max():.0e})."
                )

    def _mask_rows(self, node: Node) -> Iterator[str]:
        if not _has_part(node, "mask") or (mask := self._matrix(node)) is None:
            return
        for number, row in enumerate(mask[:_ROWS]):
            yield f"row {number}: " + " ".join(f"{float(each):>4g}" for each in row[:_ROWS])

    def _matrix(self, node: Node) -> NDArray[Any] | None:
        """The first matrix of a mask's numbers."""
        numbers = self._numbers(node)
        return None if numbers is None or numbers.ndim < 2 else numbers.reshape(-1, *numbers.shape[-2:])[0]

    def _numbers(self, node: Node) -> NDArray[Any] | None:
        """A node's numbers, where there are any, and not too many to be held."""
        if self._read is None or node.spec is None or node.spec.nbytes > _HELD_BYTES:
            return None
        return self._read(node.name)

    def _where_named(self, nodes: list[Node]) -> Iterator[str]:
        """For each size in a block's shapes: where it first is, and in how many."""
        seen: dict[str, list[tuple[Node, int]]] = {}
        for node in nodes:
            for formula, size in zip(self._formula(node), node.spec.shape if node.spec else (), strict=True):
                if not formula.isdigit() and node not in [each for each, _ in seen.get(formula, ())]:
                    seen.setdefault(formula, []).append((node, size))
        for formula, places in seen.items():
            (first, size), count = places[0], len(places)
            yield f"{self._with_number(formula, size)}: in {count} of {len(nodes)} tensors, first in {_named(first)}."

    def _occurrences(self, name: str, formulas: Formulas) -> Iterator[str]:
        """In which formulas a named size is, and of how many tensors and parameters."""
        for what, table in (("tensors", formulas.tensors), ("parameters", formulas.parameters)):
            found: Counter[str] = Counter()
            for findings in table.values():
                texts = {str(each.formula) for each in findings if each.formula and name in each.formula.names}
                found.update(texts)
            if found:
                told = ", ".join(f"{text} in {count}" for text, count in found.most_common())
                yield f"Of {len(table)} {what}: {told}."
        if not any(name in each.depends_on for findings in formulas.tensors.values() for each in findings):
            yield f"No tensor's size changes with {name} alone."

    # ---------------------------------------------------------------------------------------------------- details

    def _sized(self, nodes: Iterable[Node], *, rules: bool = True, within: str = "") -> Iterator[Sized]:
        for node in nodes:
            roles = tuple(str(role) for role in node.roles if not within or str(role).startswith(f"{within}."))
            steps = [text for step in self._steps(node) if (text := rule(self._graph, step))] if rules else []
            for name, spec in node.tensors:
                yield Sized(name, roles, spec.shape, self._formula_of(name, spec.shape), tuple(steps))

    def _formula(self, node: Node) -> tuple[str, ...]:
        return self._formula_of(node.name, node.spec.shape) if node.spec is not None else ()

    def _formula_of(self, tensor: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        findings = self._formulas.tensors.get(tensor) if self._formulas else None
        if findings is None or len(findings) != len(shape):
            return tuple(map(str, shape))
        return tuple(str(each.formula or size) for each, size in zip(findings, shape, strict=True))

    def _with_number(self, formula: str, size: int) -> str:
        """`d_model/n_heads = 128/4 = 32`."""
        if formula.isdigit():
            return formula
        sizes = self._formulas.sizes if self._formulas else {}
        names = Formula(formula).names
        pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        put_in = re.sub(
            rf"(?<![\w.])(?:{pattern})(?![\w.\[])", lambda found: str(sizes.get(found[0], found[0])), formula
        )
        return f"{formula} = {size}" if put_in == str(size) else f"{formula} = {put_in} = {size}"

    def _one(self, node: Node) -> str:
        return str(next(self._sized([node], rules=False)))

    def _steps(self, node: Node) -> list[Node]:
        """A node and those before it that have no role, in order, back to tensors that have one."""
        found = {node.name}
        waiting = [node]
        while waiting:
            for name in waiting.pop().inputs:
                before = self._graph.by_name[name]
                if before.tensors and before.inputs and not before.roles and name not in found and len(found) < _ROWS:
                    found.add(name)
                    waiting.append(before)
        return [each for each in self._graph.nodes if each.name in found]

    def _makers(self, node: Node) -> list[str]:
        """The tensors that a node's steps begin with."""
        steps = self._steps(node)
        inside = {step.name for step in steps}
        names = dict.fromkeys(name for step in steps for name in step.inputs if name not in inside)
        return [name for name in names if self._graph.by_name[name].tensors]

    def _from(self, node: Node) -> str:
        """A node by its role; by that of the tensor that it is another view of, where it has none."""
        while not node.roles and node.kind in ("view", "cast") and node.inputs:
            node = self._graph.by_name[node.inputs[0]]
        return _named(node)


def _closed(mask: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where a mask lets nothing through: where the weights are 0 and the mask has one and the same extreme value."""
    for extreme in (mask.min(), mask.max()):
        closed: NDArray[np.bool_] = mask == extreme
        if not closed.all() and (weights[..., closed] == 0).all() and (weights[..., ~closed] > 0).all():
            return closed
    return None


def _of_tensor(graph: Graph, name: str) -> Node | None:
    """The node that returns a tensor of this name, where it returns several."""
    node = graph.by_name.get(name.partition(":")[0])
    return node if node is not None and name in dict(node.tensors) else None


def _named(node: Node) -> str:
    return str(node.roles[0]) if node.roles else f"'{node.name}'"


def _has_part(node: Node, part: str) -> bool:
    return any(role.part == part for role in node.roles)
