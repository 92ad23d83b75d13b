"""Every architecture and head against the reference library: forward on every target, gradients in every framework, names, configurations.

Tolerances are `oracle.Case.tolerance` (1e-5 of an output's magnitude, or five times the reference's own float32 error) and
`oracle.Gradients.tolerance`; there are no exceptions.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from derived_rows import BROKEN, DERIVED, NAMES, Derived, values
from oracle import case
from oracle_specs import SPECS, has_loss
from reference_cases import CASES, EDGES, EITHER, REFUSED, VARIANTS, Row
from targets import FRAMEWORKS, TARGETS, available, forward, forward_by_op, gradients, load, present
from tiny import own

import interlingua as il
from interlingua import models
from interlingua.ir.errors import ConfigError, InterlinguaError
from interlingua.ir.reference import reference
from interlingua.runtime.row_groups import divisible

WITH_LOSS = [row for row in CASES if has_loss(row.head)]
VARIANTS_WITH_LOSS = [row for row in VARIANTS if has_loss(row.head)]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("row", CASES + EDGES, ids=str)
def test_forward(row: Row, target: str, tmp_path):
    sample = row.case()
    model = load(sample)
    names = available(model, sample)
    assert set(sample.main) <= set(model.graph(present(model, sample)).outputs), "a default output of the reference is not one of ours"
    assert sample.mismatches(forward(model, target, sample, names, tmp_path, xla=row.id == "A"), names) == []


@pytest.mark.parametrize("target", ["numpy", "torch", "onnx"])
@pytest.mark.parametrize("row", VARIANTS, ids=str)
def test_variant(row: Row, target: str, tmp_path):
    sample = row.case()
    model = load(sample)
    names = available(model, sample)
    assert sample.mismatches(forward(model, target, sample, names, tmp_path), names) == []


@pytest.mark.parametrize("row", CASES + VARIANTS, ids=str)
def test_float64(row: Row):
    """In float64 nothing but the formulas is left: both sides agree to 1e-9."""
    sample = row.case()
    model = load(sample)
    names = available(model, sample)
    ours = reference(model.graph(present(model, sample), names), sample.inputs, model.weights)
    for name in names:
        true, live = sample.outputs64[name], sample.live(name, sample.outputs64[name])
        apart = np.abs(np.where(live & np.isfinite(true), ours[name] - true, 0)).max(initial=0)
        assert apart <= 1e-9 * max(1.0, np.abs(np.where(live & np.isfinite(true), true, 0)).max(initial=0)), name


def _check_gradients(row: Row | Derived, framework: str):
    sample = row.case()
    assert sample.labels is not None
    truth, model = sample.training, load(sample)
    flags = {k: True for k in present(model, sample) if k not in sample.inputs}
    inputs = {k: x for k, x in sample.inputs.items() if k not in row.inputs.get("loss_drop", ())}
    labels = {k: v for k, v in sample.labels.items() if isinstance(v, np.ndarray) or k in model.flags}
    losses, found = gradients(model, framework, {**inputs, **flags, **labels}, truth.losses, by_op=isinstance(row, Derived))
    for name, loss in truth.losses.items():
        assert losses[name] == pytest.approx(loss, rel=1e-5, abs=1e-5), name
    missing = sorted(set(truth.gradients) - set(found))
    assert not missing, f"no gradient for {missing}"
    wrong = {k: float(np.abs(found[k] - g).max(initial=0)) for k, g in truth.gradients.items()}
    assert {k: (e, truth.tolerance(k)) for k, e in wrong.items() if not e <= truth.tolerance(k)} == {}


def _has_loss(row: Row) -> bool:
    return row.case().labels is not None


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("row", WITH_LOSS, ids=str)
def test_gradients(row: Row, framework: str):
    if not _has_loss(row):
        pytest.skip("the reference has no loss for these inputs")
    _check_gradients(row, framework)


@pytest.mark.parametrize("row", VARIANTS_WITH_LOSS, ids=str)
def test_variant_gradients(row: Row):
    if not _has_loss(row):
        pytest.skip("the reference has no loss for these inputs")
    _check_gradients(row, "torch")


@pytest.mark.parametrize("row", EITHER, ids=str)
def test_followed_or_refused(row: Row):
    """A rare field is followed, or refused by name; it is never ignored."""
    sample = row.case()
    refused = ""
    try:
        model = load(sample)
        names = available(model, sample)
        graph = model.graph(present(model, sample), names)
    except InterlinguaError as error:
        refused = str(error)
    if refused:
        assert any(field in refused for field in row.config), f"the error names none of {list(row.config)}: {refused}"
    else:
        assert sample.mismatches(reference(graph, sample.inputs, model.weights, float="f32"), names) == []


@pytest.mark.parametrize(("spec", "head", "config", "named"), REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_refused(spec: str, head: str, config: dict, named: str):
    sample = case(spec, head)
    values = {**json.loads((sample.folder / "config.json").read_text()), **config}

    def run() -> None:
        model = il.from_config(values, head)
        il.compile(model, "numpy", inputs=[k for k in sample.inputs if k in model.inputs])(**sample.inputs)

    with pytest.raises(InterlinguaError, match=named):
        run()


@pytest.mark.parametrize("row", CASES, ids=str)
def test_names(row: Row):
    """Our parameters are the reference's weights, one for one: names and shapes of the stored checkpoint."""
    sample = row.case()
    model = load(sample, strict=True)
    from interlingua.checkpoints import Checkpoint

    stored = Checkpoint(sample.folder)
    ours = {p.key: p.shape for p in model.params}
    assert ours == {k: stored.spec(k)[1] for k in stored}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.replace("_", ""))
