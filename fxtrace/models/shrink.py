"""A small configuration of a Hugging Face family, made by rules over the names of the configuration's own fields.

Families share a vocabulary (`hidden_size`, `num_attention_heads`, `encoder_layers` ...), so a rule for a word serves
hundreds of them, and families not written yet. `EXCEPTIONS` holds what a family's names do not say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

LAYERS, HEADS, KEY_VALUE_HEADS, HEAD_DIM = 2, 4, 2, 16
WIDTH, INNER, VOCABULARY, POSITIONS, WINDOW = HEADS * HEAD_DIM, 96, 120, 64, 4
EXPERTS, CHOSEN, IMAGE, RANK, CODES = 4, 2, 64, 24, 64


def _at_most(limit: int) -> Callable[[int], int]:
    return lambda size: min(size, limit)


def _exactly(size: int) -> Callable[[int], int]:
    return lambda _: size


_KEY_VALUE_HEADS = r"(.*_)?(num_key_value_heads|n_head_kv|num_kv_heads)"

# (what a field's whole name must match, its new size from its old one); the first that matches counts.
_RULES: tuple[tuple[re.Pattern[str], Callable[[int], int]], ...] = tuple(
    (re.compile(pattern), rule)
    for pattern, rule in (
        (r".*feat_extract.*|(min|max)_depth|.*(dropout|drop|cost|coefficient|token_id|token_index)", lambda size: size),
        (r"type_vocab_size", lambda size: size),
        (r"(.*_)?vocab(_size(_.*)?)?|vocabulary_size|num_embeddings", _at_most(VOCABULARY)),
        (r"(.*_)?codebook_size", _at_most(CODES)),
        (r"(.*_)?(layer_period|layer_interval|attention_interval|window_pattern)", _at_most(LAYERS)),
        (r"(.*_)?layer_offset", _at_most(LAYERS - 1)),
        (r"first_k_dense_replace|max_window_layers|num_dense_layers|num_kv_shared_layers", _at_most(1)),
        (r"(.*_)?(num_|n_)?(hidden_|encoder_|decoder_)?(layers?|depth)|num_blocks", _at_most(LAYERS)),
        (_KEY_VALUE_HEADS, _at_most(KEY_VALUE_HEADS)),
        (r"(.*_)?(attention_heads|num_heads|n_heads?|heads|num_key_heads|num_value_heads)", _at_most(HEADS)),
        (r"qk_head_dim", _exactly(2 * HEAD_DIM)),
        (r"rotary_dim", _at_most(HEAD_DIM // 2)),
        (
            r"(.*_)?(head_dim|d_kv|d_head|dim_head|kv_channels|attention_head_size|head_size)|mamba_d_head",
            _at_most(HEAD_DIM),
        ),
        (r".*lora_rank", _at_most(RANK)),
        (
            r"(.*_)?(intermediate_(size|dim)|(ffn|ff|mlp|feedforward)_dim|d_ff|n_inner|(ffn|ff)_(hidden_)?size|d_inner"
            r"|dim_feedforward)",
            _at_most(INNER),
        ),
        (
            r"(.*_)?(hidden_(size|dim|channels)|d_model|n_embd|embed(ding)?_dim|embedding_size|emb_dim|projection_dim"
            r"|proj_dim|dim|d_embed|hidden|output_channels|bottleneck_size)",
            _at_most(WIDTH),
        ),
        (r"(.*_)?(num|n)(_local|_routed)?_experts|.*num_experts", _at_most(EXPERTS)),
        (r".*(experts_per_tok(en)?|moe_topk|moe_k|top_?k_experts)|moe_top_k", _at_most(CHOSEN)),
        (r"n_group|num_expert_group|.*mamba_n_groups|n_groups", _at_most(2)),
        (r"topk_group", _at_most(1)),
        (r"(.*_)?(state_size|d_state)", _at_most(HEAD_DIM)),
        (r"num_position_embeddings", _at_most(16)),
        (
            r"(.*_)?(max_(position_embeddings|(source|target)_positions|seq_len(gth)?|sequence_length|length)"
            r"|n_positions|n_ctx|position_embeddings)",
            _at_most(POSITIONS),
        ),
        (r"(.*_)?(sliding_window|attention_window|local_attention|attention_chunk_size|chunk_size)", _at_most(WINDOW)),
        (r"window_size", lambda size: size if size >= IMAGE else min(size, 2)),  # in pixels, or in patches
        (r"num_frames", _at_most(WINDOW)),
        (r"num_conv_pos_embeddings", _at_most(HEAD_DIM)),
        (r"mm_tokens_per_image", _at_most(4)),
        (r"num_quer(ies|y_tokens)|num_latents", _at_most(8)),
    )
)

# What other configurations count: `d_model` and `n_heads` are as above.
_LENGTHS = re.compile(r"(.*_)?(batch(_size)?|seq|(seq|src|tgt|sequence|source|target)_len(gth)?)")

_WIDTHS = re.compile(r"(.*_)?(hidden_sizes|embed_dims|conv_dim|layer_dims|neck_hidden_sizes)")
_INDICES = re.compile(r".*(indexes|idxs|indices|layer_ids|_layers)")

# Some classes leave these open, and then cannot be built.
_REQUIRED = {"head_dim": HEAD_DIM, "num_key_value_heads": HEADS, "vocab_size": VOCABULARY}

_RESNET = {
    "model_type": "resnet",
    "embedding_size": HEAD_DIM,
    "hidden_sizes": [16, 32, 48, 64],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}

# The parts of a rotary half for time, height and width, where the model class has them as a default of its own.
_SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}

EXCEPTIONS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("glm4v_text", "glm_image_text", "glm_ocr_text", "qwen2_vl_text", "qwen2_5_vl_text"), _SECTIONS),
    # Its masking looks for this token, and the class names none.
    "esm": {"pad_token_id": 1},
    # Coordinates are embedded in six equal parts.
    "lilt": {"hidden_size": 96},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8, "input_size": 64},
    # The axes' widths make up the hidden one, their lengths the sequence.
    "reformer": {"axial_pos_embds_dim": (24, 40), "axial_pos_shape": (8, 8)},
}


def arguments(kind: type[PreTrainedConfig], given: Mapping[str, Any], *, small: bool) -> dict[str, Any]:
    """Arguments for a configuration class; a nested configuration's are a nested dict.

    Args:
        kind: the class.
        given: arguments that are to be as they are, nested likewise; the rest fit in with them.
        small: shrink the rest; otherwise they are as the class has them.

    Caches are off in either case: a graph of one call has no use for them.
    """
    return _arguments(kind(), given, {}, small=small, nested=False)


def shrunk(config: PreTrainedConfig, *, derived: bool) -> dict[str, Any]:
    """Arguments for a configuration of the same class and structure as a given one, with small sizes.

    Args:
        config: as it was made.
        derived: shrink also what the class derives from other fields where it is left open, such as the number of key
            heads; otherwise the class derives it again.
    """
    result = _arguments(config, {}, {}, small=True, nested=True, derived=derived)
    return {name: value for name, value in result.items() if name != "model_type"}


def smaller_size(name: str, size: int) -> int:
    """A size for a field of that name in a configuration of any kind: small where the name says what it counts."""
    return min(size, POSITIONS // 4) if _LENGTHS.fullmatch(name) else _smaller_size(name, size)


def _smaller_size(name: str, size: int) -> int:
    return next((rule(size) for pattern, rule in _RULES if pattern.fullmatch(name)), size)


def _arguments(
    config: PreTrainedConfig,
    given: Mapping[str, Any],
    tokens: dict[int, int],
    *,
    small: bool,
    nested: bool,
    derived: bool = False,
) -> dict[str, Any]:
    result: dict[str, Any] = {"model_type": config.model_type} if nested else {}
    values = own_fields(config)
    for each in fields(config):
        name = each.name
        if name not in values:
            continue
        value = values[name]
        if is_configuration(value):
            if small and value.model_type.startswith("timm"):
                result[name] = _RESNET  # the same pyramid of features, with no other package
            else:
                inner = given.get(name) or {}
                result[name] = _arguments(value, inner, tokens, small=small, nested=True, derived=derived)
        elif name == "use_cache":
            result[name] = False
        elif small and value is None and name in _REQUIRED:
            result[name] = _REQUIRED[name]
        elif each.default is None and not derived and not (name.endswith("token_id") or name == "rope_parameters"):
            continue  # the class derives it from the other fields
        elif (new := _smaller(name, value, tokens) if small else value) != (each.default if nested else value):
            result[name] = new  # nested: its owner may have other defaults than its class
    if small:
        _relate(values, result, given)
        _choose_layers(config, result, given)
        result |= EXCEPTIONS.get(config.model_type, {})
    return result | {name: value for name, value in given.items() if not isinstance(result.get(name), dict)}


def own_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields that a configuration's own class has, beside those of every configuration."""
    from transformers import PreTrainedConfig

    base = {each.name for each in fields(PreTrainedConfig)}
    names = [each.name for each in fields(config) if each.name not in base or each.name.endswith("token_id")]
    return {name: vars(config)[name] for name in names if name in vars(config)}


