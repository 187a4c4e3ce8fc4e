"""Example inputs for a Hugging Face model, from the parameters of its `forward` and the fields of its configuration."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the example inputs are: sequences, tokens of each, and tokens of each target sequence."""

    batch: int = 2
    seq_len: int = 10
    tgt_len: int = 7


def example_inputs(model: type[PreTrainedModel], config: PreTrainedConfig, sizes: Sizes) -> dict[str, Tensor]:
    """Tensors for the parameters of `forward` that a caller gives: main input, those with no default, companions.

    A parameter that no rule here knows is left out. Numbers come from torch's random state: tokens are plain words of
    the vocabulary, floats standard normal.
    """
    parameters = inspect.signature(model.forward).parameters
    maker = _Maker(config, sizes, frozenset(parameters))
    for name in dict.fromkeys((*_needed(model), *_COMPANIONS)):
        make: Callable[[], Tensor | None] | None = getattr(maker, name, None)
        if name in parameters and make is not None and (tensor := make()) is not None:
            maker.made[name] = tensor
    return {name: maker.made[name] for name in parameters if name in maker.made}


def missing_inputs(model: type[PreTrainedModel], inputs: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The parameters that a call needs and that are not among the inputs."""
    return tuple(name for name in _needed(model) if name not in inputs)


def _needed(model: type[PreTrainedModel]) -> tuple[str, ...]:
    """The model's main input, and the parameters of `forward` that have no default."""
    parameters = inspect.signature(model.forward).parameters
    main = model.main_input_name
    bare = [n for n, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    wanted = (*([main] if isinstance(main, str) else main), *bare)
    return tuple(name for name in dict.fromkeys(wanted) if name in parameters and name != "self")


# What is given besides, where `forward` takes it and the configuration has a part for it; in this order.
_COMPANIONS = (
    "input_ids",
    "bbox",
    "pixel_values",
    "image_grid_thw",
    "input_features",
    "input_features_mask",
    "feature_attention_mask",
    "decoder_input_ids",
    "attention_mask",
)

# Input, the method that makes features of it, and the fields that have the token that stands for one of them.
_MEDIA = (
    ("pixel_values", "get_image_features", ("image_token_id", "image_token_index")),
    ("input_features", "get_audio_features", ("audio_token_id", "audio_token_index")),
)


def with_media_tokens(
    build: Callable[[], Any], config: PreTrainedConfig, inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The inputs with a placeholder among the words for each feature of an image or a sound, where the model wants one.

    How many features there are is not in the configuration: the model's own part for the medium is run to count them.
    """
    for name, method, fields in _MEDIA:
        token = next((t for field in fields if isinstance(t := getattr(config, field, None), int)), None)
        if {"input_ids", name} <= set(inputs) and token is not None and hasattr(model := build(), method):
            inputs = _with_tokens(model, getattr(model, method), token, inputs)
    return inputs


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


# Special tokens stand at either end of a vocabulary: words are drawn from between.
_FIRST_WORD, _LAST_WORDS = 5, 20


class _Maker:
    """A method for each parameter that can be made, named after it; None where this model has no use for it."""

    def __init__(self, config: PreTrainedConfig, sizes: Sizes, parameters: frozenset[str]) -> None:
        self.config, self.sizes, self.parameters = config, sizes, parameters
        self.made: dict[str, Tensor] = {}
        self.text = _part(config, "vocab_size")
        self.vision = _part(config, "patch_size", "image_size", "num_channels", "spatial_patch_size")
        self.sound = _part(config, "num_mel_bins", "input_feat_per_channel", "feature_size", "input_dim", "conv_stride")

    # -------------------------------------------------------------------------------------------------------- text

    def _words(self, length: int) -> Tensor | None:
        size = self.text("vocab_size")
        if not isinstance(size, int):
            return None
        first = min(_FIRST_WORD, size - 1)
        return torch.randint(first, max(size - _LAST_WORDS, first + 1), (self.sizes.batch, length))

    def input_ids(self) -> Tensor | None:
        return self._words(self.sizes.seq_len)

    def decoder_input_ids(self) -> Tensor | None:
        return self._words(self.sizes.tgt_len)

    def attention_mask(self) -> Tensor | None:
        return torch.ones_like(self.made["input_ids"]) if "input_ids" in self.made else None

    def bbox(self) -> Tensor | None:
        return torch.arange(4).repeat(self.sizes.batch, self.sizes.seq_len, 1) if "input_ids" in self.made else None

    # ------------------------------------------------------------------------------------------------------- vision

    def _grid(self) -> Tensor:
        side = 2 * _one(self.vision("spatial_merge_size", "merge_size", default=1))
        return torch.tensor([[1, side, side]] * self.sizes.batch)

    def pixel_values(self) -> Tensor | None:
        channels = _one(self.vision("num_channels", "in_channels", "in_chans", default=3))
        if self.parameters & {"image_grid_thw", "grid_thw"}:  # images come cut into patches, all in one row
            patch = _one(self.vision("patch_size", "spatial_patch_size", default=16))
            pixels = _one(self.vision("temporal_patch_size", default=1)) * patch**2
            return torch.randn(int(self._grid().prod(-1).sum()), channels * pixels)
        height, width = self._side()
        frames = self.vision("num_frames")
        shape = (channels, height, width) if frames is None else (frames, channels, height, width)
        return torch.randn(self.sizes.batch, *shape) if self.vision() else None

    def _side(self) -> tuple[int, int]:
        side = self.vision("image_size", "img_size", "input_size", default=64)
        return (side, side) if isinstance(side, int) else tuple(side)[-2:]

    pixel_values_videos = pixel_values

    def hidden_states(self) -> Tensor | None:
        return self.pixel_values() if "grid_thw" in self.parameters else None

    def image_grid_thw(self) -> Tensor | None:
        return self._grid() if "pixel_values" in self.made else None

    grid_thw = _grid

    # -------------------------------------------------------------------------------------------------------- sound

    def input_values(self) -> Tensor | None:
        if (bins := self.sound("num_mel_bins")) is not None:
            return torch.randn(self.sizes.batch, self.sound("max_length", default=64), bins)
        hop = math.prod(self.sound("conv_stride", default=(320,)))
        return torch.randn(self.sizes.batch, hop * (self.sizes.seq_len + 2))

    def input_features(self) -> Tensor | None:
        bins = self.sound("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", "feature_size")
        if bins is None:
            return None
        positions = self.sound("max_source_positions")
        if positions and self.sound("num_mel_bins"):  # convolved, bins as channels, to exactly as many positions
            return torch.randn(self.sizes.batch, bins, 2 * positions)
        return torch.randn(self.sizes.batch, 4 * self.sizes.seq_len, bins)

    def input_features_mask(self) -> Tensor | None:
        features = self.made.get("input_features")
        if features is None:
            return None
        frames = features.shape[-1] if self.sound("max_source_positions") else features.shape[1]
        return torch.ones(len(features), frames, dtype=torch.long)

    feature_attention_mask = input_features_mask

    # -------------------------------------------------------------------------------------------------- time series

    def past_values(self) -> Tensor | None:
        length = self.config_field("context_length")
        return torch.randn(self.sizes.batch, length, self.config_field("num_input_channels") or 1) if length else None

    def config_field(self, name: str) -> Any:
        return getattr(self.config, name, None)


class _Part:
    """The fields of the part of a configuration that a modality has; empty where it has none."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def __call__(self, *names: str, default: Any = None) -> Any:
        """The first of these fields that is set."""
        if not names:
            return bool(self._fields)
        return next((self._fields[name] for name in names if self._fields.get(name) is not None), default)


def _part(config: PreTrainedConfig, *marks: str) -> _Part:
    """The outermost configuration, of this one and those inside it, that has a field of one of these names."""
    parts = list(_parts(config))
    return _Part(next((part for mark in marks for part in parts if part.get(mark) is not None), {}))


def _parts(config: PreTrainedConfig) -> Iterator[Mapping[str, Any]]:
    from transformers import PreTrainedConfig

    aliases = {alias: getattr(config, name, None) for alias, name in config.attribute_map.items()}
    yield {**aliases, **vars(config)}
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)


def _one(size: Any) -> int:
    """A size that may be given for each axis; the last then."""
    return int(size[-1] if isinstance(size, list | tuple) else size)
