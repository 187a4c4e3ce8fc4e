"""What changed between two graphs, and which configuration field explains it."""

from fxtrace.diff.align import How, Pair, align
from fxtrace.diff.diff import (
    FieldChange,
    GraphDiff,
    Lone,
    NodePair,
    SizeChange,
    TensorChange,
    changed_fields,
    compare,
)

__all__ = [
    "FieldChange",
    "GraphDiff",
    "How",
    "Lone",
    "NodePair",
    "Pair",
    "SizeChange",
    "TensorChange",
    "align",
    "changed_fields",
    "compare",
]
