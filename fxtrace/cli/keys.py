"""`fxtrace keys`: the keys that callers of a server show."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fxtrace.cli.common import Commands, Json

keys = typer.Typer(
    rich_markup_mode=None,
    name="keys",
    help="Make, list and revoke the keys of a server's callers.\n\nA running server takes notice at once.",
    cls=Commands,
    no_args_is_help=True,
)

KeyFileOption = Annotated[
    Path,
    typer.Option("--keys", metavar="FILE", envvar="FXTRACE_KEYS", help="The file of keys, as for `fxtrace serve`."),
]


class ScopeName(StrEnum):
    """What a key allows."""

    read = "read"
    write = "write"


@keys.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is, or what for.")],
    scope: Annotated[ScopeName, typer.Option(help="`write` may also make and delete traces.")],
    file: KeyFileOption,
    as_json: Json = False,
) -> None:
    """Make a key, and print it. It is shown this once: the file has only a hash of it.

    Example: `fxtrace keys new alice --scope read --keys keys.json`
    """
    from fxtrace.cli.output import echo_json
    from fxtrace.cli.steps import next_step
    from fxtrace.service.keys import new_key

    key, text = new_key(file, name, scope.value)
    if as_json:
        echo_json({"id": key.id, "name": key.name, "scope": key.scope, "key": text})
    else:
        typer.echo(text)
        next_step("keys", "ls", "--keys", str(file))


@keys.command("ls")
def list_keys(file: KeyFileOption, as_json: Json = False) -> None:
    """List the keys: id, scope, when they were made, and whose they are.

    Example: `fxtrace keys ls --keys keys.json`
    """
    from fxtrace.cli.layout import Column, show_on_stdout, table
    from fxtrace.cli.output import echo_json
    from fxtrace.cli.steps import next_step
    from fxtrace.service.keys import read_keys

    listed = read_keys(file)
    if as_json:
        echo_json([{"id": k.id, "name": k.name, "scope": k.scope, "created": k.created} for k in listed])
    elif not listed:
        typer.echo(f"there are no keys in {file}")
        next_step("keys", "new", "NAME", "--scope", "read", "--keys", str(file))
    else:
        grid = table(f"Keys in {file}", "id", "scope", Column("created", rank=1), Column("name", prose=True))
        for key in listed:
            grid.add(key.id, key.scope, f"{key.created:%Y-%m-%d %H:%M}", key.name)
        show_on_stdout(grid)
        next_step("serve", "--keys", str(file))


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `fxtrace keys ls` has it.")],
    file: KeyFileOption,
    as_json: Json = False,
) -> None:
    """Revoke a key: no further call is let in with it.

    Example: `fxtrace keys revoke 7f3a --keys keys.json`
    """
    from fxtrace.cli.output import echo_json
    from fxtrace.cli.steps import next_step
    from fxtrace.service.keys import revoke_key

    key = revoke_key(file, key_id)
    if as_json:
        echo_json({"id": key.id, "name": key.name})
    else:
        typer.echo(f"revoked {key.id}, the key of {key.name}")
        next_step("keys", "ls", "--keys", str(file))
