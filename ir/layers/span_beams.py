"""Question answering that weighs several beginnings, an end for each, and whether there is an answer (https://arxiv.org/abs/1906.08237)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .. import ops
from ..card import Head
from ..graph import Value, current
from ..layer import Layer
from .basic import LayerNorm, Linear
from .heads import MultipleChoice, Outputs, SequenceClassifier, SequenceSummary, pick, rest
from .text import text_head, text_heads

FORBIDDEN = -1e30  # the score of a place that no answer may start or end at


class SpanBeams(Layer):
    """The best `starts` places where an answer may begin and the best `ends` for each of them, or the loss of the true ones."""

    def __init__(self, body: Layer, n: int, eps: float, starts: int, ends: int):
        self.body, self.starts, self.ends = body, starts, ends
        self.start = Linear(n, 1)
        self.end, self.end_norm, self.end_score = Linear(2 * n, n), LayerNorm(n, eps), Linear(n, 1)
        self.answer, self.answer_score = Linear(2 * n, n), Linear(n, 1, bias=False)

    def forward(self, start_positions=None, end_positions=None, is_impossible=None, cls_index=None, p_mask=None, **inputs) -> Outputs:
        """-> start_top_log_probs and _index [batch starts], end_top_log_probs and _index [batch ends*starts], cls_logits [batch]; or loss."""
        out = self.body(**inputs)
        x = out["last_hidden_state"]
        start = _allowed(ops.squeeze(self.start(x), -1), p_mask)
        if start_positions is None or end_positions is None:
            return {**self._search(x, start, cls_index, p_mask), **rest(out)}
        state = pick(x, start_positions)
        ends = ops.squeeze(self._end_scores(x, state[:, None], p_mask), 1)
        loss = (ops.cross_entropy(start, start_positions) + ops.cross_entropy(ends, end_positions)) / 2.0
        if cls_index is not None and is_impossible is not None:
            loss = loss + ops.binary_cross_entropy(self._answerable(x, state, cls_index), is_impossible) * 0.5
        return {"loss": loss, **rest(out)}

    def _search(self, x: Value, start: Value, cls_index: Value | None, p_mask: Value | None) -> Outputs:
        batch, length, n = x.shape
        current().limit(max(self.starts, self.ends) - length, 0, "as many places must be there as start_n_top and end_n_top ask for")
        likely = ops.softmax(start)
        best, places = ops.top_k(likely, k=self.starts)
        states = ops.gather(x, ops.broadcast_to(places[:, :, None], shape=(batch, self.starts, n)), axis=1)
        ends = ops.top_k(ops.softmax(self._end_scores(x, states, p_mask)), k=self.ends)
        best_end, end_places = (ops.view(ops.transpose(y, perm=(0, 2, 1)), (batch, self.ends * self.starts)) for y in ends)
        return {
            "start_top_log_probs": best,
            "start_top_index": places,
            "end_top_log_probs": best_end,
            "end_top_index": end_places,
            "cls_logits": self._answerable(x, ops.squeeze(likely[:, None] @ x, 1), cls_index),
        }

    def _end_scores(self, x: Value, starts: Value, p_mask: Value | None) -> Value:
        """[batch starts seq] of x [batch seq n] and the states [batch starts n] of the beginnings; each is projected once, not once per pair."""
        n = x.shape[2]
        here, there = ops.linear(x, self.end.weight[:, :n]), ops.linear(starts, self.end.weight[:, n:], self.end.bias)
        scores = self.end_score(self.end_norm(ops.tanh(here[:, None] + there[:, :, None])))
        return _allowed(ops.squeeze(scores, -1), p_mask if p_mask is None else p_mask[:, None])

    def _answerable(self, x: Value, state: Value, cls_index: Value | None) -> Value:
        """[batch]: how likely there is no answer, by the state of the beginning [batch n] and the one at `cls_index`, or the last."""
        summary = x[:, -1] if cls_index is None else pick(x, cls_index)
        return ops.squeeze(self.answer_score(ops.tanh(self.answer(ops.concat(state, summary, axis=1)))), -1)


def _allowed(scores: Value, p_mask: Value | None) -> Value:
    return scores if p_mask is None else ops.where(p_mask > 0.5, FORBIDDEN, scores)


class StateSummary(SequenceSummary):
    """A sequence summary as heads pool by it."""

    def forward(self, outputs: Outputs, inputs: Any) -> Value:
        """A body's outputs -> [batch labels or n]."""
        return super().forward(outputs["last_hidden_state"])


def summary_heads(
    family: str, body: Any, model: str, *, inputs: Any, choices: Any, words: Any, decide: Any, score: Any, beams: str = ""
) -> dict[str, Head]:
    """The heads of XLM and XLNet, by the reference's class names, which begin with `family`; the language model's ends with `model`.

    `decide(c)` and `score(c)` make a decision and a choice of the sequence's summary, `words(c, body)` the parts of the language model; the weights
    of the heads with beams lie under `beams`. `inputs(c)` and, for multiple choice, `choices(c)` are the body's inputs.
    """
    plain = text_heads(family, body, "transformer", inputs=inputs, words=words)
    summary = lambda c: StateSummary(c, c.hidden_size, c.labels)
    classify = lambda c: SequenceClassifier(body(c), decide(c), c, pool=summary(c))
    choose = lambda c: MultipleChoice(body(c), score(c), pool=summary(c))
    search = lambda c: SpanBeams(body(c), c.hidden_size, c.layer_norm_eps, c.start_n_top, c.end_n_top)
    named, place = {"classifier": "logits_proj"}, "i64[batch]"
    labels = dict.fromkeys(("start_positions", "end_positions", "cls_index"), place) | {"is_impossible": "f32[batch]", "p_mask": "f32[batch seq]"}
    found = {ours: beams + theirs for ours, theirs in _NAMES.items()}
    return {
        f"{family}Model": plain[f"{family}Model"],
        family + model: plain[f"{family}ForMaskedLM"],
        f"{family}ForSequenceClassification": replace(plain[f"{family}ForSequenceClassification"], build=classify, names=named),
        f"{family}ForMultipleChoice": replace(text_head(choose, "transformer", choices, labels=place), names=named),
        f"{family}ForTokenClassification": plain[f"{family}ForTokenClassification"],
        f"{family}ForQuestionAnsweringSimple": plain[f"{family}ForQuestionAnswering"],
        f"{family}ForQuestionAnswering": replace(text_head(search, "transformer", inputs, **labels), names=found),
    }


_NAMES = {
    "start": "start_logits.dense",
    "{end,end_norm,end_score}": "end_logits.{dense_0,LayerNorm,dense_1}",
    "{answer,answer_score}": "answer_class.{dense_0,dense_1}",
}
