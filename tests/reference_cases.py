"""The sample cases that every target is checked on, one row each.

CASES     every head of the eight architectures at two sizes: A right-padded; B of other widths and depths, left-padded where the model allows, and
          with odd image sizes.
EDGES     every head at batch 1 and length 1 (one frame, an odd oblong image), without a mask.
VARIANTS  every configuration field, input and flag that changes the computation, each on a representative head.
EITHER    fields so rare that refusing them by name is as good as following the reference; ignoring them is not.
REFUSED   configurations without a meaning, most of them refused by the reference too, when the model is built or first run with its usual inputs:
          (architecture, head, configuration, what the error must name).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from oracle import Case, case
from oracle_specs import SPECS


@dataclass(frozen=True)
class Row:
    """One sample: a head, what to change in its tiny configuration, and the options of its inputs (see `oracle_specs`)."""

    spec: str
    head: str
    id: str
    config: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.head}-{self.id}"

    def case(self) -> Case:
        """The reference's run of this row."""
        return case(self.spec, self.head, self.config, self.inputs, self.seed)


_LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}

_B_CONFIG: dict[str, dict[str, Any]] = {
    "bert": {"vocab_size": 67, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 50},
    "gpt2": {"vocab_size": 67, "n_embd": 24, "n_layer": 3, "n_head": 3, "n_inner": 50},
    "t5": {"vocab_size": 67, "d_model": 24, "d_kv": 6, "d_ff": 50, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 3}
    | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "vit": {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 50, "image_size": 35},
    "resnet": {"layer_type": "basic", "embedding_size": 12, "hidden_sizes": [12, 20], "depths": [2, 1], "num_channels": 4}
    | {"out_features": ["stem", "stage1"]},
    "wav2vec2": {**_LAYER_NORM, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 50}
    | {"conv_dim": [12, 20, 16], "conv_kernel": [10, 3, 2], "conv_stride": [5, 3, 2]}
    | {"num_conv_pos_embeddings": 15, "num_conv_pos_embedding_groups": 2},
    "clip": {
        "text_config": {"vocab_size": 67, "hidden_size": 24, "num_attention_heads": 2, "eos_token_id": 2, "projection_dim": 20},
        "vision_config": {"hidden_size": 28, "num_hidden_layers": 1, "intermediate_size": 50, "image_size": 35, "projection_dim": 20},
        "projection_dim": 20,
    },
    "swin": {"image_size": 40, "patch_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [3, 2], "window_size": 3}
    | {"out_features": ["stage1", "stage2"]},
}
_LEFT = {"batch": 3, "length": 13, "pad": "left", "pad_count": 4}
_B_INPUTS: dict[str, dict[str, Any]] = {
    "bert": _LEFT,
    "gpt2": {**_LEFT, "token_types": True},
    "t5": {**_LEFT, "target_length": 7, "decoder_mask": True},
    "vit": {"batch": 3},
    "resnet": {"batch": 3, "height": 61, "width": 45},
    "wav2vec2": {"batch": 3, "samples": 700},
    "clip": {**_LEFT, "batch": 2, "text_batch": 2},
    "swin": {"batch": 3, "height": 45, "width": 38},
}
_EDGE_INPUTS: dict[str, dict[str, Any]] = {
    "bert": {"batch": 1, "length": 1, "drop": ["attention_mask", "token_type_ids"]},
    "gpt2": {"batch": 1, "length": 1, "drop": ["attention_mask"]},
    "t5": {"batch": 1, "length": 1, "target_length": 1, "drop": ["attention_mask"]},
    "vit": {"batch": 1},
    "resnet": {"batch": 1, "height": 33, "width": 47},
    "wav2vec2": {"batch": 1, "samples": 60, "drop": ["attention_mask"]},
    "clip": {"batch": 1, "text_batch": 1, "length": 1, "drop": ["attention_mask"]},
    "swin": {"batch": 1, "height": 33, "width": 47},
}
# masked image modelling rebuilds a square picture of whole patches; an x-vector needs eight frames; the loss of question answering runs over all
# positions, of which a causal model has none to speak of in padding on the left
_B_CONFIG_OF = {"ViTForMaskedImageModeling": {"image_size": 40}}
_B_INPUTS_OF = {"SwinForMaskedImageModeling": {"height": 40, "width": 40}, "GPT2ForQuestionAnswering": {"pad": "right"}}
_EDGE_INPUTS_OF = {"SwinForMaskedImageModeling": {"height": 32, "width": 32}, "Wav2Vec2ForXVector": {"samples": 340}}


def _every_head(id: str, configs: dict[str, Any], inputs: dict[str, Any], config_of: dict[str, Any], inputs_of: dict[str, Any]) -> list[Row]:
    return [
        Row(name, head, id, {**configs.get(name, {}), **config_of.get(head, {})}, {**inputs.get(name, {}), **inputs_of.get(head, {})})
        for name, spec in SPECS.items()
        for head in spec.heads
    ]


CASES = _every_head("A", {}, {}, {}, {}) + _every_head("B", _B_CONFIG, _B_INPUTS, _B_CONFIG_OF, _B_INPUTS_OF)
EDGES = _every_head("E", {}, _EDGE_INPUTS, {}, _EDGE_INPUTS_OF)

_SPEC_OF = {head: name for name, spec in SPECS.items() for head in spec.heads}


def _vary(head: str, id: str, config: dict[str, Any] | None = None, **inputs: Any) -> Row:
    return Row(_SPEC_OF[head], head, id, config or {}, inputs)


_GELUS = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "gelu_accurate", "gelu_10", "quick_gelu")
_ACTIVATIONS = (*_GELUS, "relu", "relu2", "relu6", "leaky_relu", "silu", "swish", "sigmoid", "tanh", "mish", "linear", "laplace")
_CLIPPED = {"intermediate.dense.weight": 9.0}  # large enough for what is clipped at 6 or 10
_CROSS = {"is_decoder": True, "add_cross_attention": True}
_TDNN = {"tdnn_dim": [12, 20, 14, 18], "tdnn_kernel": [5, 3, 2, 1], "tdnn_dilation": [1, 2, 1, 1]}
_CODES = {"contrastive_logits_temperature": 0.3, "diversity_loss_weight": 0.7, "num_codevector_groups": 4}
_MEMORY = ["encoder_hidden_states", "encoder_attention_mask"]
_INTERPOLATE = {"interpolate_pos_encoding": True}


