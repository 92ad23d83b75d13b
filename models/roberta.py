"""RoBERTa (https://arxiv.org/abs/1907.11692): BERT's encoder, its positions counted from the padding on; also BERTweet and PhoBERT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..ir.authoring import Card, nn


@dataclass(kw_only=True)
class RobertaConfig(nn.RelativeTextConfig):
    """config.json of a RoBERTa checkpoint."""

    vocab_size: int = 50265
    pad_token_id: int | None = 1


class Roberta(nn.TextEncoder):
    """BERT's encoder over embeddings that tell padding by its id."""

    embedding = nn.PaddedEmbeddings


def roberta_words(c: Any, body: Any) -> dict[str, Any]:
    """The parts of its language model, whose activation is always GELU."""
    parts = nn.word_scores(c, body)
    return parts | {"transform": nn.Transform(c.hidden_size, c.embedding_width, nn.ACTIVATIONS["gelu"], c.layer_norm_eps)}


def roberta_card(model_type: str, family: str, base: str = "roberta", *, body: type[nn.TextEncoder] = Roberta, config=RobertaConfig) -> Card:
    """A card in RoBERTa's manner, whose classes begin with `family` and whose body's weights lie under `base`."""
    return Card(
        model_type=model_type,
        config=config,
        base=base,
        heads=nn.text_heads(family, body, base, words=roberta_words, causal=f"{family}ForCausalLM", classifier=nn.first_state_head),
        names={**nn.TEXT_NAMES, **nn.ROBERTA_WORDS},
        also={"lm_head.bias": ["lm_head.decoder.bias"]},
        unused=("*embeddings.position_ids", "*embeddings.token_type_ids"),
    )


CARD = roberta_card("roberta", "Roberta")
