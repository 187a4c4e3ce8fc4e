"""Runs in an environment: command lines and lines of Python, one after another, in one process.

Reads a JSON list of [`command` or `python`, text] on stdin; prints a JSON list of [exit code, stdout, stderr]. One
process, because PyTorch takes seconds to import.
"""

import json
import os
import shlex
import sys
import traceback


def command(text: str) -> list[object]:
    """What a command line gives."""
    from typer.testing import CliRunner

    from fxtrace.cli import app

    result = CliRunner().invoke(app, shlex.split(text))
    said = result.stderr
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        said += "".join(traceback.format_exception(result.exception))
    return [result.exit_code, result.stdout, said]


def python(text: str) -> list[object]:
    """What lines of Python give: of fxtrace's own errors only the last line, as it is all that a user reads."""
    import fxtrace

    try:
        exec(text, {"fxtrace": fxtrace})
    except fxtrace.DependencyMissing as error:
        return [1, "", str(error)]
    except (Exception, SystemExit):  # noqa: BLE001
        return [1, "", traceback.format_exc()]
    return [0, "", ""]


def main() -> None:
    """Runs all."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed meanwhile is no answer
    uses = json.load(sys.stdin)
    json.dump([(command if kind == "command" else python)(text) for kind, text in uses], answers)
    answers.close()


if __name__ == "__main__":
    main()
