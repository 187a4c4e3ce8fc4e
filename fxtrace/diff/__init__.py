"""What changed between two graphs, and which configuration field explains it."""

from fxtrace.diff.align import How, Pair, align
from fxtrace.diff.changes import (
    FieldChange,
    GraphDiff,
    Lone,
    NodePair,
    NodeSide,
    SizeChange,
    TensorChange,
    TensorSide,
    Totals,
    ValueChange,
)
from fxtrace.diff.diff import changed_fields, common_formulas, compare, explain_by_trial, explain_sizes, put_field

__all__ = [
    "FieldChange",
    "GraphDiff",
    "How",
    "Lone",
    "NodePair",
    "NodeSide",
    "Pair",
    "SizeChange",
    "TensorChange",
    "TensorSide",
    "Totals",
    "ValueChange",
    "align",
    "changed_fields",
    "common_formulas",
    "compare",
    "explain_by_trial",
    "explain_sizes",
    "put_field",
]
