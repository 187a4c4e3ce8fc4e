"""The feed-forwards, norms and residual sums that a model has, told by what its modules take and give.

Nothing here reads a graph. A model's layers are the members of its module lists, or itself. Within a call of one, a
residual sum is a tensor some module takes or gives that is a tensor of the stream plus what a module gave (or two
gave), a feed-forward is an activation between two linear modules, and a norm is a module that takes a residual sum and
gives numbers of size one. Sums that no module takes, feed-forwards that are no modules, and experts, which take some of
the tokens, are not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from tests.benchmarks.coverage.truth import same_state

PARTS = ("feed_forward", "norm", "residual")


@dataclass(eq=False)
class _Call:
    """One call of a module: when it began and ended, and its tensors as they were then."""

    path: str
    module: nn.Module
    began: int
    taken: tuple[Tensor, ...]
    ended: int = 0
    given: tuple[Tensor, ...] = field(default=())

    @property
    def is_leaf(self) -> bool:
        return not any(True for _ in self.module.children())


@torch.no_grad()
def true_parts(module: nn.Module, inputs: Mapping[str, Any]) -> dict[str, list[Tensor]]:
    """The output of each feed-forward and norm and each residual sum of one run, in order."""
    calls = _calls(module, inputs)
    found: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    layers = [call for call in calls if not call.path or call.path.rpartition(".")[2].isdigit()]
    layers = [layer for layer in layers if not layer.is_leaf and layer.taken]
    for layer in layers:
        if not _is_expert(layer, calls):
            inside = [call for call in calls if layer.began < call.began and call.ended < layer.ended]
            forwards = list(_feed_forwards(inside, layer.taken[0]))
            _add(found["feed_forward"], forwards)
            _add(found["residual"], _sums(inside, layer))
    readers = [call for call in calls if call.is_leaf and len(call.taken) == len(call.given) == 1]
    _add(found["norm"], [c.given[0] for c in readers if _is_norm(c) and _among(c.taken[0], found["residual"])])
    return found


def _calls(module: nn.Module, inputs: Mapping[str, Any]) -> list[_Call]:
    calls: list[_Call] = []
    open_calls: list[_Call] = []
    clock = iter(range(1 << 40))
    with same_state(), ExitStack() as stack:
        for path, each in module.named_modules():

            def before(each: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
                call = _Call(path, each, next(clock), _tensors((args, kwargs)))
                calls.append(call)
                open_calls.append(call)

            def after(_each: nn.Module, _args: Any, output: Any) -> None:
                call = open_calls.pop()
                call.ended, call.given = next(clock), _tensors(output)

            stack.callback(each.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(each.register_forward_hook(after).remove)
        module(**inputs)
    return calls


def _tensors(values: object) -> tuple[Tensor, ...]:
    leaves = tree_leaves(values)
    return tuple(v.detach().clone() for v in leaves if isinstance(v, Tensor) and v.is_floating_point() and v.dim() > 1)


def _add(found: list[Tensor], new: list[Tensor]) -> None:
    """Those not there yet: a layer inside another is seen twice."""
    found.extend(each for each in new if not _among(each, found))


def _among(tensor: Tensor, others: list[Tensor]) -> bool:
    return any(
        tensor.numel() == other.numel() and torch.equal(tensor.reshape(-1), other.reshape(-1)) for other in others
    )


def _close(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, rtol=1e-4, atol=1e-5 * float(right.abs().max()))


def _sums(calls: list[_Call], layer: _Call) -> list[Tensor]:
    start = layer.taken[0].reshape(-1)
    moments = sorted(
        [(call.began, None, t) for call in calls for t in call.taken]
        + [(call.ended, call, t) for call in calls for t in call.given]
        + [(layer.ended, None, t) for t in layer.given],
        key=lambda moment: moment[0],
    )
    stream, given, sums = [start], list[Tensor](), list[Tensor]()
    for _, call, tensor in moments:
        flat = tensor.reshape(-1)
        if flat.numel() != start.numel() or _among(flat, stream):
            continue
        known = (call is not None and call.is_leaf) or _among(flat, given)
        if not known and _is_sum(flat, stream, given):
            stream.append(flat)
            sums.append(tensor)
        elif call is not None:
            if call.is_leaf and call.taken and _is_norm(call) and _among(call.taken[0].reshape(-1), stream[1:]):
                stream.append(flat)  # a norm after the sum is what the stream goes on with
            given.append(flat)
    return sums


def _is_sum(tensor: Tensor, stream: list[Tensor], given: list[Tensor]) -> bool:
    """Whether a tensor is one of the stream plus a multiple of one that a module gave, or plus two of those."""
    if not given:
        return False
    stacked = torch.stack(given)
    for each in stream:
        rest = tensor - each
        along = (stacked @ rest) / stacked.square().sum(1).clamp_min(1e-30)
        if any(_close(rest, scale * other) for scale, other in zip(along, given, strict=True) if scale > 1e-3):
            return True
        for number, one in enumerate(given):
            if any(_close(rest - one, other) for other in given[:number]):
                return True
    return False


_ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    F.relu,
    F.gelu,
    lambda x: F.gelu(x, approximate="tanh"),
    F.silu,
    lambda x: x * torch.sigmoid(1.702 * x),
    lambda x: F.relu(x).square(),
    torch.sigmoid,
    torch.tanh,
    F.elu,
    F.leaky_relu,
    F.hardswish,
    F.mish,
)


def _feed_forwards(calls: list[_Call], stream: Tensor) -> Iterator[Tensor]:
    """The outputs of linear modules that take an activation of what a linear module before them gave."""
    linear = [c for c in calls if c.is_leaf and len(c.taken) == 1 == len(c.given) and _is_linear(c.module)]
    for number, down in enumerate(linear):
        taken = down.taken[0].reshape(-1)
        before = [each for call in linear[:number] for each in _halves(call.given[0]) if each.numel() == taken.numel()]
        of_stream = down.given[0].numel() == stream.numel() or _rows(down.taken[0]) == _rows(stream)
        if of_stream and any(_is_activated(taken, up, before) for up in before):
            yield down.given[0]


def _is_expert(layer: _Call, calls: list[_Call]) -> bool:
    """Whether a member of a list takes fewer tokens than the module that has the list gives."""
    owner = layer.path.rpartition(".")[0].rpartition(".")[0]
    around = (call for call in calls if call.path == owner and call.began < layer.began and layer.ended < call.ended)
    return any(call.given and _rows(call.given[0]) > _rows(layer.taken[0]) for call in around)


def _rows(tensor: Tensor) -> int:
    return tensor.numel() // max(1, tensor.shape[-1])


def _is_linear(module: nn.Module) -> bool:
    """Whether a module mixes features by a matrix: it has a weight with two sizes above one, and no window."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() >= 2 and all(size == 1 for size in weight.shape[2:])


