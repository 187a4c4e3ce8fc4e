"""An example tensor for each parameter that a Hugging Face model's `forward` may have."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxtrace.extras import needed_for

with needed_for("models named hf:...", "hf"):
    import torch
    from torch import Tensor


if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the example inputs are: sequences, tokens of each, and tokens of each target sequence."""

    batch: int = 2
    seq_len: int = 10
    tgt_len: int = 7


# Models of one medium take it in different layouts, and nothing but the code of their forward says which.
IMAGES = ("", "images", "stacks", "frames", "tiled", "tiles", "cut", "cut_images", "blocks", "padded")
SOUNDS = ("", "bins_first", "bins_last", "stacked", "channel", "wave", "samples")
WORDS = ("", "codes_last", "codes_first", "codes_as_rows")


@dataclass(frozen=True, slots=True)
class Layout:
    """How the axes of example inputs stand; an empty word leaves it to the fields of the configuration.

    Attributes:
        images: `images` (batch, channels, height, width); `stacks` and `frames`, with one or several images of each
            example in an axis of their own; `tiled`, with two tiles and the whole in it; `tiles`, with tiles in another
            beside it; `cut` into patches that are all in one row, `cut_images` likewise and the patches not flattened;
            `blocks` of merged patches, channels last; `padded`, patches of each example.
        sounds: `bins_first` (batch, bins, time), `bins_last`, `stacked` with several moments' bins in one, `channel`
            (with an axis of one channel before these), `wave` (batch, 1, time), or `samples` (batch, time).
        words: `codes_last` (batch, time, codebooks), `codes_first`, or `codes_as_rows` (batch × codebooks, time), where
            sounds are words.
        companions: whether everything is given that a rule knows, or what is needed alone.
        without: of what is given besides what is needed, what is left out.
        beside: what is given besides all this.
        resized: (input, axis, size) of sizes that no field has.
    """

    images: str = ""
    sounds: str = ""
    words: str = ""
    companions: bool = True
    without: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    resized: tuple[tuple[str, int, int], ...] = ()


# Special tokens stand at either end of a vocabulary: words are drawn from between.
_FIRST_WORD, _LAST_WORDS, _CHARACTERS = 5, 20, 128
_BINS = 80  # of a sound's spectrum, where no field says
_GRID = 2  # patches of an image in either direction, where images come cut into patches


