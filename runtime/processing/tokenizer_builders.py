"""From vocabulary files to a `tokenizers.Tokenizer`: word pieces, byte-level byte pairs, character tables; and what frames a text.

A builder takes the folder and the settings; what is put around one text or two (`templated`, `roberta_ends`) is set once all tokens are known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ir.errors import CheckpointError, ConfigError, nearest
from .files import read_json
from .tokenizer_settings import Settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Builder = Callable[[Path, Settings], "Tokenizer"]
Framing = Callable[[Path, "Tokenizer", Settings], Any]
CLIP_MERGES = 49152 - 256 - 2  # CLIP's merge table is longer than its vocabulary: what is beyond has no token


def token_id(folder: Path, tokenizer: Tokenizer, token: str) -> int:
    """The number of a token that the tokenizer cannot do without; CheckpointError where it has none."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise CheckpointError(f"{folder}: special token {token!r} is not in the vocabulary of {tokenizer.get_vocab_size()} tokens")
    return number


def framing_ids(folder: Path, tokenizer: Tokenizer, settings: Settings, tokens: Sequence[str]) -> list[tuple[str, int]]:
    """Tokens with their numbers; CheckpointError for one that is neither in the vocabulary nor among the tokens that the files add to it."""
    listed = {str(token) for token in settings["added_tokens"]}
    lost = next((token for token in tokens if token not in listed and tokenizer.model.token_to_id(token) is None), None)
    if lost is not None:
        raise CheckpointError(f"{folder}: special token {lost!r} is not in the vocabulary of {tokenizer.get_vocab_size()} tokens")
    return [(token, token_id(folder, tokenizer, token)) for token in tokens]


def role_token(folder: Path, settings: Settings, role: str) -> str:
    """The token that has a role; ConfigError where the settings say that there is none."""
    if settings.get(role) is None:
        raise ConfigError(f"{folder / 'tokenizer_config.json'}: no {role}, which this kind of tokenizer puts around a text")
    return str(settings[role])


# -- framing: the special tokens around one text or two --------------------------------------------------------------------------------------------


def templated(single: str, pair: str) -> Framing:
    """Framing by templates such as "{cls_token} $A {sep_token}"; a role in braces is the token that the settings name, `:1` a token type."""

    def frame(folder: Path, tokenizer: Tokenizer, settings: Settings) -> Any:
        from tokenizers import processors

        roles = {role: role_token(folder, settings, role) for role in re.findall(r"{(\w+)}", pair)}
        parts = [[part.format_map(roles) for part in template.split()] for template in (single, pair)]
        tokens = dict.fromkeys(part.rpartition(":")[0] or part for template in parts for part in template if not part.startswith("$"))
        numbers = framing_ids(folder, tokenizer, settings, list(tokens))
        return processors.TemplateProcessing(single=parts[0], pair=parts[1], special_tokens=numbers)

    return frame


def splinter_question(folder: Path, tokenizer: Tokenizer, settings: Settings) -> Any:
    """Splinter marks where its question ends; the question is the first text, or the second of a tokenizer that pads on the left."""
    ends = "{question_token}:0 .:0" if settings.get("padding_side", "right") == "right" else ""
    starts = "" if ends else "{question_token}:0 .:0"
    pair = f"{{cls_token}}:0 $A:0 {ends} {{sep_token}}:0 $B:1 {starts} {{sep_token}}:1"
    return templated("{cls_token}:0 $A:0 {sep_token}:0", pair)(folder, tokenizer, settings)


def roberta_ends(folder: Path, tokenizer: Tokenizer, settings: Settings) -> Any:
    """RoBERTa's framing, which also takes the space before a word out of the word's offsets."""
    from tokenizers import processors

    # by position: the second parameter is called `cls` in one release of the library and `cls_token` in the next
    tokens = [role_token(folder, settings, role) for role in ("sep_token", "cls_token")]
    ends = framing_ids(folder, tokenizer, settings, tokens)
    return processors.RobertaProcessing(
        *ends, trim_offsets=settings.get("trim_offsets", True), add_prefix_space=bool(settings.get("add_prefix_space", False))
    )


