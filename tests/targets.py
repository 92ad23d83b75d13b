"""One way to run a model on each target, and to take its gradients in each framework, for all tests that compare them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from oracle import Case

import interlingua as il
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


def gradients(model: Model, framework: str, inputs: Mapping[str, Any], losses: Iterable[str]) -> tuple[dict[str, float], Arrays]:
    """The losses, and the gradient of their sum for every trainable parameter by checkpoint name."""
    return _GRADIENTS[framework](model, inputs, list(losses))


def _torch(model: Model, inputs: Mapping[str, Any], losses: list[str]) -> tuple[dict[str, float], Arrays]:
    import torch

    net = model.to_torch(outputs=losses).eval()
    made = net(**{k: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for k, x in inputs.items()})
    sum(made.values()).backward()
    found = {k: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy() for k, p in net.named_parameters()}
    return {k: float(v.detach()) for k, v in made.items()}, found


def _jax(model: Model, inputs: Mapping[str, Any], losses: list[str]) -> tuple[dict[str, float], Arrays]:
    import jax

    fn, params = model.to_jax(outputs=losses)
    arrays = {k: x for k, x in inputs.items() if isinstance(x, np.ndarray)}
    flags = {k: x for k, x in inputs.items() if k not in arrays}

    def total(params: Any, arrays: Any) -> Any:
        made = fn(params, **arrays, **flags)
        return sum(made.values()), made

    (_, made), found = jax.jit(jax.value_and_grad(total, has_aux=True))(params, arrays)
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


_GRADIENTS: dict[str, Callable[[Model, Mapping[str, Any], list[str]], tuple[dict[str, float], Arrays]]] = {
    "torch": _torch,
    "jax": _jax,
    "tensorflow": _tensorflow,
}