class Maker:
    """Makes a tensor for a parameter; None where this model has no use for it.

    Attributes:
        made: what was made so far, by name: what comes later goes by it.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        sizes: Sizes,
        parameters: frozenset[str],
        layout: Layout,
        *,
        drawn: bool = True,
    ) -> None:
        self.config, self.sizes, self.parameters, self.layout = config, sizes, parameters, layout
        self._floats = torch.randn if drawn else torch.empty  # drawing millions takes longer than to try them
        self.made: dict[str, Tensor] = {}
        self.text = part(config, "vocab_size", "text_encoder_vocab_size")
        self.books = part(config, "num_codebooks", "num_vq", "num_channels")
        self.vision = part(
            config, "patch_size", "image_size", "num_channels", "in_channels", "spatial_patch_size", "backbone_config"
        )
        self.sound = part(
            config, "num_mel_bins", "input_feat_per_channel", "feature_size", "input_dim", "conv_stride", "hop_length"
        )

    def make(self, name: str) -> Tensor | None:
        """A tensor for the parameter of that name."""
        tensor = self._tensor(name)
        sizes = {axis: size for each, axis, size in self.layout.resized if each == name}
        if tensor is None or not sizes:
            return tensor
        shape = [sizes.get(axis, size) for axis, size in enumerate(tensor.shape)]
        return self._floats(shape) if tensor.is_floating_point() else self._words(*shape)

    def _tensor(self, name: str) -> Tensor | None:
        method: Callable[[], Tensor | None] | None = getattr(self, f"_{name}", None)
        if method is not None:
            return method()
        if re.fullmatch(r".*(embeds|latents|hidden_states|_features|_spectrogram|spectrogram)", name):
            return self._vectors()
        if name.endswith("input_ids"):
            return self._words(self.sizes.batch, self.sizes.seq_len)
        if (
            name.endswith("attention_mask")
            and (ids := self.made.get(name.replace("attention_mask", "input_ids"))) is not None
        ):
            return torch.ones_like(ids)
        return None

    def _field(self, *names: str, default: Any = None) -> Any:
        return next((value for name in names if (value := getattr(self.config, name, None)) is not None), default)

    def _vectors(self) -> Tensor | None:
        names = ("hidden_size", "d_model", "embed_dim", "dim", "n_embd", "model_in_dim", "num_mel_bins")
        width = self._field(*names) or part(self.config, *names)(*names)
        return self._floats(self.sizes.batch, self.sizes.seq_len, width) if isinstance(width, int) else None

    # -------------------------------------------------------------------------------------------------------- text

    def _words(self, *shape: int) -> Tensor | None:
        size = self.text("vocab_size", "text_encoder_vocab_size", default=None if self._has_media() else _CHARACTERS)
        if not isinstance(size, int):
            return None
        first = min(_FIRST_WORD, size - 1)
        return torch.randint(first, max(size - _LAST_WORDS, first + 1), shape)

    def _has_media(self) -> bool:
        return bool(self.vision() or self.sound())

    def _codes(self, length: int) -> Tensor | None:
        """Words, or codes of a sound with several for each moment."""
        batch, books = self.sizes.batch, self.books("num_codebooks", "num_vq", "num_channels")
        if not self.layout.words or not isinstance(books, int) or "pixel_values" in self.parameters:
            return self._words(batch, length)
        shapes = {"codes_last": (batch, length, books), "codes_first": (batch, books, length)}
        return self._words(*shapes.get(self.layout.words, (batch * books, length)))

    def _input_ids(self) -> Tensor | None:
        decoder = "decoder_input_ids" in self.parameters
        return self._words(self.sizes.batch, self.sizes.seq_len) if decoder else self._codes(self.sizes.seq_len)

    def _decoder_input_ids(self) -> Tensor | None:
        return self._codes(self.sizes.tgt_len)

    def _task_inputs(self) -> Tensor | None:
        return self._words(self.sizes.batch, self._field("task_seq_len", default=self.sizes.seq_len))

    def _attention_mask(self) -> Tensor | None:
        ids = self.made.get("input_ids", self.made.get("timesteps"))
        return torch.ones(ids.shape[:2], dtype=torch.long) if ids is not None and ids.dim() == 2 else None

    def _bbox(self) -> Tensor | None:
        return torch.arange(4).repeat(self.sizes.batch, self.sizes.seq_len, 1) if "input_ids" in self.made else None

    def _classes_structure(self) -> Tensor:
        return torch.ones(self.sizes.batch, dtype=torch.long)

    # ------------------------------------------------------------------------------------------------------- vision

    def _merge(self) -> int:
        merge = self.vision("spatial_merge_size", "merge_size", "downsample_factor", "pooling_kernel_size", default=1)
        return one(merge) * one(self._field("downsample_factor", "pixel_shuffle_factor", default=1))

    def _grid_thw(self) -> Tensor:
        side = _GRID * self._merge()
        return torch.tensor([[1, side, side]] * self.sizes.batch)

    def _patch(self) -> int:
        return one(self.vision("patch_size", "spatial_patch_size", default=16))

    def _pixel_values(self) -> Tensor | None:
        if not self.vision() and "input_ids" in self.parameters:
            return None
        layout = self.layout.images
        if not layout:
            if self.parameters & {"image_grid_thw", "grid_thw"}:  # images come cut into patches, all in one row
                layout = "cut"
            elif self.parameters & {"spatial_shapes", "pixel_position_ids", "image_position_ids"}:
                layout = "padded"
            else:
                layout = "images" if self.vision("num_frames") is None else "frames"
        channels = one(self.vision("num_channels", "in_channels", "in_chans", default=3))
        patch, patches = self._patch(), int(self._grid_thw().prod(-1).sum())
        time = one(self.vision("temporal_patch_size", default=1))
        height, width = self._side()
        shape: dict[str, tuple[int, ...]] = {
            "images": (self.sizes.batch, channels, height, width),
            "stacks": (self.sizes.batch, 1, channels, height, width),
            "frames": (
                self.sizes.batch,
                self.vision("num_frames", "frames_per_clip", default=2),
                channels,
                height,
                width,
            ),
            "tiled": (self.sizes.batch, 3, channels, height, width),
            "tiles": (self.sizes.batch, 1, self.vision("max_num_tiles", default=1), channels, height, width),
            "cut": (patches, channels * time * patch**2),
            "cut_images": (patches, channels, patch, patch),
            "blocks": (patches, self._merge() * patch, self._merge() * patch, channels),
            "padded": (self.sizes.batch, patches // self.sizes.batch, channels * time * patch**2),
        }
        return self._floats(shape[layout])

    def _side(self) -> tuple[int, int]:
        side = self.vision("image_size", "img_size", "input_size", default=64)
        if isinstance(side, dict):
            side = tuple(side.values())
        return (side, side) if isinstance(side, int) else tuple(side)[-2:]

    _pixel_values_videos = _pixel_values

    def _high_res_pixel_values(self) -> Tensor | None:
        size = part(self.config.high_res_vision_config, "image_size")("image_size", default=64)
        return self._floats(self.sizes.batch, 3, size, size)

    def _hidden_states(self) -> Tensor | None:
        return self._pixel_values() if "grid_thw" in self.parameters else self._vectors()

    def _flattened_patches(self) -> Tensor:
        places = torch.cartesian_prod(torch.arange(_GRID), torch.arange(_GRID)).float()
        pixels = self._floats(self.sizes.batch, len(places), 3 * self._patch() ** 2)
        return torch.cat([places.expand(self.sizes.batch, -1, -1), pixels], -1)

    def _beside_images(self, *shape: int) -> Tensor | None:
        """A tensor of ones for each example that has an image."""
        return torch.ones(self.sizes.batch, *shape, dtype=torch.long) if "pixel_values" in self.made else None

    def _image_grid_thw(self) -> Tensor | None:
        return self._grid_thw() if "pixel_values" in self.made else None

    def _image_sizes(self) -> Tensor | None:
        return torch.tensor([self._side()] * self.sizes.batch) if "pixel_values" in self.made else None

    def _spatial_shapes(self) -> Tensor | None:
        return self._grid_thw()[:, 1:] if "pixel_values" in self.made else None

    _target_sizes = _image_grid_hw = _spatial_shapes

    def _pixel_position_ids(self) -> Tensor:
        side = torch.arange(int(self._grid_thw()[0, 1]))
        return torch.cartesian_prod(side, side).repeat(self.sizes.batch, 1, 1)

    _image_position_ids = _pixel_position_ids

    def _image_merge_sizes(self) -> Tensor | None:
        return torch.full((self.sizes.batch,), self._merge()) if "pixel_values" in self.made else None

    _merge_sizes = _image_merge_sizes

    def _pixel_attention_mask(self) -> Tensor | None:
        pixels = self.made.get("pixel_values")
        if pixels is None or not (pixels.dim() == 3 or "pixel_attention_mask" in self.parameters):
            return None
        return torch.ones(pixels.shape[:2] if pixels.dim() == 3 else (*pixels.shape[:-3], *pixels.shape[-2:])).bool()

    def _aspect_ratio_ids(self) -> Tensor | None:
        return self._beside_images(1)

    def _aspect_ratio_mask(self) -> Tensor | None:
        return self._beside_images(1, self.vision("max_num_tiles", default=1))

    def _image_attention_mask(self) -> Tensor | None:
        return self._beside_images(self.sizes.seq_len, 1)

    def _visual_feats(self) -> Tensor | None:
        width = self._field("visual_feat_dim")
        return self._floats(self.sizes.batch, self.sizes.seq_len, width) if width else None

    def _visual_pos(self) -> Tensor | None:
        width = self._field("visual_pos_dim")
        return self._floats(self.sizes.batch, self.sizes.seq_len, width) if width else None

    # -------------------------------------------------------------------------------------------------------- sound

    def _input_values(self) -> Tensor | None:
        bins = self.sound("num_mel_bins")
        if bins is not None and self.layout.sounds not in ("wave", "samples"):
            return self._floats(self.sizes.batch, self.sound("max_length", default=64), bins)
        steps = self.sound("conv_stride", "upsampling_ratios", "downsampling_ratios", default=(320,))
        length = (math.prod(steps) if isinstance(steps, list | tuple) else int(steps)) * (self.sizes.seq_len + 2)
        length = max(length, 12 * self.sound("hop_length", default=0))
        return self._floats(self.sizes.batch, *((1, length) if self.layout.sounds == "wave" else (length,)))

    def _input_features(self) -> Tensor | None:
        bins = self.sound(
            "num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", "feature_size", "input_dim"
        )
        if not isinstance(bins, int):
            if "input_ids" in self.parameters:
                return None
            bins = _BINS
        positions = self.sound("max_source_positions")
        time = 2 * positions if positions and self.sound("num_mel_bins") else 4 * self.sizes.seq_len
        step = 2 * self.sound("n_window", default=1)
        time = -(-time // step) * step
        layout = self.layout.sounds or ("bins_first" if positions and self.sound("num_mel_bins") else "bins_last")
        stacked = self.sound("input_size", default=bins)
        shapes = {"bins_first": (bins, time), "channel": (1, time, bins), "stacked": (time, stacked)}
        return self._floats(self.sizes.batch, *shapes.get(layout, (time, bins)))

    def _audio_mel(self) -> Tensor:
        return self._floats(self.sizes.batch, 4 * self.sizes.seq_len, self._field("input_feat_size", default=80))

    def _audio_mel_mask(self) -> Tensor:
        return torch.zeros(self.made["audio_mel"].shape[:2], dtype=torch.bool)

    def _input_features_mask(self) -> Tensor | None:
        features = self.made.get("input_features")
        if features is None:
            return None
        bins = self.sound("num_mel_bins", "input_feat_per_channel", "feature_size", "input_dim")
        time = -1 if features.shape[1] == bins != features.shape[-1] else 1
        return torch.ones(len(features), features.shape[time], dtype=torch.long)

    _feature_attention_mask = _input_features_mask

    def _padding_mask(self) -> Tensor | None:
        if "input_values" in self.made:
            return torch.ones(self.sizes.batch, self.made["input_values"].shape[-1], dtype=torch.bool)
        return self._input_features_mask()

    def _inputs(self) -> Tensor | None:
        return self._input_values() if self.sound() else self._vectors()

    # -------------------------------------------------------------------------------------------------- time series

    def _past_values(self) -> Tensor | None:
        length = self._field("context_length")
        if not length:
            return None
        length += max(self._field("lags_sequence", default=(0,)))
        width = self._field("num_input_channels", "input_size", default=1)
        single = self._field("num_input_channels") is None and width == 1
        return self._floats(self.sizes.batch, length, *(() if single else (width,)))

    def _past_values_padding(self) -> Tensor:
        return torch.zeros_like(self.made["past_values"], dtype=torch.long)

    def _past_observed_mask(self) -> Tensor:
        return torch.ones_like(self.made["past_values"])

    def _past_time_features(self) -> Tensor:
        width = self._field("num_time_features", default=0)
        return self._floats(*self.made["past_values"].shape[:2], width)

    def _freq(self) -> Tensor:
        return torch.zeros(self.sizes.batch, 1, dtype=torch.long)

    # ---------------------------------------------------------------------------------------------------- decisions

    def _steps(self, width: Any) -> Tensor | None:
        return self._floats(self.sizes.batch, self.sizes.seq_len, width) if "states" in self.parameters else None

    def _states(self) -> Tensor | None:
        return self._steps(self._field("state_dim"))

    def _actions(self) -> Tensor | None:
        return self._steps(self._field("act_dim"))

    def _rewards(self) -> Tensor | None:
        return self._steps(1)

    _returns_to_go = _rewards

    def _timesteps(self) -> Tensor | None:
        if "states" not in self.parameters:
            return None
        return torch.arange(self.sizes.seq_len).repeat(self.sizes.batch, 1)


class Part:
    """The fields of the part of a configuration that a modality has; empty where it has none."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def __call__(self, *names: str, default: Any = None) -> Any:
        """The first of these fields that is set; without names, whether there is such a part."""
        if not names:
            return bool(self._fields)
        return next((self._fields[name] for name in names if self._fields.get(name) is not None), default)


def part(config: PreTrainedConfig, *marks: str) -> Part:
    """The outermost configuration, of this one and those inside it, that has a field of one of these names."""
    found = list(_parts(config))
    return Part(next((each for mark in marks for each in found if each.get(mark) is not None), {}))


def _parts(config: PreTrainedConfig) -> Iterator[Mapping[str, Any]]:
    from transformers import PreTrainedConfig

    aliases = {alias: getattr(config, name, None) for alias, name in config.attribute_map.items()}
    yield {**aliases, **vars(config)}
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)


def one(size: Any) -> int:
    """A size that may be given for each axis; the last then."""
    return int(size[-1] if isinstance(size, list | tuple) else size)
