"""What models are written in, for cards to import from one place."""

from __future__ import annotations

from . import layers as nn, ops
from .card import ENCODES_THEN_GENERATES, GENERATES, Card, Head, Part, inputs_of
from .config import Config, choice, only
from .errors import ConfigError, InputError
from .graph import Param, Value, current
from .layer import Layer, collect, collecting
from .sizes import Size, ceil_divide, maximum, minimum, symbol

__all__ = [
    "ENCODES_THEN_GENERATES",
    "GENERATES",
    "Card",
    "Config",
    "ConfigError",
    "Head",
    "InputError",
    "Layer",
    "Param",
    "Part",
    "Size",
    "Value",
    "ceil_divide",
    "choice",
    "collect",
    "collecting",
    "current",
    "inputs_of",
    "maximum",
    "minimum",
    "nn",
    "only",
    "ops",
    "symbol",
]
