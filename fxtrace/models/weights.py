"""Weights of a model from a safetensors file: nothing is unpickled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fxtrace.errors import InputError
from fxtrace.graph import show_shape

if TYPE_CHECKING:
    from torch import Tensor, nn

_LISTED = 8


def weights_digest(path: str | Path) -> str:
    """Digest of a file's bytes.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _invalid(path, error.strerror or str(error)) from error


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Gives a module the parameters and buffers of a safetensors file. All of them are changed, or none.

    The file must have every tensor of the module's state, by its name and of its shape, and no other. Of tensors that
    share their memory one is enough, as such files keep them once. Numbers are cast to the module's own dtype.

    Raises:
        InputError: the file cannot be read, or its tensors are not the module's; what differs is listed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        given: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _invalid(path, str(error)) from error
    state = module.state_dict(keep_vars=True)
    kept = {id(state[name]) for name in given if name in state}
    problems = [
        *_listed("lacks", (name for name, tensor in state.items() if name not in given and id(tensor) not in kept)),
        *_listed("has besides", (name for name in given if name not in state)),
        *_listed(
            "has in another shape",
            (
                f"{name} ({show_shape(tuple(tensor.shape))}, not {show_shape(tuple(state[name].shape))})"
                for name, tensor in given.items()
                if name in state and tensor.shape != state[name].shape
            ),
        ),
    ]
    if problems:
        raise _invalid(path, f"it {'; it '.join(problems)}; the model is {type(module).__name__}")
    module.load_state_dict(given, strict=False)


def _listed(what: str, names: Iterable[str]) -> list[str]:
    found = list(names)
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return [f"{what} {', '.join(found[:_LISTED])}{more}"] if found else []


def _invalid(path: str | Path, problem: str) -> InputError:
    return InputError(f"weights cannot be taken from {path}: {problem}", field="state", file=path)
