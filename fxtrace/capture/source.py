"""Finds the line of the user's own code behind a call."""

from __future__ import annotations

import linecache
import sys
from pathlib import Path
from types import CodeType, FrameType

import torch

from fxtrace.graph import Source

_TORCH = str(Path(torch.__file__).parent)
_CAPTURE = str(Path(__file__).parent)
_SHAPES = str(Path(__file__).parent.with_name("shapes.py"))


def user_source(frame: FrameType, line: int | None = None) -> Source | None:
    """The line a frame is at, or None where the frame is PyTorch's, fxtrace's or generated code.

    The file is named as its author knows it, by package and file name, so that a trace carries no path of a machine.
    """
    file = frame.f_code.co_filename
    if file.startswith((_TORCH, _CAPTURE, _SHAPES, "<")):
        return None
    line = line or frame.f_lineno
    package = str(frame.f_globals.get("__package__") or "").replace(".", "/")
    name = Path(file).name
    return Source(
        file=f"{package}/{name}" if package else name,
        line=line,
        code=linecache.getline(file, line).strip(),
        function=frame.f_code.co_qualname,
    )


def calling_source(stop: CodeType) -> Source | None:
    """The innermost user line on the current stack, looking no further out than the frame that runs `stop`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not stop:
        source = user_source(frame)
        if source is not None:
            return source
        frame = frame.f_back
    return None
