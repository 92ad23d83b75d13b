"""State of generation: trace-time objects that declare the graph inputs and outputs they need.

The same `forward` is traced without a cache and with a growing one; a model file never branches on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .graph import Graph, Value, current
from .sizes import Size, symbol

if TYPE_CHECKING:
    from collections.abc import Sequence


PAST, PRESENT = "past_key_values.", "present."  # what the names of inputs and outputs that hold keys and values start with


class Cache:
    """How keys and values of earlier calls reach this one."""

    past: Size = 0

    def extend(self, k: Value, v: Value, slot: str = "") -> tuple[Value, Value]:
        """Keys and values [batch heads seq head] of this call joined with earlier ones."""
        return k, v

    def once(self, make: Callable[[], Sequence[Value]], slot: str = "encoder") -> tuple[Value, Value]:
        """Keys and values that are the same in every call, such as those of an encoder."""
        k, v = make()
        return k, v

    def positions(self, length: Size, most: int, given: Value | None = None) -> Value:
        """i64[length]: the places of this call's tokens, counted from the first one ever, or those that are given; there are `most` places."""
        from .ops import iota

        if given is not None:
            return given
        current().limit(self.past + length, most, "the model has no positions beyond")
        return iota(size=length) + self.past

    def sizes(self) -> dict[str, Size]:
        """What sizes that depend on the cache stand for: `keys` is how many tokens can be looked at."""
        return {"keys": symbol("seq"), "decoder_keys": symbol("decoder_seq")}


class NoCache(Cache):
    """One call sees all tokens."""


class GrowingCache(Cache):
    """Old keys come in, old and new go out; `past` may be 0, so that one graph serves prefill and decode.

    Inputs are named `past_key_values.<layer>[.<slot>].key`, outputs `present.<layer>[.<slot>].key`, as optimum names them.
    """

    def __init__(self, slots: bool = False):
        self.past = symbol("past")
        self.slots = slots
        self._count: dict[str, int] = {}

    def _place(self, slot: str) -> str:
        layer = self._count.get(slot, 0)
        self._count[slot] = layer + 1
        return f"{layer}.{slot}" if self.slots else str(layer)

    def extend(self, k: Value, v: Value, slot: str = "decoder") -> tuple[Value, Value]:
        """Old and new keys and values, which are outputs too."""
        from .ops import concat

        graph, place, both = current(), self._place(slot), []
        graph.bounds["past"] = 0
        for name, x in (("key", k), ("value", v)):
            old = graph.input(f"{PAST}{place}.{name}", x.type.with_axis(2, self.past))
            both.append(concat(old, x, axis=2))
            graph.outputs[f"{PRESENT}{place}.{name}"] = both[-1]
        return both[0], both[1]

    def once(self, make: Callable[[], Sequence[Value]], slot: str = "encoder") -> tuple[Value, Value]:
        """Inputs in place of what `make` would compute; the encoder's graph computes it (`OnceCache`)."""
        graph, place = current(), self._place(slot)
        k, v = (graph.input(f"{PAST}{place}.{name}", x.type) for name, x in zip(("key", "value"), make(), strict=True))
        return k, v

    def positions(self, length: Size, most: int, given: Value | None = None) -> Value:
        """Given places count what is not padding; as many tokens as there are places can be looked at all the same."""
        current().limit(self.past + length, most, "the model has no positions beyond")
        return super().positions(length, most, given)

    def sizes(self) -> dict[str, Size]:
        """Keys are the past ones and the new."""
        return {"keys": symbol("past") + symbol("seq"), "decoder_keys": symbol("past") + symbol("decoder_seq")}


class OnceCache(Cache):
    """Makes what `once` computes an output `present.<layer>.<slot>.key`: an encoder's graph is the trace cut there."""

    def __init__(self) -> None:
        self._layer = 0

    def once(self, make: Callable[[], Sequence[Value]], slot: str = "encoder") -> tuple[Value, Value]:
        """What `make` computes, remembered as outputs."""
        k, v = make()
        graph = current()
        graph.outputs[f"{PRESENT}{self._layer}.{slot}.key"], graph.outputs[f"{PRESENT}{self._layer}.{slot}.value"] = k, v
        self._layer += 1
        return k, v


def continues(graph: Graph) -> bool:
    """Whether a graph takes keys and values of earlier calls."""
    return any(v.name.startswith(PAST) for v in graph.inputs)
