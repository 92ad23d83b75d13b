"""The shared layers that models are built from."""

from __future__ import annotations

from .attention import Attention, Block, FusedAttention, PostNorm, PreNorm, attend, heads_first, heads_last, key_mask, run_blocks
from .basic import ACTIVATIONS, Affine, BatchNorm, Conv, Dropout, Embedding, GroupNorm, LayerNorm, Linear, Mlp, RMSNorm
from .heads import (
    LanguageModel,
    MultipleChoice,
    Pooler,
    SequenceClassifier,
    SpanClassifier,
    TokenClassifier,
    Transform,
    Vocabulary,
    causal_loss,
    classification_loss,
    label_type,
    last_token,
    on_demand,
    pick,
    text_inputs,
    with_choices,
)

__all__ = [name for name in dir() if not name.startswith("_") and name not in ("annotations", "attention", "basic", "heads")]
