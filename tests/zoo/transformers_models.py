"""Architectures of transformers from small configs. A new one is a line in `ENTRIES`: its class, a batch, what its config needs.

Layers dropped at random and masked spectrograms are off, because they decide which weights are used. Dropout is as it comes.
"""

# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torchvision_ops import define_missing_schemas
from zoo import Entry

# The names that configs give the same sizes; each takes those it knows.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "text_vocab_size"), 100),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim", "encoder_hidden_size", "decoder_hidden_size"), 32
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "encoder_layers", "decoder_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), 2
    ),
    **dict.fromkeys(
        ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "n_head", "n_heads", "num_heads"), 4
    ),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "d_ff", "hidden_dim", "n_inner"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_sequence_length"), 64),
    **dict.fromkeys(("encoder_layerdrop", "decoder_layerdrop", "layerdrop", "feat_quantizer_dropout"), 0.0),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "image_size": 32,
    "patch_size": 8,
    "apply_spec_augment": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "use_cache": False,
    "type_vocab_size": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}


def ids(length: int = 16) -> Tensor:
    return torch.randint(3, 90, (4, length))


def text() -> dict[str, Tensor]:
    return {"input_ids": ids()}


def pair() -> dict[str, Tensor]:
    return {"input_ids": ids(), "decoder_input_ids": ids(12)}


def image() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(4, 3, 32, 32)}


def image_64() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(4, 3, 64, 64)}


def image_text() -> dict[str, Tensor]:
    return {**text(), **image()}


def waveform() -> dict[str, Tensor]:
    return {"input_values": torch.randn(4, 3200)}


def build(name: str, config: dict[str, Any]) -> nn.Module:
    """A model of transformers in train mode, from `SMALL` overridden by ``config``; values of None leave the default."""
    define_missing_schemas()  # transformers imports torchvision where it is installed
    import transformers

    transformers.logging.set_verbosity_error()
    cls = getattr(transformers, name)
    return cls(make_config(cls.config_class, config)).train()


def make_config(cls: Any, given: dict[str, Any]) -> Any:
    """A config of class ``cls``; mappings become the configs that it is made of."""
    parts = {key: value for key, value in (cls.sub_configs or {}).items() if isinstance(given.get(key), dict)}
    nested = {key: make_config(part, given[key]) if hasattr(part, "sub_configs") else given[key] for key, part in parts.items()}
    aliases = cls.attribute_map or {}
    known = set(vars(cls())) | set(aliases)
    small = {key: value for key, value in SMALL.items() if key in known and key not in given and aliases.get(key) not in given}
    merged = {**small, **given, **nested}
    return cls(**{key: value for key, value in merged.items() if value is not None})


# One of each kind; the others are marked slow.
FAST = frozenset(
    {
        *("BertForMaskedLM", "DebertaV2Model", "XLNetModel", "GPT2LMHeadModel", "BloomForCausalLM", "LlamaForCausalLM"),
        *("MixtralForCausalLM", "GptOssForCausalLM", "MambaForCausalLM", "RwkvForCausalLM", "T5ForConditionalGeneration"),
        *("BartForConditionalGeneration", "ViTForImageClassification", "ConvNextModel", "BitModel", "Wav2Vec2Model"),
        *("WhisperModel", "CLIPModel", "PerceiverModel", "DetrModel"),
    }
)


def model(name: str, batch: Callable[[], Any] = text, *, config: dict[str, Any] | None = None, **options: Any) -> Entry:
    return Entry(name, lambda: build(name, config or {}), batch, needs=("transformers",), slow=name not in FAST, **options)


