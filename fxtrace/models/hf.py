"""Architectures of transformers as models: built from a configuration, with random weights, and never downloaded."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxtrace.errors import ConfigurationError, DependencyMissing, FxtraceError, ModelInvalid, ModelNotFound, unknown
from fxtrace.extras import needed_for
from fxtrace.ir.trace import ConfigField, Json, ModelInfo
from fxtrace.models.base import Model
from fxtrace.models.shrink import AS_IT_IS, arguments, is_configuration, own_fields, shrunk

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from fxtrace.models.hf_fit import Fit

_FIELDS: Mapping[str, tuple[Json, str]] = {
    "preset": ("small", "what is not set: 'small', or 'default' as the architecture's own configuration class has it"),
    "attn_implementation": ("eager", "how attention is computed: 'eager' (every step is a node) or 'sdpa' (one op)"),
    "batch": (2, "sequences, images or sounds in the example inputs"),
    "seq_len": (10, "tokens of each sequence in the example inputs"),
    "tgt_len": (7, "tokens of each target sequence, where the model has an encoder and a decoder"),
}
_CHOICES: Mapping[str, tuple[str, ...]] = {"preset": ("small", "default"), "attn_implementation": ("eager", "sdpa")}
_SMALLEST = 2  # a size of 1 is broadcast, and says less about the model

_PLAIN = (bool, int, float, str, list, tuple, dict)


@dataclass(frozen=True, slots=True)
class _Configuration:
    """transformers' own configuration, and the fields that fxtrace adds."""

    config: PreTrainedConfig
    added: Mapping[str, Any]


