"""Entities in a text, for LUKE and mLUKE: their ids, and the tokens that mention them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...ir.errors import CheckpointError, ConfigError, InputError, UsageError, nearest
from .files import Inputs, check_kinds, read_json
from .text import TextProcessor
from .tokenizer_settings import read_settings

Span = tuple[int, int]
Task = Literal["entity_classification", "entity_pair_classification", "entity_span_classification"]
# how many entities a text has (None: any number, at least one), and how many of them are kept (None: max_entity_length)
TASKS: dict[str, tuple[int | None, int | None]] = {
    "entity_classification": (1, 1),
    "entity_pair_classification": (2, 2),
    "entity_span_classification": (None, None),
}
_TOKENS = {"entity_unk_token": "[UNK]", "entity_pad_token": "[PAD]", "entity_mask_token": "[MASK]", "entity_mask2_token": "[MASK2]"}
_MARKS = {"entity_token_1": "<ent>", "entity_token_2": "<ent2>"}
_LENGTHS = {"max_entity_length": 32, "max_mention_length": 30}


@dataclass(frozen=True)
class Mentions:
    """A tokenized text: its ids without special tokens, and the (start, end) tokens and the entity of each mention in it."""

    ids: list[int]
    spans: list[Span]
    entities: list[int]

    def cut(self, length: int) -> Mentions:
        """The first `length` tokens, and the mentions that lie in them wholly."""
        whole = [(span, entity) for span, entity in zip(self.spans, self.entities, strict=True) if span[1] <= length]
        return Mentions(self.ids[:length], [span for span, _ in whole], [entity for _, entity in whole])

    def first(self, count: int) -> Mentions:
        """The same tokens with the first `count` mentions."""
        return Mentions(self.ids, self.spans[:count], self.entities[:count])


@dataclass(frozen=True)
class EntityProcessor:
    """A tokenizer with a vocabulary of entities.

    `special` maps "unk", "pad", "mask" and "mask2" to ids of entities, `marks` are the ids of the tokens that are put around a mention. `task` is
    what the entities are given for when a call does not say. At most `max_entity_length` entities, and `max_mention_length` tokens of each, are kept.
    """

    text: TextProcessor
    vocabulary: Mapping[str, int]
    special: Mapping[str, int]
    marks: tuple[int, int]
    task: str | None
    max_entity_length: int
    max_mention_length: int

    @classmethod
    def from_folder(cls, folder: str | Path, config: Mapping[str, Any]) -> EntityProcessor:
        """The tokenizer and entity_vocab.json of a checkpoint folder, whose config.json is `config`.

        Raises UsageError where files are missing, CheckpointError where they do not belong together.
        """
        folder = Path(folder)
        path = folder / "entity_vocab.json"
        if not path.is_file():
            raise UsageError(f"{path}: no such file; entities are given to the model by their numbers in it\n  copy it from the original checkpoint")
        vocabulary, source = read_json(path), folder / "tokenizer_config.json"
        settings = read_settings(folder)
        check_kinds(settings, dict.fromkeys(_LENGTHS, (int,)) | {"task": (str,)}, source)
        _check_task(settings.get("task"))
        tokens = {role: str(settings.get(role, token)) for role, token in _TOKENS.items()}
        missing = next((token for token in tokens.values() if token not in vocabulary), None)
        if missing is not None:
            raise CheckpointError(f"{path}: no entity {missing!r} among {len(vocabulary)}, expected it: it stands for entities without a number")
        text = TextProcessor.from_folder(folder, config)
        listed = [str(token) for token in settings.get("additional_special_tokens") or ()]
        marks = [*listed, *(str(settings.get(role, token)) for role, token in _MARKS.items())][:2]
        numbers = [text.tokenizer.token_to_id(mark) for mark in marks]
        if None in numbers:
            raise CheckpointError(f"{folder}: token {marks[numbers.index(None)]!r}, which marks an entity, is not in the tokenizer's vocabulary")
        lengths = {name: settings.get(name, default) for name, default in _LENGTHS.items()}
        special = {role.split("_")[1]: vocabulary[token] for role, token in tokens.items()}
        return cls(text=text, vocabulary=vocabulary, special=special, marks=(numbers[0], numbers[1]), task=settings.get("task"), **lengths)

    def inputs(
        self,
        text: str | Sequence[str],
        spans: Sequence[Span] | Sequence[Sequence[Span]],
        *,
        entities: Sequence[str] | Sequence[Sequence[str]] | None = None,
        pair: str | Sequence[str] | None = None,
        pair_spans: Sequence[Span] | Sequence[Sequence[Span]] | None = None,
        pair_entities: Sequence[str] | Sequence[Sequence[str]] | None = None,
        task: Task | None = None,
        padding: Literal["longest", "max_length"] = "longest",
        truncation: bool = True,
        max_length: int | None = None,
    ) -> Inputs:
        """The model's inputs for texts with entities in them.

        `spans` are the (start, end) characters of each mention: a list for one text, a list of lists for several. `entities` name them as the
        vocabulary does; without names they are masked. A `pair` of texts, and names, go without a task only. Gives `input_ids`, `attention_mask`
        (and `token_type_ids` where the model has them): int64 [batch seq]; `entity_ids`, `entity_attention_mask`, `entity_token_type_ids`: int64
        [batch entities]; `entity_position_ids`: int64 [batch entities max_mention_length], -1 beyond the mention; and for
        "entity_span_classification" `entity_start_positions` and `entity_end_positions`: int64 [batch entities]. Raises InputError where spans do
        not fit the text or the task.
        """
        task = task or self.task  # type: ignore[assignment]
        _check_task(task)
        texts, first = self._mentions(text, spans, entities, task)
        result = Inputs()
        result.texts, result.samples = [(text, None) for text in texts], list(range(len(texts)))
        second: list[Mentions] | list[None] = [None] * len(texts)
        if pair is not None:
            if task:
                raise InputError(f"pair given for {task}, expected one text for each: that task is about the entities of one text")
            others, second = self._mentions(pair, pair_spans, pair_entities, None)
            if len(others) != len(texts):
                raise InputError(f"text has {len(texts)} texts and pair has {len(others)}, expected one pair for each text")
            result.texts = list(zip(texts, others, strict=True))
        limit = max_length or self.text.max_length
        rows = []
        for sample, parts in enumerate(zip(first, second, strict=True)):
            whole = [part for part in parts if part is not None]
            cut = self._cut(whole, limit, task) if truncation else whole
            lost = sum(len(part.entities) for part in whole) - sum(len(part.entities) for part in cut)
            if lost:
                result.notes.append(f"text {sample} was cut, and {lost} of its entities with it")
            rows.append(self._row(cut))
        result.update(self._arrays(rows, limit if padding == "max_length" else None, padding, task))
        return result

    # -- texts to tokens ---------------------------------------------------------------------------------------------------------------------------

    def _mentions(self, text: Any, spans: Any, entities: Any, task: str | None) -> tuple[list[str], list[Mentions]]:
        single = isinstance(text, str)
        texts = [text] if single else list(text)
        places = [[] for _ in texts] if spans is None else [spans] if single else list(spans)
        names = [None] * len(texts) if entities is None else [entities] if single else list(entities)
        if not texts or not len(texts) == len(places) == len(names):
            raise InputError(f"{len(texts)} texts with {len(places)} lists of spans and {len(names)} of entities, expected one of each for each text")
        if task and entities is not None:
            raise InputError(f"entities given for {task}, expected none: that task masks them")
        return texts, [self._read(*sample, task) for sample in enumerate(zip(texts, places, names, strict=True))]

    def _read(self, sample: int, given: tuple[str, Sequence[Span], Sequence[str] | None], task: str | None) -> Mentions:
        """The tokens of a text, which is cut at the ends of every mention, with marks around the mentions where the task wants them."""
        text, places, names = given
        spans = _checked(sample, text, places)
        wanted = TASKS[task][0] if task else None
        if (wanted is not None and len(spans) != wanted) or (task and not spans):
            raise InputError(f"text {sample} has {len(spans)} spans, expected {wanted or 'at least 1'} for {task}")
        if names is not None and len(names) != len(spans):
            raise InputError(f"text {sample} has {len(spans)} spans and {len(names)} entities, expected a name for each span")
        ids: list[int] = []
        token_at: dict[int, int] = {}
        done = 0
        for place in sorted(set(chain(*spans))):
            end = place - (place > 0 and text[place - 1] == " ")  # a space belongs to the token behind it
            if end != done:
                ids += self._ids(text[done:end])
                done = end
            token_at[place] = len(ids)
        ids += self._ids(text[done:])
        found = [(token_at[start], token_at[end]) for start, end in spans]
        numbers = [self.special["mask"]] * len(spans) if names is None else [self.vocabulary.get(name, self.special["unk"]) for name in names]
        if task == "entity_pair_classification":
            numbers[1] = self.special["mask2"]
        return self._marked(Mentions(ids, found, numbers)) if wanted else Mentions(ids, found, numbers)

    def _ids(self, text: str) -> list[int]:
        self.text.tokenizer.no_truncation()
        return self.text.tokenizer.encode(text, add_special_tokens=False).ids

    def _marked(self, read: Mentions) -> Mentions:
        """The tokens with a mark before and behind each of one or two mentions, the first's own and the second's own."""
        ids, spans = list(read.ids), list(read.spans)
        marks = list(zip(read.spans, self.marks, strict=False))
        later_first = len(spans) == 1 or spans[0][0] < spans[1][0]
        for (start, end), mark in reversed(marks) if later_first else marks:
            ids[end:end] = [mark]
            ids[start:start] = [mark]
        before = [0] if len(spans) == 1 else [0, 2] if later_first else [2, 0]
        return Mentions(ids, [(start + shift, end + shift + 2) for (start, end), shift in zip(spans, before, strict=True)], read.entities)

    # -- tokens to arrays --------------------------------------------------------------------------------------------------------------------------

    def _cut(self, parts: list[Mentions], limit: int | None, task: str | None) -> list[Mentions]:
        if limit:
            room = limit - 2 * len(parts)  # the special tokens
            if room <= 0:
                raise InputError(f"max_length={limit} leaves room for {room} tokens beside the special ones, expected at least 1")
            lengths = kept([len(part.ids) for part in parts], room)
            parts = [part.cut(length) for part, length in zip(parts, lengths, strict=True)]
        most = (TASKS[task][1] if task else None) or self.max_entity_length
        counts = kept([len(part.entities) for part in parts], most)
        return [part.first(count) for part, count in zip(parts, counts, strict=True)]

    def _row(self, parts: list[Mentions]) -> tuple[list[int], list[int], list[Span]]:
        """Ids with special tokens, the entities, and the (start, end) tokens of their mentions: `<s> A </s>` or `<s> A </s> </s> B </s>`."""
        cls, sep = (self.text.token_id(role) for role in ("cls_token", "sep_token"))
        ids: list[Any] = []
        entities: list[int] = []
        spans: list[Span] = []
        for number, part in enumerate(parts):
            ids.append(sep if number else cls)
            entities += part.entities
            spans += [(start + len(ids), end + len(ids)) for start, end in part.spans]
            ids += [*part.ids, sep]
        return ids, entities, spans

    def _arrays(
        self, rows: list[tuple[list[int], list[int], list[Span]]], limit: int | None, padding: str, task: str | None
    ) -> Iterator[tuple[str, np.ndarray]]:
        if padding == "max_length" and limit is None:
            raise InputError("padding='max_length' needs max_length: the tokenizer states no limit of its own")
        most = (TASKS[task][1] if task else None) or self.max_entity_length
        length = max([len(ids) for ids, _, _ in rows] + [limit or 0])
        count = max([len(entities) for _, entities, _ in rows] + ([most] if limit else []))
        pad = self.text.token_id("pad_token")
        yield "input_ids", self._stack([ids for ids, _, _ in rows], length, pad)
        yield "attention_mask", self._stack([[1] * len(ids) for ids, _, _ in rows], length, 0)
        if self.text.token_types:
            yield "token_type_ids", np.zeros((len(rows), length), np.int64)
        yield "entity_ids", self._stack([entities for _, entities, _ in rows], count, self.special["pad"])
        yield "entity_attention_mask", self._stack([[1] * len(entities) for _, entities, _ in rows], count, 0)
        yield "entity_token_type_ids", np.zeros((len(rows), count), np.int64)
        none = [-1] * self.max_mention_length
        tokens = [[([*range(*span)] + none)[: self.max_mention_length] for span in spans] for _, _, spans in rows]
        yield "entity_position_ids", self._stack(tokens, count, none)
        if task == "entity_span_classification":
            yield "entity_start_positions", self._stack([[start for start, _ in spans] for _, _, spans in rows], count, 0)
            yield "entity_end_positions", self._stack([[end - 1 for _, end in spans] for _, _, spans in rows], count, 0)

    def _stack(self, rows: Sequence[list[Any]], length: int, fill: Any) -> np.ndarray:
        left = self.text.padding_side == "left"
        padded = [[*[fill] * (length - len(row) if left else 0), *row, *[fill] * (0 if left else length - len(row))] for row in rows]
        return np.array(padded, np.int64).reshape(len(rows), length, *np.shape(fill))


def kept(lengths: Sequence[int], room: int) -> list[int]:
    """How much of one or two sequences stays where there is room for so much: the longer is cut first, then both in turn, the second first."""
    excess = max(sum(lengths) - room, 0)
    if len(lengths) == 1:
        return [lengths[0] - excess]
    level = min(abs(lengths[0] - lengths[1]), excess)
    both = excess - level
    longer_is_first = lengths[0] > lengths[1]
    return [lengths[0] - both // 2 - level * longer_is_first, lengths[1] - (both - both // 2) - level * (not longer_is_first)]


def _checked(sample: int, text: str, spans: Sequence[Span]) -> list[Span]:
    if not isinstance(text, str):
        raise InputError(f"text {sample} is of type {type(text).__name__}, expected str")
    for number, span in enumerate(spans):
        if len(span) != 2 or not 0 <= span[0] < span[1] <= len(text):
            raise InputError(
                f"span {number} of text {sample} is {tuple(span)}, expected a start before an end, both within the text's {len(text)} characters"
            )
    return [(int(start), int(end)) for start, end in spans]


def _check_task(task: str | None) -> None:
    if task is not None and task not in TASKS:
        raise ConfigError(f"task={task!r}, expected one of {', '.join(TASKS)}{nearest(task, TASKS)}")
