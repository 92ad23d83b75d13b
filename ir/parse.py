"""Reading the text form of a graph; `text` says what it looks like."""

from __future__ import annotations

import ast
import base64
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter
from typing import Any, NoReturn

import numpy as np

from .errors import ShapeError, UsageError, nearest
from .graph import Graph, Param, Value
from .op import OPS, Op
from .ops.leaves import Literal
from .sizes import compile_size, parse_size, symbol
from .types import NUMPY_DTYPES, Type

_NAME = r"[^\s,:=(){}\[\]\"#%]+"
_VALUE = rf"%\d+(?:\.\d+)?|{_NAME}"
_TYPE = r"\w+\[[^\]]*\]"
_SECTIONS = ("inputs", "params", "nodes", "outputs", "literals")


def parse_graph(text: str) -> Graph:
    """The graph that `print_graph` wrote. UsageError names line and column of what does not fit."""
    return _parse_lines([_Line(i, row.rstrip()) for i, row in enumerate(text.splitlines(), 1) if row.strip()], {})


def _parse_lines(lines: list[_Line], literals: dict[str, Literal]) -> Graph:
    """The graph of a whole text, or of the lines of a loop's body, which uses the literals of the whole."""
    graph = Graph()
    sections: dict[str, list[_Line]] = {name: [] for name in _SECTIONS}
    section = ""
    for line in lines:
        if line.text[0] != " ":
            section = _heading(line, graph, section)
        elif not section:
            line.fail(f"expected one of {', '.join(_SECTIONS)} before it")
        elif section == "nodes" and sections[section] and line.text.startswith("    "):
            sections[section][-1].below.append(_Line(line.number, line.text[4:], line.left + 4))
        else:
            line.at = len(line.text) - len(line.text.lstrip())
            sections[section].append(line)
    values: dict[str, Value] = {}
    for line in sections["inputs"]:
        _parse_input(line, graph, values)
    literals |= dict(_parse_literal(line) for line in sections["literals"])
    for line in sections["params"]:
        _parse_param(line, values, literals)
    with graph.tracing():
        for line in sections["nodes"]:
            _parse_node(line, graph, values, literals)
    graph.path = ""
    for line in sections["outputs"]:
        name = line.take(r"[^\s:]+", "the name of an output")
        line.take(r":\s*", "':'")
        graph.outputs[name] = line.value(values)
        line.end()
    return graph


class _Line:
    """A line and how far it has been read; `left` columns of it are cut off, and the lines `below` it are a loop's body."""

    def __init__(self, number: int, text: str, left: int = 0):
        self.number, self.text, self.left, self.at = number, text, left, 0
        self.below: list[_Line] = []

    def fail(self, why: str, at: int | None = None) -> NoReturn:
        """UsageError for this place."""
        place = f"line {self.number}, column {(self.at if at is None else at) + self.left + 1}"
        raise UsageError(f"graph text, {place}: {why}\n  {self.text.strip()[:200]}")

    def take(self, pattern: str, what: str) -> str:
        """What matches here; an error that says what was expected."""
        match = re.compile(pattern).match(self.text, self.at)
        if not match:
            rest = self.text[self.at : self.at + 20]
            self.fail(f"expected {what}, found {rest!r}" if rest else f"expected {what}, found the end of the line")
        self.at = match.end()
        return match[0]

    def skip(self, pattern: str) -> bool:
        """Whether this matches here; what matches is read."""
        match = re.compile(pattern).match(self.text, self.at)
        self.at = match.end() if match else self.at
        return match is not None

    def value(self, values: Mapping[str, Value]) -> Value:
        """The value whose name stands here."""
        at = self.at
        name = self.take(_VALUE, "the name of a value")
        if name not in values:
            self.fail(f"{name} is not defined above{nearest(name, values) if values else ''}", at)
        return values[name]

    def quoted(self) -> str:
        """The text between quotes."""
        return json.loads(self.take(r'"(?:\\.|[^"\\])*"', "a quoted name"))

    def literal(self, digest: str, literals: Mapping[str, Literal], at: int | None = None) -> Literal:
        """The numbers of that name."""
        if digest not in literals:
            self.fail(f"the numbers of literal {digest} are missing; print with data=True", at)
        return literals[digest]

    def define(self, values: dict[str, Value], pattern: str = _NAME) -> str:
        """A new name and the colon behind it."""
        at = self.at
        name = self.take(pattern, "a name")
        if name in values:
            self.fail(f"{name} is defined twice", at)
        self.take(r":\s*", "':'")
        return name

    def type(self, pattern: str = _TYPE) -> str:
        """The text of a type, checked."""
        at = self.at
        text = self.take(pattern, "a type such as f32[batch 768]")
        with self.located(at):
            Type.parse(re.sub(r">=\d+", "", text))
        return text

    @contextmanager
    def located(self, at: int) -> Iterator[None]:
        """Type errors inside get line and column."""
        try:
            yield
        except ShapeError as e:
            self.fail(str(e), at)

    def end(self) -> None:
        """Nothing may follow."""
        if self.at < len(self.text):
            self.fail(f"expected the end of the line, found {self.text[self.at : self.at + 20]!r}")


