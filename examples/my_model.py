"""A small causal language model, as a model file of your own: three names, and nothing of fxtrace in it.

fxtrace trace examples/my_model.py --set width=64 --set n_heads=8
fxtrace graph
fxtrace render -o my_model.svg
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class Config:
    """Sizes of the language model."""

    n_layers: Annotated[int, "blocks"] = 2
    n_heads: Annotated[int, "attention heads; they divide width"] = 2
    width: Annotated[int, "features of a token"] = 32
    length: Annotated[int, "tokens"] = 8
    vocabulary: Annotated[int, "words"] = 50

    def __post_init__(self) -> None:
        if self.width % self.n_heads:
            raise ValueError(f"n_heads must divide width, got {self.n_heads} and {self.width}")


class Block(nn.Module):
    """Pre-norm: causal self-attention, then a feed-forward, each added to the stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.before_attention = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.mix = nn.Linear(config.width, config.width)
        self.before_mlp = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width), nn.GELU(), nn.Linear(4 * config.width, config.width)
        )

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """(batch, length, width) to the same; `hidden` is true where a token may not look."""
        batch, length, width = x.shape
        q, k, v = self.qkv(self.before_attention(x)).chunk(3, dim=-1)
        heads = (batch, length, self.n_heads, width // self.n_heads)
        q, k, v = q.view(heads).transpose(1, 2), k.view(heads).transpose(1, 2), v.view(heads).transpose(1, 2)
        scores = (q @ k.transpose(-2, -1)) * (width // self.n_heads) ** -0.5
        weights = functional.softmax(scores.masked_fill(hidden, -math.inf), dim=-1)
        x = x + self.mix((weights @ v).transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.before_mlp(x))


class LanguageModel(nn.Module):
    """Token ids (batch, length) to logits (batch, length, vocabulary)."""

    hidden: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.places = nn.Parameter(torch.randn(config.length, config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.last_norm = nn.LayerNorm(config.width)
        self.to_words = nn.Linear(config.width, config.vocabulary, bias=False)
        self.register_buffer("hidden", torch.ones(config.length, config.length, dtype=torch.bool).triu(1))

    def forward(self, ids: Tensor) -> Tensor:
        """From ids to logits."""
        x = self.tokens(ids) + self.places
        for block in self.blocks:
            x = block(x, self.hidden)
        return self.to_words(self.last_norm(x))


def build(config: Config) -> LanguageModel:
    """The model, with random parameters."""
    return LanguageModel(config)


def example_inputs(config: Config) -> dict[str, Tensor]:
    """Two sentences of consecutive ids."""
    return {"ids": (torch.arange(2 * config.length) % config.vocabulary).view(2, config.length)}
