"""Measures every model, each in a process of its own, and writes the tables: `make coverage`.

python -m tests.benchmarks.coverage                      everything, with the other tools; writes the README's part
                                                         and table.md
python -m tests.benchmarks.coverage hf:bert zoo:unet     these, printed
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.benchmarks.coverage import page
from tests.benchmarks.coverage.cases import cases
from tests.benchmarks.coverage.row import Row, read

SECONDS = 180
MEMORY = 12 << 30
ROOT = Path(__file__).parents[3]
TABLE = Path(__file__).with_name("table.md")
MARKS = ("<!-- coverage: written by `make coverage` -->\n", "<!-- end of coverage -->\n")


def run(case: str, attention: str) -> Row:
    """A case's row, measured in a new process; or what stopped it."""
    # `ulimit` in the child's own shell: code run between fork and exec can hang.
    shell = f'ulimit -v {MEMORY >> 10}; exec "$@"'
    module = "tests.benchmarks.coverage.row"
    command = ["sh", "-c", shell, "sh", sys.executable, "-m", module, case, attention]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=ROOT, check=False)
    except subprocess.TimeoutExpired:
        return Row(case, attention, error=f"took more than {SECONDS} s")
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return Row(case, attention, error=f"ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return read(lines[-1])


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
    for number, (group, case, attention) in enumerate(chosen, 1):
        rows.append((group, run(case, attention)))
        print(f"{number}/{len(chosen)} {case} {attention}: {rows[-1][1].error or 'done'}", file=sys.stderr, flush=True)
    if wanted:
        print("\n".join(page.full(rows)))
    else:
        write(rows)
        print("\n".join(page.totals(rows)))


if __name__ == "__main__":
    main(sys.argv[1:])
