"""Generation inside one graph: prompts in, finished ids out, so that what runs the graph needs to know nothing of generation.

Caches have one size through the whole loop, as on XLA (`xla.py`): each step cuts the oldest key off, new tokens stand at the right, and the mask
says what is padding. The steps are those of the step-by-step generator, by the same two graphs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...ir import ops
from ...ir.cache import PAST, PRESENT
from ...ir.errors import ParityError, UsageError
from ...ir.graph import Graph, Param, Value, current
from ...ir.ops.loop import inline, substituted
from ...ir.reference import reference
from ...ir.sizes import Size
from ...ir.table import INDEX
from ..samples import make_samples
from ..session import Session
from ..verify import FACTORS, FLOOR
from .options import Options, defaults

SEQUENCES, MARGINS = "sequences", "margins"
CHECKED = 16  # tokens that a check computes in float64: each step reads all weights


def options_for(model: Any, new: int) -> Options:
    """What the checkpoint asks of generation, for `new` tokens; warns of what is not done inside a graph, where the likeliest tokens are taken."""
    found = defaults(Path(model.folder) if model.folder else None, model.values)
    if asked := found.choosing:
        warnings.warn(f"{model.name} asks for {', '.join(asked)}, which generation inside a graph does not apply", stacklevel=3)
    return replace(found, max_new_tokens=new)


def generating_graph(model: Any, options: Options, *, margins: bool = False) -> Graph:
    """A graph from `input_ids` and `attention_mask`, i64[batch seq], to `sequences`: what `Generator.generate` gives for `max_new_tokens`.

    `sequences` is i64[batch seq+new], with an encoder i64[batch 1+new], filled up with padding where all rows end early. Tokens are the likeliest
    ones; of `options` count `max_new_tokens`, `eos_token_id`, `pad_token_id` and `decoder_start_token_id`. With `margins`, there is an output
    f32[batch new] that says by how much each token was the likeliest.

    Raises UsageError for a model that does not generate or has no room for the tokens.
    """
    card = getattr(model, "card", None)
    parts = [part.graph(model, padded=True) for part in card.heads[model.head].parts] if card else []
    if not parts:
        raise UsageError(f"{model.name} does not generate: it has no key and value caches\n  load it with a head that generates")
    graph = Graph()
    with graph.tracing():
        ids, mask = (graph.input(name, "i64[batch seq]") for name in ("input_ids", "attention_mask"))
        memory: dict[str, Value] = {}
        if len(parts) > 1:
            given = {"input_ids": ids, "attention_mask": mask}
            made = _inlined(parts[0], {v: given[v.name] for v in parts[0].inputs}, {})
            memory = {PAST + k.removeprefix(PRESENT): x for k, x in made.items() if k.startswith(PRESENT)} | {"attention_mask": mask}
            ids, mask = _first(model, options, ids.shape[0])
        graph.outputs = _Decoder(model.name, parts[-1], memory, options, margins).generate(ids, mask)
    _check_room(model.name, graph, options)
    return graph.pruned()


def _first(model: Any, options: Options, batch: Size) -> tuple[Value, Value]:
    """The token that decoding starts with in each row, and its mask."""
    if (start := options.decoder_start_token_id) is None:
        raise UsageError(f"{model.name}: decoder_start_token_id is missing, expected the id that decoding starts with, in its config.json")
    return _full(start, (batch, 1)), _full(1, (batch, 1))


def _inlined(graph: Graph, feed: Mapping[Value, Value], sizes: Mapping[str, Size]) -> dict[str, Value]:
    """The outputs of a graph inside the one being traced, which has its limits too."""
    for size, (most, why) in graph.limits.items():
        current().limit(substituted(size, sizes), most, why)
    return inline(graph, feed, sizes)


def _full(value: int | bool | float, shape: tuple[Size, ...], dtype: str = "i64") -> Value:
    return ops.broadcast_to(ops.constant(value=value, dtype=dtype), shape=shape)


def _check_room(name: str, graph: Graph, options: Options) -> None:
    """UsageError where not even a prompt of one token leaves room."""
    for size, (most, why) in graph.limits.items():
        if (least := size.bind(dict.fromkeys(size.names(), 1))) > most:
            room = options.max_new_tokens - (least - most)
            raise UsageError(f"{name}: max_new_tokens is {options.max_new_tokens}, expected at most {room}: {why}")


@dataclass(frozen=True)
class _State:
    """What a step hands on: ids [batch length+new], its token [batch 1], which rows go on, the mask of all keys, old keys and values by name.

    And, where they are wanted, the margins [batch new].
    """

    ids: Value
    token: Value
    going: Value
    mask: Value
    caches: Mapping[str, Value]
    margins: Value | None = None

    def values(self) -> dict[str, Value]:
        """By name, in order."""
        own = {k: getattr(self, k) for k in _OWN}
        return {k: x for k, x in own.items() if x is not None} | dict(self.caches)

    @classmethod
    def of(cls, values: Mapping[str, Value]) -> _State:
        """The state of these values."""
        own = {k: values[k] for k in _OWN if k in values}
        return cls(**own, caches={k: x for k, x in values.items() if k not in own})


_OWN = ("ids", "token", "going", "mask", "margins")


class _Decoder:
    """A decoder's graph, of which the prefill and the loop's body are made; `memory` is what an encoder gives, by the name of the input."""

    def __init__(self, name: str, graph: Graph, memory: Mapping[str, Value], options: Options, margins: bool):
        self.graph, self.memory, self.options, self.margins = graph, memory, options, margins
        self.prefix = "decoder_" if any(v.name == "decoder_input_ids" for v in graph.inputs) else ""
        made = {PAST + k.removeprefix(PRESENT): k for k in graph.outputs if k.startswith(PRESENT)}
        self.grown = {v.name: made[v.name] for v in graph.inputs if v.name in made}
        self.types = {v.name: v.type for v in graph.inputs}
        self.own = [self.prefix + k for k in ("input_ids", "attention_mask", "position_ids")]
        self.rows = str(self.types[self.own[0]].shape[1])
        if strange := [k for k in self.types if k not in (*self.grown, *memory, *self.own)]:
            raise UsageError(f"{name} takes {strange[0]!r} in each step, which generation inside a graph does not know")

    def generate(self, prompt: Value, mask: Value) -> dict[str, Value]:
        """The ids i64[batch length+new] after prompts and their masks, both i64[batch length], and the margins."""
        batch, length = prompt.shape
        shape = lambda type: (batch, type.shape[1], 0, type.shape[3])
        empty = {k: _full(0.0, shape(self.types[k]), self.types[k].dtype) for k in self.grown}
        logits, caches = self._run(prompt, mask, {**self.memory, **empty}, {"past": 0, self.rows: length}, {})
        token, going = self._choose(logits, _full(True, (batch,), "bool"))
        ids, margins = ops.concat(prompt, token, axis=1), _margins(logits) if self.margins else None
        if rest := self.options.max_new_tokens - 1:
            ids = ops.concat(ids, _full(self.options.pad or 0, (batch, rest)), axis=1)
            mask = ops.concat(_full(0, (batch, rest)), mask, _full(1, (batch, 1)), axis=1)
            caches = {k: ops.pad(x, low=(0, 0, rest, 0), high=(0, 0, 0, 0)) for k, x in caches.items()}
            margins = None if margins is None else ops.concat(margins, _full(0.0, (batch, rest), "f32"), axis=1)
            state = self._loop(_State(ids, token, going, mask, caches, margins), rest, length)
            ids, margins = state.ids, state.margins
        return {SEQUENCES: ids} | ({} if margins is None else {MARGINS: margins})

    def _loop(self, state: _State, rest: int, length: Size) -> _State:
        """The state after `rest` steps or fewer."""
        outer, body, carried, params = current(), Graph(), state.values(), self.graph.params()
        with body.tracing():
            inside = _State.of({k: body.input(k, x.type) for k, x in carried.items()})
            memory = {k: body.input(k, x.type) for k, x in self.memory.items()}
            made = self._step(inside, memory, {p: body.input(p.key, p.type) for p in params}, length)
            body.outputs = {"again": ops.any(made.going, axis=0), **made.values()}
        for size, (most, why) in body.limits.items():
            outer.limit(size, most, why)
        operands = (ops.any(state.going, axis=0), *carried.values(), *self.memory.values(), *params)
        return _State.of(dict(zip(carried, ops.while_loop(*operands, body=body, carries=len(carried), most=rest), strict=True)))

    def _step(self, state: _State, memory: Mapping[str, Value], params: Mapping[Param, Value], length: Size) -> _State:
        """The state after one more token."""
        batch, keys = state.mask.shape
        given = {**memory, **state.caches}
        logits, caches = self._run(state.token, state.mask, given, {"past": keys - 1, self.rows: 1}, params)
        token, going = self._choose(logits, state.going)
        mask = ops.concat(state.mask[:, 1:], _full(1, (batch, 1)), axis=1)
        step = ops.size(value=INDEX + 1)
        margins = None if state.margins is None else ops.update(state.margins, _margins(logits), step, axis=1)
        ids = ops.update(state.ids, token, step + ops.size(value=length), axis=1)
        return _State(ids, token, going, mask, {k: x[:, :, 1:] for k, x in caches.items()}, margins)

    def _run(
        self, ids: Value, mask: Value, given: Mapping[str, Value], sizes: Mapping[str, Size], params: Mapping[Param, Value]
    ) -> tuple[Value, dict[str, Value]]:
        """Logits [batch words] after the last of ids, and keys and values, old and new; `params` stand in for the decoder's."""
        places = ops.maximum(ops.cumsum(mask, axis=1) - 1, 0)
        own = dict(zip(self.own, (ids, mask, places if mask.shape == ids.shape else places[:, -1:]), strict=True))
        feed: dict[Value, Value] = {v: {**given, **own}[v.name] for v in self.graph.inputs}
        made = _inlined(self.graph, feed | dict(params), sizes)
        return made["logits"][:, -1], {k: made[present] for k, present in self.grown.items()}

    def _choose(self, logits: Value, going: Value) -> tuple[Value, Value]:
        """The next tokens [batch 1], padding in rows that have ended, and which rows go on afterwards."""
        chosen = ops.argmax(logits, axis=-1)
        token = ops.where(going, chosen, self.options.pad or 0) if self.options.ends else chosen
        for end in self.options.ends:
            going = going & ~ops.equal(chosen, end)
        return ops.expand_dims(token, 1), going


