"""Splinter (https://arxiv.org/abs/2101.00438): BERT's encoder, which finds the spans that question tokens ask for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from ..ir.authoring import Card, InputError, Layer, Value, nn, only, ops


@dataclass(kw_only=True)
class SplinterConfig(nn.TextConfig):
    """config.json of a Splinter checkpoint."""

    question_token_id: int = 104
    position_embedding_type: str = only("absolute")
    classifier_dropout: ClassVar[None] = None


class SpanSelection(Layer):
    """How well each word starts, or ends, the span that a question token asks for."""

    def __init__(self, n: int):
        self.query, self.word = (nn.Transform(n, n, ops.gelu, 1e-5) for _ in range(2))
        self.classifier = nn.Linear(n, n, bias=False)

    def forward(self, x: Value, asked: Value) -> Value:
        """x [batch seq n], asked [batch questions n] -> [batch questions seq]."""
        return self.classifier(self.query(asked)) @ ops.rearrange(self.word(x), "batch seq n -> batch n seq")


class Splinter(Layer):
    """The encoder and the selection of spans for the question tokens at given places."""

    def __init__(self, c: Any):
        self.body, self.start, self.end = nn.TextEncoder(c, pool=False), SpanSelection(c.hidden_size), SpanSelection(c.hidden_size)
        self.question, self.pad = c.question_token_id, c.pad_token_id

    def spans(self, questions: Value, attention_mask: Value | None, inputs: Any) -> tuple[dict[str, Any], Value, Value]:
        """The body's outputs, and for questions i64[batch questions] the logits [batch questions seq] of both ends, the lowest for padding."""
        out = self.body(attention_mask=attention_mask, **inputs)
        x = out["last_hidden_state"]
        asked = ops.gather(x, ops.broadcast_to(questions[:, :, None], shape=(*questions.shape, x.shape[2])), axis=1)
        start, end = self.start(x, asked), self.end(x, asked)
        if attention_mask is not None:
            start, end = (ops.where((attention_mask > 0)[:, None, :], y, ops.LOWEST) for y in (start, end))
        return out, start, end


class Answer(Splinter):
    """The answer that each sequence's first question token asks for, or those of all that are told."""

    def forward(self, start_positions=None, end_positions=None, question_positions=None, attention_mask=None, **inputs):
        """-> start_logits and end_logits [batch seq], or [batch questions seq] of question_positions; loss of the first kind."""
        if question_positions is not None:
            if start_positions is not None or end_positions is not None:
                raise InputError("question_positions are given with labels, expected one or the other: the loss is of one question for each sequence")
            return nn.spanned(*self.spans(question_positions, attention_mask, inputs), None, None)
        ids = inputs.get("input_ids")
        if ids is None:
            place = ops.broadcast_to(ops.literal(value=[0]), shape=inputs["inputs_embeds"].shape[:1])
        else:
            place = ops.argmax(ops.cast(ops.equal(ids, self.question), dtype="i64"), axis=1)
        out, start, end = self.spans(place[:, None], attention_mask, inputs)
        return nn.spanned(out, start[:, 0], end[:, 0], start_positions, end_positions)


class PreTraining(Splinter):
    """The spans that question tokens stand for."""

    def forward(self, start_positions=None, end_positions=None, question_positions=None, attention_mask=None, **inputs):
        """-> start_logits and end_logits [batch questions seq], loss where the places [batch questions] of both ends are given."""
        if question_positions is None:
            said = "i64[batch questions], the places of each sequence's question tokens, filled up with pad_token_id"
            raise InputError(f"SplinterForPreTraining lacks input 'question_positions': {said}")
        out, start, end = self.spans(question_positions, attention_mask, inputs)
        last = start.shape[2] - 1
        loss = lambda logits, places: ops.cross_entropy(logits, ops.minimum(ops.maximum(places, 0), last), ignore=self.pad)
        return nn.spanned(out, start, end, start_positions, end_positions, loss)


_PLACES, _QUESTIONS = "i64[batch]", "i64[batch questions]"

CARD = Card(
    model_type="splinter",
    config=SplinterConfig,
    base="splinter",
    heads={
        "SplinterModel": nn.text_head(partial(nn.TextEncoder, pool=False), ""),
        "SplinterForQuestionAnswering": nn.text_head(
            Answer, "splinter", start_positions=_PLACES, end_positions=_PLACES, question_positions=_QUESTIONS
        ),
        "SplinterForPreTraining": nn.text_head(
            PreTraining,
            "splinter",
            usual=("input_ids", "attention_mask", "question_positions"),
            start_positions=_QUESTIONS,
            end_positions=_QUESTIONS,
            question_positions=_QUESTIONS,
        ),
    },
    names={
        **nn.TEXT_NAMES,
        "{start,end}.query.{dense,norm}": "splinter_qass.query_{start,end}_transform.{dense,LayerNorm}",
        "{start,end}.word.{dense,norm}": "splinter_qass.{start,end}_transform.{dense,LayerNorm}",
        "{start,end}.classifier": "splinter_qass.{start,end}_classifier",
    },
    unused=("*embeddings.position_ids",),
)
