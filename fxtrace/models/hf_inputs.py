"""Which example inputs a Hugging Face model is given: from the parameters of its `forward`, and by what it takes."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from fxtrace.extras import needed_for
from fxtrace.models.hf_examples import IMAGES, SOUNDS, WORDS, Layout, Maker, Sizes

with needed_for("models named hf:...", "hf"):
    import torch
    from torch import Tensor

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

MEDIA = ("pixel_values", "input_features", "input_values")
"""Inputs that are images or sounds, where a model may take several."""

# How inputs end that have words, places and sizes, not features.
_NO_FEATURES = ("ids", "mask", "sizes", "shapes", "thw", "labels", "bbox")

_SIZE = 8  # smaller numbers in a message are rather axes and counts of them

# Input, the method that makes features of it, and the fields that have the token that stands for one of them.
_FEATURES = (
    ("pixel_values", "get_image_features", ("image_token_id", "image_token_index")),
    ("input_features", "get_audio_features", ("audio_token_id", "audio_token_index")),
)


def example_inputs(
    models: Callable[[], Iterable[PreTrainedModel]],
    model: type[PreTrainedModel],
    config: PreTrainedConfig,
    sizes: Sizes,
    layout: Layout,
) -> dict[str, Tensor]:
    """Tensors for the parameters of `forward` that a caller gives: main input, those with no default, companions.

    A parameter that no rule knows is left out. Numbers come from torch's random state: tokens are plain words of the
    vocabulary, floats standard normal. Where the words have placeholders for the features of an image or a sound, the
    part for that medium is run to count them, for how many there are is not in the configuration.

    Args:
        models: models whose parts make as many features as that of this configuration; the first that runs counts.
        model: the class whose `forward` it is.
        config: the configuration.
        sizes: of the words.
        layout: of the rest.
    """
    inputs = _made(model, config, sizes, layout)
    for name, method, fields in _FEATURES:
        tokens = (getattr(each, field, None) for each in _configurations(config) for field in fields)
        token = next((each for each in tokens if isinstance(each, int)), None)
        if {"input_ids", name} <= set(inputs) and token is not None:
            count = _feature_count(models(), method, inputs)
            inputs = _with_tokens(model, count, token, inputs)
    return inputs


def _feature_count(models: Iterable[PreTrainedModel], method: str, inputs: dict[str, Tensor]) -> int:
    """How many features all examples' images or sounds have together; one each where a model has no method for it."""
    problem: Exception | None = None
    for model in models:
        features = next((found for each in model.modules() if (found := getattr(each, method, None)) is not None), None)
        if features is None:
            return len(inputs["input_ids"])
        taken = inspect.signature(features).parameters
        try:
            with torch.no_grad():
                found = features(**{name: tensor for name, tensor in inputs.items() if name in taken})
        except Exception as error:  # noqa: BLE001 - a copy's sizes may not fit together
            problem = error
            continue
        found = getattr(found, "pooler_output", found)
        return sum(each.numel() // each.shape[-1] for each in (found if isinstance(found, list | tuple) else [found]))
    if problem is not None:
        raise problem
    return 0


def layouts(
    model: type[PreTrainedModel], config: PreTrainedConfig, sizes: Sizes, given: Layout
) -> dict[Shapes, Layout]:
    """Every way to lay out what a layout gives, by the shapes that it gives them; the likeliest first."""
    found: dict[Shapes, Layout] = {}
    for images, sounds, words in itertools.product(IMAGES, SOUNDS, WORDS):
        layout = replace(given, images=images, sounds=sounds, words=words)
        found.setdefault(shapes(model, config, sizes, layout), layout)
    return found


def shapes(model: type[PreTrainedModel], config: PreTrainedConfig, sizes: Sizes, layout: Layout) -> Shapes:
    """What inputs laid out so are there, and their shapes."""
    return tuple((name, tuple(each.shape)) for name, each in _made(model, config, sizes, layout, drawn=False).items())


def repaired(model: type[PreTrainedModel], layout: Layout, inputs: Shapes, problem: str) -> Iterator[Layout]:
    """Layouts near one that a model does not run with, by what it said.

    With an input that it names; with a size that it names in place of another; without an input that it can spare.

    Args:
        model: the class.
        layout: the layout.
        inputs: what it gives.
        problem: what the model said, and the line where it did.
    """
    given, needed = dict(inputs), _needed(model)
    words = set(re.findall(r"[A-Za-z_]\w*", problem))
    numbers = {int(each) for each in re.findall(r"\d+", problem)} - set(range(_SIZE))
    parameters = inspect.signature(model.forward).parameters
    asked = [name for name in parameters if name in words and name not in (*given, *layout.beside, "self")]
    if asked:
        yield replace(layout, beside=(*layout.beside, *asked))
    for name, shape in inputs:
        if not name.endswith(_NO_FEATURES) or (name == "input_ids" and len(shape) > 2):
            for axis, size in enumerate(shape):
                for other in sorted(numbers - {size}, reverse=True) if axis and size in numbers else ():
                    yield replace(layout, resized=(*layout.resized, (name, axis, other)))
    for name in given:
        if name not in needed and name not in MEDIA:
            yield replace(layout, without=(*layout.without, name))


def missing_inputs(model: type[PreTrainedModel], inputs: Collection[str]) -> tuple[str, ...]:
    """The parameters that a call needs and that are not among the inputs of these names."""
    return tuple(name for name in _needed(model) if name not in inputs)


def _made(
    model: type[PreTrainedModel], config: PreTrainedConfig, sizes: Sizes, layout: Layout, *, drawn: bool = True
) -> dict[str, Tensor]:
    parameters = inspect.signature(model.forward).parameters
    maker = Maker(config, sizes, frozenset(parameters), layout, drawn=drawn)
    companions = _COMPANIONS if layout.companions else _COMPANIONS[-1:]
    needed = _needed(model)
    optional = [name for name in (*companions, *layout.beside) if name not in layout.without]
    for name in dict.fromkeys((*needed, *optional)):
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


def _with_tokens(model: type[PreTrainedModel], count: int, token: int, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Puts as many placeholders among the words."""
    words = inputs["input_ids"]
    ids = torch.cat([words[:, :1], words.new_full((len(words), count // len(words)), token), words[:, 1:]], 1)
    changed = {"input_ids": ids}
    if "attention_mask" in inputs:
        changed["attention_mask"] = torch.ones_like(ids)
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        changed["mm_token_type_ids"] = (ids == token).int()
    return {**inputs, **changed}
