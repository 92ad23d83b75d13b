"""ELECTRA (https://arxiv.org/abs/2003.10555): BERT's encoder over narrower embeddings, trained to tell words that were replaced."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from ..ir.authoring import Card, Layer, Value, choice, nn, only, ops
from .roberta import roberta_words


@dataclass(kw_only=True)
class ElectraConfig(nn.RelativeTextConfig, nn.SummaryConfig):
    """config.json of an ELECTRA checkpoint."""

    embedding_size: int = 128
    hidden_size: int = 256
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    summary_activation: str | None = choice("gelu", (None, *nn.ACTIVATIONS))
    summary_proj_to_labels: bool = only(False)
    summary_first_dropout: float = 0.0


class Discriminator(Layer):
    """Whether each word was replaced."""

    def __init__(self, c: ElectraConfig):
        self.body = nn.TextEncoder(c, pool=False)
        self.predictions = nn.ClassificationHead(c.hidden_size, 1, 0.0, nn.ACTIVATIONS[c.hidden_act])

    def forward(self, labels: Value | None = None, attention_mask: Value | None = None, **inputs: Value | None) -> dict[str, Any]:
        """-> logits [batch seq], loss over words that are not padding where labels (1: replaced) are given."""
        out = self.body(attention_mask=attention_mask, **inputs)
        logits = ops.squeeze(self.predictions(out["last_hidden_state"]), -1)

        def loss(logits: Value, labels: Value) -> Value:
            terms = ops.softplus(logits) - logits * ops.cast(labels, dtype="f32")
            if attention_mask is None:
                return ops.mean(terms, axis=(0, 1))
            live = ops.cast(ops.equal(attention_mask, 1), dtype="f32")
            return ops.sum(terms * live, axis=(0, 1)) / ops.sum(live, axis=(0, 1))

        return nn.scored(out, logits, labels, loss)


class Summary(nn.SequenceSummary):
    """A sequence summary of a body's outputs."""

    def forward(self, outputs: dict[str, Any], inputs: Any) -> Value:
        """[batch n]."""
        return super().forward(outputs["last_hidden_state"])


def _classifier(c: ElectraConfig) -> nn.ClassificationHead:
    return nn.ClassificationHead(c.hidden_size, c.labels, c.head_dropout, ops.gelu)


def state_summary(c: Any) -> Summary:
    """The summary of states that multiple choice looks at."""
    return Summary(c, c.hidden_size)


_OPTIONS = {"words": roberta_words, "classifier": _classifier, "summary": state_summary}

CARD = Card(
    model_type="electra",
    config=ElectraConfig,
    base="electra",
    heads={
        **nn.text_heads("Electra", partial(nn.TextEncoder, pool=False), "electra", causal="ElectraForCausalLM", **_OPTIONS),
        "ElectraForPreTraining": nn.text_head(Discriminator, "electra", labels="i64[batch seq]"),
    },
    names={
        **nn.TEXT_NAMES,
        "project": "embeddings_project",
        "transform.{dense,norm}": "generator_predictions.{dense,LayerNorm}",
        "vocabulary": "generator_lm_head",
        "predictions.{dense,out_proj}": "discriminator_predictions.{dense,dense_prediction}",
        "pool": "sequence_summary",
    },
    unused=("*embeddings.position_ids", "*embeddings.token_type_ids"),
)
