"""A model that does harm when it runs, in the way that its configuration says."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import time
from contextlib import suppress
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
        case "daemon":  # one that is out of the reach of its group, and holds the worker's pipe
            if os.fork() == 0:
                os.setsid()
                time.sleep(30)
            os._exit(size)
        case "noise":  # the beginning of a frame that is longer than any memory
            for descriptor in range(3, 64):
                with suppress(OSError):
                    if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                        os.write(descriptor, struct.pack("!iQ", -1, 1 << 62))
            time.sleep(600)
        case "memory":
            torch.zeros(size << 20, dtype=torch.uint8)


def build(config: Config) -> Hostile:
    return Hostile(config)


def example_inputs(config: Config) -> dict[str, Tensor]:
    return {"x": torch.zeros(2)}
