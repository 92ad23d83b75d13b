"""The text form of a graph, for people and for files: what is printed reads back as the same graph.

    inputs
      x: f32[batch seq 768]
    params
      norm.scale: f32[768] key="LayerNorm.weight"
    nodes
      %0: f32[batch seq 768] = layer_norm(x, norm.scale, _) {eps=1e-05}  # norm
    outputs
      output: %0

`_` is an operand that is left out, `{}` has the attributes that differ from their defaults, `#` names the layer. The body of a loop stands
below its node, in the same form and four columns further in. What is lost is what tracing needs
and running does not: `taps`, `cache`, dead nodes.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from .graph import Graph, Node, Param, Value
from .op import Op
from .ops.leaves import Literal
from .parse import parse_graph
from .sizes import Dim
from .types import NUMPY_DTYPES, Type

__all__ = ["parse_graph", "print_graph"]

INLINE = 32  # the most elements of an array that is written where it is used


def print_graph(graph: Graph, *, data: bool = True) -> str:
    """The live part of `graph` as text, a line per node; without `data`, the numbers of large arrays are left out."""
    large: dict[str, Literal] = {}
    lines = _lines(graph, large)
    literals = ["literals", *(f"  {_literal_row(x)}" for x in large.values())] if data and large else []
    return "\n".join([*lines, *literals]) + "\n"


def _lines(graph: Graph, large: dict[str, Literal]) -> list[str]:
    """All but the literals, which are added to `large`."""
    names, bounds = _names(graph), dict(graph.bounds)
    rows = {
        "inputs": [f"{names[v]}: {_input_type(v, graph.bounds, bounds)}" for v in graph.inputs],
        "params": [_param_row(v, names[v], large) for v in graph.params()],
        "nodes": [row for n in graph.live() for row in (_node_row(n, names, large), *_body_rows(n, large))],
        "outputs": [f"{k}: {names[v]}" for k, v in graph.outputs.items()],
    }
    flags = ["training"] if graph.training else []
    flags += [f"size {name}>={least}" for name, least in bounds.items()]
    flags += [f"size {size}<={most}: {why}" for size, (most, why) in graph.limits.items()]
    return [*flags, *(line for section, lines in rows.items() if lines for line in (section, *(f"  {row}" for row in lines)))]


def _body_rows(node: Node, large: dict[str, Literal]) -> list[str]:
    return [f"  {line}" for a in node.attrs.values() if isinstance(a, Graph) for line in _lines(a, large)]


def _names(graph: Graph) -> dict[Value, str]:
    """What each value is called in the text; a name that is missing, irregular or taken is made regular and unique."""
    names: dict[Value, str] = {}
    taken: set[str] = {"_"}
    for v in [*graph.inputs, *graph.params()]:
        name = re.sub(r"[\s,:=(){}\[\]\"#%]", "_", v.name) or "param"
        while name in taken:
            name += "'"
        taken.add(name)
        names[v] = name
    return names | {v: v.name for n in graph.live() for v in n.outputs}


def _input_type(value: Value, least: Mapping[str, int], left: dict[str, int]) -> str:
    """The type with the least values of its bare names; those are taken out of `left`."""
    sizes = []
    for d in value.shape:
        name = str(d)
        sizes.append(f"{name}>={least[name]}" if name in least else str(d))
        left.pop(name, None)
    return f"{value.type.dtype}[{' '.join(sizes)}]"


def _param_row(param: Param, name: str, large: dict[str, Literal]) -> str:
    notes = [f"key={json.dumps(param.key)}"] if param.key != name else []
    if not isinstance(param.init, str):
        notes.append(f"init={_large(Literal(np.asarray(param.init)), large)}")
    elif param.init != "fan_in":
        notes.append(f"init={json.dumps(param.init)}")
    notes += ["trainable=False"] if not param.trainable else []
    return " ".join([f"{name}: {param.type}", *notes])


def _node_row(node: Node, names: Mapping[Value, str], large: dict[str, Literal]) -> str:
    operands = ["_" if v is None else names[v] for v in node.inputs]
    while operands and operands[-1] == "_":
        operands.pop()
    given = {k: a for k, a in node.attrs.items() if not (isinstance(a, Graph) or _same(a, _default(node.op, k)))}
    attrs = [f"{k}={_attribute(given[k], node, large)}" for k in node.op.attributes if k in given]
    made = ", ".join(f"{v.name}: {v.type}" for v in node.outputs)
    row = f"{made} = {node.op.name}({', '.join(operands)})"
    return row + (f" {{{', '.join(attrs)}}}" if attrs else "") + (f"  # {node.path}" if node.path else "")


def _default(op: Op, attribute: str) -> Any:
    return op.parameters.parameters[attribute].default


def _same(a: Any, b: Any) -> bool:
    """Equal and of one type: 0, 0.0 and False are three things, as are 0.0 and -0.0."""
    return type(a) is type(b) and a == b and str(a) == str(b)


def _attribute(x: Any, node: Node, large: dict[str, Literal]) -> str:
    if isinstance(x, tuple):
        items = [_attribute(i, node, large) for i in x]
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    if isinstance(x, Literal):
        if x.array.size <= INLINE and x.array.dtype == NUMPY_DTYPES[node.type.dtype]:
            return _numbers(x.array)
        return _large(x, large)
    if isinstance(x, str):
        return json.dumps(x)
    return str(x) if x is None or isinstance(x, (bool, np.bool_, Dim)) else repr(float(x)) if isinstance(x, (float, np.floating)) else repr(int(x))


def _large(literal: Literal, large: dict[str, Literal]) -> str:
    large[literal.digest] = literal
    return f'literal("{literal.digest}")'


def _numbers(array: np.ndarray) -> str:
    if array.ndim:
        return f"[{', '.join(map(_numbers, array))}]"
    if array.dtype.kind in "biu":
        return str(array)
    exact = repr(float(array))
    short = str(array)  # as few digits as its own dtype needs
    return short if array.dtype.type(float(short)) == array else exact


def _literal_row(literal: Literal) -> str:
    array = literal.array
    little = array.astype(array.dtype.newbyteorder("<")) if array.dtype.byteorder == ">" else array
    return f"{literal.digest}: {Type.of(array)} = {base64.b64encode(zlib.compress(little.tobytes(), 9)).decode()}"
