"""Pictures of a graph: DOT text as a pure function of graph and options, and images of it without a system package."""

from fxtrace.render.dot import to_dot
from fxtrace.render.image import to_image

__all__ = ["to_dot", "to_image"]
