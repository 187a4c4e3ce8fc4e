"""A model that does harm when it runs, in the way that its configuration says."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass
class Config:
    how: str = ""
    size: int = 1
    flag: str = ""  # a file that it makes when the harm begins


class Hostile(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        if self.config.flag:
            Path(self.config.flag).touch()
        harm(self.config.how, self.config.size)
        return x + 1


def harm(how: str, size: int) -> None:
    match how:
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(size)
        case "sys.exit":
            sys.exit(size)
        case "loop":
            while True:
                pass
        case "library":  # no signal handler of Python's runs meanwhile
            ctypes.PyDLL(None).pause()
        case "numbers":
            torch.zeros(size << 20, dtype=torch.uint8)
        case "bytes":
            bytearray(size << 20)
        case "shared":  # not counted among a process's own data
            torch.zeros(size << 20, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
            time.sleep(60)
        case "child":  # lives on, and holds what it inherited
            if os.fork() == 0:
                time.sleep(60)
            os._exit(size)
        case "hang up":
            os.closerange(3, 256)
            time.sleep(60)
        case "litter":
            Path(tempfile.mkdtemp(), "litter").write_bytes(bytes(1000))
            os._exit(size)
        case "process":
            subprocess.run(["sleep", "60"], check=False)


def build(config: Config) -> Hostile:
    return Hostile(config)


def example_inputs(config: Config) -> dict[str, Tensor]:
    return {"x": torch.zeros(2)}
