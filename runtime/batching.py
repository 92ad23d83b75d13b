"""Examples of different lengths in one call, without paying for padding."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.errors import InputError
from ..ir.sizes import Dim, symbol
from ..ir.types import NUMPY_DTYPES, Type

if TYPE_CHECKING:
    from .session import Session

Example = Mapping[str, Any]
BATCH = symbol("batch")
MASK = "attention_mask"
CALL = 64.0  # what a call costs beside its elements, counted in elements, before anything was measured


class Costs:
    """How long a call takes by its number of rows and their length, learnt from the calls that are made anyway."""

    def __init__(self) -> None:
        self._best: dict[tuple[int, int], float] = {}
        self._fitted = np.array([CALL, 1.0, 0.0])

    def learn(self, rows: int, length: int, seconds: float) -> None:
        """Remembers a call; the fastest of its size counts, as the first one also prepares."""
        size = rows, length
        self._best[size] = min(seconds, self._best.get(size, np.inf))
        if len(self._best) >= 4:
            terms = np.array([self._terms(*s) for s in self._best])
            seconds_of = np.array(list(self._best.values()))
            weight = 1 / seconds_of  # a relative error counts alike in short and long calls
            fitted = np.linalg.lstsq(terms * weight[:, None], np.ones(len(seconds_of)), rcond=None)[0]
            self._fitted = np.maximum(fitted, 0) if (fitted[:2] > 0).all() else self._fitted

    def __call__(self, rows: int, length: int) -> float:
        """What a call is expected to take, in a unit of no meaning."""
        return float(self._terms(rows, length) @ self._fitted)

    @staticmethod
    def _terms(rows: int, length: int) -> np.ndarray:
        return np.array([1.0, rows * length, rows * length * length])  # the call, the layers, attention between the elements of a row


def split(lengths: Sequence[int], costs: Costs, most: int) -> list[int]:
    """How many of the examples, which come longest first, each call takes, so that all calls together are expected to take least."""
    best, first = [0.0], [0]
    for end in range(1, len(lengths) + 1):
        options = [(best[start] + costs(end - start, lengths[start]), start) for start in range(max(0, end - most), end)]
        seconds, start = min(options)
        best.append(seconds)
        first.append(start)
    counts, end = [], len(lengths)
    while end:
        counts.append(end - first[end])
        end = first[end]
    return counts[::-1]


def run_many(session: Session, examples: Sequence[Example], costs: Costs, *, pad: Mapping[str, Any], most: int) -> list[dict[str, np.ndarray]]:
    """The outputs of each example, which are arrays without the batch axis.

    Examples of like length share a call; shorter ones are padded at their ends with `pad` (0 for inputs that it does not name) and a mask. Where
    each new size is compiled, rows and lengths are rounded up to powers of two. Outputs are cut to the example's own length.

    Raises InputError where an example does not fit.
    """
    plan = _Plan(session, examples)
    order = sorted(range(len(examples)), key=lambda i: -plan.lengths[i])
    made: list[dict[str, np.ndarray]] = [{}] * len(examples)
    start = 0
    for count in plan.groups([plan.lengths[i] for i in order], costs, most):
        chosen, start = order[start : start + count], start + count
        rows, length = count, plan.lengths[chosen[0]]
        if session.compiles_sizes:
            rows, length = min(_power_of_two(rows), most), plan.within_limits(_power_of_two(length), length)
        inputs = plan.joined([*chosen, *chosen[-1:] * (rows - count)], length, pad)
        began = time.perf_counter()
        outputs = session(**inputs)
        costs.learn(rows, length, time.perf_counter() - began)
        for row, i in enumerate(chosen):  # rows beyond them only fill the batch
            made[i] = {k: plan.own(k, x[row], i) for k, x in outputs.items()}
    return made


class _Plan:
    """What a session's types say of examples: which inputs have a length, and which outputs are as long."""

    def __init__(self, session: Session, examples: Sequence[Example]):
        self.types, self.outputs = session.inputs, session.outputs
        self.limits = {size: most for size, (most, _) in session.graph.limits.items()}
        if without := [k for k, t in {**self.types, **self.outputs}.items() if not t.rank or t.shape[0] != BATCH]:
            raise InputError(f"{session.name} has {without[0]!r}, which has no batch axis; call it with whole batches")
        self.length = self._ragged(session.name)
        self.arrays = [self._checked(i, e) for i, e in enumerate(examples)]
        self.lengths = [self._length(i) for i in range(len(examples))]

    def _ragged(self, name: str) -> Dim | None:
        """The one size by which examples may differ."""
        sizes = {d for t in self.types.values() for d in t.shape[1:] if isinstance(d, Dim)}
        if len(sizes) > 1:
            raise InputError(f"{name} has inputs with several free sizes ({', '.join(sorted(map(str, sizes)))}); call it with whole batches")
        return next(iter(sizes), None)

    def _checked(self, i: int, example: Example) -> dict[str, np.ndarray]:
        arrays = {k: np.asarray(x) for k, x in example.items() if x is not None}
        for k, x in arrays.items():
            if k in self.types and x.ndim != self.types[k].rank - 1:
                raise InputError(f"example {i}: input {k!r} has shape {list(x.shape)}, expected {self.types[k]} without its batch axis")
        return arrays

    def _axes(self, type: Type) -> list[int]:
        """The axes, counted without the batch, that are as long as the example."""
        return [a for a, d in enumerate(type.shape[1:]) if d == self.length]

    def _length(self, i: int) -> int:
        found = {x.shape[a] for k, x in self.arrays[i].items() if k in self.types for a in self._axes(self.types[k])}
        if len(found) > 1:
            raise InputError(f"example {i}: its inputs have the lengths {sorted(found)}, expected one")
        return found.pop() if found else 0

    def groups(self, lengths: list[int], costs: Costs, most: int) -> list[int]:
        """How many examples each call takes; without a mask only equal lengths can share one."""
        if MASK in self.types or self.length is None:
            return split(lengths, costs, most)
        changes = [i for i in range(1, len(lengths)) if lengths[i] != lengths[i - 1]]
        edges = [0, *changes, len(lengths)]
        return [min(most, b - c) for a, b in pairwise(edges) for c in range(a, b, most)]

    def within_limits(self, length: int, least: int) -> int:
        """`length`, or `least` where the model has no such positions or padding has no mask."""
        most = min((m for size, m in self.limits.items() if size == self.length), default=length)
        return length if MASK in self.types and length <= most else least

    def joined(self, chosen: Sequence[int], length: int, pad: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A batch of the chosen examples, each padded to the length."""
        names = dict.fromkeys(k for i in chosen for k in self.arrays[i])
        if MASK in self.types and MASK not in names:
            names[MASK] = None
        return {k: np.stack([self._padded(k, i, length, 0 if k == MASK else pad.get(k, 0)) for i in chosen]) for k in names}

    def _padded(self, name: str, i: int, length: int, value: Any) -> np.ndarray:
        x = self.arrays[i].get(name)
        if x is None and name == MASK:
            x = np.ones(self.lengths[i], NUMPY_DTYPES[self.types[name].dtype])
        if x is None:
            raise InputError(f"example {i} lacks input {name!r}, which others have")
        axes = self._axes(self.types[name]) if name in self.types else []
        return reduce(lambda y, a: _longer(y, a, length, value), axes, x)

    def own(self, name: str, x: np.ndarray, i: int) -> np.ndarray:
        """An output of an example without what its padding became."""
        for axis, d in enumerate(self.outputs[name].shape[1:]):
            if isinstance(d, Dim) and self.length is not None and d.names() <= self.length.names() and self.lengths[i]:
                x = x[(slice(None),) * axis + (slice(d.bind({str(self.length): self.lengths[i]})),)]
        return x


def _power_of_two(n: int) -> int:
    """The next one that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def _longer(x: np.ndarray, axis: int, length: int, value: Any) -> np.ndarray:
    return np.pad(x, [(0, length - d if a == axis else 0) for a, d in enumerate(x.shape)], constant_values=value)
