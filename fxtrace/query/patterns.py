"""Patterns of kinds along the dataflow: `matmul pointwise* softmax`.

A pattern is a row of steps. A step is a kind, a choice of kinds in parentheses `(add|mul|view)`, `pointwise` for every
kind that works element by element, or `.` for any kind. After it may stand `*`, `+`, `?`, `{n}`, `{n,}` or `{n,m}`: how
many nodes in a row the step takes. A match is a path along the dataflow that is not part of a longer one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fxtrace.errors import QueryInvalid, TooLarge, unknown
from fxtrace.graph import Graph, Node
from fxtrace.ops import KINDS, POINTWISE

MAX_PATTERN = 500
"""Characters of a pattern."""

MAX_POSITIONS = 64
"""Nodes that the steps of a pattern name one by one: `add{3}` names three."""

MAX_STEPS = 1_000_000
"""Partial matches that are tried in a row without finding a match: about a second."""

_FIELD = "query.pattern"
_STEP = re.compile(
    r"(?:(?P<one>\.|\w+)|\(\s*(?P<choice>(?:\.|\w+)(?:\s*\|\s*(?:\.|\w+))*)\s*\))"
    r"(?:(?P<sign>[*+?])|\{(?P<least>\d{1,3})(?P<range>,(?P<most>\d{1,3})?)?\})?"
)
_SIGNS: dict[str | None, tuple[int, int | None]] = {None: (1, 1), "?": (0, 1), "*": (0, None), "+": (1, None)}


@dataclass(frozen=True, slots=True)
class Step:
    """From `least` to `most` nodes in a row, each of one of these kinds; `most` is None for any number."""

    kinds: frozenset[str]
    least: int = 1
    most: int | None = 1


class Pattern:
    """Steps along the dataflow.

    Args:
        steps: one after another.

    Raises:
        QueryInvalid: the steps name more than `MAX_POSITIONS` nodes.
    """

    # The pattern is an automaton that is in several positions at once, a bit each: position i stands for a node that
    # is of a kind in `_kinds`' bit i. Every step becomes `least` positions and then either optional ones or a loop.

    def __init__(self, steps: Sequence[Step]) -> None:
        self._kinds = dict.fromkeys(KINDS, 0)
        optional, loops = 0, 0
        size = 0
        for step in steps:
            copies = max(step.least, 1) if step.most is None else step.most
            if size + copies > MAX_POSITIONS:
                raise QueryInvalid(f"pattern: expected at most {MAX_POSITIONS} nodes; got more", field=_FIELD)
            for copy in range(copies):
                bit = 1 << size
                optional |= bit if copy >= step.least else 0
                loops |= bit if step.most is None and copy == copies - 1 else 0
                for kind in step.kinds:
                    self._kinds[kind] |= bit
                size += 1
        # From the end on: the positions that may come first from i on, and whether there need be none.
        entry, self._last, self._follow = 0, 0, [0] * size
        ending = True
        for i in reversed(range(size)):
            bit = 1 << i
            self._follow[i] = entry | (loops & bit)
            self._last |= bit if ending else 0
            entry = bit | (entry if optional & bit else 0)
            ending = ending and bool(optional & bit)
        self._first = entry
        self._after = lru_cache(maxsize=4096)(self._after_uncached)
        self._before = lru_cache(maxsize=4096)(self._before_uncached)

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern that a text means; see this module's docstring.

        Raises:
            QueryInvalid: the text is no pattern, with the place; of an unknown kind, the nearest is suggested.
        """
        if len(text) > MAX_PATTERN:
            raise QueryInvalid(f"pattern: expected at most {MAX_PATTERN} characters; got {len(text)}", field=_FIELD)
        steps, position = [], _blank(text, 0)
        while position < len(text):
            match = _STEP.match(text, position)
            if match is None:
                raise QueryInvalid.at(
                    _FIELD, text, position, "expected a kind, (kind|kind) or '.', then perhaps *, +, ?, {n} or {n,m}"
                )
            steps.append(_step(match))
            position = _blank(text, match.end())
        if not steps:
            raise QueryInvalid("pattern: expected at least one step; got none", field=_FIELD)
        return cls(steps)

    def paths(self, graph: Graph, names: Collection[str]) -> Iterator[tuple[str, ...]]:
        """The matches among nodes of these names, by the node they start at, in execution order.

        Left out is what is only part of a longer match: a path that can go on at its end, or begin one node earlier.

        Raises:
            TooLarge: `MAX_STEPS` partial matches in a row led to no match.
        """
        # A node's live positions: those from which the pattern can be completed. Users come after what they read, so
        # one pass from the end finds them; the walk below then never runs into a dead end.
        live: dict[str, int] = {}
        for node in reversed(graph.nodes):
            if node.name in names:
                ahead = 0
                for user in graph.users[node.name]:
                    ahead |= live.get(user, 0)
                live[node.name] = self._kinds.get(node.kind, 0) & (self._last | self._before(ahead))
        # Depth first. `here` are the positions of a path's last node, `longer` those it has if the path begins one node
        # earlier: where the latter include the former, all that follows is part of a longer match.
        starts = (node for node in reversed(graph.nodes) if self._first & live.get(node.name, 0))
        branches = [[self._start(live, node) for node in starts]]
        path: list[str] = []
        steps = 0
        while branches:
            if not branches[-1]:
                branches.pop()
                del path[-1:]
                continue
            name, here, longer = branches[-1].pop()
            if not here & ~longer:
                continue
            steps += 1
            if steps > MAX_STEPS:
                raise TooLarge("the pattern has too many partial matches in this graph; ask for less", field=_FIELD)
            path.append(name)
            after, after_longer = self._after(here), self._after(longer)
            users = ((user, live.get(user, 0)) for user in reversed(graph.users[name]))
            branches.append([(user, after & at, after_longer & at) for user, at in users if after & at])
            if not branches[-1] and not longer & self._last:
                yield tuple(path)
                steps = 0

    def _start(self, live: Mapping[str, int], node: Node) -> tuple[str, int, int]:
        """A node, its positions at a path's start, and those it has if the path begins one node earlier."""
        earlier, here = 0, live[node.name]
        for name in node.inputs:
            earlier |= live.get(name, 0)
        return node.name, self._first & here, self._after(self._first & earlier) & here

    def _after_uncached(self, positions: int) -> int:
        """The positions that may follow one of these."""
        after = 0
        for i, follow in enumerate(self._follow):
            if positions >> i & 1:
                after |= follow
        return after

    def _before_uncached(self, positions: int) -> int:
        """The positions that one of these may follow."""
        return sum(1 << i for i, follow in enumerate(self._follow) if follow & positions)


def _blank(text: str, position: int) -> int:
    """Where the next character is that is not blank."""
    return len(text) - len(text[position:].lstrip())


def _step(match: re.Match[str]) -> Step:
    group = "one" if match["one"] else "choice"
    words = re.finditer(r"\.|\w+", match[group])
    kinds = frozenset().union(*(_kinds(match.string, match.start(group) + word.start(), word[0]) for word in words))
    if match["least"] is None:
        return Step(kinds, *_SIGNS[match["sign"]])
    least = int(match["least"])
    most = int(match["most"]) if match["most"] else None if match["range"] else least
    if most is not None and not least <= most >= 1:
        raise QueryInvalid.at(
            _FIELD, match.string, match.start("least"), f"expected {{n,m}} with m at least n and 1; got {match[0]}"
        )
    return Step(kinds, least, most)


def _kinds(text: str, position: int, word: str) -> frozenset[str]:
    if word == ".":
        return frozenset(KINDS)
    if word == "pointwise":
        return POINTWISE
    if word not in KINDS:
        raise QueryInvalid.at(
            _FIELD, text, position, unknown("kind", word, (*KINDS, "pointwise"), limit=len(KINDS) + 1)
        )
    return frozenset({word})
