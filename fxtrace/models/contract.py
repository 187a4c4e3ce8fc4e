"""The model contract: a module with a configuration dataclass, and functions that build the model and its inputs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints
from weakref import WeakKeyDictionary

import pydantic

from fxtrace.errors import ConfigurationError, ModelInvalid, unknown
from fxtrace.ir.trace import ConfigField, Json, ModelInfo
from fxtrace.models.base import Model
from fxtrace.models.shrink import smaller_size
from fxtrace.models.sources import sources_of_module

if TYPE_CHECKING:
    from torch import Tensor, nn

CONTRACT = ("Config", "build", "example_inputs")
_digests: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()


class ContractModel(Model):
    """A model that keeps the contract.

    Args:
        name: what it is called in requests.
        module: the Python module it is written in.
        contract: what has the contract's three names, where it is not the module itself.
        digest: of the module's sources, where they are known already; see `fxtrace.models.sources`.

    Raises:
        ModelInvalid: the module does not keep the contract; the message says where.
    """

    def __init__(self, name: str, module: ModuleType, contract: Any = None, digest: str = "") -> None:
        contract = module if contract is None else contract
        self.name = name
        self._config = _config_class(name, contract)
        self._build: Callable[[Any], nn.Module] = contract.build
        self._example_inputs: Callable[[Any], Mapping[str, Tensor]] = contract.example_inputs
        self._adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(self._config)
        self._summary = (inspect.getdoc(contract) or inspect.getdoc(self._config) or "").strip().split("\n\n")[0]
        self.digest = digest or _digest(module)

    def info(self) -> ModelInfo:
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
        values: dict[str, Json] = self._adapter.dump_python(config, mode="json")
        return values

    def build(self, config: Any) -> nn.Module:
        import torch

        module = self._build(config)
        if not isinstance(module, torch.nn.Module):
            raise ModelInvalid(
                f"model '{self.name}': build(config) must return a torch.nn.Module, got {type(module).__name__}",
                model=self.name,
            )
        return module

    def example_inputs(self, config: Any) -> dict[str, Tensor]:
        import torch

        inputs = self._example_inputs(config)
        if not isinstance(inputs, Mapping) or not all(isinstance(t, torch.Tensor) for t in inputs.values()):
            raise ModelInvalid(
                f"model '{self.name}': example_inputs(config) must return a dict from the names of forward's "
                f"parameters to tensors, got {_describe(inputs)}",
                model=self.name,
            )
        return dict(inputs)

    def smaller(self, config: Any) -> Iterator[Any]:
        sizes = {name: value for name, value in vars(config).items() if type(value) is int}
        with suppress(Exception):  # the configuration's own check may refuse them
            yield dataclasses.replace(config, **{name: smaller_size(name, size) for name, size in sizes.items()})


def _config_class(name: str, contract: Any) -> type[Any]:
    missing = [part for part in CONTRACT if not hasattr(contract, part)]
    if missing:
        raise ModelInvalid(
            f"model '{name}' lacks {' and '.join(missing)}; a model file defines Config (a dataclass), build(config) "
            "and example_inputs(config)",
            model=name,
        )
    config = contract.Config
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise ModelInvalid(f"model '{name}': Config must be a dataclass, got {config!r}", model=name)
    for f in dataclasses.fields(config):
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ModelInvalid(f"model '{name}': Config.{f.name} needs a default", model=name)
    return config


def _digest(module: ModuleType) -> str:
    """Digest of the module's sources, as they were when it was first asked for: what is imported stays as it was."""
    if module not in _digests:
        _digests[module] = sources_of_module(module.__name__, Path(module.__file__ or "")).digest
    return _digests[module]


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