def _margins(logits: Value) -> Value:
    """By how much the likeliest word of each row is ahead, [batch 1]."""
    first, second = ops.split(ops.top_k(logits, k=2)[0], axis=1, sizes=(1, 1))
    return first - second


# ---- checking -----------------------------------------------------------------------------------


def check_sequences(
    open: Callable[[], Session], graph: Graph, model: Any, target: str, *, options: Options, progress: Callable[[str], None] = lambda text: None
) -> dict[str, float]:
    """The first tokens of a session of `graph`, `CHECKED` or fewer, against the float64 reference, for two batches: 0 of them differ.

    A token may be another one where the reference's is ahead by no more than rounding explains, which is measured as elsewhere in verification;
    what follows it in that row is another text then and is not compared. Raises ParityError where tokens are wrong.
    """
    short = generating_graph(model, replace(options, max_new_tokens=min(options.max_new_tokens, CHECKED)), margins=True)
    truths = []
    for sample in make_samples(graph, getattr(model, "config", None)):
        progress(f"{target}: computing the float64 reference, {sample.name}")
        arrays = {k: x if _encodes(graph) else x[:, ::-1].copy() for k, x in sample.arrays.items()}
        truths.append((sample.name, arrays, *(reference(short, arrays, model.weights, float=f) for f in ("f64", "f32"))))
    progress(f"{target}: running what was written")
    session, new = open(), options.max_new_tokens
    for name, arrays, true, noisy in truths:
        if bad := wrong_tokens(session(**arrays)[SEQUENCES], true, noisy, new, FACTORS[target]):
            told = f"{model.name}: {target}: {bad} tokens of {SEQUENCES} are not those of the float64 reference, where no rounding explains it"
            raise ParityError(f"{told} ({name})")
    return {SEQUENCES: 0.0}