def is_configuration(value: object) -> TypeGuard[PreTrainedConfig]:
    """Whether a field is a configuration inside another."""
    from transformers import PreTrainedConfig

    return isinstance(value, PreTrainedConfig)


def _smaller(name: str, value: Any, tokens: dict[int, int]) -> Any:
    match value:
        case bool() | float() | str() | None:
            return value
        case int() if re.fullmatch(r".*token_(id|index)|.*_token", name):
            return tokens.setdefault(value, VOCABULARY - 1 - len(tokens)) if value >= VOCABULARY - 20 else value
        case int():
            return _smaller_size(name, value)
        case dict() if "mrope_section" in value:
            return {**value, "mrope_section": _sections(value["mrope_section"])}
        case dict() if any(isinstance(each, dict) for each in value.values()):
            return {key: _smaller(key, each, tokens) for key, each in value.items()}
        case (int(), *_) if _WIDTHS.fullmatch(name):
            step = math.gcd(*value)
            return type(value)(min(each, each // step * HEAD_DIM) for each in value)
        case (int(), *_) if name in ("depths", "num_layers", "num_hidden_layers"):
            return type(value)(min(each, LAYERS) for each in value)
        case (int(), *_) if name.endswith("token_id") or name in ("attention_window",):
            return type(value)(_smaller(name, each, tokens) for each in value)
        case _:
            return value


def _sections(sections: Sequence[int]) -> list[int]:
    """The parts of a head's rotary half, scaled to the small head."""
    total, half = sum(sections), HEAD_DIM // 2
    scaled = [max(1, each * half // total) for each in sections]
    scaled[0] += half - sum(scaled)
    return scaled


def _relate(values: Mapping[str, Any], small: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Sizes that hang on each other: images on patches, a pyramid's width on its heads, a state space's heads."""

    def now(name: str) -> Any:
        return next((found[name] for found in (given, small, values) if name in found), None)

    if isinstance(size := values.get("image_size"), int | list | tuple):
        patch = values.get("patch_size")
        new = 2 * patch if isinstance(patch, int) and patch >= 8 else IMAGE
        small["image_size"] = min(size, new) if isinstance(size, int) else type(size)([new] * len(size))
    heads = values.get("num_attention_heads")
    for name, value in values.items():
        if isinstance(heads, int) and value == heads and re.fullmatch(_KEY_VALUE_HEADS, name):
            small[name] = now("num_attention_heads")
    heads = values.get("num_heads")
    if isinstance(heads, list | tuple) and isinstance(values.get("embed_dim"), int):
        small["embed_dim"] = HEAD_DIM * heads[0]
    for expand, count, size in (
        ("expand", "num_heads", "head_dim"),
        ("mamba_expand", "mamba_n_heads", "mamba_d_head"),
    ):
        if isinstance(values.get(expand), int | float) and isinstance(values.get(count), int) and now(size):
            small[count] = int(now(expand) * now("hidden_size")) // now(size)


def _choose_layers(config: PreTrainedConfig, small: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Where lists give each layer's kind, keeps one layer of each, at least two in all; or as many as are given."""
    name = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    count = vars(config).get(name)
    if not isinstance(count, int) or name not in small:
        return
    lists = {
        each: value
        for each, value in vars(config).items()
        if isinstance(value, list | tuple)
        and len(value) == count
        and not each.startswith("_")
        and all(isinstance(item, str | int | float | bool) for item in value)
        and each != "stage_names"
    }
    kinds: dict[tuple[Any, ...], int] = {}
    for layer, kind in enumerate(zip(*lists.values(), strict=True)):
        kinds.setdefault(kind, layer)
    chosen = [*kinds.values()][:4] if lists else []
    if len(chosen) == 1:
        chosen *= LAYERS
    if name in given and lists:
        chosen = [layer % count for layer in range(int(given[name]))]
    if chosen:
        small[name] = len(chosen)
        small |= {each: type(value)(value[layer] for layer in chosen) for each, value in lists.items()}
    for each, value in vars(config).items():
        listed = isinstance(value, list | tuple) and value and each not in lists and _INDICES.fullmatch(each)
        if listed and all(isinstance(item, int) for item in value) and max(value) >= small[name]:
            small[each] = type(value)(sorted({min(item, small[name] - 1) for item in value}))
