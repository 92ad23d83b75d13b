"""Answers of the heads that read text: words for a mask, spans, choices, similar texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...ir.errors import InputError, UsageError
from .results import Results, Row, best, cosines, softmax

IMPOSSIBLE = -10000.0  # the logit of a token that cannot be part of an answer
NEVER = 1e6  # the score of "no answer" before any row was seen


def fill_mask(run: Results, *, top_k: int = 5, targets: str | Sequence[str] | None = None) -> list[Any]:
    """The likeliest tokens at the mask, with the text that they complete; a list of such lists where there are several masks.

    `targets` are the words among which to choose; of one that is no single token the first piece counts.
    """
    mask, token = run.text.token_id("mask_token"), run.text.special.get("mask_token")
    if mask is None:
        raise UsageError(f"the tokenizer has no mask token, which a masked language model fills\n  tokenizer: {run.text.folder}")
    logits = run.output(run.first("logits", "prediction_logits"), 2)
    ids = run.given[0]["input_ids"]
    places = np.flatnonzero(ids == mask)
    if not len(places):
        raise InputError(f"the text has nothing to fill in, expected at least one {token}")
    chosen = None if targets is None else _targets(run, [targets] if isinstance(targets, str) else targets)
    found = [_fillings(run, ids, int(place), softmax(logits[place]), top_k, chosen, len(places) == 1) for place in places]
    return found[0] if len(found) == 1 else found


def _fillings(run: Results, ids: np.ndarray, place: int, scores: np.ndarray, top_k: int, chosen: list[int] | None, single: bool) -> list[Row]:
    numbers = np.arange(len(scores)) if chosen is None else np.array(chosen)
    pad = run.text.token_id("pad_token")
    rows = []
    for number in numbers[best(scores[numbers], top_k)]:
        filled = ids.copy()
        filled[place] = number
        text = run.text.decode(filled[filled != pad], skip_special_tokens=single)  # other masks are special tokens and must stay visible
        rows.append({"score": float(scores[number]), "token": int(number), "token_str": run.text.decode([int(number)], False), "sequence": text})
    return rows


def _targets(run: Results, words: Sequence[str]) -> list[int]:
    """The token of each word, or its first piece."""
    found = []
    for word in words:
        number = run.text.tokenizer.token_to_id(word)
        pieces = [number] if number is not None else run.text.tokenizer.encode(word, add_special_tokens=False).ids
        found += pieces[:1]
    if not found:
        raise InputError(f"targets are {list(words)}, expected at least one word that the tokenizer knows a piece of")
    return sorted(set(found))


# ---- spans --------------------------------------------------------------------------------------


def question_answering(
    run: Results, *, top_k: int = 1, max_answer_len: int = 15, handle_impossible_answer: bool = False, align_to_words: bool = True
) -> Row | list[Row]:
    """The best spans of the context that answer the question, with scores and offsets in characters; the one best span as a record by itself.

    Spans are of `max_answer_len` tokens at most and widened to whole words if `align_to_words`. With `handle_impossible_answer` the empty answer
    competes, with the score that the model gives to "not here".
    """
    for name, value in {"top_k": top_k, "max_answer_len": max_answer_len}.items():
        if value < 1:
            raise UsageError(f"{name} is {value}, expected at least 1")
    context, part = run.sample["context"], int(run.text.padding_side == "right")
    found: dict[str, Row] = {}
    none = NEVER
    for row in range(len(run.made)):
        encoding = run.encoding(row)
        start, end, allowed = _chances(run, row, part)
        none = min(none, float(start[0] * end[0]))
        start[0] = end[0] = 0.0
        for first, last, score in _spans(start, end, allowed, 2 * top_k + 10 if align_to_words else top_k, max_answer_len):
            begin, stop = _characters(encoding, first, last, part, align_to_words)
            answer = context[begin:stop]
            found.setdefault(answer.lower(), {"score": 0.0, "start": begin, "end": stop, "answer": answer})["score"] += score
    ranked = [*found.values(), *([{"score": none, "start": 0, "end": 0, "answer": ""}] if handle_impossible_answer else [])]
    ranked = sorted(ranked, key=lambda answer: -answer["score"])[:top_k]
    return ranked[0] if len(ranked) == 1 else ranked


def _chances(run: Results, row: int, part: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How likely an answer starts and ends at each token of a row, and which tokens compete: the context, and the one that stands for "no answer"."""
    encoding, none = run.encoding(row), run.text.token_id("cls_token")
    allowed = np.array([side == part or number == none for side, number in zip(encoding.sequence_ids, encoding.ids, strict=True)])
    start, end = (softmax(np.where(allowed, run.output(name, 1, row), IMPOSSIBLE)) for name in ("start_logits", "end_logits"))
    return start, end, allowed


