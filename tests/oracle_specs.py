"""The eight architectures as the reference library spells them: heads, tiny configurations, random inputs, and labels for every loss.

Sizes are chosen so that no two axes of an output have the same length by chance: `Case.live` finds the padded axis by its length.
Input options: batch, text_batch, length, target_length, choices, samples, height, width, pad ("right", "left" or "none"), pad_count, token_types,
positions, decoder (give decoder_input_ids though the head could derive them), decoder_mask, masked_frames, drop (input names left out), loss_drop
(names left out where labels are given), attentions (False: the reference is not asked for them), gain (factors for weights by the end of their
names), flags (arguments of `forward` that are no tensors).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Options = dict[str, Any]
FIRST_TOKEN = 5  # ids below are left to padding, end-of-sequence and the like


@dataclass(frozen=True)
class Spec:
    """One architecture: its module below transformers.models, its heads, a tiny configuration, and how its inputs are drawn."""

    module: str
    heads: tuple[str, ...]
    config: dict[str, Any]
    inputs: Callable[[Any, str, np.random.Generator, Options], Arrays]


def padded_tokens(rng: np.random.Generator, shape: tuple[int, ...], vocab: int, pad_id: int | None, options: Options) -> list[np.ndarray]:
    """Token ids and their mask; the last row of the batch is padded."""
    ids, mask = rng.integers(FIRST_TOKEN, vocab, shape), np.ones(shape, np.int64)
    side, count = options.get("pad", "right"), options.get("pad_count", 3)
    if side != "none" and shape[-1] >= count:
        mask[-1, ..., slice(-count, None) if side == "right" else slice(0, count)] = 0
        ids[mask == 0] = pad_id or 0
    return [ids, mask]


def last_live(mask: np.ndarray) -> np.ndarray:
    """The last unpadded position of each row."""
    return mask.shape[-1] - 1 - mask[..., ::-1].argmax(-1)


def text_inputs(config: Any, head: str, rng: np.random.Generator, options: Options) -> Arrays:
    """Encoder-only and decoder-only text models."""
    choices = (options.get("choices", 3),) if head.endswith(("ForMultipleChoice", "DoubleHeadsModel")) else ()
    shape = (options.get("batch", 2), *choices, options.get("length", 9))
    ids, mask = padded_tokens(rng, shape, config.vocab_size, config.pad_token_id, options)
    inputs = {"input_ids": ids, "attention_mask": mask}
    types = getattr(config, "type_vocab_size", config.vocab_size if options.get("token_types") else 0)
    if types:
        inputs["token_type_ids"] = rng.integers(0, types, shape)
    if options.get("positions"):
        inputs["position_ids"] = rng.integers(0, config.max_position_embeddings, shape)
    if head.endswith("DoubleHeadsModel"):
        inputs["mc_token_ids"] = last_live(mask) - rng.integers(0, 2, shape[:-1]) * (shape[-1] > 4)
    if config.add_cross_attention:
        memory = (shape[0], 7)
        inputs["encoder_hidden_states"] = rng.standard_normal((*memory, config.hidden_size), np.float32)
        inputs["encoder_attention_mask"] = padded_tokens(rng, memory, 99, 0, {"pad_count": 2})[1]
    return inputs


def t5_inputs(config: Any, head: str, rng: np.random.Generator, options: Options) -> Arrays:
    """Encoder-decoder text; classification and question answering derive the decoder's tokens themselves unless `decoder` is set."""
    shape, target = (options.get("batch", 2), options.get("length", 9)), (options.get("batch", 2), options.get("target_length", 6))
    ids, mask = padded_tokens(rng, shape, config.vocab_size, config.pad_token_id, options)
    if head == "T5ForSequenceClassification":
        ids[np.arange(shape[0]), last_live(mask)] = config.eos_token_id
    inputs = {"input_ids": ids, "attention_mask": mask}
    derived = head in ("T5ForSequenceClassification", "T5ForQuestionAnswering")
    if head in ("T5Model", "T5ForConditionalGeneration") or (derived and options.get("decoder")):
        target = shape if derived else target
        inputs["decoder_input_ids"] = rng.integers(FIRST_TOKEN, config.vocab_size, target)
        if options.get("decoder_mask"):
            inputs["decoder_attention_mask"] = padded_tokens(rng, target, 99, 0, {"pad_count": 2})[1]
    return inputs


