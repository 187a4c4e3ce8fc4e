"""What an op does, however it is spelled: one kind for `nn.Linear`, `F.linear` and `x @ weight.T` written as a linear.

The kinds are what role finding and rendering go by.
"""

from __future__ import annotations

KINDS: tuple[str, ...] = (
    "input",  # a placeholder
    "constant",  # a parameter or buffer read with get_attr
    "output",
    "linear",  # x Wᵀ + b with a parameter W
    "convolution",
    "recurrent",
    "embedding",  # rows of a parameter chosen by ids
    "matmul",  # a product of two computed tensors
    "attention",  # a fused softmax(q kᵀ) v
    "softmax",
    "norm",
    "activation",
    "dropout",
    "add",
    "sub",
    "mul",
    "div",
    "mask",  # masked_fill, where: some elements replaced
    "view",  # the same elements in another shape or order, or copies of them
    "join",  # cat, stack
    "select",  # a part: getitem, slice, chunk, split, gather
    "reduce",  # sum, mean, max, topk
    "create",  # a new tensor from nothing but sizes: arange, zeros, full, tril of them
    "cast",  # another dtype or device
    "size",  # arithmetic on sizes and other non-tensor values
    "elementwise",  # any other op that works element by element
    "module",  # a module that was not traced into
    "other",
)

POINTWISE = frozenset(
    {"activation", "add", "cast", "div", "dropout", "elementwise", "mask", "mul", "sub"},
)
"""Kinds whose every result element comes from the elements in its place."""
