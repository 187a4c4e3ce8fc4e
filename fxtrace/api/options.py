"""How a model is to be traced, apart from the model and its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from fxtrace.errors import OptionInvalid
from fxtrace.ir.text import Readable, assigned, facts
from fxtrace.ir.trace import SYMBOLIC_TIMEOUT, Progress, Rung, TensorData, TraceRequest


@dataclass(frozen=True, slots=True, repr=False)
class TraceOptions(Readable):
    """How a model is to be traced; the fields are those of `TraceRequest`, which says what they mean.

    Given as `options=` to `fxtrace.trace`, `Engine.trace` and `Client.trace`. It is a type of its own, so that a
    model's own keyword named `options` stays the model's.

    Attributes:
        progress: called as the work goes on; an exception that it raises stops the work.

    Example:
        >>> fxtrace.trace(model, x, options=fxtrace.TraceOptions(unfused=True, seed=3))
    """

    inputs: Mapping[str, TensorData] = field(default_factory=dict)
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    rung: Rung | Literal[""] = ""
    values: bool = True
    training: bool = False
    unfused: bool = False
    seed: int = 0
    state: str = ""
    weightless: bool = False
    symbolic: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    symbolic_timeout: float = SYMBOLIC_TIMEOUT
    progress: Callable[[Progress], None] | None = None

    def _lines(self) -> Iterator[str]:
        defaults = TraceOptions()
        changed = {
            each.name: value
            for each in fields(self)
            if each.name != "progress" and (value := getattr(self, each.name)) != getattr(defaults, each.name)
        }
        yield assigned(changed) or "as fxtrace chooses"
        yield from facts(("progress", "reported" if self.progress else ""))

    def request(self, model: str, configuration: Mapping[str, Any]) -> TraceRequest:
        """The request that traces a model, by its name, under a configuration."""
        given = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "progress"}
        return TraceRequest(model, configuration, **given)

    def for_module(self) -> TraceOptions:
        """These options, where they fit a module that is there already.

        Raises:
            OptionInvalid: an option that only a model's name can have is set.
        """
        for name in ("inputs", "input_shapes", "state", "weightless"):
            if getattr(self, name):
                raise OptionInvalid(
                    f"options.{name}: expected the name of a model, such as 'reference' or 'mine.py', for this option; "
                    "got a module. Give the module its inputs and its weights itself",
                    field=f"options.{name}",
                )
        return self


def split_options(keywords: dict[str, Any]) -> TraceOptions:
    """Takes `options` out of keywords where it is a `TraceOptions`; anything else of that name is the model's."""
    return keywords.pop("options") if isinstance(keywords.get("options"), TraceOptions) else TraceOptions()
