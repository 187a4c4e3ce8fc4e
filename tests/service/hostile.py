"""A model that does harm when it runs, in the way that its configuration says."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass
class Config:
    how: str = ""
    size: int = 1
    pid: str = ""  # a file that is to hold the process's id when the harm begins


class Hostile(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        if self.config.pid:
            Path(self.config.pid).write_text(str(os.getpid()))
        harm(self.config.how, self.config.size)
        return x + 1


def harm(how: str, size: int) -> None:
    match how:
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(size)
        case "loop":
            while True:
                pass
        case "library":  # meanwhile no signal handler of Python's runs
            ctypes.PyDLL(None).pause()
        case "memory":
            torch.zeros(size << 20, dtype=torch.uint8)


def build(config: Config) -> Hostile:
    return Hostile(config)


def example_inputs(config: Config) -> dict[str, Tensor]:
    return {"x": torch.zeros(2)}
