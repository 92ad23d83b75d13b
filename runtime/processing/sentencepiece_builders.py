"""From a sentencepiece model file to a `tokenizers.Tokenizer`, in the manner of each kind of tokenizer that ships one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ir.errors import CheckpointError, ConfigError, MissingExtraError
from .sentencepiece_model import BPE, CONTROL, UNIGRAM, USER_DEFINED, SentencePieceModel, read_model
from .tokenizer_builders import Builder
from .tokenizer_settings import ROLES, Settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "▁"
LONGEST = 256  # characters of a piece of byte pairs: all ways to halve each are tried, and real ones have a few dozen
Pieces = list[tuple[str, float]]
Layout = Callable[[SentencePieceModel, Settings], tuple[Pieces, int]]


# -- layouts: which piece has which number; (pieces with their scores, number of the unknown piece) ------------------------------------------------


def in_order(model: SentencePieceModel, settings: Settings) -> tuple[Pieces, int]:
    """The order of the file."""
    return [(piece, score) for piece, score, _ in model.pieces], model.unk_id


def numbers_apart(model: SentencePieceModel, settings: Settings) -> tuple[Pieces, int]:
    """The order of the file; pieces such as "1," are made unlikely, because the models were trained on digits without the comma."""
    return [(piece, score - 100 if _ends_number(piece) else score) for piece, score, _ in model.pieces], model.unk_id


def _ends_number(piece: str) -> bool:
    return len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit()


def xlm_roberta(model: SentencePieceModel, settings: Settings) -> tuple[Pieces, int]:
    """fairseq's order: four special pieces instead of the file's three, and the mask last."""
    first = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    return [*first, *((piece, score) for piece, score, _ in model.pieces[3:]), ("<mask>", 0.0)], 3


def camembert(model: SentencePieceModel, settings: Settings) -> tuple[Pieces, int]:
    """CamemBERT's order: fairseq's special pieces stand before the file's, which are out of use."""
    first = [(piece, 0.0) for piece in ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>")]
    return [*first, ("<unk>NOTUSED", -100.0), *((piece, score) for piece, score, _ in model.pieces[1:]), ("<mask>", 0.0)], 3


def t5(model: SentencePieceModel, settings: Settings) -> tuple[Pieces, int]:
    """The order of the file, then the sentinels that stand for what was cut out of a text."""
    pieces, unk_id = in_order(model, settings)
    return pieces + [(f"<extra_id_{i}>", 0.0) for i in reversed(range(settings.get("extra_ids", 100)))], unk_id


# -- what happens to a text before it is cut into pieces -------------------------------------------------------------------------------------------


def _step(name: str, model: SentencePieceModel, settings: Settings) -> list[Any]:
    """The normalizers of one step; none where the settings or the model leave it out."""
    from tokenizers import Regex, normalizers

    steps = {
        "quotes": lambda: [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')],
        "accents": lambda: [] if settings["keep_accents"] else [normalizers.NFKD(), normalizers.StripAccents()],
        "case": lambda: [normalizers.Lowercase()] if settings["do_lower_case"] else [],
        "rules": lambda: [normalizers.Precompiled(model.charsmap)] if model.charsmap else [],
        "strip": lambda: [normalizers.Strip()],
        "strip end": lambda: [normalizers.Strip(left=False, right=True)],
        "one space": lambda: [normalizers.Replace(Regex(" {2,}"), " ")],
        "one mark": lambda: [normalizers.Replace(Regex(" {2,}"), SPACE)],
    }
    return steps[name]()


PLAIN = ("rules", "strip end", "one mark")
FOLDED = ("quotes", "accents", "case", "rules", "one space")
REMBERT = ("quotes", "one space", "accents", "case", "rules")
DEBERTA = ("case", "strip", "rules", "one space")


def sentencepiece(file: str, layout: Layout = in_order, steps: Sequence[str] = PLAIN) -> Builder:
    """A builder for the kinds that the reference runs with the tokenizers library, whose rules differ a little from sentencepiece's own.

    Rules for characters apply to whole graphemes, unknown characters give no bytes, and user-defined pieces are found in the text as it came.
    """

    def build(folder: Path, settings: Settings) -> Tokenizer:
        from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers

        model = read_model(folder / file)
        tokenizer = Tokenizer(_model(folder / file, model, *layout(model, settings)))
        tokenizer.add_tokens(
            [AddedToken(piece, normalized=False, special=kind == CONTROL) for piece, _, kind in model.pieces if kind in (CONTROL, USER_DEFINED)]
        )
        tokenizer.normalizer = normalizers.Sequence([normalizer for name in steps for normalizer in _step(name, model, settings)])
        # T5 alone may have words begin without a space, or only the first with one; null is "not chosen"
        prefix = "never" if settings.get("add_prefix_space") is False else "first" if settings.get("legacy") is False else "always"
        prefix = prefix if layout is t5 else "always"
        metaspace = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=prefix)
        if "split_by_punct" in settings:
            marks = [pre_tokenizers.Punctuation(behavior="isolated")] if settings["split_by_punct"] else []
            metaspace = pre_tokenizers.Sequence([*marks, metaspace])
        tokenizer.pre_tokenizer = metaspace
        tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=prefix)
        return tokenizer

    return build


