"""XLNet's memories of earlier text and its one-way attention, against the reference."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import flatten
from targets import TARGETS

import interlingua as il
from interlingua.ir.reference import reference

SIZES = {"vocab_size": 67, "d_model": 24, "n_layer": 2, "n_head": 2, "d_inner": 30, "mem_len": 9}
DRAW = np.random.default_rng(0)
FIRST, SECOND = ({"input_ids": DRAW.integers(6, 67, (2, n)), "token_type_ids": DRAW.integers(0, 3, (2, n))} for n in (7, 5))
ORDER = {  # the last two of five words are predicted; the second text's fourth word comes first of all and sees nothing
    "perm_mask": np.stack([np.tile([0, 0, 0, 1, 1], (5, 1)), np.ones((5, 5))]).astype(np.float32),
    "target_mapping": np.tile(np.eye(5, dtype=np.float32)[3:], (2, 1, 1)),
}
# configuration, and what the second call is given beside its words
CASES: dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]] = {
    "two-streams": ({}, ORDER),
    "backwards": ({"bi_data": True, "clamp_len": 4}, {}),
    "all-kept": ({"mem_len": None}, ORDER),
    "reused": ({"reuse_len": 3}, {}),
    "one-way": ({"attn_type": "uni"}, {}),
    "same-length": ({"attn_type": "uni", "same_length": True, "clamp_len": 3}, {}),
}


def _truth(folder: Path, config: dict[str, Any], order: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The reference's outputs for words, and for the words after them; its model stays in the folder."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    torch.manual_seed(0)
    model = transformers.XLNetModel(transformers.XLNetConfig(**{**SIZES, **config})).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
        tensors = [{k: torch.from_numpy(x) for k, x in given.items()} for given in (FIRST, {**SECOND, **order})]
        first = model(**tensors[0])
        second = model(**tensors[1], mems=first.mems, output_attentions=True, output_hidden_states=True)
    model.save_pretrained(folder)
    return dict(_arrays(first)), dict(_arrays(second))


def _arrays(outputs: Any) -> list[tuple[str, np.ndarray]]:
    return [(name, tensor.numpy()) for name, tensor in flatten(outputs)]


def _memories(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"past_{name}": x for name, x in outputs.items() if name.startswith("mems.")}


@pytest.mark.parametrize("case", CASES)
def test_second_call(case: str, tmp_path: Path):
    """Memories go out of one call and into the next, whose every output is the reference's."""
    first, second = _truth(tmp_path, *CASES[case])
    model = il.load(tmp_path, "XLNetModel")
    made = reference(model.graph(list(FIRST)), FIRST, model.weights, float="f32")
    assert set(made) == set(first)
    inputs = {**SECOND, **CASES[case][1], **_memories(made)}
    made |= reference(model.graph(list(inputs), ["*"]), inputs, model.weights, float="f32")
    for name, true in second.items():
        assert made[name] == pytest.approx(true, rel=1e-4, abs=1e-4), name


@pytest.mark.parametrize("target", TARGETS)
def test_memories_on_every_target(target: str, tmp_path: Path):
    first, second = _truth(tmp_path / "model", *CASES["two-streams"])
    model = il.load(tmp_path / "model", "XLNetModel")
    inputs = {**SECOND, **ORDER, **_memories(first)}
    outputs = ["last_hidden_state", "mems.0", "mems.1"]
    if target in ("onnx", "stablehlo"):
        model.export(tmp_path / "made", to=target, inputs=list(inputs), outputs=outputs, check=False)
        session = il.open(tmp_path / "made")
    else:
        session = il.compile(model, {"jax": "xla"}.get(target, target), inputs=list(inputs), outputs=outputs)
    made = session(**inputs)
    for name in outputs:
        assert made[name] == pytest.approx(second[name], rel=1e-4, abs=1e-4), name
