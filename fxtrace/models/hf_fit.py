"""What a Hugging Face architecture runs with: how much of its configuration is made small, and how inputs are laid out.

Neither is written down anywhere but in the code of its `forward`, so both are found by trying.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from fxtrace.models.hf_examples import Layout, Sizes
from fxtrace.models.hf_inputs import Shapes, example_inputs, layouts, missing_inputs
from fxtrace.models.shrink import SHRINKS, Shrink, arguments

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_LARGEST, _LARGEST_AT_ALL = 50_000_000, 500_000_000
"""Parameters of the largest model that is tried where widths are the class's own, and of any."""

_LARGEST_INPUT = 400_000
"""Elements of the largest input that is tried."""


Build = Callable[["type[PreTrainedModel]", "PreTrainedConfig"], "PreTrainedModel"]
"""Makes a model with random weights."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What an architecture runs with; `problem` says why nothing was found, and is empty where something was."""

    shrink: Shrink
    layout: Layout
    problem: str = ""


@cache
def fit(kind: type[PreTrainedConfig], model: type[PreTrainedModel], build: Build) -> Fit:
    """The first of the small configurations and layouts with which a model runs.

    All media are tried before words alone. Where nothing runs, the fit is the first of both, with what it said.

    Raises:
        ImportError: the architecture needs a package that is not installed.
    """
    problem = ""
    tried: set[tuple[Shrink, Shapes]] = set()
    for companions in (True, False):
        for shrink in SHRINKS:
            try:
                with torch.random.fork_rng(devices=[]):
                    config = kind(**arguments(kind, {}, shrink))
                    ways = layouts(model, config, Sizes(), companions=companions)
                    if missing := missing_inputs(model, [name for name, _ in next(iter(ways))]):
                        return Fit(shrink, Layout(), f"no example is known for {', '.join(missing)}")
                    ways = {shapes: way for shapes, way in ways.items() if (shrink, shapes) not in tried}
                    tried.update((shrink, shapes) for shapes in ways)
                    ways = {shapes: way for shapes, way in ways.items() if _elements(shapes) <= _LARGEST_INPUT}
                    if not ways or _is_too_large(model, config, shrink, build):
                        continue
                    module = build(model, config)
                    for layout in ways.values():
                        said = _tried(module, config, layout)
                        if not said:
                            return Fit(shrink, layout)
                        problem = problem or said
            except ImportError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a family's code says of these sizes
                problem = problem or _said(error)
    return Fit(SHRINKS[0], Layout(), problem or "even made small it is too large to be tried")


def _elements(shapes: Shapes) -> int:
    return max((math.prod(shape) for _, shape in shapes), default=0)


def _tried(module: PreTrainedModel, config: PreTrainedConfig, layout: Layout) -> str:
    """What a model says to inputs laid out so; empty where it runs."""
    try:
        with torch.no_grad():
            module(**example_inputs(lambda: module, type(module), config, Sizes(), layout))
    except ImportError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever its forward says
        return _said(error)
    return ""


def _said(error: Exception) -> str:
    lines: Iterator[str] = (line.strip() for line in str(error).splitlines())
    return f"{type(error).__name__}: {next(filter(None, lines), '')}"


def _is_too_large(model: type[PreTrainedModel], config: PreTrainedConfig, shrink: Shrink, build: Build) -> bool:
    try:
        with torch.device("meta"):
            empty = build(model, config)
    except Exception:  # noqa: BLE001 - its code reads numbers while it builds
        return False
    parameters: int = sum(parameter.numel() for parameter in empty.parameters())
    return parameters > (_LARGEST_AT_ALL if shrink.widths else _LARGEST)
