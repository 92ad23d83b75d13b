"""Longformer and BigBird over symbolic lengths: one graph for short and long sequences, padded inside, and no table of rows by keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import interlingua as il
from interlingua.ir.sizes import Dim

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 90,
}
LONGFORMER = {"model_type": "longformer", **SIZES, "attention_window": [4, 6], "max_global_tokens": 3}
BIG_BIRD = {"model_type": "big_bird", **SIZES, "block_size": 4, "num_random_blocks": 1, "use_bias": False}


def ids(length: int, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(length).integers(5, 50, (batch, length))


def reference(kind: str, folder: Path, **inputs: np.ndarray) -> np.ndarray:
    """The last state of the reference library on the same weights."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(**{k: torch.from_numpy(x) for k, x in inputs.items()}).last_hidden_state.numpy()


def saved(kind: str, config: dict[str, Any], folder: Path) -> il.Model:
    """A model with weights large enough for attention to matter."""
    model, rng = il.from_config(config, kind), np.random.default_rng(0)
    model = model.with_weights({p.key: rng.standard_normal(p.shape).astype(np.float32) * 0.3 for p in model.params})
    model.save(folder)
    return model


@pytest.mark.parametrize("target", ["numpy", "onnxruntime"])
def test_big_bird_at_every_length(target: str, tmp_path):
    """Up to 28 tokens all attend to all; beyond, lengths that are no whole blocks are padded. One compiled graph does all."""
    model = saved("BigBirdModel", BIG_BIRD, tmp_path)
    run = il.compile(model, target, inputs=["input_ids", "attention_mask"], outputs=["last_hidden_state"])
    for length in (1, 5, 28, 29, 32, 45):
        x = ids(length)
        mask = np.ones_like(x)
        mask[1, length - length // 3 :] = 0
        made = run(input_ids=x, attention_mask=mask)["last_hidden_state"]
        right = reference("BigBirdModel", tmp_path, input_ids=x, attention_mask=mask)
        np.testing.assert_allclose(made * mask[..., None], right * mask[..., None], atol=2e-5, err_msg=str(length))


@pytest.mark.parametrize("target", ["numpy", "onnxruntime"])
def test_longformer_at_every_length(target: str, tmp_path):
    """Windows that do not divide one another are padded to a common multiple; the reference takes lengths of whole windows alone."""
    model = saved("LongformerModel", LONGFORMER, tmp_path)
    names = ["input_ids", "attention_mask", "global_attention_mask"]
    run = il.compile(model, target, inputs=names, outputs=["last_hidden_state"])
    for length in (12, 24, 36):
        x, marked = ids(length), np.zeros((2, length), np.int64)
        mask = np.ones_like(x)
        mask[1, -5:] = 0
        marked[0, [0, 7]], marked[1, [1, 2, 6]] = 1, 1
        made = run(input_ids=x, attention_mask=mask, global_attention_mask=marked)["last_hidden_state"]
        right = reference("LongformerModel", tmp_path, input_ids=x, attention_mask=mask, global_attention_mask=marked)
        np.testing.assert_allclose(made * mask[..., None], right * mask[..., None], atol=2e-5, err_msg=str(length))
    odd = run(input_ids=ids(5), attention_mask=np.ones((2, 5), np.int64), global_attention_mask=np.eye(2, 5, dtype=np.int64))
    assert np.isfinite(odd["last_hidden_state"]).all()


def test_more_global_tokens_than_slots_are_not_wrong_in_silence():
    model = il.from_config(LONGFORMER, "LongformerModel")
    marked = np.zeros((2, 9), np.int64)
    marked[0, :3], marked[1, :4] = 1, 1
    made = il.compile(model, "numpy", inputs=["input_ids", "global_attention_mask"])(input_ids=ids(9), global_attention_mask=marked)
    assert np.isfinite(made["last_hidden_state"][0]).all()
    assert np.isnan(made["last_hidden_state"][1]).all()


@pytest.mark.parametrize("config", [LONGFORMER, BIG_BIRD], ids=["longformer", "big_bird"])
def test_nothing_is_as_large_as_rows_by_keys(config: dict):
    """Twice the tokens make no value of the graph more than about twice as large."""
    model = il.from_config(config, "LongformerModel" if config is LONGFORMER else "BigBirdModel")
    inputs = ["input_ids", "attention_mask", *(["global_attention_mask"] if config is LONGFORMER else [])]
    for node in model.graph(inputs, ["last_hidden_state"]).nodes:
        for value in node.outputs:
            small, large = (np.prod([d.bind({"batch": 1, "seq": n}) if isinstance(d, Dim) else d for d in value.shape] or [1]) for n in (200, 400))
            assert large <= 2.3 * small, f"{value} grows from {small} to {large}"
