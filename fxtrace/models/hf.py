"""Architectures of transformers as models: built from a configuration, with random weights, and never downloaded."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxtrace.errors import ConfigurationError, DependencyMissing, ModelInvalid, ModelNotFound, unknown
from fxtrace.models.base import Model
from fxtrace.models.shrink import arguments, is_configuration, own_fields, shrunk
from fxtrace.trace import ConfigField, Json, ModelInfo

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

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

        self.name = name
        _, self._type, wanted = (*name.split(":", 2), "")[:3]
        if self._type not in CONFIG_MAPPING:
            message = unknown("architecture of transformers", self._type, CONFIG_MAPPING)
            raise ModelNotFound(message, field="model", model=name)
        with _needing_packages(name):
            self._kind: type[PreTrainedConfig] = CONFIG_MAPPING[self._type]
            self._class = _model_class(name, self._type, self._kind, wanted)
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
            defaults = self._kind()
            for name, value in overrides.items():
                if name not in _FIELDS:
                    _place(given, self._path(defaults, name), value)
            try:
                config = self._kind(**arguments(self._kind, given, small=added["preset"] == "small"))
            except (DependencyMissing, ImportError):
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

    def _path(self, config: PreTrainedConfig, name: str) -> tuple[str, ...]:
        """The fields that lead to a dotted name; transformers' common names for a family's own are understood.

        Raises:
            ConfigurationError: there is no such field.
        """
        path = []
        part: Any = config
        for word in name.split("."):
            word = part.attribute_map.get(word, word) if is_configuration(part) else word
            if not is_configuration(part) or word not in own_fields(part):
                known = [*_FIELDS, *(each for each, _ in _flat(config))]
                message = unknown(f"configuration field of model '{self.name}'", name, known, limit=40)
                raise ConfigurationError(message, field=f"configuration.{name}", model=self.name, name=name)
            part = own_fields(part)[word]
            path.append(word)
        return tuple(path)

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

    def build(self, config: _Configuration) -> nn.Module:
        with _needing_packages(self.name), _offline():
            make: Any = self._class._from_config
            module: nn.Module = make(config.config, attn_implementation=config.added["attn_implementation"])
        return module.eval()

    def example_inputs(self, config: _Configuration) -> dict[str, Tensor]:
        from fxtrace.models.hf_inputs import Sizes, example_inputs, missing_inputs, with_media_tokens

        sizes = Sizes(*(config.added[each.name] for each in dataclasses.fields(Sizes)))
        inputs = example_inputs(self._class, config.config, sizes)
        missing = missing_inputs(self._class, inputs)
        if missing:
            raise ModelInvalid(
                f"model '{self.name}': no example is known for {', '.join(missing)} of {self._class.__name__}.forward; "
                "give a factory (package.module:factory) that makes the model and its inputs",
                model=self.name,
            )
        return with_media_tokens(lambda: self.build(config), config.config, inputs)

    def smaller(self, config: _Configuration) -> Iterator[_Configuration]:
        least = {name: default for name, (default, _) in _FIELDS.items() if isinstance(default, int)}
        added = {name: min(value, least[name]) if name in least else value for name, value in config.added.items()}
        for derived in (True, False):
            with suppress(Exception):  # the class's own checks may refuse what is shrunk
                yield _Configuration(self._kind(**shrunk(config.config, derived=derived)), added)


def _import_transformers() -> None:
    try:
        import torch  # noqa: F401
        import transformers

        logging: Any = transformers.logging
        logging.set_verbosity_error()  # advice on training and generating
    except ModuleNotFoundError as error:
        raise DependencyMissing(
            f"models named hf:... need {error.name}, which is not installed here; install it with: "
            "pip install 'fxtrace[hf]'",
            package=error.name,
        ) from error


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


def _model_class(name: str, model_type: str, kind: type[PreTrainedConfig], wanted: str) -> type[PreTrainedModel]:
    import transformers
    from transformers.models.auto import modeling_auto

    if wanted.startswith("Auto"):
        mapping = getattr(getattr(transformers, wanted, None), "_model_mapping", {})
        if kind in mapping:
            found: type[PreTrainedModel] = _first(mapping[kind])
            return found
    classes = {
        each: found
        for each, found in _modeling(kind).items()
        if inspect.isclass(found) and issubclass(found, transformers.PreTrainedModel) and _builds(found)
    }
    tables = [modeling_auto.__dict__[each] for each in _tables(kind)]
    names = [_first(table[model_type]) for table in tables if model_type in table]
    names += [each for each, found in classes.items() if found.config_class is kind]
    chosen = wanted or next(iter(names), "")
    if chosen not in classes and chosen not in names:
        message = unknown(f"class of {model_type}", wanted, dict.fromkeys((*names, *classes)))
        raise ModelNotFound(message, field="model", model=name)
    if chosen in classes:
        return classes[chosen]
    borrowed: type[PreTrainedModel] = getattr(transformers, chosen)  # from another family's module
    return borrowed


def _modeling(kind: type[PreTrainedConfig]) -> Mapping[str, Any]:
    """The names in the module of a family's models; none where another family's models serve it."""
    name = kind.__module__.replace(".configuration_", ".modeling_")
    try:
        return vars(importlib.import_module(name))
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return {}


def _builds(kind: type[PreTrainedModel]) -> bool:
    """Whether a class is a whole model, not the common base of a family's."""
    return "forward" in vars(kind) or not kind.__name__.endswith("PreTrainedModel")


def _tables(kind: type[PreTrainedConfig]) -> Iterator[str]:
    """The names of transformers' tables in which an architecture's class is looked for, the first choice first."""
    from transformers.models.auto import modeling_auto

    if getattr(kind, "is_encoder_decoder", False):
        yield "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"
        yield "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES"
    elif kind.model_type not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not kind.sub_configs:
        yield "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
    yield "MODEL_MAPPING_NAMES"
    yield from sorted(each for each in vars(modeling_auto) if re.fullmatch("MODEL_FOR_.*_MAPPING_NAMES", each))


def _first(found: Any) -> Any:
    return found[0] if isinstance(found, tuple) else found


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
    tree[path[-1]] = _number(value, int, float)


def _number(value: Json, *kinds: type[int] | type[float]) -> Json:
    """A number where the text is one, as it comes from a command line."""
    if isinstance(value, str):
        for kind in kinds:
            try:
                return kind(value)
            except ValueError:
                continue
    return value
