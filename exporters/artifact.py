"""What an exporter leaves in a folder: graph files, the weights beside them, and `interlingua.json`, which says what they are."""

from __future__ import annotations

import filecmp
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import CheckpointError, ShapeError, UsageError
from ..ir.graph import Graph, Value
from ..ir.sizes import parse_size
from ..ir.types import NUMPY_DTYPES, Type
from ..ir.weights import Location, Weights

FORMAT = 1
MANIFEST = "interlingua.json"
SIDE_FILE = "model.interlingua.safetensors"
_MADE = re.compile(r"model\.interlingua(\.copy\d+)?\.safetensors")  # what only exports write
_KINDS = {str: "text", list: "a list", dict: "an object"}
_SMALL = 64 << 20  # bytes: files up to this size are hashed


@dataclass
class GraphFile:
    """One graph of an artifact: its file, what runs it, and its inputs and outputs as type texts, `f32[batch samples>=400]`.

    `weights` are the files beside it that it reads, with their sizes in bytes; `limits` the most that sizes may be, and why; `ignored` inputs that
    may be given and that nothing reads; `details` what the target adds, such as the opset; `errors` what verification measured, by output.
    """

    file: str
    target: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    model: str = ""
    head: str = ""
    weights: dict[str, int] = field(default_factory=dict)
    limits: dict[str, list[Any]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    errors: dict[str, Any] = field(default_factory=dict)

    def graph(self) -> Graph:
        """A graph of these inputs and outputs without nodes: what a session checks arrays by."""
        graph = Graph()
        for name, type in self.inputs.items():
            graph.input(name, type)
        graph.outputs = {name: Value(Type.parse(type), name) for name, type in self.outputs.items()}
        graph.limits = {parse_size(size): (int(most), str(why)) for size, (most, why) in self.limits.items()}
        graph.ignored = frozenset(self.ignored)
        return graph


def graph_file(graph: Graph, file: str, target: str, **rest: Any) -> GraphFile:
    """The entry of a graph that is written to `file`."""
    inputs = {v.name: _with_bounds(v.type, graph.bounds) for v in graph.inputs}
    outputs = {k: str(v.type) for k, v in graph.outputs.items()}
    limits = {str(size): [most, why] for size, (most, why) in graph.limits.items()}
    return GraphFile(file, target, inputs, outputs, limits=limits, ignored=sorted(graph.ignored), **rest)


def _with_bounds(type: Type, bounds: Mapping[str, int]) -> str:
    sizes = (f"{d}>={bounds[str(d)]}" if str(d) in bounds else str(d) for d in type.shape)
    return f"{type.dtype}[{' '.join(sizes)}]"


# ---- interlingua.json ---------------------------------------------------------------------------


def write_manifest(staging: Path, folder: Path, graphs: Sequence[GraphFile]) -> None:
    """Writes `interlingua.json` for graphs whose files lie in `staging` and will lie in `folder`; graphs that are there already stay known."""
    for graph in graphs:
        graph.sha256 = _sha256(staging / graph.file)
        graph.weights = {name: _where(name, staging, folder).stat().st_size for name in graph.weights}
    known = {g.file: g for g in _known(folder)} | {g.file: g for g in graphs}
    entries = [asdict(g) for g in known.values() if (staging / g.file).exists() or (folder / g.file).exists()]
    (staging / MANIFEST).write_text(json.dumps({"format": FORMAT, "producer": "interlingua", "graphs": entries}, indent=1) + "\n", encoding="utf-8")


def _where(name: str, *folders: Path) -> Path:
    return next(f / name for f in folders if (f / name).exists())


def _known(folder: Path) -> list[GraphFile]:
    try:
        return read_manifest(folder)
    except (UsageError, CheckpointError):
        return []


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.stat().st_size <= _SMALL else ""


def read_manifest(folder: str | os.PathLike[str]) -> list[GraphFile]:
    """The graphs that `interlingua.json` lists.

    Raises UsageError where there is none, CheckpointError where it is not what was written.
    """
    path = Path(folder) / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{folder} has no {MANIFEST}, expected a folder that `interlingua export` wrote") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not text: {error}\n  export the model again") from None
    try:
        content = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}\n  export the model again") from None
    return _parsed(content, path)