class HuggingFaceModel(Model):
    """An architecture of transformers.

    Args:
        name: `hf:<model type>`, or `hf:<model type>:<class>` with an Auto class or one of the architecture's own.
            Without a class it is the one with a language model head for a decoder or an encoder–decoder, and the plain
            model for the rest.

    Raises:
        ModelNotFound: no such architecture, or it has no such class; the nearest is suggested.
        DependencyMissing: transformers is not installed, or the architecture needs a package that is not.
    """

    def __init__(self, name: str) -> None:
        _import_transformers()
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        from fxtrace.models.hf_classes import model_class

        self.name = name
        _, self._type, wanted = (*name.split(":", 2), "")[:3]
        if self._type not in CONFIG_MAPPING:
            message = unknown("architecture of transformers", self._type, CONFIG_MAPPING)
            raise ModelNotFound(message, field="model", model=name)
        with _needing_packages(name):
            self._kind: type[PreTrainedConfig] = CONFIG_MAPPING[self._type]
            self._class = model_class(name, self._kind, self._type, wanted)
        self.digest = _digest(self._class, self._kind)

    def info(self) -> ModelInfo:
        fields = self.fields(self.resolve({}))
        return ModelInfo(
            name=self.name,
            summary=f"{self._class.__name__} of transformers, small and with random weights",
            fields=tuple(
                ConfigField(
                    name=name,
                    type=type(value).__name__ if value is not None else "",
                    default=value,
                    description=_FIELDS[name][1] if name in _FIELDS else "",
                    dimension=type(value) is int and not name.endswith(("_id", "_index")),
                )
                for name, value in fields.items()
            ),
            schema={
                "title": self._kind.__name__,
                "type": "object",
                "properties": {name: _schema(name, value) for name, value in fields.items()},
            },
        )

    def resolve(self, overrides: Mapping[str, Json]) -> _Configuration:
        added = {name: self._added(name, overrides.get(name, default)) for name, (default, _) in _FIELDS.items()}
        given: dict[str, Any] = {}
        with _needing_packages(self.name):
            try:
                defaults = self._kind()
                for name, value in overrides.items():
                    if name not in _FIELDS:
                        path, owner = self._path(defaults, name)
                        _place(given, path, _typed(owner, path[-1], value))
                shrink = self._fit.shrink if added["preset"] == "small" else AS_IT_IS
                config = self._kind(**arguments(self._kind, given, shrink))
            except (FxtraceError, ImportError):
                raise
            except Exception as error:
                raise self._refused(overrides, error) from error
        return _Configuration(config, added)

    def _added(self, name: str, value: Json) -> Json:
        choices = _CHOICES.get(name)
        if choices:
            if value not in choices:
                message = unknown(f"{name} for model '{self.name}'", str(value), choices)
                raise ConfigurationError(message, field=f"configuration.{name}", model=self.name)
            if value == "sdpa" and not self._class._supports_sdpa:
                raise ConfigurationError(
                    f"model '{self.name}': {self._class.__name__} has no attn_implementation 'sdpa'; use 'eager'",
                    field=f"configuration.{name}",
                    model=self.name,
                )
            return value
        size = _number(value, int)
        if not isinstance(size, int) or isinstance(size, bool) or size < _SMALLEST:
            raise ConfigurationError(
                f"model '{self.name}': field '{name}': expected an integer of at least {_SMALLEST}, got {value!r}",
                field=f"configuration.{name}",
                model=self.name,
            )
        return size

    def _path(self, config: PreTrainedConfig, name: str) -> tuple[tuple[str, ...], PreTrainedConfig]:
        """The fields that lead to a dotted name, and the configuration that has the last of them.

        transformers' common names for a family's own are understood.

        Raises:
            ConfigurationError: there is no such field.
        """
        path = []
        part: Any = config
        owner = config
        for word in name.split("."):
            word = part.attribute_map.get(word, word) if is_configuration(part) else word
            if not is_configuration(part) or word not in own_fields(part):
                known = [*_FIELDS, *(each for each, _ in _flat(config))]
                message = unknown(f"configuration field of model '{self.name}'", name, known, limit=40)
                raise ConfigurationError(message, field=f"configuration.{name}", model=self.name, name=name)
            owner, part = part, own_fields(part)[word]
            path.append(word)
        return tuple(path), owner

    def _refused(self, overrides: Mapping[str, Json], error: Exception) -> ConfigurationError:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = lines[-1] if lines else type(error).__name__
        blamed = next((name for name in overrides if name.rpartition(".")[2] in str(error)), "")
        return ConfigurationError(
            f"model '{self.name}': {message}",
            field=f"configuration.{blamed}" if blamed else "configuration",
            model=self.name,
        )

    def fields(self, config: _Configuration) -> dict[str, Json]:
        return {**config.added, **dict(_flat(config.config))}

    def build(self, config: _Configuration) -> PreTrainedModel:
        with _needing_packages(self.name):
            try:
                return _build(self._class, config.config, config.added["attn_implementation"])
            except (ImportError, RuntimeError):  # no package; or no numbers, where it is built without weights
                raise
            except Exception as error:
                said = self._fit.problem or f"{type(error).__name__}: {error}"
                raise ModelInvalid(
                    f"model '{self.name}': {self._class.__name__} does not build with this configuration: {said}",
                    model=self.name,
                ) from error

    def example_inputs(self, config: _Configuration) -> dict[str, Tensor]:
        from fxtrace.models.hf_examples import Sizes
        from fxtrace.models.hf_inputs import example_inputs

        if self._fit.problem:
            raise ModelInvalid(
                f"model '{self.name}': no example inputs are known that {self._class.__name__}.forward takes: "
                f"{self._fit.problem}; give a factory (package.module:factory) that makes the model and its inputs",
                model=self.name,
            )
        sizes = Sizes(*(config.added[each.name] for each in dataclasses.fields(Sizes)))
        return example_inputs(lambda: self._counting(config), self._class, config.config, sizes, self._fit.layout)

    def _counting(self, config: _Configuration) -> Iterator[PreTrainedModel]:
        """Models that make as many features of an image or a sound: copies with less in each, then the model itself."""
        for derived in (True, False):
            with suppress(Exception):  # sizes that do not fit together
                fields = shrunk(config.config, replace(self._fit.shrink, extents=False), derived=derived)
                yield self.build(_Configuration(self._kind(**fields), config.added))
        yield self.build(config)

    def smaller(self, config: _Configuration) -> Iterator[_Configuration]:
        least = {name: default for name, (default, _) in _FIELDS.items() if isinstance(default, int)}
        added = {name: min(value, least[name]) if name in least else value for name, value in config.added.items()}
        for derived in (True, False):
            with suppress(Exception):  # the class's own checks may refuse what is shrunk
                yield _Configuration(self._kind(**shrunk(config.config, self._fit.shrink, derived=derived)), added)

    @property
    def _fit(self) -> Fit:
        from fxtrace.models.hf_fit import fit

        with _needing_packages(self.name):
            found: Fit = fit(self._kind, self._class, _build)  # type: ignore[arg-type]  # classes are hashable
        return found


