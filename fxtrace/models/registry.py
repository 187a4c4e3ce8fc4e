"""Which models are on offer, and where a name leads."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from fxtrace.errors import ModelInvalid, ModelNotFound, unknown
from fxtrace.ir.text import listed
from fxtrace.models.base import Model
from fxtrace.models.references import HUGGING_FACE, digest_unloaded, split_import_path

GROUP = "fxtrace.models"


class Registry:
    """The models on offer, by name. A model is imported when it is first asked for.

    A registry can be sent to another process: it offers the same there, and imports it anew.
    """

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}  # those that were imported
        self._references: dict[str, str] = {}
        self._entry_points: dict[str, EntryPoint] = {}
        self._every_family = False

    def __repr__(self) -> str:
        return f"<Registry of {listed(self.names())}>"

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
        name = self.offer(reference)
        try:
            return self.get(name)
        except BaseException:
            del self._references[name]
            raise

    def add_file(self, path: str | Path) -> Model:
        """Offers the model in a Python file, as `add` does."""
        return self.add(str(Path(path)))

    def offer(self, reference: str) -> str:
        """Offers the model that a reference leads to, as `add` does, but runs none of its code before it is asked for.

        Returns:
            The name that it is offered under.

        Raises:
            ModelInvalid: there is no such file, or the reference is malformed.
        """
        name = reference
        if reference.startswith(HUGGING_FACE):
            pass
        elif reference.endswith(".py"):
            path = Path(reference).resolve()
            if not path.is_file():
                raise ModelInvalid(f"no model file at {path}", path=path)
            name, reference = path.stem, str(path)
        else:
            split_import_path(reference)
        self._models.pop(name, None)
        self._references[name] = reference
        return name

    def add_families(self) -> None:
        """Offers every architecture of transformers, as `hf:<model type>`. There are hundreds: `names` lists none."""
        self._every_family = True

    def offer_all(self, other: Registry) -> None:
        """Offers what another registry offers, too; a name that both have stays this one's."""
        self._models = other._models | self._models
        self._references = other._references | self._references
        self._entry_points = other._entry_points | self._entry_points
        self._every_family |= other._every_family

    def __reduce__(self) -> tuple[Callable[..., Registry], tuple[object, ...]]:
        return _restored, (bool(self._entry_points), tuple(self._references.values()), self._every_family)

    def names(self) -> tuple[str, ...]:
        """The models' names, sorted."""
        return tuple(sorted({*self._references, *self._entry_points}))

    def get(self, name: str) -> Model:
        """The model on offer under that name; nothing is imported for a name that is not.

        Raises:
            ModelNotFound: no such model; the nearest name is suggested.
            ModelInvalid: its module cannot be imported, or does not keep the contract.
            DependencyMissing: PyTorch is not installed.
        """
        if name in self._models:
            return self._models[name]
        if name in self._references:
            self._models[name] = _load(self._references[name])
            return self._models[name]
        self.require(name)
        if name not in self._entry_points:
            return _family(name)
        from fxtrace.models.imports import from_entry_point

        self._models[name] = from_entry_point(self._entry_points[name])
        return self._models[name]

    def require(self, name: str) -> None:
        """Returns if there is a model on offer under that name, as far as can be told without importing it.

        Raises:
            ModelNotFound: no such model; the nearest name is suggested.
        """
        family = self._every_family and name.startswith(HUGGING_FACE)
        if not family and name not in self._references and name not in self._entry_points:
            raise ModelNotFound(unknown("model", name, self.names()), field="model", model=name)

    def load(self, reference: str) -> Model:
        """The model of that name; or else the one the reference leads to, which is then on offer.

        Raises:
            ModelNotFound: no such model.
            ModelInvalid: the file or module does not keep the contract.
            DependencyMissing: PyTorch or transformers is not installed.
        """
        if self._leads(reference):
            return self.add(reference)
        try:
            return self.get(reference)
        except ModelNotFound as error:
            from fxtrace.models.hf_names import architectures  # reads a file of transformers

            ways = [f"{reference}.py"] if Path(f"{reference}.py").is_file() else []
            ways += [f"{HUGGING_FACE}{reference}"] if reference in architectures() else []
            if not ways:
                raise
            message = f"no model named '{reference}'; did you mean '{ways[0]}'?"
            raise ModelNotFound(message, field="model", model=reference) from error

    def note(self, reference: str) -> None:
        """Offers the model that `load` would give, without running any of it; one that is on offer already stays.

        Raises:
            ModelInvalid: there is no such file.
        """
        if self._leads(reference) and self._references.get(self.name_of(reference)) != self.whereabouts(reference):
            self.offer(reference)

    def name_of(self, reference: str) -> str:
        """The name that `load` gives the model: a file's without the ending, else the reference itself."""
        return Path(reference).resolve().stem if reference.endswith(".py") else reference

    def whereabouts(self, reference: str) -> str:
        """Where the model is that `load` gives, as another process can load it: a file's absolute path, or a name."""
        if self._leads(reference):
            return str(Path(reference).resolve()) if reference.endswith(".py") else reference
        return self._references.get(reference, reference)

    def digest_unloaded(self, reference: str) -> str:
        """What changes whenever the model that `load` gives may be another, without running any of it.

        Empty where that is not known, or there is no such model.
        """
        where = self.whereabouts(reference)
        if where in self._entry_points:
            where = self._entry_points[where].value
        return digest_unloaded(where)

    def _leads(self, reference: str) -> bool:
        return reference.endswith(".py") or (":" in reference and reference not in self._models)


def _restored(installed: bool, references: tuple[str, ...], every_family: bool) -> Registry:
    registry = Registry.installed() if installed else Registry()
    for reference in references:
        registry.offer(reference)
    registry._every_family = every_family
    return registry


def _load(reference: str) -> Model:
    if reference.startswith(HUGGING_FACE):
        return _family(reference)
    from fxtrace.models.imports import from_file, from_import_path

    return from_file(Path(reference)) if Path(reference).is_absolute() else from_import_path(reference)


def _family(reference: str) -> Model:
    from fxtrace.models.hf import HuggingFaceModel

    return HuggingFaceModel(reference)
