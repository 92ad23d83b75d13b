"""Repetition as a single op, so that a graph (and what a compiler makes of it) need not grow with the depth of a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..graph import Graph, Value, current
from ..op import op
from ..signature import expects
from ..sizes import Size, bind, maximum, minimum, symbol
from ..table import INDEX
from ..types import Type

Body = Callable[..., Sequence[Any]]


def _loop_rule(*xs, body, carries, shared, count):
    wanted, made = [v.type for v in body.inputs], [v.type for v in body.outputs.values()]
    expects(count > 0 and 0 <= carries <= len(made), f"count={count} and carries={carries}, expected 1 or more and 0 to {len(made)} (body's outputs)")
    wanted = wanted[: carries + shared] + [t for t in wanted[carries + shared :] for _ in range(count)]
    expects(len(xs) == len(wanted), f"{len(xs)} operands, expected {len(wanted)}: carries, shared ones, and {count} for each other input of body")
    expects_body(xs, body, wanted, made[:carries])
    return made[:carries] + [t for t in made[carries:] for _ in range(count)]


def expects_body(xs: Sequence[Type | None], body: Graph, wanted: Sequence[Type], carried: Sequence[Type]) -> None:
    """ShapeError unless the operands of a loop are those that its body takes, and the body gives what it carries."""
    expects(len(xs) == len(wanted), f"{len(xs)} operands, expected {len(wanted)}, which body takes")
    for i, (x, want) in enumerate(zip(xs, wanted, strict=True)):
        expects(x == want, f"operand {i} is {x}, expected {want}, which body takes there")
    same = list(wanted[: len(carried)])
    expects(list(carried) == same, f"body gives {_texts(carried)}, expected what it carries: {_texts(same)}")
    expects(not body.params(), "body reads a parameter by itself, expected an operand for each")


def _texts(types: Sequence[Type]) -> str:
    return ", ".join(map(str, types)) or "nothing"


@op(_loop_rule)
def loop(*xs, body, carries, shared, count):
    """`body` run `count` times, each time on what it gave before.

    Operands and inputs of `body` are, in order: what is carried along (before the first iteration), what all iterations share, and for each
    further input `count` operands, one per iteration. `body` gives what is carried on and then what each iteration makes; results are what is
    carried at the end, and of each thing made the `count` ones. Attributes in `body` may be sizes over `_iteration`, which counts from 0.
    """
    return _repeat(body, xs, carries, shared, count)


@loop.decompose
def _(*xs, body, carries, shared, count):
    return _repeat(partial(body_values, body), xs, carries, shared, count)


def _repeat(body: Body, xs: Sequence[Any], carries: int, shared: int, count: int) -> tuple[Any, ...]:
    carried, same, own = xs[:carries], xs[carries : carries + shared], xs[carries + shared :]
    rows: list[Sequence[Any]] = []
    for i in range(count):
        made = body(*carried, *same, *own[i::count], index=i)
        carried = made[:carries]
        rows.append(made[carries:])
    results: tuple[Any, ...] = (*carried, *(x for column in zip(*rows, strict=True) for x in column))
    return next(iter(results)) if len(results) == 1 else results


def body_values(body: Graph, *operands: Value, index: int) -> tuple[Value, ...]:
    """What `body` gives for `operands` in that iteration, its nodes emitted into the graph being traced."""
    feed = dict(zip(body.inputs, operands, strict=True))
    return tuple(inline(body, feed, {INDEX.name: index}, lambda path: path_at(path, index)).values())


def inline(graph: Graph, feed: Mapping[Value, Value], sizes: Mapping[Any, Size], path: Callable[[str], str] = str) -> dict[str, Value]:
    """The outputs of `graph`, its nodes emitted into the graph being traced.

    `feed` stands in for inputs and parameters, what it lacks stays as it is; `sizes` for named sizes, `path` for layer paths.
    """
    target, new = current(), dict(feed)
    outer = target.path
    for node in graph.live():
        target.path = path(node.path)
        attrs = {k: substituted(a, sizes) for k, a in node.attrs.items()}
        new.update(zip(node.outputs, target.emit(node.op, tuple(v if v is None else new.get(v, v) for v in node.inputs), attrs), strict=True))
    target.path = outer
    return {k: new.get(v, v) for k, v in graph.outputs.items()}


def path_at(path: str, index: int) -> str:
    """A layer path in an iteration: `*` is its number, and `2*+1` twice that and one."""
    number = lambda m: str(int(m[1] or 1) * index + int(m[2] or 0))
    return re.sub(r"(?<![^.])(\d*)\*(?:\+(\d+))?(?![^.])", number, path)


def starred(paths: Sequence[str]) -> str | None:
    """The path that is these in turn, as `path_at` reads it; None where they do not just count."""
    rows = [p.split(".") for p in paths]
    if len({len(r) for r in rows}) != 1:
        return None
    star = ".".join(_starred_part(parts) for parts in zip(*rows, strict=True))
    return star if [path_at(star, i) for i in range(len(paths))] == list(paths) else None


def _starred_part(parts: Sequence[str]) -> str:
    if len(set(parts)) == 1 or not all(p.isdigit() for p in parts[:2]):
        return parts[0]
    first, step = int(parts[0]), int(parts[1]) - int(parts[0])
    return f"{step if step != 1 else ''}*{f'+{first}' if first else ''}"


class _Sizes(dict):
    def __missing__(self, name: str) -> Any:
        return symbol(name)


def substituted(x: Any, sizes: Mapping[Any, Size]) -> Any:
    """`x` with sizes in the place of names; names that have none stay."""
    return bind(x, _Sizes(sizes), minimum, maximum)
