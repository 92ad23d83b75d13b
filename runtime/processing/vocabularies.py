"""From the tokenizer files of a checkpoint to a `tokenizers.Tokenizer`: one row per kind of tokenizer that publishers ship.

Only the files are read; the reference library's class names choose the row, and its defaults apply where a file says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ir.errors import CheckpointError, ConfigError, UsageError, nearest
from .files import check_kinds, read_json, read_optional
from .sentencepiece_model import CONTROL, UNIGRAM, USER_DEFINED, read_model

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

Settings = dict[str, Any]
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SIDES = ("padding_side", "truncation_side")
SETTING_KINDS: dict[str, tuple[type, ...]] = (
    dict.fromkeys(("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "add_bos_token", "legacy"), (bool,))
    | dict.fromkeys(("tokenizer_class", "target_lang", "word_delimiter_token", "replace_word_delimiter_char", *SIDES), (str,))
    | dict.fromkeys(("model_max_length", "max_len"), (int, float))
    | {"extra_ids": (int,), "model_input_names": (list,), "additional_special_tokens": (list,)}
    | {"added_tokens_decoder": (dict,)}
)
CLIP_MERGES = 49152 - 256 - 2  # CLIP's merge table is longer than its vocabulary: what is beyond has no token


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer: its files besides tokenizer.json, how they become a tokenizer, and the defaults of its special tokens."""

    files: tuple[str, ...]
    build: Callable[[Path, Settings], Tokenizer]
    special: Mapping[str, str]
    token_types: bool = False
    character_table: bool = False


def load(folder: Path, config: Mapping[str, Any]) -> tuple[Tokenizer, Settings, Kind | None]:
    """The tokenizer of a folder, its settings (special tokens as text), and its kind (None where only tokenizer.json knows)."""
    settings = _settings(folder)
    name = _kind_name(settings, config)
    kind = KINDS.get(name)
    settings = dict(kind.special if kind else {}) | settings
    path = folder / "tokenizer.json"
    if path.is_file() and not (kind and kind.character_table):
        tokenizer = _from_json(path, settings, name)
    elif kind is None:
        raise _unknown(folder, name)
    else:
        tokenizer = _from_files(folder, settings, kind)
    _add_tokens(tokenizer, settings, name)
    return tokenizer, settings | {role: str(settings[role]) for role in ROLES if settings.get(role) is not None}, kind


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds files that a tokenizer can be read from."""
    return (folder / "tokenizer.json").is_file() or any(all((folder / f).is_file() for f in kind.files) for kind in KINDS.values())


def _kind_name(settings: Settings, config: Mapping[str, Any]) -> str:
    stated = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if not stated:
        return MODEL_TYPES.get(config.get("model_type", ""), "")
    return str(stated).removesuffix("Fast").removesuffix("Tokenizer")


def _unknown(folder: Path, name: str) -> UsageError:
    if not name:
        wanted = "\n".join(f"  {' + '.join(kind.files)}" for kind in KINDS.values())
        return UsageError(f"{folder}: no tokenizer files; expected tokenizer.json, or one of\n{wanted}\n  copy them from the original checkpoint")
    return ConfigError(
        f"{folder}: tokenizer class {name}Tokenizer cannot be read without a tokenizer.json{nearest(name, KINDS)}\n"
        "  save the tokenizer once with the library that made it (save_pretrained writes tokenizer.json)"
    )


# -- settings: tokenizer_config.json, special_tokens_map.json, added_tokens.json -------------------------------------------------------------------


def _settings(folder: Path) -> Settings:
    """The settings of the three files, checked for what they may hold."""
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
        return settings
    for key, value in read_optional(folder / "special_tokens_map.json").items():
        settings[key] = _tokens(value)
    special = {str(settings[role]) for role in ROLES if settings.get(role)} | {str(t) for t in settings.get("additional_special_tokens") or ()}
    added = sorted(read_optional(folder / "added_tokens.json").items(), key=lambda item: item[1])
    settings["added_tokens"] = [_plain_token(text, text in special) for text, _ in added]
    return settings


def _tokens(value: Any) -> Any:
    return [_token(item) for item in value] if isinstance(value, list) else _token(value)


def _token(value: Any) -> Any:
    """An AddedToken where a JSON object describes one, anything else as it is."""
    if not (isinstance(value, dict) and "content" in value):
        return value
    from tokenizers import AddedToken

    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(value["content"], **{flag: value[flag] for flag in flags if flag in value})


def _plain_token(text: str, special: bool) -> AddedToken:
    from tokenizers import AddedToken

    return AddedToken(text, special=special, normalized=not special)


def _add_tokens(tokenizer: Tokenizer, settings: Settings, name: str) -> None:
    """Make the tokens that the settings name tokens of the tokenizer: never split, and known to be special where they are."""
    extra = list(settings.get("additional_special_tokens") or ())
    if name == "T5" and not any("<extra_id_" in str(token) for token in extra):
        extra += [f"<extra_id_{i}>" for i in range(settings.get("extra_ids", 100))]
    special = [settings[role] for role in ROLES if settings.get(role) is not None] + extra
    special_texts = {str(token) for token in special}
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    listed = {str(token): token for token in settings["added_tokens"]}
    fresh = {str(token): listed.get(str(token), token) for token in special if str(token) not in known and str(token) not in listed}
    tokens = []
    for text, token in (listed | fresh).items():
        token = _plain_token(text, text in special_texts) if isinstance(token, str) else token
        token.special = token.special or text in special_texts
        tokens.append(token)
    tokenizer.add_tokens(tokens)


# -- tokenizer.json --------------------------------------------------------------------------------------------------------------------------------


def _from_json(path: Path, settings: Settings, name: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json; tokenizer_config.json overrules its casing and its prefix space, as in the reference."""
    data = read_json(path)
    check_kinds(data, dict.fromkeys(("padding", "truncation", "normalizer", "pre_tokenizer"), (dict,)), path)
    padding, truncation = data.get("padding") or {}, data.get("truncation") or {}
    data["padding"] = data["truncation"] = None  # padding and truncation are a call's business, never the file's
    for key, value in (
        ("pad_token", padding.get("pad_token")),
        ("padding_side", padding.get("direction")),
        ("truncation_side", truncation.get("direction")),
    ):
        if value is not None:
            settings.setdefault(key, value.lower() if key.endswith("_side") else value)
    normalizer, pre_tokenizer = data.get("normalizer") or {}, data.get("pre_tokenizer") or {}
    if name == "Bert" and normalizer.get("type") == "BertNormalizer":
        normalizer |= _bert_casing(settings)
    if pre_tokenizer.get("type") == "ByteLevel":
        pre_tokenizer["add_prefix_space"] = bool(settings.get("add_prefix_space", False))
    data["normalizer"], data["pre_tokenizer"] = normalizer or None, pre_tokenizer or None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(data))
    except Exception as error:
        if type(error) is not Exception:
            raise
        # the library's own class of error for every fault of the file
        raise CheckpointError(f"{path}: not a tokenizer that the tokenizers library reads: {error}") from error


