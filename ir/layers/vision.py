"""Layers of image models: patches, learnt positions on a grid, and images rebuilt from patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import ops
from ..config import Config
from ..errors import ConfigError, nearest
from ..graph import Value
from ..layer import Layer
from ..sizes import Size
from .basic import Conv, Linear
from .heads import SequenceClassifier, pooled


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a size that may be given as one number."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class Identity(Layer):
    """x itself: a classifier without labels."""

    def forward(self, x: Value) -> Value:
        """x."""
        return x


def image_classifier(body: Layer, n: int, config: Config, pool: Any = pooled) -> SequenceClassifier:
    """A classifier of images by a state [batch n]; without labels it gives that state."""
    return SequenceClassifier(body, Linear(n, config.labels) if config.labels else Identity(), config, pool=pool)


class Patches(Layer):
    """Each patch of an image as a vector."""

    def __init__(self, channels: int, n: int, patch: tuple[int, int], bias: bool = True):
        self.projection = Conv(channels, n, patch, stride=patch, bias=bias)

    def forward(self, pixel_values: Value) -> Value:
        """[batch channels height width] -> [batch n rows columns]."""
        return self.projection(pixel_values)


def sequence_of(grid: Value) -> Value:
    """[batch n rows columns] -> [batch rows*columns n]."""
    return ops.rearrange(grid, "batch n rows columns -> batch (rows columns) n")


def positions_for(table: Value, grid: tuple[int, int], rows: Size, columns: Size) -> Value:
    """Positions [1+grid n], the first being no patch's, resampled (bicubic) from their grid to rows x columns."""
    if (rows, columns) == grid:
        return table
    n = table.shape[-1]
    image = ops.rearrange(ops.view(table[1:], (1, *grid, n)), "one rows columns n -> one n rows columns")
    image = ops.resize(image, sizes=(rows, columns), mode="cubic")
    return ops.concat(table[:1], ops.squeeze(sequence_of(image), 0), axis=0)


def pixel_shuffle(x: Value, factor: int) -> Value:
    """[batch channels*factor*factor rows columns] -> [batch channels rows*factor columns*factor] (https://arxiv.org/abs/1609.05158)."""
    return ops.rearrange(x, "batch (channels down right) rows columns -> batch channels (rows down) (columns right)", down=factor, right=factor)


class PixelDecoder(Layer):
    """Pixels from the state of each patch (https://arxiv.org/abs/2111.09886)."""

    def __init__(self, n: int, channels: int, factor: int):
        self.conv, self.factor = Conv(n, factor * factor * channels, (1, 1)), factor

    def forward(self, x: Value, rows: Size, columns: Size) -> Value:
        """[batch rows*columns n] -> [batch channels rows*factor columns*factor]."""
        grid = ops.rearrange(x, "batch (rows columns) n -> batch n rows columns", rows=rows, columns=columns)
        return pixel_shuffle(self.conv(grid), self.factor)


def masked_pixel_loss(pixels: Value, rebuilt: Value, masked: Value, patch: int, channels: int) -> Value:
    """Mean absolute difference over masked patches: pixels [batch channels height width], masked bool[batch patches]."""
    rows, columns = pixels.shape[2] // patch, pixels.shape[3] // patch
    mask = ops.cast(ops.view(masked, (masked.shape[0], 1, rows, columns)), dtype="f32")
    mask = ops.repeat(ops.repeat(mask, patch, 2), patch, 3)
    every = (0, 1, 2, 3)
    return ops.sum(ops.absolute(pixels - rebuilt) * mask, axis=every) / (ops.sum(mask, axis=every) + 1e-5) / float(channels)


def stage_names(stages: int, features: list[str] | None, indices: list[int] | None, where: str) -> list[int]:
    """Which of the stem (0) and the stages (1, 2, ...) a backbone returns; the last where nothing is said. ConfigError where both say otherwise."""
    names = ["stem", *(f"stage{i + 1}" for i in range(stages))]
    by_index = None if indices is None else [i % len(names) if -len(names) <= i < len(names) else i for i in indices]
    if by_index is not None and (wrong := [i for i in by_index if i >= len(names)]):
        raise ConfigError(f"{where}: out_indices has {wrong[0]}, expected numbers from 0 to {stages}")
    if features is not None and (unknown := [f for f in features if f not in names]):
        raise ConfigError(f"{where}: out_features has {unknown[0]!r}{nearest(unknown[0], names)}")
    by_name = None if features is None else [names.index(f) for f in features]
    if by_name is not None and by_index is not None and by_name != by_index:
        raise ConfigError(f"{where}: out_features {features} and out_indices {indices} name different stages")
    chosen = by_name if by_name is not None else by_index if by_index is not None else [stages]
    return sorted(chosen)
