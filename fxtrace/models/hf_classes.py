"""Which class of transformers stands for an architecture."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fxtrace.errors import ModelNotFound, unknown
from fxtrace.extras import needed_for

with needed_for("models named hf:...", "hf"):
    from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


NO_FORWARD = "of transformers has no forward of its own, it only generates"


def model_class(name: str, kind: type[PreTrainedConfig], model_type: str, wanted: str) -> type[PreTrainedModel]:
    """The class named, or else the first that transformers' tables have for the architecture and that can be called.

    Args:
        name: what the model is called, for messages.
        kind: the architecture's configuration class.
        model_type: the architecture.
        wanted: an Auto class, one of the architecture's own, or empty.

    Raises:
        ModelNotFound: there is no such class, or none that takes this configuration.
        ImportError: the architecture's module needs a package that is not installed.
    """
    import transformers

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
    names = [*_in_tables(kind, model_type), *(each for each, found in classes.items() if found.config_class is kind)]
    if wanted:
        if wanted not in (*names, *classes):
            message = unknown(f"class of {model_type}", wanted, dict.fromkeys((*names, *classes)))
            raise ModelNotFound(message, field="model", model=name)
        return _class(classes, wanted)
    # A table may name a class that only generates, or one that takes a part of this configuration.
    callable_ones = [found for each in dict.fromkeys(names) if _is_called(found := _class(classes, each))]
    if not callable_ones:
        message = _no_forward(names[0], kind) if names else _no_class(model_type, kind)
        raise ModelNotFound(message, field="model", model=name)
    return next((found for found in callable_ones if _takes(found, kind)), callable_ones[0])


def _class(classes: Mapping[str, type[PreTrainedModel]], name: str) -> type[PreTrainedModel]:
    import transformers

    found: type[PreTrainedModel] = classes.get(name) or getattr(transformers, name)  # from another family's module
    return found


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


def _is_called(model: type[PreTrainedModel]) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    return model.forward is not nn.Module.forward and any(p.kind is not p.VAR_KEYWORD for p in [*parameters][1:])


def _takes(model: type[PreTrainedModel], kind: type[PreTrainedConfig]) -> bool:
    expected = model.config_class
    return expected is None or issubclass(kind, expected) or issubclass(expected, kind)


def _in_tables(kind: type[PreTrainedConfig], model_type: str) -> Iterator[str]:
    """The classes that transformers' tables have for an architecture, the first choice first."""
    from transformers.models.auto import modeling_auto

    for table in _tables(kind):
        found = getattr(modeling_auto, table).get(model_type)
        if found:
            yield _first(found)


def _tables(kind: type[PreTrainedConfig]) -> Iterator[str]:
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


def _no_forward(model: str, kind: type[PreTrainedConfig]) -> str:
    """That a class only generates, and which of its parts are architectures that can be called."""
    types = [getattr(each, "model_type", "") for each in kind.sub_configs.values()]
    parts = [f"hf:{each}" for each in types if _has_model(each)]
    use = f"; use {' or '.join(parts)}" if parts else "; no part of it is an architecture that could be named instead"
    return f"{model} {NO_FORWARD}{use}"


def _has_model(model_type: str) -> bool:
    """Whether a table of transformers has a model for an architecture."""
    from transformers.models.auto import modeling_auto

    tables = [
        table for name, table in vars(modeling_auto).items() if re.fullmatch("MODEL_(FOR_.*_)?MAPPING_NAMES", name)
    ]
    return any(model_type in table for table in tables)


def _no_class(model_type: str, kind: type[PreTrainedConfig]) -> str:
    """Why an architecture is no model, and which ones it is a part of."""
    from transformers.models.auto import configuration_auto

    package = kind.__module__.rpartition(".")[0]
    owners = [
        f"hf:{each}"
        for each in vars(configuration_auto)["CONFIG_MAPPING_NAMES"]
        if package.endswith("." + configuration_auto.model_type_to_module_name(each)) and _has_model(each)
    ]
    use = f"use {' or '.join(owners)}" if owners else "name an architecture that has a model"
    return (
        f"'{model_type}' stands in no Auto mapping: it is the configuration of a part, and transformers has no model "
        f"class of its own for it; {use}"
    )
