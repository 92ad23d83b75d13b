"""Wav2Vec2 (https://arxiv.org/abs/2006.11477): speech from raw samples, in both its normalisation styles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..ir.authoring import Card, Config, ConfigError, Head, Layer, Param, Value, choice, collecting, current, inputs_of, nn, ops, symbol


@dataclass(kw_only=True)
class Wav2Vec2Config(Config):
    """config.json of a Wav2Vec2 checkpoint."""

    vocab_size: int = 32
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = choice("gelu", nn.ACTIVATIONS)
    layer_norm_eps: float = 1e-5
    feat_extract_norm: str = choice("group", ("group", "layer"))
    feat_extract_activation: str = choice("gelu", nn.ACTIVATIONS)
    conv_dim: list[int] = field(default_factory=lambda: [512] * 7)
    conv_stride: list[int] = field(default_factory=lambda: [5, 2, 2, 2, 2, 2, 2])
    conv_kernel: list[int] = field(default_factory=lambda: [10, 3, 3, 3, 3, 2, 2])
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    do_stable_layer_norm: bool = False
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    hidden_dropout: float = 0.1
    activation_dropout: float = 0.1
    attention_dropout: float = 0.1
    feat_proj_dropout: float = 0.0
    feat_quantizer_dropout: float = 0.0
    final_dropout: float = 0.1
    layerdrop: float = 0.1
    num_codevectors_per_group: int = 320
    num_codevector_groups: int = 2
    contrastive_logits_temperature: float = 0.1
    codevector_dim: int = 256
    proj_codevector_dim: int = 256
    diversity_loss_weight: float = 0.1
    ctc_loss_reduction: str = choice("sum", ("sum", "mean"))
    ctc_zero_infinity: bool = False
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256
    tdnn_dim: list[int] = field(default_factory=lambda: [512, 512, 512, 512, 1500])
    tdnn_kernel: list[int] = field(default_factory=lambda: [5, 3, 3, 1, 1])
    tdnn_dilation: list[int] = field(default_factory=lambda: [1, 2, 3, 1, 1])
    xvector_output_dim: int = 512
    pad_token_id: int | None = 0
    add_adapter: bool = False
    adapter_kernel_size: int = 3
    adapter_stride: int = 2
    num_adapter_layers: int = 3
    output_hidden_size: int | None = None
    adapter_attn_dim: int | None = None

    def check(self, where: str) -> None:
        """Convolutions have a width, stride and kernel each."""
        super().check(where)
        if not len(self.conv_dim) == len(self.conv_stride) == len(self.conv_kernel):
            sizes = f"{len(self.conv_dim)}, {len(self.conv_stride)} and {len(self.conv_kernel)}"
            raise ConfigError(f"{where}: conv_dim, conv_stride and conv_kernel have {sizes} entries, expected as many of each")

    @property
    def width(self) -> int:
        """The width of the last state."""
        return (self.output_hidden_size or self.hidden_size) if self.add_adapter else self.hidden_size

    def frames(self, adapted: bool = False):
        """How many frames `samples` make, before or after the adapter."""
        frames = nn.frame_count(symbol("samples"), self.conv_kernel, self.conv_stride)
        steps = self.num_adapter_layers if adapted and self.add_adapter else 0
        return nn.frame_count(frames, [1] * steps, [self.adapter_stride] * steps)


class AdaptedBlock(nn.Block):
    """A block with a small residual layer behind it (https://arxiv.org/abs/2305.13516)."""

    def __init__(self, *parts: Any, adapter: Layer):
        super().__init__(*parts)
        self.adapter = adapter

    def forward(self, x: Value, *context: Any) -> Value:
        """[batch frames n] -> the same."""
        return self.adapter(super().forward(x, *context))


def _block(c: Wav2Vec2Config) -> nn.Block:
    n, kind = c.hidden_size, nn.PreNorm if c.do_stable_layer_norm else nn.PostNorm
    attention = nn.Attention(n, c.num_attention_heads, dropout=c.attention_dropout, out_dropout=c.hidden_dropout)
    mlp = nn.Mlp(n, c.intermediate_size, c.hidden_act, inner_dropout=c.activation_dropout, dropout=c.hidden_dropout)
    parts = kind, lambda: nn.LayerNorm(n, c.layer_norm_eps), attention, mlp
    if not (c.adapter_attn_dim and c.do_stable_layer_norm):
        return nn.Block(*parts)
    return AdaptedBlock(*parts, adapter=nn.PreNorm(nn.Mlp(n, c.adapter_attn_dim, "relu"), nn.LayerNorm(n, 1e-5)))


class Adapter(Layer):
    """Fewer frames, perhaps of another width."""

    def __init__(self, c: Wav2Vec2Config):
        changes = c.width != c.hidden_size
        self.projection = nn.Linear(c.hidden_size, c.width) if changes else None
        self.norm = nn.LayerNorm(c.width, 1e-5) if changes else None
        self.steps = [nn.ConvGate(c.width, c.adapter_kernel_size, c.adapter_stride) for _ in range(c.num_adapter_layers)]

    def forward(self, x: Value) -> Value:
        """[batch frames n] -> [batch fewer m]."""
        if self.projection is not None and self.norm is not None:
            x = self.norm(self.projection(x))
        x = ops.transpose(x, perm=(0, 2, 1))
        for step in self.steps:
            x = step(x)
        return ops.transpose(x, perm=(0, 2, 1))


class Wav2Vec2(Layer):
    """Features of the samples, blocks over their frames and, where configured, an adapter."""

    def __init__(self, c: Wav2Vec2Config):
        widths, count = [1, *c.conv_dim], len(c.conv_dim)
        styles = ["layer"] * count if c.feat_extract_norm == "layer" else ["group"] + ["none"] * (count - 1)
        rows = zip(widths, c.conv_dim, c.conv_kernel, c.conv_stride, styles, strict=False)
        self.features = [nn.SampleConv(*row[:4], bias=c.conv_bias, norm=row[4], activation=c.feat_extract_activation) for row in rows]
        self.projection = nn.FeatureProjection(c.conv_dim[-1], c.hidden_size, c.layer_norm_eps, c.feat_proj_dropout)
        self.hidden = Param(c.hidden_size, init="normal") if c.mask_time_prob or c.mask_feature_prob else None
        self.positions = nn.PositionConv(c.hidden_size, c.num_conv_pos_embeddings, c.num_conv_pos_embedding_groups, c.feat_extract_activation)
        self.norm, self.dropout = nn.LayerNorm(c.hidden_size, c.layer_norm_eps), nn.Dropout(c.hidden_dropout)
        self.blocks, self.drop = [_block(c) for _ in range(c.num_hidden_layers)], nn.LayerDrop(c.layerdrop)
        self.adapter, self.config = Adapter(c) if c.add_adapter else None, c

    def forward(self, input_values, attention_mask=None, mask_time_indices=None):
        """-> last_hidden_state [batch frames n], extract_features [batch frames m]."""
        x = input_values[:, None]
        for conv in self.features:
            x = conv(x)
        x, features = self.projection(ops.transpose(x, perm=(0, 2, 1)))
        x, mask = self._augment(x, mask_time_indices), None
        if attention_mask is not None:
            live = nn.mask_until(nn.frames_of(attention_mask, self.config.frames()), x.shape[1])
            x, mask = ops.where(live[:, :, None], x, 0.0), live[:, None, None, :]
        with collecting() as seen:
            x, states = self._encode(x, mask)
        return {"last_hidden_state": x if self.adapter is None else self.adapter(x), "extract_features": features, "hidden_states": states, **seen}

    def _encode(self, x: Value, mask: Value | None) -> tuple[Value, list[Value]]:
        x, last_norm = x + self.positions(x), self.config.do_stable_layer_norm
        states = [self.dropout(x if last_norm else self.norm(x))]
        for block in self.blocks:
            states.append(self.drop(states[-1], block(states[-1], mask)))
        if last_norm:
            states[-1] = self.norm(states[-1])
        return states[-1], states

    def _augment(self, x: Value, masked: Value | None) -> Value:
        """Hides the frames asked for; while training, random spans of frames and of channels where none are."""
        c = self.config
        if not c.apply_spec_augment:
            return x
        batch, frames, n = x.shape
        if masked is None and current().training and c.mask_time_prob:
            masked = nn.random_spans((batch, frames), c.mask_time_prob, c.mask_time_length)
        if masked is not None:
            if self.hidden is None:
                raise ConfigError("mask_time_prob and mask_feature_prob are 0, expected one above 0 where mask_time_indices are given")
            x = ops.where(masked[:, :, None], self.hidden, x)
        if current().training and c.mask_feature_prob:
            x = ops.where(nn.random_spans((batch, n), c.mask_feature_prob, c.mask_feature_length)[:, None, :], 0.0, x)
        return x


def _samples(c: Wav2Vec2Config, frames: int) -> dict[str, str]:
    return {"input_values": f"f32[batch samples>={nn.least_samples(c.conv_kernel, c.conv_stride, frames)}]", "attention_mask": "i64[batch samples]"}


def _head(head=None, **others) -> Head:
    build = Wav2Vec2 if head is None else lambda c: head(Wav2Vec2(c), c)
    typed = {k: (lambda c, t=t: t.format(frames=c.frames(), labels=c.labels)) for k, t in others.items()}
    common = lambda c: _samples(c, head.least_frames(c) if head is nn.XVector else 1)
    return Head(build, inputs_of(common, **typed), ("input_values", "attention_mask"), "wav2vec2" if head else "")


CARD = Card(
    model_type="wav2vec2",
    config=Wav2Vec2Config,
    base="wav2vec2",
    heads={
        "Wav2Vec2Model": _head(mask_time_indices="bool[batch {frames}]"),
        "Wav2Vec2ForPreTraining": _head(
            nn.Contrastive, mask_time_indices="bool[batch {frames}]", sampled_negative_indices="i64[batch {frames} negatives]"
        ),
        "Wav2Vec2ForMaskedLM": _head(nn.Unmasked, labels="i64[batch length]"),
        "Wav2Vec2ForCTC": _head(nn.Transcriber, labels="i64[batch length]"),
        "Wav2Vec2ForSequenceClassification": _head(nn.RecordingClassifier, labels="i64[batch]"),
        "Wav2Vec2ForAudioFrameClassification": _head(nn.FrameClassifier, labels="i64[batch {frames} {labels}]"),
        "Wav2Vec2ForXVector": _head(nn.XVector, labels="i64[batch]"),
    },
    names={
        "features.*": "feature_extractor.conv_layers.*",
        "features.*.norm": "feature_extractor.conv_layers.*.layer_norm",
        "projection.{norm,projection}": "feature_projection.{layer_norm,projection}",
        "hidden": "masked_spec_embed",
        "positions.{scale,direction}": "encoder.pos_conv_embed.conv.parametrizations.weight.{original0,original1}",
        "positions.bias": "encoder.pos_conv_embed.conv.bias",
        "norm": "encoder.layer_norm",
        "blocks.*.attention.layer.{q,k,v,out}": "encoder.layers.*.attention.{q_proj,k_proj,v_proj,out_proj}",
        "blocks.*.{attention,mlp}.norm": "encoder.layers.*.{layer_norm,final_layer_norm}",
        "blocks.*.mlp.layer.{up,down}": "encoder.layers.*.feed_forward.{intermediate_dense,output_dense}",
        "blocks.*.adapter.{norm,layer.up,layer.down}": "encoder.layers.*.adapter_layer.{norm,linear_1,linear_2}",
        "adapter.{projection,norm,steps}": "adapter.{proj,proj_layer_norm,layers}",
    },
)
