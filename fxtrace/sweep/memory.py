"""Which tensors' memory is there at once while a graph runs: the most of it is the peak of activations.

Nodes run one after the other, in the graph's order. A tensor's memory is taken when the node that computes it runs, and
given back when the last node that reads it has run; an op's result is there beside what the op reads. A view, a part
of a tensor and what is written in place are in their tensor's memory, which stays as long as any of them is read. What
the model returns stays to the end. Parameters, buffers and inputs are the caller's, and never counted; neither is what
an op takes and gives back within itself.

It is the liveness of straight-line code (Aho, Lam, Sethi and Ullman, "Compilers", 2006, section 8.4), used so for
tensors by Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, section 3; `torch.fx.Interpreter` gives
memory back so, too. A model run by Python keeps a tensor as long as a variable names it, which may be longer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from fxtrace.graph import Graph

_GIVEN = frozenset({"input", "constant"})


def computed(graph: Graph, bases: Mapping[str, str]) -> list[str]:
    """The tensors whose memory the graph's nodes take: those that are in no other tensor's.

    Args:
        graph: the graph.
        bases: for each tensor in the memory of an earlier one, the name of the earliest.
    """
    return [name for node in graph.nodes if node.kind not in _GIVEN for name, _ in node.tensors if name not in bases]


def alive(graph: Graph, bases: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """The tensors of `computed` that are there at once, at each moment after which some of them go.

    The arguments are those of `computed`.
    """
    own = dict.fromkeys(computed(graph, bases))
    last_read = {name: at for at, node in enumerate(graph.nodes) for name in (node.name, *node.inputs)}
    freed: dict[str, int] = {}
    for node in graph.nodes:
        for name, _ in node.tensors:
            base = bases.get(name, name)
            freed[base] = max(freed.get(base, 0), last_read[node.name])
    after: dict[int, list[str]] = defaultdict(list)
    for name in own:
        after[freed[name]].append(name)
    there: dict[str, None] = {}
    more = False
    for at, node in enumerate(graph.nodes):
        taken = {name: None for name, _ in node.tensors if name in own}
        there |= taken
        more = more or bool(taken)
        if at in after and more:
            yield tuple(there)
            more = False
        for name in after.get(at, ()):
            del there[name]
