"""Prints the README's table of measurements: `make bench`."""

from tests.benchmarks.capture import rows as capture
from tests.benchmarks.service import rows as service

print("| what | ratio | aim | medians |")
print("| --- | --- | --- | --- |")
for rows in (capture, service):
    for row in rows():
        print(row.markdown(), flush=True)
