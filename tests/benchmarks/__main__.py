"""Prints the README's table of measurements: `make bench`."""

from tests.benchmarks import capture, service

print("| what | ratio | aim | medians |")
print("| --- | --- | --- | --- |")
for benchmark in (capture, service):
    for row in benchmark.rows():
        print(row.markdown(), flush=True)
