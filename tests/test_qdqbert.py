"""QDQBERT against its reference, which needs a package that no index has (NVIDIA's pytorch-quantization).

`data/qdqbert` holds what that reference gave: a checkpoint, inputs and outputs for each head. `_reference` is the reference library's own model over
our spelling of the package's two classes; it must give the stored outputs, and then stands in for other configurations and for gradients.
A number that falls between two of the 255 steps by float32's error alone may fall on either side: outputs are compared within a tenth of their
deviation, gradients within a tenth of their norm.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from oracle import flatten
from targets import FRAMEWORKS, TARGETS, gradients

import interlingua as il

DATA = Path(__file__).parent / "data" / "qdqbert"
HEADS = sorted(path.name for path in DATA.iterdir())
CONFIGS: dict[str, dict[str, Any]] = {
    "wide": {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 50, "hidden_act": "relu"},
    "decoder": {"is_decoder": True, "add_cross_attention": True, "layer_norm_eps": 1e-3},
}


def _stored(head: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    with np.load(DATA / head / "inputs.npz") as inputs, np.load(DATA / head / "outputs.npz") as outputs:
        return dict(inputs), {k: x for k, x in outputs.items() if not k.startswith("past_key_values")}


def _check(made: dict[str, np.ndarray], outputs: dict[str, np.ndarray], mask: np.ndarray) -> None:
    live = mask.reshape(-1, mask.shape[-1]).astype(bool)
    for name, true in outputs.items():
        apart = np.abs(made[name] - true)
        if true.shape[:2] in (live.shape, mask.shape[:2]) and true.ndim > 1 and true.shape[1] == live.shape[1]:
            apart = apart[live]
        assert apart.max() <= 0.1 * true.std(), name


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("head", HEADS)
def test_stored(head: str, target: str, tmp_path: Path) -> None:
    inputs, outputs = _stored(head)
    model = il.load(DATA / head, head)
    if target in ("onnx", "stablehlo"):
        model.export(tmp_path, to=target, inputs=list(inputs), outputs=list(outputs), check=False)
        session = il.open(tmp_path)
    else:
        session = il.compile(model, {"jax": "xla"}.get(target, target), inputs=list(inputs), outputs=list(outputs))
    _check(session(**inputs), outputs, inputs["attention_mask"])


@functools.cache
def _library() -> Any:
    """The reference's module over two classes as the package has them: eight bits, ranges of the moment, one for a tensor or for a weight's row."""
    torch = importlib.import_module("torch")

    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Any, axes: tuple[int, ...]) -> Any:
            scale = 127.0 / x.abs().amax(axes, keepdim=True)
            return (x * scale).round().clamp(-128, 127) / scale

        @staticmethod
        def backward(context: Any, *given: Any) -> Any:
            return given[0], None

    class TensorQuantizer(torch.nn.Module):
        def __init__(self, description: Any):
            super().__init__()

        def forward(self, x: Any) -> Any:
            return Rounded.apply(x, tuple(range(x.ndim)))

    class QuantLinear(torch.nn.Linear):
        default_quant_desc_input = None

        def forward(self, x: Any) -> Any:
            return torch.nn.functional.linear(Rounded.apply(x, tuple(range(x.ndim))), Rounded.apply(self.weight, (1,)), self.bias)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module("transformers.models.deprecated.qdqbert.modeling_qdqbert")
    module.__dict__.update(quant_nn=SimpleNamespace(QuantLinear=QuantLinear), TensorQuantizer=TensorQuantizer, requires_backends=lambda *given: None)
    return module


def _run(model: Any, inputs: dict[str, np.ndarray], **more: Any) -> Any:
    torch = importlib.import_module("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(**{k: torch.from_numpy(x) for k, x in inputs.items()}, output_hidden_states=True, **more)


@pytest.mark.parametrize("head", HEADS)
def test_the_stand_in_gives_what_is_stored(head: str) -> None:
    module, (inputs, outputs) = _library(), _stored(head)
    model = getattr(module, head).from_pretrained(DATA / head, attn_implementation="eager").eval()
    made = {k: x.detach().numpy() for k, x in flatten(_run(model, inputs, output_attentions=True))}
    _check(made, outputs, inputs["attention_mask"])


def _fresh(head: str, config: str, folder: Path) -> tuple[Any, dict[str, np.ndarray], dict[str, Any]]:
    """The reference's model of a configuration with random weights, written to a folder; inputs, padded left unless the first word counts; labels."""
    torch, module = importlib.import_module("torch"), _library()
    kind, rng = getattr(module, head), np.random.default_rng(3)
    values = {"vocab_size": 67, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37, **CONFIGS[config]}
    torch.manual_seed(7)
    model = kind(kind.config_class(**values, num_labels=3 if "Answering" not in head else 2, attn_implementation="eager")).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    model.save_pretrained(folder)
    shape = (3, 2, 11) if "Choice" in head else (3, 11)
    mask = np.ones(shape, np.int64)
    mask[-1, ..., slice(4) if head.endswith(("MaskedLM", "TokenClassification")) else slice(-4, None)] = 0
    inputs = {"input_ids": np.where(mask > 0, rng.integers(5, 67, shape), 1), "attention_mask": mask, "token_type_ids": rng.integers(0, 2, shape)}
    if values.get("add_cross_attention"):
        inputs["encoder_hidden_states"] = rng.standard_normal((3, 5, values["hidden_size"]), np.float32)
    labels: dict[str, Any] = {"labels": rng.integers(0, 2, (3,))}
    if "Answering" in head:
        labels = {"start_positions": rng.integers(4, 11, (3,)), "end_positions": rng.integers(4, 11, (3,))}
    elif head.endswith(("MaskedLM", "LMHeadModel", "TokenClassification")):
        labels = {"labels": rng.integers(0, 3, (3, 11))}
    return model, inputs, labels


CASES = [(head, "wide") for head in HEADS] + [(head, "decoder") for head in ("QDQBertModel", "QDQBertLMHeadModel")]


@pytest.mark.parametrize("target", ["numpy", "torch", "onnxruntime"])
@pytest.mark.parametrize(("head", "config"), CASES)
def test_other_configurations(head: str, config: str, target: str, tmp_path: Path) -> None:
    model, inputs, _ = _fresh(head, config, tmp_path)
    outputs = {k: x.detach().numpy() for k, x in flatten(_run(model, inputs)) if not k.startswith("past_key_values")}
    made = il.compile(il.load(tmp_path, head), target, inputs=list(inputs), outputs=list(outputs))(**inputs)
    _check(made, outputs, inputs["attention_mask"])


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("head", "config"), [case for case in CASES if case[0] != "QDQBertModel"])
def test_gradients(head: str, config: str, framework: str, tmp_path: Path) -> None:
    torch = importlib.import_module("torch")
    model, inputs, labels = _fresh(head, config, tmp_path)
    loss = _run(model, inputs, **{k: torch.from_numpy(x) for k, x in labels.items()}).loss
    loss.backward()
    true = {k: p.grad.numpy() for k, p in model.named_parameters() if p.grad is not None}
    losses, found = gradients(il.load(tmp_path, head), framework, {**inputs, **labels}, ["loss"])
    assert losses["loss"] == pytest.approx(float(loss.detach()), rel=1e-2)
    norm = np.sqrt(sum(np.square(g).sum() for g in true.values()))
    for name, gradient in true.items():
        assert np.linalg.norm(found[name] - gradient) <= 0.1 * max(np.linalg.norm(gradient), 1e-2 * norm), name
