"""Tokenizers that cut a text into words in Python (Moses, jieba, tweets, code points) before a library model makes tokens of the words.

Each builder takes a checkpoint's folder and settings; the tokens around one text or two are set later (`framing`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ir.errors import CheckpointError, ConfigError
from .files import check_kinds, read_json
from .moses import flaubert_words, xlm_words
from .tokenizer_builders import token_id, word_pieces
from .tokenizer_settings import ROLES, Settings
from .tweets import tweet_normalizer
from .words import Words, WordSplitter, word_library

if TYPE_CHECKING:
    from tokenizers import AddedToken, NormalizedString, PreTokenizedString, Token, Tokenizer

Pieces = Callable[[str], list[tuple[str, int, int]]]
_CODE_POINTS = 0x110000
_SPACES = "".join(chr(point) for point in range(0x3001) if chr(point).isspace())
_CANINE_NAMES = {0xE002: "[BOS]", 0xE004: "[RESERVED]"}  # code points that the reference decodes to a name


# -- what the kinds share --------------------------------------------------------------------------------------------------------------------------


class _Joined:
    """The library's custom decoder: all tokens to a text at once."""

    def __init__(self, join: Callable[[list[str]], str]):
        self.join = join

    def decode_chain(self, tokens: list[str]) -> list[str]:
        return [self.join(tokens)]


def _special(settings: Settings) -> list[Any]:
    return [settings[role] for role in ROLES if settings.get(role) is not None] + list(settings.get("additional_special_tokens") or ())


def _lower_first(tokenizer: Tokenizer, settings: Settings) -> None:
    """Lower the text before special tokens are looked for, so that `<S>` is found as `<s>`; those with capitals are found in the text as it came.

    The library keeps how a special token is found from the first time that it is added, which is here.
    """
    from tokenizers import AddedToken, normalizers

    tokenizer.normalizer = normalizers.Lowercase()
    known, texts = tokenizer.get_vocab(), [str(token) for token in _special(settings)]
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=True) for text in texts if text == text.lower() and text in known])


def _merges(path: Path) -> list[tuple[str, str]]:
    """The merges of a file, the first two columns of each line; what stands behind the last line's end does not count."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    return [(columns[0], columns[1]) for columns in lines if len(columns) > 1]


def _byte_pairs(merges: Iterable[tuple[str, str]], spelled: Callable[[str, bool], str]) -> Pieces:
    """The function from a word to its tokens with their places; `spelled(piece, last)` is how the vocabulary writes a piece.

    The model's vocabulary is that of the merges, because files leave pieces out that are only steps on the way to longer ones.
    """
    from tokenizers import models

    pairs = list(merges)
    symbols = dict.fromkeys(symbol for left, right in pairs for symbol in (left, right, left + right))
    numbers = {symbol: number for number, symbol in enumerate([" ", *symbols])}  # a space is in no symbol: it stands for characters without merges
    model = models.BPE(numbers, pairs, end_of_word_suffix="</w>", unk_token=" ")

    @lru_cache(maxsize=65536)
    def pieces(word: str) -> list[tuple[str, int, int]]:
        data = word.encode()
        places = [token.offsets for token in model.tokenize(word)]
        return [(spelled(data[start:end].decode(), end == len(data)), start, end) for start, end in places]

    return pieces


def _paired(
    folder: Path, settings: Settings, vocabulary: dict[str, int], words: Words, pieces: Pieces, join: Callable[[list[str]], str]
) -> Tokenizer:
    """The tokenizer of words that are cut into pieces, each of which has a number in the vocabulary or is unknown."""
    from tokenizers import Token, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=str(settings["unk_token"])))
    unknown = token_id(folder, tokenizer, str(settings["unk_token"]))

    def tokens(word: str) -> list[Token]:
        return [Token(vocabulary.get(piece, unknown), piece, (start, end)) for piece, start, end in pieces(word)]

    tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(WordSplitter(words, tokens))
    tokenizer.decoder = decoders.Decoder.custom(_Joined(join))
    return tokenizer


# -- XLM and FlauBERT ------------------------------------------------------------------------------------------------------------------------------


def xlm(folder: Path, settings: Settings) -> Tokenizer:
    """The tokenizer of vocab.json and merges.txt with Moses' words; the setting `lang` names their language."""
    return _moses_pairs(folder, settings, xlm_words(settings), lower=settings.get("do_lowercase_and_remove_accent", True))


def flaubert(folder: Path, settings: Settings) -> Tokenizer:
    """The tokenizer of vocab.json and merges.txt with Moses' French words."""
    return _moses_pairs(folder, settings, flaubert_words(settings), lower=False)


def _moses_pairs(folder: Path, settings: Settings, words: Words, lower: bool) -> Tokenizer:
    vocabulary = read_json(folder / "vocab.json")
    check_kinds(vocabulary, dict.fromkeys(vocabulary, (int,)), folder / "vocab.json")
    pieces = _byte_pairs(_merges(folder / "merges.txt"), lambda piece, last: piece + "</w>" * last)
    tokenizer = _paired(folder, settings, vocabulary, words, pieces, lambda tokens: "".join(tokens).replace("</w>", " ").strip())
    if lower:
        _lower_first(tokenizer, settings)
    return tokenizer


# -- BERTweet and PhoBERT --------------------------------------------------------------------------------------------------------------------------


def bertweet(folder: Path, settings: Settings) -> Tokenizer:
    """The tokenizer of vocab.txt and bpe.codes; with the setting `normalization`, tweets are normalized first."""
    normalize = tweet_normalizer() if settings.get("normalization") else str
    return _fairseq_pairs(folder, settings, lambda text: re.findall(r"\S+\n?", normalize(text)))


