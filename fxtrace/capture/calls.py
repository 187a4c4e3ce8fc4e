"""How a module is called: which inputs go by position, and which by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from fxtrace.errors import InputError, unknown

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_ONLY_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def bind(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Names the arguments of a call `module(*args, **kwargs)`.

    Returns:
        The inputs by name, in the order of the call; and how many of them, from the first on, must go by position.
        Those of a parameter `*xs` are named `xs_0`, `xs_1` and so on.

    Raises:
        InputError: `forward` does not take such arguments.

    Example:
        >>> class Sum(nn.Module):
        ...     def forward(self, *xs, scale=1.0): ...
        >>> bind(Sum(), (1, 2), {"scale": 3.0})
        ({'xs_0': 1, 'xs_1': 2, 'scale': 3.0}, 2)
    """
    parameters = list(inspect.signature(module.forward).parameters.values())
    taken = [p for p in parameters if p.kind in _BY_POSITION]
    rest = next((p for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL), None)
    if len(args) > len(taken) and rest is None:
        raise InputError(
            f"{type(module).__name__}.forward takes {len(taken)} inputs by position "
            f"({', '.join(p.name for p in taken) or 'none'}); got {len(args)}",
            field="inputs",
        )
    beyond = range(max(0, len(args) - len(taken)))
    used = [*taken[: len(args)], *([rest] * len(beyond) if rest else ())]
    names = [*(p.name for p in taken[: len(args)]), *(f"{rest.name}_{i}" for i in beyond if rest)]
    if twice := next((name for name in names if name in kwargs), ""):
        raise InputError(f"input '{twice}' is given twice: by position and by name", field=f"inputs.{twice}")
    by_position = len(args) if any(p.kind in _ONLY_BY_POSITION for p in used) else 0
    return {**dict(zip(names, args, strict=True)), **kwargs}, by_position


def check(module: nn.Module, inputs: Mapping[str, Any], by_position: int) -> None:
    """Checks that `forward` has parameters of these names, and that none without a default is missing.

    Raises:
        InputError
    """
    parameters = inspect.signature(module.forward).parameters
    named = {name: p for name, p in parameters.items() if p.kind not in _VARIADIC}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in list(inputs)[by_position:]:
        if takes_any and name not in named:
            continue
        if name not in named:
            message = f"{unknown('input', name, named)} These are the parameters of {type(module).__name__}.forward."
            raise InputError(message, field=f"inputs.{name}", input=name)
        if named[name].kind is inspect.Parameter.POSITIONAL_ONLY:
            raise InputError(
                f"input '{name}' goes by position only; got it by name", field=f"inputs.{name}", input=name
            )
    missing = [name for name, p in named.items() if p.default is p.empty and name not in inputs]
    if missing:
        raise InputError(
            f"{type(module).__name__}.forward needs {', '.join(missing)}; got {', '.join(inputs) or 'no inputs'}",
            field="inputs",
            missing=", ".join(missing),
        )


def invoke(module: nn.Module, inputs: Mapping[str, Any], by_position: int) -> Any:
    """Calls the module with inputs as `bind` named them."""
    names = list(inputs)
    return module(
        *(inputs[name] for name in names[:by_position]), **{name: inputs[name] for name in names[by_position:]}
    )
