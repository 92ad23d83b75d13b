"""RoFormer (https://arxiv.org/abs/2104.09864): BERT whose queries and keys are turned by their places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.authoring import Card, ConfigError, Param, Value, choice, current, nn, only, ops
from .electra import state_summary


@dataclass(kw_only=True)
class LastSummaryConfig(nn.SummaryConfig):
    """How the last state is summarised for multiple choice, unless a checkpoint says otherwise."""

    summary_type: str = choice("last", ("last", "first", "mean", "cls_index"))
    summary_use_proj: bool = False
    summary_proj_to_labels: bool = only(False)
    summary_first_dropout: float = 0.0
    summary_last_dropout: float = 0.0


@dataclass(kw_only=True)
class RoFormerConfig(nn.DecoderTextConfig, LastSummaryConfig):
    """config.json of a RoFormer checkpoint."""

    vocab_size: int = 50000
    embedding_size: int | None = None
    max_position_embeddings: int = 1536
    rotary_value: bool = False

    def check(self, where: str) -> None:
        """Numbers are turned in pairs."""
        super().check(where)
        if (head := self.hidden_size // self.num_attention_heads) % 2:
            raise ConfigError(f"{where}: hidden_size / num_attention_heads is {head}, expected an even number: numbers are turned in pairs")


class Turns(nn.Sinusoids):
    """The sines, then the cosines, of each place's angles."""

    def __init__(self, rows: int, n: int):
        super().__init__(rows, n)
        by_turns = np.asarray(self.weight.init)
        self.weight = Param(rows, n, init=np.concatenate((by_turns[:, 0::2], by_turns[:, 1::2]), 1), trainable=False)


class RotaryAttention(nn.Attention):
    """Attention whose queries and keys, and perhaps values, are turned by their places."""

    def __init__(self, turns: Turns, values: bool, n: int, heads: int, **options: Any):
        super().__init__(n, heads, **options)
        self.turns, self.values = turns, values

    def project(self, x: Value) -> tuple[Value, Value, Value]:
        """Turned queries and keys, and values."""
        q, k, v = super().project(x)
        most, width = self.turns.weight.shape
        sin, cos = ops.split(self.turns(current().cache.positions(x.shape[1], most)), axis=1, sizes=(width // 2, width // 2))
        turn = lambda y: ops.rotary(y, cos, sin, interleaved=True)
        return turn(q), turn(k), turn(v) if self.values else v


class WordsOnly(nn.TextEmbeddings):
    """Embeddings that know nothing of places."""

    def position_table(self, c: RoFormerConfig, n: int) -> None:
        """None."""


class RoFormer(nn.TextEncoder):
    """BERT's encoder with one table of turns."""

    embedding = WordsOnly

    def __init__(self, c: RoFormerConfig, pool: bool = False):
        self.turns = Turns(c.max_position_embeddings, c.hidden_size // c.num_attention_heads)
        super().__init__(c, pool)

    def attention(self, c: RoFormerConfig, **options: Any) -> RotaryAttention:
        """Attention of a block."""
        options |= {"dropout": c.attention_probs_dropout_prob, "out_dropout": c.hidden_dropout_prob}
        return RotaryAttention(self.turns, c.rotary_value, c.hidden_size, c.num_attention_heads, **options)


def activated_head(c: Any) -> nn.ClassificationHead:
    """A classifier of the first state with the model's own activation."""
    return nn.ClassificationHead(c.hidden_size, c.labels, c.head_dropout, nn.ACTIVATIONS[c.hidden_act])


_OPTIONS = {"classifier": activated_head, "summary": state_summary, "usual": ("input_ids", "attention_mask", "token_type_ids")}

CARD = Card(
    model_type="roformer",
    config=RoFormerConfig,
    base="roformer",
    heads=nn.text_heads("RoFormer", RoFormer, "roformer", inputs=nn.inputs_without("position_ids"), causal="RoFormerForCausalLM", **_OPTIONS),
    names={**nn.TEXT_NAMES, **nn.BERT_WORDS, "project": "embeddings_project", "turns": "encoder.embed_positions", "pool": "sequence_summary"},
    also={"cls.predictions.bias": ["cls.predictions.decoder.bias"]},
)
