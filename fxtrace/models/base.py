"""What every model can do, wherever it comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fxtrace.ir.trace import Json, ModelInfo

if TYPE_CHECKING:
    from torch import Tensor, nn


class Model(ABC):
    """Something that builds a module and example inputs from a configuration.

    A configuration is an object of the model's own kind, made by `resolve`; callers hand it back as it is.

    Attributes:
        name: what it is called in requests.
        digest: of everything besides the configuration that determines what is built.
    """

    name: str
    digest: str

    def __repr__(self) -> str:
        return f"<Model {self.name}>"

    @abstractmethod
    def info(self) -> ModelInfo:
        """The model's name, a line about it, and its configuration field by field."""

    @abstractmethod
    def resolve(self, overrides: Mapping[str, Json]) -> Any:
        """A configuration: the defaults, with these fields overridden.

        Text is accepted for numbers (`"64"`), as it comes from a command line.

        Raises:
            ConfigurationError: an unknown field (the nearest is named), a value of the wrong type, or one that the
                configuration itself refuses.
        """

    @abstractmethod
    def fields(self, config: Any) -> dict[str, Json]:
        """Every field of a configuration, in JSON's terms."""

    @abstractmethod
    def build(self, config: Any) -> nn.Module:
        """The module.

        Raises:
            ModelInvalid: something else was built.
        """

    @abstractmethod
    def example_inputs(self, config: Any) -> dict[str, Tensor]:
        """Example tensors by the names of `forward`'s parameters.

        Raises:
            ModelInvalid: something else was given.
        """

    @abstractmethod
    def smaller(self, config: Any) -> Iterator[Any]:
        """Configurations of the same structure with less to compute, to be tried in this order; perhaps none.

        The model may turn out not to build from one.
        """
