"""A model of one's own: authored once, trained on handwritten digits in PyTorch, TensorFlow and JAX, exported to ONNX and run.

python examples/digits.py [torch|tensorflow|jax ...]
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np

import interlingua as il
from interlingua import layers, ops


# --- the model -------------------------------------------------------------------------------------
class Digits(il.Layer):
    """Two convolutions and a classifier over 8 x 8 images."""

    def __init__(self):
        self.first = layers.Conv(1, 16, (3, 3), padding=(1, 1))
        self.second = layers.Conv(16, 32, (3, 3), stride=(2, 2), padding=(1, 1))
        self.dropout, self.classifier = layers.Dropout(0.1), layers.Linear(32 * 16, 10)

    def forward(self, image, labels=None):
        """image [batch 8 8] -> logits [batch 10], and the loss where labels are given."""
        x = ops.relu(self.second(ops.relu(self.first(image[:, None]))))
        logits = self.classifier(self.dropout(ops.rearrange(x, "batch n rows columns -> batch (n rows columns)")))
        return {"logits": logits, "loss": None if labels is None else ops.cross_entropy(logits, labels)}


def new_model() -> il.Model:
    """The model with new weights."""
    return il.Model(Digits(), inputs={"image": "f32[batch 8 8]", "labels": "i64[batch]"}, usual=["image"], seed=0)


# --- training it: three frameworks, the same definition -------------------------------------------
def batches(x: np.ndarray, y: np.ndarray, epochs: int = 12, size: int = 32):
    """Shuffled batches."""
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(x) // size * size).reshape(-1, size)
        yield from ((x[i], y[i]) for i in order)


def train_torch(model: il.Model, data) -> il.Model:
    """By torch.optim."""
    import torch

    torch.manual_seed(0)  # dropout
    net = model.to_torch().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for image, labels in data:
        optimizer.zero_grad()
        net(image=torch.from_numpy(image), labels=torch.from_numpy(labels))["loss"].backward()
        optimizer.step()
    return il.from_torch(net, like=model)


def train_tensorflow(model: il.Model, data) -> il.Model:
    """By a gradient tape and a Keras optimizer's rule, written out."""
    import tensorflow as tf

    tf.random.set_seed(0)  # dropout
    net = model.to_tensorflow()
    for image, labels in data:
        with tf.GradientTape() as tape:
            loss = net(training=True, image=image, labels=labels)["loss"]
        for weight, gradient in zip(net.trainable_variables, tape.gradient(loss, net.trainable_variables), strict=True):
            weight.assign_sub(0.5 * gradient)
    return il.from_tensorflow(net, like=model)


def train_jax(model: il.Model, data) -> il.Model:
    """By plain gradient descent."""
    import jax

    fn, params, state = model.to_jax(training=True)

    def loss(params, state, key, image, labels):
        out, state = fn(params, state, key, image=image, labels=labels)
        return out["loss"], state

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for i, (image, labels) in enumerate(data):
        (_, state), gradients = step(params, state, jax.random.key(i), image, labels)
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradients)
    return il.from_jax(params, like=model, state=state)


TRAIN = {"torch": train_torch, "tensorflow": train_tensorflow, "jax": train_jax}


def main(frameworks: list[str]) -> dict[str, float]:
    """Trains in each framework, exports to ONNX, and prints the accuracy of the exported model on held-out digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = (data.images / 16).astype(np.float32), data.target.astype(np.int64)
    accuracy = {}
    for name in frameworks:
        trained = TRAIN[name](new_model(), batches(x[:1500], y[:1500]))
        with tempfile.TemporaryDirectory() as folder:
            trained.export(folder, to="onnx")
            logits = il.open(folder)(image=x[1500:])["logits"]
        accuracy[name] = float((logits.argmax(1) == y[1500:]).mean())
        print(f"{name:>10}: {accuracy[name]:.1%} of 297 held-out digits right, run by onnxruntime")
    return accuracy


if __name__ == "__main__":
    main(sys.argv[1:] or list(TRAIN))
