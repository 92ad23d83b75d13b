"""The shared layers that models are built from."""

from __future__ import annotations

from .attention import Attention, Block, FusedAttention, PostNorm, PreNorm, attend, heads_first, heads_last, key_mask, run_blocks
from .basic import ACTIVATIONS, Affine, BatchNorm, Conv, Dropout, DropPath, Embedding, GatedMlp, GroupNorm, LayerNorm, Linear, Mlp, RMSNorm
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
    pick,
    rest,
    text_inputs,
    with_choices,
)
from .vision import Identity, Patches, PixelDecoder, masked_pixel_loss, pair, positions_for, sequence_of, stage_names

__all__ = [name for name in dir() if not name.startswith("_") and name not in ("annotations", "attention", "basic", "heads", "vision")]
