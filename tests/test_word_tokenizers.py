"""Tokenizers whose words Python cuts (XLM, FlauBERT, BERTweet, PhoBERT, RoFormer, CANINE), and LUKE's entities, against the reference's."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizer_files
from processing_files import CORPUS

from interlingua.ir.errors import CheckpointError, ConfigError, InputError, MissingExtraError, UsageError
from interlingua.runtime.processing import TextProcessor
from interlingua.runtime.processing.entities import EntityProcessor
from interlingua.runtime.processing.words import places

STRINGS, PAIRS = 2000, 1000
TASKS = [None, "entity_classification", "entity_pair_classification", "entity_span_classification"]
# (class, files, tokenizer_config.json, how many strings: one layout of each kind has them all)
LAYOUTS = [
    ("XLM", "moses", {}, STRINGS),
    ("XLM", "moses", {"do_lowercase_and_remove_accent": False}, 200),
    ("Flaubert", "moses", {}, STRINGS),
    ("Flaubert", "moses", {"do_lowercase": True}, 200),
    ("Bertweet", "fairseq", {}, 200),
    ("Bertweet", "fairseq", {"normalization": True}, STRINGS),
    ("Phobert", "fairseq", {"model_max_length": 256}, STRINGS),
    ("RoFormer", "wordpiece", {}, STRINGS),
    ("RoFormer", "wordpiece", {"do_lower_case": False, "model_max_length": 64}, 200),
    ("RoFormer", "wordpiece", {"strip_accents": False, "tokenize_chinese_chars": False}, 200),
    ("Canine", "none", {}, STRINGS),
]
ODD_LINES = (
    "<s> </s> <S> <pad> <unk> <mask> <special1> <SPECIAL3> [MASK] [mask] [CLS] a@@ @@ </w> don't can't cannot ain't o'clock ΟΔΟΣ Σίσυφος İstanbul",
    "ẞtraße 今天天气非常好。 ，。！？《》 １２３ … ’ “q” http://x.y/z https://a.bc/d(e)f www.a.com a.bc/ example.org me@example.org @user_1 #a-b",
    "p.m. a.m. &amp; &#x41; &#128; &#129; &hellip; &xab; &nope; :-) <3 -> <-- +1(800)555-1234 😀 👩‍👩‍👧 🇩🇪 ☺️ Mr. e.g. 1,234.5 3/4 !!!!!! -------",
    "....... ţară Şi ăâî ``x'' ไทยภาษา हिन्दी 한국어 ー日本語テキスト — Việt_Nam Hà_Nội ﬁ ½",
    "\u200b \ufeff \xad \U0001d400 \u0301 e\u0301 \ue000 \ue003 \ue004 \x00 \x07 \ufffd",
)
ODD = [word for line in ODD_LINES for word in line.split(" ")]
ODD += ["x" * 120, "ab" * 60, "Dr. Smith", "5 p . m . ", "。 。．  a", "．。 b", "it 's n't "]
SPACES = [" "] * 6 + ["  ", "\t", "\n", "\r\n", "\x1c", "\xa0", "\u3000", "\u2028", "\x85", ""]
SCRIPTS = [
    (0x20, 0x7F),
    (0xA0, 0x250),
    (0x370, 0x600),
    (0x900, 0xE80),
    (0x2000, 0x2700),
    (0x3000, 0x3100),
    (0x4E00, 0x9FA0),
    (0xAC00, 0xD7A0),
    (0x1F300, 0x1F700),
]


def strings(count: int) -> list[str]:
    """Words of many scripts with odd ones between, runs of spaces and control characters, and random characters."""
    choose, words = random.Random(0), " ".join(CORPUS).split()
    texts = ["", " ", "\n", "\t \n", "x", "\u0301", "\x07", *CORPUS]
    while len(texts) < count:
        if choose.random() < 0.85:
            texts.append("".join(choose.choice(choose.choice((words, ODD))) + choose.choice(SPACES) for _ in range(choose.randint(1, 6))))
        else:
            texts.append("".join(chr(choose.randrange(*choose.choice(SCRIPTS))) for _ in range(choose.randint(1, 20))))
    return texts


# -- files -----------------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with a folder of tokenizer files for each layout."""
    from tokenizers import BertWordPieceTokenizer

    root = tmp_path_factory.mktemp("words")
    for name in ("moses", "fairseq", "wordpiece", "none"):
        (root / name).mkdir()
    tokenizer_files.moses(root / "moses")
    tokenizer_files.fastbpe(root / "fairseq")
    trained = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    trained.train_from_iterator(CORPUS + [text.lower() for text in CORPUS], vocab_size=500, show_progress=False)
    words = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    (root / "wordpiece/vocab.txt").write_text("\n".join([*words, "今天", "天气", "非常", "机器", "学习"]) + "\n", encoding="utf-8")
    return root


