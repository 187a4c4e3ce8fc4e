"""Models that can be traced, and the contract a model file keeps.

A model file is a Python file (or an installed module) with three names:

    Config                    a dataclass of plain fields, each with a default. `Annotated[int, "what it is"]` describes
                              a field. Integer fields are the named dimensions' source. `__post_init__` may raise
                              ValueError for values that do not fit.
    build(config)             the `torch.nn.Module`, parameters and all.
    example_inputs(config)    a dict from the names of `forward`'s parameters to example tensors.

That is all:

    from dataclasses import dataclass
    import torch

    @dataclass
    class Config:
        width: int = 8

    def build(config):
        return torch.nn.Linear(config.width, 2)

    def example_inputs(config):
        return {"input": torch.ones(3, config.width)}

An installed package offers its models through entry points in the group `fxtrace.models`, each naming such a module.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import pydantic

from fxtrace.errors import ConfigurationError, DependencyMissing, FxtraceError, ModelInvalid, ModelNotFound, unknown
from fxtrace.trace import ConfigField, Json, ModelInfo

if TYPE_CHECKING:
    from torch import Tensor, nn

GROUP = "fxtrace.models"
CONTRACT = ("Config", "build", "example_inputs")


class Model:
    """A model that keeps the contract.

    Args:
        name: what it is called in requests.
        module: the Python module with the contract's three names. `digest` is of its source: of the file, or of every
            Python file of the package.

    Raises:
        ModelInvalid: the module does not keep the contract; the message says where.
    """

    def __init__(self, name: str, module: ModuleType) -> None:
        self.name = name
        self._config = _config_class(name, module)
        self._build: Callable[[Any], nn.Module] = module.build
        self._example_inputs: Callable[[Any], Mapping[str, Tensor]] = module.example_inputs
        self._adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(self._config)
        self._summary = (inspect.getdoc(module) or inspect.getdoc(self._config) or "").strip().split("\n\n")[0]
        self.digest = _digest(module)

    def info(self) -> ModelInfo:
        """The model's name, a line about it, and its configuration field by field."""
        hints = get_type_hints(self._config, include_extras=True)
        defaults = self.fields(self.resolve({}))
        return ModelInfo(
            name=self.name,
            summary=" ".join(self._summary.split()),
            fields=tuple(
                ConfigField(
                    name=f.name,
                    type=_type_name(hints[f.name]),
                    default=defaults[f.name],
                    description=next((note for note in _notes(hints[f.name]) if isinstance(note, str)), ""),
                    dimension=_bare(hints[f.name]) is int,
                )
                for f in dataclasses.fields(self._config)
            ),
            schema=self._adapter.json_schema(),
        )

    def resolve(self, overrides: Mapping[str, Json]) -> Any:
        """A configuration: the defaults, with these fields overridden.

        Text is accepted for numbers (`"64"`), as it comes from a command line.

        Raises:
            ConfigurationError: an unknown field (the nearest is named), a value of the wrong type, or one that the
                configuration itself refuses.
        """
        names = [f.name for f in dataclasses.fields(self._config)]
        for name in overrides:
            if name not in names:
                message = unknown(f"configuration field of model '{self.name}'", name, names, limit=40)
                raise ConfigurationError(message, field=f"configuration.{name}", model=self.name, name=name)
        try:
            return self._adapter.validate_python(dict(overrides))
        except pydantic.ValidationError as error:
            raise self._refused(error) from None

    def _refused(self, error: pydantic.ValidationError) -> ConfigurationError:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        if path:
            reason = f"field '{path}': {reason[0].lower()}{reason[1:]}, got {first['input']!r}"
        else:
            # The configuration's own check: blame the field that its message begins with, where it does.
            path = next(
                (f.name for f in dataclasses.fields(self._config) if reason.split()[0].strip(":") == f.name), ""
            )
        return ConfigurationError(
            f"model '{self.name}': {reason}",
            field=f"configuration.{path}" if path else "configuration",
            model=self.name,
        )

    def fields(self, config: Any) -> dict[str, Json]:
        """Every field of a configuration, in JSON's terms."""
        values: dict[str, Json] = self._adapter.dump_python(config, mode="json")
        return values

    def build(self, config: Any) -> nn.Module:
        """The module.

        Raises:
            ModelInvalid: `build` returned something else.
        """
        import torch

        module = self._build(config)
        if not isinstance(module, torch.nn.Module):
            raise ModelInvalid(
                f"model '{self.name}': build(config) must return a torch.nn.Module, got {type(module).__name__}",
                model=self.name,
            )
        return module

    def example_inputs(self, config: Any) -> dict[str, Tensor]:
        """Example tensors by the names of `forward`'s parameters.

        Raises:
            ModelInvalid: `example_inputs` returned something else.
        """
        import torch

        inputs = self._example_inputs(config)
        if not isinstance(inputs, Mapping) or not all(isinstance(t, torch.Tensor) for t in inputs.values()):
            raise ModelInvalid(
                f"model '{self.name}': example_inputs(config) must return a dict from the names of forward's "
                f"parameters to tensors, got {_describe(inputs)}",
                model=self.name,
            )
        return dict(inputs)


