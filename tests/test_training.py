"""Training, and weights that travel: trained in one framework, run in the others and in the reference library, kept as a checkpoint.

Two models stand for all: BERT (dropout, embeddings) and ResNet (batch norm, whose running statistics must travel too).
"""

from __future__ import annotations

import functools
import importlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import Case, case, flatten
from oracle_specs import SPECS
from reference_cases import CASES, Row
from targets import FRAMEWORKS

import interlingua as il
from interlingua.checkpoints import Checkpoint
from interlingua.model import Model

Arrays = dict[str, np.ndarray]
STEPS = 20
KINDS = ("bert", "resnet")
HEADS = {"bert": "BertForSequenceClassification", "resnet": "ResNetForImageClassification"}
RATE = {"bert": 0.1, "resnet": 0.05}


# ---- the reference library, and one training loop per framework ------------------------------------


def reference(folder: Path, head: str) -> Any:
    """The reference library's model of a checkpoint, which must hold each of its weights and no other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference library's own
        transformers = importlib.import_module("transformers")
        model, info = getattr(transformers, head).from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert {k: v for k, v in info.items() if v} == {}, "the reference library does not read this as its own"
    return model.eval()


def run_reference(model: Any, inputs: Arrays) -> Arrays:
    """All outputs by dotted name."""
    torch = importlib.import_module("torch")
    with torch.no_grad():
        return {k: x.numpy() for k, x in flatten(model(**{k: torch.from_numpy(x.copy()) for k, x in inputs.items()}))}


def train_torch(model: Model, batches: list[Arrays], rate: float) -> Any:
    """A module after one step of torch.optim on each batch."""
    import torch

    torch.manual_seed(0)
    net = model.to_torch().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    for batch in batches:
        optimizer.zero_grad()
        net(**{k: torch.from_numpy(x) for k, x in batch.items()})["loss"].backward()
        optimizer.step()
    return net


def train_tensorflow(model: Model, batches: list[Arrays], rate: float) -> Any:
    """A module after one step of a gradient tape on each batch."""
    import tensorflow as tf

    tf.random.set_seed(0)
    net = model.to_tensorflow()
    for batch in batches:
        with tf.GradientTape() as tape:
            loss = net(training=True, **batch)["loss"]
        for weight, gradient in zip(net.trainable_variables, tape.gradient(loss, net.trainable_variables), strict=True):
            weight.assign_sub(rate * tf.convert_to_tensor(gradient))
    return net


def train_jax(model: Model, batches: list[Arrays], rate: float) -> Any:
    """Parameters and state after one compiled step on each batch."""
    import jax

    fn, params, state = model.to_jax(training=True)

    @jax.jit
    def step(params: Any, state: Any, key: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            out, new = fn(params, state, key, **batch)
            return out["loss"], new

        gradients, new = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - rate * g, params, gradients), new

    for i, batch in enumerate(batches):
        params, state = step(params, state, jax.random.key(i), batch)
    return params, state


TRAIN: dict[str, Callable[[Model, list[Arrays], float], Any]] = {"torch": train_torch, "tensorflow": train_tensorflow, "jax": train_jax}


def carried(framework: str, made: Any, like: Model) -> Model:
    """A trained thing of a framework as a model."""
    if framework == "jax":
        return il.from_jax(made[0], like, state=made[1])
    return {"torch": il.from_torch, "tensorflow": il.from_tensorflow}[framework](made, like=like)


def evaluate(framework: str, made: Any, like: Model, inputs: Arrays) -> Arrays:
    """What a framework's own module gives in evaluation mode; for JAX `made` is (parameters, state)."""
    if framework == "torch":
        return run_reference(made.eval(), inputs)
    if framework == "tensorflow":
        return {k: x.numpy() for k, x in made(**inputs).items()}
    return {k: np.asarray(x) for k, x in like.to_jax()[0]({**made[0], **made[1]}, **inputs).items()}


def fresh(framework: str, model: Model) -> Any:
    """A framework's own module of a model, or (parameters, state)."""
    if framework == "jax":
        return model.to_jax(training=True)[1:]
    return model.to_torch() if framework == "torch" else model.to_tensorflow()


