"""A model that takes its time, node by node, and writes down each one that ran."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass
class Config:
    steps: int = 40
    log: str = ""


def step(x: Tensor, log: str) -> Tensor:
    time.sleep(0.01)
    with Path(log).open("a") as file:
        file.write("x")
    return x + 1


torch.fx.wrap("step")


class Slow(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.config.steps):
            x = step(x, self.config.log)
        return x


def build(config: Config) -> Slow:
    return Slow(config)


def example_inputs(config: Config) -> dict[str, Tensor]:
    return {"x": torch.zeros(2)}
