"""PyTorch: a definition as a `torch.nn.Module` whose forward is generated source.

No interpreter runs at run time: for each set of inputs, in training and in evaluation, the one loop is run once over `torch.fx` proxies,
and what it writes is compiled as a Python function of weights and inputs. `torch.compile`, autograd and `torch.export` see plain calls.
"""

from __future__ import annotations

import copy
import importlib
import keyword
import linecache
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from ..ir import ops
from ..ir.definition import Definition, check_inputs
from ..ir.errors import InputError, UsageError, nearest
from ..ir.graph import Graph, Param
from ..ir.passes import explicit_causal, push_slices
from ..ir.table import lower, run
from ..ir.types import KINDS, NUMPY_DTYPES
from ..ir.weights import ArrayWeights
from .torch_table import DTYPES, TORCH, GraphAppendingTracer, Tracing, torch

UPDATE = "update."
_NUMPY_DTYPES = {dtype: NUMPY_DTYPES[name] for name, dtype in DTYPES.items()}


def as_module(definition: Definition, *, outputs: Sequence[str] | None = None, device: Any = None, dtype: str | None = None) -> TorchModule:
    """A module with its own copy of the weights: parameters that train, and buffers, under their checkpoint names.

    Called as `net(**inputs) -> dict[str, Tensor]`; an input that is left out or None means what it means in the model. `train()` turns on
    dropout, drawn from torch's own generator, and batch statistics, whose running means are updated in place. Floats are float32, or `dtype`
    ("f16", "bf16", "f64"); `net.half()`, `net.double()` and `net.to(...)` work as on any module: what is `f32` in the model is the dtype of
    its parameters, and float inputs are cast to it. Errors: UsageError for an unknown dtype; in a call, InputError for inputs that do not fit in
    name, rank, kind of dtype or size, and UsageError for outputs that these inputs do not give.
    """
    if dtype is not None and dtype not in KINDS["float"]:
        raise UsageError(f"dtype={dtype!r} is not a float dtype{nearest(dtype, KINDS['float'])}")
    return _class_for((*definition.inputs, *(k for k in definition.flags if k not in definition.inputs)))(definition, outputs, device, dtype)


def weights_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """A copy of a module's state, parameters and buffers, as arrays by checkpoint name."""
    module = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    return {k: np.array(to_array(x)) for k, x in module.state_dict().items()}


# ---- arrays --------------------------------------------------------------------------------------


def to_tensor(array: np.ndarray, dtype: str = "", device: Any = None) -> torch.Tensor:
    """A tensor with a copy of an array's numbers, in `dtype` where it is given."""
    array = np.array(array, order="C")
    tensor = torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16) if array.dtype == NUMPY_DTYPES["bf16"] else torch.from_numpy(array)
    return tensor.to(device=device, dtype=DTYPES[dtype] if dtype else None)


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's numbers, in its own memory where that is the host's."""
    tensor = tensor.detach().cpu()
    return tensor.view(torch.uint16).numpy().view(NUMPY_DTYPES["bf16"]) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def weight(definition: Definition, param: Param, dtype: str | None, device: Any) -> torch.Tensor:
    """A parameter's weight; `f32` in the model is `dtype`."""
    own = param.type.dtype
    return to_tensor(definition.weights.array(param.key), dtype if dtype and own == "f32" else own, device)


# ---- programs ------------------------------------------------------------------------------------


class Program:
    """A graph as a Python function: `function(self, *weights, *inputs) -> dict`, `self` unused.

    `weights` are the names of parameters and of literal arrays in the function's order, `literals` the latter; `signature` has the inputs and
    what is known of their sizes; `scope` is what the source refers to, modules by name. Pickled as its source.
    """

    def __init__(self, source: str, scope: Mapping[str, Any], weights: Sequence[str], literals: Mapping[str, np.ndarray], signature: Graph):
        self.source, self.scope, self.signature = source, dict(scope), signature
        self.weights, self.literals, self.inputs = tuple(weights), dict(literals), tuple(v.name for v in signature.inputs)
        self.function = self._compiled()
        self._fitting: set[tuple[Any, ...]] = set()

    def check(self, given: Sequence[Any], name: str) -> None:
        """InputError unless tensors fit the inputs; shapes that did once are not looked at again."""
        for k, x in zip(self.inputs, given, strict=True):
            if not isinstance(x, torch.Tensor):
                raise InputError(f"input {k!r} of {name} is of {x.__class__}, expected a torch.Tensor")
        facts = tuple([(x.shape, x.dtype) for x in given])
        if facts in self._fitting:
            return
        arrays = {k: SimpleNamespace(shape=tuple(shape), dtype=_NUMPY_DTYPES[dtype]) for k, (shape, dtype) in zip(self.inputs, facts, strict=True)}
        check_inputs(self.signature, arrays, name)
        if len(self._fitting) > 1000:
            self._fitting.clear()
        self._fitting.add(facts)

    def _compiled(self) -> Any:
        file = f"<generated {id(self):x}>"
        linecache.cache[file] = (len(self.source), None, self.source.splitlines(True), file)  # for tracebacks
        weakref.finalize(self, linecache.cache.pop, file, None)
        scope = {k: importlib.import_module(x) if isinstance(x, str) else x for k, x in self.scope.items()}
        exec(compile(self.source, file, "exec"), scope)
        return scope["forward"]

    def __reduce__(self) -> tuple[Any, ...]:
        return Program, (self.source, self.scope, self.weights, self.literals, self.signature)


