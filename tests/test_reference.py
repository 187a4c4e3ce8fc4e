"""The reference model: a configuration that says what is wrong with it, and the known values."""

from typing import Any

import pytest
import torch

from fxtrace.models import Registry

REFERENCE = Registry.installed().get("reference")


def config(**overrides: Any) -> Any:
    from fxtrace.reference import Config

    return Config(**overrides)


def test_the_defaults_are_the_known_sentences() -> None:
    assert config().source_ids() == [3, 2, 0, 1, 5, 4]
    assert config().target_ids() == [4, 0, 1, 3, 2]
    assert config().d_head == 32


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"n_heads": 3}, "n_heads must divide d_model: 128 / 3 is not whole; the nearest n_heads that does is 2"),
        ({"d_ff": 0}, "d_ff must be at least 1, got 0"),
        ({"encoder_layers": -1}, "encoder_layers must be at least 1"),
        ({"source": "hello from mars"}, "source has the word 'mars', which is outside its vocabulary; Words: cairo"),
        ({"target": "we are debuging"}, "'debuging', .* did you mean 'debugging'"),
        ({"target": "  "}, "target must have at least one word"),
        ({"src_vocab": 5}, "src_vocab must be at least 6, the number of src_words, got 5"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**overrides)


@pytest.mark.parametrize(("length", "ids"), [(3, [3, 2, 0]), (8, [3, 2, 0, 1, 5, 4, 3, 2])])
def test_a_sentence_is_cut_or_read_again(length: int, ids: list[int]) -> None:
    assert config(src_len=length).source_ids() == ids


def test_the_seed_decides_the_parameters_and_nothing_else() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, two, three = (REFERENCE.build(config(seed=seed)) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.to_vocab.weight, three.to_vocab.weight)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"d_model": 6, "n_heads": 3, "d_ff": 5},
        {"d_model": 7, "n_heads": 7},
        {"encoder_layers": 1, "decoder_layers": 4, "src_len": 11, "tgt_len": 2, "tgt_vocab": 17},
    ],
)
def test_every_size_can_be_changed(overrides: dict[str, Any]) -> None:
    c = config(**overrides)
    output = REFERENCE.build(c)(**REFERENCE.example_inputs(c))
    assert output["logits"].shape == (1, c.tgt_len, c.tgt_vocab)
    assert output["logits_slice"].shape == (min(10, c.tgt_vocab),)
