"""Every kind of tokenizer against the reference's, on vocabularies trained here: no difference over thousands of texts and a thousand pairs."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizer_files as files
from processing_files import write
from tokenizer_corpus import WORDS, pairs, texts

from interlingua.ir.errors import CheckpointError, ConfigError, InputError, MissingExtraError, UsageError
from interlingua.runtime.processing import TextProcessor, processor_for

OTHER_FILES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "albert byte pairs": ("albert", lambda folder: files.sentencepiece(folder, "spiece.model", "bpe", **files.ALBERT)),
    "xlm-roberta byte pairs": ("xlm-roberta", lambda folder: files.sentencepiece(folder, files.FAIRSEQ_FILE, "bpe", **files.FAIRSEQ)),
    "big_bird as it is": (
        "big_bird",
        lambda folder: files.sentencepiece(folder, "spiece.model", **files.BIG_BIRD, normalization_rule_name="identity"),
    ),
    "bert-generation byte pairs": ("bert-generation", lambda folder: files.sentencepiece(folder, "spiece.model", "bpe", **files.GENERATION)),
    "bert-generation bytes": (
        "bert-generation",
        lambda folder: files.sentencepiece(folder, "spiece.model", **files.GENERATION, byte_fallback=True, normalization_rule_name="nfkc_cf"),
    ),
}
# (name, layout, tokenizer_config.json)
CHOSEN: list[tuple[str, str, dict[str, Any]]] = [
    ("bert cased", "bert", {"do_lower_case": False}),
    ("bert accents", "bert", {"strip_accents": False, "tokenize_chinese_chars": False}),
    ("splinter left", "splinter", {"padding_side": "left"}),
    ("roberta spaced", "roberta", {"add_prefix_space": True, "trim_offsets": False}),
    ("roberta pieces", "roberta", {"mask_token": "[M]", "additional_special_tokens": ["<ent>", "<x>"], "cls_token": "<pad>"}),
    ("albert cased", "albert", {"do_lower_case": False, "keep_accents": True}),
    ("xlnet lower", "xlnet", {"do_lower_case": True, "keep_accents": True, "padding_side": "right"}),
    ("rembert folded", "rembert", {"do_lower_case": True, "keep_accents": False}),
    ("deberta-v2 marks", "deberta-v2", {"split_by_punct": True, "do_lower_case": True}),
]
TWINS = ("distilbert", "electra", "convbert", "mobilebert", "squeezebert", "dpr")  # the same classes as BERT's, by other names
ROWS = {
    **{name: (name, {}, make) for name, make in files.LAYOUTS.items()},
    **{name: (layout, {}, make) for name, (layout, make) in OTHER_FILES.items()},
    **{name: (layout, settings, files.LAYOUTS[layout]) for name, layout, settings in CHOSEN},
}
OLD_ONLY = ("luke", "mluke", "bert-generation")  # the reference has no class on the tokenizers library
MAIN = [name for name in ROWS if name in files.LAYOUTS and name not in TWINS] + ["splinter left"]
FAST = [name for name, (layout, _, _) in ROWS.items() if layout not in OLD_ONLY]
ids = lambda names: [name.replace(" ", "-") for name in names]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[str], SimpleNamespace]:
    """A function from a row's name to its folder, our tokenizer and the reference's, each made once."""
    done: dict[str, SimpleNamespace] = {}

    def make(name: str) -> SimpleNamespace:
        if name not in done:
            layout, settings, maker = ROWS[name]
            folder = files.checkpoint(tmp_path_factory.mktemp("tokenizer"), layout, maker, settings)
            done[name] = SimpleNamespace(folder=folder, ours=ours(folder), reference=reference(folder))
        return done[name]

    return make


def ours(folder: Path) -> TextProcessor:
    return TextProcessor.from_folder(folder, json.loads((folder / "config.json").read_text()))


def reference(folder: Path, fast: bool = True) -> Any:
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()
    return AutoTokenizer.from_pretrained(folder, use_fast=fast)


@pytest.mark.parametrize("name", ROWS, ids=ids(ROWS))
def test_ids_types_offsets_and_text_are_the_reference_s(name, made):
    row, corpus = made(name), texts()
    assert row.reference.is_fast == (name in FAST)
    expected = row.reference(corpus, return_offsets_mapping=row.reference.is_fast)
    empty = [text for text, tokens in zip(corpus, expected["input_ids"], strict=True) if not tokens]
    for text in empty:
        with pytest.raises(InputError, match="text 0 gives no tokens"):
            row.ours.inputs(text, truncation=None)
    got = row.ours.inputs([text for text in corpus if text not in empty], truncation=None).encodings
    rows = [i for i, tokens in enumerate(expected["input_ids"]) if tokens]
    assert len(rows) > 2000
    for i, encoding in zip(rows, got, strict=True):
        assert encoding.ids == expected["input_ids"][i], corpus[i]
        if row.ours.token_types:
            assert encoding.type_ids == expected["token_type_ids"][i], corpus[i]
        if row.reference.is_fast:
            assert encoding.offsets == [tuple(offset) for offset in expected["offset_mapping"][i]], corpus[i]
    for skip in (True, False):
        decoded = row.reference.batch_decode([encoding.ids for encoding in got], skip_special_tokens=skip)
        assert [row.ours.decode(encoding.ids, skip) for encoding in got] == decoded


def serialized(tokenizer: Any) -> dict[str, Any]:
    return json.loads(tokenizer.to_str()) | {"padding": None, "truncation": None}


@pytest.mark.parametrize("name", FAST, ids=ids(FAST))
def test_the_vocabulary_files_give_the_tokenizer_that_the_reference_converts_them_to(name, made):
    row = made(name)
    assert serialized(row.ours.tokenizer) == serialized(row.reference.backend_tokenizer)


@pytest.mark.parametrize("name", MAIN, ids=ids(MAIN))
def test_pairs_are_cut_and_padded_as_in_the_reference(name, made):
    row, whole = made(name), pairs()
    for start in range(0, len(whole), 100):
        first, second = (list(part) for part in zip(*whole[start : start + 100], strict=True))
        number = start // 100
        cut = ("longest_first", "longest_first", "only_first", "only_second")[number % 4]
        if cut == "only_first":
            second = [text[:8] for text in second]
        if cut == "only_second":
            first = [text[:8] for text in first]
        options: dict[str, Any] = {"max_length": 60 if cut != "longest_first" else (9, 24, 37, 63, 130)[number // 2]}
        side, padding = ("right", "left")[number % 2], ("longest", "max_length")[number // 2 % 2]
        row.reference.truncation_side = side
        expected = row.reference(first, second, truncation=cut, padding=padding, padding_side=side, return_tensors="np", **options)
        got = replace(row.ours, truncation_side=side).inputs(first, second, truncation=cut, padding=padding, padding_side=side, **options)
        assert sorted(got) == sorted(expected)
        for key, value in expected.items():
            np.testing.assert_array_equal(got[key], value, f"{key} {cut} {side}")
    got, expected = row.ours.inputs(["a", "a b c"]), row.reference(["a", "a b c"], padding=True)
    assert {key: value.tolist() for key, value in got.items()} == dict(expected)


@pytest.mark.parametrize("name", ["bert", "splinter left", "mpnet", "roberta", "deberta", "albert", "xlnet", "xlm-roberta"])
def test_long_contexts_become_the_reference_s_windows(name, made):
    row, whole = made(name), pairs(30, seed=3)
    first, second = [text[:6] for text, _ in whole], [text * 3 for _, text in whole]
    row.reference.truncation_side = "right"
    expected = row.reference(
        first, second, max_length=50, stride=7, truncation="only_second", return_overflowing_tokens=True, padding=True, return_offsets_mapping=True
    )
    got = row.ours.inputs(first, second, max_length=50, stride=7)
    assert got["input_ids"].tolist() == expected["input_ids"]
    assert got.samples == expected["overflow_to_sample_mapping"]
    assert len(got.samples) > 40
    if row.ours.padding_side == "right":
        assert [e.offsets for e in got.encodings] == [
            [tuple(o) for o in offsets][: len(e.ids)] for e, offsets in zip(got.encodings, expected["offset_mapping"], strict=True)
        ]


@pytest.mark.parametrize("name", [name for name in MAIN if name in FAST])
def test_plain_texts_have_the_ids_of_the_reference_s_older_class(name, made):
    row = made(name)
    older = reference(row.folder, fast=False)
    # the two classes differ on quotes, on commas after digits, on pieces that users defined, and on graphemes of more than one character
    plain = [word for word in WORDS if word == unicodedata.normalize("NFKD", word) and not set("`'\",(@") & set(word)]
    plain = [word for word in plain if all(unicodedata.category(c)[0] != "M" and not "\u1100" <= c <= "\u11ff" for c in word)]
    draw = np.random.default_rng(4)
    for _ in range(300):
        text = " ".join(plain[i] for i in draw.integers(0, len(plain), 9))
        assert row.ours.inputs(text)["input_ids"][0].tolist() == older(text)["input_ids"], text


SAVED = [name for name in FAST if ROWS[name][0] != "splinter"]  # what SplinterTokenizerFast saves, it cannot read


@pytest.mark.parametrize("older", [False, True], ids=["saved", "older"])
@pytest.mark.parametrize("name", SAVED, ids=ids(SAVED))
def test_a_saved_tokenizer_is_the_reference_s(name, older, made, tmp_path):
    row = made(name)
    row.reference.save_pretrained(tmp_path)
    shutil.copy(row.folder / "config.json", tmp_path)
    for file in ("vocab.txt", "vocab.json", "merges.txt"):
        (tmp_path / file).unlink(missing_ok=True)
    if older:  # the tokens are in special_tokens_map.json and added_tokens.json, as before they were in tokenizer_config.json
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
        write(tmp_path, tokenizer_config={key: settings[key] for key in ("do_lower_case", "tokenizer_class") if key in settings})
    expected = reference(tmp_path)
    got = ours(tmp_path)
    assert serialized(got.tokenizer) == serialized(expected.backend_tokenizer)
    assert (got.padding_side, got.clean_up) == (expected.padding_side, expected.clean_up_tokenization_spaces)
    assert dict(got.special) == {role: str(token) for role, token in expected.special_tokens_map.items() if isinstance(token, str)}


@pytest.mark.parametrize("name", ["bert", "roberta", "albert", "xlm-roberta", "luke", "bert-generation"])
def test_added_tokens_are_found_as_the_reference_finds_them(name, made, tmp_path):
    row = made(name)
    shutil.copytree(row.folder, tmp_path, dirs_exist_ok=True)
    count = len(row.reference)
    mask = {"content": "[M]", "lstrip": False, "rstrip": True, "normalized": True, "single_word": False}
    known = {token: number for token, number in row.reference.get_added_vocab().items() if number >= row.reference.vocab_size}
    write(tmp_path, added_tokens=known | {"Quick": count, "[x]": count + 1}, special_tokens_map={"mask_token": mask, "sep_token": "[x]"})
    expected, got = reference(tmp_path), ours(tmp_path)
    for text in [*texts(300, seed=5), "the Quick  quick Quickly [M]  fox [X] [x] and [m] Quick"]:
        tokens = expected(text)["input_ids"]
        if tokens:
            assert got.inputs(text)["input_ids"][0].tolist() == tokens, text
            assert got.decode(tokens, False) == expected.decode(tokens)


def test_retired_and_twin_classes_are_read_by_their_names(made):
    from transformers.models.deprecated.retribert import RetriBertTokenizerFast
    from transformers.models.dpr import DPRContextEncoderTokenizerFast, DPRReaderTokenizerFast

    corpus = texts(300)
    for cls in (RetriBertTokenizerFast, DPRContextEncoderTokenizerFast, DPRReaderTokenizerFast):
        folder = made("bert").folder
        got = TextProcessor.from_folder(folder, {"tokenizer_class": cls.__name__})
        expected = cls.from_pretrained(folder)
        for key, value in got.inputs(corpus).items():
            np.testing.assert_array_equal(value, expected(corpus, padding=True, return_tensors="np")[key])
        assert set(got.inputs("a")) == set(expected("a"))
        tokens = expected("it's a dog , isn't it ?")["input_ids"]
        assert got.decode(tokens, False) == expected.decode(tokens)


def test_models_take_text_by_the_kind_of_their_tokenizer(made):
    for name in files.LAYOUTS:
        folder = made(name).folder
        processor = processor_for(folder, json.loads((folder / "config.json").read_text()))
        assert processor.modalities == {"text"}
        assert sorted(processor.inputs(text="a fox")) == sorted(made(name).reference("a fox"))


def test_files_that_no_tokenizer_can_be_made_of(made, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"no sentencepiece\.bpe\.model; expected tokenizer\.json or sentencepiece\.bpe\.model"):
        TextProcessor.from_folder(tmp_path, {"model_type": "camembert"})
    shutil.copy(made("bert").folder / "vocab.txt", tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(CheckpointError, match=r"special token '\[CLS\]' is not in the vocabulary of \d+ tokens"):
        TextProcessor.from_folder(write(tmp_path, vocab={"a": 0}), {"model_type": "deberta"})
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json: no cls_token, which this kind of tokenizer puts around a text"):
        TextProcessor.from_folder(write(tmp_path, tokenizer_config={"cls_token": None}), {"model_type": "funnel"})
    (tmp_path / "tokenizer_config.json").unlink()
    files.sentencepiece(tmp_path, "spm.model", "char", **files.DEBERTA)
    with pytest.raises(ConfigError, match=r"spm\.model: sentencepiece model of kind 4, expected 1 \(unigram\) or 2 \(byte pairs\)"):
        TextProcessor.from_folder(tmp_path, {"model_type": "deberta-v2"})
    files.sentencepiece(tmp_path, "spm.model", "bpe", **files.DEBERTA, control_symbols="x" * 300)
    with pytest.raises(CheckpointError, match=r"spm\.model: a piece of 300 characters, expected at most 256"):
        TextProcessor.from_folder(tmp_path, {"model_type": "deberta-v2"})
    (tmp_path / "spiece.model").write_bytes((tmp_path / "spm.model").read_bytes()[:-50])
    for kind in ("albert", "bert-generation"):
        with pytest.raises(CheckpointError, match=r"spiece\.model: not a sentencepiece model"):
            TextProcessor.from_folder(tmp_path, {"model_type": kind})
    folder = made("bert-generation").folder
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtraError, match=r"needs the extra 'sentencepiece'[^\n]*\n  run: pip install 'interlingua\[sentencepiece\]'"):
        TextProcessor.from_folder(folder, {"model_type": "bert-generation"})
