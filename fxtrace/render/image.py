"""Images of DOT text, by a Graphviz in a process of its own.

It is the one in pygraphviz's wheels, so that a picture is the same on every machine; where that is not installed, `dot`
on PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import sqrt
from pathlib import Path
from xml.sax.saxutils import escape

from fxtrace.errors import (
    DependencyMissing,
    InternalError,
    InvalidRequest,
    MemoryLimit,
    OptionInvalid,
    TimeLimit,
    unknown,
)
from fxtrace.extras import is_installed
from fxtrace.ir.trace import IMAGE_FORMATS, ImageFormat

DPI = 144
"""A PNG's resolution, in pixels an inch of 72 points; less where the picture would pass the limits below."""

_MAX_PIXELS = 64e6
_MAX_SIDE = 30_000  # Cairo draws up to 32,767 pixels

_LESS = "draw less: fold layers, set a depth, or draw one module"

_FONTS = Path(__file__).parent / "fonts"

# The carried font first; the machine's own only for other names, and for scripts that it lacks. With hinting, letters
# would be set to whole pixels of a small size and look unevenly spaced.
_FONT_CONFIG = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{folder}</dir>
  <dir>/usr/share/fonts</dir>
  <dir>/usr/local/share/fonts</dir>
  <dir prefix="xdg">fonts</dir>
  <cachedir prefix="xdg">fontconfig</cachedir>
  <cachedir>{folder}</cachedir>
  <match target="font"><edit name="hinting" mode="assign"><bool>false</bool></edit></match>
  <alias binding="same"><family>sans-serif</family><prefer><family>Arimo</family></prefer></alias>
</fontconfig>
"""


def to_image(dot: str, format: ImageFormat, seconds: float | None = None) -> bytes:
    """DOT text as an image.

    Args:
        dot: DOT text, as of `to_dot`.
        format: `svg`, `png` or `pdf`; `dot` gives the text itself.
        seconds: how long one run of Graphviz may take; None for as long as it takes.

    Raises:
        OptionInvalid: an unknown format.
        InvalidRequest: the text is not DOT.
        DependencyMissing: neither pygraphviz nor `dot` is installed.
        TimeLimit: the layout takes longer than that.
        MemoryLimit: it takes more memory than there is.
        InternalError: Graphviz failed.
    """
    if format not in IMAGE_FORMATS:
        raise OptionInvalid(unknown("image format", format, IMAGE_FORMATS), field="format", format=format)
    if format == "dot":
        return dot.encode()
    command = find_graphviz()
    with tempfile.TemporaryDirectory(prefix="fxtrace-") as folder:
        for font in _FONTS.glob("*.ttf"):
            shutil.copy(font, folder)  # fontconfig writes a `.uuid` beside the fonts that it reads
        config = Path(folder, "fonts.conf")
        config.write_text(_FONT_CONFIG.format(folder=escape(folder)), encoding="utf-8")
        environment = {**os.environ, "FONTCONFIG_FILE": str(config)}
        if format == "svg":
            return _with_font(_run(command, ("dot", "svg", "72"), dot.encode(), environment, seconds))
        if format == "pdf":
            return _run(command, ("dot", "pdf", "72"), dot.encode(), environment, seconds)
        # Laid out first, so that the resolution can be chosen by the size.
        laid_out = _run(command, ("dot", "dot", "72"), dot.encode(), environment, seconds)
        return _run(command, ("nop2", "png", f"{_resolution(laid_out):.0f}"), laid_out, environment, seconds)


def find_graphviz() -> list[str]:
    """Returns the command that runs Graphviz, before its engine, format and resolution.

    Raises:
        DependencyMissing: neither pygraphviz nor `dot` is installed.
    """
    if _is_bundled():
        return [sys.executable, "-P", str(Path(__file__).with_name("bundled.py"))]
    if dot := shutil.which("dot"):
        return [dot]
    raise DependencyMissing(
        "Graphviz is needed for pictures and is not installed (format 'dot' needs none); install it with: "
        "pip install 'fxtrace[images]'",
        field="format",
        package="pygraphviz",
    )


def _is_bundled() -> bool:
    """Whether pygraphviz is there and brings Graphviz along, which its first versions did not."""
    try:
        return is_installed("pygraphviz") and int(version("pygraphviz").partition(".")[0]) >= 2
    except (PackageNotFoundError, ValueError):
        return False


def _run(
    command: list[str], how: tuple[str, str, str], dot: bytes, environment: Mapping[str, str], seconds: float | None
) -> bytes:
    engine, image_format, dpi = how
    bundled = len(command) > 1
    arguments = [*command, *how] if bundled else [*command, f"-K{engine}", f"-T{image_format}", f"-Gdpi={dpi}"]
    try:
        done = subprocess.run(arguments, input=dot, capture_output=True, timeout=seconds, env=environment, check=False)
    except subprocess.TimeoutExpired:
        raise TimeLimit(
            f"the layout took longer than {seconds:g} s; {_LESS}", field="options", seconds=seconds
        ) from None
    if done.returncode == 0:
        return done.stdout
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if "Fontconfig" not in line]
    said = " ".join(line.strip() for line in lines if line.strip())[-500:]
    if "syntax error" in said:
        raise InvalidRequest(f"not DOT text: Graphviz says {said}", field="dot")
    if "out of memory" in said or "MemoryError" in said:
        raise MemoryLimit(f"the layout took more memory than there is; {_LESS}", field="options")
    raise InternalError(f"Graphviz failed with exit code {done.returncode}: {said or 'it said nothing'}")


def _with_font(svg: bytes) -> bytes:
    """An SVG that brings the carried font along, for a viewer without any of its metrics."""
    faces = "".join(
        f"@font-face{{font-family:Arimo;font-weight:{weight};src:url(data:font/woff2;base64,{_base64(name)})}}"
        for weight, name in ((400, "Arimo-Regular.woff2"), (700, "Arimo-Bold.woff2"))
    )
    end = svg.find(b">", svg.find(b"<svg")) + 1
    return svg[:end] + f"\n<style>{faces}</style>".encode() + svg[end:]


@cache
def _base64(name: str) -> str:
    return b64encode((_FONTS / name).read_bytes()).decode()


def _resolution(laid_out: bytes) -> float:
    """Pixels an inch, so that the picture stays below the limits."""
    box = re.search(rb'\bbb="([-\d.]+),([-\d.]+),([-\d.]+),([-\d.]+)"', laid_out)
    if box is None:
        return DPI
    left, bottom, right, top = (float(number) / 72 for number in box.groups())
    width, height = max(right - left, 1) + 1, max(top - bottom, 1) + 1
    return max(min(DPI, sqrt(_MAX_PIXELS / (width * height)), _MAX_SIDE / max(width, height)), 1)
