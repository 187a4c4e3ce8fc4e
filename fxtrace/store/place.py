"""Where a store is: a folder, or the URL of an index with the place of the files after a `#`.

~/traces                                                a folder: index.sqlite3, and the files in tensors/
postgresql+psycopg://me@db/fxtrace#s3://bucket/prefix   any number of servers
postgresql+psycopg://me@db/fxtrace#/srv/traces
sqlite:////srv/fxtrace/index.sqlite3#s3://bucket/prefix
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from fxtrace.errors import OptionInvalid

if TYPE_CHECKING:
    from sqlalchemy import URL

PLACE_VARIABLE = "FXTRACE_STORE"

INDEX_FILE, TENSORS_FOLDER = "index.sqlite3", "tensors"
"""In a store that is a folder."""

_INDEXES = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgresql+psycopg": "postgresql+psycopg"}


@dataclass(frozen=True, slots=True)
class Place:
    """The database of the index, and the folder or URL of the files."""

    index: URL
    files: str

    def __str__(self) -> str:
        """As it may be shown: without a password."""
        index = self.index.difference_update_query([name for name in self.index.query if "password" in name])
        return f"{index.render_as_string(hide_password=True)}#{self.files}"


def default_place() -> str:
    """The place named by the environment variable FXTRACE_STORE, else the user's data folder."""
    return os.environ.get(PLACE_VARIABLE) or str(platformdirs.user_data_path("fxtrace"))


def is_store(folder: Path) -> bool:
    """Whether there is a store in a folder."""
    return (folder / INDEX_FILE).is_file()


def folder_of(text: str) -> Path | None:
    """The folder that a store's place is; None where it is an index and a place for the files."""
    return None if "://" in text else Path(text)


def parse_place(text: str) -> Place:
    """What a store's place means.

    Raises:
        OptionInvalid: it is neither a folder nor of the form INDEX#FILES.
    """
    from sqlalchemy import URL, exc, make_url

    if (folder := folder_of(text)) is not None:
        return Place(URL.create("sqlite", database=str(folder / INDEX_FILE)), str(folder / TENSORS_FOLDER))
    index, _, files = text.partition("#")
    try:
        url = make_url(index)
    except (exc.ArgumentError, ValueError):
        raise _invalid("an index that is no URL of a database") from None
    if not files:
        raise _invalid("no place of the files")
    if url.drivername not in _INDEXES:
        raise _invalid(f"an index of the kind '{url.drivername}'")
    return Place(url.set(drivername=_INDEXES[url.drivername]), files)


def _invalid(problem: str) -> OptionInvalid:  # the text is not shown: it may hold a password
    return OptionInvalid(
        "store: expected a folder, or an index and the place of the files as in "
        f"postgresql+psycopg://user@host/database#s3://bucket/prefix; got {problem}",
        field="store",
    )
