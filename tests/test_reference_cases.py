"""The samples are worth comparing with: they cover the reference's heads, say what their checkpoints say, and depend on their inputs."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest
from derived_rows import BROKEN, DERIVED, NAMES, Derived, public_heads
from oracle import REFERENCE, Case, flatten
from oracle_specs import SPECS
from reference_cases import CASES, EDGES, EITHER, VARIANTS, Row

from interlingua import models

EVERY_ROW = [*CASES, *EDGES, *VARIANTS, *EITHER]
_BARE = ("Bert", "GPT2", "T5", "T5Encoder", "ViT", "ResNet", "Wav2Vec2", "CLIPText", "CLIPVision", "Swin")
WITHOUT_LOSS = {f"{name}Model" for name in _BARE} | {"ResNetBackbone", "SwinBackbone", "Wav2Vec2ForMaskedLM"}
WITHOUT_LOSS |= {"CLIPTextModelWithProjection", "CLIPVisionModelWithProjection"}


def _reload(case: Case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference library's own
        transformers = importlib.import_module("transformers")
        return getattr(transformers, case.head).from_pretrained(case.folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("spec", SPECS)
def test_every_head_of_the_reference_has_its_rows(spec: str) -> None:
    module = importlib.import_module(f"transformers.models.{SPECS[spec].module}.modeling_{SPECS[spec].module}")
    public = {name for name in module.__all__ if hasattr(getattr(module, name), "forward")} - {"BertLayer"}
    assert {name for name in public if not name.endswith("PreTrainedModel")} == set(SPECS[spec].heads)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BROKEN], ids=lambda name: name.replace("_", ""))
def test_every_head_of_the_reference_is_in_the_card(name: str) -> None:
    assert public_heads(name) == set(models.card(name).heads)


def test_rows_have_names_of_their_own() -> None:
    assert len({str(row) for row in EVERY_ROW}) == len(EVERY_ROW)
    derived = [*DERIVED.cases, *DERIVED.edges, *DERIVED.variants]
    assert len({str(row) for row in derived}) == len(derived)


@pytest.mark.parametrize("row", DERIVED.cases, ids=str)
def test_a_derived_row_is_informative(row: Derived) -> None:
    test_a_row_is_informative(row)


@pytest.mark.parametrize("row", CASES, ids=str)
def test_the_checkpoint_says_what_the_outputs_say(row: Row) -> None:
    torch = importlib.import_module("torch")
    case = row.case()
    with torch.no_grad():
        out = _reload(case)(**{name: torch.from_numpy(array.copy()) for name, array in case.inputs.items()})
    assert not case.mismatches({name: tensor.numpy() for name, tensor in flatten(out)})


@pytest.mark.parametrize("row", EVERY_ROW, ids=str)
def test_a_row_is_informative(row: Row | Derived) -> None:
    case = row.case()
    assert case.main
    for name in case.main:
        live = case.outputs[name][case.live(name, case.outputs[name])]
        assert np.isfinite(live).all(), name
        assert live.size < 5 or live.std() > 1e-3, f"{name} is constant"
        assert case.tolerance(name) <= 1e-4 * max(1.0, np.abs(live).max()), f"{name} is lost in rounding"


@pytest.mark.parametrize("row", [row for row in CASES if row.id == "B" and row.head not in WITHOUT_LOSS], ids=str)
def test_gradients_reach_the_weights(row: Row) -> None:
    training = row.case().training
    assert all(np.isfinite(loss) and loss != 0 for loss in training.losses.values())
    idle = [key for key, gradient in training.gradients.items() if not gradient.any()]
    assert len(idle) <= 2, idle  # what the reference's own forward leaves out: spec-augment's mask, CLIP's last norm, the quantizer's argmax


def test_a_wrong_number_is_told() -> None:
    case = next(row for row in CASES if str(row) == "BertForTokenClassification-A").case()
    name, outputs = "logits", {**case.outputs}
    dead = ~case.live(name, outputs[name])
    assert dead.any()
    outputs[name] = np.where(dead, 1e3, outputs[name])
    assert not case.mismatches(outputs)
    outputs[name] = outputs[name] + np.where(dead, 0, 2 * case.tolerance(name))
    assert "logits is off by" in case.mismatches(outputs)[0]
    assert "logits is missing" in case.mismatches({})[0]
    with pytest.raises(AssertionError, match="logits has shape"):
        case.mismatches({name: outputs[name][:, :1]})


def test_the_reference_is_the_pinned_one() -> None:
    assert importlib.metadata.version("transformers") == REFERENCE
