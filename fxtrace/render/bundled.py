"""Runs the Graphviz that pygraphviz's wheels bundle, as `dot` would: DOT on standard input, an image on the output.

A program of its own, so that C code crashes or hangs there and not here: `python -P bundled.py ENGINE FORMAT DPI`. It
imports nothing of fxtrace.
"""

import sys


def main(engine: str, image_format: str, dpi: str) -> None:
    """Lays out and draws one graph."""
    import pygraphviz

    try:
        drawing = pygraphviz.AGraph(string=sys.stdin.buffer.read().decode())
    except pygraphviz.DotError as error:
        sys.exit(f"syntax error: {error}")
    drawing.graph_attr["dpi"] = dpi
    sys.stdout.buffer.write(drawing.draw(format=image_format, prog=engine))


if __name__ == "__main__":
    main(*sys.argv[1:])
