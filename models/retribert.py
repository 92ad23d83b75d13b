"""RetriBERT (https://yjernite.github.io/lfqa.html): BERT as an encoder of questions and of documents that answer them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..ir import layers as nn, ops
from ..ir.card import Card, Head
from ..ir.errors import InputError
from ..ir.graph import Value
from ..ir.layer import Layer
from .dpr import DprConfig


@dataclass(kw_only=True)
class RetriBertConfig(DprConfig):
    """config.json of a RetriBERT checkpoint."""

    num_hidden_layers: int = 8
    share_encoders: bool = True
    projection_dim: int = 128


class RetriBert(Layer):
    """Vectors of questions and of documents, from one encoder or two."""

    def __init__(self, c: RetriBertConfig):
        self.query = nn.TextEncoder(c)
        self.doc = self.query if c.share_encoders else nn.TextEncoder(c)
        self.project_query, self.project_doc = (nn.Linear(c.hidden_size, c.projection_dim, bias=False) for _ in range(2))

    def forward(self, input_ids_query=None, attention_mask_query=None, input_ids_doc=None, attention_mask_doc=None) -> dict[str, Any]:
        """-> question_embeds and answer_embeds [batch projection_dim] of what is given, loss of matching one with the other where both are."""
        if input_ids_query is None and input_ids_doc is None:
            raise InputError("RetriBertModel lacks inputs, expected input_ids_query or input_ids_doc, or both for their loss")

        def embed(encoder: Layer, project: Layer, ids: Value | None, mask: Value | None) -> Value | None:
            return None if ids is None else project(encoder(input_ids=ids, attention_mask=mask)["pooler_output"])

        questions = embed(self.query, self.project_query, input_ids_query, attention_mask_query)
        answers = embed(self.doc, self.project_doc, input_ids_doc, attention_mask_doc)
        out = {"question_embeds": questions, "answer_embeds": answers}
        if questions is None or answers is None:
            return out
        scores = questions @ ops.transpose(answers, perm=(1, 0))
        return {"loss": nn.contrastive_loss(scores, ops.transpose(scores, perm=(1, 0))), **out}


_INPUTS = {
    "input_ids_query": "i64[batch query]",
    "attention_mask_query": "i64[batch query]",
    "input_ids_doc": "i64[batch doc]",
    "attention_mask_doc": "i64[batch doc]",
}

CARD = Card(
    model_type="retribert",
    config=RetriBertConfig,
    heads={"RetriBertModel": Head(RetriBert, _INPUTS, tuple(_INPUTS))},
    names={
        **{f"query.{ours}": f"bert_query.{theirs}" for ours, theirs in nn.TEXT_NAMES.items()},
        **{f"doc.{ours}": f"bert_doc.{theirs}" for ours, theirs in nn.TEXT_NAMES.items()},
        "{query,doc}": "{bert_query,bert_doc}",
    },
    unused=("*embeddings.position_ids",),
)
