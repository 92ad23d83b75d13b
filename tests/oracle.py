"""Reference cases: a tiny random model of transformers 4.57.6, its checkpoint, inputs, outputs in float32 and float64, loss and gradients.

`case(spec, head, config, inputs, seed)` builds a case once and keeps it in a folder named by the hash of all that determines it, so that every
target and every test process shares one run of the reference. PyTorch and transformers are imported only where a case has to be built.
"""

from __future__ import annotations

import copy
import fnmatch
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import oracle_specs
from filelock import FileLock
from oracle_specs import SPECS, Arrays, configure, frames, labels

CACHE = Path(os.environ.get("INTERLINGUA_ORACLE_CACHE", Path(__file__).parent.parent / ".cache" / "oracle"))
REFERENCE = "4.57.6"
ON_DEMAND = ("hidden_states", "attentions", "past_key_values")
MASKED = [np.finfo(dtype).min for dtype in (np.float32, np.float64)]  # what the reference holds for a masked score, by its precision


@dataclass(frozen=True)
class Gradients:
    """Loss outputs (`loss`, and `mc_loss` where there is one) and the gradient of their sum for every floating-point weight of the checkpoint."""

    losses: dict[str, float]
    gradients: Arrays

    def tolerance(self, key: str) -> float:
        """The largest error allowed: 1e-4 of the tensor's greatest gradient, or of a thousandth of the global norm where that is more."""
        norm = float(np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in self.gradients.values())))
        return 1e-4 * max(float(np.abs(self.gradients[key]).max(initial=0.0)), 1e-3 * norm)


@dataclass(frozen=True)
class Case:
    """One run of the reference library.

    `folder` holds config.json and model.safetensors. `inputs` are its tensors, `flags` its other arguments, `labels` what must be added to get a
    loss (None: the head has none). `outputs` and `outputs64` are named as the reference names them, nested ones with dots (`hidden_states.0`).
    """

    folder: Path
    head: str
    inputs: Arrays
    flags: dict[str, Any]
    labels: dict[str, Any] | None
    outputs: Arrays
    outputs64: Arrays
    masks: list[tuple[str, np.ndarray]]

    @property
    def main(self) -> list[str]:
        """The outputs that the reference returns without being asked: no hidden states, attentions or caches."""
        return [name for name in self.outputs if not any(part in name for part in ON_DEMAND)]

    def live(self, name: str, array: np.ndarray) -> np.ndarray:
        """True where the reference's `array`, an output `name`, belongs to an unpadded position; what it holds elsewhere has no meaning."""
        seen = ~np.isin(array, MASKED)
        for pattern, mask in self.masks:
            if fnmatch.fnmatch(name, pattern) and (spread := _spread(mask, array.shape)) is not None:
                return spread & seen
        return seen

    def error(self, name: str, array: np.ndarray) -> float:
        """The greatest difference between `array` and output `name` over live positions."""
        reference = self.outputs[name]
        assert array.shape == reference.shape, f"{name} has shape {array.shape}, expected {reference.shape}"
        return _difference(array, reference, self.live(name, reference))

    @functools.cached_property
    def own_error(self) -> dict[str, float]:
        """The reference's own float32 error, per output: its greatest difference from its float64 run over live positions."""
        return {name: _difference(self.outputs[name], wide, self.live(name, wide)) for name, wide in self.outputs64.items()}

    def tolerance(self, name: str) -> float:
        """The largest error allowed: 1e-5 of the output's magnitude (at least 1), or five times the reference's own error where that is more."""
        live = np.where(self.live(name, self.outputs[name]), self.outputs[name], 0)
        return max(1e-5 * max(1.0, float(np.abs(live).max(initial=0.0))), 5 * self.own_error[name])

    def mismatches(self, outputs: Mapping[str, np.ndarray], names: list[str] | None = None) -> list[str]:
        """A line for each output (all of `main` by default) that is missing or off by more than its tolerance; empty means parity."""
        lines = []
        for name in self.main if names is None else names:
            if name not in outputs:
                lines.append(f"{name} is missing; there are {', '.join(outputs)}")
            elif not (error := self.error(name, np.asarray(outputs[name]))) <= (limit := self.tolerance(name)):
                lines.append(f"{name} is off by {error:.2e}, allowed {limit:.2e}")
        return lines

    @functools.cached_property
    def training(self) -> Gradients:
        """Losses and gradients in eval mode (no dropout), made by the reference when first asked for."""
        assert self.labels is not None, f"{self.head} has no loss for these inputs"
        path = self.folder / "gradients.npz"
        with FileLock(str(self.folder) + ".lock"):
            if not path.exists():
                _write_gradients(self, path)
        stored = _read(path)
        losses = {k[5:]: float(v) for k, v in stored.items() if k.startswith("loss/")}
        return Gradients(losses, {k[5:]: v for k, v in stored.items() if k.startswith("grad/")})