def _bert_casing(settings: Settings) -> dict[str, Any]:
    return {
        "lowercase": settings.get("do_lower_case", True),
        "strip_accents": settings.get("strip_accents"),
        "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
    }


# -- the older files -------------------------------------------------------------------------------------------------------------------------------


def _from_files(folder: Path, settings: Settings, kind: Kind) -> Tokenizer:
    missing = [name for name in kind.files if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"{folder}: no {' and no '.join(missing)}; expected tokenizer.json or {' + '.join(kind.files)}\n"
            "  copy the tokenizer files from the checkpoint that this one was made from"
        )
    try:
        return kind.build(folder, settings)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{folder}: {' + '.join(kind.files)}: not UTF-8 text: {error}") from error
    except Exception as error:
        if type(error) is not Exception:
            raise
        # the library's own class of error for every fault, a merge without a token, say
        raise CheckpointError(f"{folder}: {' + '.join(kind.files)} do not make a tokenizer: {error}") from error


def _id(folder: Path, vocabulary: Mapping[str, int], token: Any) -> int:
    if str(token) not in vocabulary:
        raise CheckpointError(f"{folder}: special token {str(token)!r} is not in the vocabulary of {len(vocabulary)} tokens")
    return vocabulary[str(token)]


def _table(folder: Path) -> dict[str, int]:
    table = read_json(folder / "vocab.json")
    wrong = next((key for key, value in table.items() if not isinstance(value, int)), None)
    if wrong is not None:
        raise CheckpointError(f"{folder / 'vocab.json'}: {wrong!r} has {type(table[wrong]).__name__}, expected a token's number")
    return table


