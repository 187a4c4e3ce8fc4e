"""What running a variant of a model would take, measured before it runs.

Shapes need no numbers: a variant that is much larger than its model is propagated on fake tensors. A small one is
simply run, which is several times as quick. Which it is cannot be told from its parameters: a vision transformer of
7 times the image side makes 2,401 times the attention weights, with the same parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import log, prod
from types import MappingProxyType
from typing import Any

from fxtrace.capture.attention import StepByStep
from fxtrace.capture.capture import in_turn
from fxtrace.capture.fakes import Fakes
from fxtrace.capture.run import copies, map_tensors
from fxtrace.extras import needed_for

with needed_for("trying a model's variants"):
    import torch
    from torch import nn
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import flop_registry

LARGEST_PARAMETERS = 20_000_000
"""Elements of parameters, up to which a model is built and run for its shapes."""
LARGEST_RUN_BYTES = 128 << 20
"""Bytes of all tensors that a run makes, up to which it may be run for its shapes."""
LARGEST_RUN_FLOPS = 10_000_000_000
"""Floating-point operations of a run, likewise: about a second in one thread."""

_LARGEST_BUILT = 4 * LARGEST_PARAMETERS
"""Elements, up to which a model may be made to see how many it has: what is guessed beforehand is high."""
_STEEPEST = 4
"""The power with which what a run takes mostly grows with a field, at most: attention over an image, with its side."""
_MARGIN = 0.5
"""What is added to the power that was seen, for a size farther off."""


@dataclass(frozen=True, slots=True)
class RunCost:
    """What a run takes.

    Attributes:
        nbytes: of all tensors that its ops make, without regard to when they are freed.
        flops: floating-point operations of its products and convolutions.
    """

    nbytes: int
    flops: int

    def within(self, other: RunCost) -> bool:
        """Whether it takes no more than that."""
        return self.nbytes <= other.nbytes and self.flops <= other.flops

    def relative_to(self, other: RunCost) -> float:
        """How many times that it takes, in what grew most."""
        return max(self.nbytes / max(1, other.nbytes), self.flops / max(1, other.flops))

    def times(self, factor: float) -> RunCost:
        """So many times this."""
        return RunCost(int(self.nbytes * factor), int(self.flops * factor))


LARGEST_RUN = RunCost(LARGEST_RUN_BYTES, LARGEST_RUN_FLOPS)


class Budget:
    """Decides which variants of a model are run, by what the model and the variants before took.

    Args:
        base: the named sizes of the model itself.
        module: the model itself.
        inputs: its inputs, by name.
        unfused: whether attention is computed step by step.

    Raises:
        Exception: whatever the model raises.
    """

    def __init__(
        self, base: Mapping[str, int], module: nn.Module, inputs: Mapping[str, Any], *, unfused: bool = False
    ) -> None:
        self.base, self._unfused = dict(base), unfused
        self._parameters = parameter_count(module)
        self._own = run_cost(module, inputs, fake=False, unfused=unfused)
        # The model itself has been run: as much again does no harm.
        self._allowed = RunCost(max(LARGEST_RUN_BYTES, self._own.nbytes), max(LARGEST_RUN_FLOPS, self._own.flops))
        self._runs = _Growth(self.base, _STEEPEST)
        self._builds = _Growth(self.base, 2)  # a matrix grows with both of its sides

    def may_build(self, sizes: Mapping[str, int]) -> bool:
        """Whether a variant's parameters are surely few enough to be made, as most grow with two fields at once."""
        return self._parameters * self._builds.of(sizes) <= _LARGEST_BUILT

    def may_run(self, sizes: Mapping[str, int], module: nn.Module, inputs: Mapping[str, Any]) -> bool:
        """Whether a variant may be run: it must take little, or a run on fake tensors must say that it does."""
        if self._own.times(self._runs.of(sizes)).within(self._allowed):
            return True
        try:
            cost = run_cost(module, inputs, fake=True, unfused=self._unfused)
        except Exception:  # noqa: BLE001 - what it takes is not known
            return False
        self.learn(sizes, module, cost)
        return cost.within(self._allowed)

    def learn(self, sizes: Mapping[str, int], module: nn.Module, cost: RunCost) -> None:
        """Takes notice of what a variant took."""
        self._runs.learn(sizes, cost.relative_to(self._own))
        self._builds.learn(sizes, parameter_count(module) / max(1, self._parameters))


