"""From the tokenizer files of a checkpoint to a `tokenizers.Tokenizer`.

Only the files are read; the reference library's class names choose the kind (`tokenizer_kinds`), whose defaults apply where a file says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ir.errors import CheckpointError, ConfigError, UsageError, nearest
from .files import check_kinds, read_json
from .tokenizer_kinds import KINDS, MODEL_TYPES, Kind
from .tokenizer_settings import ROLES, Settings, add_tokens, flagged, read_settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load(folder: Path, config: Mapping[str, Any]) -> tuple[Tokenizer, Settings, Kind | None]:
    """The tokenizer of a folder, its settings (special tokens as text), and its kind (None where only tokenizer.json knows)."""
    stated = read_settings(folder)
    name = _kind_name(stated, config)
    kind = KINDS.get(name)
    settings = dict(kind.defaults if kind else {}) | stated
    path = folder / "tokenizer.json"
    if path.is_file() and (kind is None or (kind.fast and not kind.files_first) or not (kind.character_table or _has_files(folder, kind))):
        tokenizer = _from_json(path, settings, stated, kind)
        settings = _with_json_flags(tokenizer, settings, stated, kind)
        add_tokens(tokenizer, settings, kind.extra(settings) if kind else [])
    elif kind is None:
        raise _unknown(folder, name)
    else:
        settings = flagged({"clean_up_tokenization_spaces": kind.clean_up} | settings, kind.flags)
        tokenizer = _from_files(folder, settings, kind)
    return tokenizer, settings | {role: str(settings[role]) for role in ROLES if settings.get(role) is not None}, kind


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds files that a tokenizer can be read from."""
    return (folder / "tokenizer.json").is_file() or any(kind.files and _has_files(folder, kind) for kind in KINDS.values())


def _has_files(folder: Path, kind: Kind) -> bool:
    return all((folder / name).is_file() for name in kind.files)


def _kind_name(settings: Settings, config: Mapping[str, Any]) -> str:
    stated = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if not stated:
        return MODEL_TYPES.get(config.get("model_type", ""), "")
    return str(stated).removesuffix("Fast").removesuffix("Tokenizer")


def _unknown(folder: Path, name: str) -> UsageError:
    if not name:
        wanted = "\n".join(f"  {files}" for files in dict.fromkeys(" + ".join(kind.files) for kind in KINDS.values()) if files)
        return UsageError(f"{folder}: no tokenizer files; expected tokenizer.json, or one of\n{wanted}\n  copy them from the original checkpoint")
    return ConfigError(
        f"{folder}: tokenizer class {name}Tokenizer cannot be read without a tokenizer.json{nearest(name, KINDS)}\n"
        "  save the tokenizer once with the library that made it (save_pretrained writes tokenizer.json)"
    )


def _from_json(path: Path, settings: Settings, stated: Settings, kind: Kind | None) -> Tokenizer:
    """The tokenizer of a tokenizer.json; tokenizer_config.json overrules parts of it, as in the reference."""
    data = read_json(path)
    check_kinds(data, dict.fromkeys(("padding", "truncation", "normalizer", "pre_tokenizer", "post_processor"), (dict,)), path)
    padding, truncation = data.get("padding") or {}, data.get("truncation") or {}
    data["padding"] = data["truncation"] = None  # padding and truncation are a call's business, never the file's
    if padding.get("pad_token") is not None:
        settings.setdefault("pad_token", padding["pad_token"])
    for key, side in (("padding_side", padding.get("direction")), ("truncation_side", truncation.get("direction"))):
        if side is not None and key not in stated:
            settings[key] = side.lower()
    if (data.get("pre_tokenizer") or {}).get("type") == "ByteLevel":
        data["pre_tokenizer"]["add_prefix_space"] = bool(settings.get("add_prefix_space", False))
    if kind and kind.overrule:
        kind.overrule(data, settings)
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(data))
    except Exception as error:
        if type(error) is not Exception:
            raise
        # the library's own class of error for every fault of the file
        raise CheckpointError(f"{path}: not a tokenizer that the tokenizers library reads: {error}") from error


def _with_json_flags(tokenizer: Tokenizer, settings: Settings, stated: Settings, kind: Kind | None) -> Settings:
    """The settings with special tokens as the reference has them beside a tokenizer.json.

    Tokens that the settings name by their text alone, or only in the older files, are those of tokenizer.json; the kind's flags are for its defaults,
    and of them only the space before a token counts here.
    """
    flags = {role: {"lstrip": True} for role, given in (kind.flags if kind else {}).items() if given.get("lstrip")}
    if "added_tokens_decoder" in stated:
        return flagged(settings, flags)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    kept = {role: str(stated[role]) for role in ROLES if str(stated.get(role)) in known}
    added = [token for token in settings["added_tokens"] if str(token) not in known]
    return flagged(settings, {role: given for role, given in flags.items() if role not in kept}) | kept | {"added_tokens": added}


def _from_files(folder: Path, settings: Settings, kind: Kind) -> Tokenizer:
    missing = [name for name in kind.files if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"{folder}: no {' and no '.join(missing)}; expected tokenizer.json or {' + '.join(kind.files)}\n"
            "  copy the tokenizer files from the checkpoint that this one was made from"
        )
    try:
        tokenizer = kind.build(folder, settings)
        add_tokens(tokenizer, settings, kind.extra(settings), as_written=not kind.fast)
        if kind.framing:
            tokenizer.post_processor = kind.framing(folder, tokenizer, settings)
        return tokenizer
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{folder}: {' + '.join(kind.files)}: not UTF-8 text: {error}") from error
    except Exception as error:
        if type(error) is not Exception:
            raise
        # the library's own class of error for every fault, a merge without a token, say
        raise CheckpointError(f"{folder}: {' + '.join(kind.files)} do not make a tokenizer: {error}") from error
