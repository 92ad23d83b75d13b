"""Small vocabularies of every layout that publishers ship, trained here on the texts of `tokenizer_corpus`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from processing_files import CORPUS, write
from tokenizer_corpus import WORDS, texts

Options = dict[str, Any]
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>")
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def lines() -> list[str]:
    """What the vocabularies are trained on."""
    return [text for text in texts(700, seed=2) if text.isprintable()] + WORDS


@cache
def _word_pieces() -> tuple[str, ...]:
    from tokenizers import BertWordPieceTokenizer

    trained = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    trained.train_from_iterator(lines() + [text.lower() for text in lines()], vocab_size=1500, special_tokens=[], show_progress=False)
    return tuple(sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__))


def word_pieces(folder: Path, special: tuple[str, ...] = BERT) -> None:
    """vocab.txt"""
    pieces = [piece for piece in _word_pieces() if piece not in special]
    (folder / "vocab.txt").write_text("\n".join([*special, *pieces]) + "\n", encoding="utf-8")


@cache
def _byte_pairs() -> tuple[dict[str, int], list[list[str]]]:
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(lines(), vocab_size=900, show_progress=False)
    return trained.get_vocab(), json.loads(trained.to_str())["model"]["merges"]


def byte_pairs(folder: Path, special: tuple[str, ...] = ROBERTA, last: tuple[str, ...] = ("<mask>",)) -> None:
    """vocab.json and merges.txt"""
    vocabulary, merges = _byte_pairs()
    tokens = [*special, *sorted(vocabulary, key=vocabulary.__getitem__), *last]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n", encoding="utf-8")


@cache
def _sentencepiece(kind: str, options: tuple[tuple[str, Any], ...]) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines()),
        model_writer=model,
        vocab_size=900,
        model_type=kind,
        character_coverage=0.98,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **dict(options),
    )
    return model.getvalue()


def sentencepiece(folder: Path, file: str, kind: str = "unigram", **options: Any) -> None:
    """A sentencepiece model file."""
    (folder / file).write_bytes(_sentencepiece(kind, tuple(options.items())))


@cache
def ended_pairs() -> tuple[list[str], list[tuple[str, str]]]:
    """(pieces, merges) whose last pieces end in </w>; some pieces are left out, as publishers do with those that are only steps on the way."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    known = CORPUS + [text.lower() for text in CORPUS] + ["@USER HTTPURL n't 's :grinning_face:"] * 4
    trained.train_from_iterator(known, trainers.BpeTrainer(vocab_size=900, end_of_word_suffix="</w>", show_progress=False))
    model = json.loads(trained.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    gone = set(pieces[60:400:7])
    return [piece for piece in pieces if piece not in gone], [tuple(merge) for merge in model["merges"]]


def _numbered(merges: list[tuple[str, str]]) -> str:
    return "".join(f"{left} {right} {len(merges) - i}\n" for i, (left, right) in enumerate(merges))


def moses(folder: Path) -> None:
    """vocab.json and merges.txt of XLM and FlauBERT"""
    pieces, merges = ended_pairs()
    special = ["<s>", "</s>", "<pad>", "<unk>", *(f"<special{i}>" for i in range(10))]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate([*special, *pieces])}), encoding="utf-8")
    (folder / "merges.txt").write_text(_numbered(merges), encoding="utf-8")


def fastbpe(folder: Path) -> None:
    """vocab.txt and bpe.codes of BERTweet and PhoBERT"""
    pieces, merges = ended_pairs()
    counted = [piece.removesuffix("</w>") if piece.endswith("</w>") else piece + "@@" for piece in pieces]
    (folder / "vocab.txt").write_text("".join(f"{token} 7\n" for token in dict.fromkeys(counted)), encoding="utf-8")
    (folder / "bpe.codes").write_text(_numbered(merges), encoding="utf-8")


ALBERT: Options = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": "[CLS],[SEP],[MASK]", "user_defined_symbols": "(,@user"}
XLNET: Options = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "control_symbols": "<cls>,<sep>,<pad>,<mask>,<eod>,<eop>"}
DEBERTA: Options = dict(zip(("pad_id", "bos_id", "eos_id", "unk_id"), range(4), strict=True))
DEBERTA |= {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
BIG_BIRD: Options = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "control_symbols": "[CLS],[SEP],[MASK]"}
GENERATION: Options = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "control_symbols": "<::::>"}
FAIRSEQ: Options = {"unk_id": 0, "bos_id": 1, "eos_id": 2}
SPIECE, FAIRSEQ_FILE = "spiece.model", "sentencepiece.bpe.model"


def entities(folder: Path) -> None:
    """entity_vocab.json, which LUKE's tokenizers cannot do without."""
    names = ("[MASK]", "[UNK]", "[PAD]", "[MASK2]", "Beyoncé")
    (folder / "entity_vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}), encoding="utf-8")


def luke(folder: Path) -> None:
    """The files of a LUKE checkpoint."""
    byte_pairs(folder)
    entities(folder)


def mluke(folder: Path) -> None:
    """The files of an mLUKE checkpoint."""
    sentencepiece(folder, FAIRSEQ_FILE, **FAIRSEQ)
    entities(folder)


# the files of each kind of tokenizer, by the model type that publishers ship them with
LAYOUTS: dict[str, Callable[[Path], None]] = {
    **dict.fromkeys(("bert", "distilbert", "electra", "convbert", "mobilebert", "squeezebert", "retribert", "dpr"), word_pieces),
    "splinter": lambda folder: word_pieces(folder, (*BERT, "[QUESTION]")),
    "funnel": lambda folder: word_pieces(folder, ("<pad>", "<unk>", "<cls>", "<sep>", "<mask>", "<s>", "</s>")),
    "mpnet": lambda folder: word_pieces(folder, (*ROBERTA, "[UNK]", "<mask>")),
    **dict.fromkeys(("roberta", "longformer", "bart"), byte_pairs),
    "deberta": lambda folder: byte_pairs(folder, ("[CLS]", "[PAD]", "[SEP]", "[UNK]"), ("[MASK]",)),
    "luke": luke,
    "albert": lambda folder: sentencepiece(folder, SPIECE, **ALBERT),
    "fnet": lambda folder: sentencepiece(folder, SPIECE, **ALBERT),
    "xlnet": lambda folder: sentencepiece(folder, SPIECE, **XLNET),
    "rembert": lambda folder: sentencepiece(folder, "sentencepiece.model", **DEBERTA, control_symbols="[MASK]"),
    "deberta-v2": lambda folder: sentencepiece(folder, "spm.model", **DEBERTA),
    "big_bird": lambda folder: sentencepiece(folder, SPIECE, **BIG_BIRD),
    "xlm-roberta": lambda folder: sentencepiece(folder, FAIRSEQ_FILE, **FAIRSEQ),
    "camembert": lambda folder: sentencepiece(folder, FAIRSEQ_FILE, **FAIRSEQ),
    "bert-generation": lambda folder: sentencepiece(folder, SPIECE, **GENERATION),
    "mluke": mluke,
}


def checkpoint(folder: Path, layout: str, make: Callable[[Path], None], settings: Options) -> Path:
    """A folder with config.json, tokenizer_config.json and the vocabulary files of a kind."""
    names = {"luke": "LukeTokenizer", "mluke": "MLukeTokenizer"}  # one model type has two kinds of tokenizers
    settings = ({"tokenizer_class": names[layout]} if layout in names else {}) | settings
    make(folder)
    return write(folder, config={"model_type": "luke" if layout in names else layout}, tokenizer_config=settings)
