"""Steps in PyTorch: keys and values are tensors of the session's device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...frontends.torch import to_array, to_tensor
from ...frontends.torch_table import DTYPES, torch
from ..torch import TorchSession
from .stepper import State, Stepper


class TorchStepper(Stepper):
    """A graph of a `TorchSession`."""

    session: TorchSession

    def zeros(self, name: str, shape: tuple[int, ...]) -> Any:
        """A tensor; floats have the session's dtype from the first step on."""
        return torch.zeros(shape, dtype=DTYPES[self.caches[name].dtype], device=self.session.place)

    def run(self, arrays: Mapping[str, np.ndarray], state: State, greatest_only: bool = False, last: int = 1) -> tuple[np.ndarray | None, State]:
        """One step; logits alone are copied to the host."""
        made = self.session.on_device({**self.host(arrays), **{k: state[k] for k in self.caches}})
        logits = to_array(made["logits"][:, -last:].float()) if "logits" in made else None
        return logits, {k: made[name] for k, name in self.made.items()}

    def select(self, state: State, rows: np.ndarray) -> State:
        """Rows by `index_select`."""
        index = to_tensor(rows, device=self.session.place)
        return {k: x.index_select(0, index) for k, x in state.items()}

    def shorten(self, state: State, tokens: int) -> State:
        """Views of what is left."""
        return {k: x[:, :, : x.shape[2] - tokens] for k, x in state.items()}
