"""`python -m fxtrace` is the command `fxtrace`."""

from fxtrace.cli import main

main()
