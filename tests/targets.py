"""One way to run a model on each target, and to take its gradients in each framework, for all tests that compare them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from oracle import Case

import interlingua as il
from interlingua.ir.graph import Graph
from interlingua.ir.passes import push_slices
from interlingua.ir.table import lower, run
from interlingua.model import Model

Arrays = dict[str, np.ndarray]
TARGETS = ("numpy", "torch", "tensorflow", "jax", "onnx", "stablehlo")
FRAMEWORKS = ("torch", "tensorflow", "jax")


def load(case: Case, **options: Any) -> Model:
    """Our model of a case's checkpoint."""
    return il.load(case.folder, case.head, **options)


def present(model: Model, case: Case) -> list[str]:
    """The inputs of a case and the flags of it that are inputs of ours."""
    return [*case.inputs, *(k for k, on in case.flags.items() if on and k in model.flags)]


def available(model: Model, case: Case) -> list[str]:
    """The outputs of the reference that our model has; what it lacks are caches only."""
    ours = model.graph(present(model, case), ["*"]).outputs
    missing = [k for k in case.outputs if k not in ours and not k.startswith("past_key_values")]
    assert not missing, f"{case.head} lacks {missing}"
    return [k for k in case.outputs if k in ours]


def forward(model: Model, target: str, case: Case, outputs: Iterable[str], folder: Path, *, xla: bool = True) -> Arrays:
    """The outputs of a model on a target for a case's inputs; `xla` says whether TensorFlow's function is compiled, which takes seconds."""
    inputs, outputs = present(model, case), list(outputs)
    if target in ("onnx", "stablehlo"):
        model.export(folder, to=target, inputs=inputs, outputs=outputs, check=False)
        session = il.open(folder)
    else:
        options = {"numpy": {"dtype": "f32"}, "tensorflow": {"jit_compile": xla}}.get(target, {})
        session = il.compile(model, {"jax": "xla"}.get(target, target), inputs=inputs, outputs=outputs, **options)
    taken = {k: x for k, x in case.inputs.items() if k in session.inputs}
    return session(**taken)


def forward_by_op(model: Model, target: str, case: Case, outputs: Iterable[str]) -> Arrays:
    """What `forward` gives on "tensorflow" or "jax", op by op: they keep what they compile for an op, so that all heads of like sizes share it."""
    inputs = present(model, case)
    return _BY_OP[target](model, model.graph(inputs, list(outputs)), case.inputs, list(outputs))


def gradients(
    model: Model, framework: str, inputs: Mapping[str, Any], losses: Iterable[str], *, by_op: bool = False
) -> tuple[dict[str, float], Arrays]:
    """The losses, and the gradient of their sum for every trainable parameter by checkpoint name."""
    if framework == "tensorflow" and by_op:
        return _tensorflow_by_op(model, inputs, list(losses))
    if framework == "jax":
        return _jax(model, inputs, list(losses), jit=not by_op)
    return _GRADIENTS[framework](model, inputs, list(losses))


def _torch(model: Model, inputs: Mapping[str, Any], losses: list[str]) -> tuple[dict[str, float], Arrays]:
    import torch

    net = model.to_torch(outputs=losses).eval()
    made = net(**{k: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for k, x in inputs.items()})
    sum(made.values()).backward()
    found = {k: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy() for k, p in net.named_parameters()}
    return {k: float(v.detach()) for k, v in made.items()}, found


def _jax(model: Model, inputs: Mapping[str, Any], losses: list[str], jit: bool = True) -> tuple[dict[str, float], Arrays]:
    import jax

    fn, params = model.to_jax(outputs=losses)
    arrays = {k: x for k, x in inputs.items() if isinstance(x, np.ndarray)}
    flags = {k: x for k, x in inputs.items() if k not in arrays}

    def total(params: Any, arrays: Any) -> Any:
        made = fn(params, **arrays, **flags)
        return sum(made.values()), made

    function = jax.value_and_grad(total, has_aux=True)
    (_, made), found = (jax.jit(function) if jit else function)(params, arrays)
    return {k: float(v) for k, v in made.items()}, {k: np.asarray(v) for k, v in found.items()}


def _tensorflow(model: Model, inputs: Mapping[str, Any], losses: list[str]) -> tuple[dict[str, float], Arrays]:
    import tensorflow as tf

    net = model.to_tensorflow(outputs=losses, jit_compile=False)  # compiling each gradient would take half a minute
    with tf.GradientTape() as tape:
        made = net(**inputs)
        total = tf.add_n(list(made.values()))
    found = tape.gradient(total, net.trainable_variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    dense = lambda g: tf.convert_to_tensor(g).numpy()
    by_name = {p.key: v for p, v in ((p, net.weights[p.key]) for p in model.params)}
    key_of = {id(v): k for k, v in by_name.items()}
    return {k: float(v) for k, v in made.items()}, {key_of[id(v)]: dense(g) for v, g in zip(net.trainable_variables, found, strict=True)}


def _tensorflow_run(graph: Graph, weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    import tensorflow as tf

    from interlingua.frontends.tensorflow_table import TF

    low = lower(push_slices(graph), TF)
    feed = {p: tf.convert_to_tensor(weights[p.key]) for p in low.params()}
    return run(low, TF, feed | {v: tf.constant(inputs[v.name]) for v in graph.inputs})


def _tensorflow_by_op(model: Model, inputs: Mapping[str, Any], losses: list[str]) -> tuple[dict[str, float], Arrays]:
    import tensorflow as tf

    from interlingua.frontends.tensorflow import variables_of

    weights = variables_of(model.weights, model.params)
    trained = {p.key: weights[p.key] for p in model.params if p.trainable}
    with tf.GradientTape() as tape:
        made = _tensorflow_run(model.graph([*inputs], losses), weights, inputs)
        total = tf.add_n(list(made.values()))
    found = tape.gradient(total, trained, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return {k: float(v) for k, v in made.items()}, {k: tf.convert_to_tensor(g).numpy() for k, g in found.items()}


def _tensorflow_outputs(model: Model, graph: Graph, inputs: Arrays, outputs: list[str]) -> Arrays:
    weights = {p.key: model.weights.array(p.key) for p in graph.params()}
    return {k: v.numpy() for k, v in _tensorflow_run(graph, weights, inputs).items()}


def _jax_outputs(model: Model, graph: Graph, inputs: Arrays, outputs: list[str]) -> Arrays:
    import jax

    function, params = model.to_jax(outputs=outputs)
    jax.eval_shape(function, params, **inputs)  # it can be compiled
    return {k: np.asarray(v) for k, v in function(params, **inputs).items()}


_BY_OP: dict[str, Callable[[Model, Graph, Arrays, list[str]], Arrays]] = {"tensorflow": _tensorflow_outputs, "jax": _jax_outputs}
_GRADIENTS: dict[str, Callable[[Model, Mapping[str, Any], list[str]], tuple[dict[str, float], Arrays]]] = {
    "torch": _torch,
    "jax": _jax,
    "tensorflow": _tensorflow,
}