def test_a_card_has_rows(name: str):
    """A card that cannot be read, or for which no tiny configuration can be made, fails here and nowhere else."""
    if name in BROKEN:
        raise BROKEN[name]
    assert {row.head for row in DERIVED.cases if row.name == name} == {h for h in models.card(name).heads if not own(models.card(name)).skipped(h)}


# Derived rows: what is compiled for each head costs seconds. So JAX runs op by op (and is traced as for its compiler), TensorFlow compiles a function
# at A only, and StableHLO files are compiled at A, at B for each card's first head (`make coverage` has them all). Of its variants each card runs two
# on every target.
_FIRST = {rows[0].head for name in NAMES if (rows := [row for row in DERIVED.cases if row.name == name])}
_SHALLOW = {"num_labels", "problem_type", "tie_word_embeddings"}  # fields that leave the graph as it is but for its last layer or its loss
_DEEP = [row for row in DERIVED.variants if row.config and not _SHALLOW & set(row.config)]
TWO_VARIANTS = [row for name in NAMES for row in [row for row in _DEEP if row.name == name][-2:]]
DERIVED_TARGETS = [(row, t) for row in DERIVED.cases + TWO_VARIANTS for t in TARGETS if t != "stablehlo" or row.id != "B" or row.head in _FIRST]
DERIVED_TARGETS += [(row, target) for row in DERIVED.edges for target in TARGETS if target != "stablehlo"]


@pytest.mark.parametrize(("row", "target"), DERIVED_TARGETS, ids=str)
def test_derived_forward(row: Derived, target: str, tmp_path):
    sample = row.case()
    model = load(sample)
    names = available(model, sample) if target == "numpy" else sample.main
    if target == "jax" or (target == "tensorflow" and row.id != "A"):
        made = forward_by_op(model, target, sample, names)
    else:
        made = forward(model, target, sample, names, tmp_path, xla=False)
    assert sample.mismatches(made, names) == []


@pytest.mark.parametrize("row", DERIVED.variants, ids=str)
def test_derived_variant(row: Derived):
    """A configuration in float64, where nothing but the formulas is left, and its gradients."""
    test_float64(row)
    if row.has_loss():
        _check_gradients(row, "torch")


@pytest.mark.parametrize("row", [row for row in CASES + DERIVED.cases if row.id == "A"], ids=str)
def test_rows_do_not_see_one_another(row: Row | Derived):
    """What lets threads divide a batch by rows (runtime/row_groups.py), wherever the types of inputs and outputs allow it."""
    sample = row.case()
    model = load(sample)
    graph = model.graph(present(model, sample), sample.main)
    if model.by_rows and divisible(graph):
        batch = len(next(iter(sample.inputs.values())))
        whole = reference(graph, sample.inputs, model.weights)
        alone = [reference(graph, {k: x[i : i + 1] for k, x in sample.inputs.items()}, model.weights) for i in range(batch)]
        for name, x in whole.items():
            np.testing.assert_allclose(np.concatenate([made[name] for made in alone]), x, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("row", DERIVED.cases + DERIVED.edges, ids=str)
def test_derived_float64(row: Derived):
    test_float64(row)


DERIVED_GRADIENTS = [(row, f) for row in DERIVED.cases if row.has_loss() for f in (FRAMEWORKS if row.id == "A" else ["torch"])]


@pytest.mark.parametrize(("row", "framework"), DERIVED_GRADIENTS, ids=str)
def test_derived_gradients(row: Derived, framework: str):
    _check_gradients(row, framework)


@pytest.mark.parametrize(("name", "head", "change", "named"), DERIVED.refused, ids=lambda x: x if isinstance(x, str) else "")
def test_derived_refusal(name: str, head: str, change: dict, named: str):
    card = models.card(name)
    with pytest.raises(ConfigError, match=named):
        card.config.read(values(card, head, 0, change))


@pytest.mark.parametrize("row", DERIVED.cases, ids=str)
def test_derived_names(row: Derived):
    test_names(row)


def test_every_card_is_covered():
    written = {name for name in models.names() if name in SPECS}
    assert {row.head for row in CASES} == {head for name in written for head in models.card(name).heads}