def _buckets(count: int, distance: int) -> dict[str, Any]:
    return {"relative_attention_num_buckets": count, "relative_attention_max_distance": distance}


def _towers(**changes: Any) -> dict[str, Any]:
    return {"text_config": changes, "vision_config": changes}


_BERT = [
    *(_vary("BertForMaskedLM", f"act-{name}", {"hidden_act": name, "num_hidden_layers": 1}, gain=_CLIPPED) for name in _ACTIVATIONS),
    _vary("BertModel", "relative-key", {"position_embedding_type": "relative_key"}),
    _vary("BertModel", "relative-key-query", {"position_embedding_type": "relative_key_query"}, pad="left"),
    _vary("BertLMHeadModel", "relative-key-query", {"position_embedding_type": "relative_key_query"}),
    _vary("BertLMHeadModel", "relative-cross", {"position_embedding_type": "relative_key", **_CROSS}),
    _vary("BertModel", "decoder", {"is_decoder": True}),
    _vary("BertForMaskedLM", "decoder", {"is_decoder": True}),
    _vary("BertLMHeadModel", "bidirectional", {"is_decoder": False}),
    _vary("BertLMHeadModel", "cross", _CROSS),
    _vary("BertLMHeadModel", "cross-unmasked", _CROSS, drop=["encoder_attention_mask"]),
    _vary("BertLMHeadModel", "cross-unused", _CROSS, drop=_MEMORY, attentions=False),
    _vary("BertForMaskedLM", "untied", {"tie_word_embeddings": False}),
    _vary("BertForPreTraining", "eps", {"layer_norm_eps": 0.02}),
    _vary("BertForPreTraining", "pad-1", {"pad_token_id": 1}),
    _vary("BertModel", "one-head", {"num_attention_heads": 1, "type_vocab_size": 1}),
    _vary("BertModel", "eight-heads", {"num_attention_heads": 8}),
    _vary("BertModel", "positions", positions=True),
    _vary("BertModel", "ids-only", pad="none", drop=["attention_mask", "token_type_ids"]),
    _vary("BertForTokenClassification", "masked-row", pad_count=9),
    _vary("BertForSequenceClassification", "one-label", {"num_labels": 1}),
    _vary("BertForSequenceClassification", "regression", {"num_labels": 3, "problem_type": "regression"}),
    _vary("BertForSequenceClassification", "multi-label", {"problem_type": "multi_label_classification"}),
    _vary("BertForMultipleChoice", "left", pad="left", choices=2),
]
_GPT2 = [
    *(_vary("GPT2LMHeadModel", f"act-{name}", {"activation_function": name}) for name in ("gelu", "gelu_fast", "relu")),
    _vary("GPT2Model", "unscaled", {"scale_attn_weights": False}),
    _vary("GPT2Model", "by-layer", {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3}),
    _vary("GPT2Model", "upcast", {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True}),
    _vary("GPT2LMHeadModel", "cross", {"add_cross_attention": True, "scale_attn_by_inverse_layer_idx": True}),
    _vary("GPT2LMHeadModel", "cross-upcast", {"add_cross_attention": True, "reorder_and_upcast_attn": True}),
    _vary("GPT2LMHeadModel", "cross-unmasked", {"add_cross_attention": True}, drop=["encoder_attention_mask"]),
    _vary("GPT2LMHeadModel", "cross-unused", {"add_cross_attention": True}, drop=_MEMORY, attentions=False),
    _vary("GPT2LMHeadModel", "untied", {"tie_word_embeddings": False}),
    _vary("GPT2LMHeadModel", "eps", {"layer_norm_epsilon": 0.02, "n_inner": 50}),
    _vary("GPT2LMHeadModel", "one-head", {"n_head": 1}),
    _vary("GPT2LMHeadModel", "masked-row", pad_count=9),
    _vary("GPT2LMHeadModel", "positions", positions=True, pad="left"),
    _vary("GPT2Model", "ids-only", pad="none", drop=["attention_mask"]),
    _vary("GPT2ForSequenceClassification", "no-pad-token", {"pad_token_id": None}, batch=1, pad="none"),
    _vary("GPT2ForSequenceClassification", "one-label", {"num_labels": 1}),
    _vary("GPT2DoubleHeadsModel", "last-token", token_types=True, drop=["mc_token_ids"]),
    _vary("GPT2DoubleHeadsModel", "summary-tanh", {"summary_activation": "tanh"}),
    _vary("GPT2DoubleHeadsModel", "summary-wide", {"summary_proj_to_labels": False}),
    _vary("GPT2DoubleHeadsModel", "summary-plain", {"summary_use_proj": False}),
]
_T5 = [
    *(_vary("T5ForConditionalGeneration", name, {"feed_forward_proj": name}) for name in ("gelu", "silu", "gated-gelu", "gated-silu", "gated-relu")),
    _vary("T5ForConditionalGeneration", "untied", {"tie_word_embeddings": False}),
    _vary("T5ForConditionalGeneration", "eps", {"layer_norm_epsilon": 0.02}),
    _vary("T5ForConditionalGeneration", "few-buckets", _buckets(6, 9), length=21, target_length=17),
    _vary("T5ForConditionalGeneration", "usual-buckets", _buckets(32, 128), length=150, target_length=140),
    _vary("T5ForConditionalGeneration", "wide-heads", {"d_kv": 12, "num_heads": 5}),
    _vary("T5ForConditionalGeneration", "even-depth", {"num_decoder_layers": None}),
    _vary("T5ForConditionalGeneration", "one-layer", {"num_layers": 1, "num_decoder_layers": 1, "num_heads": 1}),
    _vary("T5ForConditionalGeneration", "labels-only", {"decoder_start_token_id": 3}, loss_drop=["decoder_input_ids"]),
    _vary("T5ForConditionalGeneration", "decoder-mask", decoder_mask=True),
    _vary("T5Model", "ids-only", pad="none", drop=["attention_mask"]),
    _vary("T5EncoderModel", "masked-row", pad_count=9),
    _vary("T5EncoderModel", "left", {"feed_forward_proj": "gated-gelu"}, pad="left"),
    _vary("T5ForSequenceClassification", "decoder-given", decoder=True),
    _vary("T5ForSequenceClassification", "other-eos", {"eos_token_id": 4, "pad_token_id": 2, "decoder_start_token_id": 2}),
    _vary("T5ForQuestionAnswering", "decoder-given", decoder=True),
]
_VIT = [
    _vary("ViTModel", "no-qkv-bias", {"qkv_bias": False}),
    _vary("ViTModel", "larger", height=40, width=56, flags=_INTERPOLATE),
    _vary("ViTModel", "smaller", height=24, width=17, flags=_INTERPOLATE),
    _vary("ViTForImageClassification", "interpolate-same", flags=_INTERPOLATE),
    _vary("ViTForImageClassification", "interpolate-odd", height=43, width=37, flags=_INTERPOLATE),
    _vary("ViTModel", "act", {"hidden_act": "gelu_new", "pooler_act": "relu", "layer_norm_eps": 0.02}),
    _vary("ViTModel", "pooler-size", {"pooler_output_size": 20}),
    _vary("ViTModel", "oblong", {"image_size": [24, 40], "patch_size": [8, 4], "num_channels": 1, "num_attention_heads": 8}),
    _vary("ViTForImageClassification", "no-labels", {"num_labels": 0}),
    _vary("ViTForImageClassification", "multi-label", {"problem_type": "multi_label_classification"}),
    _vary("ViTForMaskedImageModeling", "unmasked", {"encoder_stride": 4}, drop=["bool_masked_pos"]),
]
_RESNET = [
    _vary("ResNetModel", "first-1x1", {"downsample_in_bottleneck": True}),
    _vary("ResNetModel", "early", {"downsample_in_first_stage": True}),
    _vary("ResNetModel", "basic-early", {"layer_type": "basic", "downsample_in_first_stage": True}),
    _vary("ResNetModel", "act", {"hidden_act": "gelu"}),
    _vary("ResNetModel", "equal-widths", {"hidden_sizes": [8, 8, 16], "depths": [2, 2, 1], "out_features": None}),
    _vary("ResNetForImageClassification", "no-labels", {"num_labels": 0}),
    _vary("ResNetForImageClassification", "one-label", {"num_labels": 1}),
    _vary("ResNetBackbone", "default-stage", {"out_features": None}),
    _vary("ResNetBackbone", "by-index", {"out_features": None, "out_indices": [0, 2, 4]}),
]
_WAV2VEC2 = [
    _vary("Wav2Vec2Model", "group-stable", {"do_stable_layer_norm": True}),
    _vary("Wav2Vec2Model", "layer-post", {"feat_extract_norm": "layer"}),
    _vary("Wav2Vec2Model", "conv-bias", {"conv_bias": True}),
    _vary("Wav2Vec2Model", "act", {"hidden_act": "relu", "feat_extract_activation": "gelu_new", "layer_norm_eps": 0.02}),
    _vary("Wav2Vec2Model", "adapter", {"add_adapter": True}),
    _vary("Wav2Vec2Model", "adapter-narrow", {"add_adapter": True, "output_hidden_size": 20, "num_adapter_layers": 2, "adapter_stride": 1}),
    _vary("Wav2Vec2ForCTC", "adapter", {"add_adapter": True, "output_hidden_size": 20, "num_adapter_layers": 1, **_LAYER_NORM}),
    _vary("Wav2Vec2ForCTC", "attention-adapter", {"adapter_attn_dim": 6, **_LAYER_NORM}),
    _vary("Wav2Vec2ForCTC", "attention-adapter-unused", {"adapter_attn_dim": 6}),
    _vary("Wav2Vec2ForCTC", "mean-loss", {"ctc_loss_reduction": "mean", "ctc_zero_infinity": True, "pad_token_id": 3}),
    _vary("Wav2Vec2ForSequenceClassification", "layer-sum", {"use_weighted_layer_sum": True}),
    _vary("Wav2Vec2ForSequenceClassification", "unmasked", pad="none", drop=["attention_mask"]),
    _vary("Wav2Vec2ForAudioFrameClassification", "layer-sum", {"use_weighted_layer_sum": True, **_LAYER_NORM}),
    _vary("Wav2Vec2ForXVector", "layer-sum", {"use_weighted_layer_sum": True}),
    _vary("Wav2Vec2ForXVector", "tdnn", {**_TDNN, "xvector_output_dim": 10}, samples=1000),
    _vary("Wav2Vec2ForXVector", "unmasked", pad="none", drop=["attention_mask"]),
    _vary("Wav2Vec2Model", "masked-frames", masked_frames=True),
    _vary("Wav2Vec2Model", "no-mask-weight", {"mask_time_prob": 0.0}),
    _vary("Wav2Vec2ForPreTraining", "no-augment", {"apply_spec_augment": False}),
    _vary("Wav2Vec2ForPreTraining", "loss-weights", _CODES),
]
_CLIP = [
    _vary("CLIPModel", "no-eos", _towers(eos_token_id=98)),
    _vary("CLIPModel", "legacy-eos", _towers(eos_token_id=2), text_batch=2),
    _vary("CLIPModel", "act", _towers(hidden_act="gelu", layer_norm_eps=0.02)),
    _vary("CLIPModel", "interpolate", height=40, width=56, flags=_INTERPOLATE),
    _vary("CLIPVisionModelWithProjection", "interpolate", height=24, width=24, flags=_INTERPOLATE),
    _vary("CLIPTextModel", "positions", positions=True),
    _vary("CLIPTextModel", "unmasked", drop=["attention_mask"]),
    _vary("CLIPTextModelWithProjection", "one-head", _towers(num_attention_heads=1, projection_dim=17)),
    _vary("CLIPVisionModel", "gray", _towers(num_channels=1, patch_size=4)),
    _vary("CLIPForImageClassification", "regression", {"num_labels": 3, "problem_type": "regression"}),
]
_SWIN = [
    _vary("SwinModel", "no-qkv-bias", {"qkv_bias": False}),
    _vary("SwinModel", "odd-ratio", {"mlp_ratio": 2.3, "hidden_act": "gelu_new", "layer_norm_eps": 0.02}),
    _vary("SwinModel", "small-window", {"window_size": 2}, height=36, width=28),
    _vary("SwinModel", "patch-3", {"patch_size": 3, "window_size": 3}, height=41, width=50),
    _vary("SwinModel", "window-is-map", {"window_size": 8, "depths": [2, 2], "num_heads": [2, 4], "image_size": 32, "out_features": None}),
    _vary("SwinModel", "gray", {"num_channels": 1, "image_size": [32, 48]}, height=32, width=48),
    _vary("SwinForImageClassification", "no-labels", {"num_labels": 0}),
    _vary("SwinForImageClassification", "multi-label", {"problem_type": "multi_label_classification"}),
    _vary("SwinForMaskedImageModeling", "unmasked", drop=["bool_masked_pos"]),
    _vary("SwinBackbone", "window-beyond-map", {"window_size": 5, "out_features": ["stem", "stage2", "stage3"]}),
    _vary("SwinBackbone", "default-stage", {"out_features": None}),
    _vary("SwinBackbone", "by-index", {"out_features": None, "out_indices": [1, 2]}, height=45, width=38),
]
VARIANTS = [*_BERT, *_GPT2, *_T5, *_VIT, *_RESNET, *_WAV2VEC2, *_CLIP, *_SWIN]

