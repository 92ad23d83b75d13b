"""BERT (https://arxiv.org/abs/1810.04805): a text encoder with all its heads; a decoder where the configuration says so."""

from __future__ import annotations

from ..ir import layers as nn
from ..ir.card import Card

_USUAL = ("input_ids", "attention_mask", "token_type_ids")


def _pretraining(c: nn.RelativeTextConfig) -> nn.PreTraining:
    body = nn.TextEncoder(c)
    return nn.PreTraining(body, **nn.word_scores(c, body), decide=nn.Linear(c.hidden_size, 2))


CARD = Card(
    model_type="bert",
    config=nn.RelativeTextConfig,
    base="bert",
    heads={
        **nn.text_heads("Bert", nn.TextEncoder, "bert", usual=_USUAL, causal="BertLMHeadModel"),
        "BertForPreTraining": nn.text_head(_pretraining, "bert", usual=_USUAL, labels="i64[batch seq]", next_sentence_label="i64[batch]"),
        "BertForNextSentencePrediction": nn.text_head(
            lambda c: nn.NextSentence(nn.TextEncoder(c), c.hidden_size), "bert", usual=_USUAL, labels="i64[batch]"
        ),
    },
    names={**nn.TEXT_NAMES, **nn.BERT_WORDS},
    also={"cls.predictions.bias": ["cls.predictions.decoder.bias"]},
    unused=("*embeddings.position_ids", "*embeddings.token_type_ids"),
)
