"""The model contract: what a model file gives, and what is said when it does not."""

import hashlib
import pickle
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fxtrace.client import Client
from fxtrace.errors import ConfigurationError, InputError, ModelInvalid, ModelNotFound, OptionInvalid
from fxtrace.ir.trace import TraceRequest
from fxtrace.models import Model, Registry
from fxtrace.models.weightless import build_weightless
from fxtrace.models.weights import load_weights
from fxtrace.service.engine import Engine
from fxtrace.service.server import serving
from fxtrace.wire import encode_trace_request

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


FACTORY = """
from typing import Annotated
import torch

def make(width: Annotated[int, "features"] = 4, bias=True):
    \"\"\"A linear map.\"\"\"
    return torch.nn.Linear(width, 2, bias), {"input": torch.randn(3, width)}

class Kept:
    \"\"\"Keeps the contract.\"\"\"
    from dataclasses import make_dataclass
    Config = make_dataclass("Config", [("width", int, 5)])
    build = staticmethod(lambda config: torch.nn.Linear(config.width, 2))
    example_inputs = staticmethod(lambda config: {"input": torch.ones(1, config.width)})

def needs(width): ...
def alone(): return torch.nn.Linear(2, 2)
number = 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An importable module in the current folder; its name is new each time, for Python keeps what it imported."""
    name = f"factories_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_factorys_parameters_are_the_configuration(factories: str) -> None:
    model = Registry().load(f"{factories}:make")
    info = model.info()
    assert (info.name, info.summary) == (f"{factories}:make", "A linear map.")
    assert [(f.name, f.type, f.default, f.description) for f in info.fields] == [
        ("width", "int", 4, "features"),
        ("bias", "bool", True, ""),
    ]
    config = model.resolve({"width": "6"})
    torch.manual_seed(0)
    module, inputs = model.build(config), model.example_inputs(config)
    assert isinstance(module, torch.nn.Linear)
    torch.manual_seed(0)
    assert torch.equal(torch.nn.Linear(6, 2).weight, module.weight)
    assert torch.equal(torch.randn(3, 6), inputs["input"])  # made by the same call
    assert model.example_inputs(config)["input"].shape == (3, 6)
    assert len(model.digest) == 64


def test_an_import_path_may_lead_to_the_contract(factories: str) -> None:
    model = Registry().load(f"{factories}:Kept")
    assert model.info().summary == "Keeps the contract."
    assert model.build(model.resolve({})).in_features == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{}:mak", "did you mean 'make'"),
        ("{}:needs", "its parameter 'width' must have a default"),
        ("{}:number", "expected a callable that returns .module, example inputs.*it is a int"),
        ("{}_not:make", "cannot be imported: ModuleNotFoundError"),
        ("{}:make()", "expected a model's import path as package.module:factory"),
        (":make", "expected a model's import path"),
    ],
)
def test_a_bad_import_path_is_refused(factories: str, name: str, message: str) -> None:
    with pytest.raises(ModelInvalid, match=message):
        Registry().load(name.format(factories))


def test_what_a_factory_returns_is_checked(factories: str) -> None:
    model = Registry().load(f"{factories}:alone")
    with pytest.raises(ModelInvalid, match=r"expected .module, example inputs. from it, came Linear"):
        model.build(model.resolve({}))


def test_only_what_is_on_offer_is_got(factories: str) -> None:
    registry = Registry()
    for name in (f"{factories}:make", "hf:bert", "mine.py"):
        with pytest.raises(ModelNotFound, match="no model named"):
            registry.get(name)
    assert factories not in sys.modules
    registry.add(f"{factories}:make")
    assert registry.get(f"{factories}:make").name in registry.names()


def test_every_family_can_be_offered_at_once() -> None:
    pytest.importorskip("transformers")
    registry = Registry()
    registry.add_families()
    assert registry.get("hf:bert").name == "hf:bert"
    assert registry.names() == ()
    with pytest.raises(ModelNotFound, match="did you mean 'bert'"):
        registry.get("hf:bertt")


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    trained, fresh = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    load_weights(fresh, tmp_path / "w.safetensors")
    assert torch.equal(fresh.weight, trained.weight)
    assert torch.equal(fresh.bias, trained.bias)


def test_shared_weights_are_enough_once(tmp_path: Path) -> None:
    def tied() -> torch.nn.Bilinear:
        model = torch.nn.Bilinear(2, 3, 4)
        model.register_parameter("twin", model.get_parameter("weight"))
        return model

    trained, fresh = tied(), tied()
    save_file({"twin": trained.weight.detach(), "bias": trained.bias.detach()}, tmp_path / "w.safetensors")
    load_weights(fresh, tmp_path / "w.safetensors")
    assert torch.equal(fresh.weight, trained.weight)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.ones(2, 4)}, "it lacks bias; the model is Linear"),
        ({"weight": torch.ones(2, 4), "bias": torch.ones(2), "x": torch.ones(1)}, "it has besides x;"),
        ({"weight": torch.ones(4, 2), "bias": torch.ones(2)}, "another shape weight .4×2, not 2×4."),
        (None, "No such file"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(
    tmp_path: Path, state: dict[str, torch.Tensor] | None, message: str
) -> None:
    module = torch.nn.Linear(4, 2)
    before = module.weight.clone()
    if state is not None:
        save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=message) as caught:
        load_weights(module, tmp_path / "w.safetensors")
    assert caught.value.field == "state"
    assert torch.equal(module.weight, before)


