"""Answers of the heads that label tokens: each by itself, or as the entities that they make up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ...ir.errors import UsageError, nearest
from .results import Results, Row, softmax

# of the scores [tokens labels] of a word's tokens: those by which the word is labelled
STRATEGIES: dict[str, Callable[[np.ndarray], np.ndarray] | None] = {
    "none": None,
    "simple": None,
    "first": lambda scores: scores[0],
    "average": lambda scores: scores.mean(axis=0),
    "max": lambda scores: scores[scores.max(axis=1).argmax()],
}


def token_classification(run: Results, *, aggregation_strategy: str = "none", ignore_labels: Sequence[str] = ("O",)) -> list[Row]:
    """The tokens with their labels, scores and places in the text; with an `aggregation_strategy` the entities that they make up.

    "simple" joins tokens that follow each other by their labels (B- begins, I- continues); "first", "average" and "max" first make the tokens of a
    word agree. `ignore_labels` are left out.
    """
    if aggregation_strategy not in STRATEGIES:
        raise UsageError(f"aggregation_strategy {aggregation_strategy!r} is unknown{nearest(aggregation_strategy, STRATEGIES)}")
    found = []
    for row in range(len(run.made)):
        pieces = _pieces(run, row)
        if agree := STRATEGIES[aggregation_strategy]:
            pieces = [_word(run, word, agree) for word in _words(pieces)]
        rows = [_labelled(run, piece) for piece in pieces]
        rows = rows if aggregation_strategy == "none" else [_entity(run, rows) for rows in _groups(rows)]
        found += [r for r in rows if r.get("entity", r.get("entity_group")) not in ignore_labels]
    return found if len(run.made) == 1 else _longest(found)


def _pieces(run: Results, row: int) -> list[Row]:
    """The tokens of a row that are no special ones, with the scores of all labels."""
    encoding, text = run.encoding(row), run.inputs.texts[0]
    scores = softmax(run.output("logits", 2, row))
    whole_words = bool(getattr(run.text.tokenizer.model, "continuing_subword_prefix", None))
    unknown = run.text.token_id("unk_token")
    pieces = []
    for index, (start, end) in enumerate(encoding.offsets):
        if encoding.special_tokens_mask[index]:
            continue
        sentence = text[encoding.sequence_ids[index] or 0] or ""
        word, told = encoding.tokens[index], sentence[start:end]
        continues = len(word) != len(told) if whole_words else start > 0 and " " not in sentence[start - 1 : start + 1]
        if encoding.ids[index] == unknown:
            word, continues = told, False
        pieces.append({"word": word, "scores": scores[index], "start": start, "end": end, "index": index, "continues": continues})
    return pieces


def _words(pieces: list[Row]) -> list[list[Row]]:
    words: list[list[Row]] = []
    for piece in pieces:
        if words and piece["continues"]:
            words[-1].append(piece)
        else:
            words.append([piece])
    return words


def _word(run: Results, pieces: list[Row], agree: Callable[[np.ndarray], np.ndarray]) -> Row:
    scores = agree(np.stack([piece["scores"] for piece in pieces]))
    return {"word": _joined(run, pieces), "scores": scores, "start": pieces[0]["start"], "end": pieces[-1]["end"]}


def _labelled(run: Results, piece: Row) -> Row:
    number = int(piece["scores"].argmax())
    place = {k: piece[k] for k in ("index", "word", "start", "end") if k in piece}
    return {"entity": run.label(number), "score": float(piece["scores"][number]), **place}


def _groups(rows: list[Row]) -> list[list[Row]]:
    """Neighbours of one kind; a row whose label begins an entity starts anew."""
    groups: list[list[Row]] = []
    for row in rows:
        if groups and _kind(row) == _kind(groups[-1][-1]) and not row["entity"].startswith("B-"):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _kind(row: Row) -> str:
    label = row["entity"]
    return label[2:] if label[:2] in ("B-", "I-") else label


def _entity(run: Results, rows: list[Row]) -> Row:
    score = float(np.mean([row["score"] for row in rows]))
    group = rows[0]["entity"].split("-", 1)[-1]
    return {"entity_group": group, "score": score, "word": _joined(run, rows), "start": rows[0]["start"], "end": rows[-1]["end"]}


def _joined(run: Results, rows: Iterable[Row]) -> str:
    """The text of tokens, as the tokenizer puts them together."""
    decoder: Any = run.text.tokenizer.decoder
    words = [row["word"] for row in rows]
    return decoder.decode(words) if decoder is not None else " ".join(words)


def _longest(rows: list[Row]) -> list[Row]:
    """Of entities that overlap, found in several rows of one text, the longest; of equally long ones the likeliest."""
    kept: list[Row] = []
    for row in sorted(rows, key=lambda r: r["start"]):
        if not kept or not kept[-1]["start"] <= row["start"] < kept[-1]["end"]:
            kept.append(row)
        elif (row["end"] - row["start"], row["score"]) > (kept[-1]["end"] - kept[-1]["start"], kept[-1]["score"]):
            kept[-1] = row
    return kept
