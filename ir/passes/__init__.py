"""Passes: pure functions from graph to graph that keep what it means, its inputs and its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..errors import InterlinguaError, UsageError, nearest
from ..graph import Graph
from .absorb_projections import absorb_projections
from .explicit_causal import explicit_causal
from .flatten import flatten
from .fold_constants import fold_constants
from .fold_scales import fold_scales
from .merge_linears import merge_linears
from .push_slices import push_slices
from .roll import roll
from .separate_biases import separate_biases

Pass = Callable[[Graph], Graph]

STANDARD = (push_slices, explicit_causal, fold_constants)  # what every target gains from

__all__ = [
    "STANDARD",
    "Pass",
    "absorb_projections",
    "explicit_causal",
    "flatten",
    "fold_constants",
    "fold_scales",
    "merge_linears",
    "optimize",
    "push_slices",
    "roll",
    "separate_biases",
    "without",
]


def without(passes: Sequence[Pass], names: Iterable[str]) -> tuple[Pass, ...]:
    """The passes but for those of these names; UsageError for a name that none has."""
    known = {change.__name__: change for change in passes}
    if unknown := [n for n in names if n not in known]:
        raise UsageError(f"pass {unknown[0]!r} is unknown{nearest(unknown[0], known)}")
    return tuple(change for name, change in known.items() if name not in set(names))


def optimize(graph: Graph, passes: Sequence[Pass] = STANDARD, *, observe: Callable[[str, Graph, Graph], None] | None = None) -> Graph:
    """`graph` after each pass in turn; `observe` sees each pass's name and the graph before and after it.

    An error names the pass: its own, or that inputs or outputs are not what they were.
    """
    for change in passes:
        name = getattr(change, "__name__", repr(change))
        try:
            changed = change(graph)
        except InterlinguaError as e:
            raise type(e)(f"pass {name}: {e}") from e
        except Exception as e:
            raise InterlinguaError(f"pass {name} failed: {type(e).__name__}: {e}") from e
        _check(name, graph, changed)
        if observe:
            observe(name, graph, changed)
        graph = changed
    return graph


def _check(name: str, before: Graph, after: Graph) -> None:
    for what, old, new in (("inputs", _inputs(before), _inputs(after)), ("outputs", _outputs(before), _outputs(after))):
        if old != new:
            rows = [f"\n  {k}: {old.get(k, 'absent')} before, {new.get(k, 'absent')} after" for k in {**old, **new} if old.get(k) != new.get(k)]
            raise InterlinguaError(f"pass {name} changed the {what}, expected them as they were{''.join(rows) or ' and in their order'}")
    known = set(before.params())
    if strange := [v for v in after.params() if v not in known]:
        raise InterlinguaError(f"pass {name} made the parameter {strange[0]!r}, expected only those that were there")


def _inputs(graph: Graph) -> dict[str, str]:
    return {v.name: str(v.type) for v in graph.inputs}


def _outputs(graph: Graph) -> dict[str, str]:
    return {k: str(v.type) for k, v in graph.outputs.items()}
