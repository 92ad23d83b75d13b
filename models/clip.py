"""CLIP (https://arxiv.org/abs/2103.00020): a text tower and an image tower that meet in one space."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..ir.authoring import Card, Config, Head, Layer, Param, Value, choice, current, inputs_of, nn, ops


@dataclass(kw_only=True)
class TowerConfig(Config):
    """What both towers have."""

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    hidden_act: str = choice("quick_gelu", nn.ACTIVATIONS)
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    projection_dim: int = 512


@dataclass(kw_only=True)
class TextConfig(TowerConfig):
    """The `text_config` of a CLIP checkpoint."""

    vocab_size: int = 49408
    max_position_embeddings: int = 77
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int | list[int] | None = 49407


@dataclass(kw_only=True)
class VisionConfig(TowerConfig):
    """The `vision_config` of a CLIP checkpoint."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32


@dataclass(kw_only=True)
class ClipConfig(Config):
    """config.json of a CLIP checkpoint: of both towers, or of one alone."""

    text_config: dict[str, Any] | None = None
    vision_config: dict[str, Any] | None = None
    text_config_dict: dict[str, Any] | None = None
    vision_config_dict: dict[str, Any] | None = None
    projection_dim: int = 512
    text: TextConfig = field(default_factory=TextConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)

    def check(self, where: str) -> None:
        """Reads the towers' parts; a tower's own config.json is that part."""
        parts = {"text": TextConfig, "vision": VisionConfig}
        for name, kind in parts.items():
            given = {**(getattr(self, f"{name}_config") or {}), **(getattr(self, f"{name}_config_dict") or {})}
            if self.model_type == f"clip_{name}_model":
                own = ("projection_dim", "pad_token_id", "bos_token_id", "eos_token_id")
                given = {**self.extra, **{k: getattr(self, k) for k in own if getattr(self, k) is not None}}
            setattr(self, name, kind.read(given, f"{where}: {name}_config"))


class Tower(Layer):
    """Blocks of one width."""

    def __init__(self, c: TowerConfig, causal: bool):
        self.blocks = [self._block(c, causal) for _ in range(c.num_hidden_layers)]

    @staticmethod
    def _block(c: TowerConfig, causal: bool) -> nn.Block:
        n = c.hidden_size
        attention = nn.Attention(n, c.num_attention_heads, causal=causal, dropout=c.attention_dropout)
        return nn.Block(nn.PreNorm, lambda: nn.LayerNorm(n, c.layer_norm_eps), attention, nn.Mlp(n, c.intermediate_size, c.hidden_act))


class TextTower(Tower):
    """Words read from left to right; the pooled state is that of the end-of-text word."""

    def __init__(self, c: TextConfig):
        self.words, self.positions = nn.Embedding(c.vocab_size, c.hidden_size), nn.Embedding(c.max_position_embeddings, c.hidden_size)
        super().__init__(c, causal=True)
        self.norm, self.end, self.most = nn.LayerNorm(c.hidden_size, c.layer_norm_eps), c.eos_token_id, c.max_position_embeddings

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        """-> last_hidden_state [batch seq n], pooler_output [batch n]."""
        places = current().cache.positions(input_ids.shape[1], self.most) if position_ids is None else position_ids
        x, seen = nn.encode(self.blocks, self.words(input_ids) + self.positions(places), nn.key_mask(attention_mask))
        x = self.norm(x)
        # Checkpoints from before the end-of-text id was corrected say 2; for them it is the largest id of a row.
        ends = input_ids if self.end == 2 else ops.cast(ops.equal(input_ids, self.end), dtype="i64")
        return {"last_hidden_state": x, "pooler_output": nn.pick(x, ops.argmax(ends, axis=1)), **seen}


class VisionTower(Tower):
    """Patches behind a class token; the pooled state is that token's, normalised."""

    def __init__(self, c: VisionConfig):
        n, side = c.hidden_size, c.image_size // c.patch_size
        self.first, self.grid = Param(n, init="normal"), (side, side)
        self.patches = nn.Patches(c.num_channels, n, (c.patch_size, c.patch_size), bias=False)
        self.positions = nn.Embedding(side * side + 1, n)
        self.norm_before = nn.LayerNorm(n, c.layer_norm_eps)
        super().__init__(c, causal=False)
        self.norm = nn.LayerNorm(n, c.layer_norm_eps)

    def forward(self, pixel_values, interpolate_pos_encoding=False):
        """-> last_hidden_state [batch 1+patches n], pooler_output [batch n]."""
        grid = self.patches(pixel_values)
        x = nn.sequence_of(grid)
        first = ops.broadcast_to(self.first[None, None], shape=(x.shape[0], 1, x.shape[2]))
        x = ops.concat(first, x, axis=1) + nn.positions_for(self.positions.weight, self.grid, *grid.shape[2:])
        x, seen = nn.encode(self.blocks, self.norm_before(x))
        return {"last_hidden_state": x, "pooler_output": self.norm(x[:, 0]), **seen}


