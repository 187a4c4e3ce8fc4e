"""A captured graph as a `torch.fx.GraphModule` that runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import fx, nn

from fxtrace.capture.recorder import Modes, current_modes, set_modes
from fxtrace.errors import CaptureFailed


def maker(root: nn.Module, graph: fx.Graph, name: str) -> Callable[[], fx.GraphModule]:
    """Returns what makes the graph module when it is first asked for: writing its code takes time.

    Args:
        root: where the graph finds its parameters, which are shared, not copied.
        graph: what is run.
        name: of the class.
    """

    @cache
    def make() -> fx.GraphModule:
        try:
            made = fx.GraphModule(root, graph, name if name.isidentifier() else "Captured")
        except Exception as error:  # whatever code generation meets in a constant
            raise CaptureFailed(
                f"the graph cannot be written as a torch.fx.GraphModule: {type(error).__name__}: {error}"
            ) from error
        if any(node.target is set_modes for node in graph.nodes):
            _RestoredModes().watch(made)
        return made

    return make


class _RestoredModes:
    """Puts the modes of gradients and mixed precision back after a graph that sets them."""

    def __init__(self) -> None:
        self._before: list[Modes] = []

    def watch(self, module: fx.GraphModule) -> None:
        module.register_forward_pre_hook(self._enter)
        module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, *_: Any) -> None:
        self._before.append(current_modes())

    def _leave(self, *_: Any) -> None:
        set_modes(*self._before.pop())
