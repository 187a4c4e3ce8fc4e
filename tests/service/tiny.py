"""A small model with inputs of several dtypes, for tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Config:
    width: int = 4
    words: int = 10
    scale: float = 1.0
    fails: str = ""


class Tiny(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.fails == "build":
            raise RuntimeError("no bricks")
        self.config = config
        self.embed = nn.Embedding(config.words, config.width)
        self.inner = nn.Sequential(nn.Linear(config.width, config.width), nn.ReLU())

    def forward(self, ids: Tensor, x: Tensor, keep: Tensor) -> Tensor:
        if self.config.fails == "forward":
            raise RuntimeError("no way forward")
        y = self.embed(ids) * keep.unsqueeze(-1) + self.config.scale * x
        result: Tensor = self.inner(y)
        return result.to(torch.bfloat16)


def build(config: Config) -> Tiny:
    return Tiny(config)


def example_inputs(config: Config) -> dict[str, Tensor]:
    return {
        "ids": torch.tensor([3, 5, 7]),
        "x": torch.rand(3, config.width),
        "keep": torch.tensor([True, False, True]),
    }
