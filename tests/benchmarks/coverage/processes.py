"""Each case in a process of its own, with limits on time and memory.

A new interpreter and not a forked one, though it has to import everything anew: TorchLens refuses forked ones.
"""

from __future__ import annotations

import pickle
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import torch

from tests.benchmarks.coverage.row import Row, attempt

SECONDS = 240  # of computing
PATIENCE = 1200  # by the clock, on a busy machine
MEMORY = 12 << 30
ROOT = Path(__file__).parents[3]


def run(case: str, attentions: tuple[str, ...]) -> list[Row]:
    """A case's rows, one for each attention, measured in a new process; or what stopped it."""
    command = [sys.executable, "-m", __name__, case, *attentions]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, cwd=ROOT, check=False)
    except subprocess.TimeoutExpired:
        return [Row(case, attention, error=f"took more than {PATIENCE} s") for attention in attentions]
    if done.returncode:
        error = f"ended with {done.returncode}: {done.stderr.decode().strip()[-200:]}"
        return [Row(case, attention, error=error) for attention in attentions]
    rows: list[Row] = pickle.loads(done.stdout)
    return rows


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    result, sys.stdout = sys.stdout.buffer, sys.stderr  # what the tools print is not the row
    result.write(pickle.dumps([attempt(sys.argv[1], attention) for attention in sys.argv[2:]]))
