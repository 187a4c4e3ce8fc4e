import random
from typing import Any

import pytest

from fxtrace.capture import capture
from fxtrace.dims import Formulas
from fxtrace.errors import CaptureFailed
from fxtrace.models import Registry
from fxtrace.probe import Prober, integers, replaced
from fxtrace.trials import candidates


@pytest.fixture(scope="module")
def reference() -> Any:
    return Registry.installed().get("reference")


@pytest.fixture(scope="module")
def formulas(reference: Any) -> Formulas:
    return Prober(reference, reference.resolve({}), rung="symbolic").formulas()


def test_every_size_of_the_reference_has_a_formula(formulas: Formulas) -> None:
    confirmed, total = formulas.confirmed
    assert confirmed == total > 500
    assert all(finding.formula for each in formulas.parameters.values() for finding in each)
    assert set(formulas.structural) == {"encoder_layers", "decoder_layers"}


@pytest.mark.parametrize("seed", range(3))
def test_the_formulas_hold_for_configurations_never_tried(reference: Any, formulas: Formulas, seed: int) -> None:
    chance = random.Random(seed)
    heads = chance.randrange(1, 9)
    fields = {"n_heads": heads, "d_model": heads * chance.randrange(2, 20), "d_ff": chance.randrange(8, 99)}
    fields |= {
        "src_len": chance.randrange(2, 30),
        "tgt_len": chance.randrange(2, 30),
        "tgt_vocab": chance.randrange(5, 40),
    }
    config = reference.resolve(fields)
    sizes = dict(integers(reference.fields(config)))
    captured = capture(reference.build(config), reference.example_inputs(config))
    for name, spec in captured.graph.tensors():
        assert tuple(each.formula.value(sizes) for each in formulas.tensors[name] if each.formula) == spec.shape, name


def test_a_graph_that_the_model_no_longer_gives_is_told(reference: Any) -> None:
    other = reference.resolve({"encoder_layers": 1})
    captured = capture(reference.build(other), reference.example_inputs(other))
    with pytest.raises(CaptureFailed, match="trace it again"):
        Prober(reference, reference.resolve({}), rung="symbolic").formulas(captured.graph)


def test_fields_that_hold_only_together_are_tied() -> None:
    pytest.importorskip("transformers")
    llama = Registry().load("hf:llama")
    found = Prober(llama, llama.resolve({"num_hidden_layers": 1})).formulas()
    assert found.tied == {"num_key_value_heads": "num_attention_heads"}
    assert found.confirmed[0] == found.confirmed[1]


def test_candidates_are_others_and_positive() -> None:
    for value in (1, 2, 7, 16, 128):
        assert value not in candidates(value)
        assert all(each > 0 for each in candidates(value))
        assert len(set(candidates(value))) == len(candidates(value)) >= 4


def test_integers_are_put_back_where_they_were() -> None:
    fields: dict[str, Any] = {
        "a": 3,
        "flag": True,
        "nest": {"b": 4, "list": [5, 6]},
        "text": "x",
        "none": None,
        "zero": 0,
    }
    assert dict(integers(fields)) == {"a": 3, "nest.b": 4, "nest.list[0]": 5, "nest.list[1]": 6}
    assert replaced(fields, {"nest.list[1]": 7, "a": 1}) == {**fields, "a": 1, "nest": {"b": 4, "list": [5, 7]}}
