"""One layer over long sequences on onnxruntime: how time and memory of Longformer's and BigBird's attention grow, and BERT's beside them."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import WORK, Table, median, open_session, process

LENGTHS = (1024, 2048, 4096)
LAYER = {"num_hidden_layers": 1, "vocab_size": 1000, "max_position_embeddings": 4098, "architectures": None}
# the rest is each architecture's default, which is the size of its published base model
MODELS = {
    "Longformer (window 512)": ("LongformerForSequenceClassification", {"model_type": "longformer", **LAYER}),
    "BigBird (blocks of 64)": ("BigBirdModel", {"model_type": "big_bird", **LAYER}),
    "BERT": ("BertModel", {"model_type": "bert", **LAYER}),
}


def export(head: str, config: dict[str, Any]) -> Path:
    """The ONNX file of a head with one layer, written once."""
    folder = WORK / "long" / head
    if not (folder / "model.onnx").exists():
        import interlingua as il

        il.from_config(config, head).export(folder, check=False, overwrite=True)
    return folder / "model.onnx"


def run(file: str, length: int, threads: int) -> None:
    """In a process of its own: prints the median seconds of a call, and the MB by which calls raise the peak of memory."""
    session = open_session(Path(file), threads)
    ids = np.random.default_rng(0).integers(5, 1000, (1, length))
    feed = {x.name: np.ones_like(ids) if x.name == "attention_mask" else ids for x in session.get_inputs()}
    feed |= {"token_type_ids": np.zeros_like(ids)} if "token_type_ids" in feed else {}
    before, times = _peak(), []
    for _ in range(5):
        start = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - start)
    print(json.dumps([median(times[1:]), _peak() - before]))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))


def measure(threads: int = 0) -> Table:
    """A row for each model and length, each beside the one of half the length."""
    columns = ["layer", "tokens", "time", "memory", "time / half the tokens", "memory / half the tokens"]
    table = Table("One layer over long sequences on onnxruntime (CPU), batch 1", columns)
    for name, (head, config) in MODELS.items():
        file, last = export(head, config), (0.0, 0.0)
        for length in LENGTHS:
            done = process([sys.executable, __file__, "--file", str(file), "--length", str(length), "--threads", str(threads)])
            if not done.ok:
                raise SystemExit(done.output)
            seconds, megabytes = json.loads(done.output.strip().splitlines()[-1])
            growth = [f"{now / then:.2f}" for now, then in zip((seconds, megabytes), last, strict=True)] if last[0] else ["", ""]
            table.rows.append([name, str(length), f"{seconds * 1e3:.0f} ms", f"{megabytes:.0f} MB", *growth])
            last = (seconds, megabytes)
    table.notes.append("2 is linear in the length, 4 is quadratic. Memory is what calls add to the peak of a process that has opened the model.")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--file", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    if given.file:
        run(given.file, given.length, given.threads)
    else:
        print(measure(given.threads))
