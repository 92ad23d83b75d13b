"""Tokenizer files in the layouts that publishers ship, trained here on a few lines, and small pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "She sells sea shells by the sea shore, doesn't she? They've sold 1,234 of them!",
    "Crème brûlée, naïve café, Ångström and Zürich; İstanbul ǅ ﬁ ﬂ Ⅷ ½",
    "机器学习 and 日本語のテキスト mixed with 한국어",
    "مرحبا بالعالم שלום עולם",
    "emoji 😀👩‍👩‍👧 and symbols © ™ ∑ → \u200b zero width",
    "tabs\tand\nnewlines\r\n  and   many    spaces  ",
    "control \x00\x07 characters \ufffd \xad soft\xa0hyphen",
    "don't I'm you're we'll he'd it's o'clock ' quoted ' n't",
    "UPPER lower MiXeD CamelCase snake_case kebab-case a.b.c 3.14 -5 1e-9 #tag @user",
    "x",
    "antidisestablishmentarianism " * 12,
    "[MASK] and <mask> [CLS] [SEP] <extra_id_0> the <extra_id_1> <pad> </s><|endoftext|> <unk>",
    "   leading and trailing   ",
    "two  spaces  between  words",
]


def write(folder: Path, **files) -> Path:
    """A folder with JSON files, `tokenizer_config={...}` as tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def wordpiece_files(folder: Path) -> None:
    from tokenizers import BertWordPieceTokenizer

    trained = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    trained.train_from_iterator(CORPUS + [text.lower() for text in CORPUS], vocab_size=400, show_progress=False)
    trained.save_model(str(folder))


def byte_bpe_files(folder: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=420, special_tokens=["<|endoftext|>"], show_progress=False)
    trained.save_model(str(folder))


def clip_files(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    trained.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|startoftext|>", "<|endoftext|>"]
    trained.train_from_iterator(
        [*CORPUS, *alphabet], trainers.BpeTrainer(vocab_size=700, end_of_word_suffix="</w>", initial_alphabet=alphabet, special_tokens=special)
    )
    trained.model.save(str(folder))


def sentencepiece_files(folder: Path) -> None:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(CORPUS * 3),
        model_writer=model,
        vocab_size=220,
        model_type="unigram",
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        user_defined_symbols=["@user"],
    )
    (folder / "spiece.model").write_bytes(model.getvalue())


LETTERS = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVKXJQZ'"])}
MAKERS = {"bert": wordpiece_files, "gpt2": byte_bpe_files, "clip": clip_files, "t5": sentencepiece_files}


def train_all(root: Path) -> dict[str, Path]:
    """A folder of tokenizer files for each kind."""
    for kind, make in MAKERS.items():
        (root / kind).mkdir()
        make(root / kind)
    return {kind: root / kind for kind in MAKERS}


def checkpoint(trained: dict[str, Path], folder: Path, kind: str, settings: dict, **files) -> Path:
    """A checkpoint folder without weights: the tokenizer files of a kind, with its settings."""
    folder.mkdir(exist_ok=True)
    for file in trained[kind].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return write(folder, config={"model_type": kind}, tokenizer_config=settings, **files)


def pictures() -> list:
    """PIL images of several modes and shapes, with structure at every scale."""
    from PIL import Image

    generator = np.random.default_rng(0)
    noise = lambda *shape: Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
    smooth = noise(5, 7, 3).resize((61, 47), Image.Resampling.BICUBIC)
    return [noise(37, 53, 3), smooth, noise(64, 21, 3), noise(30, 30), noise(33, 40, 4), smooth.convert("P"), smooth.convert("CMYK"), noise(8, 9, 3)]
