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
        self._selectors: dict[tuple[str, ...], OnnxSession] = {}

    def zeros(self, name: str, shape: tuple[int, ...]) -> Any:
        """An OrtValue, which has elements of the graph's dtype."""
        element = _ELEMENTS[self.elements[name]]
        if element == TensorProto.BFLOAT16:
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.zeros(shape, np.uint16), element)
        return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, NUMPY_DTYPES[self.caches[name].dtype]), *self.place)

    def run(self, arrays: Mapping[str, np.ndarray], state: State, greatest_only: bool = False) -> tuple[np.ndarray | None, State]:
        """One step; logits alone, or what the session's head makes them of, are copied to the host."""
        given, head = self.host(arrays), self.session.head
        wanted = [] if "logits" not in self.outputs else [head.states if head else "logits"]
        made = self._bound(self.session, given, {k: state[k] for k in self.caches}, wanted, list(self.made.values()))
        state = {k: made[name] for k, name in self.made.items()}
        if not wanted:
            return None, state
        found = as_array(made[wanted[0]])
        if head is None:
            return found[:, -1].astype(np.float32, copy=False), state
        last = found.reshape(len(next(iter(given.values()))), -1, found.shape[-1])[:, -1]
        return head.greatest(last) if greatest_only else head.scores(last), state

    def select(self, state: State, rows: np.ndarray) -> State:
        """Rows gathered by a graph of its own on the same device."""
        if (names := tuple(state)) not in self._selectors:
            self._selectors[names] = self._selector(names)
        made = self._bound(self._selectors[names], {"rows": np.ascontiguousarray(rows, np.int64)}, state, [], [f"new.{k}" for k in names])
        return {k: made[f"new.{k}"] for k in names}

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

    def _selector(self, names: tuple[str, ...]) -> OnnxSession:
        nodes = [helper.make_node("Gather", [k, "rows"], [f"new.{k}"], axis=0) for k in names]
        element = lambda k: _ELEMENTS[self.elements.get(k) or self.elements[self.made[k]]]
        info = lambda prefix: [helper.make_tensor_value_info(prefix + k, element(k), [f"{prefix}{k}_{i}" for i in range(4)]) for k in names]
        rows = helper.make_tensor_value_info("rows", TensorProto.INT64, ["n"])
        graph = helper.make_graph(nodes, "select", [*info(""), rows], info("new."))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return OnnxSession(model.SerializeToString(), device=self.session.device, name=f"the choice of rows of {PAST}*", threads=1)
