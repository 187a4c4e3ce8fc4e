"""Makes modules of what is called like one: functions, methods, partials; and takes off what is wrapped around one."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from torch import nn

from fxtrace.errors import OptionInvalid

_COMPILED = "torch.compile was taken off: the model itself is what was run, not its compiled code."


class CallableModule(nn.Module):
    """A callable as a module: it has the callable's parameters, and the modules that the callable uses as submodules.

    Args:
        function: what is called.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.__dict__["_function"] = function  # past nn.Module, which would register a module
        for name, module in _modules_of(function):
            if name not in self._modules and not any(module is each for each in self._modules.values()):
                self.add_module(name, module)
        self.__dict__["forward"] = _forward_of(function)


def as_module(called: Any) -> tuple[nn.Module, tuple[str, ...]]:
    """Returns the module to capture for what a user calls, and notes that say what was taken off.

    A function, a method or a partial becomes a module that calls it. Of a compiled module, and of one that is wrapped
    for several devices, it is the module inside.

    Raises:
        OptionInvalid: it cannot be called.
    """
    if isinstance(called, nn.Module):
        return _unwrapped(called)
    if not callable(called) or isinstance(called, type):
        got = (
            f"the class {called.__name__}: make one of it first" if isinstance(called, type) else type(called).__name__
        )
        raise OptionInvalid(f"model: expected a module, a callable or a model's name; got {got}", field="model")
    original = _before_compiling(called)
    if original is not called:
        module, notes = as_module(original)
        return module, tuple(dict.fromkeys((*notes, _COMPILED)))
    module = CallableModule(called)
    own = type(module)
    # Named as the callable is, since names are what people see.
    name = getattr(called, "__name__", type(called).__name__)
    module.__class__ = type(str(name) if str(name).isidentifier() else "function", (own,), {})
    return module, ()


def _unwrapped(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    notes: list[str] = []
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            notes.append(f"{type(module).__name__} was taken off: the module inside is what was run.")
            module = module.module
        elif _is_compiled(module):
            notes.append(_COMPILED)
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module, tuple(dict.fromkeys(notes))


def _before_compiling(called: Any) -> Any:
    """What torch.compile made a function of: the module where that was its `forward`; itself where it did not."""
    if not hasattr(called, "_torchdynamo_orig_callable"):
        return called
    original = called
    while inspect.isfunction(original) and original.__globals__.get("__name__", "").startswith("torch._dynamo."):
        original = inspect.getclosurevars(original).nonlocals["fn"]  # so both of its wrappers call it
    owner = getattr(original, "__self__", None)
    is_forward = isinstance(owner, nn.Module) and original.__name__ in ("forward", "__call__", "_call_impl")
    return owner if is_forward else original


def _is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile made it; nothing is imported for that: where it did, its code is there."""
    made_by = sys.modules.get("torch._dynamo.eval_frame")
    return made_by is not None and isinstance(module, made_by.OptimizedModule)


def _forward_of(function: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    with suppress(ValueError, TypeError):  # where it is written in C, it takes what it is given
        forward.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return forward


def _modules_of(function: Any, seen: tuple[object, ...] = ()) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a callable uses, by the names it knows them under: bound, partial, closed over, global."""
    if any(function is each for each in seen):
        return
    seen = (*seen, function)
    if isinstance(function, functools.partial):
        named = [*((f"arg_{i}", value) for i, value in enumerate(function.args)), *function.keywords.items()]
        yield from _among(named, seen)
        yield from _modules_of(function.func, seen)
        return
    if isinstance(owner := getattr(function, "__self__", None), nn.Module):
        yield type(owner).__name__.lower(), owner
    elif owner is not None and not inspect.ismodule(owner):
        yield from _among(list(getattr(owner, "__dict__", {}).items()), seen)
    inner = inspect.unwrap(function) if callable(function) else function
    code = getattr(inner, "__code__", None)
    if code is None:
        if not inspect.isroutine(function):
            yield from _among(list(getattr(function, "__dict__", {}).items()), seen)
        return
    closed = [(name, content(cell)) for name, cell in zip(code.co_freevars, inner.__closure__ or (), strict=True)]
    known = [(name, inner.__globals__[name]) for name in code.co_names if name in inner.__globals__]
    yield from _among([*closed, *known], seen)


def _among(named: list[tuple[str, Any]], seen: tuple[object, ...]) -> Iterator[tuple[str, nn.Module]]:
    for name, value in named:
        if isinstance(value, nn.Module):
            yield name, value
        elif isinstance(value, list | tuple):
            yield from ((f"{name}_{i}", each) for i, each in enumerate(value) if isinstance(each, nn.Module))
        elif isinstance(value, dict):
            yield from ((f"{name}_{key}", each) for key, each in value.items() if isinstance(each, nn.Module))
        elif inspect.isfunction(value) or inspect.ismethod(value) or isinstance(value, functools.partial):
            yield from _modules_of(value, seen)


def content(cell: Any) -> Any:
    """What a cell of a closure holds; None where it is not filled yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
