"""`Model`, where the parts meet: a definition with a configuration and weights, and all that can be made of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from .ir.card import Card, Head, spellings
from .ir.config import Config
from .ir.definition import Definition
from .ir.errors import CheckpointError, nearest
from .ir.graph import Param
from .ir.initialize import initialize
from .ir.layer import Layer, name_tree
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
        **options: Any,
    ):
        super().__init__(layer, inputs, weights, name=options.pop("name", head), **options)  # type: ignore[arg-type]
        self.config, self.card, self.head, self.folder = config, card, head, folder
        if weights is None:
            self.weights = ArrayWeights(initialize(self.params, seed))

    @property
    def outputs(self) -> dict[str, Any]:
        """Types of the default outputs for the usual inputs."""
        return {k: v.type for k, v in self.graph().outputs.items()}

    def with_weights(self, arrays: Mapping[str, Any]) -> Model:
        """The same model with other weights by key; missing, extra and misshapen ones are listed at once."""
        weights = ArrayWeights(arrays)
        stored = match(self.params, weights, lambda p: [p.key], where=self.name)
        if extra := sorted(set(arrays) - set(stored)):
            raise CheckpointError(f"{self.name} has no weight {extra[0]!r}{nearest(extra[0], stored)}")
        return self._remade(weights)

    def _remade(self, weights: Weights) -> Model:
        options = {"usual": self.usual, "always": self.always, "flags": self.flags, "name": self.name}
        made = Model.__new__(Model)
        Definition.__init__(made, self.layer, self.inputs, weights, key=self._keys().get, **options)  # type: ignore[arg-type]
        made.config, made.card, made.head, made.folder = self.config, self.card, self.head, self.folder
        return made

    def _keys(self) -> dict[str, str]:
        return {p.name: p.key for p in self.params}

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

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes config.json and model.safetensors in the Hugging Face layout, and copies the tokenizer and processor files beside them."""
        from .checkpoints import save

        save(folder, self.config_json(), {k: self.weights.array(k) for k in self._keys().values()}, overwrite=overwrite, extra_files=self.companions())

    def config_json(self) -> dict[str, Any]:
        """config.json for this head: what was read, with `architectures` naming the head."""
        from .checkpoints import read_config

        base = read_config(self.folder) if self.folder else {}
        return {**base, **({"architectures": [self.head]} if self.head else {})}

    def companions(self) -> list[str]:
        """The checkpoint's other small files: tokenizer, processor, generation and pooling settings."""
        from .checkpoints import companion_files

        return companion_files(self.folder) if self.folder else []


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
    return assemble(card, name, chosen, settings, checkpoint, folder=folder, init_missing=init_missing, seed=seed, strict=strict)


def assemble(
    card: Card, name: str, head: Head, config: Config, weights: Weights, *, folder: str | None = None, init_missing: bool = False, seed: int = 0, strict: bool = False
) -> Model:
    """A model of a card's head with the weights that a checkpoint holds under any of their spellings."""
    layer = head.build(config)
    names = card.names_for(head)
    params = name_tree(layer, names.key)
    absent: list[Param] = []
    stored = match(params, weights, lambda p: spellings(p.key, head.prefix, card.base, card.also), where=folder or name, absent=absent, all_optional=init_missing)
    new = initialize(absent, seed)
    _check_unused(card, config, weights, set(stored.values()), folder or name, strict)
    always = ["*hidden_states.*"] * config.output_hidden_states + ["*attentions.*"] * config.output_attentions
    selected = SelectedWeights(weights, stored, new)
    return Model(
        layer, head.inputs_for(config), selected, usual=[k for k in head.usual if k in head.inputs_for(config)], always=always,
        flags=head.flags(config), key=names.key, config=config, card=card, head=name, folder=folder,
    )  # fmt: skip


def match(params: Iterable[Param], weights: Weights, names: Any, *, where: str, absent: list[Param] | None = None, all_optional: bool = False) -> dict[str, str]:
    """For each parameter's key the name it is stored under; CheckpointError lists every missing and misshapen one.

    Buffers that a checkpoint need not hold (all parameters, if `all_optional`) are put into `absent` instead.
    """
    stored: dict[str, str] = {}
    missing: list[str] = []
    wrong: list[str] = []
    for p in params:
        found = next((k for k in names(p) if k in weights), None)
        if found is None and absent is not None and (all_optional or not isinstance(p.init, str)):
            absent.append(p)
        elif found is None:
            missing.append(p.key)
        elif (shape := weights.spec(found)[1]) != p.shape:
            wrong.append(f"{found} has shape {list(shape)}, expected {list(p.shape)}")
        else:
            stored[p.key] = found
    if missing or wrong:
        rows = [f"missing: {k}" for k in missing] + [f"misshapen: {k}" for k in wrong]
        if missing:
            rows.append("pass init_missing=True to draw missing ones anew, or choose the head that was saved")
        raise CheckpointError(f"{where}: {len(missing)} weights are missing and {len(wrong)} misshapen\n  " + "\n  ".join(rows))
    return stored


def _check_unused(card: Card, config: Config, weights: Weights, used: set[str], where: str, strict: bool) -> None:
    extra = [k for k in weights if k not in used and not any(fnmatchcase(k, glob) for glob in card.unused)]
    if not extra:
        return
    known: set[str] = set()
    for head in card.heads.values():
        for p in name_tree(head.build(config), card.names_for(head).key):
            known.update(spellings(p.key, head.prefix, card.base, card.also))
    if unknown := [k for k in extra if k not in known]:
        text = f"{where}: {len(unknown)} weights belong to no head of {card.model_type}: {', '.join(unknown[:8])}{', ...' if len(unknown) > 8 else ''}"
        if strict:
            raise CheckpointError(text)
        warnings.warn(text + "; they are not used", stacklevel=4)
