"""Sweeps: what a model's shapes, parameters, bytes and FLOPs come to over a grid of configurations."""

from fxtrace.sweep.costs import Cost, Costs, NoFormula
from fxtrace.sweep.flops import Products, products
from fxtrace.sweep.grid import MAX_CONFIGURATIONS, Axis, Grid, parse_grid
from fxtrace.sweep.rows import SAMPLE, How, SweepBatch, SweepRequest, SweepRow

__all__ = [
    "MAX_CONFIGURATIONS",
    "SAMPLE",
    "Axis",
    "Cost",
    "Costs",
    "Grid",
    "How",
    "NoFormula",
    "Products",
    "SweepBatch",
    "SweepRequest",
    "SweepRow",
    "parse_grid",
    "products",
]
