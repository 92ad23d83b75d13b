"""What every session is: NumPy in, NumPy out, inputs checked by name, rank, dtype and size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.definition import check_inputs
from ..ir.errors import InputError
from ..ir.graph import Graph
from ..ir.types import NUMPY_DTYPES, Type

if TYPE_CHECKING:
    from .batching import Costs


class Session:
    """A compiled graph on one target and device.

    `graph` says what goes in and comes out; a target defines `run`, which gets arrays of the graph's dtypes in the graph's order.
    """

    target = "none"
    compiles_sizes = False  # whether the first call of each set of sizes takes seconds

    def __init__(self, graph: Graph, *, device: str = "cpu", name: str = "the model"):
        self.graph, self.device, self.name = graph, device, name
        self._costs: Costs | None = None

    @property
    def inputs(self) -> dict[str, Type]:
        """Input types by name."""
        return {v.name: v.type for v in self.graph.inputs}

    @property
    def outputs(self) -> dict[str, Type]:
        """Output types by name."""
        return {k: v.type for k, v in self.graph.outputs.items()}

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs for arrays that fit."""
        raise TypeError(f"{type(self).__name__} does not define run")

    def __call__(self, **inputs: Any) -> dict[str, np.ndarray]:
        """The outputs by name. InputError names the input that does not fit."""
        arrays = {k: _array(k, x) for k, x in inputs.items() if x is not None}
        check_inputs(self.graph, arrays, self.name)
        return self.run({k: arrays[k].astype(NUMPY_DTYPES[t.dtype], copy=False) for k, t in self.inputs.items()})

    def many(self, examples: Sequence[Mapping[str, Any]], *, pad: Mapping[str, Any] | None = None, most: int = 64) -> list[dict[str, np.ndarray]]:
        """The outputs of examples of different lengths, each given and returned without the batch axis.

        Those of like length share a call of `most` rows at most; how they are divided follows from how long earlier calls took. `pad` gives
        padding by input name, 0 unless named. InputError names the example that does not fit.
        """
        from .batching import Costs, run_many

        self._costs = self._costs or Costs()
        return run_many(self, examples, self._costs, pad=pad or {}, most=most)

    def __repr__(self) -> str:
        show = lambda types: ", ".join(f"{k}: {t}" for k, t in types.items())
        return f"<{self.target} session of {self.name} on {self.device}: {show(self.inputs)} -> {show(self.outputs)}>"


def _array(name: str, x: Any) -> np.ndarray:
    try:
        return np.asarray(x)
    except ValueError as error:  # lists of unequal length
        raise InputError(f"input {name!r} is no array: {error}") from error
