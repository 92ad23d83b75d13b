"""One training step of bert-base (loss, gradients with dropout, plain descent) in three frameworks, ours against the reference library's.

Each side runs in a process of its own, as the rivals need an environment of their own; processes take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import WORK, Table, median, process, rival

BATCH, TOKENS, RATE = 8, 128, 1e-3
CONFIG = {"model_type": "bert", "vocab_size": 30522, "num_labels": 2}
HEAD = "BertForSequenceClassification"
FRAMEWORKS = {"PyTorch": ("torch", "reference-torch"), "JAX": ("jax", "flax"), "TensorFlow": ("tensorflow", "tf-keras")}


def batch() -> dict[str, np.ndarray]:
    """Token ids with a padded row, and labels."""
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(1, 30000, (BATCH, TOKENS)), np.ones((BATCH, TOKENS), np.int64)
    mask[0, TOKENS - TOKENS // 4 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids), "labels": rng.integers(0, 2, BATCH)}


# ---- sides: each gives a function that makes one step and returns the loss -----------------------


def ours() -> Any:
    """Our model with new weights."""
    import interlingua as il

    return il.from_config(CONFIG, HEAD)


def torch_step(net: Any) -> Callable[[], float]:
    """A step of a module that returns a loss."""
    import torch

    inputs = {k: torch.from_numpy(x) for k, x in batch().items()}
    optimizer = torch.optim.SGD(net.train().parameters(), RATE)

    def step() -> float:
        optimizer.zero_grad()
        loss = net(**inputs)["loss"]
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def reference_torch() -> Callable[[], float]:
    """The reference library's model, eager."""
    from transformers import BertConfig, BertForSequenceClassification

    return torch_step(BertForSequenceClassification(BertConfig()))


def jax_step(loss_of: Callable[..., Any], params: Any) -> Callable[[], float]:
    """A compiled step of a loss(params, key, inputs); the parameters are donated, as training does."""
    import jax

    inputs = {k: x.astype(np.int32) for k, x in batch().items()}

    def change(params: Any, key: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(params, key, inputs)
        return jax.tree.map(lambda p, g: p - RATE * g, params, gradients), loss

    compiled, state, key = jax.jit(change, donate_argnums=0), {"params": params}, jax.random.key(0)

    def step() -> float:
        state["params"], loss = compiled(state["params"], key)
        return float(loss)

    return step


def jax_ours() -> Callable[[], float]:
    """Our function of parameters and state."""
    fn, params, state = ours().to_jax(outputs=["loss"], training=True)
    return jax_step(lambda params, key, inputs: fn(params, state, key, **inputs)[0]["loss"], params)


def flax() -> Callable[[], float]:
    """The reference library's model in Flax, which leaves the loss to its caller."""
    import jax
    import jax.numpy as jnp
    from transformers import BertConfig, FlaxBertForSequenceClassification

    model = FlaxBertForSequenceClassification(BertConfig())

    def loss(params: Any, key: Any, inputs: Any) -> Any:
        given = {k: x for k, x in inputs.items() if k != "labels"}
        logits = model(**given, params=params, dropout_rng=jax.random.key_data(key), train=True).logits
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), inputs["labels"][:, None], 1).mean()

    return jax_step(loss, model.params)


def tensorflow_step(loss_of: Callable[[], Any], variables: Callable[[], Sequence[Any]]) -> Callable[[], float]:
    """A step as one `tf.function`."""
    import tensorflow as tf

    @tf.function
    def change() -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of()
        trained = list(variables())
        for variable, gradient in zip(trained, tape.gradient(loss, trained), strict=True):
            if gradient is not None:
                variable.assign_sub(RATE * tf.convert_to_tensor(gradient))
        return loss

    return lambda: float(change())


def tensorflow_ours() -> Callable[[], float]:
    """Our module."""
    net = ours().to_tensorflow(outputs=["loss"])
    inputs = batch()
    return tensorflow_step(lambda: net(**inputs, training=True)["loss"], lambda: net.trainable_variables)


def tf_keras() -> Callable[[], float]:
    """The reference library's model in TensorFlow."""
    os.environ["USE_TF"] = "1"
    import tensorflow as tf
    from transformers import BertConfig, TFBertForSequenceClassification

    net, inputs = TFBertForSequenceClassification(BertConfig()), {k: tf.constant(x) for k, x in batch().items()}
    net(inputs)
    return tensorflow_step(lambda: tf.reduce_mean(net(inputs, training=True).loss), lambda: net.trainable_variables)


SIDES: dict[str, Callable[[], Callable[[], float]]] = {
    "torch": lambda: torch_step(ours().to_torch(outputs=["loss"])),
    "reference-torch": reference_torch,
    "jax": jax_ours,
    "flax": flax,
    "tensorflow": tensorflow_ours,
    "tf-keras": tf_keras,
}


def one(side: str, steps: int) -> dict[str, Any]:
    """Seconds of the first step, which compiles, and of each further one."""
    step, seconds, losses = SIDES[side](), [], []
    for _ in range(steps + 1):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "steps": seconds[1:], "losses": losses}


def measure(steps: int = 3, rounds: int = 2, frameworks: Sequence[str] = tuple(FRAMEWORKS)) -> Table:
    """A row for each framework: medians, and the reference's as a multiple of ours."""
    table = Table(
        "Training step of bert-base (CPU)", ["framework", "interlingua", "reference", "reference / interlingua", "first step", "reference's"]
    )
    for framework in frameworks:
        sides = FRAMEWORKS[framework]
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for turn in range(rounds):
            for side in sides if turn % 2 == 0 else sides[::-1]:
                python = sys.executable if side in (sides[0], "reference-torch") else str(rival("python"))
                done = process([python, str(Path(__file__)), "--side", side, "--steps", str(steps)])
                if done.ok:
                    found[side].append(json.loads(done.output.splitlines()[-1]))
                else:
                    table.notes.append(f"{side}: fails ({(done.output.strip().splitlines() or [''])[-1][:160]})")
        medians = [median([s for f in found[side] for s in f["steps"]]) if found[side] else None for side in sides]
        firsts = [f"{median([f['first'] for f in found[side]]):.1f} s" if found[side] else "" for side in sides]
        ratio = f"{medians[1] / medians[0]:.3f}" if medians[0] and medians[1] else ""
        table.rows.append([framework, *(f"{m:.2f} s" if m else "fails" for m in medians), ratio, *firsts])
    table.notes.append(
        f"{BATCH} x {TOKENS} tokens, one row padded; loss, gradients with dropout, plain descent; medians of {rounds} x {steps} steps."
    )
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3, help="that are counted, after the first")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side")
    parser.add_argument("--frameworks", nargs="+", default=list(FRAMEWORKS), choices=list(FRAMEWORKS))
    parser.add_argument("--side", choices=list(SIDES), help="one side only, as JSON")
    given = parser.parse_args()
    if given.side:
        print(json.dumps(one(given.side, given.steps)))
    else:
        WORK.mkdir(parents=True, exist_ok=True)
        print(measure(given.steps, given.rounds, given.frameworks))
