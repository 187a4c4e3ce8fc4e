"""Fused attention, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class StepByStep(TorchFunctionMode):
    """Computes `F.scaled_dot_product_attention` in the steps that its documentation defines it by.

    The fused kernels hide the scores and the weights. They sum in another order, so their outputs differ from these in
    the last digits.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs one call. PyTorch calls this, with the mode itself turned off."""
        if func is functional.scaled_dot_product_attention:
            func = attention
        return func(*args, **(kwargs or {}))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(query · keyᵀ · scale + mask) · value, with `F.scaled_dot_product_attention`'s own parameters.

    Args:
        query: (..., heads, queries, width).
        key: (..., heads, keys, width); with `enable_gqa` there may be fewer heads, each for several of the queries'.
        value: (..., heads, keys, value width).
        attn_mask: of the scores' shape or one that broadcasts to it; added, or where it is boolean, False hides a key.
        dropout_p: the share of the weights that is dropped.
        is_causal: no query sees a key after its own place.
        scale: of the products; 1/√width where it is None.
        enable_gqa: whether there may be fewer heads of keys.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    if attn_mask is not None:
        boolean = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(attn_mask.logical_not(), -math.inf) if boolean else scores + attn_mask
    weights = scores.softmax(-1)
    if dropout_p:
        weights = functional.dropout(weights, dropout_p)
    return weights @ value
