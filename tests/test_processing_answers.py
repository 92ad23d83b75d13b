"""Answers about images and sound against the reference's pipelines, on small random models; answers as tables; what answers lack."""

from __future__ import annotations

import functools
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import PIXELS
from processing_files import LETTERS, clip_files, pictures, write

import interlingua as il
from interlingua.ir.errors import InputError, UsageError
from interlingua.runtime.processing import Answer, processor_for
from interlingua.runtime.processing.files import Inputs
from interlingua.runtime.processing.results import Results
from interlingua.runtime.processing.tasks import TASKS, task_of

ROOT = tempfile.TemporaryDirectory(prefix="interlingua-answers-")
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
IMAGE = {**SMALL, "initializer_range": 0.7, "image_size": 16, "patch_size": 8}
PREPARED = {"preprocessor_config": {**PIXELS, "size": {"height": 16, "width": 16}}}
SOUND = {**SMALL, "initializer_range": 0.7, "conv_dim": [8, 8], "conv_stride": [5, 4], "conv_kernel": [10, 8], "num_feat_extract_layers": 2,
         "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "vocab_size": len(LETTERS), "feat_extract_norm": "layer",
         "do_stable_layer_norm": True}  # fmt: skip
EXTRACTOR = {"return_attention_mask": True, "feature_extractor_type": "Wav2Vec2FeatureExtractor"}
HEARD = {"vocab": LETTERS, "tokenizer_config": {}, "preprocessor_config": EXTRACTOR}
WAVES = [np.random.default_rng(i).standard_normal(n).astype(np.float32) * 0.3 for i, n in enumerate((2000, 1300))]


@functools.cache
def saved(cls: str, settings: str) -> tuple[Path, Any]:
    """A checkpoint's folder, and the reference's model of it."""
    import torch
    import transformers

    made = getattr(transformers, cls)
    folder = Path(tempfile.mkdtemp(dir=ROOT.name))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = made(made.config_class(**json.loads(settings))).eval()
        model.save_pretrained(folder)
    return folder, model


def pipeline(task: str, **parts: Any) -> Any:
    import transformers

    return transformers.pipeline(task, **parts, device="cpu")  # type: ignore[call-overload]


def same(got: Any, expected: list[dict], key: str = "label") -> None:
    assert [row[key] for row in got] == [row[key] for row in expected]
    assert [row["score"] for row in got] == pytest.approx([row["score"] for row in expected], abs=1e-4)


@pytest.mark.parametrize(
    "config", [{"num_labels": 6}, {"num_labels": 3, "problem_type": "multi_label_classification"}, {"num_labels": 1}], ids=["six", "multi", "one"]
)
def test_classes_and_features_of_images(config: dict):
    from transformers import ViTImageProcessor

    folder, model = saved("ViTForImageClassification", json.dumps({**IMAGE, **config}))
    write(folder, **PREPARED)
    images = [image.convert("RGB") for image in pictures()[:3]]
    reference = pipeline("image-classification", model=model, image_processor=ViTImageProcessor.from_pretrained(folder))
    ours = il.pipeline("image-classification", folder)
    for got, image in zip(ours(images), images, strict=True):
        same(got, reference(image))
        same(ours(image, top_k=2, function_to_apply="softmax"), reference(image, top_k=2, function_to_apply="softmax"))
    for together, alone in zip(ours(images, batch_size=2), ours(images), strict=True):
        same(together, alone)  # to rounding: products of several rows add in another order
    reference = pipeline("image-feature-extraction", model=model.vit, image_processor=ViTImageProcessor.from_pretrained(folder))
    np.testing.assert_allclose(il.pipeline("image-feature-extraction", folder)(images[1]), reference(images[1]), atol=1e-4)


def test_labels_for_images():
    from transformers import CLIPImageProcessor, CLIPTokenizerFast

    text = SMALL | {"vocab_size": 700, "max_position_embeddings": 77, "eos_token_id": 1}
    vision = SMALL | {"image_size": 16, "patch_size": 8}
    folder, model = saved("CLIPModel", json.dumps({"text_config": text, "vision_config": vision, "projection_dim": 8}))
    clip_files(folder)
    write(folder, tokenizer_config={}, preprocessor_config={"image_processor_type": "CLIPImageProcessor", "size": 16, "crop_size": 16})
    parts = {"tokenizer": CLIPTokenizerFast.from_pretrained(folder), "image_processor": CLIPImageProcessor.from_pretrained(folder)}
    reference = pipeline("zero-shot-image-classification", model=model, **parts)
    labels, images = ["a fox", "the lazy dog and the sea", "shells"], [image.convert("RGB") for image in pictures()[:2]]
    ours = il.pipeline("zero-shot-image-classification", folder)
    for options in ({}, {"hypothesis_template": "{}"}):
        for got, image in zip(ours(images, candidate_labels=labels, **options), images, strict=True):
            same(got, reference(image, candidate_labels=labels, **options))
    same(ours(images[0], labels), reference(images[0], candidate_labels=labels))


def test_what_is_said_and_by_whom():
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

    folder, model = saved("Wav2Vec2ForCTC", json.dumps(SOUND))
    write(folder, **HEARD)
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    parts = {"feature_extractor": extractor, "tokenizer": Wav2Vec2CTCTokenizer.from_pretrained(folder)}
    reference = pipeline("automatic-speech-recognition", model=model, **parts)
    ours = il.pipeline("automatic-speech-recognition", folder)
    assert ours(WAVES) == [reference(wave) for wave in WAVES]
    assert ours({"raw": WAVES[0], "sampling_rate": 16000}) == ours((WAVES[0], 16000)) == ours(WAVES[0])
    assert len(ours(WAVES[1])["text"]) > 5

    folder, model = saved("Wav2Vec2ForSequenceClassification", json.dumps({**SOUND, "num_labels": 6}))
    write(folder, **HEARD)
    reference = pipeline("audio-classification", model=model, feature_extractor=extractor)
    ours = il.pipeline(None, folder)
    assert ours.task == "audio-classification"
    for got, wave in zip(ours(WAVES), WAVES, strict=True):
        same(got, reference(wave))
    same(ours(WAVES[0], top_k=2, function_to_apply="sigmoid"), reference(WAVES[0], top_k=2, function_to_apply="sigmoid"))


