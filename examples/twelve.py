"""Twelve models as people write them, small and with random weights: what `one_line.ipynb` traces, each in one line.

Every function returns the module and the arguments that it is called with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""A module, and its positional and keyword arguments."""


def pytorch_transformer() -> Call:
    """PyTorch's own encoder-decoder."""
    model = nn.Transformer(
        32, nhead=4, num_encoder_layers=2, num_decoder_layers=2, dim_feedforward=64, batch_first=True
    )
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    return model, (torch.randn(1, 6, 32), torch.randn(1, 5, 32)), {"tgt_mask": mask, "tgt_is_causal": True}


def hugging_face_llama() -> Call:
    """A Llama of transformers, with eager attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config), (), {"input_ids": torch.arange(8)[None], "use_cache": False}


class CachedAttention(nn.Module):
    """Causal attention that also reads the keys and values of the tokens before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        query, key, value = (each.view(shape).transpose(1, 2) for each in self.qkv(x).split(width, dim=2))
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        scores = query @ key.transpose(-2, -1) / (width // self.heads) ** 0.5
        seen = torch.ones(length, key.shape[2], dtype=torch.bool).tril(key.shape[2] - length)
        weights = F.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
        y = (weights @ value).transpose(1, 2).reshape(batch, length, width)
        return self.project(y), (key, value)


class NanoGPT(nn.Module):
    """A small GPT in the manner of nanoGPT, with a KV cache."""

    def __init__(self, vocabulary: int = 50, width: int = 32, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(64, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers + 1))
        self.attentions = nn.ModuleList(CachedAttention(width, heads) for _ in range(layers))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(layers)
        )
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(
        self, ids: Tensor, cache: list[tuple[Tensor, Tensor]] | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        start = 0 if cache is None else cache[0][0].shape[2]
        x = self.tokens(ids) + self.positions(torch.arange(start, start + ids.shape[1]))
        now = []
        for layer, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            y, kept = attention(self.norms[2 * layer](x), None if cache is None else cache[layer])
            now.append(kept)
            x = x + y
            x = x + mlp(self.norms[2 * layer + 1](x))
        return self.head(self.norms[-1](x)), now


def nanogpt_with_a_cache() -> Call:
    """A decode step: one token, after a prefill of six that filled the cache."""
    model = NanoGPT().eval()
    with torch.no_grad():
        _, cache = model(torch.arange(6)[None])
    return model, (torch.tensor([[6]]), cache), {}


class ViT(nn.Module):
    """A vision transformer: patches, a class token, an encoder."""

    def __init__(self, image: int = 16, patch: int = 4, width: int = 32, layers: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 64, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(len(image), -1, -1), tokens), dim=1) + self.positions
        logits: Tensor = self.head(self.encoder(x)[:, 0])
        return logits


def vit() -> Call:
    """A vision transformer on one small image."""
    return ViT(), (torch.randn(1, 3, 16, 16),), {}


class UNet(nn.Module):
    """A U-Net of two levels, with concatenated skips."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

        self.enter, self.down, self.middle = (
            block(3, channels),
            block(channels, 2 * channels),
            block(2 * channels, 4 * channels),
        )
        self.widen = nn.ConvTranspose2d(4 * channels, 2 * channels, 2, 2)
        self.up = block(4 * channels, 2 * channels)
        self.widen_again = nn.ConvTranspose2d(2 * channels, channels, 2, 2)
        self.leave = nn.Sequential(block(2 * channels, channels), nn.Conv2d(channels, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        first = self.enter(image)
        second = self.down(F.max_pool2d(first, 2))
        deepest = self.middle(F.max_pool2d(second, 2))
        up = self.up(torch.cat((self.widen(deepest), second), dim=1))
        mask: Tensor = self.leave(torch.cat((self.widen_again(up), first), dim=1))
        return mask


def unet() -> Call:
    """A U-Net on one small image."""
    return UNet(), (torch.randn(1, 3, 16, 16),), {}


class Seq2Seq(nn.Module):
    """An LSTM that reads a sentence, and one that writes another, step by step."""

    def __init__(self, vocabulary: int = 20, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.encoder = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.decoder = nn.LSTMCell(width, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, source: Tensor, steps: int = 3) -> Tensor:
        _, (hidden, cell) = self.encoder(self.embedding(source))
        h, c = hidden[-1], cell[-1]
        token, written = source.new_zeros(len(source)), []
        for _ in range(steps):
            h, c = self.decoder(self.embedding(token), (h, c))
            written.append(self.head(h))
            token = written[-1].argmax(-1)
        return torch.stack(written, dim=1)


def lstm_seq2seq() -> Call:
    """Two sentences of five tokens; a flag says how many to write."""
    return Seq2Seq(), (torch.randint(20, (2, 5)),), {"steps": 4}


class Tower(nn.Module):
    """Two kinds of input in one dict, as data loaders give them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.numbers, self.join = nn.EmbeddingBag(30, 16), nn.Linear(4, 16), nn.Linear(32, 1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        both = torch.cat((self.words(batch["words"]), self.numbers(batch["numbers"])), dim=-1)
        return {"score": self.join(both).squeeze(-1)}


def dict_batch() -> Call:
    """A batch of two in a dict."""
    return Tower(), ({"words": torch.randint(30, (2, 5)), "numbers": torch.randn(2, 4)},), {}


class Mixer(nn.Module):
    """Any number of inputs, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.stack([self.linear(each) for each in inputs]).mean(0)


def star_args() -> Call:
    """Three inputs by `*args`."""
    return Mixer(), tuple(torch.randn(2, 8) for _ in range(3)), {}


@dataclass
class Batch:
    """A batch as a dataclass; the mask may be absent."""

    ids: Tensor
    mask: Tensor | None = None


class Tagger(nn.Module):
    """Reads a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(30, 16), nn.Linear(16, 4)

    def forward(self, batch: Batch) -> Tensor:
        x = self.embedding(batch.ids)
        if batch.mask is not None:
            x = x * batch.mask[..., None]
        tags: Tensor = self.head(x)
        return tags


def dataclass_batch() -> Call:
    """A dataclass with a mask."""
    return Tagger(), (Batch(torch.randint(30, (2, 5)), torch.ones(2, 5)),), {}


def mlp() -> Call:
    """Three layers."""
    return (
        nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)),
        (torch.randn(4, 8),),
        {},
    )


class GraphNet(nn.Module):
    """Two rounds of message passing over the edges of a graph."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(2 * width, width), nn.GRUCell(width, width)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        for _ in range(2):
            messages = self.message(torch.cat((x[source], x[target]), dim=-1)).relu()
            x = self.update(torch.zeros_like(x).index_add(0, target, messages), x)
        return x


def graph_network() -> Call:
    """Five nodes and six edges."""
    edges = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])
    return GraphNet(), (torch.randn(5, 8), edges), {}


def reference() -> Call:
    """The encoder-decoder that comes with fxtrace, which builds it by name: `fxtrace.trace("reference")`."""
    from fxtrace.reference import Config, build, example_inputs

    config = Config()
    return build(config), (), dict(example_inputs(config))


TWELVE = {
    "nn.Transformer": pytorch_transformer,
    "Hugging Face Llama": hugging_face_llama,
    "nanoGPT with a cache": nanogpt_with_a_cache,
    "ViT": vit,
    "U-Net": unet,
    "LSTM seq2seq": lstm_seq2seq,
    "dict batch": dict_batch,
    "*args": star_args,
    "dataclass batch": dataclass_batch,
    "MLP": mlp,
    "GNN": graph_network,
    "reference": reference,
}
