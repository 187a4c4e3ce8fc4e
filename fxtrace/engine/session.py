"""The one line: `fxtrace.trace(...)` and `fxtrace.load(...)`, over traces that live in this process's memory."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from fxtrace.api import Trace
from fxtrace.errors import OptionInvalid
from fxtrace.models import Registry
from fxtrace.service.engine import Engine
from fxtrace.store.memory import MemoryStore
from fxtrace.store.naming import is_name
from fxtrace.store.place import is_store


@cache
def session() -> Engine:
    """The engine of this process: nothing that it traces is written anywhere, or outlives its `Trace`."""
    return Engine(MemoryStore(), Registry.installed())


def trace(model: Any, /, *args: Any, **kwargs: Any) -> Trace:
    """Traces a model: every tensor that it computes, with its shape, its role and the reason.

    Nothing is written to a store; `Trace.save` does that.

    Args:
        model: a module, or any callable of tensors, which is called with the arguments that follow. Or the name of a
            model that fxtrace builds itself: `"reference"`, `"hf:llama"`, a model file `"mine.py"`, an import path
            `"package.module:factory"`; then the keywords are fields of its configuration.
        args: the module's positional arguments: tensors, nests of tensors, None, flags.
        kwargs: the module's keyword arguments, or the model's configuration. `options` is taken for fxtrace's own
            where it is a `TraceOptions`.

    Returns:
        The trace, which holds every tensor as long as it is kept.

    Raises:
        ModelNotFound, ModelInvalid: there is no such model, or its file does not keep the contract.
        ConfigurationError: a field is unknown or its value does not fit.
        InputError: the arguments do not fit the module.
        OptionInvalid: an option does not fit.
        CaptureFailed: the module raised, or cannot be captured.
        DependencyMissing: PyTorch is not installed, or transformers for an `hf:` model.

    Example:
        >>> t = fxtrace.trace(torch.nn.Linear(8, 2), torch.ones(3, 8))
        >>> t.outputs["linear"].shape
        torch.Size([3, 2])
        >>> fxtrace.trace("reference", d_model=64)["decoder.0.cross_attention.weights"].shape
        torch.Size([1, 4, 5, 6])
    """
    return session().trace(model, *args, **kwargs)


def load(place: str | Path = "latest", trace: str = "latest") -> Trace:
    """Loads a trace that was saved.

    Args:
        place: a file that `Trace.save` wrote (`.safetensors`); or a store's folder or URL; or, for the default store,
            a trace's id, the beginning of one, or `latest`.
        trace: which trace of a store: its id, the beginning of one, or `latest`.

    Raises:
        OptionInvalid: there is no such file or store.
        TraceNotFound, NameInvalid: there is no such trace, or several ids begin so.
        StoreDamaged: it is not as it was written.

    Example:
        >>> fxtrace.load("model.safetensors")
        >>> fxtrace.load("runs/", "1f2e")
        >>> fxtrace.load("latest")
    """
    path, text = Path(place), str(place)
    if path.suffix == ".safetensors":
        from fxtrace.store.single import read_trace

        return session().adopt(read_trace(path))
    if not path.exists() and is_name(text):
        return Engine.open().load(text)
    if "://" not in text and not is_store(path):
        what = (
            "a folder without a store" if path.is_dir() else "a file of another kind" if path.exists() else "not there"
        )
        raise OptionInvalid(
            "expected a trace's file (.safetensors), a store's folder or URL, or a trace's id; "
            f"got '{text}', which is {what}",
            field="place",
            place=text,
        )
    return Engine.open(place).load(trace)
