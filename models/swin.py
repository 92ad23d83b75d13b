"""Swin Transformer (https://arxiv.org/abs/2103.14030): attention in windows that shift, and maps that shrink from stage to stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..ir.authoring import Card, Config, ConfigError, Head, Layer, Param, Value, choice, collecting, inputs_of, nn, only, ops


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
    hidden_act: str = choice("gelu", nn.ACTIVATIONS)
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
        self.stages = nn.stage_names(len(self.depths), self.out_features, self.out_indices, where)

    def width(self, stage: int) -> int:
        """Channels of a stage's map."""
        return self.embed_dim * 2**stage


class Merging(Layer):
    """Each four neighbours become one token of twice the width."""

    def __init__(self, n: int):
        self.norm, self.reduction = nn.LayerNorm(4 * n, 1e-5), nn.Linear(4 * n, 2 * n, bias=False)

    def forward(self, x: Value) -> Value:
        """[batch height width n] -> [batch height/2 width/2 2n], odd maps padded."""
        x = ops.rearrange(nn.pad_to(x, 2, (1, 2)), "batch (down a) (right b) n -> batch down right (b a n)", a=2, b=2)
        return self.reduction(self.norm(x))


class DropBranch(Layer):
    """A layer whose result is dropped for some samples while training."""

    def __init__(self, layer: Layer, rate: float):
        self.layer, self.drop = layer, nn.DropPath(rate)

    def forward(self, x: Value, *context: Value | None) -> Value:
        """The layer's result."""
        return self.drop(self.layer(x))


class Embeddings(Layer):
    """Normalised patches of an image that is padded to whole patches; `mask` adds the token that stands for hidden ones."""

    def __init__(self, c: SwinConfig, mask: bool):
        self.patch, self.patches = nn.pair(c.patch_size), nn.Patches(c.num_channels, c.embed_dim, nn.pair(c.patch_size))
        self.norm, self.dropout = nn.LayerNorm(c.embed_dim, 1e-5), nn.Dropout(c.hidden_dropout_prob)
        self.hidden = Param(1, 1, c.embed_dim, init="zeros") if mask else None

    def forward(self, pixel_values: Value, bool_masked_pos: Value | None) -> Value:
        """[batch channels height width] -> [batch rows columns n]."""
        x = self.norm(ops.transpose(self.patches(nn.pad_to(pixel_values, self.patch, (2, 3))), perm=(0, 2, 3, 1)))
        if bool_masked_pos is not None and self.hidden is not None:
            x = ops.where(ops.view(bool_masked_pos, x.shape[:3])[..., None], self.hidden[None], x)
        return self.dropout(x)


class Swin(Layer):
    """Embeddings and stages; `states` are maps [batch rows columns n]."""

    def __init__(self, c: SwinConfig, mask: bool = False, partition: bool = False):
        self.embeddings, self.config = Embeddings(c, mask), c
        self.stages = [[self._block(c, i, j, partition) for j in range(depth)] for i, depth in enumerate(c.depths)]
        self.merging = [Merging(c.width(i)) for i in range(len(c.depths) - 1)]

    @staticmethod
    def _block(c: SwinConfig, i: int, j: int, partition: bool) -> nn.Block:
        n, total, place = c.width(i), sum(c.depths), sum(c.depths[:i]) + j
        shift = 0 if j % 2 == 0 else c.window_size // 2
        attention = nn.WindowAttention(
            n, c.num_heads[i], c.window_size, shift=shift, partition=partition, kind="attentions" if j == c.depths[i] - 1 else "others",
            bias=c.qkv_bias, out_bias=True, dropout=c.attention_probs_dropout_prob, out_dropout=c.attention_probs_dropout_prob,
        )  # fmt: skip
        mlp = nn.Mlp(n, int(c.mlp_ratio * n), c.hidden_act, dropout=c.hidden_dropout_prob)
        rate = c.drop_path_rate * place / max(1, total - 1)
        return nn.Block(nn.PreNorm, lambda: nn.LayerNorm(n, c.layer_norm_eps), DropBranch(attention, rate), mlp)

    def states(self, pixel_values: Value, bool_masked_pos: Value | None) -> tuple[list[Value], list[Value]]:
        """The map before each stage and the last one; the map that each stage makes before it is merged, the embeddings first."""
        x = self.embeddings(pixel_values, bool_masked_pos)
        after, before = [x], [x]
        for stage, merge in zip(self.stages, [*self.merging, nn.Identity()], strict=True):
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
        self.norm = nn.LayerNorm(c.width(len(c.depths) - 1), c.layer_norm_eps)

    def forward(self, pixel_values, bool_masked_pos=None, interpolate_pos_encoding=False):
        """-> last_hidden_state [batch rows*columns n], pooler_output [batch n]; there are no positions to interpolate."""
        with collecting() as seen:
            maps, _ = self.encoder.states(pixel_values, bool_masked_pos)
        x = _sequence(self.norm(maps[-1]))
        return {
            "last_hidden_state": x,
            "pooler_output": ops.mean(x, axis=1) if self.pool else None,
            "hidden_states": [_sequence(m) for m in maps],
            "attentions": _reshaped(seen),
            "reshaped_hidden_states": [_channels_first(m) for m in maps],
        }


