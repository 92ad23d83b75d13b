"""BERT for sequence generation (https://arxiv.org/abs/1907.12461): BERT's encoder without segments, as an encoder and as a decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..ir.authoring import Card, nn


@dataclass(kw_only=True)
class BertGenerationConfig(nn.RelativeTextConfig):
    """config.json of a checkpoint of BERT for sequence generation."""

    vocab_size: int = 50358
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    type_vocab_size: ClassVar[int] = 0
    classifier_dropout: ClassVar[None] = None


class Embeddings(nn.TextEmbeddings):
    """Words and places, which are added even where attention also sees distances."""

    def __init__(self, c: BertGenerationConfig):
        super().__init__(c)
        self.absolute = True


class BertGeneration(nn.TextEncoder):
    """The encoder, which never pools."""

    embedding = Embeddings

    def __init__(self, c: BertGenerationConfig):
        super().__init__(c, pool=False)


def _decoder(c: BertGenerationConfig) -> nn.LanguageModel:
    body = BertGeneration(c)
    tied = body.embeddings.words if c.tie_word_embeddings else None
    return nn.LanguageModel(body, nn.Vocabulary(c.hidden_size, c.vocab_size, tied, bias=True), causal=True)


_inputs = nn.inputs_without("token_type_ids")

CARD = Card(
    model_type="bert-generation",
    config=BertGenerationConfig,
    base="bert",
    heads={
        "BertGenerationEncoder": nn.text_head(BertGeneration, "", _inputs),
        "BertGenerationDecoder": nn.text_head(_decoder, "bert", _inputs, labels="i64[batch seq]"),
    },
    names={**nn.TEXT_NAMES, **nn.ROBERTA_WORDS},
    also={"lm_head.bias": ["lm_head.decoder.bias"]},
    unused=("*embeddings.position_ids",),
)