def pixels(rng: np.random.Generator, batch: int, channels: int, height: int, width: int) -> np.ndarray:
    """Noise, a colour cast and a coarse pattern: noise alone averages out in deep nets."""
    noise = rng.standard_normal((batch, channels, height, width)) * 0.5
    cast = rng.standard_normal((batch, channels, 1, 1)) * 0.7
    coarse = rng.standard_normal((batch, channels, 4, 4))
    pattern = coarse[:, :, (np.arange(height) * 4 // height)[:, None], np.arange(width) * 4 // width]
    return (noise + cast + pattern).astype(np.float32)


def pair(size: Any) -> tuple[int, int]:
    """An image or patch size as (height, width)."""
    return (size, size) if isinstance(size, int) else tuple(size)


def image_inputs(config: Any, head: str, rng: np.random.Generator, options: Options) -> Arrays:
    """Pixels of the configured size unless `height` and `width` say otherwise; ResNet has no configured size and gets 64."""
    height, width = pair(getattr(config, "image_size", 64))
    height = options.get("height", height)
    width = options.get("width", options.get("height", width))
    batch = options.get("batch", 2)
    inputs = {"pixel_values": pixels(rng, batch, config.num_channels, height, width)}
    if head.endswith("ForMaskedImageModeling"):
        patch = pair(config.patch_size)
        inputs["bool_masked_pos"] = rng.random((batch, (height // patch[0]) * (width // patch[1]))) < 0.4
    return inputs


def frames(config: Any, samples: np.ndarray | int) -> Any:
    """How many frames the feature encoder makes of so many samples."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def audio_inputs(config: Any, head: str, rng: np.random.Generator, options: Options) -> Arrays:
    """Waveforms, right-padded (only the sum of an audio mask counts); pre-training also gets its masked frames and its negatives."""
    batch, samples = options.get("batch", 2), options.get("samples", 800)
    mask = np.ones((batch, samples), np.int64)
    if options.get("pad", "right") == "right" and batch > 1:
        mask[-1, samples - samples // 4 :] = 0
    inputs = {"input_values": (rng.standard_normal((batch, samples)) * mask).astype(np.float32), "attention_mask": mask}
    count = frames(config, samples)
    if head == "Wav2Vec2ForPreTraining" or options.get("masked_frames"):
        masked = np.zeros((batch, count), bool)
        masked[:, min(2, count - 1) : 5] = True
        masked[0, 8:11] = True
        inputs["mask_time_indices"] = masked
    if head == "Wav2Vec2ForPreTraining":
        rows = np.arange(batch)[:, None, None] * count
        inputs["sampled_negative_indices"] = rng.integers(0, count, (batch, count, 4)) + rows
    return inputs


def clip_inputs(config: Any, head: str, rng: np.random.Generator, options: Options) -> Arrays:
    """Text, pixels or both, with batches of their own."""
    inputs = {}
    if "Vision" not in head and head != "CLIPForImageClassification":
        text = getattr(config, "text_config", config)
        shape = (options.get("text_batch", 3), options.get("length", 9))
        ids, mask = padded_tokens(rng, shape, text.vocab_size - 3, text.pad_token_id, options)
        # where eos_token_id is 2 the reference pools at the greatest id instead
        ids[np.arange(shape[0]), last_live(mask)] = text.eos_token_id if text.eos_token_id != 2 else text.vocab_size - 1
        inputs |= {"input_ids": ids, "attention_mask": mask}
        if options.get("positions"):
            inputs["position_ids"] = rng.integers(0, text.max_position_embeddings, shape)
    if "Text" not in head:
        vision = getattr(config, "vision_config", config)
        inputs |= image_inputs(vision, head, rng, options)
    return inputs


def _token_labels(inputs: Arrays, name: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """A label for two thirds of the unpadded tokens that follow an unpadded one, -100 elsewhere.

    A head that shifts its labels predicts a token at the one before it; where that is padding on the left, the prediction has no meaning.
    """
    ids = inputs[name]
    live = inputs.get("decoder_attention_mask" if name.startswith("decoder") else "attention_mask", np.ones_like(ids)) == 1
    live[..., 1:] &= live[..., :-1].copy()
    chosen = rng.random(ids.shape) < 0.67
    chosen[..., -2:] = True  # at least one, whichever side is padded and whether or not labels are shifted
    chosen[..., 1:2] = True
    return np.where(live & chosen, rng.integers(0, count, ids.shape), -100)


def _class_labels(config: Any, batch: int, rng: np.random.Generator) -> np.ndarray:
    """Labels of a classification head for the configured problem type."""
    if config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1):
        return rng.standard_normal((batch, config.num_labels) if config.num_labels > 1 else (batch,)).astype(np.float32)
    if config.problem_type == "multi_label_classification":
        return (rng.random((batch, config.num_labels)) < 0.5).astype(np.float32)
    return rng.integers(0, config.num_labels, (batch,))


def _audio_labels(head: str, config: Any, inputs: Arrays, rng: np.random.Generator) -> Arrays:
    batch, count = len(inputs["input_values"]), frames(config, inputs["input_values"].shape[1])
    if head == "Wav2Vec2ForCTC":
        labels = rng.integers(1, config.vocab_size, (batch, min(4, count)))
        labels[-1, min(3, count) :] = -100
        return {"labels": labels}
    if head == "Wav2Vec2ForAudioFrameClassification":
        return {"labels": np.eye(config.num_labels, dtype=np.int64)[rng.integers(0, config.num_labels, (batch, count))]}
    return {"labels": rng.integers(0, config.num_labels, (batch,))}


def has_loss(head: str) -> bool:
    """Whether the reference has a loss for a head, given inputs that allow one."""
    bare = head.endswith("Model") and "Head" not in head and head != "CLIPModel"
    return not bare and not head.endswith(("Backbone", "WithProjection")) and head != "Wav2Vec2ForMaskedLM"


def labels(head: str, config: Any, inputs: Arrays, rng: np.random.Generator) -> dict[str, Any] | None:
    """What makes `head` return a loss: arrays, or True for a flag; {} where the inputs already do; None where it has no loss."""
    if head.endswith("ForMaskedImageModeling"):
        return {} if "bool_masked_pos" in inputs else None
    if head == "Wav2Vec2ForPreTraining":
        return {}
    if head == "CLIPModel":
        return {"return_loss": True} if len(inputs["input_ids"]) == len(inputs["pixel_values"]) else None
    if not has_loss(head) or config.num_labels == 0:
        return None
    if "input_values" in inputs:
        return _audio_labels(head, config, inputs, rng)
    if head.endswith(("ForSequenceClassification", "ForImageClassification")):
        return {"labels": _class_labels(config, len(next(iter(inputs.values()))), rng)}
    batch, length = inputs["input_ids"].shape[0], inputs["input_ids"].shape[-1]
    if head.endswith(("LMHeadModel", "DoubleHeadsModel")) and length == 1:
        return None  # nothing is left to predict after the shift
    if head.endswith("ForQuestionAnswering"):
        return {name: rng.integers(0, length, (batch,)) for name in ("start_positions", "end_positions")}
    if head.endswith("ForMultipleChoice"):
        return {"labels": rng.integers(0, inputs["input_ids"].shape[1], (batch,))}
    if head.endswith("ForNextSentencePrediction"):
        return {"labels": rng.integers(0, 2, (batch,))}
    count = config.num_labels if head.endswith("ForTokenClassification") else config.vocab_size
    made = {"labels": _token_labels(inputs, "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids", count, rng)}
    if head == "BertForPreTraining":
        made["next_sentence_label"] = rng.integers(0, 2, (batch,))
    if head.endswith("DoubleHeadsModel") and config.summary_use_proj and config.summary_proj_to_labels:
        made["mc_labels"] = rng.integers(0, inputs["input_ids"].shape[1], (batch,))
    return made


_TEXT = {"vocab_size": 99, "num_labels": 5}
_TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
_COMMON_HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering")
_BERT_HEADS = ("PreTraining", "MaskedLM", "NextSentencePrediction", "MultipleChoice", *_COMMON_HEADS)
_AUDIO_HEADS = ("PreTraining", "MaskedLM", "CTC", "SequenceClassification", "AudioFrameClassification", "XVector")
_CLIP_HEADS = ("Model", "TextModel", "TextModelWithProjection", "VisionModel", "VisionModelWithProjection")

SPECS: dict[str, Spec] = {
    "bert": Spec(
        "bert",
        ("BertModel", "BertLMHeadModel", *(f"BertFor{head}" for head in _BERT_HEADS)),
        {**_TEXT, **_TOWER, "max_position_embeddings": 64, "type_vocab_size": 3},
        text_inputs,
    ),
    "gpt2": Spec(
        "gpt2",
        ("GPT2Model", "GPT2LMHeadModel", "GPT2DoubleHeadsModel", *(f"GPT2For{head}" for head in _COMMON_HEADS)),
        {**_TEXT, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        text_inputs,
    ),
    "t5": Spec(
        "t5",
        ("T5Model", "T5EncoderModel", "T5ForConditionalGeneration", *(f"T5For{head}" for head in _COMMON_HEADS)),
        {**_TEXT, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "decoder_start_token_id": 0}
        | {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16},
        t5_inputs,
    ),
    "vit": Spec(
        "vit",
        ("ViTModel", "ViTForMaskedImageModeling", "ViTForImageClassification"),
        {**_TOWER, "image_size": 32, "patch_size": 8, "encoder_stride": 8, "num_labels": 5},
        image_inputs,
    ),
    "resnet": Spec(
        "resnet",
        ("ResNetModel", "ResNetForImageClassification", "ResNetBackbone"),
        {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "out_features": ["stage2", "stage4"], "num_labels": 5},
        image_inputs,
    ),
    "wav2vec2": Spec(
        "wav2vec2",
        ("Wav2Vec2Model", *(f"Wav2Vec2For{head}" for head in _AUDIO_HEADS)),
        {**_TOWER, "conv_dim": [16, 16, 16, 16], "conv_stride": [5, 2, 2, 2], "conv_kernel": [10, 3, 3, 2], "vocab_size": 33, "num_labels": 5}
        | {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 20, "xvector_output_dim": 12}
        | {"tdnn_dim": [16, 16, 24], "tdnn_kernel": [3, 3, 1], "tdnn_dilation": [1, 2, 1]}
        | {"num_codevectors_per_group": 60, "num_codevector_groups": 2, "codevector_dim": 16, "proj_codevector_dim": 12},
        audio_inputs,
    ),
    "clip": Spec(
        "clip",
        (*(f"CLIP{head}" for head in _CLIP_HEADS), "CLIPForImageClassification"),
        {
            "text_config": {**_TOWER, "vocab_size": 99, "max_position_embeddings": 64, "projection_dim": 24, "bos_token_id": 96, "eos_token_id": 97},
            "vision_config": {**_TOWER, "hidden_size": 40, "image_size": 32, "patch_size": 8, "projection_dim": 24},
            "projection_dim": 24,
            "num_labels": 5,
        },
        clip_inputs,
    ),
    "swin": Spec(
        "swin",
        ("SwinModel", "SwinForMaskedImageModeling", "SwinForImageClassification", "SwinBackbone"),
        {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 2, 1], "num_heads": [2, 2, 4], "window_size": 4, "mlp_ratio": 2.0}
        | {"encoder_stride": 8, "out_features": ["stage1", "stage3"], "num_labels": 5},
        image_inputs,
    ),
}


def configure(spec: str, head: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """The tiny configuration of a head with `overrides` merged in, nested dictionaries key by key; a CLIP tower takes its own part of both."""
    config = {**SPECS[spec].config}
    if spec == "clip" and head != "CLIPModel" and head != "CLIPForImageClassification":
        tower = "text_config" if "Text" in head else "vision_config"
        config, overrides = {**config[tower]}, overrides.get(tower, {})
    if head.endswith("ForQuestionAnswering"):
        config["num_labels"] = 2
    if head == "BertLMHeadModel":
        config["is_decoder"] = True
    for key, value in overrides.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    return config


def config_json(spec: str, head: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """What config.json would hold for this head; for configurations that the reference refuses to write."""
    tower = "_text_model" if "Text" in head else "_vision_model" if "Vision" in head else ""
    return {"model_type": spec + tower, "architectures": [head], **configure(spec, head, overrides)}