EITHER = [
    _vary("BertModel", "pruned", {"pruned_heads": {"0": [1], "1": [0, 2]}}),
    _vary("GPT2Model", "pruned", {"pruned_heads": {"1": [3]}}),
    _vary("ViTModel", "pruned", {"pruned_heads": {"0": [1]}}),
    _vary("T5ForConditionalGeneration", "tied-stacks", {"tie_encoder_decoder": True, "num_decoder_layers": 2}),
    _vary("T5EncoderModel", "decoder", {"is_decoder": True}, attentions=False),
    # the reference reads these over the choices, not over the tokens
    *(_vary("GPT2DoubleHeadsModel", f"summary-{kind}", {"summary_type": kind}) for kind in ("first", "last", "mean")),
]

REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("bert", "BertModel", {"hidden_act": "gelo"}, "hidden_act"),
    ("bert", "BertModel", {"hidden_act": "prelu"}, "hidden_act"),
    ("bert", "BertModel", {"position_embedding_type": "rotary"}, "position_embedding_type"),
    ("bert", "BertModel", {"add_cross_attention": True}, "is_decoder"),
    ("bert", "BertModel", {"num_attention_heads": 5}, "num_attention_heads"),
    ("bert", "BertForQuestionAnswering", {"num_labels": 3}, "num_labels"),
    ("bert", "BertForSequenceClassification", {"problem_type": "ranking"}, "problem_type"),
    ("gpt2", "GPT2Model", {"activation_function": "gelu_old"}, "activation_function"),
    ("gpt2", "GPT2Model", {"n_head": 5}, "n_head"),
    ("gpt2", "GPT2DoubleHeadsModel", {"summary_type": "attn"}, "summary_type"),
    ("t5", "T5Model", {"feed_forward_proj": "double-gelu"}, "feed_forward_proj"),
    ("t5", "T5ForQuestionAnswering", {"num_labels": 5}, "num_labels"),
    ("t5", "T5ForSequenceClassification", {"decoder_start_token_id": None}, "decoder_start_token_id"),
    ("vit", "ViTModel", {"pooler_act": "tan"}, "pooler_act"),
    ("vit", "ViTForMaskedImageModeling", {"encoder_stride": 4}, "encoder_stride"),
    ("resnet", "ResNetModel", {"layer_type": "wide"}, "layer_type"),
    ("resnet", "ResNetBackbone", {"out_features": ["stage9"]}, "stage9"),
    ("wav2vec2", "Wav2Vec2Model", {"feat_extract_norm": "batch"}, "feat_extract_norm"),
    ("wav2vec2", "Wav2Vec2Model", {"conv_kernel": [10, 3, 3]}, "conv_kernel"),
    ("wav2vec2", "Wav2Vec2ForSequenceClassification", {"add_adapter": True}, "add_adapter"),
    ("clip", "CLIPModel", {"text_config": {"num_attention_heads": 5}}, "num_attention_heads"),
    ("swin", "SwinModel", {"use_absolute_embeddings": True}, "use_absolute_embeddings"),
    ("swin", "SwinModel", {"window_size": 5}, "window_size"),
    ("swin", "SwinModel", {"num_heads": [3, 2, 4]}, "num_heads"),
]