def checkpoint(source: Path, folder: Path, kind: str, settings: dict) -> Path:
    """A checkpoint folder without weights: the files of a kind, with its settings."""
    folder.mkdir(exist_ok=True)
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": f"{kind}Tokenizer"} | settings), encoding="utf-8")
    return folder


def reference_class(kind: str):
    import transformers

    for library in {"XLM": ["sacremoses"], "Flaubert": ["sacremoses"], "Bertweet": ["emoji"], "RoFormer": ["rjieba"]}.get(kind, []):
        pytest.importorskip(library)
    return getattr(transformers, "RoFormerTokenizerFast" if kind == "RoFormer" else f"{kind}Tokenizer")


@pytest.fixture(scope="module", params=LAYOUTS, ids=[f"{kind}-{'-'.join(settings)}" for kind, _, settings, _ in LAYOUTS])
def tokenizers(request, files, tmp_path_factory):
    """(ours, the reference's, its texts with the ids that the reference gives them without special tokens) for one layout."""
    kind, source, settings, count = request.param
    reference = reference_class(kind).from_pretrained(checkpoint(files / source, tmp_path_factory.mktemp("layout"), kind, settings))
    ours = TextProcessor.from_folder(reference.name_or_path, {})
    texts = strings(count)
    return ours, reference, texts, [reference.convert_tokens_to_ids(reference.tokenize(text)) for text in texts]


# -- ids -------------------------------------------------------------------------------------------------------------------------------------------


def test_token_ids_are_the_reference_s(tokenizers):
    ours, reference, texts, ids = tokenizers
    got = ours.inputs(texts, truncation=None, max_length=10_000).encodings
    different = [
        text for text, encoding, expected in zip(texts, got, ids, strict=True) if encoding.ids != reference.build_inputs_with_special_tokens(expected)
    ]
    assert different == []
    whole = reference(texts[:40], padding=True)
    arrays = ours.inputs(texts[:40], max_length=10_000)
    assert sorted(arrays) == sorted(whole)
    for name, expected in whole.items():
        np.testing.assert_array_equal(arrays[name], expected, name)


def test_pairs_are_cut_as_in_the_reference(tokenizers):
    ours, reference, texts, ids = tokenizers
    choose = random.Random(1)
    for _ in range(PAIRS if len(texts) == STRINGS else 100):
        first, second, limit = choose.randrange(len(texts)), choose.randrange(len(texts)), choose.randint(8, 40)
        if reference.is_fast:
            expected = reference(texts[first], texts[second], truncation=True, max_length=limit)
        else:
            expected = reference.prepare_for_model(ids[first], ids[second], truncation=True, max_length=limit)
        got = ours.inputs(texts[first], texts[second], max_length=limit)
        assert {name: array[0].tolist() for name, array in got.items()} == dict(expected), (texts[first], texts[second], limit)


def test_ids_become_the_text_that_the_reference_gives(tokenizers):
    ours, reference, texts, ids = tokenizers
    for text, row in list(zip(texts, ids, strict=True))[:400]:
        row = reference.build_inputs_with_special_tokens(row)
        for skip in (True, False):
            assert ours.decode(row, skip_special_tokens=skip) == reference.decode(row, skip_special_tokens=skip), text


def test_a_folder_that_the_reference_saved_is_read_alike(tokenizers, tmp_path):
    _, reference, texts, ids = tokenizers
    reference.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink(missing_ok=True)  # RoFormer's: jieba's words cannot be written there
    ours = TextProcessor.from_folder(tmp_path, {})
    got = ours.inputs(texts[:100], truncation=None, max_length=10_000).encodings
    assert [encoding.ids for encoding in got] == [reference.build_inputs_with_special_tokens(row) for row in ids[:100]]


