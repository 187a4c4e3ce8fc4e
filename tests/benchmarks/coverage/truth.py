"""What a Hugging Face model itself says of its attentions: the truth that found roles are held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

KINDS = ("self_attention", "masked_self_attention", "cross_attention")


@contextmanager
def same_state() -> Iterator[None]:
    """Each run of a model begins in the same random state: some draw what they mask."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        yield


@dataclass(frozen=True, eq=False)
class TrueAttention:
    """One attention of the model: its kind, where it was told, and its weights."""

    kind: str
    where: str
    weights: Tensor


def true_attentions(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[TrueAttention, ...]:
    """The attention weights that the model gives back when asked for them, and those its modules hand each other.

    The model must compute attention eagerly. What comes as `cross_attentions` is cross-attention, and so are weights
    that are not square where the model does not say that they are its own `attentions` (whose keys may be fewer than
    its queries); of the rest, those of which no query looks ahead are masked self-attention.
    """
    passed: list[TrueAttention] = []

    def note(path: str) -> Any:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            parts = output if isinstance(output, tuple | list) else ()
            weights = (each for each in parts if isinstance(each, Tensor) and _are_weights(each))
            passed.extend(TrueAttention(_kind("", each), path, each) for each in weights)

        return hook

    with same_state(), ExitStack() as stack:
        for path, each in module.named_modules():
            stack.callback(each.register_forward_hook(note(path)).remove)
        try:
            told = tuple(_walk(module(**inputs, output_attentions=True, return_dict=True), ""))
        except TypeError:  # a forward that cannot be asked
            module(**inputs)
            told = ()
    found = list(told)
    for each in passed:
        if not any(_same_numbers(each.weights, other.weights) for other in found):
            found.append(each)
    return tuple(found)


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one, in another layout perhaps."""
    return one.numel() == other.numel() and torch.equal(one.flatten().sort().values, other.flatten().sort().values)


def _walk(outputs: Any, path: str) -> Iterator[TrueAttention]:
    if not isinstance(outputs, Mapping):
        return
    for key, value in outputs.items():
        if key.endswith("attentions") and isinstance(value, tuple):
            for each in value:
                if not isinstance(each, Tensor):
                    continue
                if each.dim() == 4 and bool((each < 0).any()):
                    each = each.softmax(-1)  # ProphetNet and SqueezeBERT hand out the scores
                if _are_weights(each):
                    yield TrueAttention(_kind(key, each), f"{path}{key}", each)
        else:
            yield from _walk(value, f"{path}{key}.")


def _are_weights(tensor: Tensor) -> bool:
    """Whether the rows are shares of one; a sink may have a share that is not in the tensor."""
    if tensor.dim() < 3 or not tensor.is_floating_point() or tensor.shape[-1] < 2 or not tensor.numel():
        return False
    rows = tensor.sum(-1)
    if tensor.dim() == 4 and tensor.shape[1] > 1 and bool((tensor == tensor[:, :1]).all()):
        return False  # a mean over the heads, given once for each of them: no head's weights
    return bool((tensor >= 0).all() and (rows <= 1 + 1e-4).all() and (rows > 1e-3).all())


def _kind(key: str, weights: Tensor) -> str:
    square = weights.shape[-1] == weights.shape[-2]
    if key.startswith("cross") or not (key or square):
        return "cross_attention"
    if not square:
        return "self_attention"
    ahead = torch.ones(weights.shape[-2:], dtype=torch.bool).triu(1)
    return "self_attention" if weights[..., ahead].any() else "masked_self_attention"


@dataclass(frozen=True, eq=False)
class Passed:
    """A tensor that went into a module or came out of it, as it was at that moment."""

    path: str
    type: str
    came_out: bool
    leaf: bool
    tensor: Tensor


def passed_tensors(module: nn.Module, inputs: Mapping[str, Any]) -> tuple[Passed, ...]:
    """Every tensor that the modules of one run took and gave."""
    found: list[Passed] = []

    def note(path: str, each: nn.Module, values: object, *, came_out: bool) -> None:
        leaf = not any(True for _ in each.children())
        flat = tree_leaves(values)
        found.extend(
            Passed(path, type(each).__name__, came_out, leaf, value.detach().clone())
            for value in flat
            if isinstance(value, Tensor) and value.dtype != torch.bool
        )

    with same_state(), ExitStack() as stack:
        for path, each in module.named_modules():

            def before(each: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
                note(path, each, (args, kwargs), came_out=False)

            def after(each: nn.Module, _: Any, output: Any, path: str = path) -> None:
                note(path, each, output, came_out=True)

            stack.callback(each.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(each.register_forward_hook(after).remove)
        module(**inputs)
    return tuple(found)
