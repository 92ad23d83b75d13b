"""A definition as a pure JAX function: `jax.jit`, `jax.grad`, `jax.vmap` and sharded parameters all work on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from ..ir import ops
from ..ir.definition import Definition, check_inputs
from ..ir.errors import InputError, UsageError, nearest
from ..ir.graph import Graph, Param
from ..ir.ops.loop import path_at, starred
from ..ir.passes import push_slices
from ..ir.passes.roll import roll as rolled
from ..ir.table import lower, run
from ..ir.types import KINDS, Type, dtype_of
from .jax_table import JAX, Row, jax, jnp, native_dtype

Arrays = Mapping[str, Any]


def as_function(
    definition: Definition, *, outputs: Sequence[str] | None = None, training: bool = False, dtype: str | None = None, roll: bool = False
) -> tuple[Any, ...]:
    """The model as a pure function and its parameters, a flat dict by checkpoint name.

    Without training `(fn, params)`, called as `fn(params, **inputs) -> outputs`. With training `(fn, params, state)`, called as
    `fn(params, state, key, **inputs) -> (outputs, state)`: dropout draws from `key`, batch norm updates `state`.

    `params` are the trainable floats and nothing else, so that `jax.grad` and an optimizer over all of them is right. Integer buffers and
    statistics are state: given back by training, and closed over without it, where an entry of `params` of that name comes first:
    `fn({**params, **state}, ...)` evaluates what was trained.

    `roll` runs repeated blocks as one `lax.scan`: neither XLA nor an optimizer then sees how deep the model is, but each step costs more on a CPU.
    A parameter of those blocks is one array [blocks ...] in `params`, named `h.*.ln_1.weight`; `weights_of` gives the checkpoint's names again.
    Random draws are the same as without.

    `dtype` stores trainable floats as "bf16", "f16", "f32" or "f64" (with `jax_enable_x64`); a run computes in the dtype of `params`.
    A graph is traced for the set of inputs given; None is an input left out. Raises UsageError for an unknown dtype, InputError for an input or
    parameter that does not fit.
    """
    dtype = checked_float(dtype)
    params = {p.key: _weight(definition, p, dtype) for p in definition.params if p.trainable}
    state = {p.key: _weight(definition, p, "f32") for p in definition.params if not p.trainable}

    @cache
    def graph_of(names: frozenset[str]) -> Graph:
        graph = definition.graph(names, outputs, training=training)
        return lower(rolled(graph) if roll else push_slices(graph), JAX)

    if roll:
        params = _joined(params, rolled(definition.graph(training=training)))
    known = [*params, *state]

    def call(weights: Arrays, key: Any, inputs: Arrays) -> dict[str, Any]:
        _check_params(definition.name, weights, known)
        weights, present = _rows(weights), definition.present(inputs)
        graph = graph_of(present)
        arrays = {v.name: jnp.asarray(inputs[v.name]) for v in graph.inputs if v.name in present}
        if all(isinstance(d, int) for x in arrays.values() for d in x.shape):  # sizes are symbolic under jax.export
            check_inputs(_without_key(graph), arrays, definition.name)
        if any(v.name == "random_key" for v in graph.inputs):
            arrays["random_key"] = _key_data(key)
        return evaluate(graph, weights, arrays)

    def fn(params: Arrays, **inputs: Any) -> dict[str, Any]:
        return call({**state, **params}, None, inputs)

    def train(params: Arrays, state: Arrays, key: Any, **inputs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        made = call({**state, **params}, key, inputs)
        new = {k.removeprefix("update."): x for k, x in made.items() if k.startswith("update.")}
        outputs = {k: x for k, x in made.items() if not k.startswith("update.")}
        return outputs, {k: new[k].astype(x.dtype) if k in new else x for k, x in state.items()}

    return (train, params, state) if training else (fn, params)


def weights_of(params: Arrays, state: Arrays | None = None) -> dict[str, np.ndarray]:
    """Parameters and state as NumPy arrays by checkpoint name; integers have the width that JAX computed in."""
    return {k: np.asarray(x) for k, x in _rows({**(state or {}), **params}).items()}


def evaluate(graph: Graph, weights: Arrays, inputs: Arrays) -> dict[str, Any]:
    """The outputs of a lowered graph, whose `f32` is the dtype of its trainable parameters, else of its other ones, else of its inputs."""
    params = graph.params()
    float = _float_of([weights[p.key] for p in params if p.trainable], [weights[p.key] for p in params], inputs.values())
    stacks: dict[int, Any] = {}

    def fit(x: Any, type: Type) -> Any:
        if not isinstance(x, Row):
            return jnp.asarray(x).astype(run_dtype(type, float))
        if id(x.stack) not in stacks:
            stacks[id(x.stack)] = fit(x.stack, type)
        return Row(stacks[id(x.stack)], x.index)

    table = JAX.for_run(float)
    feed = {p: fit(weights[p.key], p.type) for p in params} | {v: table.agree(v, fit(inputs[v.name], v.type)) for v in graph.inputs}
    made = run(graph, table, feed)
    return {k: fit(jnp.asarray(made[k]), v.type) for k, v in graph.outputs.items()}


def as_program(graph: Graph) -> tuple[Callable[[Sequence[Any], Sequence[Any]], tuple[Any, ...]], list[Param]]:
    """`program(weights, inputs) -> outputs` by place, as a compiled artifact wants them, and the parameters in the order of `weights`.

    Inputs and outputs come in the graph's order. Products of f32 are f32 on every device, which by default use fewer bits on some.
    """
    graph = lower(push_slices(graph), JAX)
    params = graph.params()

    def program(weights: Sequence[Any], inputs: Sequence[Any]) -> tuple[Any, ...]:
        by_key = {p.key: x for p, x in zip(params, weights, strict=True)}
        by_name = {v.name: x for v, x in zip(graph.inputs, inputs, strict=True)}
        with jax.default_matmul_precision("highest"):
            return tuple(evaluate(graph, by_key, by_name).values())

    return program, params


def checked_float(dtype: str | None) -> str:
    """The name of a float to compute in, f32 by default. UsageError for one that is unknown, or that JAX was not told to use."""
    if dtype not in (None, *KINDS["float"]):
        raise UsageError(f"dtype {dtype!r} is not a float{nearest(str(dtype), KINDS['float'])}")
    if dtype == "f64" and not jax.config.read("jax_enable_x64"):
        raise UsageError("dtype 'f64' is off in this process\n  run: jax.config.update('jax_enable_x64', True)")
    return dtype or "f32"


def run_dtype(type: Type, float: str) -> np.dtype:
    """What JAX holds a value of that type in, where the graph's `f32` is another float."""
    return native_dtype(float if type.dtype == "f32" else type.dtype)


