"""The reference model: the encoder–decoder transformer of "Attention Is All You Need", small enough to read whole.

Three names make it a model that fxtrace can trace: `Config`, `build` and `example_inputs`.
"""

from .config import Config
from .transformer import Transformer, build, example_inputs

__all__ = ["Config", "Transformer", "build", "example_inputs"]
