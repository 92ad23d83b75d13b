"""Readable answers against the reference's pipelines, on small random models."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from processing_files import CORPUS, LETTERS, checkpoint, pictures, train_all, write

from interlingua.ir.errors import InputError
from interlingua.runtime.processing import answer, processor_for

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "initializer_range": 0.7}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    return train_all(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def bert_folder(trained, tmp_path_factory) -> Path:
    return checkpoint(trained, tmp_path_factory.mktemp("model"), "bert", {"model_max_length": 128})


def model(kind: str, **config):
    """A small random model of the reference, its config.json as a dict, and a function from our inputs to its outputs."""
    import torch
    import transformers

    cls = getattr(transformers, kind)
    torch.manual_seed(0)
    reference = cls(cls.config_class(**SMALL | config)).eval()

    def run(inputs):
        with torch.no_grad():
            outputs = reference(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items() if hasattr(value, "numpy")}

    return SimpleNamespace(reference=reference, config=json.loads(json.dumps(reference.config.to_dict())), run=run)


def bert(kind: str, folder: Path, **config):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = model(kind, vocab_size=len(tokenizer), **config)
    made.pipeline = {"model": made.reference, "tokenizer": tokenizer}
    made.processor = processor_for(folder, made.config)
    return made


def pipeline(task: str, **parts) -> Any:
    import transformers

    return transformers.pipeline(task, **parts, device="cpu")  # type: ignore


def ask(made, head: str, *, top_k: int = 5, **raw):
    inputs = made.processor.inputs(**raw)
    return answer(head, made.config, inputs, made.run(inputs), made.processor, top_k)


def same(rows: list[dict], expected: list[dict], **names: str) -> None:
    """Rows agree with what a pipeline gave; `names` maps our columns to its keys."""
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row["score"] == pytest.approx(other["score"], abs=1e-5)
        assert {name: row[name] for name in names} == {name: other[key] for name, key in names.items()}


CLASSES = {
    "softmax": {"num_labels": 7},
    "multi": {"num_labels": 4, "problem_type": "multi_label_classification"},
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "single": {"num_labels": 1},
}


@pytest.mark.parametrize("config", CLASSES.values(), ids=CLASSES)
def test_classes_are_those_of_the_pipeline(config, bert_folder):
    made = bert("BertForSequenceClassification", bert_folder, **config)
    got = ask(made, "BertForSequenceClassification", text=CORPUS[:3])
    reference = pipeline("text-classification", **made.pipeline)
    for i, text in enumerate(CORPUS[:3]):
        same([row for row in got.rows if row["input"] == i], reference(text, top_k=5), label="label")
    assert ("logit" in got.rows[0]) == (config == {"num_labels": 1})


def test_token_labels_are_those_of_the_pipeline(bert_folder):
    labels = ["B-X", "I-X", "O", "B-Y", "I-Y"]
    made = bert("BertForTokenClassification", bert_folder, id2label=dict(enumerate(labels)), label2id={k: i for i, k in enumerate(labels)})
    reference = pipeline("token-classification", **made.pipeline)
    texts = [CORPUS[1], CORPUS[2], "fox"]
    for side in ("right", "left"):
        got = ask(made, "token-classification", text=texts, padding_side=side)
        assert got.rows, "a tagger that names nothing tests nothing"
        for i, text in enumerate(texts if side == "right" else []):
            same([row for row in got.rows if row["input"] == i], reference(text), label="entity", start="start", end="end")
        assert all(row["text"] == texts[row["input"]][row["start"] : row["end"]] for row in got.rows)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # the reference's pipeline with NumPy 2
def test_spans_are_those_of_the_pipeline(bert_folder):
    made = bert("BertForQuestionAnswering", bert_folder)
    reference = pipeline("question-answering", **made.pipeline)
    contexts = [CORPUS[1], " ".join([*CORPUS[:3], *CORPUS[8:10]])]
    for context in contexts:
        got = ask(made, "question-answering", text="Which fox?", pair=context, max_length=64, stride=16, top_k=4)
        expected = reference(question="Which fox?", context=context, top_k=4, max_seq_len=64, doc_stride=16)
        same(got.rows, expected, answer="answer", start="start", end="end")
    two = ask(made, "BertForQuestionAnswering", text=["Which fox?"] * 2, pair=contexts, top_k=1)
    assert [row["input"] for row in two.rows] == [0, 1]
    assert str(two).splitlines()[0].split() == ["input", "answer", "score", "start", "end"]
    with pytest.raises(InputError, match="text 0 is a question without a context"):
        ask(made, "question-answering", text="Which fox?")
    inputs = made.processor.inputs(text="Which fox?", pair="that one")
    with pytest.raises(InputError, match=r"pass the inputs as Processor\.inputs"):
        answer("question-answering", made.config, dict(inputs), made.run(inputs), made.processor)


def test_mask_fillings_are_those_of_the_pipeline(bert_folder):
    made = bert("BertForMaskedLM", bert_folder)
    reference = pipeline("fill-mask", **made.pipeline)
    texts = ["the [MASK] brown fox.", "she sells sea [MASK] by the sea shore"]
    got = ask(made, "BertForMaskedLM", text=texts)
    for i, text in enumerate(texts):
        same([row for row in got.rows if row["input"] == i], reference(text), id="token", token="token_str", text="sequence")
    double = ask(made, "fill-mask", text="the [MASK] brown [MASK].")
    same(double.rows, [row for mask in reference("the [MASK] brown [MASK].") for row in mask], id="token", text="sequence")
    with pytest.raises(InputError, match=r"text 1 has nothing to fill in, expected at least one \[MASK\]"):
        ask(made, "masked-lm", text=["a [MASK]", "b"])


def test_pairs_and_choices(bert_folder):
    made = bert("BertForNextSentencePrediction", bert_folder)
    got = ask(made, "BertForNextSentencePrediction", text=CORPUS[0], pair=CORPUS[1])
    logits = made.run(made.processor.inputs(text=CORPUS[0], pair=CORPUS[1]))["logits"][0].astype(np.float64)
    follows = 1 / (1 + np.exp(logits[1] - logits[0]))
    assert {row["label"]: row["score"] for row in got.rows} == pytest.approx({"is next": follows, "is not next": 1 - follows})
    both = bert("BertForPreTraining", bert_folder)
    assert [row.get("label") or row["position"] for row in ask(both, "pretraining", text="a [MASK]", pair="b", top_k=1).rows][2:] == [2]
    choice = bert("BertForMultipleChoice", bert_folder)
    options = ["jumps over the dog", "sells sea shells", "x"]
    inputs = choice.processor.inputs(text="The fox", choices=options)
    outputs = choice.run(inputs)
    got = answer("multiple-choice", choice.config, inputs, outputs, choice.processor)
    ranked = np.argsort(-outputs["logits"][0])
    assert [row["text"] for row in got.rows] == [options[i] for i in ranked]
    assert sum(row["score"] for row in got.rows) == pytest.approx(1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_next_tokens_follow_the_last_live_position(side, trained, tmp_path):
    folder = checkpoint(trained, tmp_path, "gpt2", {})
    made = model("GPT2LMHeadModel", vocab_size=420, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    made.processor = processor_for(folder, made.config)
    texts = ["The quick brown", "x"]
    got = ask(made, "GPT2LMHeadModel", text=texts, padding_side=side, pad_token="<|endoftext|>", top_k=2)
    inputs = made.processor.inputs(text=texts, padding_side=side, pad_token="<|endoftext|>")
    for i, last in enumerate((-1, -1) if side == "left" else (-1, 0)):
        logits = made.run(inputs)["logits"][i, last]
        rows = [row for row in got.rows if row["input"] == i]
        assert [row["id"] for row in rows] == np.argsort(-logits)[:2].tolist()
        assert [row["token"] for row in rows] == [made.processor.text.decode([row["id"]]) for row in rows]
        assert rows[0]["score"] == pytest.approx(np.exp(logits.max() - np.logaddexp.reduce(logits)), rel=1e-4)
    generated = answer("text-generation", made.config, inputs, {"sequences": made.processor.inputs(text="The fox")["input_ids"]}, made.processor)
    assert generated.rows == [{"input": 0, "text": "The fox"}]


def test_image_answers_are_those_of_the_pipelines(trained, tmp_path):
    from transformers import CLIPImageProcessor, CLIPTokenizerFast, ViTImageProcessor

    made = model("ViTForImageClassification", image_size=16, patch_size=8, num_labels=6)
    folder = write(tmp_path, preprocessor_config={"image_processor_type": "ViTImageProcessor", "size": 16})
    made.processor = processor_for(folder, made.config)
    images = [image.convert("RGB") for image in pictures()[:2]]
    got = ask(made, "ViTForImageClassification", image=images)
    reference = pipeline("image-classification", model=made.reference, image_processor=ViTImageProcessor.from_pretrained(folder))
    for i, image in enumerate(images):
        same([row for row in got.rows if row["input"] == i], reference(image), label="label")

    small = {name: value for name, value in SMALL.items() if name != "initializer_range"}
    text = small | {"vocab_size": 700, "max_position_embeddings": 77, "eos_token_id": 1}
    made = model("CLIPModel", text_config=text, vision_config=small | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    folder = checkpoint(trained, tmp_path, "clip", {}, preprocessor_config={"size": 16, "crop_size": 16})
    made.processor = processor_for(folder, {"model_type": "clip"})
    labels = ["a fox", "the lazy dog and the sea", "shells"]
    got = ask(made, "CLIPModel", image=images, text=labels)
    parts = {"tokenizer": CLIPTokenizerFast.from_pretrained(folder), "image_processor": CLIPImageProcessor.from_pretrained(folder)}
    reference = pipeline("zero-shot-image-classification", model=made.reference, **parts)
    for i, image in enumerate(images):
        expected = reference(image, candidate_labels=labels, hypothesis_template="{}")
        same([row for row in got.rows if row["input"] == i], expected, text="label")


WAV2VEC2 = {"conv_dim": [8, 8], "conv_stride": [5, 4], "conv_kernel": [10, 8], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2, "vocab_size": len(LETTERS), "feat_extract_norm": "layer", "do_stable_layer_norm": True}  # fmt: skip


def test_sound_answers_are_those_of_the_pipelines(tmp_path):
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

    folder = write(tmp_path, vocab=LETTERS, tokenizer_config={}, preprocessor_config={"return_attention_mask": True})
    waves = [np.random.default_rng(i).standard_normal(n).astype(np.float32) * 0.3 for i, n in enumerate((2000, 1300))]
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    made = model("Wav2Vec2ForCTC", **WAV2VEC2)
    made.processor = processor_for(folder, made.config)
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folder)
    reference = pipeline("automatic-speech-recognition", model=made.reference, feature_extractor=extractor, tokenizer=tokenizer)
    got = ask(made, "Wav2Vec2ForCTC", audio=waves)
    assert [row["text"] for row in got.rows] == [reference(wave)["text"] for wave in waves]
    assert len(got.rows[1]["text"]) > 5

    made = model("Wav2Vec2ForSequenceClassification", **WAV2VEC2, num_labels=6)
    made.processor = processor_for(folder, made.config)
    reference = pipeline("audio-classification", model=made.reference, feature_extractor=extractor)
    same(ask(made, "audio-classification", audio=waves[0]).rows, reference(waves[0], top_k=5), label="label")

    made = model("Wav2Vec2ForAudioFrameClassification", **WAV2VEC2, num_labels=2)
    made.processor = processor_for(folder, made.config)
    inputs = made.processor.inputs(audio=waves)
    active = made.run(inputs)["logits"] > 0
    rows = answer("audio-frame-classification", made.config, inputs, made.run(inputs), made.processor).rows
    for i, frames in enumerate((98, 63)):  # (samples - 10) // 5 + 1, then (n - 8) // 4 + 1
        for label in range(2):
            seconds = sum(row["end"] - row["start"] for row in rows if row["input"] == i and row["label"] == f"LABEL_{label}")
            assert seconds == pytest.approx(active[i, :frames, label].sum() * 20 / 16000)

    made = model("Wav2Vec2ForXVector", **WAV2VEC2, tdnn_dim=[8, 8], tdnn_kernel=[3, 1], tdnn_dilation=[1, 1], xvector_output_dim=6)
    made.processor = processor_for(folder, made.config)
    a, b = (row["cosine"] for row in ask(made, "xvector", audio=waves).rows)
    one, two = made.run(made.processor.inputs(audio=waves))["embeddings"].astype(float)
    assert a == pytest.approx([1, b[0]])
    assert b[0] == pytest.approx(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


def test_features_are_of_live_positions(bert_folder):
    made = bert("BertModel", bert_folder)
    rows = ask(made, "BertModel", text=["x", CORPUS[0]]).rows
    alone = ask(made, "feature-extraction", text="x").rows
    assert rows[0]["shape"] == alone[0]["shape"] == "[3 16]"
    assert rows[0]["norm"] == pytest.approx(alone[0]["norm"], rel=1e-5)
    embedding = answer("features", {}, {}, {"sentence_embedding": np.array([[1, 0], [1, 1], [0, 0]])})
    np.testing.assert_allclose([row["cosine"] for row in embedding.rows], [[1, 0.5**0.5, 0], [0.5**0.5, 1, 0], [0, 0, 0]])
    assert str(embedding).splitlines()[2] == "sentence_embedding      1  [2]    1.4142  1.0000 1.0000  0.7071 1.0000 0.0000"


def test_reconstructions_are_compared_where_they_were_masked():
    truth = np.zeros((1, 3, 4, 4), np.float32)
    guess = truth + np.array([[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]])
    inputs = {"pixel_values": truth, "bool_masked_pos": np.array([[0, 1, 0, 1]])}
    (row,) = answer("ViTForMaskedImageModeling", {"patch_size": 2}, inputs, {"reconstruction": guess}).rows
    assert (row["masked error"], row["visible error"], row["greatest"]) == (3, 2, 4)