def _model(path: Path, model: SentencePieceModel, pieces: Pieces, unk_id: int) -> Any:
    """The model of the tokenizers library that cuts as the file says."""
    from tokenizers import models

    if model.model_type == UNIGRAM:
        return models.Unigram(pieces, unk_id, byte_fallback=False)
    if model.model_type != BPE:
        raise ConfigError(f"{path}: sentencepiece model of kind {model.model_type}, expected {UNIGRAM} (unigram) or {BPE} (byte pairs)")
    vocabulary = {piece: number for number, (piece, _) in enumerate(pieces)}
    longest = max(len(piece) for piece in vocabulary)
    if longest > LONGEST:
        raise CheckpointError(f"{path}: a piece of {longest} characters, expected at most {LONGEST}")
    return models.BPE(vocabulary, _pairs(model, pieces), unk_token=model.unk_piece, fuse_unk=True, byte_fallback=False)


def _pairs(model: SentencePieceModel, pieces: Pieces) -> list[tuple[str, str]]:
    """The merges of a model of byte pairs, best first: a piece can be any two others put together, and the file does not say which."""
    known = {piece: number for number, (piece, _, _) in enumerate(model.pieces)}
    merges: list[tuple[float, str, str]] = []
    for piece, score in dict(pieces).items():
        halves = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        found = sorted((pair for pair in halves if pair[0] in known and pair[1] in known), key=lambda pair: (known[pair[0]], known[pair[1]]))
        merges += [(score, left, right) for left, right in found]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in merges]


# -- kinds that have no counterpart in the tokenizers library: sentencepiece cuts, the tokenizers library does the rest ----------------------------


@dataclass(frozen=True)
class _Cut:
    """A pre-tokenizer that gives sentencepiece's own pieces, each over the part of the text that it came from."""

    processor: Any

    def pre_tokenize(self, text: Any) -> None:
        """Cuts every part of a `PreTokenizedString` between special tokens."""
        text.split(self._pieces)

    def _pieces(self, number: int, part: Any) -> list[Any]:
        text, cuts = part.normalized, []
        normalized, places = self.processor.normalize(text, with_offsets=True)
        position = bytes_left = 0
        for piece in self.processor.encode(text, out_type=str):
            begin = position
            if normalized.startswith(piece, begin):
                position += len(piece)
            else:  # one byte of a character that no piece has
                bytes_left = (bytes_left or len(normalized[begin].encode())) - 1
                position += not bytes_left
            start, end = places[begin], places[max(position, begin + 1)]
            # the space that sentencepiece puts before a text has no place in it: it takes the place of the character that follows
            start, end = (start, end) if start < end else (start, start + 1) if start < len(text) else (len(text) - 1, len(text))
            cut = part[start:end]
            cut.replace(cut.normalized, piece)
            cuts.append(cut)
        return cuts


@dataclass(frozen=True)
class _Join:
    """A decoder that puts pieces together: sentencepiece does, with `special` tokens left as they are, or each mark becomes a space."""

    processor: Any
    special: frozenset[str]

    def decode_chain(self, tokens: list[str]) -> list[str]:
        """The text of a row of pieces."""
        text, run = "", []
        for token in tokens:
            if token in self.special:
                text += self.processor.decode(run) + token
                run = []
            else:
                run.append(token)
        return [(text + self.processor.decode(run)).strip()]


@dataclass(frozen=True)
class _Marks:
    """A decoder that joins pieces and turns every mark of a space into one."""

    def decode_chain(self, tokens: list[str]) -> list[str]:
        """The text of a row of pieces."""
        return ["".join(tokens).replace(SPACE, " ").strip()]


def sentencepiece_itself(file: str, layout: Layout = in_order, joined: bool = True) -> Builder:
    """A builder for the kinds that the reference runs with the sentencepiece library alone: it cuts, and joins where `joined`.

    The tokenizers library cuts most texts alike, but not all: it normalises graphemes, not longest matches, and adds scores in another precision.
    """

    def build(folder: Path, settings: Settings) -> Tokenizer:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        pieces, unk_id = layout(read_model(folder / file), settings)
        processor = _processor(folder / file)
        tokenizer = Tokenizer(models.WordLevel({piece: number for number, (piece, _) in enumerate(pieces)}, unk_token=pieces[unk_id][0]))
        tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(_Cut(processor))
        special = frozenset(str(token) for role, token in settings.items() if role in ROLES)
        tokenizer.decoder = decoders.Decoder.custom(_Join(processor, special) if joined else _Marks())
        return tokenizer

    return build


def _processor(path: Path) -> Any:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise MissingExtraError("sentencepiece", f"the tokenizer of {path}") from error
    try:
        return SentencePieceProcessor(model_proto=path.read_bytes())
    except RuntimeError as error:
        raise CheckpointError(f"{path}: not a sentencepiece model: {error}") from error
