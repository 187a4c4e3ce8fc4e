"""The notebooks of examples/ are executed as a reader would, in a kernel of their own."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from examples.twelve import TWELVE

EXAMPLES = Path(__file__).parent.parent / "examples"


def outputs(cell: nbformat.NotebookNode) -> dict[str, str]:
    """What a cell shows, by its kind; what it prints counts as text."""
    shown: dict[str, str] = {}
    for output in cell.get("outputs", ()):
        assert output.get("name") != "stderr" or "TqdmWarning" in output.text, output.text  # it wants ipywidgets
        shown |= output.get("data", {"text/plain": output.get("text", "")})
    return shown


@pytest.fixture(scope="module")
def one_line() -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(EXAMPLES / "one_line.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without its outputs"
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(EXAMPLES)}})
    return list(client.execute().cells)


def test_every_module_is_shown_by_one_line(one_line: list[nbformat.NotebookNode]) -> None:
    traces = [cell for cell in one_line if cell.cell_type == "code" and "TWELVE[" in cell.source]
    assert {re.findall(r'TWELVE\["(.*)"\]', cell.source)[0] for cell in traces} == {*TWELVE} - {"reference"}
    for cell in traces:
        page = outputs(cell)["text/html"]
        assert "<svg" in page, cell.source
        assert "<table" in page, cell.source


def test_what_a_trace_gives_is_short_and_readable(one_line: list[nbformat.NotebookNode]) -> None:
    rest = [cell for cell in one_line if cell.cell_type == "code" and "TWELVE[" not in cell.source]
    for cell in rest:
        shown = outputs(cell)
        if "text/html" not in shown:
            assert len(shown.get("text/plain", "")) < 6000, cell.source
            assert " object at 0x" not in shown.get("text/plain", ""), cell.source
