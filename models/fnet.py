"""FNet (https://arxiv.org/abs/2105.03824): BERT with a Fourier transform in the place of attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..ir.authoring import Card, Layer, Size, Value, choice, nn, ops


@dataclass(kw_only=True)
class FNetConfig(nn.TextConfig):
    """config.json of an FNet checkpoint."""

    vocab_size: int = 32000
    hidden_act: str = choice("gelu_new", nn.ACTIVATIONS)
    type_vocab_size: int = 4
    pad_token_id: int | None = 3


def _transform(n: Size) -> tuple[Value, Value]:
    """Cosines and sines [n n] of the angles of a discrete Fourier transform, less whole turns, which leave before anything is rounded."""
    place = ops.iota(size=n)
    turn = place[:, None] * place[None, :] % ops.size(value=n)
    angle = ops.cast(turn, dtype="f32") * (2 * math.pi) / ops.size(value=n, dtype="f32")
    return ops.cos(angle), ops.sin(angle)


class Fourier(Layer):
    """The real part of the Fourier transform over positions and channels."""

    def forward(self, x: Value, *context: None) -> Value:
        """[batch seq n] -> [batch seq n]."""
        (cos, sin), (channel_cos, channel_sin) = (_transform(n) for n in x.shape[1:])
        return cos @ (x @ channel_cos) - sin @ (x @ channel_sin)


class ProjectedNorm(nn.LayerNorm):
    """Layer normalisation, then a linear layer."""

    def __init__(self, n: int, eps: float):
        super().__init__(n, eps)
        self.projection = nn.Linear(n, n)

    def forward(self, x: Value) -> Value:
        """[... n] -> [... n]."""
        return self.projection(super().forward(x))


class FNet(nn.TextEncoder):
    """Blocks that mix by transform; every head has the pooled state's weights."""

    def __init__(self, c: FNetConfig, pool: bool = True):
        super().__init__(c, pool=True)
        self.embeddings.norm = ProjectedNorm(c.hidden_size, c.layer_norm_eps)

    def attention(self, c: FNetConfig, **options: bool) -> Fourier:  # type: ignore[override]
        """What mixes positions."""
        return Fourier()


_OPTIONS = {"inputs": nn.inputs_without("attention_mask"), "usual": ("input_ids", "token_type_ids")}

CARD = Card(
    model_type="fnet",
    config=FNetConfig,
    base="fnet",
    heads={**nn.text_heads("FNet", FNet, "fnet", **_OPTIONS), **nn.pair_heads("FNet", FNet, "fnet", **_OPTIONS)},
    names={
        **nn.TEXT_NAMES,
        **nn.BERT_WORDS,
        "embeddings.norm.projection": "embeddings.projection",
        "blocks.*.attention.{layer.out,norm}": "encoder.layer.*.fourier.output.{dense,LayerNorm}",
    },
    also={"cls.predictions.bias": ["cls.predictions.decoder.bias"]},
    unused=("*embeddings.position_ids", "*.dft_mat_hidden", "*.dft_mat_seq"),
)
