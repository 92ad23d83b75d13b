# ruff: noqa: I001
"""The shared layers that models are built from, and the heads over them."""

from __future__ import annotations

from .attention import Attention, Block, FusedAttention, PostNorm, PreNorm, attend, encode, heads_first, heads_last, key_mask, run_blocks
from .audio import (
    ConvGate,
    FeatureProjection,
    PositionConv,
    Quantizer,
    SampleConv,
    TimeDelay,
    frame_count,
    frames_of,
    least_samples,
    mask_until,
    random_spans,
)
from .audio_heads import Contrastive, FrameClassifier, RecordingClassifier, Transcriber, Unmasked, XVector
from .basic import ACTIVATIONS, Affine, BatchNorm, Conv, DropPath, Dropout, Embedding, GatedMlp, GroupNorm, LayerDrop, LayerNorm, Linear, Mlp, RMSNorm
from .heads import ClassificationHead, LanguageModel, MultipleChoice, NextSentence, Pooler, PreTraining, Projected
from .heads import SequenceClassifier, SequenceSummary, SpanClassifier, SummaryConfig, TokenClassifier, Transform, Vocabulary
from .heads import causal_loss, classification_loss, contrastive_loss, first_state, label_type, last_token, pick, pooled, rest, scored
from .heads import spanned, text_inputs, with_choices
from .pooling import POOLING, SentenceEmbedding
from .positions import RelativeAttention, RelativeBias, Sinusoids
from .text import BERT_WORDS, ROBERTA_WORDS, TEXT_NAMES, DecoderTextConfig, PaddedEmbeddings, RelativeTextConfig, TextConfig, TextEmbeddings
from .text import TextEncoder, encoder_inputs, first_state_head, inputs_without, pair_heads, text_head, text_heads, word_scores
from .vision import Identity, Patches, PixelDecoder, image_classifier, masked_pixel_loss, pair, positions_for, sequence_of, stage_names
from .windows import WindowAttention, pad_to
