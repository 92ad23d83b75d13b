"""The rules of the house, read from the sources: who may import whom, how long things may grow, what must not be written down."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# each part of the house and what it may import besides itself; the front door (__init__, model, cli) may import all of them
ALLOWED = {
    "ir": set(),
    "models": {"ir"},
    "checkpoints": {"ir"},
    "frontends": {"ir"},
    "exporters": {"ir", "frontends"},
    "runtime": {"ir", "models", "checkpoints", "frontends", "exporters"},
}
FRAMEWORKS = {"torch", "tensorflow", "jax", "jaxlib", "tf2onnx", "transformers"}
# the only modules that import a framework when they are imported; all others do so inside the function that needs it
FRAMEWORK_MODULES = {
    f"frontends/{name}.py" for name in ("torch", "torch_dropout", "torch_table", "tensorflow", "tensorflow_table", "jax", "jax_table")
}
FRAMEWORK_MODULES |= {"exporters/stablehlo.py", "exporters/saved_model.py"}
IR_NEEDS = {"numpy", "ml_dtypes"}

CARD_LINES, FILE_LINES, TABLE_LINES, FUNCTION_LINES = 250, 400, 600, 40
# of code in cards with the layers and heads that they use: the first eight alone, and all
FIRST_EIGHT = ("bert", "clip", "gpt2", "resnet", "swin", "t5", "vit", "wav2vec2")
FIRST_LINES, DEFINITION_LINES = 2000, 5000
# files that are mostly rows: one per op, per target, per sample
TABLES = {"frontends/torch_table.py", "frontends/tensorflow_table.py", "frontends/jax_table.py", "exporters/onnx_table.py"}
UNWRITTEN = re.compile(r"(?<![\w.:/])/(?:work|opt|root|home|Users|tmp|mnt)/|\b(?:TO" + r"DO|FIX" + r"ME)\b")


def _sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


PACKAGE = [*sorted(ROOT.glob("*.py")), *_sources(*ALLOWED)]
EVERYTHING = [*PACKAGE, *_sources("tests", "benchmarks", "examples")]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _imports(path: Path, nodes: Iterator[ast.AST]) -> Iterator[tuple[str, int]]:
    """(dotted name from the repository root, or `:name` for a package from elsewhere, line) of every import among `nodes`."""
    package = path.relative_to(ROOT).parent.parts
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((f":{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield f":{node.module}", node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            yield from ((".".join(filter(None, [*base, *([] if node.module else [alias.name])])), node.lineno) for alias in node.names)


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: not those in functions or under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not typing_only and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield node
            yield from _at_import(node)


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_go_one_way(part: str) -> None:
    wrong = []
    for path in _sources(part):
        for target, line in _imports(path, ast.walk(_tree(path))):
            head = target.split(".")[0]
            if not target.startswith(":") and head != part and head not in ALLOWED[part]:
                wrong.append(f"{_name(path)}:{line} imports {target}; {part} may import {sorted(ALLOWED[part]) or 'nothing else'}")
            if head == ":interlingua":
                wrong.append(f"{_name(path)}:{line} imports {target[1:]}; inside the package imports are relative")
    assert not wrong, "\n".join(wrong)


def test_frameworks_are_imported_where_they_are_needed() -> None:
    wrong = []
    for path in PACKAGE:
        for target, line in _imports(path, _at_import(_tree(path))):
            if target[1:].split(".")[0] in FRAMEWORKS and target.startswith(":") and _name(path) not in FRAMEWORK_MODULES:
                wrong.append(f"{_name(path)}:{line} imports {target[1:]} whenever it is imported itself")
    assert not wrong, "\n".join(wrong)


def test_ir_needs_numpy_only() -> None:
    known = IR_NEEDS | set(sys.stdlib_module_names)
    found = {(t[1:].split(".")[0], _name(p)) for p in _sources("ir") for t, _ in _imports(p, ast.walk(_tree(p))) if t.startswith(":")}
    assert not {pair for pair in found if pair[0] not in known}


@pytest.mark.parametrize("path", EVERYTHING, ids=_name)
def test_files_and_functions_stay_short(path: Path) -> None:
    name = _name(path)
    rows = name in TABLES or name.startswith("tests/")
    limit = CARD_LINES if name.startswith("models/") else TABLE_LINES if rows else FILE_LINES
    lines = len(path.read_text().splitlines())
    assert lines <= limit
    for node in ast.walk(_tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            told = ast.get_docstring(node, clean=False)
            length = node.end_lineno - node.lineno + 1 - (len(told.splitlines()) if told else 0)
            assert length <= FUNCTION_LINES, f"{name}:{node.lineno} {node.name} has {length} lines"


def test_definitions_stay_small() -> None:
    lines = {_name(path): len(_code(path)) for path in _sources("models", "ir/layers") if path.name != "__init__.py"}
    assert sum(lines.values()) <= DEFINITION_LINES, lines


def test_the_first_eight_stay_small() -> None:
    """Their cards, and of the shared layers every function, class and constant that these reach by name."""
    shared = [(path, node, name) for path in _sources("ir/layers") for node in _tree(path).body for name in _defined(node)]
    cards = [ROOT / "models" / f"{name}.py" for name in FIRST_EIGHT]
    reached, fresh = set(), set().union(*(_mentioned(_tree(path)) for path in cards))
    while fresh:
        reached |= fresh
        fresh = set().union(*(_mentioned(node) for _, node, name in shared if name in fresh)) - reached
    used = {(path, i) for path, node, name in shared if name in reached for i in range(node.lineno, node.end_lineno + 1) if i in _code(path)}
    assert sum(len(_code(path)) for path in cards) + len(used) <= FIRST_LINES


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def _mentioned(tree: ast.AST) -> set[str]:
    return {getattr(node, "id", None) or getattr(node, "attr", "") for node in ast.walk(tree) if isinstance(node, (ast.Name, ast.Attribute))}


@functools.cache
def _code(path: Path) -> frozenset[int]:
    """The numbers of the lines that are neither blank nor comments nor docstrings."""
    aside: set[int] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            aside.update(range(node.lineno, node.end_lineno + 1))
    rows = enumerate(path.read_text().splitlines(), 1)
    return frozenset(i for i, row in rows if row.strip() and not row.strip().startswith("#") and i not in aside)


def test_nothing_unfinished_and_no_machine_paths() -> None:
    texts = [*EVERYTHING, *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    wrong = [f"{_name(p)}:{i} {line.strip()}" for p in texts for i, line in enumerate(p.read_text().splitlines(), 1) if UNWRITTEN.search(line)]
    for path in PACKAGE:
        raised = (node for node in ast.walk(_tree(path)) if isinstance(node, ast.Raise) and node.exc is not None)
        wrong += [f"{_name(path)}:{node.lineno} a stub" for node in raised if ast.unparse(node.exc).startswith("NotImplementedError")]
    assert not wrong, "\n".join(wrong)


def test_the_wheel_holds_the_package_and_nothing_else() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in PACKAGE}
    assert set(listed) == {".".join(("interlingua", *folder.parts)) for folder in folders}
    assert not [folder.as_posix() for folder in folders if not (ROOT / folder / "__init__.py").exists()]


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = {*FRAMEWORKS, "numpy", "ml_dtypes", "onnx", "onnx_ir", "onnxruntime", "huggingface_hub", "tokenizers", "rich"}
    code = f"import interlingua, sys; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