def _halves(tensor: Tensor) -> Iterator[Tensor]:
    """A linear module's output, and its halves: a gate may come with what it is for."""
    yield tensor.reshape(-1)
    if tensor.shape[-1] % 2 == 0:
        for half in (*tensor.chunk(2, -1), tensor[..., ::2], tensor[..., 1::2]):
            yield half.reshape(-1)


def _is_activated(taken: Tensor, up: Tensor, others: list[Tensor]) -> bool:
    for activation in _ACTIVATIONS:
        activated = activation(up)
        if _close(taken, activated) or any(_close(taken, activated * other) for other in others):
            return True
    return False


def _is_norm(call: _Call) -> bool:
    """Whether a module gives numbers of size one, before its own weight and bias, and its input's directions."""
    given, taken = call.given[0], call.taken[0]
    if given.shape != taken.shape:
        return False
    weight, bias = getattr(call.module, "weight", None), getattr(call.module, "bias", None)
    if isinstance(weight, Tensor) and weight.shape != given.shape[-1:]:
        return False
    given = given - bias if isinstance(bias, Tensor) else given
    scales: list[float | Tensor] = [1.0, weight, 1 + weight] if isinstance(weight, Tensor) else [1.0]
    for scale in scales:
        plain = given / scale
        for direction in (taken, taken - taken.mean(-1, keepdim=True)):
            alike = F.cosine_similarity(plain, direction, dim=-1)
            size = plain.square().mean(-1).sqrt()
            if bool((alike > 0.999).all()) and 0.3 < float(size.median()) < 1.02:
                return True
    return False
