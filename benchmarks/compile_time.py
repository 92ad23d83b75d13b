"""How long XLA compiles, by depth: repeated blocks as one scan (`roll`), and block by block.

Each measurement is a process of its own: JAX remembers what it compiled.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import WORK, Table, median, process, rival

DEPTHS = (12, 24, 48)
WIDTH, BATCH, TOKENS, WORDS = 256, 1, 64, 1000
SIDES = ("rolled", "unrolled", "rival")
BAR = 1.3  # 48 blocks against 12


def measure(depths: Sequence[int] = DEPTHS, repeat: int = 1) -> Table:
    """A row for each depth of GPT-2's training gradient, and one for the forward of bert-base; medians of `repeat` processes."""
    table = Table("Compile time of XLA (CPU)", ["program", "rolled", "unrolled", "rival (Flax)", "step rolled / unrolled"])
    first: list[float] = []
    for what, depth in (*(("gradient", d) for d in depths), ("forward", 12)):
        sides = [s for s in SIDES if s != "rival" or (what == "forward" and rival("python"))]
        made = {side: _medians(what, side, depth, repeat) for side in sides}
        first = first or [m["compile"] for m in made.values() if m]
        cells = [f"{m['compile']:.1f} s" if (m := made.get(side)) else "fails" if side in made else "" for side in SIDES]
        ratio = f"{made['rolled']['step'] / made['unrolled']['step']:.2f}" if made["rolled"] and made["unrolled"] else ""
        name = f"gradient of GPT-2, {depth} blocks" if what == "gradient" else "forward of bert-base, 12 blocks"
        table.rows.append([name, *cells, ratio])
        if what == "gradient" and depth == depths[-1] and made["rolled"]:
            table.notes.append(f"{depth} blocks take {made['rolled']['compile'] / first[0]:.2f}x as long as {depths[0]} rolled; the bar is {BAR}x.")
    table.notes.append(f"GPT-2 of width {WIDTH}, in training mode with dropout, {BATCH} x {TOKENS} tokens, {WORDS} words; bert-base on 1 x 128.")
    table.notes.append("Tracing, lowering and compiling, in a process of its own each; medians.")
    return table


def _medians(what: str, side: str, depth: int, repeat: int) -> dict[str, float] | None:
    """Seconds of compiling and of a step afterwards; None where it fails."""
    python = str(rival("python")) if side == "rival" else sys.executable
    runs = [process([python, str(Path(__file__)), "--one", what, side, str(depth)]) for _ in range(repeat)]
    if not all(r.ok for r in runs):
        return None
    found = [json.loads(r.output.splitlines()[-1]) for r in runs]
    return {k: median([f[k] for f in found]) for k in found[0]}


# ---- in a process of its own --------------------------------------------------------------------


def one(what: str, side: str, depth: int) -> dict[str, float]:
    """Compiles one program and runs it."""
    import jax

    function, arguments = _flax() if side == "rival" else (_gradient if what == "gradient" else _forward)(side, depth)
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(*arguments))
    steps = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        steps.append(time.perf_counter() - start)
    return {"compile": seconds, "step": median(steps)}


def _gradient(side: str, depth: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    import jax
    import jax.numpy as jnp

    import interlingua as il

    sizes = {"n_embd": WIDTH, "n_head": WIDTH // 64, "n_positions": TOKENS, "vocab_size": WORDS, "n_layer": depth}
    fn, params, state = il.from_config({"model_type": "gpt2", **sizes}, "GPT2LMHeadModel").to_jax(
        outputs=["loss"], training=True, roll=side == "rolled"
    )
    ids = jnp.ones((BATCH, TOKENS), jnp.int32)

    def loss(params: Any, key: Any) -> Any:
        return fn(params, state, key, input_ids=ids, labels=ids)[0]["loss"]

    return jax.grad(loss), (params, jax.random.key(0))


def _forward(side: str, depth: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    import interlingua as il

    fn, params = il.from_config({"model_type": "bert", "num_hidden_layers": depth}, "BertModel").to_jax(roll=side == "rolled")
    return lambda params, ids, mask: fn(params, input_ids=ids, attention_mask=mask), (params, *_words())


def _flax() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    from transformers import BertConfig, FlaxBertModel

    model = FlaxBertModel(BertConfig())
    return lambda params, ids, mask: model(ids, mask, params=params, return_dict=False), (model.params, *_words())


def _words() -> tuple[Any, Any]:
    import jax.numpy as jnp

    return jnp.ones((1, 128), jnp.int32), jnp.ones((1, 128), jnp.int32)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--repeat", type=int, default=1, help="processes for each measurement")
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "SIDE", "DEPTH"), help="one measurement, as JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one[0], given.one[1], int(given.one[2]))))
    else:
        WORK.mkdir(parents=True, exist_ok=True)
        print(measure(given.depths, given.repeat))
