"""Data2Vec for text (https://arxiv.org/abs/2202.03555): RoBERTa, trained otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from .roberta import RobertaConfig, roberta_card


@dataclass(kw_only=True)
class Data2VecTextConfig(RobertaConfig):
    """config.json of a Data2Vec checkpoint for text."""

    vocab_size: int = 30522


CARD = roberta_card("data2vec-text", "Data2VecText", "data2vec_text", config=Data2VecTextConfig)
