"""A sweep by formula, against propagating and against really running each configuration.

    python -m tests.benchmarks.sweep [COUNT]

COUNT configurations (10,000) of the reference and of a Llama are swept; 20 of each, drawn at random, are also
propagated on fake tensors and really built and run, in turn. Configurations per second of computing, in one thread;
prints the README's table.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections import defaultdict

import torch

from fxtrace.ir.trace import Progress
from fxtrace.models import Registry
from fxtrace.service.propagating import Propagator
from fxtrace.service.sweeping import Sweeping
from fxtrace.sweep import Grid, SweepRequest, parse_grid

SAMPLE = 20
GRIDS = {
    "reference": ("d_model=64..512:64", "n_heads=1,2,4,8", "d_ff=16..{}:16"),
    "hf:llama": ("hidden_size=32..256:32", "vocab_size=100..400:100", "intermediate_size=16..{}:16"),
}
ROWS = 32  # of each grid's first two fields


def grid_of(model: str, count: int) -> Grid:
    """A grid of about so many configurations."""
    return parse_grid(text.format(16 * max(1, round(count / ROWS))) for text in GRIDS[model])


def measure(name: str, count: int) -> str:
    """A row of the table."""
    model = Registry.installed().load(name)
    request = SweepRequest(name, grid_of(name, count), sample=SAMPLE)
    stages: dict[str, float] = defaultdict(float)
    stage, last = "resolve", time.process_time()

    def report(progress: Progress) -> None:
        nonlocal stage, last
        now = time.process_time()
        stages[stage] += now - last
        stage, last = progress.stage, now

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows, confirmed, mismatches = 0, 0, 0
    for batch in Sweeping(model, request, report).batches():
        rows += len(batch.rows)
        confirmed += batch.confirmed
        mismatches += len(batch.mismatches)
    report(Progress("end"))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert rows == request.grid.size

    propagated, ran = 0.0, 0.0
    propagator = Propagator(model, {})
    for index in random.Random(1).sample(range(rows), SAMPLE):
        chosen = request.grid[index]
        start = time.process_time()
        assert not isinstance(propagator.graph(chosen), str)
        middle = time.process_time()
        config = model.resolve(chosen)
        with torch.no_grad():
            model.build(config).eval()(**model.example_inputs(config))
        propagated += middle - start
        ran += time.process_time() - middle
    by_formula = rows / (stages["resolve"] + stages["sweep"])
    whole = rows / sum(stages.values())
    return (
        f"| {name}: {rows:,} | {by_formula:,.0f} | {whole:,.0f} | {SAMPLE / propagated:,.1f} | {SAMPLE / ran:,.1f} "
        f"| {by_formula * propagated / SAMPLE:,.0f} × | {by_formula * ran / SAMPLE:,.0f} × "
        f"| {stages['probe']:.1f} s + {stages['confirm']:.1f} s | {confirmed} of {confirmed + mismatches} "
        f"| {grown:.0f} MiB |"
    )


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    print(
        "| configurations | by formula | with finding and confirming | propagated | really run "
        "| by formula ÷ propagated | by formula ÷ run | finding + confirming | confirmed | memory |"
    )
    print("| --- " * 10 + "|")
    for name in GRIDS:
        print(measure(name, count), flush=True)


if __name__ == "__main__":
    main()