def test_offsets_point_at_what_the_token_came_from(tokenizers):
    ours, _, _, _ = tokenizers
    text = "Don’t  stop at the CAFÉ, please… “naïve” 机器学习 quickly!"
    encoding = ours.inputs(text, truncation=None).encodings[0]
    spans = [span for span, special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True) if not special]
    assert all(start < end for start, end in spans)
    covered = {index for start, end in spans for index in range(start, end)}
    assert covered >= {index for index, character in enumerate(text) if not character.isspace()}
    if ours.tokenizer.get_vocab_size() < 0x110000:
        quickly = [encoding.word_to_chars(word) for word in dict.fromkeys(encoding.word_ids) if word is not None]
        assert {"stop", "please", "quickly"} <= {text[start:end].rstrip("!,…") for start, end in quickly}


def test_places_of_words_that_were_respelled():
    def found(text, words):
        return [text[start:end] for start, end in places(text, words)]

    assert found("@bob saw https://x.yz/a?b=c today", ["@USER", "saw", "HTTPURL", "today"]) == ["@bob", "saw", "https://x.yz/a?b=c", "today"]
    assert found("  ÉCOLE… 😀 x", ["ecole", "...", ":grinning_face:", "x"]) == ["ÉCOLE", "…", "😀", "x"]
    assert found("ab", ["!", "ab", "?"]) == ["a", "ab", "b"]
    assert found("\x07", ["q"]) == ["\x07"]


# -- what is particular to one kind ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["en", "fr", "de", "ro", "ar"])
def test_xlm_cuts_words_in_the_language_of_the_settings(files, tmp_path, language):
    folder = checkpoint(files / "moses", tmp_path / "m", "XLM", {"lang": language, "do_lowercase_and_remove_accent": False})
    reference = reference_class("XLM").from_pretrained(folder)
    ours = TextProcessor.from_folder(folder, {})
    for text in ["L'été d'Anne coûte 3 % z.B. am 3. Mai «là».", "Şi ţară ăâî Țară, d-na. Popescu", "مرحبا، بالعالم؟", *strings(60)[7:]]:
        expected = reference.convert_tokens_to_ids(reference._tokenize(text, lang=language))
        plain = not any(token in text for token in reference.all_special_tokens)
        assert not plain or ours.tokenizer.encode(text, add_special_tokens=False).ids == expected, text


def test_languages_with_their_own_word_cutters_are_refused(files, tmp_path):
    for language, tool in (("ja", "KyTea"), ("th", "PyThaiNLP"), ("zh", "jieba")):
        with pytest.raises(ConfigError, match=f"lang='{language}' is cut into words by .*{tool}, which is not built in"):
            TextProcessor.from_folder(checkpoint(files / "moses", tmp_path / language, "XLM", {"lang": language}), {})
    with pytest.raises(ConfigError, match="lang='xx' is not a language of this tokenizer, expected one of en, fr"):
        TextProcessor.from_folder(checkpoint(files / "moses", tmp_path / "xx", "XLM", {"lang": "xx", "lang2id": {"fr": 1, "en": 0}}), {})


@pytest.mark.parametrize(
    ("kind", "source", "library"),
    [("XLM", "moses", "sacremoses"), ("Flaubert", "moses", "sacremoses"), ("RoFormer", "wordpiece", "rjieba"), ("Bertweet", "fairseq", "emoji")],
)
def test_a_missing_library_is_named(files, tmp_path, monkeypatch, kind, source, library):
    monkeypatch.setitem(sys.modules, library, None)
    folder = checkpoint(files / source, tmp_path / "m", kind, {"normalization": True} if kind == "Bertweet" else {})
    with pytest.raises(
        MissingExtraError, match=rf"\({library}\) needs the extra 'words', which is not installed\n.*pip install 'interlingua\[words\]'"
    ):
        TextProcessor.from_folder(folder, {})