def case(spec: str, head: str, config: dict[str, Any] | None = None, inputs: dict[str, Any] | None = None, seed: int = 0) -> Case:
    """The case of one head with configuration and input options overridden (see `oracle_specs`); built once, read from disk afterwards."""
    return _cached({"spec": spec, "head": head, "config": configure(spec, head, config or {}), "inputs": inputs or {}, "seed": seed}, None, None)


def derived_case(head: str, model_type: str, config: dict[str, Any], inputs: Arrays, labels: Arrays | None) -> Case:
    """The case of one head with these fields of config.json, inputs and labels (None: the head has no loss)."""
    return _cached({"spec": "", "model_type": model_type, "head": head, "config": config, "inputs": {}, "seed": 0}, inputs, labels)


def _cached(request: dict[str, Any], inputs: Arrays | None, given: Arrays | None) -> Case:
    head, key = request["head"], hashlib.sha256((json.dumps(request, sort_keys=True) + _machinery(request["spec"])).encode())
    for name, array in sorted({**(inputs or {}), **(given or {})}.items()):
        key.update(name.encode() + str((array.dtype, array.shape)).encode() + array.tobytes())
    folder = CACHE / f"{head}-{key.hexdigest()[:16]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder) + ".lock"):
        if not folder.exists():
            building = folder.with_name(f"{folder.name}.{os.getpid()}")
            shutil.rmtree(building, ignore_errors=True)
            _build(request, building, inputs, given)
            building.rename(folder)
    meta = json.loads((folder / "case.json").read_text())
    made = {name: _read(folder / f"{name}.npz") for name in ("inputs", "labels", "outputs", "outputs64", "masks")}
    given = None if meta["labels"] is None else {**made["labels"], **meta["labels"]}
    masks = [(pattern, made["masks"][str(i)]) for i, pattern in enumerate(meta["masks"])]
    return Case(folder, head, made["inputs"], meta["inputs"].get("flags", {}), given, made["outputs"], made["outputs64"], masks)


@functools.cache
def _machinery(spec: str) -> str:
    """What besides the request determines a case: this file, how the spec draws its inputs, and versions."""
    text = Path(__file__).read_text() + importlib.metadata.version("transformers") + importlib.metadata.version("torch")
    drawing = [f for f in vars(oracle_specs).values() if inspect.isfunction(f) and f.__module__ == oracle_specs.__name__] if spec else []
    return text + "".join(map(inspect.getsource, drawing))


def _read(path: Path) -> Arrays:
    with np.load(path) as stored:
        return dict(stored)


def _difference(a: np.ndarray, b: np.ndarray, live: np.ndarray) -> float:
    if a.dtype == bool or not a.size:
        return float((a != b)[live].any())
    with np.errstate(invalid="ignore"):
        difference = np.where(a == b, 0.0, np.abs(a.astype(np.float64) - b))[live]  # equal infinities differ by nothing
    return float(difference.max(initial=0.0))


