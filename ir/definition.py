"""A model as the rest of the house sees it: layers, typed inputs and weights, from which graphs are traced."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from .cache import Cache, GrowingCache, OnceCache
from .errors import InputError, InterlinguaError, MissingOperandError, UsageError, nearest
from .graph import Graph, Param
from .layer import Layer, name_tree, trace
from .sizes import Dim
from .types import Type
from .weights import Weights

CACHES: dict[str, Callable[[], Cache]] = {
    "growing": GrowingCache,
    "growing-slots": lambda: GrowingCache(slots=True),
    "once": OnceCache,
}


class Definition:
    """Layers with typed inputs and weights.

    `inputs` are all that `layer.forward` takes, `usual` those that are present unless asked otherwise. A graph is traced for the set of
    inputs that are present; one left out is None in `forward` and means what the layer makes of that. `always` are globs of outputs on
    demand that are given without being asked for. `flags` are inputs whose presence changes the types of others, with those types;
    one that is no tensor (not among `inputs`) is true or left out, as `return_loss`.
    """

    by_rows = False  # whether an example's outputs are known not to depend on the others of its batch

    def __init__(
        self,
        layer: Layer,
        inputs: Mapping[str, str],
        weights: Weights,
        *,
        usual: Sequence[str] | None = None,
        always: Sequence[str] = (),
        flags: Mapping[str, Mapping[str, str]] | None = None,
        key: Callable[[str], str] = lambda name: name,
        name: str = "",
    ):
        self.layer, self.inputs, self.weights, self.key = layer, dict(inputs), weights, key
        self.usual = tuple(inputs if usual is None else usual)
        self.always, self.flags = tuple(always), dict(flags or {})
        self.name = name or type(layer).__name__
        self.params: list[Param] = name_tree(layer, key)
        self._trace = lru_cache(maxsize=32)(self._traced)

    def graph(self, inputs: Iterable[str] | None = None, outputs: Iterable[str] | None = None, *, training: bool = False, cache: str = "") -> Graph:
        """The graph for a set of inputs and output globs (`hidden_states.*`); by default the usual inputs and the reference's default outputs.

        Errors: InputError for an unknown input, UsageError for an output that does not exist.
        """
        names = frozenset(self.usual if inputs is None else inputs)
        self._check_names(names)
        return self._trace(names, None if outputs is None else tuple(outputs), training, cache)

    def present(self, inputs: Mapping[str, Any]) -> frozenset[str]:
        """The names of the inputs that are there: neither None nor a flag that is false. InputError for an unknown name."""
        self._check_names(inputs)
        return frozenset(k for k, x in inputs.items() if x is not None and x is not False)

    def _check_names(self, names: Iterable[str]) -> None:
        known = [*self.inputs, *self.flags]
        if unknown := sorted(set(names) - set(known)):
            raise InputError(f"{self.name} has no input {unknown[0]!r}{nearest(unknown[0], known)}")

    def _traced(self, names: frozenset[str], outputs: tuple[str, ...] | None, training: bool, cache: str) -> Graph:
        state = CACHES[cache]() if cache else None
        sizes = (state or Cache()).sizes()
        raised = [f for f in self.flags if f in names and f not in self.inputs]
        changed = {k: t for f in self.flags if f in names for k, t in self.flags[f].items()}
        present = {k: _substitute(changed.get(k, t), sizes) if k in names else None for k, t in self.inputs.items()}
        try:
            graph = trace(self.layer, present, dict.fromkeys(raised, True), training=training, cache=state)
        except (AttributeError, TypeError) as error:  # a None that is used as a value, in Python or in an op
            left_out = [k for k, t in present.items() if t is None]
            if (isinstance(error, InterlinguaError) and not isinstance(error, MissingOperandError)) or not left_out:
                raise
            given = ", ".join(k for k in present if k in names) or "nothing"
            why = str(error).splitlines()[0]
            raise InputError(f"{self.name} cannot be built for {given} alone: {why}\n  left out are {', '.join(left_out)}") from error
        wanted = select(graph.outputs, outputs, self.name, self.always)
        graph.outputs = {k: v for k, v in graph.outputs.items() if k in wanted or k.startswith(("update.", "present."))}
        pruned = graph.pruned()
        pruned.ignored = names - {v.name for v in pruned.inputs}
        return pruned


def select(available: Iterable[str], patterns: Sequence[str] | None, name: str, always: Sequence[str] = ()) -> list[str]:
    """The outputs that globs ask for; by default all but hidden states and attention weights per layer."""
    available = [k for k in available if not k.startswith(("update.", "present."))]
    if patterns is None:
        return [k for k in available if not on_demand(k) or any(fnmatchcase(k, a) for a in always)]
    chosen: list[str] = []
    for pattern in patterns:
        found = [k for k in available if fnmatchcase(k, pattern) or k.startswith(f"{pattern}.")]
        if not found:
            raise UsageError(f"{name} has no output {pattern!r}{nearest(pattern, available)}")
        chosen += found
    return list(dict.fromkeys(chosen))


def on_demand(output: str) -> bool:
    """Whether an output is one of a list of hidden states or attention weights, which are given only when asked for."""
    return re.search(r"(hidden_states|attentions)\.\d", output) is not None


def _substitute(text: str, sizes: Mapping[str, Any]) -> str:
    """A type text with names of sizes replaced by what they stand for."""
    head, dims = re.fullmatch(r"\s*(\w+)\[(.*)\]\s*", text).groups()  # type: ignore[union-attr]
    return f"{head}[{' '.join(re.sub(r'[A-Za-z_]+', lambda m: f'({sizes[m[0]]})' if m[0] in sizes else m[0], d) for d in dims.split())}]"


def check_inputs(graph: Graph, arrays: Mapping[str, Any], name: str = "the model") -> None:
    """InputError unless arrays fit the graph's inputs: names, ranks, kinds of dtype, and every named size the same wherever it stands."""
    expected = {v.name: v.type for v in graph.inputs}
    if unknown := sorted(set(arrays) - set(expected) - graph.ignored):
        raise InputError(f"{name} has no input {unknown[0]!r}{nearest(unknown[0], expected)}")
    if missing := [k for k in expected if k not in arrays]:
        raise InputError(f"{name} lacks input {missing[0]!r}: {expected[missing[0]]}; it takes {', '.join(f'{k}: {t}' for k, t in expected.items())}")
    sizes: dict[str, tuple[int, str]] = {}
    for key, type in expected.items():
        _check_array(key, type, arrays[key], sizes)
    for size, least in graph.bounds.items():
        if size in sizes and sizes[size][0] < least:
            raise InputError(f"input {sizes[size][1]!r} has {size}={sizes[size][0]}, expected at least {least}")
    known = {k: s for k, (s, _) in sizes.items()}
    for size, (most, why) in graph.limits.items():
        if size.names() <= set(known) and (got := size.bind(known)) > most:
            raise InputError(f"{name}: {size} is {got}, expected at most {most}: {why}")
    for key, type in expected.items():
        for axis, d in enumerate(type.shape):
            if isinstance(d, Dim) and not d.name and d.names() <= set(sizes):
                want = d.bind(known)
                if want != arrays[key].shape[axis]:
                    raise InputError(f"input {key!r} has {arrays[key].shape[axis]} on axis {axis}, expected {d} = {want}")


def _check_array(key: str, type: Type, array: Any, sizes: dict[str, tuple[int, str]]) -> None:
    if len(array.shape) != type.rank:
        raise InputError(f"input {key!r} has shape {list(array.shape)}, expected {type}")
    kinds = {"f": "float", "i": "int", "u": "int", "b": "bool", "V": "float", "?": "?"}
    kind = kinds.get(getattr(array.dtype, "kind", "?"), "no number")
    wanted = "float" if type.dtype[0] in "fb" and type.dtype != "bool" else "bool" if type.dtype == "bool" else "int"
    if kind != "?" and kind != wanted and not (kind == "bool" and wanted == "int"):
        raise InputError(f"input {key!r} is of dtype {array.dtype}, expected {type}")
    for axis, (d, got) in enumerate(zip(type.shape, array.shape, strict=True)):
        if isinstance(d, int) and d != got:
            raise InputError(f"input {key!r} has {got} on axis {axis}, expected {type}")
        if isinstance(d, Dim) and d.name:
            known, other = sizes.setdefault(d.name, (int(got), key))
            if known != got:
                raise InputError(f"input {key!r} has {d.name}={got}, but {other!r} has {d.name}={known}")