def test_a_dictionary_line_without_a_count_is_an_error(files, tmp_path):
    folder = checkpoint(files / "fairseq", tmp_path / "m", "Phobert", {})
    (folder / "vocab.txt").write_text("ab 3\ncd\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"vocab\.txt: line 2 is 'cd', expected a token and its count"):
        TextProcessor.from_folder(folder, {})


def test_canine_keeps_no_table_and_takes_characters_only(files, tmp_path):
    ours = TextProcessor.from_folder(checkpoint(files / "none", tmp_path / "m", "Canine", {}), {})
    assert ours.max_length == 2048
    assert len(ours.tokenizer.get_vocab()) < 10
    assert ours.tokenizer.get_vocab_size() == 0x110000
    assert [ours.tokenizer.token_to_id("ß"), ours.tokenizer.token_to_id("ab"), ours.tokenizer.id_to_token(0x1F600)] == [0xDF, None, "😀"]
    with pytest.raises(ConfigError, match=r"added token '\[X\]' is no single character"):
        TextProcessor.from_folder(checkpoint(files / "none", tmp_path / "n", "Canine", {"additional_special_tokens": ["[X]"]}), {})


# -- LUKE and mLUKE: entities ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def entity_files(tmp_path_factory) -> Path:
    """Folders "Luke" and "MLuke" of tokenizer files with a vocabulary of entities."""
    import sentencepiece
    from tokenizers import ByteLevelBPETokenizer

    root = tmp_path_factory.mktemp("entities")
    for name in ("Luke", "MLuke"):
        (root / name).mkdir()
        entities = {name: number for number, name in enumerate(["[PAD]", "[UNK]", "Berlin", "[MASK]", "en:Zürich", "[MASK2]"])}
        (root / name / "entity_vocab.json").write_text(json.dumps(entities), encoding="utf-8")
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(CORPUS, vocab_size=420, special_tokens=special, show_progress=False)
    trained.save_model(str(root / "Luke"))
    with (root / "MLuke/sentencepiece.bpe.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(CORPUS * 3), model_writer=file, vocab_size=220, hard_vocab_limit=False, unk_id=0, bos_id=1, eos_id=2, minloglevel=2
        )
    return root


def mentions(choose: random.Random, text: str, count: int) -> list[tuple[int, int]]:
    """Spans in a text, some of whole words, some overlapping."""
    spans = []
    for _ in range(count):
        start = choose.randrange(len(text))
        spans.append((start, choose.randint(start + 1, min(len(text), start + 25))))
    return spans


def named(spans: list[list[tuple[int, int]]]) -> list[list[str]]:
    """A name for each span, some of which the vocabulary has."""
    return [[["Berlin", "en:Zürich", "nobody"][i % 3] for i, _ in enumerate(places)] for places in spans]


def entity_samples(task: str | None) -> list[dict]:
    """The arguments of 40 calls with five texts each."""
    choose = random.Random(str(task))
    texts = [text for text in strings(400) if len(text) > 5 and not text.isspace()]
    calls = []
    for _ in range(40):
        chosen = [choose.choice(texts) for _ in range(5)]
        counts = [{"entity_classification": 1, "entity_pair_classification": 2}.get(str(task)) or choose.randint(1, 5) for _ in chosen]
        calls.append({"text": chosen, "spans": [mentions(choose, text, count) for text, count in zip(chosen, counts, strict=True)]})
        calls[-1]["max_length"] = choose.randint(8, 60)
    return calls


ENTITY_CALLS = [(kind, task) for kind in ("Luke", "MLuke") for task in TASKS]


@pytest.mark.parametrize(("kind", "task"), ENTITY_CALLS, ids=[f"{kind}-{task}" for kind, task in ENTITY_CALLS])
def test_entity_inputs_are_the_reference_s(entity_files, tmp_path, kind, task):
    settings = {"max_entity_length": 3, "max_mention_length": 6} | ({"task": task} if task else {})
    folder = checkpoint(entity_files / kind, tmp_path / "m", kind, settings)
    reference, ours = reference_class(kind).from_pretrained(folder), EntityProcessor.from_folder(folder, {})
    for number, call in enumerate(entity_samples(task)):
        text, spans = call["text"], call["spans"]
        names = (
            [[["Berlin", "en:Zürich", "nobody"][i % 3] for i, _ in enumerate(places)] for places in spans] if task is None and number % 2 else None
        )
        for padding, limit in (
            (True, {"truncation": True, "max_length": call["max_length"]}),
            ("max_length", {"truncation": True, "max_length": 300}),
        ):
            expected = reference(text, entity_spans=spans, entities=names, padding=padding, return_token_type_ids=True, **limit)
            got = ours.inputs(text, spans, entities=names, padding="longest" if padding is True else padding, max_length=limit["max_length"])
            assert sorted(got) == sorted(set(expected) - {"token_type_ids"})
            for name, array in got.items():
                shape = () if name != "entity_position_ids" else (6,)
                assert array.reshape(*array.shape[:2], *shape).tolist() == expected[name], (name, text, spans)
            assert all(array.dtype == np.int64 for array in got.values())


@pytest.mark.parametrize("kind", ["Luke", "MLuke"])
def test_entities_of_pairs_and_left_padding(entity_files, tmp_path, kind):
    folder = checkpoint(entity_files / kind, tmp_path / "m", kind, {"padding_side": "left"})
    reference = reference_class(kind).from_pretrained(folder)
    reference.save_pretrained(tmp_path / "saved")
    ours = EntityProcessor.from_folder(tmp_path / "saved", {})
    calls = entity_samples("entity_span_classification")
    for number, (first, second) in enumerate(zip(calls[:20], calls[20:], strict=True)):
        given = {"max_length": first["max_length"] + second["max_length"]}
        spans, pair_spans = first["spans"], second["spans"]
        names, pair_names = (named(places) if number % 2 else None for places in (spans, pair_spans))
        expected = reference(*(first["text"], second["text"], spans, pair_spans, names, pair_names), padding=True, truncation=True, **given)
        got = ours.inputs(first["text"], spans, entities=names, pair=second["text"], pair_spans=pair_spans, pair_entities=pair_names, **given)
        assert {name: got[name].tolist() for name in expected} == dict(expected)


def test_wrong_entities_are_refused(entity_files, tmp_path):
    folder = checkpoint(entity_files / "Luke", tmp_path / "m", "Luke", {})
    ours, text = EntityProcessor.from_folder(folder, {}), "Anna lives in Berlin"
    refused = [
        ({"spans": [(14, 30)]}, InputError, r"span 0 of text 0 is \(14, 30\), expected a start before an end, both within the text's 20 characters"),
        ({"spans": [(4, 4)]}, InputError, r"span 0 of text 0 is \(4, 4\)"),
        ({"spans": [(0, 4)], "task": "entity_pair_classification"}, InputError, "text 0 has 1 spans, expected 2 for entity_pair_classification"),
        ({"spans": [], "task": "entity_span_classification"}, InputError, "text 0 has 0 spans, expected at least 1"),
        ({"spans": [(0, 4)], "entities": ["A", "B"]}, InputError, "text 0 has 1 spans and 2 entities, expected a name for each span"),
        ({"spans": [(0, 4)], "task": "entity_clasification"}, ConfigError, "did you mean 'entity_classification'"),
        ({"spans": [(0, 4)], "max_length": 2}, InputError, "max_length=2 leaves room for 0 tokens"),
    ]
    for given, error, message in refused:
        with pytest.raises(error, match=message):
            ours.inputs(text, **given)
    (folder / "entity_vocab.json").write_text('{"[MASK]": 0, "[PAD]": 1, "[MASK2]": 2}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"entity_vocab\.json: no entity '\[UNK\]' among 3"):
        EntityProcessor.from_folder(folder, {})
    (folder / "entity_vocab.json").unlink()
    with pytest.raises(UsageError, match=r"entity_vocab\.json: no such file"):
        EntityProcessor.from_folder(folder, {})


def test_cut_entities_are_noted(entity_files, tmp_path):
    ours = EntityProcessor.from_folder(checkpoint(entity_files / "Luke", tmp_path / "m", "Luke", {}), {})
    got = ours.inputs("Anna lives in Berlin", [(0, 4), (14, 20)], max_length=6)
    assert got.notes == ["text 0 was cut, and 1 of its entities with it"]
    assert got["entity_ids"].shape == (1, 1)
