"""ResNet (https://arxiv.org/abs/1512.03385): residual convolutions, as a classifier or a backbone."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..ir.authoring import Card, Config, ConfigError, Head, Layer, Value, choice, inputs_of, nn, ops


@dataclass(kw_only=True)
class ResNetConfig(Config):
    """config.json of a ResNet checkpoint."""

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: list[int] = field(default_factory=lambda: [256, 512, 1024, 2048])
    depths: list[int] = field(default_factory=lambda: [3, 4, 6, 3])
    layer_type: str = choice("bottleneck", ("bottleneck", "basic"))
    hidden_act: str = choice("relu", nn.ACTIVATIONS)
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    out_features: list[str] | None = None
    out_indices: list[int] | None = None

    def check(self, where: str) -> None:
        """A depth for each width."""
        if len(self.depths) != len(self.hidden_sizes):
            raise ConfigError(f"{where}: depths has {len(self.depths)} entries, expected one for each of {len(self.hidden_sizes)} hidden_sizes")
        self.stages = nn.stage_names(len(self.depths), self.out_features, self.out_indices, where)


class ConvNorm(Layer):
    """Convolution, batch normalisation, activation."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1, activation: str = "relu"):
        self.conv = nn.Conv(n_in, n_out, (kernel, kernel), stride=(stride, stride), padding=(kernel // 2, kernel // 2), bias=False)
        self.norm, self.activation = nn.BatchNorm(n_out), nn.ACTIVATIONS[activation]

    def forward(self, x: Value) -> Value:
        """[batch in height width] -> [batch out height width]."""
        return self.activation(self.norm(self.conv(x)))


class Residual(Layer):
    """Convolutions beside a shortcut, which is a convolution where the shape changes."""

    def __init__(self, c: ResNetConfig, n_in: int, n_out: int, stride: int):
        changes = n_in != n_out or stride != 1
        self.shortcut = ConvNorm(n_in, n_out, 1, stride, "linear") if changes else nn.Identity()
        self.convolutions = _bottleneck(c, n_in, n_out, stride) if c.layer_type == "bottleneck" else _basic(n_in, n_out, stride)
        self.activation = nn.ACTIVATIONS[c.hidden_act]

    def forward(self, x: Value) -> Value:
        """[batch in height width] -> [batch out height width]."""
        y = x
        for convolution in self.convolutions:
            y = convolution(y)
        return self.activation(y + self.shortcut(x))


def _bottleneck(c: ResNetConfig, n_in: int, n_out: int, stride: int) -> list[Layer]:
    """Narrow, convolve, widen; the stride is the middle one's, or the first one's."""
    inner, early = n_out // 4, c.downsample_in_bottleneck
    first, middle = ConvNorm(n_in, inner, 1, stride if early else 1), ConvNorm(inner, inner, 3, 1 if early else stride)
    return [first, middle, ConvNorm(inner, n_out, 1, activation="linear")]


def _basic(n_in: int, n_out: int, stride: int) -> list[Layer]:
    return [ConvNorm(n_in, n_out, 3, stride), ConvNorm(n_out, n_out, 3, activation="linear")]


class ResNet(Layer):
    """A stem and stages of residual blocks."""

    def __init__(self, c: ResNetConfig):
        self.stem = ConvNorm(c.num_channels, c.embedding_size, 7, 2, c.hidden_act)
        widths = [c.embedding_size, *c.hidden_sizes]
        strides = [2 if c.downsample_in_first_stage else 1] + [2] * (len(c.depths) - 1)
        self.stages = [
            [Residual(c, n_in if i == 0 else n_out, n_out, stride if i == 0 else 1) for i in range(depth)]
            for n_in, n_out, stride, depth in zip(widths, c.hidden_sizes, strides, c.depths, strict=False)
        ]

    def states(self, pixel_values: Value) -> list[Value]:
        """What the stem and each stage make of the image."""
        x = ops.max_pool(self.stem(pixel_values), kernel=(3, 3), stride=(2, 2), padding=((1, 1), (1, 1)))
        states = [x]
        for stage in self.stages:
            for block in stage:
                x = block(x)
            states.append(x)
        return states

    def forward(self, pixel_values):
        """-> last_hidden_state [batch n height width], pooler_output [batch n 1 1]."""
        states = self.states(pixel_values)
        return {"last_hidden_state": states[-1], "pooler_output": ops.mean(states[-1], axis=(2, 3), keep=True), "hidden_states": states}


def _pooled(out, inputs) -> Value:
    return ops.squeeze(out["pooler_output"], (2, 3))


class Backbone(Layer):
    """The states of chosen stages."""

    def __init__(self, c: ResNetConfig):
        self.body, self.chosen = ResNet(c), c.stages

    def forward(self, pixel_values):
        """-> feature_maps.0, ... [batch n height width]."""
        states = self.body.states(pixel_values)
        return {"feature_maps": [states[i] for i in self.chosen], "hidden_states": states}


def _head(build, prefix="resnet", **labels) -> Head:
    return Head(build, inputs_of(lambda c: {"pixel_values": f"f32[batch {c.num_channels} height width]"}, **labels), ("pixel_values",), prefix)


CARD = Card(
    model_type="resnet",
    config=ResNetConfig,
    base="resnet",
    heads={
        "ResNetModel": _head(ResNet, prefix=""),
        "ResNetForImageClassification": _head(lambda c: nn.image_classifier(ResNet(c), c.hidden_sizes[-1], c, _pooled), labels=nn.label_type),
        "ResNetBackbone": _head(Backbone, prefix=""),
    },
    names={
        "stem.conv": "embedder.embedder.convolution",
        "stem.norm": "embedder.embedder.normalization",
        **{
            f"stages.*.*.{ours}.{a}": f"encoder.stages.*.layers.*.{theirs}.{b}"
            for ours, theirs in {"shortcut": "shortcut", "convolutions.*": "layer.*"}.items()
            for a, b in {"conv": "convolution", "norm": "normalization"}.items()
        },
        "classifier": "classifier.1",
    },
)
