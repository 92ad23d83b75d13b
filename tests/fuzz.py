"""Random models against the reference, in float64 and on onnxruntime: python tests/fuzz.py [--seed 0] [--seconds 600] [card ...]

Derived rows change one field at a time; here several change together, with other lengths, batches and paddings. What differs is printed with all
that makes it again, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

os.environ["INTERLINGUA_ORACLE_CACHE"] = tempfile.mkdtemp(prefix="interlingua-fuzz-")  # cases are thrown away
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("USE_TF", "0")

import numpy as np
import tiny
from derived_rows import NAMES, Derived, changes
from oracle import Case
from targets import available, forward, load, present

from interlingua import models
from interlingua.ir.errors import ConfigError
from interlingua.ir.reference import reference

LENGTHS = {  # where a model takes some only, or the reference gives numbers without a meaning for others
    "big_bird": (44, 48, 56, 64),
    "canine": (8, 24, 28),
    "funnel": (5, 7, 11, 13, 16),
    "longformer": (7, 9, 16, 21),
    "nystromformer": (),
}


def draw(rng: random.Random, name: str) -> Derived:
    """A head of a card with up to four fields changed, and inputs of some size."""
    card = models.card(name)
    own, config = tiny.own(card), {}
    head = rng.choice([h for h in card.heads if not own.skipped(h)])
    known = list(changes(card))
    for _, _, change in rng.sample(known, min(len(known), rng.randint(0, 4))):
        config.update({k: v for k, v in change.items() if k not in config})
    inputs = {"batch": rng.choice([1, 2, 3]), "pad": rng.choice(["left", "right", "none"]), "seed": rng.randint(0, 999)}
    row = Derived(name, head, "fuzz", rng.randint(0, 1), config, inputs)
    if row.values().get("is_decoder"):
        # the reference measures relative distances from the last key where it makes a cache, and its first rows of left-padded prompts see no key
        config["use_cache"], inputs["pad"] = False, "right"
    if lengths := LENGTHS.get(name, tuple(range(5, 24))):
        inputs["length"] = rng.choice(lengths)
    return row


def differences(case: Case, on_onnxruntime: bool) -> Iterator[str]:
    """What of a case is not the reference's."""
    model = load(case)
    names = [k for k in available(model, case) if not k.endswith("_index")]  # which of equally forbidden answers is first means nothing
    ours = reference(model.graph(present(model, case), names), case.inputs, model.weights)
    for name in names:
        true = case.outputs64[name]
        live = case.live(name, true) & np.isfinite(true)
        apart = float(np.abs(np.where(live, ours[name] - true, 0)).max(initial=0))
        if not apart <= 1e-9 * max(1.0, float(np.abs(true[np.broadcast_to(live, true.shape)]).max(initial=0))):
            yield f"{name} is {apart:.1e} apart in float64"
    if on_onnxruntime:
        with tempfile.TemporaryDirectory() as folder:
            made = [k for k in case.main if k in names]
            yield from map(str, case.mismatches(forward(model, "onnx", case, made, Path(folder)), made))


def main(seed: int, seconds: float, names: list[str]) -> int:
    """How many rows differ."""
    rng, stop, tried, refused, failed, wrong = random.Random(seed), time.monotonic() + seconds, 0, 0, 0, 0
    names = names or [n for n in NAMES if any(not tiny.own(models.card(n)).skipped(h) for h in models.card(n).heads)]
    while time.monotonic() < stop:
        row = draw(rng, rng.choice(names))
        try:
            models.card(row.name).config.read(row.values())
        except ConfigError:
            refused += 1
            continue
        try:
            case = row.case()
        except Exception:  # whatever the reference cannot run
            failed += 1
            continue
        tried += 1
        try:
            found = list(differences(case, on_onnxruntime=tried % 3 == 0))
        except Exception as error:
            found = [f"{type(error).__name__}: {str(error)[:300]}"]
        shutil.rmtree(case.folder, ignore_errors=True)
        if found:
            wrong += 1
            print(f"{row.name} {row.head}, size {row.size}, {json.dumps(row.config)}, {json.dumps(row.inputs)}", *found[:4], sep="\n  ", flush=True)
    print(f"seed {seed}: {tried} models, {wrong} differ; {refused} more are refused by our configuration, and {failed} fail in the reference")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="card", help="by default all whose rows are derived")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600)
    warnings.simplefilter("ignore")  # the reference library's own
    try:
        sys.exit(main(**vars(parser.parse_args())) > 0)
    finally:
        shutil.rmtree(os.environ["INTERLINGUA_ORACLE_CACHE"], ignore_errors=True)