def _spread(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """`mask` [*lead length] reshaped to broadcast over `shape`: leading axes, those flattened to one, or the query axis of attentions."""
    length = mask.shape[-1]
    for m in (mask, mask.reshape(-1, length)):
        if shape[: m.ndim] == m.shape:
            return m.reshape(m.shape + (1,) * (len(shape) - m.ndim)).astype(bool)
    rows = mask.reshape(-1, length)
    if len(shape) == 4 and shape[0] == len(rows) and shape[2] == length:
        return rows[:, None, :, None].astype(bool)
    return None


def _masks(spec: str, head: str, config: Any, inputs: Arrays) -> list[tuple[str, np.ndarray]]:
    """Which mask holds for which outputs, first match first."""
    mask = inputs.get("attention_mask")
    if "input_values" in inputs:
        if mask is None:
            return []
        lengths, count = frames(config, mask.sum(-1)), frames(config, inputs["input_values"].shape[1])
        found = [("*", np.arange(count) < lengths[:, None])]
        for _ in range(config.num_adapter_layers if config.add_adapter else 0):
            stride, edge = config.adapter_stride, 2 - config.adapter_kernel_size  # a convolution with one frame of padding on each side
            lengths, count = (lengths - 1) // stride + 1, (count + edge) // stride + 1
            found.append(("*", np.arange(count) < lengths[:, None]))
        return found
    decoder_ids = inputs.get("decoder_input_ids")
    if decoder_ids is None and head in ("T5ForSequenceClassification", "T5ForQuestionAnswering"):
        decoder_ids = inputs["input_ids"]
    if decoder_ids is not None:
        encoder = [] if mask is None else [("encoder_*", mask)]
        return [*encoder, ("*", inputs.get("decoder_attention_mask", np.ones_like(decoder_ids)))]
    if mask is None:
        return []
    return [("text_model_output.*" if head == "CLIPModel" else "*", mask)]


# ---- building: everything below runs the reference library


@contextmanager
def _reference() -> Iterator[tuple[Any, Any]]:
    """(torch, transformers), their warnings silenced: they are not ours to heed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
        assert transformers.__version__ == REFERENCE, f"transformers is {transformers.__version__}, the reference is {REFERENCE}"
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(1)
        yield torch, transformers


def _model(request: dict[str, Any]) -> Any:
    """The head in eval mode with weights drawn anew: the library's own start (deviation 0.02, norms 1 and 0) hides errors."""
    torch = importlib.import_module("torch")
    kind = getattr(importlib.import_module("transformers"), request["head"])
    config = kind.config_class.from_dict(request["config"], attn_implementation="eager")
    torch.manual_seed(request["seed"])
    model = kind(config).eval()
    _redraw(model, request["seed"], request["inputs"].get("gain", {}))
    return model


def _redraw(model: Any, seed: int, gain: dict[str, float]) -> None:
    torch = importlib.import_module("torch")
    generator = torch.Generator().manual_seed(seed + 1000)
    with torch.no_grad():
        for name, weight in sorted((n, w) for n, w in model.named_parameters() if w.requires_grad):  # tables of sines stay what they are
            noise = torch.randn(weight.shape, generator=generator)
            owner = model.get_submodule(name.rpartition(".")[0])
            if weight.ndim == 1 and name.endswith("weight") and "Norm" in type(owner).__name__:
                weight.copy_(1 + 0.1 * noise)
            elif weight.ndim < 2:
                weight.add_(0.1 * noise)
            elif weight.numel() == weight.shape[-1] or name.endswith("original0"):
                weight.add_(0.2 * noise)
            else:
                weight.copy_(noise * min(0.2, weight[0].numel() ** -0.5))
            for suffix, factor in gain.items():
                weight.mul_(factor if name.endswith(suffix) else 1.0)


def _calibrate(model: Any, request: dict[str, Any], inputs: Arrays) -> None:
    """What a model learns of its activations from running: statistics of batch norms, ranges of what is rounded to integers."""
    if any(hasattr(module, "act_range_momentum") for module in model.modules()):
        _settle_ranges(model, inputs)
    else:
        _settle_norms(model, request)


def _settle_ranges(model: Any, inputs: Arrays) -> None:
    """I-BERT's ranges := those of two passes over the inputs."""
    torch = importlib.import_module("torch")
    for module in (m for m in model.modules() if isinstance(m, torch.nn.Dropout)):
        module.p = 0.0
    for _ in range(2):
        model.train()(**{name: torch.from_numpy(array.copy()) for name, array in inputs.items()})
    model.eval()


def _settle_norms(model: Any, request: dict[str, Any]) -> None:
    """Batch-norm statistics := those of six other inputs, a little off; a deep net with arbitrary ones does not depend on its input."""
    torch = importlib.import_module("torch")
    generator = torch.Generator().manual_seed(request["seed"])

    def settle(norm: Any, args: tuple[Any, ...]) -> None:
        mean, variance = args[0].mean((0, 2, 3)), args[0].var((0, 2, 3), unbiased=False)
        off = torch.rand(mean.shape, generator=generator)
        variance = variance * (0.7 + 0.6 * off) + 0.1 * variance.mean() + 1e-3
        norm.running_mean.copy_(mean + 0.1 * variance.sqrt() * torch.randn(mean.shape, generator=generator))
        norm.running_var.copy_(variance)

    hooks = [m.register_forward_pre_hook(settle) for m in model.modules() if getattr(m, "running_mean", None) is not None]
    if hooks:
        options = {**request["inputs"], "batch": 6}
        _run(model, _inputs(request, model.config, options, request["seed"] + 5), options)
    for hook in hooks:
        hook.remove()


def _inputs(request: dict[str, Any], config: Any, options: dict[str, Any], seed: int) -> Arrays:
    made = SPECS[request["spec"]].inputs(config, request["head"], np.random.default_rng(seed + 77), options)
    return {name: array for name, array in made.items() if name not in options.get("drop", ())}


def _run(model: Any, inputs: Arrays, options: dict[str, Any], wide: bool = False) -> Arrays:
    """All outputs of a fresh copy of `model` (Swin keeps state between calls), with hidden states and attentions; `wide` in float64."""
    torch = importlib.import_module("torch")
    takes = inspect.signature(type(model).forward).parameters
    asked = {"output_hidden_states": True, "output_attentions": options.get("attentions", True), "return_dict": True, "use_cache": False}
    asked = {name: value for name, value in asked.items() if name in takes or ("kwargs" in takes and name.startswith("output"))}
    model, tensors = copy.deepcopy(model), {name: torch.from_numpy(array.copy()) for name, array in inputs.items()}
    if wide:
        model, tensors = model.double(), {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
        for module in model.modules():
            if hasattr(module, "reorder_and_upcast_attn"):
                module.reorder_and_upcast_attn = False  # the same mathematics, but insists on float32
    with torch.no_grad(), _widening(torch) if wide else nullcontext():
        return {name: t.numpy().copy() for name, t in flatten(_called(model, **tensors, **asked, **options.get("flags", {})))}


def _called(model: Any, **given: Any) -> Any:
    """The reference's outputs by name; RetriBERT returns its loss alone and has its vectors from two other methods."""
    out = model(**given)
    if type(model).__name__ != "RetriBertModel":
        return out
    questions = model.embed_questions(given["input_ids_query"], given.get("attention_mask_query"))
    answers = model.embed_answers(given["input_ids_doc"], given.get("attention_mask_doc"))
    return {"loss": out, "question_embeds": questions, "answer_embeds": answers}


@contextmanager
def _widening(torch: Any) -> Iterator[None]:
    """Inside, the reference's own steps down to float32 (`.float()`, `dtype=torch.float32`) stay in float64, so that its float64 run is one."""

    class Widening(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs, makes = kwargs or {}, function in (torch.zeros, torch.ones, torch.empty, torch.full)
            if makes or any(isinstance(a, torch.Tensor) and a.is_floating_point() for a in args):  # integers (T5's buckets) must round as in float32
                if function is torch.Tensor.float:
                    return args[0].double()
                args = tuple(torch.float64 if a is torch.float32 else a for a in args)
                kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in kwargs.items()}
            return function(*args, **kwargs)

    torch.set_default_dtype(torch.float64)
    try:
        with Widening():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, tensor) for every tensor in the reference's nested outputs."""
    if hasattr(value, "items"):
        value = value.items()
    elif isinstance(value, (tuple, list)):
        value = enumerate(value)
    else:
        if hasattr(value, "detach"):
            yield name, value.detach()
        return
    for key, item in value:
        yield from flatten(item, f"{name}.{key}" if name else str(key))


def _build(request: dict[str, Any], folder: Path, inputs: Arrays | None, given: Arrays | None) -> None:
    with _reference():
        model = _model(request)
        if inputs is None:
            inputs = _inputs(request, model.config, request["inputs"], request["seed"])
            given = labels(request["head"], model.config, inputs, np.random.default_rng(request["seed"] + 99))
        _calibrate(model, request, inputs)
        masks = _masks(request["spec"], request["head"], model.config, inputs)
        model.save_pretrained(folder)
        arrays = {name: value for name, value in (given or {}).items() if isinstance(value, np.ndarray)}
        meta = {**request, "masks": [pattern for pattern, _ in masks], "labels": None}
        if given is not None:
            meta["labels"] = {name: value for name, value in given.items() if name not in arrays}
        np.savez(folder / "inputs.npz", **inputs)
        np.savez(folder / "labels.npz", **arrays)
        np.savez(folder / "masks.npz", **{str(i): mask for i, (_, mask) in enumerate(masks)})
        np.savez(folder / "outputs.npz", **_run(model, inputs, request["inputs"]))
        np.savez(folder / "outputs64.npz", **_run(model, inputs, request["inputs"], wide=True))
        (folder / "case.json").write_text(json.dumps(meta))


def _write_gradients(made: Case, path: Path) -> None:
    with _reference() as (torch, _):
        request = json.loads((made.folder / "case.json").read_text())
        model = _model(request)
        _calibrate(model, request, made.inputs)
        dropped = request["inputs"].get("loss_drop", ())
        given = {name: value for name, value in {**made.inputs, **(made.labels or {})}.items() if name not in dropped}
        takes = inspect.signature(type(model).forward).parameters
        given = {name: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value for name, value in given.items()}
        out = _called(model, **given, **made.flags, **({"use_cache": False} if "use_cache" in takes else {}))
        losses = {name: out[name] for name in ("loss", "mc_loss") if out.get(name) is not None}
        sum(losses.values()).backward()
        stored = _stored_keys(made.folder)
        weights = {k: w for k, w in model.named_parameters(remove_duplicate=False) if k in stored and w.requires_grad}
        arrays = {f"grad/{k}": np.zeros(w.shape, np.float32) if w.grad is None else w.grad.numpy() for k, w in weights.items()}
        part = path.with_suffix(".part.npz")
        np.savez(part, **arrays, **{f"loss/{name}": loss.detach().numpy() for name, loss in losses.items()})
        part.rename(path)


def _stored_keys(folder: Path) -> set[str]:
    """The weight names in the checkpoint, of which a tied weight has one."""
    with open(folder / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return set(header) - {"__metadata__"}