def phobert(folder: Path, settings: Settings) -> Tokenizer:
    """The tokenizer of vocab.txt and bpe.codes, for Vietnamese whose words are already joined by underscores."""
    return _fairseq_pairs(folder, settings, re.compile(r"\S+\n?").findall)


def _fairseq_pairs(folder: Path, settings: Settings, words: Words) -> Tokenizer:
    vocabulary = _counted(folder / "vocab.txt", [str(settings[role]) for role in ("bos_token", "pad_token", "eos_token", "unk_token")])
    pieces = _byte_pairs(_merges(folder / "bpe.codes"), lambda piece, last: piece + "@@" * (not last))
    return _paired(folder, settings, vocabulary, words, pieces, lambda tokens: " ".join(tokens).replace("@@ ", "").strip())


def _counted(path: Path, special: list[str]) -> dict[str, int]:
    """The tokens of a fairseq dictionary, a token and its count in each line, behind the four special ones."""
    vocabulary = {token: number for number, token in enumerate(special)}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            token, space, _ = line.strip().rpartition(" ")
            if not space:
                raise CheckpointError(f"{path}: line {number} is {line.strip()!r}, expected a token and its count")
            vocabulary[token] = len(vocabulary)
    return vocabulary


# -- RoFormer --------------------------------------------------------------------------------------------------------------------------------------


class JiebaWords:
    """The library's custom pre-tokenizer for RoFormer: jieba's words, of which those that the vocabulary lacks are cut between Chinese characters."""

    def __init__(self, vocabulary: Mapping[str, int]):
        from tokenizers import normalizers

        self.jieba = word_library("rjieba", "RoFormer's tokenizer, which cuts words as jieba does")
        self.vocabulary = vocabulary
        self.spaced = normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False)

    def pre_tokenize(self, text: PreTokenizedString) -> None:
        text.split(lambda _, part: list(self._cut(part)))

    def _cut(self, text: NormalizedString) -> Iterator[NormalizedString]:
        for word, start, end in self.jieba.tokenize(text.normalized, hmm=False):
            if word in self.vocabulary:
                yield text[start:end]
                continue
            for part in self.spaced.normalize_str(word).split():
                yield text[start : start + len(part)]
                start += len(part)


def roformer(folder: Path, settings: Settings) -> Tokenizer:
    """The tokenizer of vocab.txt: BERT's word pieces of jieba's words, as the reference's class on the tokenizers library has them.

    A tokenizer.json cannot say that words are jieba's, so this is for folders that have one too.
    """
    from tokenizers import pre_tokenizers

    tokenizer = word_pieces(folder, settings | {"tokenize_chinese_chars": False})
    tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(JiebaWords(tokenizer.get_vocab()))
    return tokenizer


# -- CANINE ----------------------------------------------------------------------------------------------------------------------------------------


class CodePoints:
    """A library tokenizer for which every Unicode character is a token whose id is its code point; no table of them is kept."""

    def __init__(self, tokenizer: Tokenizer):
        self.__dict__["library"] = tokenizer

    def __getattr__(self, name: str) -> Any:
        if name == "library":  # not yet there while a copy is being made
            raise AttributeError(name)
        return getattr(self.library, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.library, name, value)

    def add_tokens(self, tokens: Sequence[str | AddedToken]) -> int:
        """Make characters special; ConfigError for a token of several, which has no code point."""
        for token in tokens:
            if len(token if isinstance(token, str) else token.content) != 1:
                raise ConfigError(f"added token {str(token)!r} is no single character, and characters are the only tokens of this kind")
        return self.library.add_tokens(list(tokens))

    def token_to_id(self, token: str) -> int | None:
        """The code point of a character."""
        return ord(token) if len(token) == 1 else None

    def id_to_token(self, id: int) -> str | None:
        """The character of a code point."""
        return chr(id) if 0 <= id < _CODE_POINTS else None

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        """The number of Unicode's code points."""
        return _CODE_POINTS

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of code points, without the special ones where they are skipped."""
        added = self.library.get_added_tokens_decoder()
        hidden = {id for id, token in added.items() if token.special} if skip_special_tokens else set()
        return "".join(chr(id) if id in added else _CANINE_NAMES.get(id) or chr(id) for id in ids if id not in hidden)


def canine(_: Path, settings: Settings) -> Tokenizer:
    """The tokenizer of code points, which has no files."""
    from tokenizers import AddedToken, Regex, Token, Tokenizer, models, normalizers, pre_tokenizers

    settings.setdefault("model_max_length", 2048)

    def tokens(text: str) -> list[Token]:
        places, end = [], 0
        for character in text:
            start, end = end, end + len(character.encode())
            places.append(Token(ord(character), character, (start, end)))
        return places

    numbers = {str(token): ord(str(token)) for token in _special(settings) if len(str(token)) == 1}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=""))
    # a token that swallows the spaces before it does so with those that Python knows and the library does not (\x1c) too
    greedy = [str(token) for token in _special(settings) if not isinstance(token, str) and token.lstrip]
    tokenizer.normalizer = normalizers.Replace(Regex(f"[{_SPACES}]+(?=[{re.escape(''.join(greedy))}])"), "") if greedy else None
    words = pre_tokenizers.Split(Regex(r"\s"), behavior="isolated")  # so that answers can be whole words
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.PreTokenizer.custom(WordSplitter(None, tokens))])
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=True) for text in greedy])
    return CodePoints(tokenizer)  # type: ignore[return-value]
