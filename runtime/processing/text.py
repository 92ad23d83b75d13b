"""Text to token ids and back, as the reference's tokenizers do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...ir.errors import InputError, UsageError
from . import vocabularies
from .files import Inputs, read_optional
from .tokenizer_settings import ROLES

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Texts = str | Sequence[str]
Padding = Literal["longest", "max_length"]
Truncation = Literal["longest_first", "only_first", "only_second"]
UNLIMITED = 10**20  # the reference writes 1e30 for "no limit known"
CLEANED = (" .", " ?", " !", " ,", " n't", " 'm", " 's", " 've", " 're")


@dataclass(frozen=True)
class TextProcessor:
    """A tokenizer with its special tokens and habits.

    `special` maps roles ("mask_token") to tokens; `max_length` counts tokens, special ones included; `case` is what happens to text before everything
    else ("lower", "upper" or ""); `word_delimiter` is set for character tables (CTC) only. `pad_type` is the token type of padding. `fast` is False
    for kinds that the reference does not run with the tokenizers library: they differ in how two texts are cut and special tokens decoded.
    """

    tokenizer: Tokenizer = field(repr=False)  # one with words of its own has no text form
    special: Mapping[str, str]
    folder: Path
    token_types: bool = False
    attention_mask: bool = True
    pad_type: int = 0
    fast: bool = True
    max_length: int | None = None
    padding_side: str = "right"
    truncation_side: str = "right"
    clean_up: bool = False
    case: str = ""
    word_suffix: str = ""
    word_delimiter: str = ""
    space: str = " "

    @classmethod
    def from_folder(cls, folder: str | Path, config: Mapping[str, Any]) -> TextProcessor:
        """The tokenizer of a checkpoint folder, from tokenizer.json or from the older files of its kind.

        `config` is the model's config.json: its `model_type` says which kind where tokenizer_config.json does not, and its number of positions is a
        limit on the length. Raises UsageError where files are missing, CheckpointError where they are corrupt.
        """
        folder = Path(folder)
        tokenizer, settings, kind = vocabularies.load(folder, config)
        sentence = read_optional(folder / "sentence_bert_config.json")
        characters = kind is not None and kind.character_table
        names = settings.get("model_input_names")
        types = "token_type_ids" in names if names else kind.token_types if kind else config.get("type_vocab_size", 0) > 1
        mask = "attention_mask" in names if names else kind is None or kind.attention_mask
        lower = sentence.get("do_lower_case", False)
        return cls(
            tokenizer=tokenizer,
            special={role: settings[role] for role in ROLES if settings.get(role) is not None},
            folder=folder,
            token_types=bool(types),
            attention_mask=mask,
            pad_type=kind.pad_type if kind else 0,
            fast=kind is None or kind.fast,
            max_length=_limit(settings, sentence, config),
            padding_side=settings.get("padding_side") or "right",
            truncation_side=settings.get("truncation_side") or "right",
            clean_up=bool(settings.get("clean_up_tokenization_spaces", False)),
            case="upper" if characters and settings.get("do_lower_case") else "lower" if lower else "",
            word_suffix=getattr(tokenizer.model, "end_of_word_suffix", None) or "",
            word_delimiter=settings["word_delimiter_token"] if characters else "",
            space=settings.get("replace_word_delimiter_char", " "),
        )

    # -- text to ids -------------------------------------------------------------------------------------------------------------------------------

    def inputs(
        self,
        text: Texts,
        pair: Texts | None = None,
        *,
        choices: Texts | None = None,
        padding: Padding = "longest",
        truncation: Truncation | None = "longest_first",
        max_length: int | None = None,
        stride: int | None = None,
        padding_side: str | None = None,
        pad_token: str | None = None,
    ) -> Inputs:
        """Token ids of one or several texts, padded to one length.

        Gives `input_ids` and, for kinds of models that have them, `attention_mask` and `token_type_ids`: int64 [batch seq]. `pair` holds a second
        text for each. `choices`, the continuations of a single text, give one more axis: [1 choices seq]. A text of more than `max_length` tokens
        (the tokenizer's own limit if None) is cut, with a note, or, with `stride`, spread over several rows that share `stride` tokens. Raises
        InputError where texts cannot be encoded or padded, or are too long and `truncation` is None.
        """
        texts, choice_count = _texts(text, pair, choices)
        result = Inputs()
        result.texts = texts
        limit = max_length or self.max_length
        cut = "only_second" if stride is not None and texts[0][1] is not None and truncation == "longest_first" else truncation
        for sample, encoding in enumerate(self._encode(texts, cut, limit, stride)):
            rows = [encoding, *encoding.overflowing] if stride is not None else [encoding]
            result.encodings += rows
            result.samples += [sample] * len(rows)
            if cut and limit and stride is None and encoding.overflowing:
                result.notes.append(f"text {sample} is longer than {limit} tokens and was cut to that")
        self._check_length(result, limit if truncation is None else None)
        arrays = self._pad(result.encodings, limit if padding == "max_length" else None, padding, padding_side or self.padding_side, pad_token)
        result.update({name: array[None] if choice_count else array for name, array in arrays.items()})
        return result

    def token_id(self, role: str) -> int | None:
        """The id of a special token by its role ("mask_token"), None where the tokenizer has none."""
        token = self.special.get(role)
        return None if token is None else self.tokenizer.token_to_id(token)

    def _encode(self, texts: list[tuple[str, str | None]], cut: Truncation | None, limit: int | None, stride: int | None) -> list[Encoding]:
        cased = [tuple(getattr(part, self.case)() if self.case else part for part in text if part is not None) for text in texts]
        self.tokenizer.no_truncation()
        room = None
        if cut and limit:
            room = limit - self.tokenizer.num_special_tokens_to_add(texts[0][1] is not None)
            if room <= (stride or 0):
                raise InputError(
                    f"max_length={limit} leaves room for {room} tokens beside the special ones, expected more than the stride, {stride or 0}"
                )
        try:
            if room and cut == "longest_first" and not self.fast and texts[0][1] is not None:
                return self._cut_pairs(cased, room)
            if cut and limit:
                self.tokenizer.enable_truncation(limit, stride=stride or 0, strategy=cut, direction=self.truncation_side)
            return self.tokenizer.encode_batch([text if len(text) == 2 else text[0] for text in cased])
        except Exception as error:
            if type(error) is not Exception:
                raise
            # the library's own class of error: for a question longer than the limit, an unknown token without a number
            raise InputError(f"the texts cannot be encoded: {error}\n  tokenizer: {self.folder}") from error

    def _cut_pairs(self, texts: list[Any], room: int) -> list[Encoding]:
        """Pairs of texts, the longer one cut to the length of the other, then both alike; of an odd number of tokens the first keeps one more."""
        encoded = self.tokenizer.encode_batch([part for text in texts for part in text], add_special_tokens=False)
        pairs = []
        for first, second in zip(encoded[::2], encoded[1::2], strict=True):
            sizes = [len(first.ids), len(second.ids)]
            surplus = max(sum(sizes) - room, 0)
            level = min(abs(sizes[0] - sizes[1]), surplus)  # so many are cut from the longer one alone
            longer = int(sizes[1] >= sizes[0])
            halves = (surplus - level) // 2, surplus - level - (surplus - level) // 2
            kept = sizes[0] - halves[0] - (level if longer == 0 else 0), sizes[1] - halves[1] - (level if longer == 1 else 0)
            for part, size in ((first, kept[0]), (second, kept[1])):
                part.truncate(size, direction=self.truncation_side)
            pairs.append(self.tokenizer.post_process(first, second))
        return pairs

    def _check_length(self, inputs: Inputs, limit: int | None) -> None:
        for sample, encoding in zip(inputs.samples, inputs.encodings, strict=True):
            if not encoding.ids:
                raise InputError(f"text {sample} gives no tokens: {inputs.texts[sample][0]!r}")
            if limit and len(encoding.ids) > limit:
                raise InputError(f"text {sample} has {len(encoding.ids)} tokens, expected at most {limit}\n  let it be cut, or split it")

    def _pad(self, encodings: list[Encoding], length: int | None, padding: str, side: str, pad_token: str | None) -> dict[str, np.ndarray]:
        if padding == "max_length" and length is None:
            raise InputError("padding='max_length' needs max_length: the tokenizer states no limit of its own")
        lengths = {len(encoding.ids) for encoding in encodings}
        length = max(lengths | ({length} if length else set()))
        pad_id = self._pad_id(pad_token) if lengths != {length} else 0
        columns = {"input_ids": ([e.ids for e in encodings], pad_id)}
        if self.attention_mask:
            columns["attention_mask"] = ([e.attention_mask for e in encodings], 0)
        if self.token_types:
            columns["token_type_ids"] = ([e.type_ids for e in encodings], self.pad_type)
        return {name: _stack(rows, length, fill, side) for name, (rows, fill) in columns.items()}

    def _pad_id(self, pad_token: str | None) -> int:
        token = pad_token or self.special.get("pad_token")
        if token is None:
            end = self.special.get("eos_token")
            raise UsageError(
                f"texts of unequal length need padding, and this tokenizer has no padding token\n  tokenizer: {self.folder}\n"
                f"  run them one at a time, or pass pad_token={end or 'a token of its vocabulary'!r}: the attention mask hides what it fills"
            )
        number = self.tokenizer.token_to_id(token)
        if number is None:
            raise UsageError(f"padding token {token!r} is not in the vocabulary\n  tokenizer: {self.folder}")
        return number

    # -- ids to text -------------------------------------------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """The text of one row of token ids."""
        if self.word_delimiter:
            return self.decode_ctc(ids, skip_special_tokens)
        text = self._decoded([int(i) for i in ids], skip_special_tokens)
        if self.word_suffix:
            text = text.replace(self.word_suffix, " ").strip()
        return _clean(text) if self.clean_up else text

    def _decoded(self, ids: list[int], skip_special: bool) -> str:
        if self.fast:
            return self.tokenizer.decode(ids, skip_special_tokens=skip_special)
        added = self.tokenizer.get_added_tokens_decoder()
        ids = [i for i in ids if not (skip_special and i in added and added[i].special)]
        # the reference's older classes decode what lies between added tokens apart from them; special tokens of the vocabulary are like text to them
        apart = {i for i, token in added.items() if not token.special or (i >= self.word_count and token.content not in self.special.values())}
        runs = [run for is_apart, group in groupby(ids, apart.__contains__) for run in ([[i] for i in group] if is_apart else [list(group)])]
        texts = [self.tokenizer.decode(run, skip_special_tokens=False) for run in runs]
        return " ".join([*(text for text in texts[:-1] if text), *texts[-1:]])

    @cached_property
    def word_count(self) -> int:
        """How many tokens the vocabulary has, without those that were added to it."""
        return self.tokenizer.get_vocab_size(with_added_tokens=False)

    def decode_ctc(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = False) -> str:
        """The text of one row of per-frame token ids: repeats merged, blanks (the padding token) dropped, the word delimiter a space."""
        text = "".join(token for token, _, _ in self._characters(ids, skip_special_tokens)).strip()
        text = text.lower() if self.case == "upper" else text
        return _clean(text) if self.clean_up else text

    def words_ctc(self, ids: Sequence[int] | np.ndarray) -> list[tuple[str, int, int]]:
        """The words of one row of per-frame token ids, each with its first frame and the frame after its last."""
        words = []
        for is_space, group in groupby(self._characters(ids, False), lambda character: character[0] == self.space):
            characters = list(group)
            if not is_space:
                word = "".join(token for token, _, _ in characters)
                words.append((word.lower() if self.case == "upper" else word, characters[0][1], characters[-1][2]))
        return words

    def _characters(self, ids: Sequence[int] | np.ndarray, skip_special: bool) -> list[tuple[str, int, int]]:
        """(character, first frame, frame after the last) of each character that a row of frames spells."""
        if not self.word_delimiter:
            raise UsageError(f"decoding frames (CTC) needs a character table with a word delimiter\n  tokenizer: {self.folder}")
        blank, unknown = self.special.get("pad_token"), self.special.get("unk_token", "")
        hidden = {blank} | (set(self.special.values()) if skip_special else set())
        tokens = [self.tokenizer.id_to_token(int(i)) or unknown for i in ids]
        if skip_special:
            tokens = [token for token in tokens if token == blank or token not in hidden]
        characters, frame = [], 0
        for token, group in groupby(tokens):
            end = frame + len(list(group))
            if token not in hidden:
                characters.append((self.space if token == self.word_delimiter else token, frame, end))
            frame = end
        return characters

    def with_special(self, **roles: str) -> TextProcessor:
        """The same processor with other special tokens, `with_special(pad_token="<|endoftext|>")`; UsageError where the vocabulary lacks one."""
        for role, token in roles.items():
            if self.tokenizer.token_to_id(token) is None:
                raise UsageError(f"{role}={token!r} is not in the vocabulary\n  tokenizer: {self.folder}")
        return replace(self, special=dict(self.special) | roles)


def _texts(text: Texts, pair: Texts | None, choices: Texts | None) -> tuple[list[tuple[str, str | None]], int]:
    """(text, pair) of each row, and the number of choices where there are some."""
    first = _listed(text, "text")
    if choices is not None:
        if len(first) != 1 or pair is not None:
            raise InputError(f"choices continue one text and take no pair; got {len(first)} texts{'' if pair is None else ' and pairs'}")
        second: list[str] | list[None] = _listed(choices, "choices")
        return [(first[0], choice) for choice in second], len(second)
    second = [None] * len(first) if pair is None else _listed(pair, "pair")
    if len(first) != len(second):
        raise InputError(f"text has {len(first)} texts and pair has {len(second)}, expected one pair for each text")
    return list(zip(first, second, strict=True)), 0


def _listed(value: Texts, name: str) -> list[str]:
    texts = [value] if isinstance(value, str) else list(value)
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise InputError(f"{name} {wrong} is of type {type(texts[wrong]).__name__}, expected str")
    if not texts:
        raise InputError(f"{name} is an empty list, expected at least one text")
    return texts


def _stack(rows: list[list[int]], length: int, fill: int, side: str) -> np.ndarray:
    array = np.full((len(rows), length), fill, np.int64)
    for target, row in zip(array, rows, strict=True):
        if side == "left":
            target[length - len(row) :] = row
        else:
            target[: len(row)] = row
    return array


def _limit(settings: Mapping[str, Any], sentence: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    """The smallest of the limits on tokens that the files state: the tokenizer's, sentence-transformers', the position table's."""
    inner = config.get("text_config") or config
    positions = None if "relative_attention_num_buckets" in inner else inner.get("max_position_embeddings") or inner.get("n_positions")
    stated = [settings.get("model_max_length", settings.get("max_len")), sentence.get("max_seq_length"), positions]
    return min((int(limit) for limit in stated if limit and limit < UNLIMITED), default=None)


def _clean(text: str) -> str:
    """English with the spaces removed that tokenization puts before punctuation and contractions, as the reference does it."""
    for spaced in CLEANED[:4]:
        text = text.replace(spaced, spaced[1:])
    text = text.replace(" ' ", "'")
    for spaced in CLEANED[4:]:
        text = text.replace(spaced, spaced[1:])
    return text
