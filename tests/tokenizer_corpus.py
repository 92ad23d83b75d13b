"""Texts that tokenizers find hard, the same on every run: many scripts, emoji, control characters, runs of spaces, long words, special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_WORDS = """the quick brown fox jumps over a lazy dog while she sells sea shells by unbelievable internationalisation tokenization doesn't they've
I'm it's o'clock rock'n'roll e-mail state-of-the-art U.S.A. 3.14 1,234,567 42, 2024-11-23 50% $9.99 C++ f(x)=y² snake_case camelCase HTTP/1.1
https://example.org/a?b=c&d=1#e user@example.org @user #hashtag ``quoted'' ''so'' "double" 'single' (brackets) [list] {set} <tag> a/b\\c x|y ~tilde
Crème brûlée naïve café Ångström Zürich Straße ŒUVRE İstanbul ıspanak ǅungla ﬁne ﬂow Ⅷ ½ ²³ ﷺ №5 ™ © ® Đà Nẵng tiếng Việt e\u0301te\u0301 n\u0303
o\u0308\u0323 Ελλάδα ΣΊΣΥΦΟΣ σίσυφος λόγος Ещё Привет мир ДОМ їжак Ћирилица հայերեն ქართული مرحبا
بالعالم كِتَابٌ می‌خواهم שלום עוֹלָם हिन्दी नमस्ते क्षत्रिय বাংলা தமிழ் తెలుగు
ภาษาไทย ກຂຄ မြန်မာ ខ្មែរ አማርኛ ᏣᎳᎩ 机器学习 繁體中文 我爱北京天安门 日本語のテキスト
カタカナ ｶﾀｶﾅ ひらがな が 한국어 안녕하세요 ᄒ\u1161\u11ab 𠮷野家 𝒜𝓁𝑔 ＡＢＣ１２３ 、。！？「」
😀 👩‍👩‍👧 👍🏽 🇫🇷🇯🇵 ❤️ ☃ ♠ → ∑∫√ ≤ ∞ ¬ ¿qué? ¡hola! … — – • § ¶ † ‰ ₿ ƒ Ω K Å ﬀ ẞ ſ Ǆ ŉ"""
WORDS = _WORDS.split()
SPACES = (" ", " ", " ", " ", "  ", "\t", "\n", " \r\n", "\u00a0", "\u3000", "\u2009 ", "\u2028", "\u0085", "", "", ", ", ". ")
ODD = ("\x00", "\x07", "\x1b[0m", "\x7f", "\u200b", "\u200d", "\u200e", "\ufeff", "\ufffd", "\u00ad", "\u0301", "\u0300\u0316")
ODD += ("▁", "▁▁", "Ġ", "##", "@@", "</w>")  # what tokenizers write for themselves
SPECIAL = ("[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]", "<s>", "</s>", "<unk>", "<pad>", "<mask>", "<sep>", "<cls>", "<eop>", "<ent>", "[QUESTION]")
FIXED = (
    "",
    " ",
    " \t\n ",
    "x",
    "\u0301",
    "▁",
    "\x00",
    "antidisestablishmentarianism" * 20,
    "a" * 300,
    "!" * 120,
    "ha" * 90,
    "ab" * 101 + "c",
    "1,2,3, 44, 555,",
    "你" * 80,
    "😀" * 40,
    "a\u0301\u0316\u0330" * 30,
    " " * 70 + "end",
    "<mask> <mask><mask>  [MASK] [MASK]",
    "</s></s><s> <ent><ent2> ent",
    "The quick brown fox.\nJumps over  the lazy dog.",
)


def _pick(draw: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(draw.integers(len(choices)))]


def _sentence(draw: np.random.Generator) -> str:
    """Words with odd spaces between them, now and then a special token, an odd character, another case."""
    parts = []
    for _ in range(draw.integers(1, 12)):
        kind = draw.random()
        word = _pick(draw, SPECIAL if kind < 0.06 else ODD if kind < 0.12 else WORDS)
        word = word.upper() if 0.12 < kind < 0.18 else word.title() if 0.12 < kind < 0.24 else word
        parts += [word, _pick(draw, SPACES)]
    return "".join(parts[:-1] if draw.random() < 0.8 else parts)


def _characters(draw: np.random.Generator) -> str:
    """Characters drawn from anywhere in Unicode, mostly from its first planes."""
    start, end = _pick(draw, ((1, 0x80), (1, 0x250), (1, 0x600), (0x600, 0x3100), (0x3100, 0xD800), (0xE000, 0x20000)))
    return "".join(map(chr, draw.integers(start, end, draw.integers(1, 24))))


def texts(count: int = 2200, seed: int = 0) -> list[str]:
    """`count` texts, the fixed ones first."""
    draw = np.random.default_rng(seed)
    made = [_characters(draw) if number % 8 == 0 else _sentence(draw) for number in range(count - len(FIXED))]
    return [*FIXED, *made]


def pairs(count: int = 1000, seed: int = 1) -> list[tuple[str, str]]:
    """Pairs of texts of unequal lengths."""
    draw = np.random.default_rng(seed)
    return [(_sentence(draw), _sentence(draw)) for _ in range(count)]
