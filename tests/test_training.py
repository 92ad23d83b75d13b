"""Training, and weights that travel: trained in one framework, run in the others and in the reference library, kept as a checkpoint.

Two models stand for all: BERT (dropout, embeddings) and ResNet (batch norm, whose running statistics must travel too).
"""

from __future__ import annotations

import functools
import importlib
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
CONFIG: dict[str, dict[str, Any]] = {"bert": {}, "resnet": {"hidden_sizes": [8, 16], "depths": [1, 2], "out_features": None}}
INPUTS: dict[str, dict[str, Any]] = {"bert": {"batch": 6}, "resnet": {"batch": 6, "height": 48}}
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


def train_torch(net: Any, batches: list[Arrays], rate: float) -> list[float]:
    """Losses of one step of torch.optim on each batch; `net` is a module of ours or of the reference library, whose floats the inputs take."""
    import torch

    torch.manual_seed(0)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = net(**{k: torch.from_numpy(x) for k, x in batch.items()})["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_tensorflow(net: Any, batches: list[Arrays], rate: float) -> list[float]:
    """Losses of one step of a gradient tape on each batch."""
    import tensorflow as tf

    tf.random.set_seed(0)
    losses = []
    for batch in batches:
        with tf.GradientTape() as tape:
            loss = net(training=True, **batch)["loss"]
        for weight, gradient in zip(net.trainable_variables, tape.gradient(loss, net.trainable_variables), strict=True):
            weight.assign_sub(rate * tf.convert_to_tensor(gradient))
        losses.append(float(loss))
    return losses


def train_jax(net: Any, batches: list[Arrays], rate: float) -> list[float]:
    """Losses of one compiled step on each batch; `net` is [function, parameters, state], of which the last two are renewed."""
    import jax

    fn, params, state = net

    @jax.jit
    def step(params: Any, state: Any, key: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            out, new = fn(params, state, key, **batch)
            return out["loss"], new

        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return value, jax.tree.map(lambda p, g: p - rate * g, params, gradients), new

    losses = []
    for i, batch in enumerate(batches):
        loss, params, state = step(params, state, jax.random.key(i), batch)
        losses.append(float(loss))
    net[1:] = params, state
    return losses


TRAIN: dict[str, Callable[[Any, list[Arrays], float], list[float]]] = {"torch": train_torch, "tensorflow": train_tensorflow, "jax": train_jax}


def module(framework: str, model: Model, **options: Any) -> Any:
    """A framework's own module of a model; for JAX [function in training mode, parameters, state]."""
    if framework == "jax":
        return [*model.to_jax(training=True, **options)]
    return {"torch": model.to_torch, "tensorflow": model.to_tensorflow}[framework](**options)


def carried(framework: str, net: Any, like: Model) -> Model:
    """The weights of a framework's module as a model."""
    if framework == "jax":
        return il.from_jax(net[1], like, state=net[2])
    return {"torch": il.from_torch, "tensorflow": il.from_tensorflow}[framework](net, like=like)


def evaluate(framework: str, net: Any, like: Model, inputs: Arrays) -> Arrays:
    """What a framework's module gives in evaluation mode."""
    if framework == "torch":
        return run_reference(net.eval(), inputs)
    if framework == "tensorflow":
        return {k: x.numpy() for k, x in net(**inputs).items()}
    import jax

    return {k: np.asarray(x) for k, x in jax.jit(like.to_jax()[0])({**net[1], **net[2]}, **inputs).items()}


@functools.cache
def sample(kind: str) -> Case:
    """Six inputs with labels, two of them to a batch of training."""
    return case(kind, HEADS[kind], CONFIG[kind], INPUTS[kind])


@functools.cache
def batches(kind: str, count: int) -> list[Arrays]:
    """Pairs of the sample's inputs with their labels, over and over."""
    data = {**sample(kind).inputs, **(sample(kind).labels or {})}
    thirds = [{k: np.ascontiguousarray(x[i::3]) for k, x in data.items()} for i in range(3)]
    return [thirds[i % 3] for i in range(count)]


@functools.cache
def trained(kind: str, framework: str) -> tuple[Model, Any, Model]:
    """(the model with new weights, the framework's module after training, the model with its weights)."""
    model = il.from_config(sample(kind).folder / "config.json", seed=3)
    net = module(framework, model)
    TRAIN[framework](net, batches(kind, STEPS), RATE[kind])
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
    assert last < 0.9 * first, f"{first:.3f} -> {last:.3f}"


@pytest.mark.parametrize("other", FRAMEWORKS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_travel(kind: str, framework: str, other: str):
    """Nine of nine pairs: what one framework trained gives the same outputs in a new module of each."""
    before, net, after = trained(kind, framework)
    inputs = sample(kind).inputs
    here = evaluate(framework, net, before, inputs)
    agree(evaluate(other, module(other, after), after, inputs), here)
    for p in before.params:
        moved = not np.array_equal(before.weights.array(p.key), after.weights.array(p.key))
        assert moved or p.key.endswith("key.bias"), f"{p.key} did not move"  # a key's bias shifts all scores of a query alike


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_travel_to_the_reference(kind: str, framework: str, tmp_path: Path):
    """A trained model's checkpoint is the reference library's own, and read back it is bit for bit what was trained."""
    before, net, after = trained(kind, framework)
    after.save(tmp_path)
    inputs = sample(kind).inputs
    agree(run_reference(reference(tmp_path, HEADS[kind]), inputs), evaluate(framework, net, before, inputs))
    again = il.load(tmp_path, strict=True)
    start = Checkpoint(sample(kind).folder)
    for p in after.params:
        assert np.array_equal(again.weights.array(p.key), after.weights.array(p.key)), p.key
        assert again.weights.spec(p.key) == start.spec(p.key), p.key


# ---- batch norm and dropout ---------------------------------------------------------------------------


def _steps(framework: str, model: Model, data: list[Arrays], seeds: list[int]) -> tuple[list[Arrays], Model]:
    """Outputs in training mode, one batch after the other, each with a seed, and the model as that leaves it."""
    net, outputs = module(framework, model), []
    if framework == "jax":
        import jax

        fn = jax.jit(net[0])
    for batch, seed in zip(data, seeds, strict=True):
        if framework == "jax":
            out, net[2] = fn(net[1], net[2], jax.random.key(seed), **batch)
            outputs.append({k: np.asarray(x) for k, x in out.items()})
        elif framework == "torch":
            importlib.import_module("torch").manual_seed(seed)
            outputs.append(run_reference(net.train(), batch))
        else:
            importlib.import_module("tensorflow").random.set_seed(seed)
            outputs.append({k: x.numpy() for k, x in net(training=True, **batch).items()})
    return outputs, carried(framework, net, model)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_running_statistics_are_the_references(framework: str):
    """After one step in training mode, and after another: batch statistics in the outputs, running ones moved by them."""
    made = sample("resnet")
    model, theirs = il.load(made.folder), reference(made.folder, made.head).train()
    for count in (1, 2):
        data = batches("resnet", count)
        outputs, after = _steps(framework, model, data, [0] * count)
        want = run_reference(theirs, data[-1])
        agree({k: outputs[-1][k] for k in want}, want)
        buffers = {k: x.numpy() for k, x in theirs.named_buffers()}
        assert sum(k.endswith("num_batches_tracked") for k in buffers) == len(buffers) / 3 > 0
        for key, moved in buffers.items():
            assert not np.array_equal(moved, model.weights.array(key)), f"{key} did not move"
            assert np.abs(after.weights.array(key) - moved).max() <= 1e-5 * max(1.0, np.abs(moved).max()), key


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.3, 0.0), (0.0, 0.3)], ids=["none", "hidden", "attention"])
def test_dropout(framework: str, rates: tuple[float, float]):
    """On, results change with the seed and come back with it; rates of zero train as they evaluate; off, results are the same bits."""
    made = sample("bert")
    values = {"hidden_dropout_prob": rates[0], "attention_probs_dropout_prob": rates[1]}
    model, inputs = il.load(made.folder, config=values), made.inputs
    net = module(framework, model)
    still, again = (evaluate(framework, net, model, inputs)["logits"] for _ in range(2))
    assert np.array_equal(still, again)
    agree({"logits": still}, {"logits": made.outputs["logits"]})
    first, second, third = (out["logits"] for out in _steps(framework, model, [inputs] * 3, [1, 2, 1])[0])
    assert np.array_equal(first, third)
    if any(rates):
        assert min(np.abs(a - b).max() for a, b in ((first, second), (first, still), (second, still))) > 1e-2
    else:
        assert np.array_equal(first, second)
        agree({"logits": first}, {"logits": still})


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_references(kind: str, framework: str):
    """In float64 and without dropout, twenty steps are the reference library's twenty steps: losses, weights and running statistics."""
    made, data = sample(kind), [{k: x.astype(np.float64) if x.dtype == np.float32 else x for k, x in b.items()} for b in batches(kind, STEPS)]
    theirs = reference(made.folder, made.head).double()
    _turn_off_dropout(theirs)
    expected = train_torch(theirs, data, RATE[kind])
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if kind == "bert" else {}
    with importlib.import_module("jax").enable_x64(framework == "jax"):
        net = module(framework, il.load(made.folder, config=off), dtype="f64")
        losses = TRAIN[framework](net, data, RATE[kind])
        weights = carried(framework, net, il.load(made.folder)).weights
    assert losses == pytest.approx(expected, rel=1e-7)
    state = theirs.state_dict()
    wrong = {k: np.abs(weights.array(k) - x.numpy()).max() for k, x in state.items() if k in weights}
    assert {k: e for k, e in wrong.items() if not e <= 1e-6} == {}
    assert len(wrong) == len(weights)


def _turn_off_dropout(model: Any) -> None:
    for part in model.modules():
        if type(part).__name__ == "Dropout":
            part.p = 0.0


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
    assert il.load(tmp_path).head == "BertForSequenceClassification"
    theirs = reference(tmp_path, "BertForSequenceClassification")
    agree(run_reference(theirs, made.inputs), il.compile(model)(**made.inputs))
    body = dict(reference(made.folder, "BertModel").named_parameters())
    kept = [k for k, w in theirs.bert.named_parameters() if np.array_equal(w.detach().numpy(), body[k].detach().numpy())]
    assert kept == [*body]
