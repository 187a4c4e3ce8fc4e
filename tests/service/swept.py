"""A small model for sweeps: its modules refuse what its configuration does not, and one size follows no formula."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Config:
    width: int = 8
    heads: int = 2
    layers: int = 1
    length: int = 3
    activation: str = "relu"
    fixed: int = 3
    trap: bool = False
    copied: bool = False
    routed: bool = False

    def __post_init__(self) -> None:
        self.fixed = 3
        if self.width > 500:
            raise ValueError(f"width must be at most 500, got {self.width}")


class Swept(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.width % config.heads:
            raise RuntimeError(f"{config.heads} heads do not divide {config.width}")
        self.heads, self.copied, self.routed = config.heads, config.copied, config.routed
        self.layers = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.layers))
        odd = config.trap and config.width % 11 == 0
        self.last = nn.Linear(config.width // config.heads, config.width + odd)
        self.act = nn.ReLU() if config.activation == "relu" else nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        if self.routed:
            x = x[(x[:, 0] == 0).nonzero()[:, 0]]
        for layer in self.layers:
            x = self.act(layer(x))
        heads = x.view(x.size(0), self.heads, -1)
        if self.copied:  # of one head, or one row, it is the same tensor
            heads = heads.transpose(0, 1).contiguous()
        result: Tensor = self.last(heads)
        return result


def build(config: Config) -> Swept:
    return Swept(config)


def example_inputs(config: Config) -> dict[str, Tensor]:
    return {"x": torch.zeros(config.length, config.width)}
