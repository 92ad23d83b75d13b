"""Steps on onnxruntime: keys and values are OrtValues, bound as the outputs of one step and the inputs of the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from ...ir.cache import PAST
from ...ir.errors import InterlinguaError
from ...ir.types import NUMPY_DTYPES
from ..ort import OnnxSession, as_array, reason
from .stepper import State, Stepper

_ELEMENTS = {"tensor(float)": TensorProto.FLOAT, "tensor(float16)": TensorProto.FLOAT16, "tensor(double)": TensorProto.DOUBLE}
_ELEMENTS |= {"tensor(bfloat16)": TensorProto.BFLOAT16}


class OrtStepper(Stepper):
    """A graph of an `OnnxSession`, run through its IOBinding."""

    session: OnnxSession

    def __init__(self, session: OnnxSession):
        super().__init__(session)
        kind, _, number = session.device.partition(":")
        self.place = ("cpu" if kind == "cpu" else "cuda", int(number or 0))
        declared = [*session.ort.get_inputs(), *session.ort.get_outputs()]
        self.elements = {x.name: x.type for x in declared}
        self._gatherers: dict[tuple[int | str, ...], OnnxSession] = {}  # by axis and names

    def zeros(self, name: str, shape: tuple[int, ...]) -> Any:
        """An OrtValue, which has elements of the graph's dtype."""
        element = _ELEMENTS[self.elements[name]]
        if element == TensorProto.BFLOAT16:
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.zeros(shape, np.uint16), element)
        return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, NUMPY_DTYPES[self.caches[name].dtype]), *self.place)

    def run(self, arrays: Mapping[str, np.ndarray], state: State, greatest_only: bool = False, last: int = 1) -> tuple[np.ndarray | None, State]:
        """One step; logits alone, or what the session's head makes them of, are copied to the host."""
        given, head = self.host(arrays), self.session.head
        wanted = [] if "logits" not in self.outputs else [head.states if head else "logits"]
        made = self._bound(self.session, given, {k: state[k] for k in self.caches}, wanted, list(self.made.values()))
        state = {k: made[name] for k, name in self.made.items()}
        if not wanted:
            return None, state
        found = as_array(made[wanted[0]])
        if head is None:
            return found[:, -last:].astype(np.float32, copy=False), state
        rows = len(next(iter(given.values())))
        states = np.ascontiguousarray(found.reshape(rows, -1, found.shape[-1])[:, -last:]).reshape(-1, found.shape[-1])
        logits = head.greatest(states) if greatest_only else head.scores(states)
        return logits.reshape(rows, last, -1), state

    def select(self, state: State, rows: np.ndarray) -> State:
        """Rows, gathered by a graph of its own on the same device."""
        return self._gathered(state, rows, axis=0)

    def shorten(self, state: State, tokens: int) -> State:
        """Keys, gathered by a graph of its own on the same device."""
        left = next(iter(state.values())).shape()[2] - tokens
        return self._gathered(state, np.arange(left), axis=2)

    def _gathered(self, state: State, places: np.ndarray, axis: int) -> State:
        if (key := (axis, *state)) not in self._gatherers:
            self._gatherers[key] = self._gatherer(tuple(state), axis)
        made = self._bound(self._gatherers[key], {"places": np.ascontiguousarray(places, np.int64)}, state, [], [f"new.{k}" for k in state])
        return {k: made[f"new.{k}"] for k in state}

    def _bound(self, session: Any, given: Mapping[str, np.ndarray], kept: State, fetched: list[str], left: list[str]) -> State:
        """Outputs by name: `fetched` in host memory, `left` on the device."""
        binding = session.ort.io_binding()
        for k, x in given.items():
            binding.bind_cpu_input(k, x)
        for k, x in kept.items():
            binding.bind_ortvalue_input(k, x)
        for k in fetched:
            binding.bind_output(k)
        for k in left:
            binding.bind_output(k, *self.place)
        try:
            session.ort.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's errors have no common base
            raise InterlinguaError(f"{self.session.name} failed in onnxruntime {ort.__version__}: {reason(error)}") from error
        return dict(zip([*fetched, *left], binding.get_outputs(), strict=True))

    def _gatherer(self, names: tuple[str, ...], axis: int) -> OnnxSession:
        nodes = [helper.make_node("Gather", [k, "places"], [f"new.{k}"], axis=axis) for k in names]
        element = lambda k: _ELEMENTS[self.elements.get(k) or self.elements[self.made[k]]]
        info = lambda prefix: [helper.make_tensor_value_info(prefix + k, element(k), [f"{prefix}{k}_{i}" for i in range(4)]) for k in names]
        places = helper.make_tensor_value_info("places", TensorProto.INT64, ["n"])
        graph = helper.make_graph(nodes, "gather", [*info(""), places], info("new."))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return OnnxSession(model.SerializeToString(), device=self.session.device, name=f"the choice of {PAST}*", threads=1)
