"""An encoder–decoder transformer, written to be read.

After Vaswani et al., "Attention Is All You Need" (2017), with the layer norms where that paper has them: after each
residual sum. Shapes are written in batch B, source length S, target length T, heads H, d_model D and d_head = D / H;
L stands for either length.
"""

import math

import torch
from torch import Tensor, nn

from .config import Config


class Transformer(nn.Module):
    """Predicts the next target token from the source and the target so far."""

    # Fixed tables, filled once and never trained.
    positions: Tensor
    causal_mask: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.src_embedding = nn.Embedding(config.src_vocab, config.d_model)
        self.tgt_embedding = nn.Embedding(config.tgt_vocab, config.d_model)
        self.enc_layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.dec_layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.to_vocab = nn.Linear(config.d_model, config.tgt_vocab)
        longest = max(config.src_len, config.tgt_len)
        self.register_buffer("positions", sinusoidal_positions(longest, config.d_model))
        self.register_buffer("causal_mask", torch.full((1, 1, longest, longest), -math.inf).triu(1))

    def forward(self, src_ids: Tensor, tgt_ids: Tensor) -> dict[str, Tensor]:
        """From token ids, (S,) and (T,), to the logits of each target position, (1, T, tgt_vocab)."""
        src_ids, tgt_ids = src_ids.unsqueeze(0), tgt_ids.unsqueeze(0)  # a batch of one: (1, S), (1, T)

        x = self.src_embedding(src_ids)  # (B, S, D)
        x = x + self.positions[: x.size(1)]
        for layer in self.enc_layers:
            x = layer(x)
        memory = x

        y = self.tgt_embedding(tgt_ids)  # (B, T, D)
        y = y + self.positions[: y.size(1)]
        length = y.size(1)
        mask = self.causal_mask[:, :, :length, :length]  # (1, 1, T, T)
        for layer in self.dec_layers:
            y = layer(y, memory, mask)

        logits = self.to_vocab(y)  # (B, T, tgt_vocab)
        return {
            "logits": logits,
            "logits_slice": logits[0, 0, :10],
            "embedding_slice": self.src_embedding.weight[:5, :5],
        }


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward, each added to its input and normalised."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self_mha = MultiHeadAttention(config)
        self.mlp = FeedForward(config)
        self.norm1 = nn.LayerNorm(config.d_model)
        self.norm2 = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        x = self.norm1(x + self.self_mha(x, x))
        return self.norm2(x + self.mlp(x))


class DecoderLayer(nn.Module):
    """Masked self-attention, cross-attention over the encoder's output, feed-forward."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self_mha = MultiHeadAttention(config)
        self.cross_mha = MultiHeadAttention(config)
        self.mlp = FeedForward(config)
        self.norm1 = nn.LayerNorm(config.d_model)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.norm3 = nn.LayerNorm(config.d_model)

    def forward(self, y: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D), the memory (B, S, D) and the mask (1, 1, T, T) to (B, T, D)."""
        y = self.norm1(y + self.self_mha(y, y, mask))
        y = self.norm2(y + self.cross_mha(y, memory))
        return self.norm3(y + self.mlp(y))


class MultiHeadAttention(nn.Module):
    """softmax(Q Kᵀ / √d_head + mask) V, for H heads side by side."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_heads, self.d_head = config.n_heads, config.d_head
        self.W_q = nn.Linear(config.d_model, config.d_model)
        self.W_k = nn.Linear(config.d_model, config.d_model)
        self.W_v = nn.Linear(config.d_model, config.d_model)
        self.W_o = nn.Linear(config.d_model, config.d_model)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Each position of x, (B, L, D), gathers what it needs from the context, (B, L', D)."""
        q = self.split_heads(self.W_q(x))  # (B, H, L, d_head)
        k = self.split_heads(self.W_k(context))  # (B, H, L', d_head)
        v = self.split_heads(self.W_v(context))

        scores = q @ k.transpose(-2, -1) / math.sqrt(self.d_head)  # (B, H, L, L')
        if mask is not None:
            scores = scores + mask
        weights = scores.softmax(dim=-1)

        heads = weights @ v  # (B, H, L, d_head)
        return self.W_o(self.concat_heads(heads))

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, H, L, d_head)."""
        return x.view(x.size(0), x.size(1), self.n_heads, self.d_head).transpose(1, 2)

    def concat_heads(self, x: Tensor) -> Tensor:
        """(B, H, L, d_head) to (B, L, D)."""
        return x.transpose(1, 2).reshape(x.size(0), x.size(2), self.n_heads * self.d_head)


class FeedForward(nn.Module):
    """Two linear maps with a ReLU between, on each position alone."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.d_model, config.d_ff)
        self.fc2 = nn.Linear(config.d_ff, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D), through (B, L, d_ff)."""
        return self.fc2(torch.relu(self.fc1(x)))


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """Positions as waves of falling frequency, (length, d_model): sines at even places, cosines at odd ones."""
    position = torch.arange(length).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
    table = torch.zeros(length, d_model)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)[:, : d_model // 2]
    return table


def build(config: Config) -> Transformer:
    """The model, its parameters drawn from the configuration's seed; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Transformer(config)


def example_inputs(config: Config) -> dict[str, Tensor]:
    """The two sentences as token ids, (S,) and (T,)."""
    return {"src_ids": torch.tensor(config.source_ids()), "tgt_ids": torch.tensor(config.target_ids())}