def _parsed(content: Any, path: Path) -> list[GraphFile]:
    if not isinstance(content, dict) or not isinstance(content.get("format"), int) or not isinstance(content.get("graphs"), list):
        raise CheckpointError(f"{path} is not of the form {{format, graphs}}\n  export the model again")
    if content["format"] > FORMAT:
        raise CheckpointError(f"{path} has format {content['format']}, expected at most {FORMAT}\n  a newer interlingua wrote it: update this one")
    return [_entry(entry, f"{path}: graph {i}") for i, entry in enumerate(content["graphs"])]


def _entry(entry: Any, where: str) -> GraphFile:
    kinds = {f.name: {"str": str, "list[str]": list}.get(str(f.type), dict) for f in fields(GraphFile)}
    needed = {"file", "target", "inputs", "outputs"}
    if not isinstance(entry, dict) or not needed <= entry.keys() <= kinds.keys():
        raise CheckpointError(f"{where} has not the fields {', '.join(sorted(needed))}\n  export the model again")
    for name, value in entry.items():
        if not isinstance(value, kinds[name]):
            raise CheckpointError(f"{where} has {name}={value!r:.60}, expected {_KINDS[kinds[name]]}\n  export the model again")
    for name in (entry["file"], *entry.get("weights", {})):
        if name in ("", ".", "..") or "\\" in name or ".." in Path(name).parts or Path(name).is_absolute():
            raise CheckpointError(f"{where} has file {name!r}, expected the name of a file in the same folder\n  export the model again")
    made = GraphFile(**entry)
    try:
        made.graph()
    except (ShapeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}\n  export the model again") from None
    return made


def find_graph(place: str | os.PathLike[str], target: str = "", name: str = "") -> tuple[Path, GraphFile]:
    """The folder and entry of one graph of an artifact: a graph file, or a folder and the target or file stem that is wanted; files are checked.

    Raises UsageError where there is none or several fit, CheckpointError where a file is missing or is not the one that was written.
    """
    place = Path(place)
    if not place.exists():
        raise UsageError(f"{place} does not exist, expected an exported model: a folder with {MANIFEST}, or one of its files")
    folder = place if place.is_dir() else place.parent
    graphs = read_manifest(folder)
    wanted = [g for g in graphs if (place.is_dir() or g.file == place.name) and target in ("", g.target) and name in ("", Path(g.file).stem)]
    if len(wanted) != 1:
        have = ", ".join(f"{g.file} ({g.target})" for g in graphs) or "no graph"
        what = filter(None, ["just one" * bool(wanted), target, name or place.name * place.is_file()])
        raise UsageError(f"{folder} has {have}, expected {' '.join(what) or 'one graph'}\n  name the file to open")
    check_files(folder, wanted[0])
    return folder, wanted[0]


def check_files(folder: Path, graph: GraphFile) -> None:
    """CheckpointError unless the graph's files are there as they were written."""
    for name, size in {graph.file: None, **graph.weights}.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing; {graph.file} needs it\n  restore it or export the model again")
        have = (folder / name).stat().st_size
        if size is not None and have != size:
            raise CheckpointError(f"{folder / name} has {have} bytes, expected {size} for {graph.file}\n  restore it or export the model again")
    if graph.sha256 and _sha256(folder / graph.file) != graph.sha256:
        raise CheckpointError(f"{folder / graph.file} is not the file that {MANIFEST} lists: its sha256 differs\n  export the model again")


# ---- weights beside a graph ---------------------------------------------------------------------


def copy_companions(model: Any, staging: Path, folder: Path) -> None:
    """Puts config.json, tokenizer and processor files beside an artifact that lies elsewhere; those that are there already stay."""
    if model.folder is None or folder.resolve() == Path(model.folder).resolve():
        return
    files = {"config.json": os.path.join(model.folder, "config.json"), **model.companions()}
    for name, source in files.items():
        if not (folder / name).exists():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, staging / name)


