"""A decoder with its mask in a buffer, of any size, for tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Config:
    d_model: int = 16384
    n_heads: int = 32
    n_layers: int = 4
    vocab: int = 32000
    max_len: int = 32
    batch: int = 2
    seq_len: int = 6
    interleaved: bool = False
    widest: int = 1 << 20

    def __post_init__(self) -> None:
        if self.d_model > self.widest:
            raise ValueError("d_model must fit")


class Layer(nn.Module):
    mask: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.d_model
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.register_buffer("mask", torch.full((config.max_len,) * 2, float("-inf")).triu(1))

    def heads(self, x: Tensor) -> Tensor:
        count = self.config.n_heads
        if self.config.interleaved:  # every n_heads-th feature is of the same head
            return x.view(*x.shape[:2], -1, count).permute(0, 3, 1, 2)
        return x.view(*x.shape[:2], count, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.heads(project(x)) for project in (self.q, self.k, self.v))
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        weights = (scores + self.mask[: x.shape[1], : x.shape[1]]).softmax(-1)
        x = self.first(x + self.o((weights @ v).transpose(1, 2).flatten(2)))
        normed: Tensor = self.second(x + self.down(self.up(x).relu()))
        return normed


class Decoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab, config.d_model)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.out = nn.Linear(config.d_model, config.vocab)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.out(x)
        return logits


def build(config: Config) -> Decoder:
    return Decoder(config)


def example_inputs(config: Config) -> dict[str, Tensor]:
    return {"ids": torch.randint(config.vocab, (config.batch, config.seq_len))}
