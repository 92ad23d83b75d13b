"""What an op is: a NumPy function with a type. The function is its reference, its docstring its meaning."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from .errors import ShapeError
from .graph import Value, current
from .signature import Signature, expects
from .sizes import Dim
from .types import KINDS, NUMPY_DTYPES, Type

OPS: dict[str, Op] = {}
Rule = Callable[..., "Type | list[Type]"]


class Op:
    """An operation: positional parameters are tensors, keyword-only ones static attributes, and the body computes it in NumPy.

    Calling it emits a node into the graph being traced; Python numbers, sizes and arrays become constants of the dtype that the operand
    must have. `decomposition` builds the same result from simpler ops, where there is one.
    """

    def __init__(self, function: Callable[..., Any], rule: str | Rule):
        self.name = function.__name__.strip("_")
        self.reference = function
        self.__doc__ = function.__doc__
        self.decomposition: Callable[..., Any] | None = None
        self.parameters = inspect.signature(function)
        kinds = self.parameters.parameters.values()
        self.operands = tuple(p.name for p in kinds if p.kind is not p.KEYWORD_ONLY)
        self.attributes = tuple(p.name for p in kinds if p.kind is p.KEYWORD_ONLY)
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in kinds)
        self.rule = Signature(rule) if isinstance(rule, str) else rule
        expects(self.name not in OPS, f"op {self.name!r} is declared twice")
        OPS[self.name] = self

    def infer(self, types: Sequence[Type | None], attrs: Mapping[str, Any]) -> list[Type]:
        """Result types for operand types; those that were asked for lately are remembered, as repeated layers and passes ask again."""
        return _inferred(self, tuple(types), tuple(attrs.items())) if types else self._infer(types, attrs)

    def _infer(self, types: Sequence[Type | None], attrs: Mapping[str, Any]) -> list[Type]:
        if isinstance(self.rule, Signature):
            return self.rule(self.operands, types, attrs)
        result = self.rule(*types, **attrs)
        return result if isinstance(result, list) else [result]

    def __call__(self, *operands: Any, **attrs: Any) -> Any:
        """The result (a tuple where there are several) as values of the graph being traced."""
        try:
            bound = self.parameters.bind(*operands, **attrs)
        except TypeError as e:
            raise ShapeError(f"{self.name}: {e}; it takes {self.parameters}") from None
        bound.apply_defaults()
        args = bound.args  # which is made anew each time
        values = tuple(self._operand(i, x, args) for i, x in enumerate(args))
        made = current().emit(self, values, {k: _static(v) for k, v in bound.kwargs.items()})
        return made[0] if len(made) == 1 else made

    def _operand(self, index: int, x: Any, operands: tuple[Any, ...]) -> Value | None:
        if x is None or isinstance(x, Value):
            return x
        kind = self.rule.operand(index)[0] if isinstance(self.rule, Signature) else ""
        dtype = kind if kind in NUMPY_DTYPES else self._shared_dtype(operands, kind)
        if isinstance(x, Dim):
            return OPS["size"](value=x, dtype=dtype)
        if isinstance(x, (bool, int, float)):
            expects(not isinstance(x, float) or dtype in KINDS["float"], f"{self.name}: the number {x} is not of dtype {dtype}; cast first")
            return OPS["constant"](value=x, dtype=dtype)
        return OPS["literal"](value=x)

    def _shared_dtype(self, operands: tuple[Any, ...], kind: str) -> str:
        for i, x in enumerate(operands):
            own = self.rule.operand(i)[0] if isinstance(self.rule, Signature) else ""
            if isinstance(x, Value) and own == kind:
                return x.type.dtype
        if kind == "int" or (any(isinstance(x, (int, Dim)) for x in operands) and not any(isinstance(x, float) for x in operands)):
            return "i64"
        return "f32"

    def decompose(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Declares how this op is made of simpler ones (used as a decorator)."""
        self.decomposition = function
        return function

    def __repr__(self) -> str:
        return f"<op {self.name}>"


@lru_cache(maxsize=4096)
def _inferred(op: Op, types: tuple[Type | None, ...], attrs: tuple[tuple[str, Any], ...]) -> list[Type]:
    return op._infer(types, dict(attrs))


def _static(x: Any) -> Any:
    return tuple(map(_static, x)) if isinstance(x, (list, tuple)) else x


def op(rule: str | Rule) -> Callable[[Callable[..., Any]], Op]:
    """Declares an op from its type rule and its NumPy reference."""
    return lambda function: Op(function, rule)
