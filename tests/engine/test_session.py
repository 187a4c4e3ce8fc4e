"""The one line: a module, a callable or a model by its name, traced in this process, kept only where asked."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxtrace
from fxtrace.engine.session import session


@dataclass
class Batch:
    ids: Tensor
    mask: Tensor | None = None


class Reads(nn.Module):
    """Takes its inputs in one of the ways in which models take them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(
        self, batch: Any, *more: Tensor, flag: bool = True, mode: str = "sum", mask: Tensor | None = None
    ) -> Tensor:
        x = batch.ids if isinstance(batch, Batch) else batch["ids"] if isinstance(batch, dict) else batch
        x = x[0] if isinstance(x, tuple | list) else x
        for each in more:
            x = x + each
        if mask is not None:
            x = x * mask
        y: Tensor = self.linear(x)
        return y.relu() if flag and mode == "sum" else y


X = torch.arange(12.0).reshape(3, 4) / 12


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X,), {}),
        ((X, X, X), {}),
        (({"ids": X},), {"flag": False}),
        ((Batch(X),), {"mode": "none"}),
        ((Batch(X, X),), {"mask": torch.ones(4)}),
        (([X, X],), {"mask": None}),
        (((X,),), {}),
        ((), {"batch": X}),
    ],
    ids=["tensor", "args", "dict", "dataclass", "mask", "list", "tuple", "keyword"],
)
def test_a_module_is_traced_as_it_is_called(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    module = Reads().eval()
    with torch.no_grad():
        expected = module(*args, **kwargs)
    t = fxtrace.trace(module, *args, **kwargs)
    (output,) = t.outputs.values()
    assert torch.equal(output, expected)
    assert t.info.output_equal is True
    with torch.no_grad():
        assert torch.equal(t.graph_module(*args, **kwargs), expected)
    assert [parameter.name for parameter in t.graph.modules_by_path["linear"].parameters] == [
        "linear.weight",
        "linear.bias",
    ]


def test_a_callable_is_traced_with_the_modules_that_it_uses() -> None:
    linear = nn.Linear(4, 2)

    def model(x: Tensor) -> Tensor:
        return torch.softmax(linear(x), -1)

    t = fxtrace.trace(model, X)
    assert t.model == "model"
    assert torch.equal(next(iter(t.outputs.values())), model(X))
    assert t.info.parameter_count == 10
    assert t['kind == "softmax"']


def test_the_module_and_the_process_stay_as_they_were() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.random.get_rng_state()
    fxtrace.trace(module, X)
    fxtrace.trace(module, X, options=fxtrace.TraceOptions(training=True, seed=3))
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_options_are_ours_only_where_they_are_trace_options() -> None:
    class Optional(nn.Module):
        def forward(self, x: Tensor, options: str = "none") -> Tensor:
            return x + 1 if options == "one" else x * 2

    assert torch.equal(next(iter(fxtrace.trace(Optional(), X, options="one").outputs.values())), X + 1)
    shapes = fxtrace.trace(Optional(), X, options=fxtrace.TraceOptions(values=False))
    assert not shapes.info.values
    with pytest.raises(fxtrace.ValuesAbsent):
        _ = shapes.outputs
    with pytest.raises(fxtrace.OptionInvalid, match=r"options\.state: expected the name of a model"):
        fxtrace.trace(Optional(), X, options=fxtrace.TraceOptions(state="weights.safetensors"))


def test_nothing_is_written_and_what_is_let_go_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXTRACE_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    first, again = fxtrace.trace("reference", d_model=8), fxtrace.trace("reference", d_model=8)
    assert first.id == again.id
    trace_id = first.id
    del first
    gc.collect()
    assert again["src_embedding"].shape == (1, 6, 8)
    del again
    gc.collect()
    assert session()._store.find(trace_id) is None
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_the_same_call_gives_the_same_trace() -> None:
    module = nn.Linear(4, 2)
    first, second = fxtrace.trace(module, X), fxtrace.trace(module, X)
    assert first.id == second.id
    with torch.no_grad():
        module.weight += 1
    assert fxtrace.trace(module, X).id != first.id
    assert fxtrace.trace(module, X + 1).id != second.id


def test_traces_are_saved_and_loaded(tmp_path: Path) -> None:
    made = fxtrace.trace("reference", d_model=8)
    file = made.save(tmp_path / "made.safetensors")
    assert [each.name for each in tmp_path.iterdir()] == ["made.safetensors"]
    loaded = fxtrace.load(file)
    assert loaded.info == made.info
    assert loaded.graph == made.graph
    assert all(torch.equal(loaded[name], made[name]) for name in made)
    assert str(loaded) == str(made)
    assert made.save(tmp_path / "store") == str(tmp_path / "store")
    stored = fxtrace.load(tmp_path / "store", made.id)
    assert stored.info == made.info
    assert torch.equal(stored["softmax"], made["softmax"])
    assert not made.diff(stored).changed
    with pytest.raises(fxtrace.Unmet, match="made in this process"):
        _ = stored.graph_module


def test_a_bfloat16_trace_survives_its_file(tmp_path: Path) -> None:
    module = nn.Linear(4, 2).bfloat16()
    made = fxtrace.trace(module, X.bfloat16())
    loaded = fxtrace.load(made.save(tmp_path / "half.safetensors"))
    assert loaded["linear" if "linear" in loaded else next(iter(loaded))].dtype == torch.bfloat16
    assert all(torch.equal(loaded[name], made[name]) for name in made)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("nothing.safetensors", "cannot read"),
        ("folder", "a folder without a store"),
        ("absent", "not there"),
        ("text.txt", "a file of another kind"),
        ("no-trace.safetensors", "is not a trace's file"),
    ],
)
def test_loading_what_is_no_trace_says_so(name: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "no-trace.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(fxtrace.FxtraceError, match=what):
        fxtrace.load(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def read_all(file: Path) -> list[torch.Tensor]:
    loaded = fxtrace.load(file)
    return [loaded.read(name) for name in loaded]


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    file = Path(fxtrace.trace(nn.Linear(4, 2), X).save(tmp_path / "made.safetensors"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(fxtrace.StoreDamaged):
        read_all(file)


def test_bad_calls_say_what_was_expected() -> None:
    with pytest.raises(fxtrace.InputError, match="fields of the configuration"):
        fxtrace.trace("reference", X)
    with pytest.raises(fxtrace.ConfigurationError, match="did you mean 'd_model'"):
        fxtrace.trace("reference", d_modle=8)
    with pytest.raises(fxtrace.ModelNotFound, match="did you mean 'reference'"):
        fxtrace.trace("referense")
    with pytest.raises(fxtrace.FxtraceError, match="Linear"):
        fxtrace.trace(nn.Linear(4, 2), X, nonsense=1)
    with pytest.raises(fxtrace.FxtraceError):
        fxtrace.trace(nn.Linear(4, 2), torch.ones(3, 5))
    with pytest.raises(fxtrace.FxtraceError, match="int"):
        fxtrace.trace(3)
