"""Symbolic sizes: what they evaluate to, when they are equal, how they are written, and what they refuse."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from interlingua.ir.errors import ShapeError
from interlingua.ir.sizes import Dim, bind, ceil_divide, floor_divide, is_static, maximum, minimum, parse_size, product, symbol
from interlingua.ir.types import Type

NAMES = ("a", "b", "c")
a, b, c = map(symbol, NAMES)
Build = Callable[[Mapping], object]
bindings = st.fixed_dictionaries({n: st.integers(1, 60) for n in NAMES})

# An expression is built twice from one recipe: over symbols, and over numbers, where Python itself says what it means.
leaves = st.one_of(st.sampled_from(NAMES).map(lambda n: lambda env: env[n]), st.integers(-7, 7).map(lambda i: lambda env: i))


def grow(inner: st.SearchStrategy[Build]) -> st.SearchStrategy[Build]:
    pair, divisor = st.tuples(inner, inner), st.integers(1, 6)
    return st.one_of(
        pair.map(lambda p: lambda env: p[0](env) + p[1](env)),
        pair.map(lambda p: lambda env: p[0](env) - p[1](env)),
        pair.map(lambda p: lambda env: p[0](env) * p[1](env)),
        pair.map(lambda p: lambda env: minimum(p[0](env), p[1](env))),
        pair.map(lambda p: lambda env: maximum(p[0](env), p[1](env))),
        inner.map(lambda x: lambda env: -x(env)),
        st.tuples(inner, divisor).map(lambda p: lambda env: p[0](env) // p[1]),
        st.tuples(inner, divisor).map(lambda p: lambda env: p[0](env) % p[1]),
        st.tuples(inner, divisor).map(lambda p: lambda env: ceil_divide(p[0](env), p[1])),
        st.tuples(inner, st.sampled_from(NAMES)).map(lambda p: lambda env: p[0](env) // env[p[1]]),
    )


expressions = st.recursive(leaves, grow, max_leaves=8)
polynomials = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: lambda env: p[0](env) + p[1](env)),
        st.tuples(inner, inner).map(lambda p: lambda env: p[0](env) - p[1](env)),
        st.tuples(inner, inner).map(lambda p: lambda env: p[0](env) * p[1](env)),
    ),
    max_leaves=8,
)
SYMBOLS = {n: symbol(n) for n in NAMES}


@settings(max_examples=300, deadline=None)
@given(expressions, st.lists(bindings, min_size=1, max_size=6))
def test_the_normal_form_means_what_was_written(build: Build, environments: list[dict[str, int]]):
    size = build(SYMBOLS)
    for env in environments:
        assert bind(size, env) == build(env)


@settings(max_examples=300, deadline=None)
@given(expressions)
def test_what_is_printed_reads_back_identically(build: Build):
    size = build(SYMBOLS)
    text = str(size)
    assert " " not in text
    assert parse_size(text) == size
    assert Type.parse(str(Type("f32", (size, 3)))) == Type("f32", (size, 3))


@settings(max_examples=300, deadline=None)
@given(polynomials, polynomials)
def test_polynomials_are_equal_exactly_when_they_behave_alike(left: Build, right: Build):
    # of degree 8 at most: a polynomial that is zero on a grid of 9^3 points is zero
    grid = {n: np.arange(1, 10, dtype=object).reshape([-1 if i == j else 1 for j in range(3)]) for i, n in enumerate(NAMES)}
    alike = bool(np.all(left(grid) == right(grid)))
    assert (left(SYMBOLS) == right(SYMBOLS)) == alike


@settings(max_examples=200, deadline=None)
@given(expressions, expressions, expressions)
def test_sums_and_products_obey_the_laws_of_a_ring(f: Build, g: Build, h: Build):
    x, y, z = f(SYMBOLS), g(SYMBOLS), h(SYMBOLS)
    assert x + y == y + x
    assert x * y == y * x
    assert (x + y) + z == x + (y + z)
    assert (x * y) * z == x * (y * z)
    assert x * (y + z) == x * y + x * z
    assert x - x == 0
    assert x * 1 == x + 0 == x
    assert hash(x + y) == hash(y + x)


@settings(max_examples=200, deadline=None)
@given(polynomials, st.integers(1, 6), st.integers(1, 6), st.integers(-5, 5))
def test_nested_floors_merge(f: Build, d: int, e: int, k: int):
    x = f(SYMBOLS)
    assert (x // d + k) // e == (x + d * k) // (d * e)
    assert (x * e + k % e) // (d * e) == x // d
    assert (x * d + k) // d == x + k // d


def test_the_convolutions_of_wav2vec2_are_one_floor():
    size = samples = symbol("samples")
    for kernel, stride in [(10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2]:
        size = (size - kernel) // stride + 1
    assert size == (samples + 240) // 320 - 1
    assert str(size) == "((samples+240)//320)-1"
    assert bind(size, {"samples": 16000}) == 49


def test_what_is_not_provably_equal_is_not_equal():
    assert a != b
    assert a // 2 != a
    assert (a // 2) * 2 != a
    assert minimum(a, b) != a
    assert symbol("a") == a
    assert a != "a"
    assert (a == 3) is False


def test_products_divide_by_their_factors():
    assert a * b // b == a
    assert (6 * a * b + 3 * b) // (3 * b) == 2 * a + 1
    assert (a + 1) // (a + 1) == 1
    assert str((a * b + 1) // b) == "((a*b+1)//b)"
    assert bind((a * b + 1) // b, {"a": 3, "b": 4}) == 3
    assert 12 // (a + a) == floor_divide(12, 2 * a)


def test_extremes_are_decided_where_the_difference_is_a_number():
    assert minimum(a, a + 1) == a
    assert maximum(a - 2, a) == a
    assert minimum(3, 5) == 3
    assert minimum(a, b) == minimum(b, a)
    assert str(maximum(a, 3)) == "max(3,a)"
    assert maximum(a, 3).bind({"a": 2}) == 3


def test_a_size_evaluates_on_arrays_and_with_other_extremes():
    frames = (a + 240) // 320 - 1
    np.testing.assert_array_equal(frames.bind({"a": np.array([400, 16000])}), [1, 49])
    clipped = minimum(a, b) + maximum(a, 4)
    np.testing.assert_array_equal(clipped.bind({"a": np.array([3, 9]), "b": 5}, np.minimum, np.maximum), [7, 14])


def test_sizes_inside_of_attributes_are_bound():
    assert bind(((a, 2), "name", a * b), {"a": 3, "b": 4}) == ((3, 2), "name", 12)


def test_names_are_found_everywhere():
    assert minimum(a // b, c * 2).names() == {"a", "b", "c"}
    assert Type.parse("f32[a 3 (b+1)//2]").names() == {"a", "b"}
    assert [(x.name if isinstance(x, Dim) else None) for x in (a, 2 * a, a + 1, a * b, a // 2)] == ["a", None, None, None, None]


def test_numbers_stay_numbers():
    for x in (a - a, 0 * a, a * 3 // a, (a + 5) - a, parse_size("7"), parse_size("-2"), parse_size("(3+4)*2%5")):
        assert type(x) is int
    assert product([2, a, 3]) == 6 * a
    assert product([]) == 1
    assert is_static((1, 2))
    assert not is_static((1, a))


def test_sizes_survive_copies_and_pickles():
    size = minimum((a + 1) // 2, b * 3) - 4
    for twin in (copy.deepcopy(size), pickle.loads(pickle.dumps(size))):
        assert twin == size
        assert hash(twin) == hash(size)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bool(a - b), r"has no truth value: it is not known to differ from zero"),
        (lambda: 5 if a else 3, r"size a has no truth value"),
        (lambda: a // 0, "size a is divided by 0; a divisor must be positive"),
        (lambda: floor_divide(4, 0), "size 4 is divided by 0; a divisor must be positive"),
        (lambda: (a + 1) // -2, r"size a\+1 is divided by -2; a divisor must be positive"),
        (lambda: parse_size("a**2"), r"size 'a\*\*2' is not an expression over names, integers, \+ - \* // %, min and max"),
        (lambda: parse_size("a +"), r"size 'a \+' is not an expression"),
        (lambda: parse_size("f(a)"), r"size 'f\(a\)' is not an expression"),
        (lambda: parse_size("a.real"), "size 'a.real' is not an expression"),
        (lambda: parse_size("1.5"), "size '1.5' is not an expression"),
        (lambda: parse_size("__import__('os').system('true')"), "is not an expression"),
        (lambda: Type.parse("float32[2]"), r"type 'float32\[2\]' is not of the form f32\[batch seq 768\]; dtypes: f16"),
        (lambda: Type.parse("f32 2 3"), "is not of the form"),
    ],
)
def test_sizes_refuse_what_has_no_meaning(call: Callable[[], object], message: str):
    with pytest.raises(ShapeError, match=message):
        call()
