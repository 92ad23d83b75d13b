"""Interlingua: define a model once; train it in PyTorch, TensorFlow or JAX; compile it to ONNX or StableHLO; know that the numbers are right.

Everything is imported when it is first used, NumPy too.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Model": "model",
    "load": "model",
    "from_config": "model",
    "Layer": "ir.layer",
    "Param": "ir.graph",
    "ops": "ir.ops",
    "layers": "ir.layers",
    "compile": "runtime.targets",
    "open": "runtime.targets",
    "generator": "runtime.generation",
    "pipeline": "pipelines",
    "verify": "runtime.verify",
    "from_torch": "model",
    "from_jax": "model",
    "from_tensorflow": "model",
}

_MODULES = {"ops", "layers"}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'interlingua' has no attribute {name!r}")
    home = importlib.import_module(f".{_HOMES[name]}", __name__)
    value = home if name in _MODULES else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