class WeightFiles:
    """In which file beside an artifact each weight lies.

    A weight that lies in a plain file of the artifact's folder stays there and is referred to in place. A file elsewhere is copied, byte for
    byte, unless an equal one is there, and so is one that is a link, which readers reject as an attack. Weights that live in memory are written to
    one file of their own. None takes the place of a file that a graph of the folder reads, but for those in `replaced`, which are written now.
    """

    def __init__(self, weights: Weights, keys: Iterable[str], folder: Path, replaced: Iterable[str]):
        self.weights, self.folder = weights, folder
        gone, known = set(replaced), [g for g in _known(folder) if (folder / g.file).exists()]
        self._taken = {name for g in known if g.file not in gone for name in g.weights}
        self._read = {name for g in known if g.file in gone for name in g.weights}
        self.side = next(name for name in _numbered(*os.path.splitext(SIDE_FILE)) if name not in self._taken)
        self.copies: dict[str, str] = {}  # file -> name beside the artifact
        self.places: dict[str, Location] = {}
        names: dict[str, str] = {}
        memory: list[str] = []
        for key in dict.fromkeys(keys):
            at = weights.location(key)
            if at is None or self._is_side_file(at.file):
                memory.append(key)
                continue
            if at.file not in names:
                names[at.file] = self._name(at.file)
            self.places[key] = Location(names[at.file], at.offset, at.length)
        self._header, ranges = _safetensors_header({k: weights.spec(k) for k in memory})
        self.places |= {key: Location(self.side, *place) for key, place in ranges.items()}

    @property
    def written(self) -> list[str]:
        """The names of the files that `write` makes."""
        return [*self.copies.values(), *([self.side] if self._header else [])]

    @property
    def unread(self) -> list[str]:
        """The names of files that an earlier export made and that nothing reads once this one is there."""
        kept = {*self._taken, *self.written, *(at.file for at in self.places.values())}
        return sorted(name for name in self._read - kept if _MADE.fullmatch(name))

    def files(self, keys: Iterable[str]) -> dict[str, int]:
        """The names of the files in which weights lie; their sizes are filled in when they are there."""
        return dict.fromkeys((self.places[k].file for k in keys), 0)

    def write(self, staging: Path) -> None:
        """Copies files and writes the weights that live in memory."""
        for file, name in self.copies.items():
            shutil.copyfile(file, staging / name)
        if self._header:
            with open(staging / self.side, "wb") as out:
                out.write(self._header)
                for key, at in self.places.items():
                    if at.file == self.side:
                        out.write(np.ascontiguousarray(self.weights.array(key)).reshape(-1).view(np.uint8).data)

    def _is_side_file(self, file: str) -> bool:
        return os.path.basename(file) == self.side and os.path.realpath(os.path.dirname(file)) == os.path.realpath(self.folder)

    def _name(self, file: str) -> str:
        """The name beside the artifact of a file, which is copied there unless it, or its equal, lies there."""
        own = os.path.basename(file)
        here = os.path.realpath(os.path.dirname(file)) == os.path.realpath(self.folder)
        if here and not os.path.islink(file) and os.stat(file).st_nlink == 1:
            return own
        base = os.path.splitext(own) if "." in own else ("model", ".safetensors")  # a hub's cache names files by their hash
        for name in _numbered(*base):
            place = self.folder / name
            if name in self.copies.values() or place.is_symlink() or (here and name == own):
                continue
            if name not in self._taken or not place.exists():
                break
            if filecmp.cmp(file, place, shallow=False):
                return name
        self.copies[file] = name
        return name


def _numbered(stem: str, suffix: str) -> Iterator[str]:
    """That name, and others like it without end."""
    yield stem + suffix
    yield from (f"{stem}.copy{n}{suffix}" for n in count(1))


def _safetensors_header(specs: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The header of a safetensors file (https://huggingface.co/docs/safetensors), and offset and length of each weight; no bytes for no weights."""
    if not specs:
        return b"", {}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    ranges, end = {}, 0
    for key, (dtype, shape) in specs.items():
        begin, end = end, end + math.prod(shape) * NUMPY_DTYPES[dtype].itemsize
        ranges[key] = (begin, end)
        entries[key] = {"dtype": dtype.upper(), "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * ((-8 - len(text)) % 64)  # weights start on a cache line
    header = len(text).to_bytes(8, "little") + text
    return header, {key: (len(header) + begin, end - begin) for key, (begin, end) in ranges.items()}