def _word_pieces(folder: Path, settings: Settings) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    settings.setdefault("clean_up_tokenization_spaces", True)  # the default of the reference's older class, which reads this file
    with (folder / "vocab.txt").open(encoding="utf-8") as lines:  # not splitlines(): a token may be an exotic line separator
        vocabulary = {line.rstrip("\n"): number for number, line in enumerate(lines)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=str(settings["unk_token"])))
    tokenizer.normalizer = normalizers.BertNormalizer(clean_text=True, **_bert_casing(settings))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = str(settings["cls_token"]), str(settings["sep_token"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[cls, "$A", sep],
        pair=[cls, "$A", sep, "$B:1", f"{sep}:1"],
        special_tokens=[(token, _id(folder, vocabulary, token)) for token in (cls, sep)],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _merges(folder: Path) -> list[tuple[str, str]]:
    path = folder / "merges.txt"
    lines = path.read_text(encoding="utf-8").split("\n")
    pairs = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    for number, pair in enumerate(pairs):
        if len(pair) != 2:
            raise CheckpointError(f"{path}: merge {number} has {len(pair)} parts, expected 2: {' '.join(pair)!r}")
    return [(left, right) for left, right in pairs]


def _byte_level(folder: Path, settings: Settings) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = _table(folder)
    tokenizer = Tokenizer(models.BPE(vocabulary, _merges(folder)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space", False)))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if settings.get("add_bos_token"):
        bos = str(settings["bos_token"])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", "$B:1"], special_tokens=[(bos, _id(folder, vocabulary, bos))]
        )
    return tokenizer


def _clip(folder: Path, settings: Settings) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary = _table(folder)
    tokenizer = Tokenizer(models.BPE(vocabulary, _merges(folder)[:CLIP_MERGES], end_of_word_suffix="</w>", unk_token=str(settings["unk_token"])))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    bos, eos = str(settings["bos_token"]), str(settings["eos_token"])
    # by position: the second parameter is called `cls` in one release of the library and `cls_token` in the next
    ends = [(token, _id(folder, vocabulary, token)) for token in (eos, bos)]
    tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    return tokenizer


def _unigram(folder: Path, settings: Settings) -> Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    model = read_model(folder / "spiece.model")
    if model.model_type != UNIGRAM:
        raise ConfigError(f"{folder / 'spiece.model'}: sentencepiece model of kind {model.model_type}, expected {UNIGRAM} (unigram), which T5 uses")
    sentinels = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(settings.get("extra_ids", 100)))]
    vocabulary = [(piece, score) for piece, score, _ in model.pieces] + sentinels
    tokenizer = Tokenizer(models.Unigram(vocabulary, model.unk_id, byte_fallback=False))
    tokenizer.add_tokens(
        [AddedToken(piece, normalized=False, special=kind == CONTROL) for piece, _, kind in model.pieces if kind in (CONTROL, USER_DEFINED)]
    )
    rules = [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
    tokenizer.normalizer = normalizers.Sequence(([normalizers.Precompiled(model.charsmap)] if model.charsmap else []) + rules)
    # null means that nothing was chosen: then words begin with a space, as sentencepiece itself has it
    prefix = "never" if settings.get("add_prefix_space") is False else "first" if settings.get("legacy") is False else "always"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prefix)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=prefix)
    eos = str(settings["eos_token"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", eos], pair=["$A", eos, "$B", eos], special_tokens=[(eos, _id(folder, {t: i for i, (t, _) in enumerate(vocabulary)}, eos))]
    )
    return tokenizer


def _characters(folder: Path, settings: Settings) -> Tokenizer:
    """One token per character, spaces as the word delimiter; multilingual tables hold one such table per language."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    path, language = folder / "vocab.json", settings.get("target_lang")
    vocabulary = read_json(path)
    if language is not None:
        if not isinstance(vocabulary.get(language), dict):
            raise ConfigError(f"{path}: no table for target_lang={language!r}{nearest(language, vocabulary)}")
        vocabulary = vocabulary[language]
    elif any(isinstance(value, dict) for value in vocabulary.values()):
        raise ConfigError(f"{path}: one table per language, and tokenizer_config.json names no target_lang; known: {', '.join(sorted(vocabulary))}")
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=str(settings["unk_token"])))
    tokenizer.normalizer = normalizers.Replace(" ", settings["word_delimiter_token"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.add_tokens([AddedToken(token, lstrip=True, rstrip=True, normalized=False) for token in vocabulary if len(token) > 1])
    return tokenizer


_END = "<|endoftext|>"
KINDS: dict[str, Kind] = {
    "Bert": Kind(
        ("vocab.txt",),
        _word_pieces,
        {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"},
        token_types=True,
    ),
    "GPT2": Kind(("vocab.json", "merges.txt"), _byte_level, {"unk_token": _END, "bos_token": _END, "eos_token": _END}),
    "CLIP": Kind(("vocab.json", "merges.txt"), _clip, {"unk_token": _END, "bos_token": "<|startoftext|>", "eos_token": _END, "pad_token": _END}),
    "T5": Kind(("spiece.model",), _unigram, {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}),
    "Wav2Vec2CTC": Kind(
        ("vocab.json",),
        _characters,
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "word_delimiter_token": "|"},
        character_table=True,
    ),
}
MODEL_TYPES = {"bert": "Bert", "gpt2": "GPT2", "clip": "CLIP", "clip_text_model": "CLIP", "t5": "T5", "wav2vec2": "Wav2Vec2CTC"}