@functools.cache
def sample(kind: str) -> Case:
    """Six inputs with labels, two of them to a batch of training."""
    return case(kind, HEADS[kind], {}, {"batch": 6, **({"height": 48} if kind == "resnet" else {})})


@functools.cache
def trained(kind: str, framework: str) -> tuple[Model, Any, Model]:
    """(the model with new weights, what the framework trained, the model with these weights)."""
    made = sample(kind)
    model = il.from_config(made.folder / "config.json", seed=3)
    data = {**made.inputs, **(made.labels or {})}
    thirds = [{k: np.ascontiguousarray(x[i::3]) for k, x in data.items()} for i in range(3)]
    net = TRAIN[framework](model, [thirds[i % 3] for i in range(STEPS)], RATE[kind])
    return model, net, carried(framework, net, model)


def agree(ours: Arrays, theirs: Arrays) -> None:
    """Every output is there and differs by no more than 1e-5 of its magnitude."""
    assert set(ours) == set(theirs)
    for name, x in theirs.items():
        assert np.isfinite(x).all(), name
        assert np.abs(ours[name] - x).max() <= 1e-5 * max(1.0, np.abs(x).max()), name


# ---- weights that travel -----------------------------------------------------------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss(kind: str, framework: str):
    before, _, after = trained(kind, framework)
    data = {**sample(kind).inputs, **(sample(kind).labels or {})}
    first, last = (float(il.compile(m, "numpy", inputs=[*data])(**data)["loss"]) for m in (before, after))
    assert last < 0.8 * first, f"{first:.3f} -> {last:.3f}"


@pytest.mark.parametrize("other", FRAMEWORKS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_travel(kind: str, framework: str, other: str):
    """Nine of nine pairs: what one framework trained gives the same outputs in a new module of each."""
    before, net, after = trained(kind, framework)
    inputs = sample(kind).inputs
    here = evaluate(framework, net, before, inputs)
    agree(evaluate(other, fresh(other, after), after, inputs), here)
    untrained = evaluate(other, fresh(other, before), before, inputs)
    assert np.abs(untrained["logits"] - here["logits"]).max() > 1e-2, "training changed nothing"


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_travel_to_the_reference(kind: str, framework: str, tmp_path: Path):
    """A trained model's checkpoint is the reference library's own, and read back it is bit for bit what was trained."""
    before, net, after = trained(kind, framework)
    after.save(tmp_path)
    inputs = sample(kind).inputs
    agree(run_reference(reference(tmp_path, HEADS[kind]), inputs), evaluate(framework, net, before, inputs))
    again = il.load(tmp_path, strict=True)
    for p in after.params:
        assert np.array_equal(again.weights.array(p.key), after.weights.array(p.key)), p.key


# ---- batch norm and dropout ---------------------------------------------------------------------------


def _steps(framework: str, model: Model, batches: list[Arrays]) -> tuple[list[Arrays], Model]:
    """Outputs in training mode, one batch after the other, and the model as that leaves it."""
    if framework == "jax":
        import jax

        fn, params, state = model.to_jax(training=True)
        outputs = []
        for i, batch in enumerate(batches):
            out, state = fn(params, state, jax.random.key(i), **batch)
            outputs.append({k: np.asarray(x) for k, x in out.items()})
        return outputs, il.from_jax(params, model, state=state)
    net = fresh(framework, model)
    if framework == "torch":
        net.train()
        outputs = [run_reference(net, batch) for batch in batches]
    else:
        outputs = [{k: x.numpy() for k, x in net(training=True, **batch).items()} for batch in batches]
    return outputs, carried(framework, net, model)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_running_statistics_are_the_references(framework: str, count: int):
    """After one step in training mode, and after another: batch statistics in the outputs, running ones moved by them."""
    made = sample("resnet")
    batches = [{k: np.ascontiguousarray(x[i::2]) for k, x in {**made.inputs, **(made.labels or {})}.items()} for i in range(count)]
    theirs = reference(made.folder, made.head).train()
    expected = [run_reference(theirs, batch) for batch in batches]
    model = il.load(made.folder)
    outputs, after = _steps(framework, model, batches)
    for out, want in zip(outputs, expected, strict=True):
        agree({k: out[k] for k in want}, want)
    buffers = {k: x.numpy() for k, x in theirs.named_buffers()}
    assert len(buffers) == 3 * sum(k.endswith("running_mean") for k in buffers) > 0
    for key, want in buffers.items():
        got, start = after.weights.array(key), model.weights.array(key)
        assert not np.array_equal(want, start), f"{key} did not move"
        assert np.abs(got - want).max() <= 1e-5 * max(1.0, np.abs(want).max()), key


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.3, 0.0), (0.0, 0.3)], ids=["none", "hidden", "attention"])
def test_dropout(framework: str, rates: tuple[float, float]):
    """On, it changes results from call to call; with both rates zero training is evaluation; off, results are the same to the bit."""
    made = sample("bert")
    values = json.loads((made.folder / "config.json").read_text())
    values |= {"hidden_dropout_prob": rates[0], "attention_probs_dropout_prob": rates[1]}
    model, inputs = il.load(made.folder, config=values), made.inputs
    net = fresh(framework, model)
    still = [evaluate(framework, net, model, inputs)["logits"] for _ in range(2)]
    assert np.array_equal(*still)
    agree({"logits": still[0]}, {"logits": made.outputs["logits"]})
    outputs, after = _steps(framework, model, [inputs, inputs])
    first, second = (out["logits"] for out in outputs)
    if any(rates):
        assert np.abs(first - second).max() > 1e-2
        assert min(np.abs(x - still[0]).max() for x in (first, second)) > 1e-2
        assert np.abs(first - still[0]).max() < 0.5 * np.ptp(still[0]) + 1, "what is kept is not scaled to make up for what is dropped"
    else:
        agree({"logits": first}, {"logits": still[0]})
        assert np.array_equal(first, second)
    assert np.array_equal(after.weights.array("classifier.weight"), model.weights.array("classifier.weight"))


