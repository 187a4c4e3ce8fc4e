"""What a Hugging Face architecture runs with: how much of its configuration is made small, and how inputs are laid out.

Neither is written down anywhere but in the code of its `forward`, so both are found by trying.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from fxtrace.extras import needed_for
from fxtrace.models.hf_examples import Layout, Sizes
from fxtrace.models.hf_inputs import MEDIA, Shapes, example_inputs, layouts, missing_inputs, repaired, shapes
from fxtrace.models.shrink import SHRINKS, Shrink, arguments

with needed_for("models named hf:...", "hf"):
    import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_LARGEST, _LARGEST_AT_ALL = 100_000_000, 500_000_000
"""Parameters of the largest model that is tried where widths are the class's own, and of any."""

_LARGEST_INPUT = 2_500_000
"""Elements of the largest input that is tried."""


GIVEN = (Layout(), *(Layout(without=(each,)) for each in MEDIA), Layout(companions=False))
"""What is given: everything that a rule knows, all but one medium, or words alone."""

BROKEN = "transformers' own default configuration does not build"

OBJECTS = "it takes objects of a class of its own, not tensors alone"

_LINES = 3
"""How many lines of code are looked at for the names of what a model misses."""

_REPAIRED, _STEPS, _CHANGES = 2, 3, 80
"""How many of the layouts that got furthest are changed, in how many steps, and how many changes are tried in all."""

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

    All media are tried before all but one, and these before words alone. Where nothing runs, the fit is the first of
    both, with what was said of the try that got furthest.

    Raises:
        ImportError: the architecture needs a package that is not installed.
    """
    trials = _Trials(kind, model, build)
    for given in GIVEN:
        for shrink in SHRINKS:
            try:
                with torch.random.fork_rng(devices=[]):
                    layout = trials.layout(shrink, given)
            except ImportError:
                raise
            except _NoExample as error:  # whatever its sizes
                return Fit(shrink, Layout(), str(error))
            except Exception as error:  # noqa: BLE001 - whatever a family's code says of these sizes
                trials.failed(_said(error), -1)
            else:
                if layout is not None:
                    return Fit(shrink, layout)
    trials.try_default()
    return Fit(SHRINKS[0], Layout(), trials.problem or "even made small it is too large to be tried")


class _NoExample(Exception):
    """A call needs an input that no rule makes."""


class _Trials:
    """Tries inputs on a model, and keeps what was said of the try that got furthest.

    How far a call got is the number of modules that returned.
    """

    def __init__(self, kind: type[PreTrainedConfig], model: type[PreTrainedModel], build: Build) -> None:
        self._kind, self._model, self._build = kind, model, build
        self._unbuilt: set[Shrink] = set()
        self._tried: set[tuple[Shrink, Shapes]] = set()
        self._furthest, self._changes = -2, 0
        self.problem = ""

    def failed(self, said: str, got: int) -> None:
        """Keeps what was said, if no other try got as far."""
        if got > self._furthest:
            self.problem, self._furthest = said, got

    def layout(self, shrink: Shrink, given: Layout) -> Layout | None:
        """The first layout with which a model of this size runs; None where there is none, or it is too large."""
        config = self._kind(**arguments(self._kind, {}, shrink))
        ways = layouts(self._model, config, Sizes(), given)
        if missing := missing_inputs(self._model, [name for name, _ in next(iter(ways))]):
            raise _NoExample(_missing(self._model, missing))
        ways = {inputs: way for inputs, way in ways.items() if self._is_new(shrink, inputs)}
        if not ways or (module := self._made(shrink, config)) is None:
            return None
        returned = _Returned(module)
        failures: list[tuple[int, str, Layout]] = []
        for way in ways.values():
            said, got = self._run(module, config, way, returned)
            if not said:
                return way
            failures.append((got, said, way))
        for got, said, way in sorted(failures, key=lambda each: -each[0])[:_REPAIRED]:
            found = self._repaired(module, config, way, said, got, returned, _STEPS)
            if found is not None:
                return found
        return None

    def _repaired(
        self,
        module: PreTrainedModel,
        config: PreTrainedConfig,
        layout: Layout,
        problem: str,
        reached: int,
        returned: _Returned,
        steps: int,
    ) -> Layout | None:
        """A layout with which the model runs, so many changes from one with which it does not; None if there is none.

        A change is built upon where the model gets as far with it, and says another thing.
        """
        inputs = shapes(self._model, config, Sizes(), layout)
        for other in repaired(self._model, layout, inputs, problem):
            self._changes += 1
            if self._changes > _CHANGES:
                return None
            if _elements(shapes(self._model, config, Sizes(), other)) > _LARGEST_INPUT:
                continue
            said, got = self._run(module, config, other, returned)
            if not said:
                return other
            if steps > 1 and got >= reached and said != problem:
                found = self._repaired(module, config, other, said, got, returned, steps - 1)
                if found is not None:
                    return found
        return None

    def _made(self, shrink: Shrink, config: PreTrainedConfig) -> PreTrainedModel | None:
        """The model of this size; None where it is too large, or was found not to build."""
        if shrink in self._unbuilt:
            return None
        self._unbuilt.add(shrink)
        if self._is_too_large(config, shrink):
            return None
        module = self._build(self._model, config)
        self._unbuilt.discard(shrink)
        return module

    def try_default(self) -> None:
        """Builds the class's own configuration: it may want a package, which the small ones do without, or be broken.

        Raises:
            ImportError: there is one, and it is not installed.
        """
        try:
            with torch.device("meta"):
                self._build(self._model, self._kind())
        except ImportError:
            raise
        except (RuntimeError, NotImplementedError):  # its code reads numbers while it builds
            pass
        except Exception as error:  # noqa: BLE001 - whatever it says of its own configuration
            self.problem = f"{BROKEN}: {_said(error)}"

    def _is_new(self, shrink: Shrink, inputs: Shapes) -> bool:
        if (shrink, inputs) in self._tried or _elements(inputs) > _LARGEST_INPUT:
            return False
        self._tried.add((shrink, inputs))
        return True

    def _run(
        self, module: PreTrainedModel, config: PreTrainedConfig, layout: Layout, returned: _Returned
    ) -> tuple[str, int]:
        """What a model says to inputs laid out so, empty where it runs, and how far it got."""
        returned.count = 0
        try:
            with torch.no_grad():
                module(**example_inputs(lambda: [module], type(module), config, Sizes(), layout))
        except ImportError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever its forward says
            self.failed(_said(error), returned.count)
            lines = (frame.line or "" for frame in traceback.extract_tb(error.__traceback__)[-_LINES:])
            return "\n".join((_said(error), *lines)), returned.count
        return "", returned.count

    def _is_too_large(self, config: PreTrainedConfig, shrink: Shrink) -> bool:
        try:
            with torch.device("meta"):
                empty = self._build(self._model, config)
        except (RuntimeError, NotImplementedError):  # its code reads numbers while it builds
            return False
        parameters: int = sum(parameter.numel() for parameter in empty.parameters())
        return parameters > (_LARGEST_AT_ALL if shrink.widths else _LARGEST)


class _Returned:
    """Counts the modules of a model that return."""

    def __init__(self, module: PreTrainedModel) -> None:
        self.count = 0
        for each in module.modules():
            each.register_forward_hook(self._one_more)

    def _one_more(self, *_: object) -> None:
        self.count += 1


def _missing(model: type[PreTrainedModel], names: tuple[str, ...]) -> str:
    """That there is no example for inputs of these names, or that these are no tensors at all."""
    parameters = inspect.signature(model.forward).parameters
    kinds = {name: parameters[name].annotation for name in names}
    objects = [
        f"{name} ({kind.__name__})"
        for name, kind in kinds.items()
        if inspect.isclass(kind) and kind.__module__.startswith("transformers.")
    ]
    if objects:
        return f"{OBJECTS}: {', '.join(objects)}"
    return f"no example is known for {', '.join(names)}"


def _elements(inputs: Shapes) -> int:
    return max((math.prod(shape) for _, shape in inputs), default=0)


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    headed = len(lines) > 1 and lines[0].endswith(":")  # what follows says it
    return f"{type(error).__name__}: {lines[headed] if lines else ''}"
