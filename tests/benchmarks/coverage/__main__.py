"""Measures every model, each in a process of its own, and writes the tables: `make coverage`.

python -m tests.benchmarks.coverage                      everything, with the other tools; writes the README's part
                                                         and table.md
python -m tests.benchmarks.coverage hf:bert zoo:unet     these, printed
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.benchmarks.coverage import page
from tests.benchmarks.coverage.cases import cases
from tests.benchmarks.coverage.processes import ROOT, run

AT_ONCE = 2  # times are the processor's, so that one does not count in the other's
TABLE = Path(__file__).with_name("table.md")
MARKS = ("<!-- coverage: written by `make coverage` -->\n", "<!-- end of coverage -->\n")


def write(rows: page.Rows) -> None:
    """Puts the whole table beside this file, and the totals in the README between their marks."""
    TABLE.write_text("\n".join(page.full(rows)) + "\n")
    readme = ROOT / "README.md"
    before, start, rest = readme.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (start and end):
        sys.exit(f"the README has no part between {MARKS[0].strip()} and {MARKS[1].strip()}")
    readme.write_text(before + start + "\n".join(page.totals(rows)) + "\n" + end + after)


def main(wanted: list[str]) -> None:
    """Measures the wanted cases, or all."""
    rows = []
    chosen = [each for each in cases() if not wanted or each[1] in wanted]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        measured = pool.map(lambda each: run(each[1], each[2]), chosen)
        for number, ((group, case, _), found) in enumerate(zip(chosen, measured, strict=True), 1):
            for row in sorted(found, key=lambda row: row.attention):
                result = row.error or row.skipped or "done"
                print(f"{number}/{len(chosen)} {case} {row.attention}: {result}", file=sys.stderr, flush=True)
                if not row.skipped:
                    rows.append((group, row))
    if wanted:
        print("\n".join(page.full(rows)))
    else:
        write(rows)
        print("\n".join(page.totals(rows)))


if __name__ == "__main__":
    main(sys.argv[1:])
