"""Large batches as groups of rows, which threads run on their own.

Threads that share every product wait for one another after each, and the rows of a large batch do not fit into the cache of a core. Where all
sessions share one copy of the weights (runtime/packed.py), one of a single thread costs nothing: each thread runs a few rows at a time through the
whole graph.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np

from ..ir.graph import Graph
from .batching import BATCH
from .packed import return_freed_memory
from .session import Session

TOKENS = 256  # of a group: of fewer, a thread would wait for weights; more leave the cache
VALUES = 256  # of an image or a sound that become about one token

Arrays = Mapping[str, np.ndarray]


class RowGroups:
    """The threads that run groups of rows; `open` makes a session of one thread."""

    def __init__(self, threads: int, open: Callable[[], Session]):
        self.threads, self.open = threads or os.cpu_count() or 1, open
        self.pool = ThreadPoolExecutor(self.threads)

    @cached_property
    def session(self) -> Session:
        """What the threads share; opened for the first batch that is large enough."""
        opened = self.open()
        return_freed_memory()
        return opened

    def run(self, arrays: Arrays, whole: Callable[[Arrays], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The outputs for arrays [batch ...]; `whole` runs what is left when each thread has had as many groups."""
        first = next(iter(arrays.values()))
        batch, values = len(first), math.prod(first.shape[1:])
        rows = max(1, TOKENS // max(1, values // VALUES if first.dtype.kind == "f" else values))
        grouped = batch - batch % (rows * self.threads)
        part = lambda start, end: {k: x[start:end] for k, x in arrays.items()}
        made = list(self.pool.map(lambda start: self.session.run(part(start, start + rows)), range(0, grouped, rows)))
        if grouped < batch or not made:
            made.append(whole(part(grouped, batch)))
        return made[0] if len(made) == 1 else {k: np.concatenate([outputs[k] for outputs in made]) for k in made[0]}


def divisible(graph: Graph) -> bool:
    """Whether a graph is called by rows: the batch is the first axis of all inputs and outputs, and no other."""
    types = [v.type for v in (*graph.inputs, *graph.outputs.values())]
    return bool(graph.inputs) and all(t.rank and t.shape[0] == BATCH and BATCH not in t.shape[1:] for t in types)
