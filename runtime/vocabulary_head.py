"""The linear layer that makes a decoder's logits, apart from its graph on onnxruntime: all of them, or none but those that can be the greatest.

A step that looks for the likeliest word reads a matrix of all words to find one. Here it reads the matrix in bytes, a fourth of it, which gives each
word's score within a bound; where the bounds of two words do not overlap, the one below cannot be the likeliest. What is left, mostly a handful,
is scored in float32. So the token is the one of float32: the bytes choose what is looked at, never what is said.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, parser

LEAST = 1 << 22  # elements: what is smaller takes a step no time worth saving
MOST_ROWS = 32  # from here on products in float32 are as fast
FEW = 32  # a word in so many is looked at again, at most: more take longer than the whole layer
TRIALS = 8  # steps before a model whose words cannot be told apart by bytes is left alone
_CHUNK = 512  # rows that become bytes at once: what is in the processor's cache is read several times

_ALL = "(float[rows, size] states) => (float[rows, words] scores) { scores = Gemm<transB = 1>(states, weight, bias) }"

# States become numbers of 14 bits in two digits of 7, which even the kernels that add two products in 16 bits cannot overflow; `unit` is the value of
# one, and each digit has 64 as its zero. Scores may be off by the bytes' rounding (Cauchy-Schwarz) and by half a unit times the sum of the bytes.
_POSSIBLE = """(float[rows, size] states) => (bool[rows, words] possible) {
    axis = Constant<value_ints = [1]>()
    tiny = Constant<value_float = 1e-30>()
    top = Constant<value_float = 8127.0>()
    middle = Constant<value_float = 8256.0>()
    radix = Constant<value_float = 128.0>()
    one = Constant<value_float = 1.0>()
    magnitudes = Abs(states)
    greatest = ReduceMax(magnitudes, axis)
    at_most = Div(greatest, top)
    unit = Max(at_most, tiny)
    exact = Div(states, unit)
    whole = Round(exact)
    number = Add(whole, middle)
    quotient = Div(number, radix)
    high = Floor(quotient)
    without_low = Mul(high, radix)
    low = Sub(number, without_low)
    both = Concat<axis = 0>(high, low)
    digits = Cast<to = 2>(both)
    parts = com.microsoft.MatMulIntegerToFloat(digits, bytes, one, scale, zero)
    flat = Constant<value_ints = [2, -1]>()
    columns = Reshape(parts, flat)
    values = Constant<value = float[1, 2] {128, 1}>()
    sums = MatMul(values, columns)
    as_rows = Constant<value_ints = [-1, WORDS]>()
    products = Reshape(sums, as_rows)
    scaled = Mul(products, unit)
    scores = Add(scaled, bias)
    length = ReduceL2(states, axis)
    sources = Concat<axis = 1>(length, unit)
    margin = MatMul(sources, doubts)
    most = Add(scores, margin)
    least = Sub(scores, margin)
    certain = ReduceMax(least, axis)
    possible = GreaterOrEqual(most, certain)
}"""


class VocabularyHead:
    """Scores of words for states f32[rows size], by a weight f32[words size] and a bias f32[words]; `open` makes a session of a model."""

    def __init__(self, states: str, weight: np.ndarray, bias: np.ndarray | None, open: Callable[..., Any]):
        self.states, self.weight, self.open = states, weight, open  # the name of the output that the states are
        self.bias = np.zeros(len(weight), np.float32) if bias is None else bias
        self.tried = self.missed = 0

    @classmethod
    def cut(cls, model: ModelProto, output: str, folder: str, arrays: Mapping[str, np.ndarray], open: Callable[..., Any]) -> VocabularyHead | None:
        """The linear layer that makes an output [batch seq words]; in the model its input [n size] becomes the output instead.

        Weights lie in the model, in files below `folder`, or in `arrays`. None, and the model as it was, where the output is not made by a large
        linear layer in float32.
        """
        graph = model.graph
        makers = {name: node for node in graph.node for name in node.output}
        readers = Counter(name for node in graph.node for name in node.input)
        tail = [makers[output]] if output in makers else []
        if tail and tail[0].op_type == "Reshape" and tail[0].input and readers[tail[0].input[0]] == 1:
            tail.append(makers.get(tail[0].input[0], tail[0]))
        if not tail or not _is_linear(gemm := tail[-1]) or gemm.input[0] not in makers or readers[output]:
            return None
        if any(v.name in (gemm.input[0], gemm.output[0]) and v.name != output for v in graph.output):
            return None  # what is asked for besides stays where it is
        stored = {t.name: t for t in graph.initializer}
        found = [_stored(stored.get(name), folder, arrays) for name in gemm.input[1:]]
        weight, bias = found[0], found[1] if len(found) > 1 else None
        if weight is None or weight.ndim != 2 or weight.size < LEAST or (len(found) > 1 and (bias is None or bias.shape != weight.shape[:1])):
            return None
        states = gemm.input[0]
        for node in tail:
            graph.node.remove(node)
        for name in gemm.input[1:]:
            if readers[name] == 1:
                graph.initializer.remove(stored[name])
        graph.output.remove(next(v for v in graph.output if v.name == output))
        graph.output.append(helper.make_tensor_value_info(states, TensorProto.FLOAT, ["rows", weight.shape[1]]))
        return cls(states, weight, bias, open)

    def scores(self, states: np.ndarray) -> np.ndarray:
        """All scores, f32[rows words]."""
        return self._all.run(None, {"states": states})[0]

    def greatest(self, states: np.ndarray) -> np.ndarray:
        """f32[rows words]: scores of all words that can have the greatest one of their row, and minus infinity for the others."""
        if len(states) > MOST_ROWS or (self.tried >= TRIALS and 2 * self.missed > self.tried):
            return self.scores(states)
        rows, words = np.divmod(np.flatnonzero(self._possible.run(None, {"states": states})[0]), len(self.weight))
        self.tried += 1
        if FEW * len(rows) > len(states) * len(self.weight):
            self.missed += 1
            return self.scores(states)
        made = np.full((len(states), len(self.weight)), -np.inf, np.float32)
        made[rows, words] = np.einsum("nk,nk->n", self.weight[words], states[rows]) + self.bias[words]
        return made

    @cached_property
    def _all(self) -> Any:
        return self._session(_ALL, {}, {"weight": self.weight, "bias": self.bias})

    @cached_property
    def _possible(self) -> Any:
        words, size = self.weight.shape
        found = {"bytes": np.empty((size, words), np.int8), "scale": np.empty(words, np.float32), "doubts": np.empty((2, words), np.float32)}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            parts = [slice(i, i + _CHUNK) for i in range(0, words, _CHUNK)]
            for part, made in zip(parts, pool.map(lambda part: _in_bytes(self.weight[part]), parts), strict=True):
                for name, array in made.items():
                    found[name][..., part] = array
        inside = {**found, "zero": np.array(64, np.uint8), "bias": self.bias}
        return self._session(_POSSIBLE.replace("WORDS", str(words)), inside, {})

    def _session(self, text: str, inside: Mapping[str, np.ndarray], outside: Mapping[str, np.ndarray]) -> Any:
        model = parser.parse_model(f'<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]> head {text}')
        model.graph.initializer.extend(numpy_helper.from_array(x, k) for k, x in inside.items())
        for name, x in outside.items():
            tensor = model.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=x.shape, data_location=TensorProto.EXTERNAL)
            tensor.external_data.add(key="location", value="memory")
        return self.open(model.SerializeToString(), initializers=outside).ort


def _in_bytes(weight: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of a weight [n size] as bytes [size n] with a scale, and what a score may be off by: for states of length 1, and for their unit."""
    scale = np.maximum(np.abs(weight).max(1) / 127, np.float32(1e-30))
    exact = weight / scale[:, None]
    whole = np.rint(exact)
    lost = scale * np.linalg.norm(exact - whole, axis=1)
    rounding = 2.0**-20 * np.linalg.norm(weight, axis=1)  # of scores in float32 themselves
    half = 0.51 * scale * np.abs(whole).sum(1)  # and what float32 rounds in sums of digits
    return {"bytes": whole.T, "scale": scale, "doubts": np.stack([1.001 * lost + rounding, half])}


def _is_linear(node: NodeProto) -> bool:
    return node.op_type == "Gemm" and len(node.input) in (2, 3) and [(a.name, a.i) for a in node.attribute] == [("transB", 1)]


def _stored(tensor: TensorProto | None, folder: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """A stored tensor of float32 as an array, mapped where it lies in a file; None where it is not there as it should: onnxruntime will say so."""
    if tensor is None or tensor.data_type != TensorProto.FLOAT:
        return None
    if tensor.name in arrays:
        return arrays[tensor.name]
    try:
        if tensor.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        at = {entry.key: entry.value for entry in tensor.external_data}
        file, start, length = Path(folder, at["location"]), int(at.get("offset", 0)), 4 * math.prod(tensor.dims)
        if not Path(os.path.normpath(file)).is_relative_to(os.path.normpath(folder)) or start < 0:
            return None
        return np.memmap(file, np.uint8, "r").view(np.ndarray)[start : start + length].view(np.float32).reshape(tuple(tensor.dims))
    except (OSError, KeyError, ValueError, TypeError):
        return None
