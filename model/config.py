"""The reference model's configuration: every size is a field."""

from dataclasses import dataclass, fields
from difflib import get_close_matches
from itertools import cycle, islice
from typing import Annotated

SOURCE_WORDS = ("cairo", "egypt", "from", "hello", "project", "team")
TARGET_WORDS = ("are", "debugging", "today", "transformer", "we")


@dataclass(frozen=True)
class Config:
    """Sizes, seed and sentences of the reference transformer.

    A sentence is cut, or read again from its start, until it has `src_len` (`tgt_len`) tokens, so that every length
    can be tried without writing a sentence for it. A vocabulary gives its words the ids 0, 1, 2 …; an embedding may
    have more rows than there are words.

    Raises:
        ValueError: a size is not positive, the heads do not divide d_model, a vocabulary is larger than its
            embedding, or a sentence has a word outside its vocabulary.
    """

    encoder_layers: Annotated[int, "layers of the encoder"] = 2
    decoder_layers: Annotated[int, "layers of the decoder"] = 2
    n_heads: Annotated[int, "attention heads; they divide d_model"] = 4
    d_model: Annotated[int, "width of every token's vector between the blocks"] = 128
    d_ff: Annotated[int, "width inside the feed-forward block"] = 256
    src_len: Annotated[int, "tokens of the source"] = 6
    tgt_len: Annotated[int, "tokens of the target"] = 5
    src_vocab: Annotated[int, "rows of the source embedding"] = 6
    tgt_vocab: Annotated[int, "rows of the target embedding, and classes of the output"] = 5
    seed: Annotated[int, "of the random state the parameters are drawn from"] = 7
    source: Annotated[str, "the source sentence"] = "hello from cairo egypt team project"
    target: Annotated[str, "the target sentence"] = "we are debugging transformer today"
    src_words: Annotated[tuple[str, ...], "the source vocabulary, in the order of the ids"] = SOURCE_WORDS
    tgt_words: Annotated[tuple[str, ...], "the target vocabulary, in the order of the ids"] = TARGET_WORDS

    def __post_init__(self) -> None:
        for field in fields(self):
            size = getattr(self, field.name)
            if isinstance(size, int) and field.name != "seed" and size < 1:
                raise ValueError(f"{field.name} must be at least 1, got {size}")
        if self.d_model % self.n_heads:
            divisors = [heads for heads in range(1, self.d_model + 1) if self.d_model % heads == 0]
            nearest = min(divisors, key=lambda heads: abs(heads - self.n_heads))
            raise ValueError(
                f"n_heads must divide d_model: {self.d_model} / {self.n_heads} is not whole; "
                f"the nearest n_heads that does is {nearest}"
            )
        for side in ("src", "tgt"):
            words, rows = getattr(self, f"{side}_words"), getattr(self, f"{side}_vocab")
            if len(words) > rows:
                raise ValueError(f"{side}_vocab must be at least {len(words)}, the number of {side}_words, got {rows}")
        self.source_ids()
        self.target_ids()

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads

    def source_ids(self) -> list[int]:
        """The source sentence as `src_len` token ids."""
        return _ids("source", self.source, self.src_words, self.src_len)

    def target_ids(self) -> list[int]:
        """The target sentence as `tgt_len` token ids."""
        return _ids("target", self.target, self.tgt_words, self.tgt_len)


def _ids(side: str, sentence: str, vocabulary: tuple[str, ...], length: int) -> list[int]:
    words = sentence.split()
    if not words:
        raise ValueError(f"{side} must have at least one word, got '{sentence}'")
    for word in words:
        if word not in vocabulary:
            near = get_close_matches(word, vocabulary, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ValueError(
                f"{side} has the word '{word}', which is outside its vocabulary; {hint}Words: {', '.join(vocabulary)}"
            )
    return [vocabulary.index(word) for word in islice(cycle(words), length)]
