"""Answers of the heads that read text: tokens with labels, spans, words for a mask, next words, choices."""

from __future__ import annotations

import numpy as np

from ...ir.errors import InputError, UsageError
from .results import Results, Row, best, softmax

LONGEST_ANSWER = 15  # tokens; the limit of the reference's question-answering pipeline
IMPOSSIBLE = -10000.0


def token_classification(run: Results) -> list[Row]:
    """Each token with its most likely label, its score and its place in the text; special tokens and tokens labelled "O" are left out."""
    scores = softmax(run.output("logits", 3))
    rows = []
    for row, sample, encoding, positions in run.tokens():
        for index, position in enumerate(positions):
            label = int(scores[row, position].argmax())
            if encoding.special_tokens_mask[index] or run.label(label) == "O":
                continue
            start, end = encoding.offsets[index]
            piece = {"input": sample, "text": run.texts[sample][encoding.sequence_ids[index] or 0][start:end]}  # type: ignore[index]
            rows.append(piece | {"label": run.label(label), "score": float(scores[row, position, label]), "start": start, "end": end})
    return rows


def question_answering(run: Results) -> list[Row]:
    """The best spans of the context (the pair) that answer the question (the text), with scores and offsets in characters."""
    starts, ends = run.output("start_logits", 2), run.output("end_logits", 2)
    found: dict[int, dict[str, Row]] = {}
    for row, sample, encoding, positions in run.tokens():
        context = run.texts[sample][1]
        if context is None:
            raise InputError(f"text {sample} is a question without a context\n  pass the context to search as pair=")
        allowed = _allowed(run, encoding)
        for first, last, score in _spans(starts[row, positions], ends[row, positions], allowed, 2 * run.top_k + 10):
            start, end = _characters(encoding, first, last)
            answer = context[start:end]
            same = found.setdefault(sample, {}).setdefault(answer.lower(), {"answer": answer, "score": 0.0, "start": start, "end": end})
            same["score"] += score
    rows = []
    for sample, answers in found.items():
        ranked = sorted(answers.values(), key=lambda answer: -answer["score"])
        rows += [{"input": sample} | answer for answer in ranked[: run.top_k]]
    return rows


def _allowed(run: Results, encoding) -> np.ndarray:
    """The tokens that compete for an answer: the context, and the classification token, which stands for "no answer"."""
    none = run.text.token_id("cls_token")
    return np.array([part == 1 or number == none for part, number in zip(encoding.sequence_ids, encoding.ids, strict=True)])


def _spans(start: np.ndarray, end: np.ndarray, allowed: np.ndarray, count: int) -> list[tuple[int, int, float]]:
    """The likeliest (first token, last token, score), best first; a span that begins before its end or at the first token is none."""
    start, end = (softmax(np.where(allowed, logits, IMPOSSIBLE)) for logits in (start, end))
    start[0] = end[0] = 0.0
    scores = np.tril(np.triu(np.outer(start, end)), LONGEST_ANSWER - 1)
    order = best(scores.ravel(), count)
    pairs = ((int(i) // len(end), int(i) % len(end)) for i in order if scores.ravel()[i] > 0)
    return [(first, last, float(scores[first, last])) for first, last in pairs if allowed[first] and allowed[last]]


def _characters(encoding, first: int, last: int) -> tuple[int, int]:
    """The characters of a span of tokens, widened to whole words."""
    words = encoding.word_ids[first], encoding.word_ids[last]
    places = [None if word is None else encoding.word_to_chars(word, 1) for word in words]
    start, end = places
    return (start or encoding.offsets[first])[0], (end or encoding.offsets[last])[1]


def masked_lm(run: Results, name: str = "logits") -> list[Row]:
    """The likeliest tokens at each mask, with their scores and the text that they complete."""
    mask, token = run.text.token_id("mask_token"), run.text.special.get("mask_token")
    if mask is None:
        raise UsageError(f"the tokenizer has no mask token, which a masked language model fills\n  tokenizer: {run.text.folder}")
    logits = run.output(name, 3)
    rows = []
    for row, ids in enumerate(run.inputs["input_ids"]):
        places = np.flatnonzero(ids == mask)
        if not len(places):
            raise InputError(f"text {row} has nothing to fill in, expected at least one {token}")
        for place in places:
            rows += _fillings(run, row, ids, int(place), softmax(logits[row, place]), len(places) == 1)
    return rows


def _fillings(run: Results, row: int, ids: np.ndarray, place: int, scores: np.ndarray, single: bool) -> list[Row]:
    rows = []
    for token in _tokens(run, scores):
        filled = ids.copy()
        filled[place] = token["id"]
        text = run.text.decode(filled[run.live(row, len(ids))], skip_special_tokens=single)  # other masks are special tokens and must stay visible
        rows.append({"input": row, "position": place} | token | {"text": text})
    return rows


def language_model(run: Results) -> list[Row]:
    """The likeliest next tokens after each text, or, where the outputs are generated `sequences`, their text."""
    if "sequences" in run.outputs:
        return [{"input": row, "text": run.text.decode(ids)} for row, ids in enumerate(np.asarray(run.outputs["sequences"]))]
    logits = run.output("logits", 3)
    mask = run.inputs.get("decoder_attention_mask") if "decoder_input_ids" in run.inputs else run.inputs.get("attention_mask")
    rows = []
    for row, positions in enumerate(logits):
        last = int(np.flatnonzero(mask[row])[-1]) if mask is not None and mask.shape == logits.shape[:2] else -1
        rows += [{"input": row} | token for token in _tokens(run, softmax(positions[last]))]
    return rows


def _tokens(run: Results, scores: np.ndarray) -> list[Row]:
    """The likeliest tokens of a vocabulary."""
    return [{"token": run.text.decode([int(i)], False), "id": int(i), "score": float(scores[i])} for i in best(scores, run.top_k)]


def next_sentence(run: Results, name: str = "logits") -> list[Row]:
    """How likely each pair's second text follows its first."""
    scores = softmax(run.output(name, 2))
    names = ("is next", "is not next")
    return [{"input": row, "label": names[i], "score": float(pair[i])} for row, pair in enumerate(scores) for i in best(pair, 2)]


def multiple_choice(run: Results, name: str = "logits") -> list[Row]:
    """How likely each choice continues the text."""
    scores = softmax(run.output(name, 2))
    rows = []
    for row, choices in enumerate(scores):
        for number in best(choices, run.top_k):
            place = row * scores.shape[1] + int(number)
            text = run.texts[place][1] if len(run.texts) == scores.size else None
            rows.append({"input": row, "choice": int(number), "text": text or "", "score": float(choices[number])})
    return rows


def pretraining(run: Results) -> list[Row]:
    """Of a model with both of BERT's pretraining heads: whether the second text follows, and the tokens at the masks where there are any."""
    rows = next_sentence(run, "seq_relationship_logits")
    mask = run.text.token_id("mask_token")
    filled = [row for row in range(len(run.inputs["input_ids"])) if (run.inputs["input_ids"][row] == mask).any()]
    return rows + (masked_lm(run, "prediction_logits") if len(filled) == len(run.inputs["input_ids"]) else [])


def double_heads(run: Results) -> list[Row]:
    """How likely each choice continues the text, by the multiple-choice head of a model that has a language model too."""
    return multiple_choice(run, "mc_logits")
