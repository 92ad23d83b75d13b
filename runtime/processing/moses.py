"""Words as the Moses scripts cut them, by `sacremoses`, with what XLM and FlauBERT put before and behind them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from ...ir.errors import ConfigError
from .tokenizer_settings import Settings
from .words import Words, word_library

# Moses' replace-unicode-punctuation.perl; full stops of full width swallow the spaces behind them and give one
_PUNCTUATION = str.maketrans(
    dict(zip("，、”“∶：？《》）！（；」「～’━〈〉【】％", ',,""::?"")!(;""~\'-<>[]%', strict=True))
    | dict(zip("０１２３４５６７８９", "0123456789", strict=True))
    | {"…": "..."}
)
_FULL_STOP = re.compile(r"[。．]\s*")
_ROMANIAN = str.maketrans("ŞşȘșŢţȚțĂăÂâÎî", "SsSsTtTtAaAaIi")
_OWN_TOKENIZER = {"ja": "KyTea", "th": "PyThaiNLP", "zh": "the Stanford Segmenter or jieba"}


def xlm_words(settings: Settings) -> Words:
    """XLM's words of a text, in the language of the setting `lang` ("en", the only one that the reference's call can reach)."""
    language = str(settings.get("lang", "en"))
    known = settings.get("lang2id")
    if language in _OWN_TOKENIZER:
        raise ConfigError(
            f"lang={language!r} is cut into words by {_OWN_TOKENIZER[language]}, which is not built in\n"
            "  cut the text into words with it, put spaces between them, and encode that with lang='en'"
        )
    if known and language not in known:
        raise ConfigError(f"lang={language!r} is not a language of this tokenizer, expected one of {', '.join(sorted(known))}")
    cut = _moses(language, _without_romanian_marks if language == "ro" else str)
    return (lambda text: _plain(cut(text))) if settings.get("do_lowercase_and_remove_accent", True) else cut


def flaubert_words(settings: Settings) -> Words:
    """FlauBERT's words of a text: French, in lower case with the setting `do_lowercase`."""
    cut, lower = _moses("fr", str), bool(settings.get("do_lowercase", False))

    def words(text: str) -> list[str]:
        text = unicodedata.normalize("NFC", text.replace("``", '"').replace("''", '"'))
        return cut(text.lower() if lower else text)

    return words


def _moses(language: str, last: Callable[[str], str]) -> Words:
    """Moses' pipeline: punctuation, what cannot be printed, `last`, and the cut into words."""
    sacremoses = word_library("sacremoses", "a tokenizer that cuts words as the Moses scripts do")
    punctuation, tokenizer = sacremoses.MosesPunctNormalizer(lang=language), sacremoses.MosesTokenizer(lang=language)

    def words(text: str) -> list[str]:
        text = punctuation.normalize(_FULL_STOP.sub(". ", text.translate(_PUNCTUATION)))
        printable = "".join(character for character in text if not unicodedata.category(character).startswith("C"))
        return [word for word in tokenizer.tokenize(last(printable), return_str=False, escape=False) if word]

    return words


def _without_romanian_marks(text: str) -> str:
    return text.translate(_ROMANIAN)


def _plain(words: list[str]) -> list[str]:
    """The words in lower case and without accents."""
    text = unicodedata.normalize("NFD", " ".join(words).lower())
    kept = "".join(character for character in text if unicodedata.category(character) != "Mn")
    return [word for word in kept.lower().split(" ") if word]
