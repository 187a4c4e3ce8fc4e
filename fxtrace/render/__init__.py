"""Pictures of a graph: DOT text as a pure function of graph and options, and images of it without a system package."""

from fxtrace.render.diff import diff_to_dot
from fxtrace.render.dot import to_dot
from fxtrace.render.focus import check_options
from fxtrace.render.image import find_graphviz, to_image

__all__ = ["check_options", "diff_to_dot", "find_graphviz", "to_dot", "to_image"]
