"""How many attentions of each kind a Hugging Face configuration says there are: layers × kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tests.benchmarks.coverage.truth import KINDS

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers")
_DECODER_LAYERS = ("decoder_layers", "num_decoder_layers", "num_layers", "num_hidden_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "num_attention_heads")


def configured_attentions(model: type, config: Any) -> dict[str, int]:
    """Attentions by kind, of a configuration and those inside it that its model has parts for; {} if none says."""
    counts = dict.fromkeys(KINDS, 0)
    for kind, number in _counted(model, config):
        if number is None:
            return {}
        counts[kind] += number
    return counts


def _counted(model: type, config: Any) -> Iterator[tuple[str, int | None]]:
    if config.sub_configs and _first(config, _LAYERS) is None:
        for name in config.sub_configs:
            if (inner := getattr(config, name, None)) is not None:
                yield from _counted(model, inner)
        return
    if _first(config, _HEADS) is None:
        return
    if config.is_encoder_decoder:
        yield "self_attention", _first(config, ("encoder_layers", *_LAYERS)) or 0
        decoders = _first(config, _DECODER_LAYERS) or 0
        yield "masked_self_attention", decoders
        yield "cross_attention", decoders
        return
    yield "masked_self_attention" if _looks_back_only(model, config) else "self_attention", _attention_layers(config)
    if getattr(config, "add_cross_attention", False):
        yield "cross_attention", _attention_layers(config)


def _attention_layers(config: Any) -> int | None:
    """The layers that have an attention, where a list or a period says which; else all. None where nothing says."""
    layers = _first(config, _LAYERS)
    if isinstance(depths := getattr(config, "depths", None), list | tuple):
        return sum(depths)
    for name in ("layer_types", "layers_block_type", "block_types"):
        if isinstance(kinds := getattr(config, name, None), list | tuple):
            if len(kinds) != layers:  # a pattern, repeated
                kinds = [kinds[number % len(kinds)] for number in range(int(layers or 0))]
            return sum(("attention" in kind and "linear" not in kind) or kind == "hybrid" for kind in kinds)
    if isinstance(chosen := getattr(config, "attn_layer_indices", None), list | tuple):
        return len(chosen)
    return layers if layers is None or isinstance(layers, int) else sum(layers)


def _looks_back_only(model: type, config: Any) -> bool:
    """Whether a stack alone is a decoder: its class predicts the next word, and its type no masked one."""
    from transformers.models.auto import modeling_auto

    if getattr(config, "is_decoder", False):
        return True
    masked: Mapping[str, Any] = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    causal: Mapping[str, Any] = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return config.model_type in causal and config.model_type not in masked


def _first(config: Any, names: tuple[str, ...]) -> Any:
    aliases = config.attribute_map
    return next((value for n in names if (value := getattr(config, aliases.get(n, n), None)) is not None), None)
