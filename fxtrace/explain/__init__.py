"""Why a tensor has its shape: said from a trace's own graph, formulas and numbers. No torch here."""

from fxtrace.explain.explain import explain
from fxtrace.explain.explanation import Explanation, Sized

__all__ = ["Explanation", "Sized", "explain"]
