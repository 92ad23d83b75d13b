"""PyTorch as a target of sessions: one graph, its weights as tensors of a device, no gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..frontends.torch import program, to_array, to_tensor, weight
from ..frontends.torch_table import DTYPES, torch
from ..ir.definition import Definition
from ..ir.errors import TargetError, UsageError, nearest
from ..ir.graph import Graph
from ..ir.types import KINDS
from .session import Session


class TorchSession(Session):
    """A graph run by PyTorch under `inference_mode`.

    `device` is one of torch's ("cpu", "cuda", "cuda:0"), `dtype` what the floats are there (float32 unless "f16", "bf16" or "f64"; results have
    the graph's dtypes all the same), `compile` sends the program through `torch.compile`. Errors: MissingExtraError without torch, UsageError
    for an unknown dtype, TargetError for a device that is not there.
    """

    target = "torch"

    def __init__(self, definition: Definition, graph: Graph, device: str = "cpu", dtype: str | None = None, compile: bool = False):
        super().__init__(graph, device=device, name=definition.name)
        if dtype is not None and dtype not in KINDS["float"]:
            raise UsageError(f"dtype={dtype!r} is not a float dtype{nearest(dtype, KINDS['float'])}")
        self.place = _device(device)
        made = program(graph)
        params = {p.key: p for p in definition.params}
        self._weights = [
            to_tensor(made.literals[k], dtype if dtype and made.literals[k].dtype == np.float32 else "", self.place)
            if k in made.literals
            else weight(definition, params[k], dtype, self.place)
            for k in made.weights
        ]
        self._names = made.inputs
        self._function = torch.compile(made.function) if compile else made.function

    def on_device(self, arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Outputs on the device for arrays, or tensors that are there already, in the dtype that the session computes in."""
        given = [arrays[k] for k in self._names]
        with torch.inference_mode():
            return self._function(None, *self._weights, *[x if isinstance(x, torch.Tensor) else to_tensor(x, device=self.place) for x in given])

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs for arrays that fit."""
        made = self.on_device(arrays)
        return {k: to_array(made[k].to(DTYPES[t.dtype])) for k, t in self.outputs.items()}


def _device(name: str) -> torch.device:
    """A device that can be used; TargetError says why it cannot."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise TargetError(f"device {name!r} is not one that this PyTorch can use: {str(e).splitlines()[0]}\n  use 'cpu'") from None
    return device
