"""Steps on XLA, where each size is compiled anew: caches, prompts and masks are padded to a few lengths, and masks say what is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...ir.errors import TargetError
from ...ir.sizes import Dim, Size, symbol
from ...ir.types import Type
from ..xla import XlaSession
from .stepper import State, Stepper, keys_of, rows_of, signature

ROOM = "room"  # how many keys a cache holds, beside the caches of a state
STEP = 16  # the shortest length
FAR = 256  # lengths double up to this, and are multiples of it above


def rounded(length: int, most: int | None = None) -> int:
    """The length that so many tokens are padded to."""
    n = STEP
    while n < min(length, FAR):
        n *= 2
    n = n if length <= n else -(-length // FAR) * FAR
    return n if most is None or length > most else min(n, most)


class XlaStepper(Stepper):
    """A graph of an `XlaSession`, whose caches have one size through a whole generation and are donated from step to step.

    The graph is the one whose cache grows: what it gives has the new tokens at its end, and its oldest ones, which are padding, are cut off in the
    same program. So new tokens always stand at the right, and padding at the left.
    """

    session: XlaSession

    def __init__(self, session: XlaSession):
        super().__init__(session)
        keys, masked = keys_of(self), any(k.endswith("attention_mask") and t.shape[-1] == keys_of(self) for k, t in self.inputs.items())
        if keys is not None and not masked:
            raise TargetError(
                f"{session.name} on XLA takes {signature(self.graph)}, and no mask of all tokens, without which caches cannot be padded\n"
                "  export the model for stablehlo with its usual inputs"
            )
        self.padded = masked or any(k.endswith("attention_mask") for k in self.inputs)
        self.keys, self.rows, jax = keys, rows_of(self), session.jax
        self._first = jax.jit(self._step, static_argnums=(4, 5))
        self._next = jax.jit(self._step, static_argnums=(4, 5), donate_argnums=3)
        self._select = jax.jit(lambda state, rows: {k: jax.numpy.take(x, rows, axis=0) for k, x in state.items()})
        self._shorten = jax.jit(lambda state, n: {k: jax.numpy.roll(x, n, axis=2) for k, x in state.items()}, donate_argnums=0)

    def begin(self, batch: int, room: int) -> State:
        """Nothing yet, and how many keys the first step is to make room for."""
        return {**super().begin(batch, room), ROOM: rounded(room, self.most[0] if self.most else None) - 1}

    def zeros(self, name: str, shape: tuple[int, ...]) -> Any:
        """An array on the session's device."""
        return self.session.put(name, np.zeros(shape))

    def run(self, arrays: Mapping[str, np.ndarray], state: State, greatest_only: bool = False, last: int = 1) -> tuple[np.ndarray | None, State]:
        """One step; logits alone are copied to the host. The old state is gone afterwards."""
        past, host = state[self.grown[0]].shape[2] if self.grown else 0, self.host(arrays)
        keys = past + next((x.shape[1] for k, x in host.items() if past and self.inputs[k].shape[1] == self.rows), 0)
        given = {k: self.session.put(k, self._padded(self.inputs[k], x, keys)) for k, x in host.items()}
        old = {k: state[k] for k in self.grown}
        kept = {k: state[k] for k in self.caches if k not in old}
        call = self._next if past else self._first
        logits, new = self.session.guarded(call, self.session.weights, given, kept, old, state.get(ROOM), last)
        return None if logits is None else np.asarray(logits, np.float32), new

    def select(self, state: State, rows: np.ndarray) -> State:
        """Rows by `take`."""
        return self._select({k: x for k, x in state.items() if k != ROOM}, rows.astype(np.int32))

    def shorten(self, state: State, tokens: int) -> State:
        """The same room, moved to the right; what comes round stands where masks say padding. The old state is gone afterwards."""
        return self._shorten(state, np.int32(tokens))

    def _step(self, weights: Any, given: State, kept: State, old: State, room: int | None, last: int) -> tuple[Any, State]:
        values = {**given, **kept, **old}
        made = dict(zip(self.outputs, self.session.program(weights, [values[k] for k in self.inputs]), strict=True))
        new = {k: made[name] if room is None else self._cut(made[name], room) for k, name in self.made.items()}
        return made["logits"][:, -last:] if "logits" in made else None, new

    def _cut(self, x: Any, room: int) -> Any:
        """x [batch heads keys head] with the last `room` keys, or padded on the left to so many."""
        n = x.shape[2]
        return x[:, :, n - room :] if n >= room else self.session.jax.numpy.pad(x, ((0, 0), (0, 0), (room - n, 0), (0, 0)))

    def _padded(self, type: Type, x: np.ndarray, keys: int) -> np.ndarray:
        """An array with its tokens at the right of a length of those that are compiled; an encoder's tokens at the left.

        `keys` is how many there are after this call, 0 where it is the first.
        """
        if not self.padded:
            return x
        widths = []
        for d, n in zip(type.shape, x.shape, strict=True):
            size = self._length(d, n, keys)
            widths.append((size - n, 0) if d in (self.keys, self.rows) else (0, size - n))
        return np.pad(x, widths)

    def _length(self, d: Size, n: int, keys: int) -> int:
        if not isinstance(d, Dim) or d == symbol("batch"):
            return n
        limit = self.graph.limits.get(d)
        if d == self.rows:
            return n if keys else rounded(n, self.most[0] if self.most else None)
        if d == self.keys:
            return keys or rounded(n, self.most[0] if self.most else None)
        return rounded(n, limit[0] if limit else None)