def program(graph: Graph, state: Iterable[Param] = ()) -> Program:
    """The program of a graph. New values of parameters in `state` (outputs `update.<name>`) are written to them and not returned."""
    graph = lower(explicit_causal(push_slices(graph)), TORCH)
    updates = {p: graph.outputs[UPDATE + p.key] for p in state if UPDATE + p.key in graph.outputs}
    params = list(dict.fromkeys([*graph.params(), *updates]))
    arrays = list(dict.fromkeys((n.attrs["value"], n.attrs["dtype"]) for n in graph.live() if n.op is ops.literal))
    literals = {f"literal_{value.digest}_{dtype}": value.array.astype(NUMPY_DTYPES[dtype]) for value, dtype in arrays}
    inputs = [v for v in graph.inputs if v.name != "random_key"]
    weights = [*(p.key for p in params), *literals]

    code = torch.fx.Graph()
    tracer = GraphAppendingTracer(code)
    names = _identifiers([*weights, *(v.name for v in inputs)])
    leaf: dict[Any, torch.fx.Proxy] = {
        k: torch.fx.Proxy(code.placeholder(name), tracer) for k, name in zip([*params, *arrays, *inputs], names, strict=True)
    }
    floats = [v for v in (*sorted(params, key=lambda p: not p.trainable), *inputs) if v.type.dtype == "f32"]
    device = next((x.device for x in leaf.values()), None)
    table = Tracing(tracer, float=leaf[floats[0]].dtype if floats else torch.float32, device=device, literals=leaf)

    feed = {p: leaf[p] for p in params} | {v: leaf[v].to(table.dtype(v.type.dtype)) for v in inputs}
    feed |= dict.fromkeys(set(graph.inputs) - set(inputs))  # the random key: torch draws from its own generator
    made = {k: table.tensor(graph.outputs[k], x) for k, x in run(graph, table, feed).items()}
    for p in updates:
        leaf[p].copy_(made.pop(UPDATE + p.key).detach())
    code.output({k: x.node for k, x in made.items()})
    written = code.python_code("self")
    scope = {k: x.__name__ if isinstance(x, ModuleType) else x for k, x in written.globals.items()}
    signature = Graph(like=graph)
    signature.inputs = inputs
    return Program(written.src, scope, weights, literals, signature)


def _identifiers(names: Iterable[str]) -> list[str]:
    """Names as different Python identifiers."""
    taken = {"self": None}
    for name in names:
        name = re.sub(r"\W|^(?=\d)", "_", name) or "_"
        while name in taken or keyword.iskeyword(name):
            name += "_"
        taken[name] = None
    return list(taken)[1:]


# ---- modules -------------------------------------------------------------------------------------


