"""Which models are on offer, and where a name leads."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from fxtrace.errors import ModelNotFound, unknown
from fxtrace.models.base import Model
from fxtrace.models.imports import from_entry_point, from_file, from_import_path

GROUP = "fxtrace.models"
_HUGGING_FACE = "hf:"


class Registry:
    """The models on offer, by name. A model is imported when it is first asked for."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}
        self._entry_points: dict[str, EntryPoint] = {}
        self._every_family = False

    @classmethod
    def installed(cls) -> Registry:
        """The models that installed packages offer through entry points."""
        registry = cls()
        registry._entry_points = {point.name: point for point in entry_points(group=GROUP)}
        return registry

    def add(self, reference: str) -> Model:
        """Offers the model that a reference leads to: a `.py` file, `package.module:factory` or `hf:<model type>`.

        Code of the model's is run. A file is offered under its name without the ending, the rest under the reference.

        Raises:
            ModelInvalid: there is no such file or module, it raises, or it does not keep the contract.
            ModelNotFound: transformers has no such architecture.
            DependencyMissing: PyTorch or transformers is not installed.
        """
        if reference.startswith(_HUGGING_FACE):
            model = _family(reference)
        elif reference.endswith(".py"):
            model = from_file(Path(reference))
        else:
            model = from_import_path(reference)
        self._models[model.name] = model
        return model

    def add_file(self, path: str | Path) -> Model:
        """Offers the model in a Python file, as `add` does."""
        model = from_file(Path(path))
        self._models[model.name] = model
        return model

    def add_families(self) -> None:
        """Offers every architecture of transformers, as `hf:<model type>`. There are hundreds: `names` lists none."""
        self._every_family = True

    def names(self) -> tuple[str, ...]:
        """The models' names, sorted."""
        return tuple(sorted({*self._models, *self._entry_points}))

    def get(self, name: str) -> Model:
        """The model on offer under that name; nothing is imported for a name that is not.

        Raises:
            ModelNotFound: no such model; the nearest name is suggested.
            ModelInvalid: its module cannot be imported, or does not keep the contract.
            DependencyMissing: PyTorch is not installed.
        """
        if name in self._models:
            return self._models[name]
        if self._every_family and name.startswith(_HUGGING_FACE):
            return _family(name)
        if name not in self._entry_points:
            raise ModelNotFound(unknown("model", name, self.names()), field="model", model=name)
        self._models[name] = from_entry_point(self._entry_points[name])
        return self._models[name]

    def load(self, reference: str) -> Model:
        """The model of that name; or else the one the reference leads to, which is then on offer.

        Raises:
            ModelNotFound: no such model.
            ModelInvalid: the file or module does not keep the contract.
            DependencyMissing: PyTorch or transformers is not installed.
        """
        leads = reference.endswith(".py") or (":" in reference and reference not in self._models)
        return self.add(reference) if leads else self.get(reference)


def _family(reference: str) -> Model:
    from fxtrace.models.hf import HuggingFaceModel

    return HuggingFaceModel(reference)
