"""What the small files beside a vocabulary say: tokenizer_config.json, special_tokens_map.json and added_tokens.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ir.errors import CheckpointError, ConfigError
from .files import check_kinds, read_optional

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

Settings = dict[str, Any]
Flags = Mapping[str, Mapping[str, bool]]
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SIDES = ("padding_side", "truncation_side")
_FLAGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "add_bos_token", "legacy", "keep_accents", "split_by_punct")
_TEXTS = ("tokenizer_class", "target_lang", "word_delimiter_token", "replace_word_delimiter_char", *SIDES)
SETTING_KINDS: dict[str, tuple[type, ...]] = (
    dict.fromkeys((*_FLAGS, "trim_offsets", "clean_up_tokenization_spaces"), (bool,))
    | dict.fromkeys(_TEXTS, (str,))
    | dict.fromkeys(("model_max_length", "max_len"), (int, float))
    | {"extra_ids": (int,), "model_input_names": (list,), "additional_special_tokens": (list,)}
    | {"added_tokens_decoder": (dict,)}
)


def read_settings(folder: Path) -> Settings:
    """The settings of the three files, checked for what they may hold; tokens with flags are AddedTokens, `added_tokens` lists those to add."""
    source = folder / "tokenizer_config.json"
    # null is "no such token" for a special token, "not chosen" for everything else
    settings = {key: value for key, value in read_optional(source).items() if value is not None or key in ROLES}
    check_kinds(settings, SETTING_KINDS, source)
    try:
        settings = _merged(folder, settings)
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{source}: the tokens that it or a file beside it lists are malformed: {error}") from error
    from tokenizers import AddedToken

    check_kinds(settings, dict.fromkeys(ROLES, (str, AddedToken)), source)
    extra = {f"additional_special_tokens[{i}]": token for i, token in enumerate(settings.get("additional_special_tokens") or ())}
    check_kinds(extra, dict.fromkeys(extra, (str, AddedToken)), source)
    side = next((name for name in SIDES if settings.get(name) not in (None, "left", "right")), None)
    if side:
        raise ConfigError(f"{source}: {side}={settings[side]!r}, expected 'left' or 'right'")
    return settings


def _merged(folder: Path, settings: Settings) -> Settings:
    """tokenizer_config.json, with the two older files merged in where it does not list the added tokens itself."""
    settings = {key: _tokens(value) for key, value in settings.items()}
    if "added_tokens_decoder" in settings:
        settings["added_tokens"] = [_token(value) for _, value in sorted(settings["added_tokens_decoder"].items(), key=lambda item: int(item[0]))]
        listed = {str(token): token for token in settings["added_tokens"]}
        return {key: listed.get(str(value), value) if key in ROLES and value is not None else value for key, value in settings.items()}
    for key, value in read_optional(folder / "special_tokens_map.json").items():
        settings[key] = _tokens(value, special=True)
    special = {str(settings[role]) for role in ROLES if settings.get(role)} | {str(t) for t in settings.get("additional_special_tokens") or ()}
    added = sorted(read_optional(folder / "added_tokens.json").items(), key=lambda item: item[1])
    settings["added_tokens"] = [plain_token(text, text in special) for text, _ in added]
    return settings


def _tokens(value: Any, **flags: bool) -> Any:
    return [_token(item, **flags) for item in value] if isinstance(value, list) else _token(value, **flags)


def _token(value: Any, **flags: bool) -> Any:
    """An AddedToken where a JSON object describes one, anything else as it is."""
    if not (isinstance(value, dict) and "content" in value):
        return value
    from tokenizers import AddedToken

    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(value["content"], **{name: value[name] for name in names if name in value} | flags)


def plain_token(text: str, special: bool, **flags: bool) -> AddedToken:
    """A token that is matched in the text as it came where it is special, in the normalised text where it is a word like others."""
    from tokenizers import AddedToken

    return AddedToken(text, **{"special": special, "normalized": not special} | flags)


def flagged(settings: Settings, flags: Flags) -> Settings:
    """The settings with special tokens that are plain text made tokens with the flags that their kind gives that role."""
    made = {role: plain_token(settings[role], True, **given) for role, given in flags.items() if isinstance(settings.get(role), str)}
    return settings | made


def add_tokens(tokenizer: Tokenizer, settings: Settings, extra: Iterable[str], as_written: bool = False) -> None:
    """Make the tokens that the settings name tokens of the tokenizer: never split, and known to be special where they are.

    `extra` are further special tokens; `as_written` has every token found in the text as it came, before any normalisation.
    """
    listed_extra = list(settings.get("additional_special_tokens") or ())
    listed_extra += [text for text in extra if text not in {str(token) for token in listed_extra}]
    special = [settings[role] for role in ROLES if settings.get(role) is not None] + listed_extra
    special_texts = {str(token) for token in special}
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokens: dict[str, Any] = {str(token): token for token in settings["added_tokens"]}
    for token in special:
        text = str(token)
        # a token that the settings describe with its flags replaces the one there was, one that they only name does not
        if not isinstance(token, str) or (text not in tokens and text not in known):
            tokens[text] = token
    made = []
    for text, token in tokens.items():
        token = plain_token(text, text in special_texts) if isinstance(token, str) else token
        token.special = token.special or text in special_texts
        if as_written:
            token = plain_token(text, token.special, single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False)
        made.append(token)
    tokenizer.add_tokens(made)
