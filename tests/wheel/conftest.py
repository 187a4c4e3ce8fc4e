from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.wheel.environments import Environment, build, make_environment


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist and the wheel that is built from it."""
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def environment_with(
    built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Environment]:
    """Makes the environment with an extra, once."""

    @cache
    def make(extra: str) -> Environment:
        return make_environment(tmp_path_factory.mktemp(f"with-{extra or 'none'}"), built[1], extra)

    return make
