"""What the coverage table covers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tests.benchmarks.coverage import zoo

FAMILIES: Mapping[str, str] = {
    "encoder": (
        "albert bert camembert convbert data2vec-text deberta deberta-v2 distilbert electra ernie esm fnet ibert "
        "longformer megatron-bert modernbert mpnet nystromformer rembert roberta roformer squeezebert xlm xlnet"
    ),
    "decoder": (
        "bloom biogpt codegen cohere ctrl falcon gemma gemma2 gemma3_text glm gpt2 gpt_bigcode gpt_neo gpt_neox gptj "
        "granite llama mistral mpt olmo2 openai-gpt opt persimmon phi phi3 qwen2 qwen3 smollm3 stablelm starcoder2 xglm"
    ),
    "encoder–decoder": (
        "bart bigbird_pegasus blenderbot fsmt led longt5 m2m_100 marian mbart mt5 mvp pegasus plbart prophetnet "
        "switch_transformers t5 umt5"
    ),
    "mixture of experts": (
        "deepseek_v3 ernie4_5_moe glm4_moe gpt_oss granitemoe jetmoe llama4_text minimax mixtral olmoe phimoe "
        "qwen2_moe qwen3_moe"
    ),
    "state space": "bamba falcon_h1 falcon_mamba jamba mamba mamba2 recurrent_gemma rwkv xlstm zamba2",
    "vision": (
        "beit convnext cvt deit detr dinov2 focalnet levit mobilevit poolformer pvt regnet resnet segformer swin "
        "swinv2 vit vit_mae yolos"
    ),
    "audio": "audio-spectrogram-transformer hubert sew speech_to_text wav2vec2 wavlm whisper",
    "multimodal": "blip clip flava layoutlm lilt paligemma qwen2_vl siglip vilt visual_bert",
}


def cases() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(group, case, attentions): each family, with a row for either way to compute attention, and the zoo."""
    for group, families in FAMILIES.items():
        for family in families.split():
            yield group, f"hf:{family}", ("sdpa", "eager")  # eager last: the other tools run on it, and leave marks
    for factory in zoo.MODELS:
        yield "plain PyTorch", f"zoo:{factory.__name__}", ("",)
