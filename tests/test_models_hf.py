"""Models from transformers: small, seeded, never fetched."""

import resource
from typing import Any

import pytest
import torch

from fxtrace.errors import ConfigurationError, ModelInvalid, ModelNotFound
from fxtrace.ir.trace import TraceRequest
from fxtrace.models import Registry
from fxtrace.service.engine import Engine

transformers = pytest.importorskip("transformers")

# One of each: encoder, decoder, encoder–decoder, several kinds of layer, experts, vision, sound, several parts.
ARCHITECTURES = {
    "bert": ("BertModel", {"input_ids": (2, 10), "attention_mask": (2, 10)}),
    "llama": ("LlamaForCausalLM", {"input_ids": (2, 10), "attention_mask": (2, 10)}),
    "t5": (
        "T5ForConditionalGeneration",
        {"input_ids": (2, 10), "attention_mask": (2, 10), "decoder_input_ids": (2, 7)},
    ),
    "mixtral": ("MixtralForCausalLM", {"input_ids": (2, 10), "attention_mask": (2, 10)}),
    "vit": ("ViTModel", {"pixel_values": (2, 3, 32, 32)}),
    "whisper": ("WhisperForConditionalGeneration", {"input_features": (2, 80, 128), "decoder_input_ids": (2, 7)}),
    "clip": (
        "CLIPModel",
        {"input_ids": (2, 10), "pixel_values": (2, 3, 64, 64), "attention_mask": (2, 10)},
    ),
}


def hf(name: str) -> Any:
    return Registry().load(f"hf:{name}")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_a_small_model_that_runs(name: str) -> None:
    kind, shapes = ARCHITECTURES[name]
    model = hf(name)
    config = model.resolve({})
    module, inputs = model.build(config), model.example_inputs(config)
    assert type(module).__name__ == kind
    assert {each: tuple(tensor.shape) for each, tensor in inputs.items()} == shapes
    assert sum(parameter.numel() for parameter in module.parameters()) < 2_000_000
    assert not module.training
    with torch.no_grad():
        output = module(**inputs)
    assert "past_key_values" not in output  # the cache is off
    assert all(tensor.isfinite().all() for tensor in output.values() if isinstance(tensor, torch.Tensor))


def test_fields_are_the_configurations_own() -> None:
    model = hf("bert")
    fields = {field.name: field for field in model.info().fields}
    assert fields["hidden_size"].default == 64
    assert fields["hidden_size"].dimension
    assert fields["num_hidden_layers"].default == 2
    assert fields["attn_implementation"].default == "eager"
    assert not fields["hidden_act"].dimension
    config = model.resolve({"hidden_size": "128", "num_hidden_layers": 3, "batch": 3, "seq_len": 5})
    assert model.fields(config)["hidden_size"] == 128
    assert len(model.build(config).encoder.layer) == 3
    assert model.example_inputs(config)["input_ids"].shape == (3, 5)


def test_a_common_name_stands_for_the_familys_own() -> None:
    model = hf("gpt2")
    assert model.fields(model.resolve({"num_hidden_layers": 3}))["n_layer"] == 3


def test_a_configuration_inside_another_has_dotted_names() -> None:
    model = hf("clip")
    config = model.resolve({"text_config.hidden_size": 32})
    assert model.fields(config)["text_config.hidden_size"] == 32
    assert model.build(config).text_model.config.hidden_size == 32


def test_layers_of_several_kinds_are_all_there() -> None:
    model = hf("gemma3_text")
    assert model.fields(model.resolve({}))["layer_types"] == ["sliding_attention", "full_attention"]
    longer = model.resolve({"num_hidden_layers": 7})
    assert model.fields(longer)["layer_types"] == [*["sliding_attention"] * 5, "full_attention", "sliding_attention"]
    assert len(model.build(longer).model.layers) == 7


def test_the_default_preset_is_the_classs_own() -> None:
    model = hf("bert")
    fields = model.fields(model.resolve({"preset": "default", "num_hidden_layers": 1}))
    assert (fields["hidden_size"], fields["vocab_size"], fields["num_hidden_layers"]) == (768, 30522, 1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bert:AutoModelForMaskedLM", "BertForMaskedLM"),
        ("bert:BertForSequenceClassification", "BertForSequenceClassification"),
        ("clip_text_model", "CLIPTextModel"),
    ],
)
def test_another_head_can_be_named(name: str, kind: str) -> None:
    model = hf(name)
    assert type(model.build(model.resolve({}))).__name__ == kind
    assert model.name == f"hf:{name}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("brt", "no architecture of transformers named 'brt'; did you mean 'b"),
        ("bert:BertForMaskdLM", "did you mean 'BertForMaskedLM'"),
        ("bert:AutoModelForDepthEstimation", "no class of bert named 'AutoModelForDepthEstimation'"),
        ("bert:BertLayer", "no class of bert named 'BertLayer'"),
    ],
)
def test_what_there_is_not_is_suggested(name: str, message: str) -> None:
    with pytest.raises(ModelNotFound, match=message):
        hf(name)


