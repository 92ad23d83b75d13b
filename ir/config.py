"""Model configurations: the checkpoint's field names, the reference's defaults, and values checked as they are read."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from .errors import ConfigError, nearest

PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


def choice(default: Any, allowed: Iterable[Any]) -> Any:
    """A field whose value is one of `allowed`."""
    return field(default=default, metadata={"allowed": tuple(allowed)})


def only(default: Any) -> Any:
    """A field of the reference that changes the computation and that only its default is implemented for."""
    return choice(default, [default])


@dataclass(kw_only=True)
class Config:
    """What every model's configuration has.

    A subclass declares each field of the reference's configuration that changes what is computed; other fields of a config.json do not
    and are carried in `extra` unchanged. `aliases` are other spellings of a field.
    """

    aliases: ClassVar[Mapping[str, str]] = {}

    model_type: str = ""
    architectures: list[str] | None = None
    id2label: dict[str, str] | None = None
    label2id: dict[str, int] | None = None
    num_labels: int | None = None
    problem_type: str | None = choice(None, (None, *PROBLEMS))
    output_hidden_states: bool = False
    output_attentions: bool = False
    pruned_heads: dict[str, Any] | None = None
    tie_word_embeddings: bool = True
    is_encoder_decoder: bool = False
    tie_encoder_decoder: bool = only(False)
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    sep_token_id: int | None = None
    decoder_start_token_id: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, values: Mapping[str, Any], where: str = "config.json") -> Self:
        """A configuration from a parsed config.json; ConfigError names the field, what it is, and what was expected."""
        known = {f.name: f for f in dataclasses.fields(cls) if f.name != "extra"}
        hints = typing.get_type_hints(cls)
        given, extra = {}, {}
        for key, value in values.items():
            key = cls.aliases.get(key, key)
            (given if key in known else extra)[key] = value
        for key, value in given.items():
            given[key] = _checked(where, key, value, hints[key], known[key].metadata.get("allowed"))
        config = cls(**given, extra=extra)
        config._count_labels()
        if config.pruned_heads:
            raise ConfigError(f"{where}: pruned_heads is {config.pruned_heads}, expected none\n  save the pruned model with dense weights first")
        config.check(where)
        return config

    def _count_labels(self) -> None:
        if self.id2label is None:
            self.num_labels = 2 if self.num_labels is None else self.num_labels
            self.id2label = {str(i): f"LABEL_{i}" for i in range(self.num_labels)}
        self.num_labels = len(self.id2label)

    def check(self, where: str) -> None:
        """ConfigError where fields contradict one another: heads that do not share the width, unless theirs is told. A subclass adds its own."""
        heads, width = (self.aliases.get(name, name) for name in ("num_attention_heads", "hidden_size"))
        if hasattr(self, heads) and hasattr(self, width) and "head_dim" not in self.aliases:
            self.divides(where, heads, width)

    def divides(self, where: str, parts: str, whole: str) -> None:
        """ConfigError unless the field `whole` is a multiple of the field `parts`."""
        a, b = getattr(self, parts), getattr(self, whole)
        if a < 1 or b % a:
            raise ConfigError(f"{where}: {whole} is {b}, expected a multiple of {parts}={a}")

    @property
    def labels(self) -> int:
        """How many labels a classifier has."""
        return self.num_labels or 0


def _checked(where: str, key: str, value: Any, hint: Any, allowed: tuple[Any, ...] | None) -> Any:
    value, expected = _converted(value, hint)
    if expected:
        raise ConfigError(f"{where}: {key} is {value!r}, expected {expected}")
    if allowed is not None and value not in allowed:
        hints = (
            nearest(value, [a for a in allowed if isinstance(a, str)]) if isinstance(value, str) else f"; supported: {', '.join(map(repr, allowed))}"
        )
        raise ConfigError(f"{where}: {key} is {value!r}, which is not supported{hints}")
    return value


def _converted(value: Any, hint: Any) -> tuple[Any, str]:
    """The value in the declared type, and what was expected where it is of another."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        for option in typing.get_args(hint):
            converted, expected = _converted(value, option)
            if not expected:
                return converted, ""
        return value, " or ".join(_converted(object(), o)[1] for o in typing.get_args(hint))
    origin, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Any:
        return value, ""
    if origin is type(None):
        return value, "" if value is None else "null"
    if origin is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return (float(value) if number else value), "" if number else "a number"
    if origin is int:
        return value, "" if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            return value, "a list"
        items = [_converted(v, parts[0]) if parts else (v, "") for v in value]
        wrong = next((e for _, e in items if e), "")
        return [v for v, _ in items], f"a list, each {wrong}" if wrong else ""
    if origin is dict:
        return (value if not isinstance(value, dict) else {str(k): v for k, v in value.items()}), "" if isinstance(value, dict) else "an object"
    names = {str: "a string", bool: "true or false"}
    return value, "" if isinstance(value, origin) else names.get(origin, str(origin))
