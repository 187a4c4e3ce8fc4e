"""A small configuration of a Hugging Face family, made by rules over the names of the configuration's own fields.

Families share a vocabulary (`hidden_size`, `num_attention_heads`, `encoder_layers` ...), so a rule for a word serves
hundreds of them, and families not written yet. Where a family's sizes hang together in ways that its names do not say,
fewer of them are made small: see `SHRINKS`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from fxtrace.ir.trace import Json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

LAYERS, HEADS, KEY_VALUE_HEADS, HEAD_DIM = 2, 4, 2, 16
VOCABULARY, POSITIONS, WINDOW = 120, 64, 4
EXPERTS, CHOSEN, IMAGE, RANK, CODES = 4, 2, 64, 24, 64


@dataclass(frozen=True, slots=True)
class Shrink:
    """What is made small; the rest is as the configuration class has it.

    Attributes:
        counts: layers, experts, words.
        widths: features, heads, ranks.
        extents: pixels, positions, windows.
        head_dim: features of a head, by which widths go; 0 for as many as the class has.
        factor: widths are the class's divided by it, and heads as many, in place of what goes by `head_dim`: sizes that
            hang together by sums and products still do.
        patches: of an image in either direction; 0 divides images by the factor, too.
        derived: whether what the class derives from other fields, where it is left open, is made small, too.
        open_fields: fields that the class leaves open get a value that others have: a padding token, the parts of the
            rotary half for time, height and width.
    """

    counts: bool = True
    widths: bool = True
    extents: bool = True
    head_dim: int = HEAD_DIM
    factor: int = 1
    patches: int = 2
    derived: bool = False
    open_fields: bool = False

    @property
    def heads(self) -> bool:
        """Whether there are fewer heads."""
        return self.widths and self.factor == 1


AS_IT_IS = Shrink(counts=False, widths=False, extents=False)

SHRINKS: tuple[Shrink, ...] = (
    Shrink(),
    Shrink(open_fields=True),
    Shrink(head_dim=0),
    Shrink(head_dim=24),  # coordinates are embedded in six equal parts
    Shrink(derived=True),
    Shrink(patches=8),
    Shrink(factor=8, head_dim=0),
    Shrink(factor=8, head_dim=0, open_fields=True),
    Shrink(factor=8, head_dim=0, patches=0, derived=True),
    Shrink(extents=False),
    Shrink(factor=8, head_dim=0, extents=False),
    Shrink(widths=False),
    Shrink(widths=False, extents=False),
)
"""From the smallest on; the first is taken with which the model runs."""

_Kind = Literal["counts", "heads", "widths", "extents"]
_Rule = Callable[[int, int], int]


def _at_most(limit: int) -> _Rule:
    return lambda size, _: min(size, limit)


def _heads_wide(heads: int) -> _Rule:
    return lambda size, head_dim: min(size, heads * head_dim)


def _as_it_is(size: int, _: int) -> int:
    return size


_KEY_VALUE_HEADS = r"(.*_)?(num_key_value_heads|n_head_kv|num_kv_heads)"

# (what it makes small, what a field's whole name must match, its new size from its old one and a head's); the first
# that matches counts.
_RULES: tuple[tuple[_Kind, str, _Rule], ...] = (
    ("counts", r".*feat_extract.*|(min|max)_depth|.*(dropout|drop|cost|coefficient)", _as_it_is),
    ("counts", r".*(token_id|token_index)|type_vocab_size", _as_it_is),
    ("counts", r"(.*_)?vocab(_size(_.*)?)?|vocabulary_size|num_embeddings", _at_most(VOCABULARY)),
    ("counts", r"(.*_)?codebook_size", _at_most(CODES)),
    ("counts", r"(.*_)?(layer_period|layer_interval|attention_interval|window_pattern)", _at_most(LAYERS)),
    ("counts", r"(.*_)?(layer_offset|feature_layers?)", _at_most(LAYERS - 1)),
    ("counts", r"merge_index", _at_most(LAYERS - 2)),
    ("counts", r"first_k_dense_replace|max_window_layers|num_dense_layers|num_kv_shared_layers", _at_most(1)),
    ("counts", r"(.*_)?(num_|n_)?(hidden_|encoder_|decoder_)?(layers?|depth)|num_blocks", _at_most(LAYERS)),
    ("heads", _KEY_VALUE_HEADS, _at_most(KEY_VALUE_HEADS)),
    (
        "heads",
        r"(.*_)?(attention_heads|num_heads|n_heads?|heads|num_key_heads|num_value_heads)",
        _at_most(HEADS),
    ),
    ("widths", r"qk_head_dim", lambda _, head_dim: 2 * head_dim),
    ("widths", r"rotary_dim", lambda size, head_dim: min(size, head_dim // 2)),
    (
        "widths",
        r"(.*_)?(head_dim|d_kv|d_head|dim_head|kv_channels|attention_head_size|head_size)|mamba_d_head",
        _heads_wide(1),
    ),
    ("widths", r".*lora_rank", _at_most(RANK)),
    (
        "widths",
        r"(.*_)?(intermediate_(size|dim)|(ffn|ff|mlp|feedforward)_dim|d_ff|n_inner|(ffn|ff)_(hidden_)?size|d_inner"
        r"|dim_feedforward)",
        _heads_wide(6),
    ),
    (
        "widths",
        r"(.*_)?(hidden_(size|dim|channels)|d_model|n_embd|embed(ding)?_dim|embedding_size|emb_dim|projection_dim"
        r"|proj_dim|dim|d_embed|hidden|output_channels|bottleneck_size|upsample_groups)",
        _heads_wide(HEADS),
    ),
    ("counts", r"(.*_)?(num|n)(_local|_routed)?_experts|.*num_experts", _at_most(EXPERTS)),
    ("counts", r".*(experts_per_tok(en)?|moe_topk|moe_k|top_?k_experts)|moe_top_k", _at_most(CHOSEN)),
    ("counts", r"n_group|num_expert_group|.*mamba_n_groups|n_groups", _at_most(2)),
    ("counts", r"topk_group", _at_most(1)),
    ("widths", r"(.*_)?(state_size|d_state)", _heads_wide(1)),
    ("extents", r"num_position_embeddings", _at_most(16)),
    (
        "extents",
        r"(.*_)?(max_(position_embeddings|(source|target)_positions|seq_len(gth)?|sequence_length|length)"
        r"|n_positions|n_ctx|position_embeddings)|context_size",
        _at_most(POSITIONS),
    ),
    (
        "extents",
        r"(.*_)?(sliding_window|attention_window|local_attention|attention_chunk_size|chunk_size)",
        _at_most(WINDOW),
    ),
    (
        "extents",
        r"window_size",
        lambda size, _: size if size >= IMAGE else min(size, 2),
    ),  # in pixels, or in patches
    ("extents", r"num_frames", _at_most(WINDOW)),
    ("extents", r"n_window", _at_most(POSITIONS)),
    ("extents", r"num_conv_pos_embeddings", _at_most(HEAD_DIM)),
    ("extents", r"mm_tokens_per_image", _at_most(4)),
    ("extents", r"num_quer(ies|y_tokens)|num_latents", _at_most(8)),
    ("extents", r"prediction_length", _at_most(8)),
)
_PATTERNS = tuple((kind, re.compile(pattern), rule) for kind, pattern, rule in _RULES)

# Fields that are widths by the look of them, and how small a width is left as it is where all are divided.
_WIDE = re.compile(r".*(size|dims?|width|channel|features|hidden|rank|embd|inner|d_[a-z]+).*")
_NOT_WIDE = re.compile(
    r"(.*_)?(num|n|max|min)_.*"
    r"|.*(image|patch|window|chunk|kernel|vocab|position|batch|stride|grid|crop|codebook|queue|seq|cache|tile|pool"
    r"|conv_size|sample|mel|bins|rate|context|block|stack|group|token|label|quer).*"
)
_NARROW = 64

# What other configurations count: `d_model` and `n_heads` are as above.
_LENGTHS = re.compile(r"(.*_)?(batch(_size)?|seq|(seq|src|tgt|sequence|source|target)_len(gth)?)")

_WIDTHS = re.compile(r"(.*_)?(hidden_sizes|embed_dims|conv_dim|layer_dims|neck_hidden_sizes)")
_INDICES = re.compile(r".*(indexes|idxs|indices|layer_ids|_layers)")

_RESNET = {
    "model_type": "resnet",
    "embedding_size": HEAD_DIM,
    "hidden_sizes": [16, 32, 48, 64],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}

_LARGEST = 1 << 30  # what a field is taken to be that the class leaves open
_UNKNOWN = 4  # and what it is then where no rule makes it smaller


def arguments(kind: type[PreTrainedConfig], given: Mapping[str, Any], shrink: Shrink) -> dict[str, Any]:
    """Arguments for a configuration class; a nested configuration's are a nested dict.

    Args:
        kind: the class.
        given: arguments that are to be as they are, nested likewise; the rest fit in with them.
        shrink: what of the rest is made small.

    Caches are off in any case: a graph of one call has no use for them.
    """
    return _arguments(kind(), given, {}, shrink, nested=False, derived=shrink.derived)


def shrunk(config: PreTrainedConfig, shrink: Shrink, *, derived: bool) -> dict[str, Any]:
    """Arguments for a configuration of the same class and structure as a given one, with small sizes.

    Args:
        config: as it was made.
        shrink: what is made small.
        derived: shrink also what the class derives from other fields where it is left open, such as the number of key
            heads; otherwise the class derives it again.
    """
    result = _arguments(config, {}, {}, shrink, nested=True, derived=derived)
    return {name: value for name, value in result.items() if name != "model_type"}


def smaller_size(name: str, size: int) -> int:
    """A size for a field of that name in a configuration of any kind: small where the name says what it counts."""
    return min(size, POSITIONS // 4) if _LENGTHS.fullmatch(name) else _size(name, size, Shrink())


def shrunk_to(whole: Mapping[str, Json], small: Mapping[str, Json], most: int | None = None) -> str:
    """What a small copy is, by its fields and the whole's: `a copy shrunk to hidden_size=64, num_hidden_layers=2`.

    Args:
        whole: the whole's fields.
        small: the copy's.
        most: how many fields are shown; all of them where it is not given.
    """
    changed = {name: value for name, value in small.items() if type(value) is int and whole.get(name) != value}
    if not changed:
        return "a copy"
    shown = ", ".join(f"{name}={value}" for name, value in islice(changed.items(), most))
    return f"a copy shrunk to {shown}{' …' if most is not None and len(changed) > most else ''}"


def _arguments(
    config: PreTrainedConfig,
    given: Mapping[str, Any],
    tokens: dict[int, int],
    shrink: Shrink,
    *,
    nested: bool,
    derived: bool = False,
) -> dict[str, Any]:
    result: dict[str, Any] = {"model_type": config.model_type} if nested else {}
    values = own_fields(config)
    here = replace(shrink, head_dim=shrink.head_dim or _head_dim(values) // shrink.factor)
    for each in fields(config):
        name = each.name
        if name not in values:
            continue
        value = values[name]
        if is_configuration(value):
            if shrink.counts and name == "backbone_config" and value.model_type.startswith("timm"):
                pyramid = {"out_indices": list(value.out_indices)} if getattr(value, "out_indices", None) else {}
                result[name] = _RESNET | pyramid  # the same features, with no other package
            else:
                inner = given.get(name) or {}
                result[name] = _arguments(value, inner, tokens, shrink, nested=True, derived=derived)
        elif name == "use_cache":
            result[name] = False
        elif shrink.open_fields and (filled := _filled(name, value, str(each.type), here)) is not None:
            result[name] = filled
        elif each.default is None and not derived and not (name.endswith("token_id") or name == "rope_parameters"):
            continue  # the class derives it from the other fields
        elif (new := _smaller(name, value, tokens, here)) != (each.default if nested else value):
            result[name] = new  # nested: its owner may have other defaults than its class
    _relate(values, result, given, here)
    if shrink.counts:
        _choose_layers(config, result, given)
    if nested:
        _choose_outputs(config, result, given)
    return result | {name: value for name, value in given.items() if not isinstance(result.get(name), dict)}


def _head_dim(values: Mapping[str, Any]) -> int:
    """How many features a head of the class has."""
    named = next((values[name] for name in ("head_dim", "d_kv", "kv_channels", "d_head") if values.get(name)), None)
    if isinstance(named, int):
        return named
    pairs = (("hidden_size", "num_attention_heads"), ("d_model", "encoder_attention_heads"), ("n_embd", "n_head"))
    for width, heads in (*pairs, ("d_model", "num_attention_heads"), ("d_model", "n_heads"), ("dim", "n_heads")):
        if isinstance(values.get(width), int) and isinstance(values.get(heads), int) and values[heads]:
            return int(values[width]) // int(values[heads])
    return HEAD_DIM


def _filled(name: str, value: Any, annotation: str, shrink: Shrink) -> Any:
    """A value for a field that the class leaves open; None for others."""
    if name == "rope_parameters" and "mrope_section" not in (value or {}):
        sections = _sections([1, 1, 1], _rotary_half(value or {}, shrink))
        return {"rope_type": "default", "rope_theta": 10000.0, **(value or {}), "mrope_section": sections}
    if value is not None:
        return None
    if name == "pad_token_id":
        return 1
    if re.fullmatch(r"(image|audio)_token_(id|index)", name):
        return VOCABULARY - 1
    if name == "layer_types":
        return ["full_attention"] * LAYERS
    if name == "vocabulary_map":
        return {"<image>": VOCABULARY - 1}
    if "int" not in annotation or re.search(r"list|tuple|dict|float|str", annotation):
        return None
    size = _size(name, _LARGEST, shrink)
    return size if size < _LARGEST else _UNKNOWN


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


def _size(name: str, size: int, shrink: Shrink) -> int:
    for kind, pattern, rule in _PATTERNS:
        if pattern.fullmatch(name):
            if kind == "widths" and shrink.factor > 1:
                return _divided(size, shrink)
            return rule(size, shrink.head_dim) if getattr(shrink, kind) else size
    return _divided(size, shrink) if _looks_wide(name) else size


def _looks_wide(name: str) -> bool:
    return bool(_WIDE.fullmatch(name)) and not _NOT_WIDE.fullmatch(name)


def _divided(size: int, shrink: Shrink) -> int:
    return size // shrink.factor if size >= _NARROW and size % shrink.factor == 0 else size


def _smaller(name: str, value: Any, tokens: dict[int, int], shrink: Shrink) -> Any:
    match value:
        case bool() | float() | str() | None:
            return value
        case int() if re.fullmatch(r".*token_(id|index)|.*_token", name):
            moved = shrink.counts and value >= VOCABULARY - 20
            return tokens.setdefault(value, VOCABULARY - 1 - len(tokens)) if moved else value
        case int():
            return _size(name, value, shrink)
        case dict() if "mrope_section" in value:
            half = _rotary_half(value, shrink) if shrink.widths else sum(value["mrope_section"])
            return {**value, "mrope_section": _sections(value["mrope_section"], half)}
        case dict() if any(isinstance(each, dict) for each in value.values()):
            return {key: _smaller(key, each, tokens, shrink) for key, each in value.items()}
        case ((int(), *_), *_) if name.endswith("feature_sizes") and not shrink.patches:
            return type(value)(type(each)(size // shrink.factor for size in each) for each in value)
        case (int(), *_) if shrink.factor > 1 and (_WIDTHS.fullmatch(name) or _looks_wide(name)):
            narrow = any(_divided(each, shrink) == each for each in value)
            return value if narrow else type(value)(_divided(each, shrink) for each in value)
        case (int(), *_) if _WIDTHS.fullmatch(name) and shrink.widths:
            step = math.gcd(*value)
            return type(value)(min(each, each // step * HEAD_DIM) for each in value)
        case (int(), *_) if name in ("depths", "num_layers", "num_hidden_layers") and shrink.counts:
            return type(value)(min(each, LAYERS) for each in value)
        case (int(), *_) if re.fullmatch(r".*token_id|attention_window|.*feature_layers?", name):
            return type(value)(_smaller(name, each, tokens, shrink) for each in value)
        case _:
            return value


def _rotary_half(rope: Mapping[str, Any], shrink: Shrink) -> int:
    return int(shrink.head_dim * rope.get("partial_rotary_factor", 1)) // 2


def _sections(sections: Sequence[int], half: int) -> list[int]:
    """The parts of a head's rotary half, scaled to the small head."""
    total = sum(sections)
    scaled = [max(1, each * half // total) for each in sections]
    scaled[0] += half - sum(scaled)
    return scaled


def _relate(values: Mapping[str, Any], small: dict[str, Any], given: Mapping[str, Any], shrink: Shrink) -> None:
    """Sizes that hang on each other: images on patches, a pyramid's width on its heads, a state space's heads."""

    def now(name: str) -> Any:
        return next((found[name] for found in (given, small, values) if name in found), None)

    if isinstance(size := values.get("image_size"), int | list | tuple) and shrink.extents:
        patch = values.get("patch_size")
        side = size if isinstance(size, int) else max(size)
        new = shrink.patches * (patch if isinstance(patch, int) and patch >= 8 else IMAGE // 2) or side // shrink.factor
        small["image_size"] = min(size, new) if isinstance(size, int) else type(size)([new] * len(size))
    if not shrink.heads:
        return
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


def _choose_outputs(config: PreTrainedConfig, small: dict[str, Any], given: Mapping[str, Any]) -> None:
    """As many of a backbone's stages for others to take as there were; where each layer is a stage, the last ones."""
    indices = getattr(config, "out_indices", None)
    if not isinstance(indices, list | tuple):
        return
    name = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if name in small and vars(config).get(name) == len(config.stage_names) - 1:
        small[name] = last = max(small[name], len(indices), int(given.get(name, 0)))
        indices = range(last - len(indices) + 1, last + 1)
    small["out_indices"] = list(indices)


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