@pytest.mark.parametrize(
    ("overrides", "field", "message"),
    [
        ({"hiden_size": 8}, "configuration.hiden_size", "did you mean 'hidden_size'"),
        ({"text_config.x": 8}, "configuration.text_config.x", "no configuration field"),
        ({"hidden_size": "wide"}, "configuration.hidden_size", "hidden_size"),
        ({"batch": 1}, "configuration.batch", "an integer of at least 2, got 1"),
        ({"attn_implementation": "flash"}, "configuration.attn_implementation", "Known: eager, sdpa"),
        ({"attn_implementation": "egger"}, "configuration.attn_implementation", "did you mean 'eager'"),
    ],
)
def test_a_bad_field_is_refused(overrides: dict[str, Any], field: str, message: str) -> None:
    model = hf("bert")
    with pytest.raises(ConfigurationError, match=message) as caught:
        model.resolve(overrides)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("t5", "initializer_factor"),
        ("mixtral", "router_jitter_noise"),
        ("bart", "encoder_layerdrop"),
        ("bert", "batch"),
    ],
)
def test_a_whole_number_may_stand_for_a_float(name: str, field: str) -> None:
    """JSON knows one kind of number, and so do the configurations of traces."""
    model = hf(name)
    fields = model.fields(model.resolve({}))
    kind = type(fields[field])
    for given in (int(fields[field]), str(int(fields[field]))):
        taken = model.fields(model.resolve({**fields, field: given}))[field]
        assert (taken, type(taken)) == (fields[field], kind)


def test_a_way_of_attention_that_an_architecture_lacks_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="RwkvForCausalLM has no attn_implementation 'sdpa'; use 'eager'"):
        hf("rwkv").resolve({"attn_implementation": "sdpa"})


# Laid out, or made small, as only the code of their forward says.
FOUND_BY_TRYING: dict[str, dict[str, int | tuple[int, ...]]] = {
    "esm": {"input_ids": (2, 10), "attention_mask": (2, 10)},  # its masking needs a padding token
    "glm4v_text": {"input_ids": (2, 10), "attention_mask": (2, 10)},  # parts of the rotary half, by default in its code
    "idefics3": {"input_ids": 2, "attention_mask": 2, "pixel_values": 5},  # images in an axis of their own
    "siglip2_vision_model": {"pixel_values": (2, 4, 768), "pixel_attention_mask": (2, 4), "spatial_shapes": (2, 2)},
    "fun_asr_nano": {
        "input_ids": (2, 50),
        "input_features": (2, 40, 560),
    },  # widths that are sums and products of each other's
    "llava": {"input_ids": (2, 14), "pixel_values": (2, 3, 28, 28)},  # without the image_sizes that it could take
    "blip_2_qformer": {"query_embeds": (2, 10, 64), "encoder_hidden_states": (2, 10, 64)},  # asked for in its message
    "minicpm_ocr_vision": {"pixel_values": (8, 3, 16, 16), "target_sizes": (2, 2)},  # read in the line that fails
    "muse_glimmer_vision": {"pixel_values": (32, 1176)},  # a width that only its message has
    "kyutai_speech_to_text": {"input_ids": (2, 10, 33)},  # and a number of codes
    "pp_lcnet": {"pixel_values": (2, 3, 64, 64)},  # images, of which no field tells anything
    "rf_detr": {"pixel_values": (2, 3, 112, 112)},  # more patches than the smallest image has
    "decision_transformer": {"states": (2, 10, 17), "actions": (2, 10, 4), "rewards": (2, 10, 1)},
}


@pytest.mark.parametrize("name", FOUND_BY_TRYING)
def test_what_a_model_runs_with_is_found_by_trying(name: str) -> None:
    model = hf(name)
    config = model.resolve({})
    module, inputs = model.build(config), model.example_inputs(config)
    for each, shape in FOUND_BY_TRYING[name].items():
        found = tuple(inputs[each].shape)
        assert (found if isinstance(shape, tuple) else len(found)) == shape, each
    with torch.no_grad():
        module(**inputs)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sam2_mask_decoder", "is the configuration of a part, .* use hf:sam2 or "),
        ("layoutxlm", "stands in no Auto mapping.* name an architecture that has a model"),
        ("bark", "BarkModel of transformers has no forward of its own"),
        ("qwen2_5_omni", "only generates; use hf:qwen2_5_omni_thinker"),
    ],
)
def test_what_is_no_model_says_what_to_use(name: str, message: str) -> None:
    with pytest.raises(ModelNotFound, match=message):
        hf(name)