class _Growth:
    """How many times what the model takes its variants take, as learned from those with one size changed."""

    def __init__(self, base: Mapping[str, int], steepest: float) -> None:
        self._base, self._steepest = base, steepest
        self._known: dict[str, dict[int, float]] = {}

    def learn(self, sizes: Mapping[str, int], times: float) -> None:
        changed = self._changed(sizes)
        if len(changed) == 1:
            ((name, size),) = changed.items()
            self._known.setdefault(name, {})[size] = max(1.0, times)

    def of(self, sizes: Mapping[str, int]) -> float:
        """Of several sizes changed, the product of what every one alone makes; of what is not known, a high guess."""
        return prod(self._of_one(name, size) for name, size in self._changed(sizes).items())

    def _changed(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {name: size for name, size in sizes.items() if size != self._base.get(name)}

    def _of_one(self, name: str, size: int) -> float:
        known, before, steepest = self._known.get(name, {}), self._base.get(name, 0), self._steepest
        if size in known:
            return known[size]
        if any(times > 1 and (n > before) != (size > before) for n, times in known.items()):
            return 1.0  # what grows one way shrinks the other
        alike = [(self._ratio(name, n), times) for n, times in known.items() if (n > before) == (size > before)]
        if alike:
            ratio, times = max(alike)
            steepest = log(times, ratio) + _MARGIN
        return float(self._ratio(name, size) ** steepest)

    def _ratio(self, name: str, size: int) -> float:
        """How far a size is from its own value; a smaller part (a patch, a group) makes more of the whole."""
        before = self._base.get(name, 0)
        return max(size / before, before / size) if before > 0 and size > 0 else 1.0


def parameter_count(module: nn.Module) -> int:
    """How many elements a module's parameters have."""
    return sum(each.numel() for each in module.parameters())


@contextmanager
def counted() -> Iterator[Callable[[], RunCost]]:
    """Counts what runs within on tensors with numbers; what comes gives it."""
    with _Counting() as counting:
        yield lambda: RunCost(counting.nbytes, counting.flops)


def run_cost(module: nn.Module, inputs: Mapping[str, Any], *, fake: bool, unfused: bool = False) -> RunCost:
    """What one call of a module in evaluation mode takes.

    Args:
        module: the module; it is left as it was.
        inputs: by name.
        fake: whether to call it on fake tensors, which takes no memory and no time for numbers.
        unfused: whether attention is computed step by step.

    Raises:
        Exception: whatever the module raises; on fake tensors also where its path depends on numbers.
    """
    mode: AbstractContextManager[Any] = nullcontext()
    given = copies(inputs)
    if fake:
        mode = fakes = Fakes()
        given = map_tensors(fakes.from_tensor, given)
    inside: AbstractContextManager[Any] = StepByStep() if unfused else nullcontext()
    with in_turn(module):
        module.eval()
        with mode, _Counting() as counting, inside:
            module(**given)
    return RunCost(counting.nbytes, counting.flops)


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what the ops within make."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nbytes, self.flops = 0, 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it, PyTorch would import it at the first op, for seconds; nothing here is compiled

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] = MappingProxyType({})
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.nbytes += sum(each.nbytes for each in tree_leaves(made) if isinstance(each, torch.Tensor))
        count = _flop_formula(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=made)
        return made


def _flop_formula(op: Any) -> Callable[..., int] | None:
    """PyTorch's own count for an op; the attention kernel of the CPU, which it lacks, counts as that of CUDA."""
    if op is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        op = torch.ops.aten._scaled_dot_product_flash_attention
    found: Callable[..., int] | None = flop_registry.get(op)
    return found
