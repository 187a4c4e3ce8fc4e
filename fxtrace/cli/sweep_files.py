"""A sweep as a file: CSV, Parquet, JSON, or a plot. A file appears when it is whole, or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxtrace.errors import OptionInvalid, unknown
from fxtrace.export.whole import whole
from fxtrace.extras import require
from fxtrace.ir.trace import Json

if TYPE_CHECKING:
    from fxtrace.cli.sweep import Swept
    from fxtrace.sweep import SweepRow

NUMBERS = ("parameters", "activation_bytes", "peak_activation_bytes", "flops")
_PLOTS = (".svg", ".png", ".pdf")
_ENDINGS = (".csv", ".parquet", ".json", *_PLOTS)


def check_output(swept: Swept, out: Path | None, x: str, y: str) -> None:
    """Returns where a sweep can be written so; it is asked before the work.

    Raises:
        OptionInvalid: the file's ending, the plot's field or its number is unknown, or the folder is none.
        DependencyMissing: what writes such files is not installed.
    """
    if x and x not in swept.fields:
        raise OptionInvalid(unknown("field of the grid", x, swept.fields), field="x", name=x)
    if y not in NUMBERS:
        raise OptionInvalid(unknown("number", y, NUMBERS), field="y", name=y)
    if out is None:
        return
    if out.suffix.lower() not in _ENDINGS:
        raise OptionInvalid(
            f"expected a file that ends in {', '.join(_ENDINGS)}, got '{out.name}'", field="out", out=out
        )
    if not out.parent.is_dir():
        raise OptionInvalid(f"cannot write {out}: there is no folder {out.parent}", field="out", out=out)
    if out.suffix.lower() == ".parquet":
        _pyarrow()
    elif out.suffix.lower() in _PLOTS:
        require("plots")


def write_sweep(swept: Swept, out: Path, x: str, y: str) -> None:
    """Writes a sweep, as the file's ending says.

    Raises:
        OptionInvalid: the file cannot be written, or there is nothing to plot.
    """
    ending = out.suffix.lower()
    if ending in _PLOTS:
        from fxtrace.cli.plot import plot

        data = plot(swept, x, y, ending.removeprefix("."))
    else:
        data = _WRITERS[ending](swept)
    try:
        with whole(out) as file:
            file.write(data)
    except OSError as error:
        raise OptionInvalid(f"cannot write {out}: {error.strerror}", field="out", out=out) from error


def document(swept: Swept) -> dict[str, Json]:
    """A sweep as JSON."""
    return {
        "confirmed": swept.confirmed,
        "mismatches": list(swept.mismatches),
        "notes": list(swept.notes),
        "rows": [
            {
                "index": row.index,
                "configuration": {name: row.configuration[name] for name in swept.fields},
                **({"reason": row.reason} if row.reason else {"how": row.how, **_numbers(row)}),
                **({"shapes": {name: list(shape) for name, shape in row.shapes.items()}} if row.shapes else {}),
            }
            for row in swept.rows
        ],
    }


def _numbers(row: SweepRow) -> dict[str, Json]:
    return {name: getattr(row, name) for name in NUMBERS}


def _csv(swept: Swept) -> bytes:
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow((*swept.fields, "reason", "how", *NUMBERS, *swept.tensors))
    for row in swept.rows:
        numbers = ("",) * (1 + len(NUMBERS)) if row.reason else (row.how, *_numbers(row).values())
        shapes = ("x".join(map(str, row.shapes[name])) if name in row.shapes else "" for name in swept.tensors)
        table.writerow((*(_cell(row.configuration[name]) for name in swept.fields), row.reason, *numbers, *shapes))
    return text.getvalue().encode()


def _cell(value: Json) -> Json:
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)


def _json(swept: Swept) -> bytes:
    return json.dumps(document(swept), ensure_ascii=False, indent=1).encode() + b"\n"


def _parquet(swept: Swept) -> bytes:
    arrow, parquet = _pyarrow()
    columns: dict[str, Any] = {}
    for name in swept.fields:
        values = [row.configuration[name] for row in swept.rows]
        plain = len({type(value) for value in values}) == 1 and isinstance(values[0], str | int | float | bool)
        columns[name] = arrow.array(values if plain else [json.dumps(value) for value in values])
    columns["reason"] = arrow.array([row.reason for row in swept.rows], arrow.string())
    columns["how"] = arrow.array([row.how for row in swept.rows], arrow.string())
    for name in NUMBERS:
        numbers = [None if row.reason else getattr(row, name) for row in swept.rows]
        columns[name] = arrow.array(numbers, arrow.int64())
    for name in swept.tensors:
        shapes = [list(row.shapes[name]) if name in row.shapes else None for row in swept.rows]
        columns[f"shape {name}"] = arrow.array(shapes, arrow.list_(arrow.int64()))
    told = {
        "confirmed": str(swept.confirmed),
        "mismatches": json.dumps(swept.mismatches),
        "notes": json.dumps(swept.notes),
    }
    sink = io.BytesIO()
    parquet.write_table(arrow.table(columns).replace_schema_metadata(told), sink)
    return sink.getvalue()


_WRITERS: Mapping[str, Callable[[Any], bytes]] = {".csv": _csv, ".json": _json, ".parquet": _parquet}


def _pyarrow() -> Any:
    require("tables")
    import pyarrow
    import pyarrow.parquet

    return pyarrow, pyarrow.parquet
