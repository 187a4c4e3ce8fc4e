"""What is picked out of a graph, readable as it is printed: some of its nodes, or all that has a role."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from fxtrace.api.text import html_table
from fxtrace.errors import NodeNotFound
from fxtrace.graph import Graph, Node, show_sizes
from fxtrace.ir.text import aligned, count_text

_HEADINGS = ("name", "op", "shape", "dtype", "role")
_MOST_ROWS = 60


class Nodes(tuple[Node, ...]):
    """Nodes of a graph, in execution order; printed, or shown in a notebook, as a table.

    Attributes:
        paths: where paths were asked for, the names of the nodes of every one of them.
        truncated: whether there are more paths than these.

    Example:
        >>> print(trace.nodes('kind == "softmax"'))
    """

    paths: tuple[tuple[str, ...], ...]
    truncated: bool

    def __new__(
        cls, nodes: Iterable[Node] = (), paths: tuple[tuple[str, ...], ...] = (), truncated: bool = False
    ) -> Nodes:
        """Makes the tuple, with the paths that led to it."""
        made = super().__new__(cls, nodes)
        made.paths, made.truncated = paths, truncated
        return made

    @property
    def names(self) -> tuple[str, ...]:
        """The nodes' names."""
        return tuple(node.name for node in self)

    def __repr__(self) -> str:
        shown = ", ".join(self.names[:4]) + (", …" if len(self) > 4 else "")
        return f"<{count_text(len(self), 'node')}{': ' if self else ''}{shown}>"

    def __str__(self) -> str:
        return aligned(_HEADINGS, map(_row, self[:_MOST_ROWS]), more=len(self) - _MOST_ROWS)

    def _repr_html_(self) -> str:
        return html_table(_HEADINGS, map(_row, self[:_MOST_ROWS]), more=len(self) - _MOST_ROWS)


class Roles(Mapping[str, Node]):
    """The nodes that have a role, by the role's name; printed, or shown in a notebook, as a table.

    Example:
        >>> trace.roles["decoder.0.cross_attention.weights"].spec.shape
        (1, 4, 5, 6)
    """

    def __init__(self, graph: Graph) -> None:
        self._graph, self._nodes = graph, graph.by_role

    def __getitem__(self, name: str) -> Node:
        try:
            return self._nodes[name]
        except KeyError:
            raise NodeNotFound(self._graph.why_absent("role", name, self._nodes), field="role", role=name) from None

    def __contains__(self, name: object) -> bool:
        return name in self._nodes  # Mapping's own, and its `get`, expect a KeyError

    def get(self, name: str, default: Node | None = None) -> Node | None:  # type: ignore[override]
        """The node with this role, or the default."""
        return self._nodes.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def __repr__(self) -> str:
        return f"<{count_text(len(self), 'role')}>"

    def __str__(self) -> str:
        return aligned(("role", "shape", "node"), self._rows(), more=len(self) - _MOST_ROWS)

    def _repr_html_(self) -> str:
        return html_table(("role", "shape", "node"), self._rows(), more=len(self) - _MOST_ROWS)

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for name, node in list(self._nodes.items())[:_MOST_ROWS]:
            yield name, shape_text(node), node.name


def shape_text(node: Node) -> str:
    """The shapes of a node's tensors: `1×4×5×6`, or several with commas."""
    return ", ".join(show_sizes(spec) for _, spec in node.tensors)


def _row(node: Node) -> tuple[str, ...]:
    dtypes = ", ".join(dict.fromkeys(spec.dtype for _, spec in node.tensors))
    return node.name, node.target, shape_text(node), dtypes, ", ".join(map(str, node.roles))
