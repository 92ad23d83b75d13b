"""Swin Transformer (https://arxiv.org/abs/2103.14030): attention in windows that shift, and maps that shrink from stage to stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..ir import ops
from ..ir.card import Card, Head
from ..ir.config import Config, choice, only
from ..ir.errors import ConfigError
from ..ir.graph import Param, Value, current
from ..ir.layer import Layer, collect, collecting
from ..ir.layers import (
    ACTIVATIONS,
    Attention,
    Block,
    DropPath,
    Dropout,
    Identity,
    LayerNorm,
    Linear,
    Mlp,
    Patches,
    PixelDecoder,
    PreNorm,
    SequenceClassifier,
    label_type,
    masked_pixel_loss,
    pair,
    rest,
    stage_names,
)
from ..ir.sizes import Size, ceil_divide, maximum, minimum

FAR = -100.0  # added to scores of tokens that only the shift brought together


@dataclass(kw_only=True)
class SwinConfig(Config):
    """config.json of a Swin checkpoint."""

    image_size: int | list[int] = 224
    patch_size: int | list[int] = 4
    num_channels: int = 3
    embed_dim: int = 96
    depths: list[int] = field(default_factory=lambda: [2, 2, 6, 2])
    num_heads: list[int] = field(default_factory=lambda: [3, 6, 12, 24])
    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    drop_path_rate: float = 0.1
    hidden_act: str = choice("gelu", ACTIVATIONS)
    use_absolute_embeddings: bool = only(False)  # the reference's table has a row too many: it cannot run
    layer_norm_eps: float = 1e-5
    encoder_stride: int = 32
    out_features: list[str] | None = None
    out_indices: list[int] | None = None

    def check(self, where: str) -> None:
        """Each stage's heads share its width."""
        if len(self.depths) != len(self.num_heads):
            raise ConfigError(f"{where}: num_heads has {len(self.num_heads)} entries, expected one for each of {len(self.depths)} depths")
        for i, heads in enumerate(self.num_heads):
            if self.width(i) % heads:
                raise ConfigError(f"{where}: num_heads[{i}] is {heads}, expected a divisor of the stage's width {self.width(i)}")
        self.stages = stage_names(len(self.depths), self.out_features, self.out_indices, where)

    def width(self, stage: int) -> int:
        """Channels of a stage's map."""
        return self.embed_dim * 2**stage


def pad_to(x: Value, multiple: int | tuple[int, int], axes: tuple[int, int]) -> Value:
    """x with zeros after two axes, up to multiples of a size."""
    high: list[Size] = [0] * x.rank
    for axis, m in zip(axes, pair(multiple), strict=True):
        high[axis] = ceil_divide(x.shape[axis], m) * m - x.shape[axis]
    return x if not any(not isinstance(h, int) or h for h in high) else ops.pad(x, low=(0,) * x.rank, high=tuple(high))