def _weight(definition: Definition, param: Param, float: str) -> Any:
    return jnp.asarray(definition.weights.array(param.key)).astype(run_dtype(param.type, float))


def _joined(params: Arrays, graph: Graph) -> dict[str, Any]:
    """`params` with those joined that the loops of a graph read in turn."""
    params = dict(params)
    for node in graph.live():
        if node.op is ops.loop:
            own, count = node.inputs[node.attrs["carries"] + node.attrs["shared"] :], node.attrs["count"]
            for i in range(0, len(own), count):
                keys = [v.key if isinstance(v, Param) else "" for v in own[i : i + count]]
                if set(keys) <= set(params) and (name := starred(keys)):
                    params[name] = jnp.stack([params.pop(k) for k in keys])
    return params


def _rows(weights: Arrays) -> dict[str, Any]:
    """Each parameter by its checkpoint name, those that are joined as rows."""
    alone = {k: x for k, x in weights.items() if "*" not in k}
    return alone | {path_at(k, i): Row(x, i) for k, x in weights.items() if "*" in k for i in range(x.shape[0])}


def _float_of(*groups: Iterable[Any]) -> str:
    """The common float of the first group that has floats."""
    for group in groups:
        if found := [x.dtype for x in group if jnp.issubdtype(x.dtype, jnp.floating)]:
            return dtype_of(jnp.result_type(*found))
    return "f32"


def _check_params(name: str, weights: Arrays, known: Iterable[str]) -> None:
    known = set(known)
    if unknown := sorted(set(weights) - known):
        raise InputError(f"{name} has no parameter {unknown[0]!r}{nearest(unknown[0], known)}")
    if missing := sorted(known - set(weights)):
        raise InputError(f"params of {name} lack {', '.join(missing[:5])}{' ...' if missing[5:] else ''}; give all that as_function returned")


def _without_key(graph: Graph) -> Graph:
    signature = Graph(like=graph)
    signature.inputs = [v for v in graph.inputs if v.name != "random_key"]
    return signature


def _key_data(key: Any) -> Any:
    if key is None:
        raise InputError("key is None, but the model draws random numbers in training; give jax.random.key(seed)")
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jnp.asarray(key)
    if data.shape != (2,):
        raise InputError(f"key has {list(data.shape)} words, expected [2]: make it by jax.random.key(seed, impl='threefry2x32')")
    return data
