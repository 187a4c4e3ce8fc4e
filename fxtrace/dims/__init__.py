"""Sizes with names: formulas of them, finding the formulas, and reading named sizes off shapes."""

from fxtrace.dims.fields import integers, replaced
from fxtrace.dims.formula import Columns, Formula
from fxtrace.dims.formulas import Formulas
from fxtrace.dims.infer import Finding, Probe, find_formulas
from fxtrace.dims.named import aligned, bind, fit

__all__ = [
    "Columns",
    "Finding",
    "Formula",
    "Formulas",
    "Probe",
    "aligned",
    "bind",
    "find_formulas",
    "fit",
    "integers",
    "replaced",
]