ENTRIES = [
    # Encoders
    model("BertForMaskedLM"),
    model("RobertaForSequenceClassification"),
    model("AlbertModel", config={"embedding_size": 16}),
    model("DistilBertModel"),
    model("ElectraModel", config={"embedding_size": 16}),
    model("DebertaV2Model", config={"pos_att_type": ["c2p", "p2c"], "relative_attention": True}),
    model("MPNetModel"),
    model("ModernBertForMaskedLM"),
    model("FNetModel"),
    model("ConvBertModel", config={"embedding_size": 16}),
    model("SqueezeBertModel", config={"embedding_size": 32, "q_groups": 2, "k_groups": 2, "v_groups": 2, "output_groups": 2}),
    model("MobileBertModel", config={"intra_bottleneck_size": 16, "embedding_size": 16}),
    model("XLNetModel"),
    model("FunnelModel", config={"block_sizes": [1, 1], "d_head": 8, "d_inner": 64}),
    model("BigBirdModel", config={"attention_type": "original_full"}),
    model("LongformerModel", config={"attention_window": 8}),
    # Decoders
    model("GPT2LMHeadModel"),
    model("OpenAIGPTLMHeadModel"),
    model("GPTNeoForCausalLM", config={"num_layers": 2, "attention_types": [[["global", "local"], 1]]}),
    model("GPTNeoXForCausalLM"),
    model("GPTJForCausalLM", config={"rotary_dim": 4}),
    model("GPTBigCodeForCausalLM"),
    model("CodeGenForCausalLM", config={"rotary_dim": 4}),
    model("OPTForCausalLM", config={"word_embed_proj_dim": 16}),
    model("BloomForCausalLM"),
    model("LlamaForCausalLM"),
    model("MistralForCausalLM"),
    model("Qwen2ForCausalLM"),
    model("Qwen3ForCausalLM"),
    model("Gemma2ForCausalLM"),
    model("Gemma3ForCausalLM"),
    model("PhiForCausalLM"),
    model("Phi3ForCausalLM"),
    model("FalconForCausalLM"),
    model("MptForCausalLM"),
    model("StableLmForCausalLM"),
    model("CohereForCausalLM"),
    model("OlmoForCausalLM"),
    model("Olmo2ForCausalLM"),
    model("CTRLModel", config={"dff": 64}),
    # Mixtures of experts
    model("MixtralForCausalLM"),
    model("Qwen2MoeForCausalLM", config={"shared_expert_intermediate_size": 32}),
    model("Qwen3MoeForCausalLM"),
    model(
        "DeepseekV3ForCausalLM",
        config={
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
            "head_dim": None,
        },
    ),
    model("GptOssForCausalLM"),
    model("OlmoeForCausalLM"),
    model(
        "JambaForCausalLM",
        config={"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    ),
    model("SwitchTransformersModel", pair),
    model("Llama4ForCausalLM", config={"intermediate_size_mlp": 64}),
    model("GraniteMoeForCausalLM"),
    model("PhimoeForCausalLM"),
    # State spaces and recurrences
    model("MambaForCausalLM"),
    model("Mamba2ForCausalLM", config={"num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 2, "chunk_size": 8}),
    model("FalconMambaForCausalLM"),
    model("RwkvForCausalLM", config={"attention_hidden_size": 32}),
    model("RecurrentGemmaForCausalLM", config={"lru_width": 32, "num_hidden_layers": 3, "head_dim": None}),
    model("BambaForCausalLM", config={"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16, "attn_layer_indices": [1]}),
    # Encoder-decoders
    model("T5ForConditionalGeneration", pair),
    model("MT5Model", pair),
    model("BartForConditionalGeneration", pair),
    model("MBartModel", pair),
    model("PegasusModel", pair),
    model("MarianModel", pair),
    model("BlenderbotModel", pair),
    model("M2M100Model", pair),
    model(
        "LEDModel",
        pair,
        config={"attention_window": 8, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
    ),
    model(
        "ProphetNetModel",
        pair,
        config={"num_encoder_layers": 2, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4},
    ),
    # Vision
    model("ViTForImageClassification", image),
    model("DeiTModel", image),
    model("BeitModel", image),
    model("SwinModel", image, config={"patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}),
    model("ConvNextModel", image, config={"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "patch_size": 4}),
    model("ConvNextV2Model", image, config={"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "patch_size": 4}),
    model(
        "ResNetModel",
        image,
        config={"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "bottleneck"},
    ),
    model("RegNetModel", image, config={"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8}),
    model(
        "SegformerModel",
        image_64,
        config={
            "hidden_sizes": [8, 16, 32, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 4, 4],
            "decoder_hidden_size": 32,
        },
    ),
    model("Dinov2Model", image),
    model(
        "ViTMAEForPreTraining",
        image,
        config={
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 64,
        },
    ),
    model("PoolFormerModel", image_64, config={"hidden_sizes": [8, 16, 32, 32], "depths": [1, 1, 1, 1]}),
    model("MobileViTModel", image_64, config={"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 32, 32, 64]}),
    model("SiglipVisionModel", image),
    model(
        "PvtModel",
        image_64,
        config={
            "hidden_sizes": [8, 16, 32, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 4, 4],
            "image_size": 64,
            "patch_sizes": [4, 2, 2, 2],
        },
    ),
    model(
        "BitModel",
        image,
        config={"embedding_size": 16, "hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1], "num_groups": 4},
    ),
    model(
        "HieraModel",
        image_64,
        config={
            "embed_dim": 16,
            "image_size": [64, 64],
            "depths": [1, 1],
            "num_heads": [1, 2],
            "patch_size": [7, 7],
            "query_stride": [2, 2],
            "num_query_pool": 1,
            "masked_unit_size": [4, 4],
        },
    ),
    model(
        "LevitModel",
        image_64,
        config={
            "image_size": 64,
            "hidden_sizes": [16, 32, 48],
            "num_attention_heads": [2, 4, 6],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "patch_size": 16,
            "drop_path_rate": 0,
        },
    ),
    # Audio
    model(
        "Wav2Vec2Model",
        waveform,
        config={
            "conv_dim": [16, 16],
            "conv_stride": [5, 4],
            "conv_kernel": [10, 8],
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
    ),
    model(
        "HubertModel",
        waveform,
        config={
            "conv_dim": [16, 16],
            "conv_stride": [5, 4],
            "conv_kernel": [10, 8],
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
    ),
    model(
        "WavLMModel",
        waveform,
        config={
            "conv_dim": [16, 16],
            "conv_stride": [5, 4],
            "conv_kernel": [10, 8],
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
    ),
    model(
        "WhisperModel",
        lambda: {"input_features": torch.randn(4, 20, 80), "decoder_input_ids": ids(12)},
        config={"num_mel_bins": 20, "max_source_positions": 40, "max_target_positions": 64},
    ),
    model(
        "ASTModel",
        lambda: {"input_values": torch.randn(4, 64, 32)},
        config={"max_length": 64, "num_mel_bins": 32, "patch_size": 8},
    ),
    model(
        "SpeechT5ForTextToSpeech",
        lambda: {"input_ids": ids(), "decoder_input_values": torch.randn(4, 12, 80), "speaker_embeddings": torch.randn(4, 512)},
    ),
    model(
        "EncodecModel",
        lambda: torch.randn(4, 1, 3200),
        config={
            "hidden_size": 16,
            "num_filters": 4,
            "codebook_dim": 16,
            "codebook_size": 32,
            "upsampling_ratios": [4, 4],
            "num_lstm_layers": 1,
        },
    ),
    # Several kinds of input
    model("CLIPModel", image_text, config={"text_config": {}, "vision_config": {}}),
    model("SiglipModel", image_text, config={"text_config": {}, "vision_config": {}}),
    model("BlipModel", image_text, config={"text_config": {}, "vision_config": {}}),
    model(
        "Blip2Model",
        lambda: {**image(), "input_ids": torch.cat([torch.full((4, 8), 99), ids()], 1), "attention_mask": torch.ones(4, 24)},
        config={
            "text_config": {"model_type": "opt", **SMALL},
            "vision_config": {},
            "qformer_config": {"encoder_hidden_size": 32},
            "num_query_tokens": 8,
            "image_token_index": 99,
            "image_token_id": 99,
        },
    ),
    model("ViltModel", image_text),
    model("FlavaModel", image_text, config={"text_config": {}, "image_config": {}, "multimodal_config": {}}),
    model(
        "PerceiverModel",
        lambda: {"inputs": torch.randn(4, 12, 32)},
        config={
            "d_latents": 32,
            "num_latents": 8,
            "num_self_attends_per_block": 1,
            "num_cross_attention_heads": 4,
            "num_self_attention_heads": 4,
        },
    ),
    model(
        "LlavaForConditionalGeneration",
        lambda: {"input_ids": torch.cat([torch.full((4, 16), 99), ids()], 1), **image()},
        config={
            "text_config": {"model_type": "llama", **SMALL},
            "vision_config": {"model_type": "clip_vision_model", **SMALL},
            "image_token_id": 99,
        },
    ),
    # Detection, time series, decisions
    model(
        "DetrModel",
        image_64,
        config={
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "backbone_config": {
                "model_type": "resnet",
                "embedding_size": 16,
                "hidden_sizes": [16, 32],
                "depths": [1, 1],
                "out_features": ["stage2"],
            },
            "num_queries": 6,
        },
    ),
    model("YolosModel", image, config={"image_size": [32, 32], "num_detection_tokens": 5}),
    model(
        "TimeSeriesTransformerModel",
        lambda: {
            "past_values": torch.randn(4, 12),
            "past_time_features": torch.randn(4, 12, 1),
            "past_observed_mask": torch.ones(4, 12),
            "future_values": torch.randn(4, 4),
            "future_time_features": torch.randn(4, 4, 1),
        },
        config={"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2, 3, 4], "num_time_features": 1},
    ),
    model(
        "PatchTSTModel",
        lambda: {"past_values": torch.randn(4, 32, 3)},
        config={"context_length": 32, "num_input_channels": 3, "patch_length": 4, "patch_stride": 4},
    ),
    model(
        "DecisionTransformerModel",
        lambda: {
            "states": torch.randn(4, 6, 5),
            "actions": torch.randn(4, 6, 3),
            "returns_to_go": torch.randn(4, 6, 1),
            "timesteps": torch.arange(6).repeat(4, 1),
            "attention_mask": torch.ones(4, 6),
        },
        config={"state_dim": 5, "act_dim": 3, "max_ep_len": 64},
    ),
]
