"""Models that can be traced, and the contract a model file keeps.

A model file is a Python file (or an installed module) with three names:

    Config                    a dataclass of plain fields, each with a default. `Annotated[int, "what it is"]` describes
                              a field. Integer fields are the named dimensions' source. `__post_init__` may raise
                              ValueError for values that do not fit.
    build(config)             the `torch.nn.Module`, parameters and all.
    example_inputs(config)    a dict from the names of `forward`'s parameters to example tensors.

That is all:

    from dataclasses import dataclass
    import torch

    @dataclass
    class Config:
        width: int = 8

    def build(config):
        return torch.nn.Linear(config.width, 2)

    def example_inputs(config):
        return {"input": torch.ones(3, config.width)}

An installed package offers its models through entry points in the group `fxtrace.models`, each naming such a module.

In this process a model can also be named by where it comes from:

    path/to/mine.py           a model file
    package.module:factory    a callable that returns (module, example inputs), its parameters being the configuration's
                              fields; or anything with the contract's three names
    hf:bert                   an architecture of transformers, small and with random weights; `hf:bert:BertForMaskedLM`
                              or `hf:bert:AutoModelForMaskedLM` for another head

A server runs only those of them that its operator named when starting it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fxtrace.models.base import Model
from fxtrace.models.registry import GROUP, Registry

if TYPE_CHECKING:
    from fxtrace.models.contract import CONTRACT, ContractModel

__all__ = ["CONTRACT", "GROUP", "ContractModel", "Model", "Registry"]


def __getattr__(name: str) -> Any:
    if name not in ("CONTRACT", "ContractModel"):  # not before it is needed: pydantic takes a while to import
        raise AttributeError(f"module 'fxtrace.models' has no attribute '{name}'")
    return getattr(import_module("fxtrace.models.contract"), name)