def test_what_no_example_is_known_for_is_said() -> None:
    model = hf("sam2_video")  # it takes a session of its own class
    with pytest.raises(
        ModelInvalid, match=r"objects of a class of its own, .*: inference_session \(Sam2VideoInferenceSession\)"
    ):
        model.example_inputs(model.resolve({}))


def test_a_broken_default_configuration_is_told_as_such() -> None:
    model = hf("cohere_compass_text")
    with pytest.raises(ModelInvalid, match=r"own default configuration does not build: KeyError: .full_attention"):
        model.build(model.resolve({}))


def test_the_tokens_of_media_are_counted_without_the_weights() -> None:
    model = hf("qwen2_vl")
    config = model.resolve({"preset": "default"})  # 72 billion parameters
    before, limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 1 << 20  # both in KiB
    ids = model.example_inputs(config)["input_ids"]
    assert (ids == config.config.image_token_id).sum(1).tolist() == [4, 4]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < limit


def test_images_have_their_tokens_among_the_words() -> None:
    model = hf("paligemma")
    config = model.resolve({})
    module, inputs = model.build(config), model.example_inputs(config)
    places = inputs["input_ids"] == module.config.image_token_id
    assert places.sum(1).tolist() == [4, 4]
    with torch.no_grad():
        module(**inputs)


def test_a_trace_of_an_architecture_is_kept_and_found_again(tmp_path: Any) -> None:
    with Engine.open(tmp_path) as engine:
        trace = engine.create_trace(TraceRequest("hf:bert"))
        assert (trace.model, trace.output_equal, trace.rung) == ("hf:bert", True, "record")
        assert trace.configuration["hidden_size"] == 64
        assert engine.create_trace(TraceRequest("hf:bert")) == trace
        other = engine.create_trace(TraceRequest("hf:bert", {"attn_implementation": "sdpa"}))
        assert other.id != trace.id
        targets = {node.target.rpartition(".")[2] for node in engine.get_graph(other.id).nodes}
        assert "scaled_dot_product_attention" in targets


@pytest.mark.parametrize(
    ("name", "sizes", "kept"),
    [
        ("llama", {"num_key_value_heads": 8}, {"num_key_value_heads": 2, "num_attention_heads": 4}),
        ("llama", {}, {"num_key_value_heads": 4, "num_hidden_layers": 2, "vocab_size": 120, "seq_len": 10}),
        ("bert", {"hidden_act": "relu"}, {"hidden_act": "relu", "hidden_size": 64}),
        ("gemma2", {"final_logit_softcapping": 7.0}, {"final_logit_softcapping": 7.0, "head_dim": 16}),
    ],
)
def test_a_configuration_is_shrunk_and_keeps_its_structure(
    name: str, sizes: dict[str, Any], kept: dict[str, Any]
) -> None:
    model = hf(name)
    config = model.resolve({"preset": "default", "seq_len": 512, **sizes})
    small = next(iter(model.smaller(config)))
    assert kept.items() <= model.fields(small).items()
    assert sum(parameter.numel() for parameter in model.build(small).parameters()) < 1e6


def test_a_real_size_is_traced_without_weights(tmp_path: Any) -> None:
    sizes: dict[str, Any] = {"preset": "default", "num_hidden_layers": 3, "seq_len": 12, "num_key_value_heads": 8}
    names = dict.fromkeys(("input_ids", "attention_mask"), ("batch", "sequence"))
    with Engine.open(tmp_path) as engine:
        trace = engine.create_trace(TraceRequest("hf:llama", sizes, weightless=True, symbolic=names))
        graph = engine.get_graph(trace.id)
    assert trace.parameter_count > 700_000_000
    weights = graph.by_role["decoder.2.masked_self_attention.weights"]
    assert weights.spec is not None
    assert weights.spec.symbolic == ("batch", "32", "sequence", "sequence")
    assert weights.roles[0].evidence.endswith("; held on a copy shrunk to seq_len=10, vocab_size=120, hidden_size=64 …")
    assert all(check.held for node in graph.nodes for role in node.roles for check in role.checks)