def _heading(line: _Line, graph: Graph, section: str) -> str:
    if least := re.fullmatch(r"size (\w+)>=(\d+)", line.text):
        graph.bounds[least[1]] = int(least[2])
    elif most := re.fullmatch(r"size ([^\s<]+)<=(-?\d+): (.*)", line.text):
        with line.located(5):
            graph.limits[parse_size(most[1])] = int(most[2]), most[3]
    elif line.text == "training":
        graph.training = True
    elif line.text in _SECTIONS:
        return line.text
    else:
        line.fail(f"expected a section, found {line.text!r}{nearest(line.text, _SECTIONS)}")
    return section


def _parse_input(line: _Line, graph: Graph, values: dict[str, Value]) -> None:
    name = line.define(values)
    values[name] = graph.input(name, line.type())
    line.end()


def _parse_param(line: _Line, values: dict[str, Value], literals: Mapping[str, Literal]) -> None:
    name = line.define(values)
    type = Type.parse(line.type())
    key, init = name, "fan_in"
    if line.skip(r"\s+key="):
        key = line.quoted()
    if line.skip(r"\s+init=literal\("):
        init = line.literal(line.quoted(), literals).array
        line.take(r"\)", "')'")
    elif line.skip(r"\s+init="):
        init = line.quoted()
    param = Param(*_static(type), dtype=type.dtype, init=init, trainable=not line.skip(r"\s+trainable=False"))
    param.name, param.key = name, key
    line.end()
    values[name] = param


def _static(type: Type) -> tuple[int, ...]:
    """The shape of an array, whose sizes are numbers."""
    return tuple(map(int, type.shape))  # type: ignore[arg-type]


def _parse_literal(line: _Line) -> tuple[str, Literal]:
    digest = line.define({})
    type = Type.parse(line.type())
    line.take(r"\s*=\s*", "'='")
    at = line.at
    try:
        data = zlib.decompress(base64.b64decode(line.take(r"[A-Za-z0-9+/=]+", "numbers in base64"), validate=True))
        numbers = np.frombuffer(data, NUMPY_DTYPES[type.dtype].newbyteorder("<")).astype(NUMPY_DTYPES[type.dtype])
        literal = Literal(numbers.reshape(_static(type)))
    except (ValueError, zlib.error) as e:
        line.fail(f"the numbers of {type} cannot be read: {e}", at)
    if literal.digest != digest:
        line.fail(f"the numbers are those of literal {literal.digest}, expected {digest}", at)
    line.end()
    return digest, literal


def _parse_node(line: _Line, graph: Graph, values: dict[str, Value], literals: dict[str, Literal]) -> None:
    start, made = line.at, []
    while not made or line.skip(r",\s*"):
        made.append((line.define(values, r"%\d+(?:\.\d+)?"), line.at, Type.parse(line.type())))
    line.take(r"\s*=\s*", "'='")
    at = line.at
    name = line.take(r"\w+", "the name of an op")
    if name not in OPS:
        line.fail(f"op {name!r} is not known{nearest(name, OPS)}", at)
    operands = _parse_operands(line, OPS[name], values)
    attrs = _parse_attributes(line, OPS[name], made[0][2], literals)
    graph.path = line.text[line.at :].strip() if line.skip(r"\s*#\s*") else ""
    if not graph.path:
        line.end()
    with line.located(start):
        found = graph.emit(OPS[name], operands, attrs)
    if len(found) != len(made):
        line.fail(f"{name} gives {len(found)} results, expected {len(made)}", start)
    for value, (label, at, type) in zip(found, made, strict=True):
        if value.type != type:
            line.fail(f"{label} is declared {type}, but {name} gives {value.type}", at)
        value.name, values[label] = label, value
    if isinstance(site := attrs.get("site"), int):
        graph.sites = max(graph.sites, site + 1)


