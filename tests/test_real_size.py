"""Parity at real size, forward and in generation: the default configurations of the reference library, drawn anew, exported to ONNX and run.

Weights are as `oracle` draws them; inputs are short. A case takes some 2.5 GB of memory and 0.7 GB of disk while it runs, so there is one at a time
among all test processes, and its folder is gone when it ends.
"""

from __future__ import annotations

import importlib
import math
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from filelock import FileLock
from oracle_specs import SPECS
from targets import load

import interlingua as il

# the published checkpoint that has this configuration, its architecture and head, what the reference's default leaves open, and the inputs
SIZES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "bert-base": ("bert", "BertForMaskedLM", {}, {"length": 12}),
    "gpt2": ("gpt2", "GPT2LMHeadModel", {}, {"length": 12}),
    "t5-small": ("t5", "T5ForConditionalGeneration", {"decoder_start_token_id": 0}, {"length": 12, "target_length": 9}),
    "vit-base": ("vit", "ViTForImageClassification", {"num_labels": 1000}, {"batch": 1}),
    "resnet-50": ("resnet", "ResNetForImageClassification", {"num_labels": 1000}, {"batch": 1, "height": 224}),
    "wav2vec2-base": ("wav2vec2", "Wav2Vec2ForCTC", {}, {"samples": 8000}),
    "clip-vit-base-patch32": ("clip", "CLIPModel", {}, {"length": 12, "batch": 1, "text_batch": 2}),
}
# parameters in millions, as the reference library counts them
MILLIONS = {
    "bert-base": 109.5,
    "gpt2": 124.4,
    "t5-small": 60.5,
    "vit-base": 86.6,
    "resnet-50": 25.6,
    "wav2vec2-base": 94.4,
    "clip-vit-base-patch32": 151.3,
}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cases are built in a folder that is deleted afterwards, and by one test of all processes at a time."""
    oracle.CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(oracle.CACHE / "real-size.lock"), tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(oracle, "CACHE", Path(folder))
        yield


def defaults(spec: str, head: str) -> dict[str, Any]:
    """Every field of the reference library's default configuration but the labels' names, which would decide their number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference library's own
        module = importlib.import_module(f"transformers.models.{SPECS[spec].module}.modeling_{SPECS[spec].module}")
    values = getattr(module, head).config_class().to_dict()
    return {k: v for k, v in values.items() if k not in ("id2label", "label2id")}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", SIZES)
def test_forward_at_real_size(name: str) -> None:
    spec, head, config, inputs = SIZES[name]
    sample = oracle.case(spec, head, {**defaults(spec, head), **config}, inputs)
    model = load(sample, strict=True)
    count = sum(math.prod(p.shape) for p in model.params if p.trainable)
    assert count / 1e6 == pytest.approx(MILLIONS[name], abs=0.05)
    model.export(to="onnx", inputs=[*sample.inputs], outputs=sample.main, check=False)
    session = il.open(sample.folder)
    assert sample.mismatches(session(**sample.inputs)) == []


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ["gpt2", "t5-small"])
def test_generation_at_real_size(name: str, tmp_path: Path) -> None:
    """Greedy tokens and those of two beams for a padded batch, from exported graphs, are the reference's."""
    spec, head, config, _ = SIZES[name]
    ids, mask = np.random.default_rng(0).integers(5, 30000, (2, 12)), np.ones((2, 12), np.int64)
    mask[1, slice(0, 4) if spec == "gpt2" else slice(8, 12)] = 0
    torch = importlib.import_module("torch")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the reference library's own
        transformers = importlib.import_module("transformers")
        transformers.logging.set_verbosity_error()
        torch.manual_seed(0)
        model = getattr(transformers, head)(getattr(transformers, head).config_class(**config)).eval()
        model.save_pretrained(tmp_path)
        given = {"attention_mask": torch.tensor(mask), "do_sample": False, "max_new_tokens": 16}
        true = {beams: model.generate(torch.tensor(ids), num_beams=beams, **given).numpy() for beams in (1, 2)}
    del model
    il.load(tmp_path).export(check=False)
    writer = il.generator(tmp_path)
    for beams, tokens in true.items():
        np.testing.assert_array_equal(writer.generate(ids, mask, num_beams=beams, max_new_tokens=16), tokens)
