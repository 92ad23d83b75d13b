"""A definition as a `tf.Module`: variables under checkpoint names, compiled by XLA, trained with `tf.GradientTape`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..ir.definition import Definition, check_inputs
from ..ir.errors import UsageError, nearest
from ..ir.graph import Graph, Param
from ..ir.passes import push_slices
from ..ir.table import lower, run
from ..ir.types import KINDS, NUMPY_DTYPES, Type
from ..ir.weights import Weights
from .tensorflow_table import DTYPES, TF, TF_XLA, TensorflowTable, static_shape, tf

Tensor = Any
Function = Callable[..., dict[str, Tensor]]


class Module(tf.Module):
    """A definition whose parameters are `tf.Variable`s, kept in `weights` by checkpoint name.

    Those that training does not change by gradients are not trainable variables: integer buffers and batch-norm statistics.
    """

    def __init__(self, definition: Definition, outputs: Sequence[str] | None, jit_compile: bool | None, float: str):
        super().__init__(name=re.sub(r"\W", "_", f"m_{definition.name}"))
        self.definition, self.outputs, self.jit_compile, self.float = definition, outputs, jit_compile, float
        self.weights = variables_of(definition.weights, definition.params, float)
        self._function = lru_cache(maxsize=None)(self._compiled)

    def _compiled(self, names: frozenset[str], training: bool) -> tuple[Graph, Function]:
        graph = self.definition.graph(names, self.outputs, training=training)
        compiled = self.jit_compile
        if compiled is None:  # on a CPU, TensorFlow's kernels multiply the large matrices of a training step faster than XLA's
            compiled = not training or bool(tf.config.list_physical_devices("GPU"))
        function = as_function(graph, self.weights, (TF_XLA if compiled else TF).in_float(self.float), jit_compile=compiled)
        return graph, function.get_concrete_function()  # it has one trace for all sizes; TensorFlow warns of many functions from one place

    def __call__(self, training: bool = False, **inputs: Any) -> dict[str, Tensor]:
        """The outputs by name for tensors or arrays by name; None is an input left out.

        In training dropout draws from `tf.random`, and batch-norm statistics are assigned. Raises InputError for an input that does not fit.
        """
        names = self.definition.present(inputs)
        graph, function = self._function(names, bool(training))
        given = {k: _tensor(inputs[k]) for k in names if k in self.definition.inputs}
        if any(v.name == "random_key" for v in graph.inputs):
            given["random_key"] = tf.bitcast(tf.random.uniform([2], tf.int32.min, tf.int32.max, tf.int32), tf.uint32)
        given = {v.name: given[v.name] for v in graph.inputs if v.name in given}
        if all(x.shape.is_fully_defined() for x in given.values()):  # sizes may be unknown inside of another tf.function
            facts = {k: SimpleNamespace(shape=tuple(x.shape), dtype=np.dtype(x.dtype.as_numpy_dtype)) for k, x in given.items()}
            check_inputs(graph, facts, self.definition.name)
        made = function(*[tf.cast(given[v.name], dtype_in(v.type, self.float)) for v in graph.inputs])
        for name in [k for k in made if k.startswith("update.")]:
            self.weights[name.removeprefix("update.")].assign(made.pop(name))
        return made


def as_module(definition: Definition, *, outputs: Sequence[str] | None = None, jit_compile: bool | None = None, dtype: str | None = None) -> Module:
    """The model as a `tf.Module`, called as `net(training=False, **inputs) -> outputs by name`.

    One `tf.function` of symbolic sizes serves each set of inputs. XLA compiles it, except for training on a CPU, once for every set of concrete
    sizes, some seconds for a large model: where each call has other sizes, pad them to a few lengths or give `jit_compile=False`.

    `outputs` are globs (`hidden_states.*`); `dtype` stores float parameters as "bf16", "f16", "f32" or "f64" and computes in it. Raises UsageError
    for an unknown dtype, and in the first call for an output that its inputs do not give.
    """
    return Module(definition, outputs, jit_compile, checked_float(dtype))


def weights_of(module: Module) -> dict[str, np.ndarray]:
    """The variables of a module as NumPy arrays by checkpoint name."""
    return {key: variable.numpy() for key, variable in module.weights.items()}


def variables_of(weights: Weights, params: Iterable[Param], float: str = "f32") -> dict[str, Any]:
    """Parameters as `tf.Variable`s by checkpoint name, in the dtypes that the graph gives them; `f32` means `float`."""

    def variable(param: Param) -> Any:
        array = weights.array(param.key).astype(dtype_in(param.type, float).as_numpy_dtype, copy=False)
        # what TensorFlow refuses as the name of a graph node, it takes as the key of a dict
        name = re.sub(r"^[^A-Za-z0-9.]", "w", re.sub(r"[^\w.\\/>-]", "_", param.key, flags=re.ASCII))
        return tf.Variable(tf.constant(array), trainable=param.trainable, name=name)

    return {p.key: variable(p) for p in params}


def checked_float(dtype: str | None) -> str:
    """The float to compute in; UsageError for what is none."""
    if dtype is not None and dtype not in KINDS["float"]:
        raise UsageError(f"dtype={dtype!r} is not a float dtype{nearest(dtype, KINDS['float'])}")
    return dtype or "f32"


def as_function(graph: Graph, weights: Mapping[str, Any], table: TensorflowTable = TF, *, jit_compile: bool = False) -> Function:
    """A `tf.function` of the graph's inputs, by place in the graph's order and named as they are; `weights` are variables by checkpoint name."""
    low = lower(push_slices(graph), table)
    spec = [tf.TensorSpec(static_shape(v.shape), dtype_in(v.type, table.float), v.name) for v in graph.inputs]

    def call(*inputs: Tensor) -> dict[str, Tensor]:
        feed = {p: tf.convert_to_tensor(weights[p.key]) for p in low.params()}
        return run(low, table, feed | dict(zip(graph.inputs, inputs, strict=True)))

    return tf.function(call, input_signature=spec, autograph=False, jit_compile=jit_compile or None)


def dtype_in(type: Type, float: str) -> Any:
    """The TensorFlow dtype of a value where `f32` means `float`."""
    return DTYPES[float if type.dtype == "f32" else type.dtype]


def _tensor(x: Any) -> Tensor:
    """x as a tensor; a Python number or list is an array as NumPy makes one."""
    if tf.is_tensor(x) or isinstance(x, tf.Variable):
        return tf.convert_to_tensor(x)
    x = np.asarray(x)
    return tf.convert_to_tensor(x if x.dtype in _KNOWN else x.astype(np.float64 if x.dtype.kind == "f" else np.int64))


_KNOWN = frozenset(NUMPY_DTYPES.values())
