"""Vision Transformer (https://arxiv.org/abs/2010.11929)."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.authoring import Card, Config, ConfigError, Head, Layer, Param, Value, choice, inputs_of, nn, ops


@dataclass(kw_only=True)
class VitConfig(Config):
    """config.json of a ViT checkpoint."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = choice("gelu", nn.ACTIVATIONS)
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    layer_norm_eps: float = 1e-12
    image_size: int | list[int] = 224
    patch_size: int | list[int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    encoder_stride: int = 16
    pooler_output_size: int | None = None
    pooler_act: str = choice("tanh", nn.ACTIVATIONS)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at the configured image size."""
        (height, width), (down, right) = nn.pair(self.image_size), nn.pair(self.patch_size)
        return height // down, width // right


class Embeddings(Layer):
    """Patches behind a class token, with positions; `mask` adds the token that stands for hidden patches."""

    def __init__(self, c: VitConfig, mask: bool):
        n, (rows, columns) = c.hidden_size, c.grid
        self.patches, self.grid = nn.Patches(c.num_channels, n, nn.pair(c.patch_size)), c.grid
        self.first, self.hidden = Param(1, 1, n, init="normal"), Param(1, 1, n, init="zeros") if mask else None
        self.positions, self.dropout = Param(1, rows * columns + 1, n, init="normal"), nn.Dropout(c.hidden_dropout_prob)

    def forward(self, pixel_values: Value, bool_masked_pos: Value | None) -> Value:
        """[batch 1+patches n]; positions are resampled where the image is not of the configured size."""
        grid = self.patches(pixel_values)
        x = nn.sequence_of(grid)
        if bool_masked_pos is not None:
            x = ops.where(bool_masked_pos[:, :, None], self.hidden, x)
        first = ops.broadcast_to(self.first, shape=(x.shape[0], 1, x.shape[2]))
        return self.dropout(ops.concat(first, x, axis=1) + nn.positions_for(self.positions[0], self.grid, *grid.shape[2:]))


class Vit(Layer):
    """Embeddings, blocks, a last normalisation and, for the bare model, a pooler."""

    def __init__(self, c: VitConfig, pool: bool = False, mask: bool = False):
        self.embeddings = Embeddings(c, mask)
        self.blocks = [self._block(c) for _ in range(c.num_hidden_layers)]
        self.norm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.pooler = nn.Pooler(c.hidden_size, c.pooler_output_size, nn.ACTIVATIONS[c.pooler_act]) if pool else None

    @staticmethod
    def _block(c: VitConfig) -> nn.Block:
        n, rate = c.hidden_size, c.hidden_dropout_prob
        attention = nn.Attention(n, c.num_attention_heads, bias=c.qkv_bias, out_bias=True, dropout=c.attention_probs_dropout_prob, out_dropout=rate)
        mlp = nn.Mlp(n, c.intermediate_size, c.hidden_act, dropout=rate)
        return nn.Block(nn.PreNorm, lambda: nn.LayerNorm(n, c.layer_norm_eps), attention, mlp)

    def forward(self, pixel_values, bool_masked_pos=None, interpolate_pos_encoding=False):
        """-> last_hidden_state [batch 1+patches n], pooler_output [batch m]."""
        x, seen = nn.encode(self.blocks, self.embeddings(pixel_values, bool_masked_pos))
        x = self.norm(x)
        return {"last_hidden_state": x, "pooler_output": self.pooler and self.pooler(x), **seen}


class MaskedImageModel(Layer):
    """Pixels of hidden patches."""

    def __init__(self, c: VitConfig):
        if not isinstance(c.patch_size, int):
            raise ConfigError(f"patch_size is {c.patch_size}, expected one number for masked image modelling")
        self.body, self.config, self.patch = Vit(c, mask=True), c, c.patch_size
        self.decoder = nn.PixelDecoder(c.hidden_size, c.num_channels, c.encoder_stride)

    def forward(self, pixel_values, bool_masked_pos=None, interpolate_pos_encoding=False):
        """-> reconstruction [batch channels height width], loss where bool_masked_pos is given."""
        c, rows, columns = self.config, pixel_values.shape[2] // self.patch, pixel_values.shape[3] // self.patch
        if bool_masked_pos is not None and c.encoder_stride != self.patch:
            raise ConfigError(f"encoder_stride is {c.encoder_stride}, expected patch_size={self.patch} where bool_masked_pos is given")
        out = self.body(pixel_values, bool_masked_pos)
        image = self.decoder(out["last_hidden_state"][:, 1:], rows, columns)
        loss = None if bool_masked_pos is None else nn.masked_pixel_loss(pixel_values, image, bool_masked_pos, self.patch, c.num_channels)
        return {"loss": loss, "reconstruction": image, **nn.rest(out)}


def _pixels(c: VitConfig) -> dict[str, str]:
    height, width = nn.pair(c.image_size)
    return {"pixel_values": f"f32[batch {c.num_channels} {height} {width}]"}


def _any_size(c: VitConfig) -> dict[str, dict[str, str]]:
    """The inputs where positions are resampled."""
    down, right = nn.pair(c.patch_size)
    hidden = f"bool[batch (height//{down})*(width//{right})]"
    return {"interpolate_pos_encoding": {"pixel_values": f"f32[batch {c.num_channels} height width]", "bool_masked_pos": hidden}}


def _head(build, prefix="vit", **others) -> Head:
    return Head(build, inputs_of(_pixels, **others), ("pixel_values",), prefix, flags=_any_size)


CARD = Card(
    model_type="vit",
    config=VitConfig,
    base="vit",
    heads={
        "ViTModel": _head(lambda c: Vit(c, pool=True), prefix=""),
        "ViTForMaskedImageModeling": _head(MaskedImageModel, bool_masked_pos=lambda c: f"bool[batch {c.grid[0] * c.grid[1]}]"),
        "ViTForImageClassification": _head(lambda c: nn.image_classifier(Vit(c), c.hidden_size, c, nn.first_state), labels=nn.label_type),
    },
    names={
        "embeddings.{patches,first}": "embeddings.{patch_embeddings,cls_token}",
        "embeddings.{hidden,positions}": "embeddings.{mask_token,position_embeddings}",
        "blocks.*.{attention,mlp}.norm": "encoder.layer.*.{layernorm_before,layernorm_after}",
        "blocks.*.attention.layer.{q,k,v}": "encoder.layer.*.attention.attention.{query,key,value}",
        "blocks.*.attention.layer.out": "encoder.layer.*.attention.output.dense",
        "blocks.*.mlp.layer.{up,down}": "encoder.layer.*.{intermediate,output}.dense",
        "norm": "layernorm",
        "decoder.conv": "decoder.0",
    },
)
