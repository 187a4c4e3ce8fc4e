"""Captures a module as a graph: picks the rung, runs it, and leaves the module as it was found."""

from fxtrace.extras import needed_for

with needed_for("capturing models"):
    import torch  # noqa: F401

from fxtrace.capture.capture import Capture, capture
from fxtrace.capture.run import ValuesNeeded, model_errors
from fxtrace.capture.sketch import sketch

__all__ = ["Capture", "ValuesNeeded", "capture", "model_errors", "sketch"]
