"""Text to token ids and back against the reference's tokenizers, on files made here; and the choice of a processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from processing_files import CORPUS, LETTERS, checkpoint, train_all, write

from interlingua.ir.errors import CheckpointError, ConfigError, InputError, UsageError
from interlingua.runtime.processing import TextProcessor, processor_for

# (name, kind, tokenizer_config.json, whether the tokenizer is saved by the reference first: tokenizer.json and all its settings)
LAYOUTS = [
    ("bert uncased", "bert", {"do_lower_case": True, "model_max_length": 512}, False),
    ("bert cased", "bert", {"do_lower_case": False, "model_max_length": 512}, False),
    ("bert accents", "bert", {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False}, False),
    ("bert json", "bert", {"do_lower_case": True, "model_max_length": 24}, True),
    ("bert left", "bert", {"padding_side": "left", "truncation_side": "left", "model_max_length": 20, "clean_up_tokenization_spaces": True}, True),
    ("gpt2", "gpt2", {"model_max_length": 30}, False),
    ("gpt2 padded", "gpt2", {"pad_token": "<|endoftext|>", "add_prefix_space": True, "model_max_length": 30}, False),
    ("gpt2 json", "gpt2", {"pad_token": "<pad>", "padding_side": "left", "clean_up_tokenization_spaces": True}, True),
    ("gpt2 bos", "gpt2", {"add_bos_token": True, "pad_token": "<|endoftext|>"}, False),
    ("gpt2 listed", "gpt2", {"pad_token": "x", "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": False}}}, False),
    ("clip", "clip", {"model_max_length": 77}, False),
    ("clip json", "clip", {"model_max_length": 16, "pad_token": "!"}, True),
    ("t5", "t5", {"model_max_length": 512}, False),
    ("t5 new", "t5", {"legacy": False, "extra_ids": 7, "model_max_length": 18}, False),
    ("t5 json", "t5", {"extra_ids": 100}, True),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    return train_all(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module", params=LAYOUTS, ids=[layout[0].replace(" ", "-") for layout in LAYOUTS])
def tokenizers(request, trained, tmp_path_factory):
    """(ours, the reference's) for one layout of files."""
    from transformers import AutoTokenizer

    name, kind, settings, saved = request.param
    folder = checkpoint(trained, tmp_path_factory.mktemp("layout"), kind, settings)
    reference = AutoTokenizer.from_pretrained(folder)
    if saved:
        folder = tmp_path_factory.mktemp("saved")
        reference.save_pretrained(folder)
        assert (folder / "tokenizer.json").is_file()
        reference = AutoTokenizer.from_pretrained(write(folder, config={"model_type": kind}))
    return TextProcessor.from_folder(folder, {"model_type": kind}), reference, name


def test_token_ids_and_offsets_are_the_reference_s(tokenizers):
    ours, reference, _ = tokenizers
    for text in CORPUS:
        got = ours.inputs(text, truncation=None, max_length=10_000)
        expected = reference(text, return_offsets_mapping=True)
        assert got["input_ids"].tolist() == [expected["input_ids"]], text
        assert [tuple(o) for o in expected["offset_mapping"]] == got.encodings[0].offsets


def test_batches_are_padded_and_cut_as_in_the_reference(tokenizers):
    ours, reference, name = tokenizers
    limit = {} if reference.model_max_length < 1e9 else {"max_length": 40}
    first, second = CORPUS[:6], CORPUS[1:7]
    for texts in ((first,), (first, second)):
        if name == "gpt2":
            with pytest.raises(UsageError, match=r"has no padding token\n.*\n.*pass pad_token='<\|endoftext\|>'"):
                ours.inputs(["x", "some more tokens"])
            reference.pad_token = "<|endoftext|>"
            got = ours.inputs(*texts, pad_token="<|endoftext|>")
        else:
            got = ours.inputs(*texts, **limit)
        expected = reference(*texts, padding=True, truncation=True, return_tensors="np", **limit)
        assert sorted(got) == sorted(expected)
        for key, value in expected.items():
            assert got[key].dtype == np.int64
            np.testing.assert_array_equal(got[key], value, key)


def test_decoded_text_is_the_reference_s(tokenizers):
    ours, reference, _ = tokenizers
    for text in CORPUS:
        ids = reference(text)["input_ids"]
        for skip in (True, False):
            assert ours.decode(ids, skip) == reference.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", ["BertTokenizer", "PreTrainedTokenizerFast"])
def test_settings_and_tokenizer_json_overrule_each_other_as_in_the_reference(kind, trained, tmp_path):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    folder = checkpoint(trained, tmp_path, "bert", {"do_lower_case": True})
    stored: Tokenizer = TextProcessor.from_folder(folder, {"model_type": "bert"}).tokenizer
    stored.enable_truncation(7, direction="left")
    stored.enable_padding(direction="left", pad_id=stored.token_to_id("x"), pad_token="x", pad_type_id=1, length=9)
    stored.save(str(folder / "tokenizer.json"))
    added = {str(stored.token_to_id(token)): {"content": token, "special": False, "lstrip": token == "she"} for token in ("[MASK]", "she")}
    settings = {"tokenizer_class": kind, "do_lower_case": False, "mask_token": "[MASK]", "added_tokens_decoder": added, "model_max_length": 30}
    write(folder, tokenizer_config=settings)
    ours, reference = TextProcessor.from_folder(folder, {"model_type": "bert", "type_vocab_size": 2}), AutoTokenizer.from_pretrained(folder)
    for text in CORPUS:
        ids = reference(text)["input_ids"]
        assert ours.inputs(text, max_length=1000)["input_ids"].tolist() == [ids]
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    expected = reference(CORPUS, padding=True, truncation=True, return_tensors="np")
    for name, got in ours.inputs(CORPUS).items():
        np.testing.assert_array_equal(got, expected[name], name)


def test_long_contexts_become_windows(trained, tmp_path):
    from transformers import AutoTokenizer

    folder = checkpoint(trained, tmp_path, "bert", {"model_max_length": 512})
    question, context = CORPUS[0], " ".join(CORPUS[1:4])
    got = TextProcessor.from_folder(folder, {"model_type": "bert"}).inputs([question, "x"], [context, "y"], max_length=40, stride=5)
    expected = AutoTokenizer.from_pretrained(folder)(
        [question, "x"], [context, "y"], max_length=40, stride=5, truncation="only_second", return_overflowing_tokens=True, padding=True
    )
    assert len(got.samples) > 4
    assert got["input_ids"].tolist() == expected["input_ids"]
    assert got.samples == expected["overflow_to_sample_mapping"]


def test_choices_texts_and_lengths(trained, tmp_path):
    folder = checkpoint(trained, tmp_path, "bert", {}, sentence_bert_config={"max_seq_length": 9, "do_lower_case": True})
    ours = TextProcessor.from_folder(folder, {"model_type": "bert", "max_position_embeddings": 12})
    got = ours.inputs("the fox", choices=["jumps", "runs over the lazy dog and sleeps"])
    pairs = ours.inputs(["the fox"] * 2, ["jumps", "runs over the lazy dog and sleeps"])
    assert got["input_ids"].shape == (1, 2, 9)
    np.testing.assert_array_equal(got["input_ids"][0], pairs["input_ids"])
    assert got.notes == ["text 1 is longer than 9 tokens and was cut to that"]
    assert ours.inputs("the fox", padding="max_length")["attention_mask"].shape == (1, 9)
    left, right = (ours.inputs(["the", "the quick fox"], padding_side=side)["input_ids"] for side in ("left", "right"))
    assert left[0].tolist() == [0] * (left.shape[1] - 3) + right[0][:3].tolist()
    with pytest.raises(InputError, match=r"text 0 has \d+ tokens, expected at most 9"):
        ours.inputs(CORPUS[0], truncation=None)
    with pytest.raises(InputError, match="text has 2 texts and pair has 1"):
        ours.inputs(["a", "b"], "c")
    with pytest.raises(InputError, match="text 1 is of type int, expected str"):
        ours.inputs(["a", 1])  # type: ignore[list-item]
    with pytest.raises(InputError, match="max_length=2 leaves room for 0 tokens"):
        ours.inputs("a", max_length=2)


@pytest.mark.parametrize(
    "settings", [{}, {"do_lower_case": True, "word_delimiter_token": "|"}, {"target_lang": "eng"}], ids=["plain", "lower", "nested"]
)
def test_character_tables_spell_as_the_reference_does(settings, tmp_path):
    from transformers import Wav2Vec2CTCTokenizer

    nested = {"eng": LETTERS, "deu": {"ß": 0}}
    folder = write(tmp_path, vocab=nested if "target_lang" in settings else LETTERS, tokenizer_config=settings)
    ours, reference = TextProcessor.from_folder(folder, {"model_type": "wav2vec2"}), Wav2Vec2CTCTokenizer.from_pretrained(folder)
    for text in ("HELLO WORLD", "IT'S  A TEST", "hello ü", "A <unk> B"):
        if text != "A <unk> B" or not ours.case:
            assert ours.inputs(text)["input_ids"].tolist() == [reference(text)["input_ids"]], text
    generator = np.random.default_rng(0)
    for _ in range(30):
        frames = generator.choice([0, 0, 0, 2, 4, 4, 5, 6, 7, 12], 40).repeat(generator.integers(1, 4, 40))
        expected = reference.decode(frames, output_word_offsets=True)
        assert ours.decode_ctc(frames) == expected.text
        words = [(w["word"].lower() if ours.case else w["word"], w["start_offset"], w["end_offset"]) for w in expected.word_offsets]
        assert ours.words_ctc(frames) == words


def test_tokenizer_files_that_are_missing_or_corrupt(trained, tmp_path):
    with pytest.raises(UsageError, match=r"no vocab\.txt; expected tokenizer\.json or vocab.txt"):
        TextProcessor.from_folder(tmp_path, {"model_type": "bert"})
    with pytest.raises(UsageError, match=r"no tokenizer files; expected tokenizer.json, or one of\n  vocab.txt"):
        TextProcessor.from_folder(tmp_path, {})
    write(tmp_path, tokenizer={"version": "1.0", "model": {"type": "Nothing"}})
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer that the tokenizers library reads"):
        TextProcessor.from_folder(tmp_path, {"model_type": "bert"})
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a JSON file"):
        TextProcessor.from_folder(tmp_path, {"model_type": "bert"})
    (tmp_path / "tokenizer.json").unlink()
    whole = (trained["t5"] / "spiece.model").read_bytes()
    for data in (whole[:-100], b"\x0a\xff\xff\xff\xff\x0f", b"", b"plain text, no model", np.random.default_rng(0).bytes(500)):
        (tmp_path / "spiece.model").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"spiece\.model: not a sentencepiece model"):
            TextProcessor.from_folder(tmp_path, {"model_type": "t5"})
    write(tmp_path, vocab={"a": 0, "<|endoftext|>": 1})
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(CheckpointError, match=r"vocab\.json \+ merges\.txt do not make a tokenizer"):
        TextProcessor.from_folder(tmp_path, {"model_type": "gpt2"})
    for settings, message in (
        ({"do_lower_case": "no"}, "do_lower_case='no', expected bool"),
        ({"padding_side": "top"}, "padding_side='top', expected 'left' or 'right'"),
        ({"additional_special_tokens": ["a", 1]}, r"additional_special_tokens\[1\]=1, expected str or AddedToken"),
    ):
        with pytest.raises(ConfigError, match=rf"tokenizer_config\.json: {message}"):
            TextProcessor.from_folder(write(tmp_path, tokenizer_config=settings), {"model_type": "gpt2"})
    write(tmp_path, tokenizer_config={"tokenizer_class": "BortTokenizer"})
    with pytest.raises(ConfigError, match=r"BortTokenizer cannot be read without a tokenizer\.json; did you mean 'Bert'"):
        TextProcessor.from_folder(tmp_path, {"model_type": "gpt2"})


def test_processors_say_what_they_lack(trained, tmp_path):
    bert_folder = checkpoint(trained, tmp_path / "bert", "bert", {})
    processor = processor_for(bert_folder, {"model_type": "bert"})
    with pytest.raises(InputError, match="got image, expected text: a model of type 'bert' takes text"):
        processor.inputs(text="a", image="b.png")
    with pytest.raises(InputError, match="got no input, expected text"):
        processor.inputs()
    with pytest.raises(UsageError, match=r"no tokenizer\.json, tokenizer files or preprocessor_config\.json"):
        processor_for(tmp_path, {"model_type": "unheard of"})
    with pytest.raises(UsageError, match="no such folder"):
        processor_for(tmp_path / "gone", {})
    assert processor_for(bert_folder, {}).modalities == {"text"}
    assert processor_for(write(tmp_path, preprocessor_config={"sampling_rate": 16000}), {}).modalities == {"audio"}
