"""A model to look at: its sizes in a few lines, its parameters, and its graph as a page to fold and search."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

from ..ir.graph import Graph, Node, Value
from ..ir.types import NUMPY_DTYPES

if TYPE_CHECKING:
    from ..model import Model


def summary(model: Model, graph: Graph) -> str:
    """Name, inputs, outputs, and how many nodes, parameters and bytes there are."""
    count = sum(math.prod(p.shape) for p in model.params)
    stored = sum(math.prod(shape) * NUMPY_DTYPES[dtype].itemsize for dtype, shape in (model.weights.spec(p.key) for p in model.params))
    lines = [f"{model.name}: {len(graph.live())} nodes, {len(model.params)} parameters of {count:,} numbers, {stored / 1e6:,.1f} MB"]
    lines += [f"  in   {v.name}: {v.type}" for v in graph.inputs]
    lines += [f"  out  {k}: {v.type}" for k, v in graph.outputs.items()]
    return "\n".join(lines)


def parameter_lines(model: Model) -> list[str]:
    """A line for each parameter: its name in the checkpoint, type, size, and its place among the layers."""
    width = max((len(p.key) for p in model.params), default=0)
    rows = ((p, "" if p.trainable else "  (buffer)") for p in model.params)
    return [f"{p.key:<{width}}  {p.type!s:<22} {math.prod(p.shape):>12,}  {p.name}{note}" for p, note in rows]


def page(model: Model, graph: Graph) -> str:
    """The graph as one HTML file without dependencies: layers fold, a search shows matching nodes, a click on a value finds what makes it."""
    tree = _Tree(graph)
    head = html.escape(summary(model, graph))
    inputs = "".join(f'<li id="{_anchor(v)}"><b>{html.escape(v.name)}</b>: {html.escape(str(v.type))}</li>' for v in graph.inputs)
    outputs = "".join(f"<li><b>{html.escape(k)}</b>: {_link(v)}</li>" for k, v in graph.outputs.items())
    return _PAGE.format(title=html.escape(model.name), head=head, inputs=inputs, outputs=outputs, tree=tree.render())


class _Tree:
    """Nodes under the layers that emitted them, each layer where its first node stands."""

    def __init__(self, graph: Graph):
        self.root: dict = {}
        for node in graph.live():
            level = self.root
            for part in filter(None, node.path.split(".")):
                level = level.setdefault(part, {})
            level[node] = node

    def render(self) -> str:
        """The tree as nested lists."""
        return self._level(self.root, "")

    def _level(self, level: dict, path: str) -> str:
        return "".join(_row(key) if isinstance(key, Node) else self._layer(key, below, path) for key, below in level.items())

    def _layer(self, name: str, below: dict, path: str) -> str:
        place = f"{path}.{name}" if path else name
        depth = " open" if place.count(".") < 1 else ""
        return f"<details{depth}><summary>{html.escape(place)} <small>{_count(below)} nodes</small></summary>{self._level(below, place)}</details>"


def _count(level: dict) -> int:
    return sum(1 if isinstance(k, Node) else _count(v) for k, v in level.items())


def _row(node: Node) -> str:
    results = ", ".join(f'<b id="{_anchor(v)}">{html.escape(v.name)}</b>: <i>{html.escape(str(v.type))}</i>' for v in node.outputs)
    operands = ", ".join("-" if v is None else _link(v) for v in node.inputs)
    attrs = html.escape(", ".join(f"{k}={v}" for k, v in node.attrs.items()))
    return f'<div class="n">{results} = <u>{node.op.name}</u>({operands}) <small>{attrs}</small></div>'


def _link(v: Value) -> str:
    text = html.escape(getattr(v, "key", "") or v.name)
    return f'<a href="#{_anchor(v)}">{text}</a>' if v.node is not None or not hasattr(v, "key") else f"<code>{text}</code>"


def _anchor(v: Value) -> str:
    return "v" + "".join(c if c.isalnum() else f"_{ord(c)}_" for c in v.name)


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body{{font:14px/1.5 system-ui,sans-serif;margin:1.5rem;max-width:110rem}} pre{{background:#f4f4f6;padding:.8rem}}
details{{margin-left:1rem;border-left:1px solid #ccd}} summary{{cursor:pointer;font-weight:600;padding-left:.3rem}}
.n{{margin-left:1.6rem;font-family:ui-monospace,monospace;font-size:12.5px}} .n:target,.n:has(b:target){{background:#fff3b0}}
i{{color:#067;font-style:normal}} u{{text-decoration:none;color:#609;font-weight:600}} small{{color:#667;font-weight:400}} a{{color:#04c}}
.hide{{display:none}} input{{font:inherit;padding:.4rem;width:30rem}} nav{{position:sticky;top:0;background:#fff;padding:.5rem 0}}
</style>
<h1>{title}</h1><pre>{head}</pre>
<nav><input id="q" placeholder="search: an op, a layer, a weight, a type" autofocus>
<button id="all">unfold all</button> <button id="none">fold all</button> <span id="hits"></span></nav>
<h2>inputs</h2><ul>{inputs}</ul><h2>outputs</h2><ul>{outputs}</ul><h2>graph</h2><div id="g">{tree}</div>
<script>
const q=document.getElementById('q'),rows=[...document.querySelectorAll('.n')],folds=[...document.querySelectorAll('details')];
const path=e=>e?(e.tagName==='DETAILS'?e.firstChild.textContent:'')+' '+path(e.parentElement.closest('details')):'';
const texts=rows.map(r=>(r.textContent+' '+path(r.closest('details'))).toLowerCase());
q.oninput=()=>{{const w=q.value.toLowerCase().split(/\\s+/).filter(Boolean);let n=0;
 rows.forEach((r,i)=>{{const ok=w.every(x=>texts[i].includes(x));r.classList.toggle('hide',!ok);n+=ok}});
 folds.forEach(d=>{{const some=!!d.querySelector('.n:not(.hide)');d.classList.toggle('hide',!some);if(w.length)d.open=some}});
 document.getElementById('hits').textContent=w.length?n+' nodes':''}};
const reveal=()=>{{let e=location.hash&&document.getElementById(location.hash.slice(1));
 if(e){{for(let d=e.closest('details');d;d=d.parentElement.closest('details'))d.open=true;e.scrollIntoView({{block:'center'}})}}}};
window.onhashchange=reveal;reveal();
document.getElementById('all').onclick=()=>folds.forEach(d=>d.open=true);
document.getElementById('none').onclick=()=>folds.forEach(d=>d.open=false);
</script></html>
"""