class WindowAttention(Attention):
    """Attention among the tokens of each window of a map, which may be shifted by half a window before it is cut.

    `partition` cuts maps that are smaller than a window too (padding them); otherwise a map that one window covers is not shifted, and a
    smaller one is refused, as the reference refuses it.
    """

    def __init__(self, c: SwinConfig, n: int, heads: int, shift: int, partition: bool, last: bool):
        super().__init__(n, heads, bias=c.qkv_bias, out_bias=True, dropout=c.attention_probs_dropout_prob, out_dropout=c.attention_probs_dropout_prob)
        self.window, self.shift, self.partition, self.last = c.window_size, shift, partition, last
        w = self.window
        self.table = Param((2 * w - 1) ** 2, heads, init="zeros")
        self.index = Param(w * w, w * w, dtype="i64", init=_distances(w))

    def bias_table(self) -> Value:
        """[heads tokens tokens]: a learnt number for each distance within a window."""
        return ops.transpose(ops.take(self.table, self.index), perm=(2, 0, 1))

    def forward(self, x: Value) -> Value:
        """[batch height width n] -> the same."""
        height, width, w = *x.shape[1:3], self.window
        shift = self._shift(height, width)
        x = pad_to(x, w, (1, 2))
        rows, columns = x.shape[1:3]
        if shift != 0:
            x = _rolled(x, rows - shift, columns - shift)
        x = ops.rearrange(x, "batch (down a) (right b) n -> batch (down right) (a b) n", a=w, b=w)
        q, k, v = (ops.rearrange(f(x), "batch windows seq (heads head) -> batch windows heads seq head", heads=self.heads) for f in (self.q, self.k, self.v))
        bias = self.bias_table()
        if shift != 0:
            bias = bias + self._far_apart(rows, columns, shift)[:, None]
        y = self._attend(q, k, v, bias)
        y = self.out_dropout(self.out(ops.rearrange(y, "batch windows heads seq head -> batch windows seq (heads head)")))
        y = ops.rearrange(y, "batch (down right) (a b) n -> batch (down a) (right b) n", a=w, b=w, down=rows // w)
        return (_rolled(y, shift, shift) if shift != 0 else y)[:, :height, :width]

    def _attend(self, q: Value, k: Value, v: Value, bias: Value) -> Value:
        if self.last:
            weights = ops.attention_weights(q, k, None, bias, scale=self.scale)
            collect("attentions", ops.rearrange(weights, "batch windows heads q k -> (batch windows) heads q k"))
        graph = current()
        if not (graph.training and self.dropout):
            return ops.attention(q, k, v, None, bias, scale=self.scale)
        return ops.attention(q, k, v, None, bias, None, graph.random_key(), scale=self.scale, dropout=self.dropout, site=graph.random_site())

    def _shift(self, height: Size, width: Size) -> Size:
        """The shift; none where one window covers the map."""
        if self.partition:
            return self.shift
        least = minimum(height, width)
        current().limit(self.window - least, 0, f"each map must be at least as large as window_size={self.window}: take a larger image")
        return self.shift * minimum(1, maximum(0, least - self.window)) if self.shift else 0

    def _far_apart(self, rows: Size, columns: Size, shift: Size) -> Value:
        """[windows tokens tokens]: -100 where two tokens of a shifted window come from different sides of the map."""
        down, right = (_sides(size, self.window, shift) for size in (rows, columns))
        side = ops.broadcast_to(down[:, None] * 3 + right[None, :], shape=(rows, columns))
        side = ops.rearrange(side, "(down a) (right b) -> (down right) (a b)", a=self.window, b=self.window)
        return ops.where(ops.equal(side[:, :, None], side[:, None, :]), 0.0, FAR)


def _sides(size: Size, window: int, shift: Size) -> Value:
    """i64[size]: 0 before the last window, 1 in it, 2 in the part of it that the shift brought from the start."""
    place = ops.iota(size=size)
    return ops.cast(place >= size - window, dtype="i64") + ops.cast(place >= size - shift, dtype="i64")


def _rolled(x: Value, down: Size, right: Size) -> Value:
    return ops.roll(ops.roll(x, axis=1, shift=down), axis=2, shift=right)


def _distances(w: int):
    """Which row of the table belongs to each pair of tokens: by how far down and right they are apart."""
    import numpy as np

    row, column = (a.reshape(-1) for a in np.indices((w, w)))
    return (row[:, None] - row + w - 1) * (2 * w - 1) + column[:, None] - column + w - 1


class Merging(Layer):
    """Each four neighbours become one token of twice the width."""

    def __init__(self, n: int):
        self.norm, self.reduction = LayerNorm(4 * n, 1e-5), Linear(4 * n, 2 * n, bias=False)

    def forward(self, x: Value) -> Value:
        """[batch height width n] -> [batch height/2 width/2 2n], odd maps padded."""
        x = ops.rearrange(pad_to(x, 2, (1, 2)), "batch (down a) (right b) n -> batch down right (b a n)", a=2, b=2)
        return self.reduction(self.norm(x))


class DropBranch(Layer):
    """A layer whose result is dropped for some samples while training."""

    def __init__(self, layer: Layer, rate: float):
        self.layer, self.drop = layer, DropPath(rate)

    def forward(self, x: Value, *context: Value | None) -> Value:
        """The layer's result."""
        return self.drop(self.layer(x))


class Embeddings(Layer):
    """Normalised patches of an image that is padded to whole patches; `mask` adds the token that stands for hidden ones."""

    def __init__(self, c: SwinConfig, mask: bool):
        self.patch, self.patches = pair(c.patch_size), Patches(c.num_channels, c.embed_dim, pair(c.patch_size))
        self.norm, self.dropout = LayerNorm(c.embed_dim, 1e-5), Dropout(c.hidden_dropout_prob)
        self.hidden = Param(1, 1, c.embed_dim, init="zeros") if mask else None

    def forward(self, pixel_values: Value, bool_masked_pos: Value | None) -> Value:
        """[batch channels height width] -> [batch rows columns n]."""
        x = self.norm(ops.transpose(self.patches(pad_to(pixel_values, self.patch, (2, 3))), perm=(0, 2, 3, 1)))
        if bool_masked_pos is not None:
            x = ops.where(ops.view(bool_masked_pos, x.shape[:3])[..., None], self.hidden[None], x)
        return self.dropout(x)


class Swin(Layer):
    """Embeddings and stages; `states` are maps [batch rows columns n]."""

    def __init__(self, c: SwinConfig, mask: bool = False, partition: bool = False):
        self.embeddings, self.config = Embeddings(c, mask), c
        self.stages = [[self._block(c, i, j, partition) for j in range(depth)] for i, depth in enumerate(c.depths)]
        self.merging = [Merging(c.width(i)) for i in range(len(c.depths) - 1)]

    @staticmethod
    def _block(c: SwinConfig, i: int, j: int, partition: bool) -> Block:
        n, total, place = c.width(i), sum(c.depths), sum(c.depths[:i]) + j
        shift = 0 if j % 2 == 0 else c.window_size // 2
        attention = WindowAttention(c, n, c.num_heads[i], shift, partition, last=j == c.depths[i] - 1)
        inner = int(c.mlp_ratio * n)
        mlp = Mlp(Linear(n, inner), Linear(inner, n), ACTIVATIONS[c.hidden_act], dropout=c.hidden_dropout_prob)
        rate = c.drop_path_rate * place / max(1, total - 1)
        norm = lambda: LayerNorm(n, c.layer_norm_eps)  # noqa: E731
        return Block(PreNorm(DropBranch(attention, rate), norm()), PreNorm(mlp, norm()))

    def states(self, pixel_values: Value, bool_masked_pos: Value | None) -> tuple[list[Value], list[Value]]:
        """The map before each stage and the last one; the map that each stage makes before it is merged, the embeddings first."""
        x = self.embeddings(pixel_values, bool_masked_pos)
        after, before = [x], [x]
        for stage, merge in zip(self.stages, [*self.merging, Identity()], strict=True):
            for block in stage:
                x = block(x)
            before.append(x)
            x = merge(x)
            after.append(x)
        return after, before


class SwinModel(Layer):
    """The normalised last map as a sequence, and its mean."""

    def __init__(self, c: SwinConfig, pool: bool = True, mask: bool = False):
        self.encoder, self.pool = Swin(c, mask), pool
        self.norm = LayerNorm(c.width(len(c.depths) - 1), c.layer_norm_eps)

    def forward(self, pixel_values, bool_masked_pos=None, interpolate_pos_encoding=False):
        """-> last_hidden_state [batch rows*columns n], pooler_output [batch n]; there are no positions to interpolate."""
        with collecting() as seen:
            maps, _ = self.encoder.states(pixel_values, bool_masked_pos)
        x = _sequence(self.norm(maps[-1]))
        return {
            "last_hidden_state": x,
            "pooler_output": ops.mean(x, axis=1) if self.pool else None,
            "hidden_states": [_sequence(m) for m in maps],
            **seen,
            "reshaped_hidden_states": [_channels_first(m) for m in maps],
        }


def _sequence(x: Value) -> Value:
    return ops.rearrange(x, "batch rows columns n -> batch (rows columns) n")


def _channels_first(x: Value) -> Value:
    return ops.transpose(x, perm=(0, 3, 1, 2))


class MaskedImageModel(Layer):
    """Pixels of hidden patches."""

    def __init__(self, c: SwinConfig):
        if not isinstance(c.patch_size, int):
            raise ConfigError(f"patch_size is {c.patch_size}, expected one number for masked image modelling")
        self.body, self.config = SwinModel(c, pool=False, mask=True), c
        self.decoder = PixelDecoder(c.width(len(c.depths) - 1), c.num_channels, c.encoder_stride)

    def forward(self, pixel_values, bool_masked_pos=None, interpolate_pos_encoding=False):
        """-> reconstruction [batch channels height width], loss where bool_masked_pos is given."""
        out = self.body(pixel_values, bool_masked_pos)
        image = self.decoder(out["last_hidden_state"], *out["reshaped_hidden_states"][-1].shape[2:])
        loss = None
        if bool_masked_pos is not None:
            loss = masked_pixel_loss(pixel_values, image, bool_masked_pos, self.config.patch_size, self.config.num_channels)
        return {"loss": loss, "reconstruction": image, **rest(out)}


class Backbone(Layer):
    """The normalised maps of chosen stages."""

    def __init__(self, c: SwinConfig):
        self.encoder, self.chosen = Swin(c, partition=True), c.stages
        self.norms = {_stage(i): LayerNorm(c.width(max(0, i - 1)), 1e-5) for i in c.stages}

    def forward(self, pixel_values):
        """-> feature_maps.0, ... [batch n rows columns]."""
        with collecting() as seen:
            _, maps = self.encoder.states(pixel_values, None)
        chosen = [_channels_first(self.norms[_stage(i)](maps[i])) for i in self.chosen]
        return {"feature_maps": chosen, "hidden_states": [_sequence(m) for m in maps], **seen}


def _stage(i: int) -> str:
    return f"stage{i}" if i else "stem"


def _head(build, prefix="swin", flags=None, **others) -> Head:
    """A head over images of any size."""

    def inputs(c: SwinConfig) -> dict[str, str]:
        return {"pixel_values": f"f32[batch {c.num_channels} height width]"} | {k: t(c) for k, t in others.items()}

    return Head(build, inputs, ("pixel_values",), prefix, flags=lambda c: {"interpolate_pos_encoding": {}, **(flags(c) if flags else {})})


def _patches(c: SwinConfig) -> str:
    (height, width), (down, right) = pair(c.image_size), pair(c.patch_size)
    return f"bool[batch {(height // down) * (width // right)}]"


def _whole(c: SwinConfig) -> dict[str, dict[str, str]]:
    """Hidden patches are those of an image of the configured size."""
    height, width = pair(c.image_size)
    return {"bool_masked_pos": {"pixel_values": f"f32[batch {c.num_channels} {height} {width}]"}}


def _classifier(c: SwinConfig) -> SequenceClassifier:
    return SequenceClassifier(SwinModel(c), Linear(c.width(len(c.depths) - 1), c.labels) if c.labels else Identity(), c)


_BLOCK = {
    "attention.norm": "layernorm_before",
    "attention.layer.layer.q": "attention.self.query",
    "attention.layer.layer.k": "attention.self.key",
    "attention.layer.layer.v": "attention.self.value",
    "attention.layer.layer.table": "attention.self.relative_position_bias_table",
    "attention.layer.layer.index": "attention.self.relative_position_index",
    "attention.layer.layer.out": "attention.output.dense",
    "mlp.norm": "layernorm_after",
    "mlp.layer.up": "intermediate.dense",
    "mlp.layer.down": "output.dense",
}

CARD = Card(
    model_type="swin",
    config=SwinConfig,
    base="swin",
    heads={
        "SwinModel": _head(SwinModel, prefix=""),
        "SwinForMaskedImageModeling": _head(MaskedImageModel, flags=_whole, bool_masked_pos=_patches),
        "SwinForImageClassification": _head(_classifier, labels=label_type),
        "SwinBackbone": _head(Backbone, prefix=""),
    },
    names={
        "encoder.embeddings.patches": "embeddings.patch_embeddings",
        "encoder.embeddings.norm": "embeddings.norm",
        "encoder.embeddings.hidden": "embeddings.mask_token",
        **{f"encoder.stages.*.*.{ours}": f"encoder.layers.*.blocks.*.{theirs}" for ours, theirs in _BLOCK.items()},
        "encoder.merging.*": "encoder.layers.*.downsample",
        "norm": "layernorm",
        "norms": "hidden_states_norms",
        "decoder.conv": "decoder.0",
    },
)