# ---- checkpoints ----------------------------------------------------------------------------------------

FIRST_ROWS = [row for row in CASES if row.id == "A"]


def _bytes(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    stored = Checkpoint(folder)
    return {k: (*stored.spec(k), stored.array(k).tobytes()) for k in stored}


@pytest.mark.parametrize("row", FIRST_ROWS, ids=str)
def test_a_saved_checkpoint_is_what_was_loaded(row: Row, tmp_path: Path):
    """Every weight bit for bit, the configuration, and what the reference library makes of both; every head of all eight architectures."""
    made = row.case()
    il.load(made.folder, row.head).save(tmp_path)
    assert _bytes(tmp_path) == _bytes(made.folder)
    before, after = reference(made.folder, row.head), reference(tmp_path, row.head)
    assert {**before.config.to_dict(), "_name_or_path": ""} == {**after.config.to_dict(), "_name_or_path": ""}
    expected, found = run_reference(before, made.inputs), run_reference(after, made.inputs)
    assert set(expected) == set(found)
    assert [k for k, x in expected.items() if not np.array_equal(found[k], x, equal_nan=x.dtype.kind == "f")] == []


def test_every_architecture_is_saved():
    assert {row.spec for row in FIRST_ROWS} == set(SPECS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays(dtype: str, tmp_path: Path):
    torch = importlib.import_module("torch")
    made = sample("bert")
    reference(made.folder, made.head).to(getattr(torch, dtype)).save_pretrained(tmp_path / "half")
    il.load(tmp_path / "half").save(tmp_path / "saved")
    assert _bytes(tmp_path / "saved") == _bytes(tmp_path / "half")
    assert {spec for spec, _, _ in _bytes(tmp_path / "saved").values()} == {{"float16": "f16", "bfloat16": "bf16"}[dtype]}


def test_a_new_head_on_a_trained_body(tmp_path: Path):
    """A body without the head that is wanted: the head is drawn anew, the rest stays, and the reference library reads the whole."""
    made = case("bert", "BertModel")
    model = il.load(made.folder, "BertForSequenceClassification", init_missing=True, seed=1)
    model.save(tmp_path)
    theirs = reference(tmp_path, "BertForSequenceClassification")
    agree(run_reference(theirs, made.inputs), il.compile(model)(**made.inputs))
    body = dict(reference(made.folder, "BertModel").named_parameters())
    kept = [k for k, w in theirs.bert.named_parameters() if np.array_equal(w.detach().numpy(), body[k].detach().numpy())]
    assert kept == [*body]
