"""Finds the line of the user's own code behind a call."""

from __future__ import annotations

import linecache
import re
import sys
import sysconfig
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import NamedTuple

import torch
from torch import nn

from fxtrace.graph import Source

_TORCH = str(Path(torch.__file__).parent)
_CAPTURE = str(Path(__file__).parent)
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")
_SHAPES = str(Path(__file__).parent.with_name("shapes.py"))


def user_source(frame: FrameType, line: int | None = None) -> Source | None:
    """The line a frame is at, or None where the frame is PyTorch's, Python's, fxtrace's or generated code.

    The file is named as its author knows it, by package and file name, so that a trace carries no path of a machine.
    """
    if not _is_users(frame.f_code.co_filename):
        return None
    package = str(frame.f_globals.get("__package__") or "")
    return _source(frame.f_code.co_filename, line or frame.f_lineno, frame.f_code.co_qualname, package)


def code_source(code: CodeType, package: str) -> Source | None:
    """The line where a function begins; `package` is the one it belongs to. None as in `user_source`."""
    file = code.co_filename
    return _source(file, code.co_firstlineno, code.co_qualname, package) if _is_users(file) else None


def calling_source(stop: CodeType) -> Source | None:
    """The innermost user line on the current stack, looking no further out than the frame that runs `stop`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not stop:
        source = user_source(frame)
        if source is not None:
            return source
        frame = frame.f_back
    return None


class Place(NamedTuple):
    """The user's line, and the path of the module, that a call comes from."""

    source: Source | None
    module: str


def calling_place(stop: CodeType, paths: Mapping[int, str]) -> Place:
    """`calling_source`, and with it the path of the innermost of these modules that is being called.

    Args:
        stop: as in `calling_source`.
        paths: the modules' paths by their ids.
    """
    source, path = None, None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (code := frame.f_code) is not stop and (source is None or path is None):
        if code is _MODULE_CALL:
            path = path or paths.get(id(frame.f_locals[_MODULE]))
        elif source is None and _is_users(code.co_filename):
            source = user_source(frame)
        frame = frame.f_back
    return Place(source, path or "")


# Every module's call passes through here, hooks included; its first parameter is the module.
_MODULE_CALL: CodeType = nn.Module.__call__.__code__
_MODULE = _MODULE_CALL.co_varnames[0]

_FRAME = re.compile(r'^ *File "(.+)", line (\d+), in (.+)$', re.MULTILINE)


@lru_cache(maxsize=1 << 14)
def stack_source(stack: str) -> Source | None:
    """The innermost user line of a stack that was written down as text, as torch.export does; None where it has none.

    The text has no more than a function's plain name; the rest comes from the file and the module made from it.
    """
    for file, line, function in reversed(_FRAME.findall(stack)):
        if _is_users(file):
            code = max(
                (code for code in _codes(file) if code.co_name == function and int(line) in _lines(code)),
                key=lambda code: code.co_firstlineno,
                default=None,
            )
            if code is not None:
                return _source(file, int(line), code.co_qualname, _package(file))
            return Source(Path(file).name, int(line), linecache.getline(file, int(line)).strip(), function)
    return None


@cache
def _codes(file: str) -> tuple[CodeType, ...]:
    """Every function in a file; none where it is not plain Python."""
    try:
        found = [compile("".join(linecache.getlines(file)), file, "exec")]
    except (SyntaxError, ValueError):
        return ()
    for code in found:  # which grows as it goes
        found.extend(each for each in code.co_consts if isinstance(each, CodeType))
    return tuple(found)


@cache
def _lines(code: CodeType) -> range:
    lines = [line for _, _, line in code.co_lines() if line]
    return range(min(lines, default=0), max(lines, default=0) + 1)


@cache
def _package(file: str) -> str:
    """The package of the module that was made from a file."""
    spaces = (vars(module) for module in tuple(sys.modules.values()))
    return next((str(space.get("__package__") or "") for space in spaces if space.get("__file__") == file), "")


@cache
def _is_users(file: str) -> bool:
    installed = "site-packages" in file  # which lies in the standard library's folder
    return not file.startswith((_TORCH, _CAPTURE, _SHAPES, "<", *(() if installed else (_STANDARD_LIBRARY,))))


@lru_cache(maxsize=1 << 14)
def _source(file: str, line: int, function: str, package: str) -> Source:
    name = Path(file).name
    return Source(
        file=f"{package.replace('.', '/')}/{name}" if package else name,
        line=line,
        code=linecache.getline(file, line).strip(),
        function=function,
    )
