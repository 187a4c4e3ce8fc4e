"""What changed between two graphs, and which configuration field explains it."""

from fxtrace.diff.align import How, Pair, align

__all__ = ["How", "Pair", "align"]
