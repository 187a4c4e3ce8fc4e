"""`fxtrace lock` and `check`: what every tensor is made of, kept in a file that is reviewed like code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxtrace.cli.common import Json, check_writable, settings_of


def lock(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name, file, or import path.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The lockfile.")] = Path("shapes.lock"),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set a configuration field; JSON, or else text. Repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write what every tensor of a model is made of to a file.

    The dtypes of inputs, roles, outputs and parameters, and their sizes as formulas.
    """
    from fxtrace.cli.output import echo_json, progress_bar
    from fxtrace.lock import make_lock, write_lock

    check_writable(out)
    with progress_bar(hidden=as_json) as report:
        made = make_lock(model, settings_of(settings), report)
    write_lock(made, out)
    if as_json:
        echo_json({"file": str(out), "tensors": len(made.tensors)})
    else:
        typer.echo(f"wrote {out}: {len(made.tensors)} tensors, held on {1 + len(made.trials)} configurations")


def check(
    files: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", show_default="shapes.lock")] = None,
    as_json: Json = False,
) -> None:
    """Say what moved since lockfiles were written.

    The exit code is 1 if something moved.
    """
    from fxtrace.cli.output import echo_json, progress_bar
    from fxtrace.lock import check_lock

    checked = {}
    for file in files or [Path("shapes.lock")]:
        with progress_bar(hidden=as_json) as report:
            checked[str(file)] = check_lock(file, report)
    if as_json:
        echo_json(checked)
    else:
        for name, found in checked.items():
            typer.echo(f"{name}: {len(found.moves)} moved" if found else f"{name}: nothing moved")
            for line in str(found).splitlines() if found or found.fields else ():
                typer.echo(f"  {line}")
    if any(checked.values()):
        raise typer.Exit(1)
