"""A model whose graph holds a tensor of every element type, tensors of every rank from 0 to 4, and a large one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
)


@dataclass
class Config:
    megabytes: int = 8


class EveryType(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.large = nn.Buffer(torch.arange(config.megabytes << 18, dtype=torch.float32))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        ranks = (x.sum(), x[0, 0, 0], x[0, 0], x[0], x, x[:, :0], x.transpose(1, 3))
        return (*(x.to(dtype) for dtype in DTYPES), *ranks, self.large + 1)


def build(config: Config) -> EveryType:
    return EveryType(config)


def example_inputs(config: Config) -> dict[str, Tensor]:
    return {"x": torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).remainder(120).to(torch.float32)}
