"""Exporting a model: the exporter of a target, with its numbers checked before anything appears."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..exporters.artifact import copy_companions
from ..exporters.graphs import graphs_of
from ..exporters.half_precision import checked_float, in_float
from ..exporters.quantization import REPORT
from ..ir.errors import UsageError, nearest
from ..ir.graph import Graph
from ..ir.passes import STANDARD, optimize

if TYPE_CHECKING:
    from ..exporters.artifact import GraphFile

Model = Any  # interlingua.Model, which stands above this package
TARGETS = ("onnx", "stablehlo", "saved_model")
Progress = Callable[[str], None]
Verify = Callable[..., dict[str, float]]  # errors by output, of what a function opens; ParityError where they are too large


def export(
    model: Model,
    folder: str | os.PathLike[str] | None = None,
    to: str = "onnx",
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    cache: bool | None = None,
    all_positions: bool = False,
    generate: int | None = None,
    check: bool = True,
    overwrite: bool = False,
    dtype: str = "f32",
    quantize: str = "",
    max_error: float | None = None,
    progress: Progress = lambda text: None,
    **options: Any,
) -> list[GraphFile]:
    """Writes a model as ONNX, StableHLO or a SavedModel, and returns what `interlingua.json` lists.

    Without a folder the artifact is written beside the checkpoint, whose weights it refers to. A head that generates becomes graphs with caches
    (`model`, or `encoder_model` and `decoder_model`), for ONNX and StableHLO unless `cache` is false or inputs or outputs are chosen. They give the
    logits of the last position, with `all_positions` of all, as `generator` needs for an assistant. With `generate` it becomes one graph instead,
    `generator`, which takes `input_ids` and `attention_mask` and gives `sequences` with so many new tokens, the likeliest ones.

    With `check` the artifact is run against the float64 reference before it appears, and its errors are noted in `interlingua.json`. `dtype` is what
    all floats of an ONNX file are, inputs, outputs and caches too: "f16", or "bf16", for which onnxruntime has no kernels on CPUs, so that the check
    runs these files with their numbers widened to float32. `quantize` names a scheme that stores weights in fewer bits, `max_error` its budget: see
    `quantization.export_quantized`.

    Raises ParityError where the numbers are wrong, UsageError for an existing output, TargetError for what the target cannot express; then
    nothing is left behind.
    """
    if to not in TARGETS:
        raise UsageError(f"target {to!r} is unknown{nearest(to, TARGETS)}")
    if (folder := folder or model.folder) is None:
        raise UsageError(f"{model.name} has no checkpoint to be exported beside; name a folder")
    place = Path(folder)
    chosen: dict[str, Any] = {"inputs": inputs, "outputs": outputs, "cache": cache, "all_positions": all_positions}
    half = _half(dtype, to, quantize)
    if generate is not None:
        graphs, verify = _generating(model, to, generate, **chosen, quantize=quantize or max_error, dtype=half)
    elif quantize or max_error is not None:
        return _quantized(model, place, to, quantize, max_error=max_error, check=check, overwrite=overwrite, progress=progress, **chosen, **options)
    else:
        graphs, verify = graphs_of(model, to, **chosen), partial(_verify, float=dtype)
    progress(f"writing {to} to {place}")
    checker = _checker(model, graphs, to, verify, half, progress) if check else lambda files, staging, folder: {}
    graphs, options = _in_float(model, graphs, half, options)

    def finish(files: Mapping[str, Path], staging: Path, folder: Path) -> dict[str, dict[str, float]]:
        copy_companions(model, staging, folder)
        return checker(files, staging, folder)

    return _write(model, place, to, graphs, overwrite=overwrite, check=finish, **options)


def _half(dtype: str, to: str, quantize: str) -> str:
    """The half float of an export, the empty text for float32."""
    if checked_float(dtype) == "f32":
        return ""
    if to != "onnx":
        target = "xla" if to == "stablehlo" else "tensorflow"
        raise UsageError(
            f"dtype={dtype!r} is for onnx, not for {to}, whose programs hold the float of the model\n"
            f"  run the model itself in that float: il.compile(model, {target!r}, dtype={dtype!r})"
        )
    if quantize:
        raise UsageError(f"dtype={dtype!r} and quantize={quantize!r} are given, expected one of the two: scales and activations are float32")
    return dtype


def _in_float(model: Model, graphs: dict[str, Graph], half: str, options: dict[str, Any]) -> tuple[dict[str, Graph], dict[str, Any]]:
    """Graphs, and options with weights, as they are written in a half float."""
    if not half:
        return graphs, options
    left_out = list(options.get("switch_off", ()))
    passes = [p for p in STANDARD if p.__name__ not in left_out]  # constants are folded before they are rounded
    made, weights = in_float({stem: optimize(graph, passes) for stem, graph in graphs.items()}, model.weights, half)
    return made, {**options, "switch_off": left_out, "weights": weights}


def _generating(model: Model, to: str, new: int, **others: Any) -> tuple[dict[str, Graph], Verify]:
    """The graph that generates by itself, and its check."""
    from .generating.in_graph import check_sequences, generating_graph, options_for

    if to == "saved_model":
        raise UsageError(f"generate={new} is for onnx and stablehlo, not for {to}\n  export the model without it")
    if given := [k for k, x in others.items() if x]:
        raise UsageError(f"generate={new} and {given[0]} are given, expected one of the two: what a generating graph takes and gives is fixed")
    if not isinstance(new, int) or new < 1:
        raise UsageError(f"generate is {new!r}, expected the number of new tokens, 1 or more")
    options = options_for(model, new)
    return {"generator": generating_graph(model, options)}, partial(check_sequences, options=options)


def _verify(opened: Callable[[], Any], graph: Graph, model: Model, to: str, *, progress: Progress, float: str) -> dict[str, float]:
    from .verify import verify_artifact

    return verify_artifact(opened, graph, model, to, float=float, progress=progress).check().errors(to)


def _quantized(model: Model, place: Path, to: str, scheme: str, **options: Any) -> list[GraphFile]:
    from .quantization import export_quantized

    if not scheme:
        raise UsageError("max_error is a budget of quantisation, expected quantize='int8' or another scheme with it")
    if to != "onnx":
        raise UsageError(f"quantize={scheme!r} is for onnx, not {to}")
    return export_quantized(model, place, scheme, **options)


def _write(model: Model, place: Path, to: str, graphs: dict[str, Graph], **options: Any) -> list[GraphFile]:
    if to == "onnx":
        from ..exporters import onnx

        written = onnx.export(model, place, graphs=graphs, head=model.head, **options)
        if graphs.keys() & _reported(place / REPORT):  # quantised graphs that these have replaced
            (place / REPORT).unlink()
        return written
    if to == "stablehlo":
        from ..exporters import stablehlo

        return stablehlo.export(model, place, graphs=graphs, head=model.head, **options)
    from ..exporters import saved_model

    return saved_model.export(model, place, graph=graphs["model"], head=model.head, **options)


def _reported(file: Path) -> set[str]:
    """The stems of the quantised graphs that a report is about; none for a file that is no report."""
    try:
        return set(json.loads(file.read_text(encoding="utf-8"))["errors"])
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def _checker(
    model: Model, graphs: Mapping[str, Graph], to: str, verify: Verify, half: str, progress: Progress
) -> Callable[[Mapping[str, Path], Path, Path], dict[str, dict[str, float]]]:
    """Runs each written graph, while it is still in its staging folder, against the reference."""

    def check(files: Mapping[str, Path], staging: Path, folder: Path) -> dict[str, dict[str, float]]:
        opened = {stem: partial(_open_staged, to, files[stem], [staging, folder], graph, half) for stem, graph in graphs.items()}
        return {stem: verify(opened[stem], graph, model, to, progress=progress) for stem, graph in graphs.items()}

    return check


def _open_staged(to: str, file: Path, folders: Sequence[Path], graph: Graph, half: str) -> Any:
    if to == "onnx":
        from .ort import HALF, open_staged

        own = None if half else graph  # else what the file declares, whose floats are others
        # a check reads each weight once: packing them for speed would double the memory
        options = {"session.disable_prepacking": "1", **(HALF if half else {})}
        return open_staged(file, folders, own, widen=half == "bf16", session_options=options)
    if to == "stablehlo":
        from .xla import open_staged as open_program

        return open_program(file, folders, graph)
    from .tensorflow import SavedModelSession

    return SavedModelSession(file.parent, graph, "cpu", graph_name(file), jit_compile=False)  # as it is served


def graph_name(file: Path) -> str:
    """What an error calls a file that has no name of its own yet."""
    return f"the {file.name} being written"
