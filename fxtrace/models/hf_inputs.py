"""Which example inputs a Hugging Face model is given: from the parameters of its `forward`, and by what it takes."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxtrace.models.hf_examples import IMAGES, SOUNDS, WORDS, Layout, Maker, Sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""The inputs' names and shapes."""

# What is given besides what is needed, where `forward` takes it and the configuration has a part for it; in this order.
_COMPANIONS = (
    "input_ids",
    "bbox",
    "pixel_values",
    "image_grid_thw",
    "grid_thw",
    "image_merge_sizes",
    "merge_sizes",
    "image_sizes",
    "spatial_shapes",
    "pixel_attention_mask",
    "aspect_ratio_ids",
    "aspect_ratio_mask",
    "high_res_pixel_values",
    "image_attention_mask",
    "input_features",
    "input_features_mask",
    "feature_attention_mask",
    "padding_mask",
    "visual_feats",
    "visual_pos",
    "actions",
    "rewards",
    "returns_to_go",
    "timesteps",
    "decoder_input_ids",
    "attention_mask",
)

# Input, the method that makes features of it, and the fields that have the token that stands for one of them.
_MEDIA = (
    ("pixel_values", "get_image_features", ("image_token_id", "image_token_index")),
    ("input_features", "get_audio_features", ("audio_token_id", "audio_token_index")),
)


def example_inputs(
    build: Callable[[], PreTrainedModel],
    model: type[PreTrainedModel],
    config: PreTrainedConfig,
    sizes: Sizes,
    layout: Layout,
) -> dict[str, Tensor]:
    """Tensors for the parameters of `forward` that a caller gives: main input, those with no default, companions.

    A parameter that no rule knows is left out. Numbers come from torch's random state: tokens are plain words of the
    vocabulary, floats standard normal. Where the words have placeholders for the features of an image or a sound, the
    model's own part for that medium is run to count them, for how many there are is not in the configuration.
    """
    inputs = _made(model, config, sizes, layout)
    for name, method, fields in _MEDIA:
        tokens = (getattr(each, field, None) for each in _configurations(config) for field in fields)
        token = next((each for each in tokens if isinstance(each, int)), None)
        if not {"input_ids", name} <= set(inputs) or token is None:
            continue
        modules = build().modules()
        features = next((found for each in modules if (found := getattr(each, method, None)) is not None), None)
        if features is not None:
            inputs = _with_tokens(model, features, token, inputs)
    return inputs


def layouts(
    model: type[PreTrainedModel], config: PreTrainedConfig, sizes: Sizes, *, companions: bool
) -> dict[Shapes, Layout]:
    """Every way to lay the inputs out, by the shapes that it gives them; the likeliest first."""
    found: dict[Shapes, Layout] = {}
    for images, sounds, words in itertools.product(IMAGES, SOUNDS, WORDS):
        layout = Layout(images, sounds, words, companions)
        made = _made(model, config, sizes, layout)
        found.setdefault(tuple((name, tuple(each.shape)) for name, each in made.items()), layout)
    return found


def missing_inputs(model: type[PreTrainedModel], inputs: Collection[str]) -> tuple[str, ...]:
    """The parameters that a call needs and that are not among the inputs of these names."""
    return tuple(name for name in _needed(model) if name not in inputs)


def _made(model: type[PreTrainedModel], config: PreTrainedConfig, sizes: Sizes, layout: Layout) -> dict[str, Tensor]:
    parameters = inspect.signature(model.forward).parameters
    maker = Maker(config, sizes, frozenset(parameters), layout)
    for name in dict.fromkeys((*_needed(model), *(_COMPANIONS if layout.companions else _COMPANIONS[-1:]))):
        if name in parameters and (tensor := maker.make(name)) is not None:
            maker.made[name] = tensor
    return {name: maker.made[name] for name in parameters if name in maker.made}


def _needed(model: type[PreTrainedModel]) -> tuple[str, ...]:
    """The model's main input, and the parameters of `forward` that have no default."""
    parameters = inspect.signature(model.forward).parameters
    main = model.main_input_name
    bare = [n for n, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    wanted = (*([main] if isinstance(main, str) else main), *bare)
    return tuple(name for name in dict.fromkeys(wanted) if name in parameters and name != "self")


def _configurations(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A configuration and those inside it."""
    from transformers import PreTrainedConfig

    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _configurations(value)


def _with_tokens(model: Any, features: Callable[..., Any], token: int, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    taken = inspect.signature(features).parameters
    with torch.no_grad():
        found = features(**{name: tensor for name, tensor in inputs.items() if name in taken})
    found = getattr(found, "pooler_output", found)
    count = sum(each.numel() // each.shape[-1] for each in (found if isinstance(found, list | tuple) else [found]))
    words = inputs["input_ids"]
    ids = torch.cat([words[:, :1], words.new_full((len(words), count // len(words)), token), words[:, 1:]], 1)
    changed = {"input_ids": ids}
    if "attention_mask" in inputs:
        changed["attention_mask"] = torch.ones_like(ids)
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        changed["mm_token_type_ids"] = (ids == token).int()
    return {**inputs, **changed}