def _spans(start: np.ndarray, end: np.ndarray, allowed: np.ndarray, count: int, longest: int) -> list[tuple[int, int, float]]:
    """The likeliest (first token, last token, score), best first; a span that ends before it begins is none."""
    scores = np.tril(np.triu(np.outer(start, end)), longest - 1)
    order = best(scores.ravel(), count)
    pairs = ((int(i) // len(end), int(i) % len(end)) for i in order if scores.ravel()[i] > 0)
    return [(first, last, float(scores[first, last])) for first, last in pairs if allowed[first] and allowed[last]]


def _characters(encoding: Any, first: int, last: int, part: int, words: bool) -> tuple[int, int]:
    """The characters of a span of tokens, widened to whole words where both its ends lie in some."""
    if words:
        inside = encoding.word_ids[first], encoding.word_ids[last]
        places = [None if word is None else encoding.word_to_chars(word, part) for word in inside]
        if all(places):
            return places[0][0], places[1][1]  # type: ignore[index]
    return encoding.offsets[first][0], encoding.offsets[last][1]


# ---- texts that belong together -----------------------------------------------------------------


def next_sentence(run: Results) -> list[Row]:
    """How likely the second text follows the first."""
    scores = softmax(run.output(run.first("logits", "seq_relationship_logits"), 1))
    names = ("is next", "is not next")
    return [{"label": names[i], "score": float(scores[i])} for i in best(scores, 2)]


def multiple_choice(run: Results, *, top_k: int | None = None) -> list[Row]:
    """How likely each choice continues the text, best first."""
    scores = softmax(run.output(run.first("mc_logits", "logits"), 1))
    choices = run.sample["choices"]
    return [{"score": float(scores[i]), "choice": int(i), "text": choices[i]} for i in best(scores, top_k)]


def zero_shot(run: Results, *, multi_label: bool = False) -> Row:
    """How well each candidate label fits, by a model that says whether one text follows from another."""
    logits = np.stack([run.output("logits", 1, row) for row in range(len(run.made))])
    entails = entailment(run.config, logits.shape[1])
    if multi_label or len(logits) == 1:
        scores = softmax(logits[:, [-1 if entails == 0 else 0, entails]])[:, 1]
    else:
        scores = softmax(logits[:, entails])
    order, labels = np.argsort(scores)[::-1], run.sample["candidate_labels"]
    return {"sequence": run.sample["text"], "labels": [labels[i] for i in order], "scores": [float(scores[i]) for i in order]}


def entailment(config: Mapping[str, Any], classes: int) -> int:
    """The class that says that a text follows; without one of such a name the last."""
    names = {int(i): str(label) for i, label in (config.get("id2label") or {}).items()}
    names |= {int(i): str(label) for label, i in (config.get("label2id") or {}).items()}
    return next((i for i, label in sorted(names.items()) if label.lower().startswith("entail")), classes - 1)


def sentence_similarity(run: Results) -> list[float]:
    """The cosine of the source sentence's embedding with each other sentence's."""
    vectors = np.stack([run.output("sentence_embedding", 1, row) for row in range(len(run.made))])
    return [float(x) for x in cosines(vectors[:1], vectors[1:])[0]]