def _reshaped(seen: dict[str, list[Value]]) -> list[Value]:
    """Attention weights of each stage's last block, windows counted with the batch."""
    return [ops.rearrange(w, "batch windows heads q k -> (batch windows) heads q k") for w in seen["attentions"]]


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
        self.decoder = nn.PixelDecoder(c.width(len(c.depths) - 1), c.num_channels, c.encoder_stride)

    def forward(self, pixel_values, bool_masked_pos=None, interpolate_pos_encoding=False):
        """-> reconstruction [batch channels height width], loss where bool_masked_pos is given."""
        out = self.body(pixel_values, bool_masked_pos)
        image = self.decoder(out["last_hidden_state"], *out["reshaped_hidden_states"][-1].shape[2:])
        loss = None
        if bool_masked_pos is not None:
            loss = nn.masked_pixel_loss(pixel_values, image, bool_masked_pos, nn.pair(self.config.patch_size)[0], self.config.num_channels)
        return {"loss": loss, "reconstruction": image, **nn.rest(out)}


class Backbone(Layer):
    """The normalised maps of chosen stages."""

    def __init__(self, c: SwinConfig):
        self.encoder, self.chosen = Swin(c, partition=True), c.stages
        self.norms = {_stage(i): nn.LayerNorm(c.width(max(0, i - 1)), 1e-5) for i in c.stages}

    def forward(self, pixel_values):
        """-> feature_maps.0, ... [batch n rows columns]."""
        with collecting() as seen:
            _, maps = self.encoder.states(pixel_values, None)
        chosen = [_channels_first(self.norms[_stage(i)](maps[i])) for i in self.chosen]
        return {"feature_maps": chosen, "hidden_states": [_sequence(m) for m in maps], "attentions": _reshaped(seen)}


def _stage(i: int) -> str:
    return f"stage{i}" if i else "stem"


def _head(build, prefix="swin", flags=lambda c: {"interpolate_pos_encoding": {}}, **others) -> Head:
    pixels = lambda c: {"pixel_values": f"f32[batch {c.num_channels} height width]"}
    return Head(build, inputs_of(pixels, **others), ("pixel_values",), prefix, flags=flags)


def _patches(c: SwinConfig) -> str:
    (height, width), (down, right) = nn.pair(c.image_size), nn.pair(c.patch_size)
    return f"bool[batch {(height // down) * (width // right)}]"


def _whole(c: SwinConfig) -> dict[str, dict[str, str]]:
    """Hidden patches are those of an image of the configured size."""
    height, width = nn.pair(c.image_size)
    return {"interpolate_pos_encoding": {}, "bool_masked_pos": {"pixel_values": f"f32[batch {c.num_channels} {height} {width}]"}}


_BLOCK = {
    "{attention,mlp}.norm": "{layernorm_before,layernorm_after}",
    "attention.layer.layer.{q,k,v,out}": "attention.{self.query,self.key,self.value,output.dense}",
    "attention.layer.layer.{table,index}": "attention.self.{relative_position_bias_table,relative_position_index}",
    "mlp.layer.{up,down}": "{intermediate,output}.dense",
}

CARD = Card(
    model_type="swin",
    config=SwinConfig,
    base="swin",
    heads={
        "SwinModel": _head(SwinModel, prefix=""),
        "SwinForMaskedImageModeling": _head(MaskedImageModel, flags=_whole, bool_masked_pos=_patches),
        "SwinForImageClassification": _head(lambda c: nn.image_classifier(SwinModel(c), c.width(len(c.depths) - 1), c), labels=nn.label_type),
        "SwinBackbone": _head(Backbone, prefix=""),
    },
    names={
        "encoder.embeddings.{patches,norm,hidden}": "embeddings.{patch_embeddings,norm,mask_token}",
        **{f"encoder.stages.*.*.{ours}": f"encoder.layers.*.blocks.*.{theirs}" for ours, theirs in _BLOCK.items()},
        "encoder.merging.*": "encoder.layers.*.downsample",
        "{norm,norms,decoder.conv}": "{layernorm,hidden_states_norms,decoder.0}",
    },
)
