"""The one interface that each target implements for generation: run a graph whose caches stay on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...ir.cache import PAST, PRESENT
from ...ir.graph import Graph
from ...ir.sizes import Size, bind, symbol
from ...ir.types import NUMPY_DTYPES, Type
from ..session import Session

State = dict[str, Any]  # keys and values on the device, by the name of the input that they are


class Stepper:
    """A graph on a target: host arrays and a state in, host logits and a new state out.

    A state belongs to the call that made it and to the next one, which may reuse its memory.
    """

    def __init__(self, session: Session):
        self.session, self.graph = session, session.graph
        self.inputs: dict[str, Type] = session.inputs
        self.outputs: dict[str, Type] = session.outputs
        self.caches = {k: t for k, t in self.inputs.items() if k.startswith(PAST)}
        self.made = {PAST + k.removeprefix(PRESENT): k for k in self.outputs if k.startswith(PRESENT)}
        self.grown = [k for k in self.caches if k in self.made]

    @property
    def most(self) -> tuple[int, str] | None:
        """How many tokens can be looked at, and why no more; None where there is no limit."""
        return next((limit for size, limit in self.graph.limits.items() if size == keys_of(self)), None)

    def begin(self, batch: int, room: int) -> State:
        """Empty keys and values for `batch` rows; there will be at most `room` tokens."""
        return {k: self.zeros(k, bind(self.caches[k].shape, {"batch": batch, "past": 0})) for k in self.grown}

    def zeros(self, name: str, shape: tuple[int, ...]) -> Any:
        """Zeros on the device for a cache."""
        raise TypeError(f"{type(self).__name__} does not define zeros")

    @property
    def gives_all(self) -> bool:
        """Whether the graph gives the logits of all positions, not of the last one alone."""
        return self.outputs["logits"].shape[1] != 1

    def run(self, arrays: Mapping[str, np.ndarray], state: State, greatest_only: bool = False, last: int = 1) -> tuple[np.ndarray | None, State]:
        """The logits of so many last positions, f32[rows last words], None where the graph has none, and the keys and values that it makes.

        With `greatest_only`, logits that are not the greatest of their row may be minus infinity.
        """
        raise TypeError(f"{type(self).__name__} does not define run")

    def select(self, state: State, rows: np.ndarray) -> State:
        """The state of rows in new places, some of them several times."""
        raise TypeError(f"{type(self).__name__} does not define select")

    def shorten(self, state: State, tokens: int) -> State:
        """A state of keys that grow without those of so many tokens that came last."""
        raise TypeError(f"{type(self).__name__} does not define shorten")

    def host(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Those arrays that the graph takes, dense and of its dtypes."""
        return {k: np.ascontiguousarray(arrays[k], NUMPY_DTYPES[t.dtype]) for k, t in self.inputs.items() if k in arrays}


def keys_of(stepper: Stepper) -> Size | None:
    """The size of old and new keys together in a graph whose cache grows."""
    return stepper.outputs[stepper.made[stepper.grown[0]]].shape[2] if stepper.grown else None


def rows_of(stepper: Stepper) -> Size | None:
    """The size of a call's own tokens in a graph whose cache grows."""
    keys = keys_of(stepper)
    return None if keys is None else keys - symbol("past")


def signature(graph: Graph) -> str:
    """The inputs of a graph, for an error."""
    return ", ".join(v.name for v in graph.inputs if not v.name.startswith(PAST))
