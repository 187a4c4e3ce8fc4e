"""The model contract: what a model file gives, and what is said when it does not."""

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

from fxtrace.errors import ConfigurationError, ModelInvalid, ModelNotFound
from fxtrace.models import Model, Registry

GOOD = '''
"""A small model.

More about it.
"""
from dataclasses import dataclass
from typing import Annotated
import torch

@dataclass
class Config:
    width: Annotated[int, "features"] = 4
    rate: float = 0.5
    name: str = "x"
    sizes: tuple[int, ...] = (1, 2)

    def __post_init__(self):
        if self.width % 2:
            raise ValueError(f"width must be even, got {self.width}")

def build(config):
    return torch.nn.Linear(config.width, 2)

def example_inputs(config):
    return {"input": torch.ones(3, config.width)}
'''


def model_from(tmp_path: Path, source: str, name: str = "mine") -> Model:
    path = tmp_path / f"{name}.py"
    path.write_text(dedent(source))
    return Registry().add_file(path)


def test_a_file_with_the_contract_is_a_model(tmp_path: Path) -> None:
    model = model_from(tmp_path, GOOD)
    info = model.info()
    assert (info.name, info.summary) == ("mine", "A small model.")
    assert [(f.name, f.type, f.default, f.description, f.dimension) for f in info.fields] == [
        ("width", "int", 4, "features", True),
        ("rate", "float", 0.5, "", False),
        ("name", "str", "x", "", False),
        ("sizes", "tuple[int, ...]", [1, 2], "", False),
    ]
    config = model.resolve({"width": "6", "sizes": [3]})
    assert model.fields(config) == {"width": 6, "rate": 0.5, "name": "x", "sizes": [3]}
    module, inputs = model.build(config), model.example_inputs(config)
    assert module(**inputs).shape == (3, 2)


def test_the_digest_is_the_sources(tmp_path: Path) -> None:
    one = model_from(tmp_path, GOOD).digest
    assert model_from(tmp_path, GOOD).digest == one
    assert model_from(tmp_path, GOOD + "\n# changed\n").digest != one


@pytest.mark.parametrize(
    ("overrides", "field", "message"),
    [
        (
            {"widht": 6},
            "configuration.widht",
            "no configuration field of model 'mine' named 'widht'; did you mean 'width'",
        ),
        ({"width": 5}, "configuration.width", "model 'mine': width must be even, got 5"),
        ({"width": "wide"}, "configuration.width", "field 'width': input should be a valid integer.*got 'wide'"),
        ({"width": 4.5}, "configuration.width", "valid integer"),
        ({"width": None}, "configuration.width", "got None"),
        ({"sizes": [1, "a"]}, "configuration.sizes.1", "field 'sizes.1'.*got 'a'"),
    ],
)
def test_a_bad_configuration_is_refused(tmp_path: Path, overrides: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        model_from(tmp_path, GOOD).resolve(overrides)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "lacks Config and build and example_inputs"),
        (GOOD.replace("@dataclass\n", ""), "Config must be a dataclass"),
        (GOOD.replace('width: Annotated[int, "features"] = 4', "width: int"), "Config.width needs a default"),
        ("import nothing_like_this", "model file mine.py cannot be imported: ModuleNotFoundError"),
        ("def f(:", "imported: SyntaxError"),
    ],
)
def test_a_file_without_the_contract_is_refused(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(ModelInvalid, match=message):
        model_from(tmp_path, source)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return torch.nn.Linear(config.width, 2)", "return 3", "build.* must return a torch.nn.Module, got int"),
        ('return {"input": torch.ones(3, config.width)}', "return [1]", "must return a dict .* got list"),
        ('return {"input": torch.ones(3, config.width)}', 'return {"input": 1}', "got a dict with 'input': int"),
    ],
)
def test_what_a_model_returns_is_checked(tmp_path: Path, old: str, new: str, message: str) -> None:
    model = model_from(tmp_path, GOOD.replace(old, new))
    config = model.resolve({})
    wrong = model.build if "build" in message else model.example_inputs
    with pytest.raises(ModelInvalid, match=message):
        wrong(config)


def test_a_neighbour_can_be_imported_and_names_are_not_shadowed(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("SIZE = 2\n")
    model = model_from(
        tmp_path, GOOD.replace("import torch", "import torch\nfrom neighbour_of_mine import SIZE"), "json"
    )
    assert model.name == "json"
    import json

    assert json.dumps([1]) == "[1]"


def test_the_installed_models_include_the_reference() -> None:
    registry = Registry.installed()
    assert "reference" in registry.names()
    assert registry.get("reference").info().fields[0].name == "encoder_layers"
    with pytest.raises(ModelNotFound, match="did you mean 'reference'"):
        registry.get("referense")
    with pytest.raises(ModelInvalid, match="no model file at"):
        registry.load("/nowhere/at/all.py")


def test_a_model_in_a_file_joins_the_registry(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(GOOD)
    registry = Registry()
    model = registry.load(str(tmp_path / "mine.py"))
    assert registry.names() == ("mine",)
    assert registry.get("mine") is model
    assert isinstance(model.build(model.resolve({})), torch.nn.Linear)