def test_when_speakers_speak():
    import torch

    folder, model = saved("Wav2Vec2ForAudioFrameClassification", json.dumps({**SOUND, "num_labels": 2}))
    write(folder, **HEARD)
    ours, processor = il.pipeline(None, folder), processor_for(folder, {"model_type": "wav2vec2"})
    for wave in WAVES:
        with torch.no_grad():
            active = model(torch.from_numpy(processor.inputs(audio=wave)["input_values"])).logits[0].numpy() > 0
        for label in range(2):
            seconds = sum(row["end"] - row["start"] for row in ours(wave) if row["label"] == f"LABEL_{label}")
            assert seconds == pytest.approx(active[:, label].sum() * 20 / 16000)


def test_voices_are_compared_in_the_table():
    import torch

    settings = {"tdnn_dim": [8, 8], "tdnn_kernel": [3, 1], "tdnn_dilation": [1, 1], "xvector_output_dim": 6}
    folder, model = saved("Wav2Vec2ForXVector", json.dumps({**SOUND, **settings}))
    write(folder, **HEARD)
    ours, processor = il.pipeline(None, folder), processor_for(folder, {"model_type": "wav2vec2"})
    with torch.no_grad():
        one, two = (model(torch.from_numpy(processor.inputs(audio=wave)["input_values"])).embeddings[0].numpy() for wave in WAVES)
    np.testing.assert_allclose(ours(WAVES[1], output="embeddings")[0], two, atol=1e-4)
    rows = [row for row in Answer.of(ours(WAVES, output="*", return_tensors=True)).rows if row["output"] == "embeddings"]
    cosine = float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
    assert rows[0]["cosine"] == pytest.approx([1, cosine], abs=1e-4)


def test_reconstructions_are_compared_where_they_were_masked():
    truth = np.zeros((3, 4, 4), np.float32)
    guess = truth + np.array([[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]])
    run = Results({"patch_size": 2}, Inputs(), [{"pixel_values": truth, "bool_masked_pos": np.array([0, 1, 0, 1])}], [{"reconstruction": guess}])
    row = TASKS["masked-image-modeling"].answer(run)
    assert (row["masked error"], row["visible error"], row["greatest"]) == (3, 2, 4)


# ---- tables, and what is lacking ----------------------------------------------------------------


def test_tables():
    vectors = [{"sentence_embedding": np.array([row], float)} for row in ([1, 0], [1, 1], [0, 0])]
    embedding = Answer.of(vectors)
    np.testing.assert_allclose([row["cosine"] for row in embedding.rows], [[1, 0.5**0.5, 0], [0.5**0.5, 1, 0], [0, 0, 0]])
    assert str(embedding).splitlines()[2] == "sentence_embedding      1  [2]    1.4142  1.0000 1.0000  0.7071 1.0000 0.0000"
    assert str(Answer.of([{"labels": ["a", "b"], "scores": [0.75, 0.25]}])).splitlines() == ["label   score", "a      0.7500", "b      0.2500"]
    assert str(Answer.of([[0.5], [0.25]])).splitlines() == ["input   score", "    0  0.5000", "    1  0.2500"]
    assert str(Answer.of([[[{"token": 1}], [{"token": 2}]]])).splitlines() == ["token", "    1", "    2"]
    assert str(Answer.of([[]])) == "(nothing found)"
    assert len(str(Answer.of([{"text": "x" * 300}]))) > 300
    assert str(Answer.of([{"label": "x" * 300, "score": 1.0}])).splitlines()[1].startswith("x" * 59 + "…")


def test_tasks_of_heads():
    heads = {
        "BertForMaskedLM": "fill-mask",
        "GPT2LMHeadModel": "text-generation",
        "GPT2DoubleHeadsModel": "multiple-choice",
        "T5ForConditionalGeneration": "text2text-generation",
        "BertModel": "feature-extraction",
        "CLIPModel": "zero-shot-image-classification",
        "CLIPTextModel": "feature-extraction",
        "BertForSequenceClassification": "text-classification",
        "ElectraForPreTraining": "feature-extraction",
    }
    assert {head: task_of(head, frozenset({"text", "image"} if "CLIP" in head else {"text"})) for head in heads} == heads
    assert task_of("Wav2Vec2ForSequenceClassification", frozenset({"audio"})) == "audio-classification"


def test_answers_say_what_they_lack():
    with pytest.raises(UsageError, match="needs the output 'logits'; the model gave last_hidden_state"):
        TASKS["text-classification"].answer(Results({}, Inputs(), [{}], [{"last_hidden_state": np.zeros((2, 3))}]))
    with pytest.raises(UsageError, match=r"output logits has the shape \[2, 3\] for each sample, expected 1 axes"):
        TASKS["text-classification"].answer(Results({}, Inputs(), [{}], [{"logits": np.zeros((2, 3))}]))
    with pytest.raises(UsageError, match="needs the tokenizer of the checkpoint"):
        TASKS["fill-mask"].answer(Results({}, Inputs(), [{}], [{"logits": np.zeros((2, 3))}]))
    with pytest.raises(InputError, match=r"pass the inputs as Processor\.inputs"):
        TASKS["token-classification"].answer(Results({}, Inputs(), [{}], [{"logits": np.zeros((2, 3))}]))
