"""What generation is asked for: the parameters of the reference's `generate`, and what a checkpoint says of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...checkpoints.files import read_json
from ...ir.errors import ConfigError, UsageError, nearest

Rule = tuple[Callable[[Any], bool], str]  # what a value must be, and that in words

# what generation_config.json may also ask for and is not applied, with the values that ask for nothing
NOT_APPLIED: dict[str, tuple[Any, ...]] = {
    "diversity_penalty": (0.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0.0,),
    "sequence_bias": (),
}

CHOOSING = ("do_sample", "num_beams", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "min_new_tokens", "min_length")
CHOOSING += ("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Parameters of generation, named as the reference's; None stands for what is here.

    `eos_token_id` ends a row (one id or several), `pad_token_id` fills what comes after it, by default the first end. Rows of beams end by
    `early_stopping`: False as soon as none is likely to get better, True when there are enough ended ones, "never" when none can get better.
    `min_length` counts the prompt too, and yields to `min_new_tokens`. `forced_bos_token_id` follows a single first token, such as the one that
    decoding starts with. An assistant guesses `num_assistant_tokens` at a time.
    """

    max_new_tokens: int = 20
    min_new_tokens: int = 0
    min_length: int = 0
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] = ()
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    decoder_start_token_id: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    num_assistant_tokens: int = 5
    seed: int = 0

    @classmethod
    def read(cls, config: Mapping[str, Any], generation: Mapping[str, Any], where: str = "generation_config.json") -> Options:
        """The defaults of a checkpoint: what generation_config.json says, and the special tokens of config.json. Warns of what is not applied."""
        tokens = {k: config.get(k) for k in ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")}
        given = tokens | {k: v for k, v in generation.items() if v is not None}
        if given["decoder_start_token_id"] is None:
            given["decoder_start_token_id"] = given["bos_token_id"]
        warn_of_what_is_not_applied(generation, where)
        try:
            return cls()._with({f.name: given[f.name] for f in fields(cls) if given.get(f.name) is not None})
        except UsageError as error:
            raise ConfigError(f"{where}: {error}") from None

    def changed(self, given: Mapping[str, Any]) -> Options:
        """These options with others in their place; UsageError for one that is unknown or cannot be meant."""
        known = {f.name for f in fields(self)}
        for name in given:
            if name not in known:
                raise UsageError(f"generation has no option {name!r}{nearest(name, known)}")
        made = self._with(given)
        if made.do_sample and made.num_beams > 1:
            raise UsageError(f"do_sample is True and num_beams {made.num_beams}, expected one of the two: beams are not sampled here")
        return made

    def _with(self, given: Mapping[str, Any]) -> Options:
        made = replace(self, **{k: getattr(Options, k) if x is None else x for k, x in given.items()})
        made._check()
        return made

    def _check(self) -> None:
        for name, (good, wanted) in RULES.items():
            if not good(getattr(self, name)):
                raise UsageError(f"{name} is {getattr(self, name)!r}, expected {wanted}")

    @property
    def greatest_only(self) -> bool:
        """Whether the word of the greatest logit is what comes next, whatever the other logits are."""
        return not self.choosing

    @property
    def choosing(self) -> list[str]:
        """The options by which something else is chosen than the word of the greatest logit."""
        ending = () if self.ends else ("min_new_tokens", "min_length")
        return [name for name in CHOOSING if name not in ending and getattr(self, name) not in (getattr(Options, name), [])]

    @property
    def ends(self) -> list[int]:
        """The ids that end a row."""
        return [] if self.eos_token_id is None else _several(self.eos_token_id)

    @property
    def pad(self) -> int | None:
        """What fills a row after its end."""
        return self.ends[0] if self.pad_token_id is None and self.ends else self.pad_token_id


def defaults(folder: Path | None, config: Mapping[str, Any]) -> Options:
    """What a checkpoint asks of generation: its generation_config.json where there is one, on top of its configuration."""
    if folder is None or not (path := folder / "generation_config.json").exists():
        return Options.read(config, {}, "config.json")
    return Options.read(config, read_json(path, "what generation is asked for"), str(path))


def warn_of_what_is_not_applied(asked: Mapping[str, Any], where: str) -> None:
    """Says which options that would change what is written are not known here."""
    if ignored := [k for k, neutral in NOT_APPLIED.items() if asked.get(k) not in (None, [], *neutral)]:
        warnings.warn(f"{where} asks for {', '.join(ignored)}, which generation here does not apply", stacklevel=5)


def _several(ids: int | Sequence[int]) -> list[int]:
    return list(ids) if isinstance(ids, (list, tuple)) else [ids]  # type: ignore[list-item]


def _ids(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(_integer(t, 0) for t in values)


def _integer(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _count(least: int) -> Rule:
    return (lambda x: _integer(x, least)), f"an integer of at least {least}"


def _share(good: Callable[[Any], bool], wanted: str) -> Rule:
    return (lambda x: _number(x) and good(x)), wanted


def _or_none(rule: Rule) -> Rule:
    return (lambda x: x is None or rule[0](x)), rule[1]


_TOKEN: Rule = (lambda x: _integer(x, 0)), "a token's id"
_TOKENS: Rule = _ids, "a list of tokens' ids"
_SOME: Rule = (lambda x: _ids(_several(x))), "a token's id or a list of them"
RULES: dict[str, Rule] = {
    "max_new_tokens": _count(1),
    "min_new_tokens": _count(0),
    "min_length": _count(0),
    "num_beams": _count(1),
    "num_assistant_tokens": _count(1),
    "top_k": (lambda x: _integer(x, 0), "an integer of at least 0, which is off"),
    "no_repeat_ngram_size": (lambda x: _integer(x, 0), "an integer of at least 0, which is off"),
    "seed": _count(0),
    "top_p": _share(lambda x: 0 <= x <= 1, "a number from 0 to 1, which is off"),
    "min_p": _or_none(_share(lambda x: 0 <= x <= 1, "a number from 0 to 1, or None")),
    "typical_p": _share(lambda x: 0 < x <= 1, "a number above 0 and up to 1, which is off"),
    "epsilon_cutoff": _share(lambda x: 0 <= x < 1, "a number from 0, which is off, to below 1"),
    "eta_cutoff": _share(lambda x: 0 <= x < 1, "a number from 0, which is off, to below 1"),
    "temperature": _share(lambda x: x > 0, "a number above 0; for the likeliest tokens leave do_sample out"),
    "repetition_penalty": _share(lambda x: x > 0, "a number above 0; 1 is off"),
    "length_penalty": (_number, "a number"),
    "early_stopping": (lambda x: x in (True, False, "never"), "True, False or 'never'"),
    "eos_token_id": _or_none(_SOME),
    "pad_token_id": _or_none(_TOKEN),
    "forced_bos_token_id": _or_none(_TOKEN),
    "forced_eos_token_id": _or_none(_SOME),
    "suppress_tokens": _TOKENS,
    "begin_suppress_tokens": _TOKENS,
    "bad_words_ids": (lambda x: isinstance(x, (list, tuple)) and all(_ids(word) and word for word in x), "lists of tokens' ids, one for each word"),
}
