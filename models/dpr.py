"""DPR (https://arxiv.org/abs/2004.04906): BERT as an encoder of questions, an encoder of passages, and a reader of passages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..ir.authoring import Card, ConfigError, Head, Layer, Value, nn, only, ops


@dataclass(kw_only=True)
class DprConfig(nn.RelativeTextConfig):
    """config.json of a DPR checkpoint."""

    projection_dim: int = 0
    is_decoder: bool = only(False)
    add_cross_attention: ClassVar[bool] = False
    classifier_dropout: ClassVar[None] = None


class Encoder(Layer):
    """BERT's first state, projected where there is a `projection_dim`."""

    def __init__(self, c: DprConfig):
        self.bert = nn.TextEncoder(c, pool=False)
        self.projection = nn.Linear(c.hidden_size, c.projection_dim) if c.projection_dim > 0 else None

    def forward(self, **inputs: Value | None) -> dict[str, Any]:
        """-> last_hidden_state [batch seq n], pooler_output [batch projection_dim or n]."""
        out = self.bert(**inputs)
        first = out["last_hidden_state"][:, 0]
        return out | {"pooler_output": first if self.projection is None else self.projection(first)}


class Retriever(Layer):
    """A vector of a text; without a mask, padding is told by its id."""

    def __init__(self, c: DprConfig):
        self.body, self.pad = Encoder(c), c.pad_token_id

    def forward(self, input_ids: Value | None = None, attention_mask: Value | None = None, **inputs: Value | None) -> dict[str, Any]:
        """-> pooler_output [batch projection_dim or n]."""
        if attention_mask is None and input_ids is not None and self.pad is not None:
            attention_mask = ops.cast(~ops.equal(input_ids, self.pad), dtype="i64")
        out = self.body(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        return {"pooler_output": out["pooler_output"], **nn.rest(out)}


class Reader(Layer):
    """Where a passage holds an answer, and whether it does."""

    def __init__(self, c: DprConfig):
        if c.projection_dim not in (0, c.hidden_size):
            raise ConfigError(f"projection_dim is {c.projection_dim}, expected 0 or hidden_size={c.hidden_size}: a reader reads states as they are")
        self.body, self.qa_outputs, self.qa_classifier = Encoder(c), nn.Linear(c.hidden_size, 2), nn.Linear(c.hidden_size, 1)

    def forward(self, **inputs: Value | None) -> dict[str, Any]:
        """-> start_logits and end_logits [batch seq], relevance_logits [batch]."""
        out = self.body(**inputs)
        x = out["last_hidden_state"]
        both, relevance = self.qa_outputs(x), self.qa_classifier(x[:, 0])
        return {"start_logits": both[..., 0], "end_logits": both[..., 1], "relevance_logits": ops.squeeze(relevance, -1), **nn.rest(out)}


def _retriever(prefix: str) -> Head:
    return nn.text_head(Retriever, prefix, nn.inputs_without("position_ids"), ("input_ids", "attention_mask", "token_type_ids"))


CARD = Card(
    model_type="dpr",
    config=DprConfig,
    heads={
        "DPRContextEncoder": _retriever("ctx_encoder"),
        "DPRQuestionEncoder": _retriever("question_encoder"),
        "DPRReader": nn.text_head(Reader, "span_predictor.encoder", nn.inputs_without("position_ids", "token_type_ids")),
    },
    names={
        **{f"bert.{ours}": f"bert_model.{theirs}" for ours, theirs in nn.TEXT_NAMES.items()},
        "projection": "encode_proj",
        "{qa_outputs,qa_classifier}": "span_predictor.{qa_outputs,qa_classifier}",
    },
    unused=("*embeddings.position_ids", "*bert_model.pooler.*"),
)
