"""Tweets as BERTweet was trained on them: names and links replaced, emoji spelled out, contractions and punctuation set apart."""

from __future__ import annotations

from collections.abc import Callable
from html.entities import name2codepoint
from typing import Any

from .words import word_library

_NEEDED = "BERTweet's tokenizer with normalization=true"
_TYPOGRAPHIC = {"’": "'", "…": "..."}

# the words of a tweet, the first alternative that fits counts (the classes of NLTK's tweet tokenizer, which BERTweet's authors used)
_PARENTHESES = r"\([^\s()]*?\([^\s()]+\)[^\s()]*?\)|\([^\s]+?\)"
_LINK = (
    r"(?:https?:(?:/{1,3}|[a-z0-9%])|[a-z0-9.\-]+[.][a-z]{2,13}/)"
    rf"(?:[^\s()<>{{}}\[\]]+|{_PARENTHESES})+"
    rf"(?:{_PARENTHESES}|[^\s`!()\[\]{{}};:'\".,<>?«»“”‘’])"
)
_DOMAIN = r"(?<!@)[a-z0-9]+(?:[.\-][a-z0-9]+)*[.][a-z]{2,13}\b/?(?!@)"
_GAP = r"[ *\-.\)]*"
_PHONE = rf"(?:\+?[01]{_GAP})?(?:\(?\d{{3}}{_GAP})?\d{{3}}{_GAP}\d{{4}}"
_EYES, _NOSE, _MOUTH = "[:;=8]", r"[\-o*']?", r"[)\](\[dDpP/:}{@|\\]"
_FACE = rf"[<>]?{_EYES}{_NOSE}{_MOUTH}|{_MOUTH}{_NOSE}{_EYES}[<>]?|<3"
_TWITTER = (r"<[^>\s]+>", r"-+>|<-+", r"@\w+", r"\#+\w+[\w'\-]*\w+", r"[\w.+-]+@[\w-]+\.(?:[\w-]\.?)+[\w-]")
_PLAIN = (r"[^\W\d_](?:[^\W\d_]|['\-_])+[^\W\d_]", r"[+\-]?\d+[,/.:-]\d+[+\-]?", r"\w+", r"\.(?:\s*\.)+", r"\S")
_WORD = "|".join((_LINK, _DOMAIN, _PHONE, _FACE, *_TWITTER, *_PLAIN))

_CONTRACTIONS = (
    *(("cannot ", "can not "), ("n't ", " n't "), ("n 't ", " n't "), ("ca n't", "can't"), ("ai n't", "ain't")),
    *((f"'{ending} ", f" '{ending} ") for ending in ("m", "re", "s", "ll", "d", "ve")),
    *((" p . m .", "  p.m."), (" p . m ", " p.m "), (" a . m .", " a.m."), (" a . m ", " a.m ")),
)


def tweet_normalizer() -> Callable[[str], str]:
    """The function that normalizes a tweet; MissingExtraError where `regex` or `emoji` is missing."""
    regex, emoji = word_library("regex", _NEEDED), word_library("emoji", _NEEDED)
    word, repeated = regex.compile(_WORD, regex.I), regex.compile(r"([^a-zA-Z0-9])\1{3,}")
    entity = regex.compile(r"&(#?(x?))([^&;\s]+);")

    def normalize(text: str) -> str:
        for typographic, plain in _TYPOGRAPHIC.items():
            text = text.replace(typographic, plain)
        text = repeated.sub(r"\1\1\1", entity.sub(_character, text))
        text = " ".join(_replaced(token, emoji.demojize) for token in word.findall(text))
        for joined, apart in _CONTRACTIONS:
            text = text.replace(joined, apart)
        return " ".join(text.split())

    return normalize


def _character(match: Any) -> str:
    """The character of an HTML entity, nothing for one that is not known."""
    coded, hexadecimal, body = match.groups()
    try:
        number = int(body, 16 if hexadecimal else 10) if coded else name2codepoint[body]
        if coded and 0x80 <= number <= 0x9F:  # browsers read these as Windows' characters
            return bytes((number,)).decode("cp1252")
        return "\ufffd" if 0xD800 <= number < 0xE000 else chr(number)
    except (KeyError, ValueError, OverflowError):
        return ""


def _replaced(token: str, demojize: Callable[[str], str]) -> str:
    if token.startswith("@"):
        return "@USER"
    if token.lower().startswith(("http", "www")):
        return "HTTPURL"
    if len(token) > 1:
        return token
    return _TYPOGRAPHIC.get(token) or demojize(token)
