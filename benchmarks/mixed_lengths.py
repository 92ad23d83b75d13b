"""A batch of texts of mixed length on bert-base: `session.many` against padding to the longest, in turns."""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
from common import WORK, Table, checkpoint, in_turns, median, rival
from export import optimum
from latency import runner

COUNT, SHORTEST, LONGEST = 32, 8, 256


def lengths(rng: np.random.Generator) -> np.ndarray:
    """Most are short: the logarithm is spread evenly."""
    return np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST), COUNT)).astype(int)


def measure(seconds: float = 25, threads: int = 0) -> Table:
    """One row: the medians, and padding's as a multiple of ours."""
    import interlingua as il

    columns = ["session.many", "padded", "x ours", "optimum-onnx, padded", "x ours"]
    table = Table(f"{COUNT} texts of {SHORTEST} to {LONGEST} tokens on bert-base (CPU)", columns)
    session = il.compile(il.load(checkpoint("bert-base")), outputs=["last_hidden_state"], threads=threads)
    rng = np.random.default_rng(0)
    sizes = lengths(rng)
    examples = [{"input_ids": rng.integers(1, 30000, n), "token_type_ids": np.zeros(n, np.int64)} for n in sizes]
    ids, mask = np.zeros((COUNT, max(sizes)), np.int64), np.zeros((COUNT, max(sizes)), np.int64)
    for i, example in enumerate(examples):
        ids[i, : sizes[i]], mask[i, : sizes[i]] = example["input_ids"], 1
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    calls = {"ours": partial(session.many, examples), "padded": partial(session, **batch)}
    if rival("optimum-cli"):
        _, folder = optimum("bert-base", "feature-extraction")
        calls["optimum"] = partial(runner(folder / "model.onnx", threads, "last_hidden_state"), batch)
    whole = session(**batch)["last_hidden_state"]
    worst = 0.0
    for _ in range(4):  # it learns what calls cost from calls
        rows = [row["last_hidden_state"] for row in session.many(examples)]
        worst = max(float(abs(x - whole[i, : len(x)]).max()) for i, x in enumerate(rows))
    times = {name: median(found) for name, found in in_turns(calls, seconds).items()}
    cells = [f"{times['ours'] * 1e3:.0f} ms", f"{times['padded'] * 1e3:.0f} ms", f"{times['padded'] / times['ours']:.2f}"]
    theirs = times.get("optimum")
    table.rows.append([*cells, *(["", ""] if theirs is None else [f"{theirs * 1e3:.0f} ms", f"{theirs / times['ours']:.2f}"])])
    table.notes.append(f"Lengths {', '.join(map(str, sorted(sizes)))}; the outputs agree to {worst:.1e}.")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=25)
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    WORK.mkdir(parents=True, exist_ok=True)
    print(measure(**vars(parser.parse_args())))