class Clip(Layer):
    """How well each text fits each image."""

    def __init__(self, c: ClipConfig):
        self.text, self.vision = TextTower(c.text), VisionTower(c.vision)
        self.text_projection = nn.Linear(c.text.hidden_size, c.projection_dim, bias=False)
        self.image_projection = nn.Linear(c.vision.hidden_size, c.projection_dim, bias=False)
        self.logit_scale = Param(init="ones")

    def forward(self, input_ids, pixel_values, attention_mask=None, position_ids=None, return_loss=False, interpolate_pos_encoding=False):
        """-> logits_per_text [text_batch image_batch] and its transpose, the unit vectors compared, the towers' outputs, loss on request."""
        text = self.text(input_ids, attention_mask, position_ids)
        image = self.vision(pixel_values)
        a = ops.l2_normalize(self.text_projection(text["pooler_output"]))
        b = ops.l2_normalize(self.image_projection(image["pooler_output"]))
        per_text = a @ ops.transpose(b, perm=(1, 0)) * ops.exp(self.logit_scale)
        per_image = ops.transpose(per_text, perm=(1, 0))
        loss = nn.contrastive_loss(per_text, per_image) if return_loss else None
        compared = {"logits_per_image": per_image, "logits_per_text": per_text, "text_embeds": a, "image_embeds": b}
        return {"loss": loss, **compared, "text_model_output": text, "vision_model_output": image}


def _patch_mean(out, inputs) -> Value:
    return ops.mean(out["last_hidden_state"][:, 1:], axis=1)


def _text_inputs(batch: str = "batch") -> dict[str, str]:
    return dict.fromkeys(("input_ids", "attention_mask", "position_ids"), f"i64[{batch} seq]")


def _pixels(c: ClipConfig, size: str = "", batch: str = "batch") -> dict[str, str]:
    return {"pixel_values": f"f32[{batch} {c.vision.num_channels} {size or f'{c.vision.image_size} {c.vision.image_size}'}]"}


_BLOCK = {
    "blocks.*.{attention,mlp}.norm": "encoder.layers.*.{layer_norm1,layer_norm2}",
    "blocks.*.attention.layer.{q,k,v,out}": "encoder.layers.*.self_attn.{q_proj,k_proj,v_proj,out_proj}",
    "blocks.*.mlp.layer.{up,down}": "encoder.layers.*.mlp.{fc1,fc2}",
}
_OWN = {
    "text": {"{words,positions}": "embeddings.{token_embedding,position_embedding}", "norm": "final_layer_norm"},
    "vision": {
        "{first,patches.projection,positions}": "embeddings.{class_embedding,patch_embedding,position_embedding}",
        "{norm_before,norm}": "{pre_layrnorm,post_layernorm}",
    },
}


def _names(tower: str, place: str) -> dict[str, str]:
    """The table of one tower that stands at `place` of a head."""
    return {place + ours: f"{tower}_model.{theirs}" for ours, theirs in (_OWN[tower] | _BLOCK).items()}


_TEXT, _IMAGE = ("input_ids", "attention_mask"), ("pixel_values",)


def _text_head(build, place: str) -> Head:
    return Head(build, lambda c: _text_inputs(), _TEXT, names={**_names("text", place), "projection": "text_projection"})


def _vision_head(build, place: str, **labels) -> Head:
    names = {**_names("vision", place), "projection": "visual_projection"}
    flags = lambda c: {} if labels else {"interpolate_pos_encoding": _pixels(c, "height width")}
    return Head(build, inputs_of(_pixels, **labels), _IMAGE, names=names, flags=flags)


CARD = Card(
    model_type="clip",
    also_types=("clip_text_model", "clip_vision_model"),
    config=ClipConfig,
    heads={
        "CLIPModel": Head(
            Clip,
            lambda c: _text_inputs("text_batch") | _pixels(c, batch="image_batch"),
            _TEXT + _IMAGE,
            names=_names("text", "text.") | _names("vision", "vision.") | {"image_projection": "visual_projection"},
            flags=lambda c: {"interpolate_pos_encoding": _pixels(c, "height width", "image_batch"), "return_loss": {}},
        ),
        "CLIPTextModel": _text_head(lambda c: TextTower(c.text), ""),
        "CLIPVisionModel": _vision_head(lambda c: VisionTower(c.vision), ""),
        "CLIPTextModelWithProjection": _text_head(
            lambda c: nn.Projected(TextTower(c.text), c.text.hidden_size, c.text.projection_dim, "text_embeds"), "body."
        ),
        "CLIPVisionModelWithProjection": _vision_head(
            lambda c: nn.Projected(VisionTower(c.vision), c.vision.hidden_size, c.vision.projection_dim, "image_embeds"), "body."
        ),
        "CLIPForImageClassification": _vision_head(
            lambda c: nn.image_classifier(VisionTower(c.vision), c.vision.hidden_size, c, _patch_mean), "body.", labels=nn.label_type
        ),
    },
    names={},
    unused=("*embeddings.position_ids",),
)
