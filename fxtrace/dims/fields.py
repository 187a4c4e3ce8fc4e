"""The integers of a configuration: the named sizes that its fields are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from fxtrace.ir.trace import Json


def integers(fields: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, int]]:
    """(name, value) of each integer in a configuration; inside nests as `text_config.hidden_size`, `kernel[0]`."""
    for key, value in fields.items():
        yield from _integers(f"{prefix}{key}", value)


def _integers(name: str, value: Json) -> Iterator[tuple[str, int]]:
    match value:
        case bool():
            return
        case int() if value > 0:
            yield name, value
        case dict() if all(re.fullmatch(r"[A-Za-z_]\w*", key) for key in value):
            yield from integers(value, f"{name}.")
        case list() if len(value) <= 16:
            for index, each in enumerate(value):
                yield from _integers(f"{name}[{index}]", each)
        case _:
            return


def replaced(fields: Mapping[str, Json], sizes: Mapping[str, int]) -> dict[str, Json]:
    """The configuration with these integers put in their places (see `integers`)."""

    def put(name: str, value: Json) -> Json:
        match value:
            case bool():
                return value
            case int():
                return sizes.get(name, value)
            case dict():
                return {key: put(f"{name}.{key}", each) for key, each in value.items()}
            case list():
                return [put(f"{name}[{index}]", each) for index, each in enumerate(value)]
            case _:
                return value

    return {key: put(key, value) for key, value in fields.items()}