def _build(kind: type[PreTrainedModel], config: PreTrainedConfig, attention: str = "eager") -> PreTrainedModel:
    make: Any = kind._from_config
    # Given for the whole alone, parts that have no other attention (a convolutional backbone) keep to eager.
    wanted = attention if attention == "eager" else {"": attention}
    with _offline():
        model: PreTrainedModel = make(config, attn_implementation=wanted)
    model.train(False)
    return model


def _import_transformers() -> None:
    with needed_for("models named hf:...", "hf"):
        import torch  # noqa: F401
        import transformers

        logging: Any = transformers.logging
    logging.set_verbosity_error()  # advice on training and generating


@contextmanager
def _needing_packages(name: str) -> Iterator[None]:
    """Reports an architecture's wish for a package that is not installed.

    Raises:
        DependencyMissing: in place of an ImportError.
    """
    try:
        yield
    except ImportError as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise DependencyMissing(f"model '{name}': {first}", model=name) from error


@contextmanager
def _offline() -> Iterator[None]:
    """Keeps transformers from fetching anything, whatever a configuration asks for."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _digest(*classes: type) -> str:
    import transformers

    digest = hashlib.sha256(transformers.__version__.encode())
    for each in classes:
        digest.update(each.__qualname__.encode() + Path(inspect.getfile(each)).read_bytes())
    return digest.hexdigest()


def _flat(config: PreTrainedConfig, prefix: str = "") -> Iterator[tuple[str, Json]]:
    """(dotted name, value) of every field with a plain value, those of nested configurations after their own."""
    nested = []
    for name, value in own_fields(config).items():
        if is_configuration(value):
            nested.append((f"{prefix}{name}.", value))
        elif value is None or isinstance(value, _PLAIN):
            yield prefix + name, _json(value)
    for inner, value in nested:
        yield from _flat(value, inner)


def _json(value: Any) -> Json:
    match value:
        case dict():
            return {str(key): _json(item) for key, item in value.items()}
        case list() | tuple():
            return [_json(item) for item in value]
        case float() if value != value or value in (float("inf"), float("-inf")):
            return str(value)
        case None | bool() | int() | float() | str():
            return value
        case _:
            return str(value)


def _schema(name: str, value: Json) -> dict[str, Json]:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    schema: dict[str, Json] = {"default": value}
    if type(value) in kinds:
        schema["type"] = kinds[type(value)]
    if name in _CHOICES:
        schema["enum"] = list(_CHOICES[name])
    return schema


def _place(tree: dict[str, Any], path: tuple[str, ...], value: Json) -> None:
    for word in path[:-1]:
        tree = tree.setdefault(word, {})
    tree[path[-1]] = value


def _typed(config: PreTrainedConfig, name: str, value: Json) -> Json:
    """A field's value, as the type that transformers insists on: in JSON, 1.0 and 1 are the same number."""
    value = _number(value, int, float)
    annotation = next((str(each.type) for each in dataclasses.fields(config) if each.name == name), "")
    kinds = set(re.findall(r"\w+", annotation))
    return _floats(value) if "float" in kinds and "int" not in kinds else value


def _floats(value: Json) -> Json:
    match value:
        case bool():
            return value
        case int():
            return float(value)
        case list():
            return [_floats(each) for each in value]
        case _:
            return value


def _number(value: Json, *kinds: type[int] | type[float]) -> Json:
    """A number where the text is one, as it comes from a command line."""
    if isinstance(value, str):
        for kind in kinds:
            try:
                return kind(value)
            except ValueError:
                continue
    return value
