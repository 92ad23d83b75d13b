"""What generation is asked for: the parameters of the reference's `generate`, and what a checkpoint says of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...checkpoints.files import read_json
from ...ir.errors import ConfigError, UsageError, nearest

# what generation_config.json may also ask for and is not applied, with the values that ask for nothing
NOT_APPLIED: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (),
    "begin_suppress_tokens": (),
    "diversity_penalty": (0.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "exponential_decay_length_penalty": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1.0,),
    "min_length": (0,),
    "min_p": (),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0.0,),
    "sequence_bias": (),
    "suppress_tokens": (),
    "typical_p": (1.0,),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Parameters of generation, named as the reference's.

    `eos_token_id` ends a row (one id or several), `pad_token_id` fills what comes after it, by default the first end. Rows of beams end by
    `early_stopping`: False as soon as none is likely to get better, True when there are enough ended ones, "never" when none can get better.
    An assistant guesses `num_assistant_tokens` at a time.
    """

    max_new_tokens: int = 20
    min_new_tokens: int = 0
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    decoder_start_token_id: int | None = None
    num_assistant_tokens: int = 5
    seed: int = 0

    @classmethod
    def read(cls, config: Mapping[str, Any], generation: Mapping[str, Any], where: str = "generation_config.json") -> Options:
        """The defaults of a checkpoint: what generation_config.json says, and the special tokens of config.json. Warns of what is not applied."""
        tokens = {k: config.get(k) for k in ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")}
        given = tokens | {k: v for k, v in generation.items() if v is not None}
        if given["decoder_start_token_id"] is None:
            given["decoder_start_token_id"] = given["bos_token_id"]
        if ignored := [k for k, neutral in NOT_APPLIED.items() if generation.get(k) not in (None, [], *neutral)]:
            warnings.warn(f"{where} asks for {', '.join(ignored)}, which generation here does not apply", stacklevel=4)
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
        made = replace(self, **given)
        made._check()
        return made

    def _check(self) -> None:
        rules = {
            "max_new_tokens": (_integer(self.max_new_tokens, 1), "an integer of at least 1"),
            "min_new_tokens": (_integer(self.min_new_tokens, 0), "an integer of at least 0"),
            "num_beams": (_integer(self.num_beams, 1), "an integer of at least 1"),
            "num_assistant_tokens": (_integer(self.num_assistant_tokens, 1), "an integer of at least 1"),
            "top_k": (_integer(self.top_k, 0), "an integer of at least 0, which is off"),
            "seed": (_integer(self.seed, 0), "an integer of at least 0"),
            "top_p": (_number(self.top_p) and 0 <= self.top_p <= 1, "a number from 0 to 1, which is off"),
            "temperature": (_number(self.temperature) and self.temperature > 0, "a number above 0; for the likeliest tokens leave do_sample out"),
            "repetition_penalty": (_number(self.repetition_penalty) and self.repetition_penalty > 0, "a number above 0; 1 is off"),
            "length_penalty": (_number(self.length_penalty), "a number"),
            "early_stopping": (self.early_stopping in (True, False, "never"), "True, False or 'never'"),
            "eos_token_id": (all(_integer(t, 0) for t in self.ends), "a token's id or a list of them"),
            "pad_token_id": (self.pad_token_id is None or _integer(self.pad_token_id, 0), "a token's id"),
        }
        for name, (good, wanted) in rules.items():
            if not good:
                raise UsageError(f"{name} is {getattr(self, name)!r}, expected {wanted}")

    @property
    def greatest_only(self) -> bool:
        """Whether the word of the greatest logit is what comes next, whatever the other logits are."""
        return self.num_beams == 1 and not self.do_sample and self.repetition_penalty == 1 and not (self.min_new_tokens and self.ends)

    @property
    def ends(self) -> list[int]:
        """The ids that end a row."""
        return [] if self.eos_token_id is None else list(self.eos_token_id) if isinstance(self.eos_token_id, (list, tuple)) else [self.eos_token_id]

    @property
    def pad(self) -> int | None:
        """What fills a row after its end."""
        return self.ends[0] if self.pad_token_id is None and self.ends else self.pad_token_id


def defaults(folder: Path | None, config: Mapping[str, Any]) -> Options:
    """What a checkpoint asks of generation: its generation_config.json where there is one, on top of its configuration."""
    if folder is None or not (path := folder / "generation_config.json").exists():
        return Options.read(config, {}, "config.json")
    return Options.read(config, read_json(path, "what generation is asked for"), str(path))


def _integer(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