class Group(torch.nn.Module):
    """Parameters, buffers and groups under the names that a checkpoint uses, which may be names of a Module's own attributes."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training":  # the flag, also where a weight has that name
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def put(self, key: str, tensor: torch.Tensor, trainable: bool) -> None:
        """Adds a weight under a dotted name."""
        group: torch.nn.Module = self
        *path, name = key.split(".")
        for part in path:
            group = group._modules.setdefault(part, Group())  # type: ignore[assignment]
        if trainable:
            group._parameters[name] = torch.nn.Parameter(tensor)
        else:
            group._buffers[name] = tensor

    def places(self) -> Iterator[tuple[str, tuple[torch.nn.Module, bool, str]]]:
        """(dotted name, (the group that holds it, whether it is a parameter, its name there)) for each parameter and buffer."""
        for path, group in self.named_modules():
            for held, trains in ((group._parameters, True), (group._buffers, False)):
                for name in held:
                    yield f"{path}.{name}" if path else name, (group, trains, name)


class TorchModule(Group):
    """A model as `as_module` makes it. `forward` has the model's inputs as its arguments, in the model's order."""

    names: tuple[str, ...] = ()

    def __init__(self, definition: Definition, outputs: Sequence[str] | None, device: Any, dtype: str | None):
        super().__init__()
        options = {"usual": definition.usual, "always": definition.always, "flags": definition.flags, "key": definition.key}
        self._name = options["name"] = definition.name
        self._definition: Definition | None = Definition(definition.layer, definition.inputs, ArrayWeights({}), **options)
        self._outputs = None if outputs is None else tuple(outputs)
        self._programs: dict[tuple[tuple[str, ...], bool], Program] = {}
        for p in definition.params:
            self.put(p.key, weight(definition, p, dtype, device), p.trainable)
        self._places = dict(self.places())
        with suppress(UsageError):  # an output such as the loss may need more inputs than the usual ones: the first call says so
            self._ready(self._usual(), training=False)

    def source(self, *inputs: str) -> str:
        """The Python source that runs for a set of inputs, by default the usual ones, in the present mode."""
        names = self._ordered(inputs) if inputs else self._usual()
        self._ready(names, self.training)
        return self._programs[names, self.training].source

    def _call(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        names = tuple([k for k, x in inputs.items() if x is not None and x is not False])
        self._ready(names, self.training)
        made = self._programs[names, self.training]
        arguments = []
        for key in made.weights:
            group, trains, name = self._places[key]
            arguments.append((group._parameters if trains else group._buffers)[name])
        given = [inputs[k] for k in made.inputs]
        if not torch.compiler.is_compiling():
            made.check(given, self._name)
        return made.function(None, *arguments, *given)

    @torch.compiler.assume_constant_result
    def _ready(self, names: tuple[str, ...], training: bool) -> bool:
        """Writes the program for a set of inputs where there is none yet; torch.compile does not look in here, it sees the program."""
        if (names, training) in self._programs:
            return True
        if self._definition is None:
            known = " or ".join(sorted({", ".join(names) for names, _ in self._programs}))
            text = f"{self._name} was unpickled and runs with inputs {known} only; got {', '.join(names)}"
            raise UsageError(f"{text}\n  make it anew by to_torch, then load_state_dict")
        made = program(self._definition.graph(names, self._outputs, training=training), self._definition.params)
        new = [k for k in made.literals if k not in self._places]
        if new and torch.compiler.is_exporting():
            raise UsageError(f"inputs {', '.join(names)} are met for the first time in torch.export\n  call the module with them once before")
        with torch.inference_mode(False):
            for key in new:
                self._add_literal(key, to_tensor(made.literals[key]))
        self._programs[names, training] = made
        return True

    def _add_literal(self, key: str, tensor: torch.Tensor) -> None:
        """A constant array as a buffer, which moves with the module and is not part of its state."""
        like = next((x for x in self.parameters() if x.is_floating_point()), tensor)
        self.register_buffer(key, tensor.to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype), persistent=False)
        self._places[key] = (self, False, key)

    def _ordered(self, inputs: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(inputs, key=lambda k: self.names.index(k) if k in self.names else len(self.names)))

    def _usual(self) -> tuple[str, ...]:
        return self._ordered(self._definition.usual) if self._definition else next(iter(self._programs))[0]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._places = dict(self.places())

    def __deepcopy__(self, memo: dict[int, Any]) -> TorchModule:
        """A copy with its own weights; what was traced and written is shared."""
        shared = {"_definition": self._definition, "_programs": dict(self._programs), "_places": {}}
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__setstate__(copy.deepcopy({k: v for k, v in self.__dict__.items() if k not in shared}, memo) | shared)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Weights and programs: those written so far and those of the usual inputs. The model's own code is not needed to read them."""
        if self._definition is not None:
            for training in (False, True):
                with suppress(UsageError):
                    self._ready(self._usual(), training)
        return _blank, (self.names,), {**self.__dict__, "_definition": None, "_places": {}}


@cache
def _class_for(names: tuple[str, ...]) -> type[TorchModule]:
    """TorchModule with a `forward` that names its inputs, which help() and torch.export read."""
    named = [k for k in names if k.isidentifier() and not keyword.iskeyword(k) and k not in ("self", "others")]
    arguments = "".join(f"{k}=None, " for k in named)
    present = "".join(f"{k!r}: {k}, " for k in named)
    scope: dict[str, Any] = {}
    exec(f"def forward(self, {arguments}**others):\n    return self._call({{{present}**others}})\n", scope)
    scope["forward"].__doc__ = f"The outputs by name, for inputs {', '.join(names)}."
    return type("TorchModule", (TorchModule,), {"names": names, "forward": scope["forward"], "__module__": __name__, "__doc__": TorchModule.__doc__})


def _blank(names: tuple[str, ...]) -> TorchModule:
    """An empty module of the class for those inputs, for unpickling."""
    kind = _class_for(names)
    return kind.__new__(kind)