def _parse_operands(line: _Line, op: Op, values: Mapping[str, Value]) -> tuple[Value | None, ...]:
    line.take(r"\(\s*", "'('")
    operands: list[Value | None] = []
    while not line.skip(r"\s*\)"):
        if operands:
            line.take(r",\s*", "',' or ')'")
        operands.append(None if line.skip(r"_(?=[\s,)])") else line.value(values))
    if not op.variadic:
        if len(operands) > len(op.operands):
            line.fail(f"{op.name} has {len(operands)} operands, expected at most {len(op.operands)}: {', '.join(op.operands)}")
        operands += [None] * (len(op.operands) - len(operands))
    return tuple(operands)


def _parse_attributes(line: _Line, op: Op, type: Type, literals: dict[str, Literal]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if line.skip(r"\s*\{"):
        at = line.at
        source = line.take(r'(?:"(?:\\.|[^"\\])*"|[^"}])*', "attributes")
        line.take(r"\}", "'}'")
        try:
            call: Any = ast.parse(f"_({source})", mode="eval").body
        except SyntaxError as e:
            line.fail(f"attributes cannot be read: {e.msg}", at + max((e.offset or 1) - 3, 0))
        reader = _Attributes(line, at - 2, source, type, literals)
        given = {k.arg or "": reader.read(k.value, k.arg == "value") for k in call.keywords}
        for k in call.keywords:
            if k.arg not in op.attributes:
                line.fail(f"{op.name} has no attribute {k.arg!r}{nearest(k.arg or '', op.attributes)}", at - 2 + k.col_offset)
    if line.below and "body" in op.attributes:
        given["body"] = _parse_lines(line.below, literals)
    elif line.below:
        line.below[0].fail(f"{op.name} has no body")
    attrs = {}
    for name in op.attributes:
        default = op.parameters.parameters[name].default
        if name not in given and default is Parameter.empty:
            line.fail(f"{op.name} lacks attribute {name!r}")
        attrs[name] = given.get(name, default)
    return attrs


class _Attributes:
    """Reads attribute values out of Python's own expression tree, of which only numbers, strings, tuples, lists and sizes are allowed."""

    def __init__(self, line: _Line, offset: int, source: str, type: Type, literals: Mapping[str, Literal]):
        self.line, self.offset, self.source, self.type, self.literals = line, offset, source, type, literals

    def read(self, node: ast.expr, array: bool) -> Any:
        """The value of an expression; lists are arrays, and only where one may stand."""
        match node:
            case ast.Constant(value=None | bool() | int() | float() | str() as value):
                return value
            case ast.Name(id="inf" | "nan" as name):
                return float(name)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float()) | ast.Name(id="inf") as operand):
                return -self.read(operand, array)
            case ast.Tuple(elts=items):
                return tuple(self.read(i, array) for i in items)
            case ast.List() if array:
                return Literal(np.array(self._flat(node), NUMPY_DTYPES[self.type.dtype]).reshape(_static(self.type)))
            case ast.Call(func=ast.Name(id="literal"), args=[ast.Constant(value=str(digest))]):
                return self.line.literal(digest, self.literals, self.offset + node.col_offset)
        with self.line.located(self.offset + node.col_offset):
            return compile_size(ast.unparse(node))(_Named())

    def _flat(self, node: ast.expr) -> list[Any]:
        return [x for item in node.elts for x in self._flat(item)] if isinstance(node, ast.List) else [self.read(node, False)]


class _Named(dict):
    def __missing__(self, name: str) -> Any:
        return symbol(name)
