"""BERT (https://arxiv.org/abs/1810.04805): a text encoder with all its heads; a decoder where the configuration says so."""

from __future__ import annotations

from ..ir.authoring import Card, nn

_USUAL = ("input_ids", "attention_mask", "token_type_ids")


CARD = Card(
    model_type="bert",
    config=nn.RelativeTextConfig,
    base="bert",
    heads={
        **nn.text_heads("Bert", nn.TextEncoder, "bert", usual=_USUAL, causal="BertLMHeadModel"),
        **nn.pair_heads("Bert", nn.TextEncoder, "bert", usual=_USUAL),
    },
    names={**nn.TEXT_NAMES, **nn.BERT_WORDS},
    also={"cls.predictions.bias": ["cls.predictions.decoder.bias"]},
    unused=("*embeddings.position_ids", "*embeddings.token_type_ids"),
)