def test_weights_are_part_of_a_trace(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(GOOD)
    request = TraceRequest(str(tmp_path / "mine.py"), state=str(tmp_path / "w.safetensors"))
    with Engine.open(tmp_path / "store") as engine:
        plain = engine.create_trace(TraceRequest(request.model))
        assert (plain.state, plain.state_sha256) == ("", "")
        ids = {plain.id}
        for value in (0.5, 2.0):
            state = {"weight": torch.full((2, 4), value), "bias": torch.zeros(2)}
            save_file(state, tmp_path / "w.safetensors")
            trace = engine.create_trace(request)
            ids.add(trace.id)
            digest = hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
            assert (trace.state, trace.state_sha256) == ("w.safetensors", digest)
            output = next(n for n in engine.get_graph(trace.id).nodes if n.op == "output").inputs[0]
            assert engine.read_tensor(trace.id, output).max() == 4 * value  # the example input is ones
        assert len(ids) == 3
    with pytest.raises(OptionInvalid, match="in this process only"):
        encode_trace_request(request)


def test_a_request_to_a_server_leads_nowhere_that_is_not_on_offer(factories: str, tmp_path: Path) -> None:
    with Engine.open(tmp_path / "store") as engine, serving(engine) as address, Client(address) as client:
        for name in (f"{factories}:make", "hf:bert"):
            with pytest.raises(ModelNotFound, match="no model named"):
                client.create_trace(TraceRequest(name))
            with pytest.raises(ModelNotFound, match="no model named"):
                client.get_model(name)
        assert factories not in sys.modules
        assert engine.get_model(f"{factories}:make").name == f"{factories}:make"  # the operator's own process
        assert client.get_model(f"{factories}:make").name == f"{factories}:make"  # and now it is on offer


def test_a_registry_offers_the_same_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("1 / 0")
    registry = Registry.installed()
    assert registry.offer(str(tmp_path / "mine.py")) == "mine"  # it is not run
    assert registry.offer("package.module:make") == "package.module:make"
    registry.add_families()
    copy = pickle.loads(pickle.dumps(registry))
    assert copy.names() == registry.names() == ("mine", "package.module:make", "reference")
    assert copy.get("reference").digest == registry.get("reference").digest
    copy.require("hf:anything")
    with pytest.raises(ModelInvalid, match="ZeroDivisionError"):
        copy.get("mine")
    with pytest.raises(ModelNotFound, match="did you mean 'mine'"):
        copy.require("mien")


@pytest.mark.parametrize("reference", ["nowhere.py", "no path", "hf"])
def test_what_leads_nowhere_is_not_offered(reference: str) -> None:
    registry = Registry()
    with pytest.raises(ModelInvalid):
        registry.offer(reference)
    assert registry.names() == ()


class Built(torch.nn.Module):
    def __init__(self, mixed: bool = False) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1 << 20, 1 << 20)
        self.scale = torch.nn.Parameter(torch.ones(3) * (torch.randn(3) if mixed else 2))
        self.register_buffer("mask", torch.ones(4, 4).tril())
        self.register_buffer("large", torch.zeros(1 << 14, 1 << 14))
        self.chances = [float(chance) for chance in torch.linspace(0, 1, 3)] if not mixed else []


def test_a_model_is_built_without_weights() -> None:
    built = build_weightless(Built)
    assert built.get_parameter("linear.weight").is_meta
    assert built.get_buffer("large").is_meta
    assert torch.equal(built.get_buffer("mask"), torch.ones(4, 4).tril())
    assert isinstance(built, Built)
    assert built.chances == [0.0, 0.5, 1.0]
    assert all(tensor.is_meta for tensor in build_weightless(lambda: Built(mixed=True)).state_dict().values())


def test_a_configuration_is_shrunk_by_its_names(tmp_path: Path) -> None:
    sizes = "d_model: int = 4096\n    n_heads: int = 32\n    src_vocab: int = 50000\n    seq_len: int = 2048\n"
    model = model_from(tmp_path, GOOD.replace("rate: float", f"{sizes}    rate: float"))
    config = model.resolve({"rate": 0.25})
    (small,) = model.smaller(config)
    expected = {"d_model": 64, "n_heads": 4, "src_vocab": 120, "seq_len": 16}
    assert model.fields(small) == {**model.fields(config), **expected}


def test_a_configuration_that_refuses_to_shrink_is_left(tmp_path: Path) -> None:
    model = model_from(tmp_path, GOOD.replace("width", "d_model").replace("% 2", "< 128"))
    assert list(model.smaller(model.resolve({"d_model": 256}))) == []