class Registry:
    """The models on offer, by name. A model is imported when it is first asked for."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}
        self._entry_points: dict[str, EntryPoint] = {}

    @classmethod
    def installed(cls) -> Registry:
        """The models that installed packages offer through entry points."""
        registry = cls()
        registry._entry_points = {point.name: point for point in entry_points(group=GROUP)}
        return registry

    def add_file(self, path: str | Path) -> Model:
        """Offers the model in a Python file, under the file's name without its ending. The file is run.

        Raises:
            ModelInvalid: there is no such file, it raises, or it does not keep the contract.
        """
        path = Path(path).resolve()
        if not path.is_file():
            raise ModelInvalid(f"no model file at {path}", path=path)
        model = Model(path.stem, _import_file(path))
        self._models[model.name] = model
        return model

    def names(self) -> tuple[str, ...]:
        """The models' names, sorted."""
        return tuple(sorted({*self._models, *self._entry_points}))

    def get(self, name: str) -> Model:
        """The model of that name.

        Raises:
            ModelNotFound: no such model; the nearest name is suggested.
            ModelInvalid: its module cannot be imported, or does not keep the contract.
            DependencyMissing: PyTorch is not installed.
        """
        if name not in self._models:
            point = self._entry_points.get(name)
            if point is None:
                raise ModelNotFound(unknown("model", name, self.names()), field="model", model=name)
            self._models[name] = Model(name, _import_installed(point))
        return self._models[name]

    def load(self, name_or_path: str) -> Model:
        """The model of that name, or in the Python file at that path, which is then on offer.

        Raises:
            ModelNotFound: no such model.
            ModelInvalid: the file or module does not keep the contract.
        """
        return self.add_file(name_or_path) if name_or_path.endswith(".py") else self.get(name_or_path)


def _import_installed(point: EntryPoint) -> ModuleType:
    try:
        module: ModuleType = point.load()
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            raise DependencyMissing(
                "models need PyTorch, which is not installed here; install it with: pip install 'fxtrace[torch]', or "
                "ask a server that has it",
                package="torch",
            ) from error
        raise ModelInvalid(
            f"model '{point.name}' cannot be imported: {type(error).__name__}: {error}", model=point.name
        ) from error
    return module


def _import_file(path: Path) -> ModuleType:
    # A name of its own, so that a file called `torch.py` shadows nothing.
    name = (
        f"fxtrace_model_{re.sub(r'[^0-9a-zA-Z_]', '_', path.stem)}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    )
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent))  # so that a model file can import its neighbours
    try:
        spec.loader.exec_module(module)
    except FxtraceError:
        raise
    except Exception as error:
        del sys.modules[name]
        raise ModelInvalid(
            f"model file {path.name} raised {type(error).__name__} while it was imported: {error}", path=path
        ) from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _config_class(name: str, module: ModuleType) -> type[Any]:
    missing = [part for part in CONTRACT if not hasattr(module, part)]
    if missing:
        raise ModelInvalid(
            f"model '{name}' lacks {' and '.join(missing)}; a model file defines Config (a dataclass), build(config) "
            "and example_inputs(config)",
            model=name,
        )
    config = module.Config
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise ModelInvalid(f"model '{name}': Config must be a dataclass, got {config!r}", model=name)
    for f in dataclasses.fields(config):
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ModelInvalid(f"model '{name}': Config.{f.name} needs a default", model=name)
    return config


def _digest(module: ModuleType) -> str:
    """Digest of the module's source: of its file, or of every Python file of its package."""
    file = Path(module.__file__ or "")
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    digest = hashlib.sha256()
    for each in files:
        source = each.read_bytes()
        digest.update(f"{each.relative_to(file.parent).as_posix()}\0{len(source)}\0".encode() + source)
    return digest.hexdigest()


def _notes(hint: Any) -> tuple[Any, ...]:
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _type_name(hint: Any) -> str:
    bare = _bare(hint)
    return bare.__name__ if isinstance(bare, type) and not get_args(bare) else str(bare).replace("typing.", "")


def _describe(inputs: object) -> str:
    if isinstance(inputs, Mapping):
        return "a dict with " + ", ".join(f"{k!r}: {type(v).__name__}" for k, v in inputs.items())
    return type(inputs).__name__