def _encodes(graph: Graph) -> bool:
    """Whether prompts are an encoder's, which are padded on the right; else new tokens follow them."""
    return isinstance(graph.outputs[SEQUENCES].shape[1], int)


def wrong_tokens(made: np.ndarray, true: Mapping[str, np.ndarray], noisy: Mapping[str, np.ndarray], new: int, factor: float) -> int:
    """How many of the tokens made, `new` in each row, are neither the true ones nor explained by rounding; `noisy` is a run in float32."""
    right, margins = true[SEQUENCES], true[MARGINS]
    checked = margins.shape[1]
    start = right.shape[1] - checked
    if made.shape != (len(right), start + new):
        return made.size
    first = lambda ids: np.argmax(np.c_[ids[:, : start + checked] != right, np.ones(len(right), bool)], axis=1) - start
    alike = np.arange(checked) <= first(noisy[SEQUENCES])[:, None]  # up to there float32 read the same text
    noise = np.max(np.abs(margins - noisy[MARGINS]), where=alike, initial=0)
    limit = factor * max(noise, FLOOR * max(1.0, np.max(np.abs(margins), initial=0)))
    wrong = 0
    for row, place in enumerate(first(made)):
        if place < 0 or (place < checked and not margins[row, place] <= limit):
            wrong += int(np.count_nonzero(made[row, : start + checked] != right[row]))
    return wrong
