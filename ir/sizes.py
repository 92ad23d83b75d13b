"""Symbolic sizes: integer polynomials over named sizes with `//`, `min` and `max`, in one normal form.

Two sizes are equal when they are identical; where they are not identical they are not provably equal, which callers treat as an
error and never as a guess. Plain `int` stays `int`.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any, Union

from .errors import ShapeError

Size = Union[int, "Dim"]


class Dim:
    """A size that is not a plain number: a sum of integer multiples of products of atoms.

    An atom is a name, or `("//", Dim, Size)`, `("min" | "max", Size, Size)`. Immutable; equal when identical in normal form.
    """

    __slots__ = ("_hash", "_text", "terms")

    def __init__(self, terms: tuple[tuple[tuple[Any, ...], int], ...]):
        self.terms = terms
        self._hash = hash(terms)
        self._text: str | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dim) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        return Dim, (self.terms,)

    def __add__(self, other: Size) -> Size:
        if not isinstance(other, (int, Dim)):
            return NotImplemented
        total = dict(self.terms)
        for product, factor in _terms(other):
            total[product] = total.get(product, 0) + factor
        return _polynomial(total)

    def __mul__(self, other: Size) -> Size:
        if not isinstance(other, (int, Dim)):
            return NotImplemented
        total: dict[tuple[Any, ...], int] = {}
        for left, a in self.terms:
            for right, b in _terms(other):
                product = tuple(sorted(left + right, key=_order))
                total[product] = total.get(product, 0) + a * b
        return _polynomial(total)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Size:
        return self * -1

    def __sub__(self, other: Size) -> Size:
        return self + -other if isinstance(other, (int, Dim)) else NotImplemented

    def __rsub__(self, other: Size) -> Size:
        return -self + other

    def __floordiv__(self, other: Size) -> Size:
        return floor_divide(self, other) if isinstance(other, (int, Dim)) else NotImplemented

    def __rfloordiv__(self, other: Size) -> Size:
        return floor_divide(other, self)

    def __mod__(self, other: Size) -> Size:
        return self - floor_divide(self, other) * other

    def __bool__(self) -> bool:
        raise ShapeError(f"size {self} has no truth value: it is not known to differ from zero")

    @property
    def name(self) -> str | None:
        """The name, where this is one bare name."""
        if len(self.terms) != 1:
            return None
        (product, factor), *_ = self.terms
        return product[0] if factor == 1 and len(product) == 1 and isinstance(product[0], str) else None

    def names(self) -> set[str]:
        """Every name that occurs."""
        found: set[str] = set()
        for product, _ in self.terms:
            for atom in product:
                found |= {atom} if isinstance(atom, str) else set().union(*(d.names() for d in atom[1:] if isinstance(d, Dim)))
        return found

    def bind(self, sizes: Mapping[str, Any], minimum: Callable = min, maximum: Callable = max) -> Any:
        """The value for the sizes given, which may be numbers, arrays or traced values; only `+ * //` and the two callables are used."""
        functions = {"min": minimum, "max": maximum}

        def atom(a: Any) -> Any:
            if isinstance(a, str):
                return sizes[a]
            kind, left, right = a
            x, y = bind(left, sizes, minimum, maximum), bind(right, sizes, minimum, maximum)
            return x // y if kind == "//" else functions[kind](x, y)

        def product(atoms: tuple[Any, ...], factor: int) -> Any:
            bound = reduce(lambda x, y: x * y, map(atom, atoms)) if atoms else None
            return factor if bound is None else bound if factor == 1 else bound * factor

        return reduce(lambda x, y: x + y, (product(*term) for term in self.terms))

    def __str__(self) -> str:
        if self._text is None:
            parts = ["*".join([str(c)] * (c != 1 or not m) + [_atom_text(a) for a in m]) for m, c in reversed(self.terms)]
            self._text = "+".join(parts).replace("+-", "-")
        return self._text

    __repr__ = __str__


def _atom_text(atom: Any) -> str:
    if isinstance(atom, str):
        return atom
    kind, left, right = atom
    wrap = lambda d: f"({d})" if isinstance(d, Dim) and not d.name else str(d)
    return f"({wrap(left)}//{wrap(right)})" if kind == "//" else f"{kind}({left},{right})"


def _order(atom: Any) -> tuple[int, str]:
    return (0, atom) if isinstance(atom, str) else (1, _atom_text(atom))


def _terms(x: Size) -> tuple[tuple[tuple[Any, ...], int], ...]:
    return x.terms if isinstance(x, Dim) else (((), int(x)),)


def _polynomial(terms: Mapping[tuple[Any, ...], int]) -> Size:
    terms = {product: factor for product, factor in terms.items() if factor}
    if not terms:
        return 0
    if set(terms) == {()}:
        return terms[()]
    return Dim(tuple(sorted(terms.items(), key=lambda t: (len(t[0]), [_order(a) for a in t[0]]))))


def _atom(kind: str, left: Size, right: Size) -> Size:
    return Dim((((((kind, left, right),)), 1),))


def symbol(name: str) -> Dim:
    """The size of that name."""
    return Dim((((name,), 1),))


def floor_divide(a: Size, b: Size) -> Size:
    """a // b in normal form: `(q*b*m + r)//b = q*m + r//b`, common factors cancel, and nested floors merge: `(x//d + r)//b = (x + d*r)//(d*b)`."""
    if isinstance(b, Dim):
        exact = _divide_by_monomial(a, b)
        return _atom("//", a, b) if exact is None else exact
    if b <= 0:
        raise ShapeError(f"size {a} is divided by {b}; a divisor must be positive")
    whole = _polynomial({m: c // b for m, c in _terms(a)})
    rest = _polynomial({m: c % b for m, c in _terms(a)})
    if isinstance(rest, int):
        return whole + rest // b
    factor = math.gcd(b, *(c for m, c in rest.terms if m))
    if factor > 1:
        return whole + floor_divide(_polynomial({m: c // factor for m, c in rest.terms}), b // factor)
    for m, c in rest.terms:
        if c == 1 and len(m) == 1 and not isinstance(m[0], str) and m[0][0] == "//" and isinstance(m[0][2], int):
            _, inner, divisor = m[0]
            return whole + floor_divide(inner + (rest - Dim(((m, 1),))) * divisor, divisor * b)
    return whole + _atom("//", rest, b)


def _divide_by_monomial(a: Size, b: Dim) -> Size | None:
    if a == b:
        return 1
    if len(b.terms) != 1:
        return None
    (divisor, factor), *_ = b.terms
    quotient: dict[tuple[Any, ...], int] = {}
    for product, c in _terms(a):
        rest = list(product)
        for atom in divisor:
            if atom not in rest:
                return None
            rest.remove(atom)
        if c % factor:
            return None
        quotient[tuple(rest)] = c // factor
    return _polynomial(quotient)


def ceil_divide(a: Size, b: int) -> Size:
    """The least integer not below a / b."""
    return floor_divide(a + (b - 1), b)


def minimum(a: Size, b: Size) -> Size:
    """The smaller of two sizes, decided where their difference is a number."""
    return _extreme("min", a, b)


def maximum(a: Size, b: Size) -> Size:
    """The larger of two sizes, decided where their difference is a number."""
    return _extreme("max", a, b)


def _extreme(kind: str, a: Size, b: Size) -> Size:
    difference = a - b
    if isinstance(difference, int):
        return a if (difference <= 0) == (kind == "min") else b
    left, right = sorted((a, b), key=str)
    return _atom(kind, left, right)


def product(sizes: Iterable[Size]) -> Size:
    """The product of sizes; 1 of none."""
    return reduce(lambda x, y: x * y, sizes, 1)


def bind(x: Any, sizes: Mapping[str, Any], minimum: Callable = min, maximum: Callable = max) -> Any:
    """`x` with every size in it (also inside tuples) bound."""
    if isinstance(x, Dim):
        return x.bind(sizes, minimum, maximum)
    return tuple(bind(i, sizes, minimum, maximum) for i in x) if isinstance(x, tuple) else x


_OPERATORS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: floor_divide,
    ast.Mod: lambda a, b: a - floor_divide(a, b) * b,
}


def compile_size(text: str) -> Callable[[Mapping[str, Any]], Size]:
    """A size expression as a function of its names; names, integers, `+ - * // %`, min, max and parentheses only."""
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        raise ShapeError(f"size {text!r} is not an expression over names, integers, + - * // %, min and max") from None

    def build(node: ast.AST) -> Callable[[Mapping[str, Any]], Size]:
        match node:
            case ast.Constant(value=int(value)):
                return lambda names: value
            case ast.Name(id=name):
                return lambda names: names[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                f, x, y = _OPERATORS[type(op)], build(left), build(right)
                return lambda names: f(x(names), y(names))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                x = build(operand)
                return lambda names: -x(names)
            case ast.Call(func=ast.Name(id="min" | "max" as kind), args=[left, right]):
                x, y = build(left), build(right)
                return lambda names: _extreme(kind, x(names), y(names))
        raise ShapeError(f"size {text!r} is not an expression over names, integers, + - * // %, min and max")

    return build(tree)


class _Symbols(dict):
    def __missing__(self, name: str) -> Dim:
        return symbol(name)


def parse_size(text: str) -> Size:
    """`2*n+1` as a size; `n` alone is the symbol n."""
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return compile_size(text)(_Symbols())


def is_static(shape: Iterable[Size]) -> bool:
    """Whether every size is a plain number."""
    return all(isinstance(d, int) for d in shape)


def static_product(shape: Iterable[int]) -> int:
    """The product of plain sizes."""
    return math.prod(shape)
