"""`Model`, where the parts meet: a definition with a configuration and weights, and all that can be made of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .ir.card import Card, Head, spellings
from .ir.config import Config
from .ir.definition import Definition
from .ir.errors import CheckpointError, ConfigError, UsageError, nearest
from .ir.graph import Param
from .ir.initialize import initialize
from .ir.layer import Layer, name_tree
from .ir.types import NUMPY_DTYPES
from .ir.weights import ArrayWeights, SelectedWeights, Weights


class Model(Definition):
    """Layers, typed inputs, weights and (for a checkpoint's model) the configuration and card they come from.

    Authoring: `Model(MyLayer(...), inputs={"x": "f32[batch 64]"}, seed=0)` draws new weights. Checkpoints: `interlingua.load`.
    """

    def __init__(
        self,
        layer: Layer,
        inputs: Mapping[str, str],
        weights: Weights | None = None,
        *,
        seed: int = 0,
        config: Config | None = None,
        card: Card | None = None,
        head: str = "",
        folder: str | None = None,
        values: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        super().__init__(layer, inputs, weights, name=options.pop("name", head), **options)  # type: ignore[arg-type]
        self.config, self.card, self.head, self.folder, self.values = config, card, head, folder, dict(values or {})
        self.by_rows = card is not None and card.by_rows
        if weights is None:
            self.weights = ArrayWeights(initialize(self.params, seed))

    @property
    def outputs(self) -> dict[str, Any]:
        """Types of the default outputs for the usual inputs."""
        return {k: v.type for k, v in self.graph().outputs.items()}

    def with_weights(self, arrays: Mapping[str, Any]) -> Model:
        """The same model with other weights by key; missing, extra and misshapen ones are listed at once."""
        integers = {p.key: NUMPY_DTYPES[p.type.dtype] for p in self.params if p.type.dtype[0] == "i"}
        weights = ArrayWeights({k: x.astype(integers[k]) if k in integers else x for k, x in arrays.items()})  # JAX has them in 32 bits
        match(self.params, weights, lambda p: [p.key], where=self.name, unknown=lambda used: sorted(set(arrays) - used))
        return self._remade(weights)

    def _remade(self, weights: Weights) -> Model:
        options = {"usual": self.usual, "always": self.always, "flags": self.flags, "name": self.name}
        parts = {"config": self.config, "card": self.card, "head": self.head, "folder": self.folder, "values": self.values}
        return Model(self.layer, self.inputs, weights, key=self.key, **options, **parts)

    def to_torch(self, *, outputs: Sequence[str] | None = None, **options: Any) -> Any:
        """A `torch.nn.Module` with real parameters under checkpoint names; `net(**inputs) -> dict` trains and compiles."""
        from .frontends.torch import as_module

        return as_module(self, outputs=outputs, **options)

    def to_tensorflow(self, *, outputs: Sequence[str] | None = None, **options: Any) -> Any:
        """A `tf.Module` with variables under checkpoint names; `net(**inputs) -> dict` trains and saves."""
        from .frontends.tensorflow import as_module

        return as_module(self, outputs=outputs, **options)

    def to_jax(self, *, outputs: Sequence[str] | None = None, training: bool = False, **options: Any) -> Any:
        """A pure `fn(params, **inputs) -> dict` and its parameters; with `training`, `fn(params, state, key, **inputs) -> (dict, state)`."""
        from .frontends.jax import as_function

        return as_function(self, outputs=outputs, training=training, **options)

    def export(self, folder: str | os.PathLike[str] | None = None, to: str = "onnx", **options: Any) -> Any:
        """Writes an artifact and checks its numbers, failing if they are wrong: see `interlingua.runtime.export.export`."""
        from .runtime.export import export

        return export(self, folder, to, **options)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes config.json and model.safetensors in the Hugging Face layout, with the tokenizer and processor files beside them.

        Raises UsageError where the output exists and `overwrite` is false, or where the model was authored and has no configuration.
        """
        from .checkpoints import save

        if self.card is None:
            raise UsageError(f"{self.name} has no configuration, as it was authored; keep its weights with `model.weights`, or export it")
        weights = {p.key: self.weights.array(p.key) for p in self.params}
        save(folder, self.config_json(), weights, overwrite=overwrite, extra_files=self.companions())

    def config_json(self) -> dict[str, Any]:
        """What config.json says of this model: what was read, with `architectures` naming the head."""
        return {**self.values, "architectures": [self.head]}

    def companions(self) -> dict[str, str]:
        """The checkpoint's other small files by name: tokenizer, processor, generation and pooling settings."""
        from .checkpoints import companion_files

        return {name: os.path.join(self.folder, name) for name in companion_files(self.folder)} if self.folder else {}


def load(
    path_or_id: str | os.PathLike[str],
    head: str | None = None,
    *,
    init_missing: bool = False,
    seed: int = 0,
    strict: bool = False,
    config: Mapping[str, Any] | None = None,
    **hub: Any,
) -> Model:
    """A model from a folder or hub id with config.json and weights.

    `head` is a class name of the reference or a task slug; by default config.json's `architectures` decides. Weights that the head needs and
    the checkpoint lacks are an error, or drawn anew with `init_missing`. `config` overrides fields of config.json. `hub` takes `revision`,
    `token`, `cache_dir` and `offline`. Errors: ConfigError, CheckpointError (all missing, extra and misshapen weights at once), UsageError.
    """
    from . import models
    from .checkpoints import Checkpoint, resolve

    folder = str(resolve(str(path_or_id), **hub))
    checkpoint = Checkpoint(folder)
    values = {**checkpoint.config, **(config or {})}
    where = os.path.join(folder, "config.json")
    card = models.find(values, where)
    name, chosen = models.choose_head(card, values, head)
    settings = card.config.read(values, where)
    return assemble(card, name, chosen, settings, checkpoint, folder=folder, values=values, init_missing=init_missing, seed=seed, strict=strict)


def from_config(config: str | os.PathLike[str] | Mapping[str, Any], head: str | None = None, *, seed: int = 0) -> Model:
    """A model with new weights, from a config.json or its parsed fields. Errors: ConfigError, UsageError for an unknown head."""
    from . import models
    from .checkpoints.files import read_json

    where = "config.json" if isinstance(config, Mapping) else os.fspath(config)
    values = dict(config) if isinstance(config, Mapping) else read_json(Path(where), "the configuration of a model")
    card = models.find(values, where)
    name, chosen = models.choose_head(card, values, head)
    return assemble(card, name, chosen, card.config.read(values, where), ArrayWeights({}), values=values, init_missing=True, seed=seed)


def assemble(
    card: Card,
    name: str,
    head: Head,
    config: Config,
    weights: Weights,
    *,
    folder: str | None = None,
    values: Mapping[str, Any] | None = None,
    init_missing: bool = False,
    seed: int = 0,
    strict: bool = False,
) -> Model:
    """A model of a card's head with the weights that a checkpoint holds under any of their spellings."""
    layer, where = head.build(config), folder or name
    if folder and name.endswith("Model"):
        layer = _pooled(layer, folder)
    names = card.names_for(head)
    params = name_tree(layer, names.key)
    absent: list[Param] = []
    known = lambda p: spellings(p, head.prefix, card.base, card.also)
    unknown = lambda used: _unknown(card, config, weights, used)
    stored = match(params, weights, known, where=where, unknown=unknown, strict=strict, absent=absent, all_optional=init_missing)
    inputs = head.inputs_for(config)
    return Model(
        layer,
        inputs,
        SelectedWeights(weights, stored, initialize(absent, seed)),
        usual=[k for k in head.usual if k in inputs],
        always=["*hidden_states.*"] * config.output_hidden_states + ["*attentions.*"] * config.output_attentions,
        flags=head.flags(config),
        key=names.key,
        config=config,
        card=card,
        head=name,
        folder=folder,
        values=values,
    )


def _pooled(layer: Layer, folder: str) -> Layer:
    """The layer with the sentence embedding that the checkpoint's modules.json asks for, if it has one."""
    from .checkpoints import sentence_modules

    if (modules := sentence_modules(folder)) is None:
        return layer
    from .ir.layers import POOLING, SentenceEmbedding

    settings, normalize = modules
    modes = [mode for mode, chosen in settings.items() if mode.startswith("pooling_mode_") and chosen]
    if unknown := [m for m in modes if m not in POOLING]:
        raise ConfigError(f"{folder}: {unknown[0]} is not supported{nearest(unknown[0], POOLING)}")
    return SentenceEmbedding(layer, modes or ["pooling_mode_mean_tokens"], normalize)


def match(
    params: Iterable[Param],
    weights: Weights,
    names: Any,
    *,
    where: str,
    unknown: Any,
    strict: bool = True,
    absent: list[Param] | None = None,
    all_optional: bool = False,
) -> dict[str, str]:
    """For each parameter's key the name it is stored under; CheckpointError lists every missing, misshapen and unknown weight.

    `unknown` tells those that nothing needs from the names that are used; unless `strict`, they alone are a warning. Buffers that a checkpoint
    need not hold (all parameters, if `all_optional`) are put into `absent` instead.
    """
    stored: dict[str, str] = {}
    missing: list[str] = []
    wrong: list[str] = []
    for p in params:
        found = next((k for k in names(p) if k in weights), None)
        if found is not None:
            stored[p.key] = found
            if (shape := weights.spec(found)[1]) != p.shape:
                wrong.append(f"{found} has shape {list(shape)}, expected {list(p.shape)}")
        elif absent is not None and (all_optional or not isinstance(p.init, str)):
            absent.append(p)
        else:
            missing.append(p.key)
    extra = unknown(set(stored.values()))
    if missing or wrong or (extra and strict):
        rows = [f"missing: {k}" for k in missing] + [f"misshapen: {k}" for k in wrong] + [f"unknown: {k}" for k in extra]
        if missing and absent is not None:
            rows.append("choose the head that was saved, or pass init_missing=True to draw missing weights anew")
        raise CheckpointError(f"{where}: {len(missing)} weights are missing, {len(wrong)} misshapen and {len(extra)} unknown\n  " + "\n  ".join(rows))
    if extra:
        told = f"{', '.join(extra[:8])}{', ...' if len(extra) > 8 else ''}"
        warnings.warn(f"{where}: {len(extra)} weights belong to no head of this architecture: {told}; they are not used", stacklevel=4)
    return stored


def _unknown(card: Card, config: Config, weights: Weights, used: set[str]) -> list[str]:
    """The weights of a checkpoint that no head of the architecture needs."""
    extra = [k for k in weights if k not in used and not any(fnmatchcase(k, glob) for glob in card.unused)]
    if not extra:
        return []
    known: set[str] = set()
    for head in card.heads.values():
        with suppress(ConfigError):  # a head that this configuration cannot have
            for p in name_tree(head.build(config), card.names_for(head).key):
                known.update(spellings(p, head.prefix, card.base, card.also))
    return [k for k in extra if k not in known]


def from_torch(net: Any, like: Model) -> Model:
    """`like` with the weights of a module that `to_torch` made, or of any module with the same names."""
    from .frontends.torch import weights_of

    return like.with_weights(weights_of(net))


def from_tensorflow(net: Any, like: Model) -> Model:
    """`like` with the weights of a module that `to_tensorflow` made."""
    from .frontends.tensorflow import weights_of

    return like.with_weights(weights_of(net))


def from_jax(params: Mapping[str, Any], like: Model, state: Mapping[str, Any] | None = None) -> Model:
    """`like` with the parameters (and state) of a function that `to_jax` made."""
    from .frontends.jax import weights_of

    return like.with_weights(weights_of(params, state))
