"""Words that Python code cut out of a text, given to the tokenizers library with their places in that text."""

from __future__ import annotations

import importlib
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING

from ...ir.errors import MissingExtraError

if TYPE_CHECKING:
    from tokenizers import NormalizedString, PreTokenizedString, Token

Words = Callable[[str], list[str]]
Span = tuple[int, int]
_SAME = str.maketrans("“”„«»‘’`´–—━", '"""""\'\'\'\'---')
_REACH = 16  # a word of n characters is looked for in the next n * 16


def word_library(name: str, purpose: str) -> ModuleType:
    """A library that cuts texts into words; MissingExtraError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError("words", f"{purpose} ({name})") from error


class WordSplitter:
    """The library's custom pre-tokenizer: `words` cuts the text, `tokens` (the tokenizer's model if None) makes tokens of each word.

    Words may be spelled otherwise than the text; their places in it are then found by what is around them.
    """

    def __init__(self, words: Words | None, tokens: Callable[[str], list[Token]] | None = None):
        self.words, self.tokens = words, tokens

    def pre_tokenize(self, text: PreTokenizedString) -> None:
        if self.words is not None:
            text.split(self._split)
        if self.tokens is not None:
            text.tokenize(self.tokens)

    def _split(self, _: int, text: NormalizedString) -> list[NormalizedString]:
        plain = text.normalized
        words = self.words(plain)  # type: ignore[misc]
        return [_respelled(text[start:end], word) for (start, end), word in zip(places(plain, words), words, strict=True)]


def _respelled(part: NormalizedString, word: str) -> NormalizedString:
    """The part of the text with the word in its stead, first character to first and last to last."""
    if part.normalized == word:
        return part
    length = len(part.normalized)
    if len(word) < length:
        keep = iter([True] * (len(word) - 1) + [False] * (length - len(word)) + [True])
        part.filter(lambda _: next(keep))
        length = len(word)
    characters = iter(word)
    part.map(lambda _: next(characters))
    if len(word) > length:
        part.append(word[length:])
    return part


def places(text: str, words: Sequence[str]) -> list[Span]:
    """The (start, end) of each word in the text that the words were made from, in order and never empty.

    A word that is not found, but for case, accents and width, is where the found ones around it leave room.
    """
    letters = [(letter, index) for index, character in enumerate(text) for letter in _letters(character)]
    plain = "".join(letter for letter, _ in letters)
    found: list[Span | None] = []
    position = 0
    for word in words:
        sought = "".join(map(_letters, word))
        start = plain.find(sought, position, position + len(sought) * (1 + _REACH)) if sought else -1
        if start >= 0:
            position = start + len(sought)
            found.append((letters[start][1], letters[position - 1][1] + 1))
        else:
            found.append(None)
    return _filled(text, found)


def _filled(text: str, found: list[Span | None]) -> list[Span]:
    """The places with those of the words that were not found: the gap between their neighbours, without the spaces around it."""
    after, end = [len(text)] * len(found), len(text)
    for index in reversed(range(len(found))):
        after[index] = end
        place = found[index]
        end = place[0] if place else end
    spans: list[Span] = []
    start = 0
    for index, place in enumerate(found):
        if place is None:
            gap = text[start : after[index]]
            begin = start + len(gap) - len(gap.lstrip())
            stop = begin + len(gap.strip())
            place = (begin, stop) if stop > begin else (max(start - 1, 0), max(start, 1))
        else:
            start = place[1]
        spans.append(place)
    return spans


@lru_cache(maxsize=65536)
def _letters(character: str) -> str:
    """A character without case, accent, width and typography; nothing for a space or a mark."""
    plain = unicodedata.normalize("NFKD", character.translate(_SAME)).casefold()
    return "".join(letter for letter in plain if not (letter.isspace() or unicodedata.category(letter)[0] in "MC"))
