"""Imports models: from entry points, from files, and by the path of a factory."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, get_type_hints
from weakref import WeakSet

from fxtrace.errors import FxtraceError, ModelInvalid, unknown
from fxtrace.extras import missing
from fxtrace.models.contract import CONTRACT, ContractModel
from fxtrace.models.references import split_import_path
from fxtrace.models.sources import sources_of_file

if TYPE_CHECKING:
    from torch import Tensor, nn

_neighbours: WeakSet[ModuleType] = WeakSet()
"""Modules that model files have imported from their own folders."""


def from_entry_point(point: EntryPoint) -> ContractModel:
    """The model that an installed package offers.

    Raises:
        ModelInvalid: its module cannot be imported, or does not keep the contract.
        DependencyMissing: PyTorch is not installed.
    """
    with _importing(f"model '{point.name}'"):
        module: ModuleType = point.load()
    return ContractModel(point.name, module)


def from_file(path: Path) -> ContractModel:
    """The model in a Python file, under the file's name without its ending.

    The file is run, each time anew, and so are the neighbours that it imports.

    Raises:
        ModelInvalid: there is no such file, it raises, or it does not keep the contract.
        DependencyMissing: PyTorch is not installed.
    """
    path = path.resolve()
    if not path.is_file():
        raise ModelInvalid(f"no model file at {path}", path=path)
    # A name of its own, so that a file called `torch.py` shadows nothing.
    name = (
        f"fxtrace_model_{re.sub(r'[^0-9a-zA-Z_]', '_', path.stem)}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    )
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        # Read first: where a file is changed meanwhile, the model is taken for the older one, and made again.
        sources = sources_of_file(path)
        with _importing(f"model file {path.name}"), _on_path(path.parent), _anew(sources.modules()):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return ContractModel(path.stem, module, digest=sources.digest)


def from_import_path(reference: str) -> ContractModel:
    """The model that `package.module:factory` names; the current folder is searched, too.

    A factory is a callable that returns (module, example inputs), the inputs as a dict by the names of `forward`'s
    parameters; its own parameters, each with a default, are the configuration's fields. What has the contract's three
    names is taken as it is.

    Raises:
        ModelInvalid: the reference is malformed, the module cannot be imported or lacks that name, or what it names is
            neither a factory nor keeps the contract.
        DependencyMissing: PyTorch is not installed.
    """
    path, name = split_import_path(reference)
    with _importing(f"model '{reference}'"), _on_path(Path.cwd()):
        module = importlib.import_module(path)
    try:
        found = getattr(module, name)
    except AttributeError:
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        message = unknown(f"factory in {path}", name, public)
        raise ModelInvalid(message, field="model", model=reference) from None
    if all(hasattr(found, name) for name in CONTRACT):
        return ContractModel(reference, module, found)
    if not callable(found):
        raise ModelInvalid(
            f"model '{reference}': expected a callable that returns (module, example inputs), or something with "
            f"{', '.join(CONTRACT)}; it is a {type(found).__name__}",
            field="model",
            model=reference,
        )
    return ContractModel(reference, module, _contract_of(reference, found))


def _contract_of(reference: str, factory: Callable[..., Any]) -> SimpleNamespace:
    """The contract of a factory: its parameters as a configuration."""
    try:
        parameters = inspect.signature(factory).parameters.values()
        hints = get_type_hints(factory, include_extras=True)
    except (ValueError, TypeError, NameError) as error:
        raise ModelInvalid(f"model '{reference}': its parameters cannot be read: {error}", model=reference) from error
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    for parameter in named:
        if parameter.default is parameter.empty or parameter.kind is parameter.POSITIONAL_ONLY:
            raise ModelInvalid(
                f"model '{reference}': its parameter '{parameter.name}' must have a default and a name, to be a field "
                "of the configuration",
                model=reference,
            )
    fields = [(p.name, hints.get(p.name, type(p.default)), dataclasses.field(default=p.default)) for p in named]
    config_class = dataclasses.make_dataclass("Config", fields)

    def call(config: Any) -> tuple[nn.Module, Mapping[str, Tensor]]:
        made = factory(**{p.name: getattr(config, p.name) for p in named})
        if not (isinstance(made, tuple) and len(made) == 2):
            raise ModelInvalid(
                f"model '{reference}': expected (module, example inputs) from it, came {type(made).__name__}",
                model=reference,
            )
        return made

    # One call makes both: the inputs wait on the configuration for whoever asks for them next.
    def build(config: Any) -> nn.Module:
        module, config.__dict__["_inputs"] = call(config)
        return module

    def example_inputs(config: Any) -> Mapping[str, Tensor]:
        kept: Mapping[str, Tensor] | None = config.__dict__.pop("_inputs", None)
        return call(config)[1] if kept is None else kept

    return SimpleNamespace(Config=config_class, build=build, example_inputs=example_inputs, __doc__=factory.__doc__)


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _anew(neighbours: Mapping[str, Path]) -> Iterator[None]:
    """Lets a model file import its neighbours anew, even where modules of their names were imported before.

    What the caller has imported itself stays as it is for the caller.
    """
    callers = {}
    for name, file in neighbours.items():
        there = sys.modules.get(name)
        if there is not None and (there in _neighbours or _file_of(there) == file):
            del sys.modules[name]
            if there not in _neighbours:
                callers[name] = there
    importlib.invalidate_caches()
    try:
        yield
    finally:
        loaded = {name: module for name in neighbours if (module := sys.modules.get(name)) is not None}
        _neighbours.update(module for name, module in loaded.items() if _file_of(module) == neighbours[name])
        sys.modules.update(callers)


def _file_of(module: ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file else None


@contextmanager
def _importing(what: str) -> Iterator[None]:
    """Reports what a model's import raises.

    Raises:
        DependencyMissing: PyTorch is not installed.
        ModelInvalid: in place of any other exception that is not an `FxtraceError`.
    """
    try:
        yield
    except FxtraceError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (line := missing(error, what)):
            raise line from error
        raise ModelInvalid(f"{what} cannot be imported: {type(error).__name__}: {error}") from error