def gpt2_start(folder: Path, tokenizer: Tokenizer, settings: Settings) -> Any:
    """GPT-2's framing: nothing, or a token of beginning where the settings ask for one."""
    from tokenizers import processors

    if settings.get("add_bos_token"):
        return templated("{bos_token}:0 $A:0", "{bos_token}:0 $A:0 $B:1")(folder, tokenizer, settings)
    return processors.ByteLevel(trim_offsets=False)


def clip_ends(folder: Path, tokenizer: Tokenizer, settings: Settings) -> Any:
    """CLIP's framing: a token of beginning and one of end."""
    from tokenizers import processors

    tokens = [role_token(folder, settings, role) for role in ("eos_token", "bos_token")]
    ends = framing_ids(folder, tokenizer, settings, tokens)
    return processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)


# -- what tokenizer_config.json overrules in a tokenizer.json --------------------------------------------------------------------------------------


def casing(settings: Settings) -> dict[str, Any]:
    """The options of BERT's normaliser that the settings choose."""
    return {
        "lowercase": settings.get("do_lower_case", True),
        "strip_accents": settings.get("strip_accents"),
        "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
    }


def overrule_casing(data: dict[str, Any], settings: Settings) -> None:
    """Casing, accents and Chinese characters as the settings have them."""
    if (data.get("normalizer") or {}).get("type") == "BertNormalizer":
        data["normalizer"] |= casing(settings)


def overrule_casing_only(data: dict[str, Any], settings: Settings) -> None:
    """Casing and accents; MPNet and Splinter leave Chinese characters to the file unless one of the two differs, and then too."""
    if (data.get("normalizer") or {}).get("type") == "BertNormalizer":
        data["normalizer"] |= {key: value for key, value in casing(settings).items() if key != "handle_chinese_chars"}


def overrule_offsets(data: dict[str, Any], settings: Settings) -> None:
    """Where words begin, for the kinds that have RoBERTa's framing."""
    framing = data.get("post_processor") or {}
    chosen = {"trim_offsets": settings.get("trim_offsets", True), "add_prefix_space": settings.get("add_prefix_space", False)}
    framing |= {key: value for key, value in chosen.items() if key in framing}


# -- vocab.txt -------------------------------------------------------------------------------------------------------------------------------------


def word_pieces(folder: Path, settings: Settings) -> Tokenizer:
    """BERT's word pieces, one on each line of vocab.txt."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    with (folder / "vocab.txt").open(encoding="utf-8") as lines:  # not splitlines(): a token may be an exotic line separator
        vocabulary = {line.rstrip("\n"): number for number, line in enumerate(lines)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=str(settings["unk_token"])))
    tokenizer.normalizer = normalizers.BertNormalizer(clean_text=True, **casing(settings))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


# -- vocab.json and merges.txt ---------------------------------------------------------------------------------------------------------------------


def _table(folder: Path) -> dict[str, int]:
    table = read_json(folder / "vocab.json")
    wrong = next((key for key, value in table.items() if not isinstance(value, int)), None)
    if wrong is not None:
        raise CheckpointError(f"{folder / 'vocab.json'}: {wrong!r} has {type(table[wrong]).__name__}, expected a token's number")
    return table


def _merges(folder: Path) -> list[tuple[str, str]]:
    path = folder / "merges.txt"
    lines = path.read_text(encoding="utf-8").split("\n")
    pairs = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    for number, pair in enumerate(pairs):
        if len(pair) != 2:
            raise CheckpointError(f"{path}: merge {number} has {len(pair)} parts, expected 2: {' '.join(pair)!r}")
    return [(left, right) for left, right in pairs]


def byte_level(folder: Path, settings: Settings) -> Tokenizer:
    """GPT-2's byte pairs over bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(_table(folder), _merges(folder), continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space", False)))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def clip(folder: Path, settings: Settings) -> Tokenizer:
    """CLIP's byte pairs over bytes, in lower case, with a mark at the end of each word."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    merges = _merges(folder)[:CLIP_MERGES]
    tokenizer = Tokenizer(models.BPE(_table(folder), merges, end_of_word_suffix="</w>", unk_token=str(settings["unk_token"])))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


# -- vocab.json alone ------------------------------------------------------------------------------------------------------------------------------


def characters(folder: Path, settings: Settings) -> Tokenizer:
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
