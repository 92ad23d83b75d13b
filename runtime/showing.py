"""A model to look at: its sizes in a few lines, its parameters, and its graph as a page to fold and search."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir.definition import Definition
from ..ir.graph import Graph, Node, Param, Value
from ..ir.ops.leaves import Literal
from ..ir.passes import Pass, optimize
from ..ir.types import NUMPY_DTYPES

SHORT = 8  # the most numbers of an array that are written out
OPEN = 2  # how many levels of layers are unfolded at first


def summary(model: Definition, graph: Graph) -> str:
    """Name, inputs, outputs, and how many nodes, parameters and bytes there are."""
    stored = sum(math.prod(shape) * NUMPY_DTYPES[dtype].itemsize for dtype, shape in (model.weights.spec(p.key) for p in model.params))
    lines = [f"{model.name}: {len(graph.live())} nodes, {len(model.params)} parameters of {_count(model.params):,} numbers, {stored / 1e6:,.1f} MB"]
    lines += [f"  in   {v.name}: {v.type}" for v in graph.inputs]
    lines += [f"  out  {k}: {v.type}" for k, v in graph.outputs.items()]
    return "\n".join(lines)


def parameter_lines(model: Definition) -> list[str]:
    """A line for each parameter: its name in the checkpoint, type, size, and its place among the layers."""
    width = max((len(p.key) for p in model.params), default=0)
    rows = ((p, "" if p.trainable else "  (buffer)") for p in model.params)
    return [f"{p.key:<{width}}  {p.type!s:<22} {math.prod(p.shape):>12,}  {p.name}{note}" for p, note in rows]


def pass_lines(graph: Graph, passes: Sequence[Pass]) -> list[str]:
    """For each pass in turn how many nodes there are after it, and of which ops there are more or fewer."""
    lines = [f"{'traced':<16} {len(graph.live()):>6} nodes"]

    def observe(name: str, before: Graph, after: Graph) -> None:
        old, new = (Counter(n.op.name for n in g.live()) for g in (before, after))
        changed = [f"{new[k] - old[k]:+} {k}" for k in sorted({*old, *new}) if new[k] != old[k]]
        narrowed = sum(old_type not in types for types, old_type in _results(before, after))
        told = ", ".join(changed + [f"{narrowed} results of another size"] * bool(narrowed)) or "nothing changed"
        lines.append(f"{name:<16} {sum(new.values()):>6} nodes  {told}")

    optimize(graph, passes, observe=observe)
    return lines


def _results(before: Graph, after: Graph) -> list[tuple[set[str], str]]:
    """For each node before, by layer and op: the types of such results after, and its own type then."""
    types: dict[tuple[str, str], set[str]] = {}
    for n in after.live():
        types.setdefault((n.path, n.op.name), set()).add(str(n.type))
    found = ((types.get((n.path, n.op.name)), str(n.type)) for n in before.live())
    return [(t, own) for t, own in found if t]


def page(model: Definition, graph: Graph) -> str:
    """The graph as one HTML file without dependencies: layers fold, a search shows matching nodes, a click on a value finds what makes it."""
    inputs = "".join(f'<div class="n">{_result(v)}</div>' for v in graph.inputs)
    outputs = "".join(
        f'<div class="n"><b>{html.escape(k)}</b>: <i>{html.escape(str(v.type))}</i> = {_link(v)}</div>' for k, v in graph.outputs.items()
    )
    head = html.escape(summary(model, graph).splitlines()[0].partition(": ")[2])
    return _PAGE.format(title=html.escape(model.name), head=head, inputs=inputs, outputs=outputs, tree=_Tree(graph, model.params).render())


def _count(params: list[Param]) -> int:
    return sum(math.prod(p.shape) for p in params)


class _Tree:
    """Nodes under the layers that emitted them, each layer where its first node stands."""

    def __init__(self, graph: Graph, params: list[Param]):
        self.params = params
        self.root: dict[Any, Any] = {}
        for node in graph.live():
            level = self.root
            for part in filter(None, node.path.split(".")):
                level = level.setdefault(part, {})
            level[node] = node

    def render(self) -> str:
        """The tree as nested lists."""
        return self._level(self.root, "")

    def _level(self, level: dict[Any, Any], path: str) -> str:
        return "".join(_row(key) if isinstance(key, Node) else self._layer(key, below, f"{path}{key}") for key, below in level.items())

    def _layer(self, name: str, below: dict[Any, Any], place: str) -> str:
        numbers = _count([p for p in self.params if p.name.startswith(place + ".")])
        told = _plural(_nodes(below)) + (f", {numbers:,} numbers" if numbers else "")
        unfolded = " open" if place.count(".") < OPEN else ""
        summary = f'<summary title="{html.escape(place)}">{html.escape(name)} <small>{told}</small></summary>'
        return f'<details data-place="{html.escape(place)}"{unfolded}>{summary}{self._level(below, place + ".")}</details>'


def _nodes(level: dict[Any, Any]) -> int:
    return sum(1 if isinstance(k, Node) else _nodes(v) for k, v in level.items())


def _plural(nodes: int) -> str:
    return f"{nodes} node{'s' * (nodes != 1)}"


def _row(node: Node) -> str:
    operands = ["-" if v is None else _link(v) for v in node.inputs]
    while operands and operands[-1] == "-":
        operands.pop()
    defaults = {k: p.default for k, p in node.op.parameters.parameters.items()}
    attrs = ", ".join(f"{k}={_attribute(v)}" for k, v in node.attrs.items() if not (type(v) is type(defaults[k]) and v == defaults[k]))
    told = f" <small>{html.escape(attrs)}</small>" if attrs else ""
    return f'<div class="n">{", ".join(map(_result, node.outputs))} = <u>{node.op.name}</u>({", ".join(operands)}){told}</div>'


def _attribute(x: Any) -> str:
    if isinstance(x, Literal):
        shape = " ".join(map(str, x.array.shape))
        return str(x.array.tolist()) if x.array.size <= SHORT else f"{x.array.size:,} numbers [{shape}]"
    return f"{x:.6g}" if isinstance(x, (float, np.floating)) else str(x)


def _result(v: Value) -> str:
    return f'<b id="{_anchor(v)}">{html.escape(v.name)}</b>: {_type(v)}'


def _type(v: Value) -> str:
    return f"<i>{html.escape(str(v.type))}</i>"


def _link(v: Value) -> str:
    if isinstance(v, Param):
        return f'<code title="{html.escape(f"{v.type} {v.name}")}">{html.escape(v.key or v.name)}</code>'
    return f'<a href="#{_anchor(v)}" title="{html.escape(str(v.type))}">{html.escape(v.name)}</a>'


def _anchor(v: Value) -> str:
    return "v" + "".join(c if c.isalnum() else f"_{ord(c)}_" for c in v.name)


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
body{{font:14px/1.5 system-ui,sans-serif;margin:0 1.5rem 4rem}}
h1{{margin:1rem 0 0}} h2{{font-size:1rem;margin:1rem 0 .2rem}} p{{margin:0;color:#556}}
nav{{position:sticky;top:0;background:#fff;padding:.6rem 0;border-bottom:1px solid #dde}}
input,button{{font:inherit;padding:.25rem .5rem}} input{{width:28rem;max-width:60vw}}
details{{margin-left:.4rem;padding-left:.6rem;border-left:1px solid #ccd}} summary{{cursor:pointer;font-weight:600}}
.n{{margin-left:1rem;padding-left:2rem;text-indent:-2rem;font:12.5px/1.6 ui-monospace,monospace;overflow-wrap:anywhere}}
.n:has(b:target){{background:#fff3b0}} .hide{{display:none}} a{{color:#04c}} code{{color:#850}}
i{{color:#067;font-style:normal}} u{{text-decoration:none;color:#609;font-weight:600}} small{{color:#667;font-weight:400}}
</style>
<h1>{title}</h1><p>{head}</p>
<nav><input id="q" type="search" placeholder="search: an op, a layer, a weight, a type" autofocus>
<button id="all">unfold all</button> <button id="none">fold all</button> <span id="hits"></span></nav>
<h2>inputs</h2>{inputs}<h2>outputs</h2>{outputs}<h2>graph</h2><div id="g">{tree}</div>
<script>
const get=id=>document.getElementById(id),q=get('q'),rows=[...document.querySelectorAll('#g .n')],folds=[...document.querySelectorAll('details')];
const first=folds.map(d=>d.open),up=e=>e.parentElement.closest('details');
const texts=rows.map(r=>(r.textContent+' '+(up(r)?up(r).dataset.place:'')).toLowerCase());
const search=()=>{{const words=q.value.toLowerCase().split(/\\s+/).filter(Boolean);let hits=0;
 rows.forEach((r,i)=>{{const ok=words.every(w=>texts[i].includes(w));r.classList.toggle('hide',!ok);hits+=ok}});
 folds.forEach((d,i)=>{{const some=!!d.querySelector('.n:not(.hide)');d.classList.toggle('hide',!some);d.open=words.length?some:first[i]}});
 get('hits').textContent=words.length?hits+(hits===1?' node':' nodes'):''}};
const reveal=()=>{{const e=location.hash&&get(location.hash.slice(1));if(!e)return;
 if(q.value&&e.closest('.hide')){{q.value='';search()}}
 for(let d=e.closest('details');d;d=up(d))d.open=true;e.scrollIntoView({{block:'center'}})}};
q.oninput=search;window.onhashchange=reveal;reveal();
get('all').onclick=()=>folds.forEach(d=>d.open=true);get('none').onclick=()=>folds.forEach(d=>d.open=false);
</script></html>
"""
