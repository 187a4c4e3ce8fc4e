"""How a model is named by where it comes from, and what is known of it there without running any of it."""

from __future__ import annotations

import re
from pathlib import Path

from fxtrace.errors import ModelInvalid
from fxtrace.models.sources import find_module, sources_of_file, sources_of_module, version_of

HUGGING_FACE = "hf:"
_OF_LIBRARY = "transformers "


def split_import_path(reference: str) -> tuple[str, str]:
    """The module and the name that `package.module:factory` consists of.

    Raises:
        ModelInvalid: the reference is malformed.
    """
    match = re.fullmatch(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)", reference)
    if match is None:
        raise ModelInvalid(
            f"expected a model's import path as package.module:factory, came '{reference}'", field="model"
        )
    return match["module"], match["name"]


def digest_unloaded(reference: str) -> str:
    """What changes whenever the model that a reference leads to may be another; empty where that is not known.

    Args:
        reference: an absolute path of a model file, `package.module` or `package.module:factory`, or `hf:<model type>`.
    """
    if reference.startswith(HUGGING_FACE):
        version = version_of("transformers")
        return f"{_OF_LIBRARY}{version}" if version and "dev" not in version else ""
    try:
        if reference.endswith(".py"):
            sources = sources_of_file(Path(reference))
        else:
            module, _, factory = reference.partition(":")
            file = find_module(module, Path.cwd() if factory else None)
            if file is None:
                return ""
            sources = sources_of_module(module, file)
    except (OSError, ValueError, ImportError):
        return ""
    return sources.digest if sources.are_known else ""


def is_of(digest: str, model_digest: str) -> bool:
    """Whether what `digest_unloaded` gives is of the model as it was loaded, rather than of sources changed since."""
    return digest == model_digest or digest.startswith(_OF_LIBRARY)
