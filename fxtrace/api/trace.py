"""One trace as an object: the same over a module in this process, over a store, and over a server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fxtrace.api.arrays import as_chosen
from fxtrace.api.picture import Picture
from fxtrace.api.protocol import TraceApi
from fxtrace.api.selection import Nodes, Roles
from fxtrace.errors import FxtraceError, OptionInvalid, TensorNotFound, Unmet
from fxtrace.graph import Graph, Snapshot
from fxtrace.ir.trace import IMAGE_FORMATS, Direction, ImageFormat, NodeQuery, Progress, RenderOptions, Theme, TraceInfo

if TYPE_CHECKING:
    import networkx as nx
    from torch.fx import GraphModule

    from fxtrace.diff import GraphDiff
    from fxtrace.dims import Formulas
    from fxtrace.explain import Explanation

Arrays = Literal["auto", "numpy", "torch"]

_CONDITION = re.compile(r"[=<>!&|(]|^contiguous$")
"""What a condition in CEL has, and no name of a role, a node or a tensor."""

_PICTURE_NODES = 120
"""Nodes of a graph that a notebook shows unfolded; of a larger one, modules nested deeper than two are boxes."""


class Trace:
    """One captured run: its graph, its tensors, what they are and why.

    Made by `fxtrace.trace`, `fxtrace.load`, and by the methods `trace` and `load` of `Engine` and `Client`. The engine
    or the client that made it answers, so it must stay open as long as the trace is used.

    Args:
        api: the engine or the client that has the trace.
        info: where the trace came from.
        arrays: what tensors come back as: `torch` tensors, `numpy` arrays, or `auto`: torch where it is installed.
        data: kept alive with this object, for a trace that nothing else keeps.

    Attributes:
        info: where the trace came from: model, configuration, inputs, capture rung, versions.

    Example:
        >>> t = fxtrace.trace("reference", d_model=64)
        >>> t["decoder.0.cross_attention.weights"].shape
        torch.Size([1, 4, 5, 6])
        >>> print(t.explain("decoder.0.cross_attention.weights"))
        >>> t.draw().save("model.svg")
    """

    def __init__(self, api: TraceApi[Any], info: TraceInfo, *, arrays: Arrays = "auto", data: object = None) -> None:
        self.info = info
        self._api = api
        self._arrays: Arrays = arrays
        self._data = data

    @property
    def api(self) -> TraceApi[Any]:
        """The engine or the client that has the trace."""
        return self._api

    # ------------------------------------------------------------------------------------------------- what it is

    @property
    def id(self) -> str:
        """32 hexadecimal digits: a digest of everything that determines the trace; of a module's, of all it shows."""
        return self.info.id

    @property
    def model(self) -> str:
        """The model's name."""
        return self.info.model

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Every field of the model's configuration; empty for a module that was built elsewhere."""
        return self.info.configuration

    @cached_property
    def graph(self) -> Graph:
        """The labelled graph: nodes in execution order, modules, named sizes, refusals."""
        return self._api.get_graph(self.id)

    @cached_property
    def roles(self) -> Roles:
        """The nodes that have a role, by the role's name."""
        return Roles(self.graph)

    @cached_property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """The numbered snapshots that this graph has; `graph.refusals` says why others are missing."""
        return tuple(snapshot for snapshot in self._api.list_snapshots(self.id) if snapshot.found)

    def nodes(
        self,
        expression: str = "",
        *,
        ancestors_of: str = "",
        descendants_of: str = "",
        max_depth: int | None = None,
        path: tuple[str, str] | None = None,
        pattern: str = "",
    ) -> Nodes:
        """Returns the nodes that meet every condition; without one, all of them.

        Args:
            expression: a condition in CEL, such as `kind == "softmax" && rank == 4`.
            ancestors_of: only nodes whose value flows into this node's; a node's name, or a role's.
            descendants_of: only nodes into whose value this node's flows.
            max_depth: for these two, at most this many edges away.
            path: only nodes on the shortest paths from the first of two nodes to the second.
            pattern: only nodes on paths of these kinds, one after another: `matmul pointwise* softmax`.

        Raises:
            NodeNotFound: a name is neither a node's nor a role's; the nearest is suggested.
            QueryInvalid: the expression or the pattern cannot be understood, with the place.
            TooLarge: it takes too long on this graph.
            DependencyMissing: there is an expression, and CEL is not installed.

        Example:
            >>> t.nodes('kind == "softmax"').names
            ('softmax', 'softmax_1', 'softmax_2', 'softmax_3', 'softmax_4', 'softmax_5')
        """
        query = NodeQuery(expression, ancestors_of, descendants_of, max_depth, path, pattern)
        if query == NodeQuery():
            return Nodes(self.graph.nodes)
        result = self._api.query_nodes(self.id, query)
        return Nodes(result.nodes, result.paths, result.truncated)

    # ------------------------------------------------------------------------------------------------- its tensors

    def __getitem__(self, what: str) -> Any:
        """Returns a tensor, or several by name.

        Args:
            what: a role (`decoder.0.cross_attention.weights`), a node or a tensor: that tensor. The beginning of
                roles' names (`decoder.0`), a snapshot (`#30`) or a node that returns several tensors: a dict of them.
                A condition in CEL (`kind == "softmax"`): a dict of the tensors of the nodes that meet it.

        Raises:
            TensorNotFound: nothing has such a name; the nearest is suggested. It is a `LookupError`, too.
            ValuesAbsent: the trace holds shapes only.
            QueryInvalid, DependencyMissing: as `nodes`.

        Example:
            >>> t["softmax"].sum(-1)
            >>> {name: weights.shape for name, weights in t['part == "weights"'].items()}
        """
        if not isinstance(what, str):
            raise OptionInvalid(
                f"expected a role, a node, a tensor or a condition, as text; got {type(what).__name__}", field="tensor"
            )
        names = self._names(what)
        return self.read(names) if isinstance(names, str) else {name: self.read(at) for name, at in names.items()}

    def read(self, tensor: str, slice: str = "") -> Any:
        """Returns a tensor's numbers, or those of a part of it.

        Args:
            tensor: the tensor's name, or a role's.
            slice: NumPy's basic slicing without the brackets: `0,0,:5`.

        Raises:
            TensorNotFound, SliceInvalid, ValuesAbsent, StoreDamaged
        """
        spec = self.graph.tensor(tensor)
        return as_chosen(self._api.read_tensor(self.id, tensor, slice), spec.dtype, self._arrays)

    def __contains__(self, what: object) -> bool:
        """Whether something has this name: a role, the beginning of one, a node or a tensor."""
        try:
            return isinstance(what, str) and not _CONDITION.search(what) and bool(self._names(what))
        except FxtraceError:
            return False

    def __iter__(self) -> Iterator[str]:
        """Names of all tensors, in execution order."""
        return iter([name for name, _ in self.graph.tensors()])

    def __len__(self) -> int:
        """How many tensors there are."""
        return self.info.tensor_count

    @property
    def outputs(self) -> dict[str, Any]:
        """The tensors that the model returned, by name."""
        return {tensor: self.read(tensor) for node in self.graph.returned for tensor, _ in node.tensors}

    def _names(self, what: str) -> str | dict[str, str]:
        """A tensor's name, or several tensors' by the names they are asked for."""
        graph = self.graph
        try:
            return graph.resolve_tensor(what)
        except TensorNotFound:
            pass
        if node := graph.by_name.get(what) or graph.by_role.get(what):
            nodes = graph.returned if node.op == "output" else (node,)
            return {name: name for each in nodes for name, _ in each.tensors}
        if within := {name: node for name, node in graph.by_role.items() if name.startswith(f"{what}.")}:
            return {role: name for role, node in within.items() for name, _ in node.tensors[:1]}
        if re.fullmatch(r"#\d{1,9}", what):
            (snapshot,) = self._api.list_snapshots(self.id, [int(what[1:])])
            return {each.variable: each.tensor for each in snapshot.tensors}
        if _CONDITION.search(what):
            return {name: name for node in self.nodes(what) for name, _ in node.tensors}
        known = (*(name for name, _ in graph.tensors()), *graph.by_role)
        raise TensorNotFound(graph.why_absent("tensor, node or role", what, known), field="tensor", tensor=what)

    # ------------------------------------------------------------------------------------------------- what it means

    def explain(self, what: str) -> Explanation:
        """Explains why a tensor, a block of them, or a named size is as it is.

        Args:
            what: a role, a node or a tensor, a snapshot's number (`34`), the beginning of roles' names (`decoder.0`),
                or a named size (`d_model`).

        Raises:
            NodeNotFound, SnapshotNotFound: there is nothing of that name; the nearest is suggested.
        """
        return self._api.explain(self.id, str(what))

    def formulas(self, *, progress: Callable[[Progress], None] | None = None) -> Formulas:
        """Finds what every size is made of, by tracing the model under other configurations.

        Args:
            progress: called as the work goes on; an exception that it raises stops the work.

        Raises:
            ModelNotFound: the trace is of a module that nothing builds under another configuration.
            CaptureFailed: the model does not give this graph any more.
        """
        return self._api.find_formulas(self.id, progress=progress)

    def diff(self, other: Trace, *, progress: Callable[[Progress], None] | None = None) -> GraphDiff:
        """Compares this trace (before) with another one (after).

        The two may live in different places: one on a server, say, and one in this process.

        Args:
            other: the trace after.
            progress: called as the work goes on; an exception that it raises stops the work.

        Example:
            >>> print(fxtrace.trace("reference").diff(fxtrace.trace("reference", d_ff=512)))
        """
        if not isinstance(other, Trace):
            raise OptionInvalid(f"expected a trace to compare with; got {type(other).__name__}", field="other")
        if other._api is self._api:
            return self._api.diff_traces(self.id, other.id, progress=progress)
        import fxtrace  # the engine is above this room

        return fxtrace.Engine.over(self, other).diff_traces(self.id, other.id, progress=progress)

    def draw(
        self,
        path: str | Path | None = None,
        *,
        format: ImageFormat | None = None,
        depth: int | None = None,
        fold_layers: bool = True,
        highlight: str | tuple[str, ...] = (),
        module: str = "",
        direction: Direction = "TB",
        theme: Theme = "light",
        views: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> Picture:
        """Draws the graph.

        Args:
            path: a file to write, too; its ending says the format.
            format: svg, png, pdf or dot; by default as the path says, or svg.
            depth: modules nested deeper are drawn as one box each; None unfolds everything.
            fold_layers: draw one of a run of identical layers, marked ×N.
            highlight: roles, beginnings of them, nodes, or snapshots as `#33`.
            module: draw only this module's inside.
            direction: TB (top to bottom) or LR (left to right).
            theme: light or dark.
            views: draw ops that only move elements, too.
            progress: called as the work goes on; an exception that it raises stops the work.

        Raises:
            OptionInvalid, NodeNotFound, SnapshotNotFound: of the options.
            DependencyMissing: Graphviz is not installed.
            TimeLimit, MemoryLimit: the layout takes too long, or too much memory.

        Example:
            >>> t.draw("model.svg", highlight="decoder.0.cross_attention")
        """
        options = RenderOptions(
            depth=depth,
            fold_layers=fold_layers,
            highlight=(highlight,) if isinstance(highlight, str) else tuple(highlight),
            module=module,
            direction=direction,
            theme=theme,
            views=views,
        )
        chosen = format or _format_of(path)
        picture = Picture(chosen, self._api.render_graph(self.id, chosen, options, progress=progress))
        if path is not None:
            picture.save(path)
        return picture

    # ------------------------------------------------------------------------------------------------- elsewhere

    @property
    def graph_module(self) -> GraphModule:
        """A `torch.fx.GraphModule` that runs: it takes what the model takes, and returns what it returns.

        Raises:
            Unmet: the trace was read from a store or a server, where no module is.
        """
        made: GraphModule | None = getattr(self._data, "graph_module", None)
        if made is None:
            raise Unmet(
                "expected a trace that was made in this process by fxtrace.trace(...), for a module to run; this one "
                f"was read from elsewhere. Trace the model again: fxtrace.trace({self.model!r}, ...)",
                trace=self.id,
            )
        return made

    def to_networkx(self) -> nx.MultiDiGraph[str]:
        """Returns the graph for networkx: a node for each node, with its shape, roles and the rest as attributes."""
        from fxtrace.export import to_networkx

        return to_networkx(self.graph)

    def export(self, path: str | Path, format: str = "", *, tensor: str = "") -> Path:
        """Writes the trace for another tool: Model Explorer, networkx, a table, tensors; see `fxtrace.export`.

        Args:
            path: the file; its ending says the format, such as `.graphml`, `.model-explorer.json` or `.parquet`.
            format: the format's name, where the ending does not say it.
            tensor: for formats of tensors, its name, its node's or a role's, or the beginning of roles' names.

        Returns:
            The file.

        Raises:
            OptionInvalid: no format has this ending, or the format cannot hold what there is.
            TensorNotFound, ValuesAbsent: of formats that hold tensors.
            DependencyMissing: the format's package is not installed.

        Example:
            >>> t.export("model.model-explorer.json")
            >>> t.export("weights.npy", tensor="decoder.0.cross_attention.weights")
        """
        from fxtrace.export import export

        return export(self, path, format, tensor=tensor)

    def save(self, place: str | Path) -> Path | str:
        """Keeps the trace: in a file of its own (`.safetensors`), or in a store.

        Args:
            place: a file that ends in `.safetensors`, or a store's folder or URL; `fxtrace.load` reads both.

        Returns:
            The file, or the store's place.
        """
        import fxtrace  # the store is above this room

        return fxtrace.Engine.keep(self, place)

    # ------------------------------------------------------------------------------------------------- as it is shown

    def __repr__(self) -> str:
        info = self.info
        return f"<Trace {info.model} {info.id[:8]}: {info.node_count} nodes, {info.labelled_count} with a role>"

    def __str__(self) -> str:
        from fxtrace.api.summary import summary_text

        return summary_text(self)

    def __rich__(self) -> Any:
        from fxtrace.api.summary import summary_table

        return summary_table(self)

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        """What a notebook shows: the picture and the table."""
        from fxtrace.api.summary import summary_html

        depth = 2 if self.info.node_count > _PICTURE_NODES else None
        try:
            picture = str(self.draw(depth=depth))
        except FxtraceError as error:
            return {"text/plain": str(self), "text/html": summary_html(self, note=error.message)}
        return {"text/plain": str(self), "text/html": summary_html(self, picture=picture)}


def _format_of(path: str | Path | None) -> ImageFormat:
    if path is None:
        return "svg"
    ending = Path(path).suffix.removeprefix(".").lower()
    for known in IMAGE_FORMATS:
        if known == ending:
            return known
    raise OptionInvalid(
        f"path: expected a file that ends in {', '.join(f'.{known}' for known in IMAGE_FORMATS)}; got '{path}'",
        field="path",
    )
