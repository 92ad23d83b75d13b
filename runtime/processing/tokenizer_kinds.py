"""The kinds of tokenizers that publishers ship: one row each, by the reference's class name without "Tokenizer".

A row says which files there are besides tokenizer.json, how they become a tokenizer, and the defaults that apply where a file says nothing.

Where the reference has two classes for a kind, the rows follow the newer one, on the tokenizers library, because it is what the reference's users
get and what tokenizer.json holds. The older one differs in corner cases. Word pieces: it has Python's Unicode version, hence other control
characters and accents, and Splinter's [QUESTION] written in a text is a word to it. Sentencepiece: it normalises the longest match where the newer
one normalises graphemes, drops spaces at the end of a text, adds scores in single precision, which decides between cuts that score alike ("hahaha"),
keeps accents that are not of category Mn, and leaves the quotes of RemBERT as they are. Decoded text: it puts spaces around tokens that were added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import sentencepiece_builders as pieces, tokenizer_builders as builders, word_tokenizers as words
from .tokenizer_builders import Builder, Framing, roberta_ends, templated
from .tokenizer_settings import Flags, Settings


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer.

    `defaults` holds special tokens and whatever else the settings may overrule; `flags` how special tokens are found in a text. `framing` puts
    special tokens around texts, `extra` names further ones. `overrule` applies the settings to the data of a tokenizer.json. `token_types` and
    `attention_mask` say what a model of that kind is given, `pad_type` is the token type of padding and `clean_up` whether spaces before punctuation
    go in decoded text. `fast` is False for kinds that the reference has no class for on the tokenizers library, hence no tokenizer.json: special
    tokens are found in the text as it came, stand between spaces in decoded text where the vocabulary does not have them, and of two long texts the
    first keeps the odd token. `files_first` means that a tokenizer.json holds less than the older files say.
    """

    files: tuple[str, ...]
    build: Builder
    defaults: Mapping[str, Any]
    framing: Framing | None = None
    flags: Flags = field(default_factory=dict)
    extra: Callable[[Settings], list[str]] = lambda settings: []
    overrule: Callable[[dict[str, Any], Settings], None] | None = None
    token_types: bool = False
    attention_mask: bool = True
    pad_type: int = 0
    clean_up: bool = False
    fast: bool = True
    files_first: bool = False
    character_table: bool = False


def _roles(**tokens: str) -> dict[str, Any]:
    return {f"{role}_token": token for role, token in tokens.items()}


def _sentinels(settings: Settings) -> list[str]:
    """T5's sentinels, unless the settings list their own."""
    if any("<extra_id_" in str(token) for token in settings.get("additional_special_tokens") or ()):
        return []
    return [f"<extra_id_{i}>" for i in range(settings.get("extra_ids", 100))]


_END = "<|endoftext|>"
_BERT = _roles(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")
_ROBERTA = _roles(bos="<s>", eos="</s>", sep="</s>", cls="<s>", unk="<unk>", pad="<pad>", mask="<mask>")
_ALBERT = _roles(bos="[CLS]", eos="[SEP]", unk="<unk>", sep="[SEP]", pad="<pad>", cls="[CLS]", mask="[MASK]")
_XLM = _roles(bos="<s>", unk="<unk>", sep="</s>", pad="<pad>", cls="</s>", mask="<special1>") | {
    "additional_special_tokens": [f"<special{number}>" for number in range(10)]
}
_CANINE = _roles(bos="\ue000", eos="\ue001", sep="\ue001", cls="\ue000", pad="\x00", mask="\ue003")
_BERT_ENDS = templated("{cls_token}:0 $A:0 {sep_token}:0", "{cls_token}:0 $A:0 {sep_token}:0 $B:1 {sep_token}:1")
# the kinds below frame a text with these tokens whatever the settings call them
_FIXED_BERT_ENDS = templated("[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1")
_FIXED_ROBERTA_ENDS = templated("<s>:0 $A:0 </s>:0", "<s>:0 $A:0 </s>:0 </s>:0 $B:0 </s>:0")
_ROBERTA_ENDS = templated("{cls_token}:0 $A:0 {sep_token}:0", "{cls_token}:0 $A:0 {sep_token}:0 {sep_token}:0 $B:0 {sep_token}:0")
_XLM_ENDS = templated("{bos_token}:0 $A:0 {sep_token}:0", "{bos_token}:0 $A:0 {sep_token}:0 $B:1 {sep_token}:1")

_WORD = {"lstrip": True}  # a mask stands for a word and, like a word, takes the space before it
_NORMALIZED = {"normalized": True}
_LIKE_TEXT = dict.fromkeys(("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token"), _NORMALIZED)


def _word_pieces(**options: Any) -> Kind:
    given = {"defaults": _BERT, "framing": _BERT_ENDS, "overrule": builders.overrule_casing, "token_types": True, "clean_up": True}
    return Kind(("vocab.txt",), builders.word_pieces, **given | options)


def _bytes(**options: Any) -> Kind:
    given = {"defaults": _ROBERTA, "framing": roberta_ends, "flags": _LIKE_TEXT | {"mask_token": _WORD}, "overrule": builders.overrule_offsets}
    return Kind(("vocab.json", "merges.txt"), builders.byte_level, **given | options)


def _pieces(file: str, *how: Any, **options: Any) -> Kind:
    given = {"defaults": _ALBERT, "framing": _FIXED_BERT_ENDS, "flags": {"mask_token": _WORD}, "token_types": True}
    return Kind((file,), pieces.sentencepiece(file, *how), **given | options)


def _words(build: Builder, *names: str, **options: Any) -> Kind:
    given = {"defaults": _BERT, "framing": _BERT_ENDS, "token_types": True, "fast": False}
    return Kind(names, build, **given | options)


def _folding(do_lower_case: bool, keep_accents: bool) -> dict[str, bool]:
    return {"do_lower_case": do_lower_case, "keep_accents": keep_accents}


KINDS: dict[str, Kind] = {
    # word pieces
    "Bert": _word_pieces(),
    "DistilBert": _word_pieces(token_types=False),
    "Electra": _word_pieces(),
    "ConvBert": _word_pieces(),
    "MobileBert": _word_pieces(),
    "SqueezeBert": _word_pieces(),
    "RetriBert": _word_pieces(token_types=False, clean_up=False),
    "DPRQuestionEncoder": _word_pieces(),
    "DPRContextEncoder": _word_pieces(),
    "DPRReader": _word_pieces(token_types=False),
    "Splinter": _word_pieces(
        defaults=_BERT | _roles(question="[QUESTION]"),
        framing=builders.splinter_question,
        extra=lambda settings: [str(settings["question_token"])],
        overrule=builders.overrule_casing_only,
        clean_up=False,
    ),
    "Funnel": _word_pieces(
        defaults=_roles(bos="<s>", eos="</s>", unk="<unk>", sep="<sep>", pad="<pad>", cls="<cls>", mask="<mask>"),
        framing=templated("{cls_token}:2 $A:0 {sep_token}:0", "{cls_token}:2 $A:0 {sep_token}:0 $B:1 {sep_token}:1"),
    ),
    "MPNet": _word_pieces(
        defaults=_ROBERTA | _roles(unk="[UNK]"),
        framing=templated("{cls_token}:0 $A:0 {sep_token}:0", "{cls_token}:0 $A:0 {sep_token}:0 {sep_token}:0 $B:1 {sep_token}:1"),
        flags={"mask_token": _WORD},
        overrule=builders.overrule_casing_only,
        token_types=False,
    ),
    # byte pairs over bytes
    "GPT2": _bytes(defaults=_roles(unk=_END, bos=_END, eos=_END), framing=builders.gpt2_start, flags={}, overrule=None),
    "Roberta": _bytes(),
    "Longformer": _bytes(),
    "Bart": _bytes(flags=_LIKE_TEXT | {"mask_token": _WORD | _NORMALIZED}),
    "Deberta": _bytes(
        defaults=_BERT | _roles(bos="[CLS]", eos="[SEP]"),
        framing=_FIXED_BERT_ENDS,
        flags={"mask_token": _WORD | _NORMALIZED},
        overrule=None,
        token_types=True,
    ),
    "Luke": _bytes(flags={"mask_token": _WORD}, extra=lambda settings: ["<ent>", "<ent2>"], overrule=None, fast=False),
    "CLIP": Kind(
        ("vocab.json", "merges.txt"),
        builders.clip,
        _roles(unk=_END, bos="<|startoftext|>", eos=_END, pad=_END),
        framing=builders.clip_ends,
    ),
    # sentencepiece
    "T5": _pieces(
        "spiece.model",
        pieces.t5,
        defaults=_roles(unk="<unk>", eos="</s>", pad="<pad>"),
        framing=templated("$A:0 {eos_token}:0", "$A:0 {eos_token}:0 $B:0 {eos_token}:0"),
        flags={},
        extra=_sentinels,
        token_types=False,
    ),
    "Albert": _pieces("spiece.model", pieces.numbers_apart, pieces.FOLDED, defaults=_ALBERT | _folding(True, False)),
    "FNet": _pieces(
        "spiece.model",
        pieces.numbers_apart,
        pieces.FOLDED,
        defaults=_roles(unk="<unk>", sep="[SEP]", pad="<pad>", cls="[CLS]", mask="[MASK]") | _folding(False, True),
        attention_mask=False,
    ),
    "XLNet": _pieces(
        "spiece.model",
        pieces.numbers_apart,
        pieces.FOLDED,
        defaults=_roles(bos="<s>", eos="</s>", unk="<unk>", sep="<sep>", pad="<pad>", cls="<cls>", mask="<mask>")
        | {"padding_side": "left", "additional_special_tokens": ["<eop>", "<eod>"]}
        | _folding(False, False),
        framing=templated("$A:0 <sep>:0 <cls>:2", "$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2"),
        pad_type=3,
    ),
    "RemBert": _pieces(
        "sentencepiece.model",
        pieces.in_order,
        pieces.REMBERT,
        defaults=_BERT | _roles(bos="[CLS]", eos="[SEP]") | _folding(False, True),
        flags={"mask_token": _WORD | _NORMALIZED},
    ),
    "DebertaV2": _pieces(
        "spm.model",
        pieces.in_order,
        pieces.DEBERTA,
        defaults=_BERT | _roles(bos="[CLS]", eos="[SEP]") | {"do_lower_case": False, "split_by_punct": False},
        flags={"unk_token": _NORMALIZED},
    ),
    "BigBird": _pieces(
        "spiece.model",
        defaults=_ROBERTA | _roles(sep="[SEP]", mask="[MASK]", cls="[CLS]"),
        flags=_LIKE_TEXT | {"mask_token": _WORD | _NORMALIZED},
        token_types=False,
    ),
    "XLMRoberta": _pieces("sentencepiece.bpe.model", pieces.xlm_roberta, defaults=_ROBERTA, framing=_FIXED_ROBERTA_ENDS, token_types=False),
    "Camembert": _pieces(
        "sentencepiece.bpe.model",
        pieces.camembert,
        defaults=_ROBERTA | {"additional_special_tokens": ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"]},
        framing=_FIXED_ROBERTA_ENDS,
        token_types=False,
    ),
    "BertGeneration": Kind(
        ("spiece.model",),
        pieces.sentencepiece_itself("spiece.model"),
        _roles(bos="<s>", eos="</s>", unk="<unk>", pad="<pad>", sep="<::::>"),
        fast=False,
    ),
    "MLuke": Kind(
        ("sentencepiece.bpe.model",),
        pieces.sentencepiece_itself("sentencepiece.bpe.model", pieces.xlm_roberta, joined=False),
        _ROBERTA,
        framing=_ROBERTA_ENDS,
        flags={"mask_token": _WORD},
        extra=lambda settings: ["<ent>", "<ent2>"],
        fast=False,
    ),
    # words cut in Python
    "XLM": _words(words.xlm, "vocab.json", "merges.txt", defaults=_XLM, framing=_XLM_ENDS),
    "Flaubert": _words(words.flaubert, "vocab.json", "merges.txt", defaults=_XLM, framing=_XLM_ENDS),
    "Bertweet": _words(words.bertweet, "vocab.txt", "bpe.codes", defaults=_ROBERTA, framing=_ROBERTA_ENDS),
    "Phobert": _words(words.phobert, "vocab.txt", "bpe.codes", defaults=_ROBERTA, framing=_ROBERTA_ENDS),
    "RoFormer": _words(words.roformer, "vocab.txt", fast=True, files_first=True),
    "Canine": _words(words.canine, defaults=_CANINE, flags={"mask_token": _WORD}),
    # characters
    "Wav2Vec2CTC": Kind(
        ("vocab.json",),
        builders.characters,
        _roles(unk="<unk>", bos="<s>", eos="</s>", pad="<pad>", word_delimiter="|"),
        character_table=True,
    ),
}

# the kind of a model's tokenizer where no file names it
MODEL_TYPES = {
    "albert": "Albert",
    "bart": "Bart",
    "bert": "Bert",
    "bert-generation": "BertGeneration",
    "bertweet": "Bertweet",
    "big_bird": "BigBird",
    "camembert": "Camembert",
    "clip": "CLIP",
    "clip_text_model": "CLIP",
    "canine": "Canine",
    "convbert": "ConvBert",
    "data2vec-text": "Roberta",
    "deberta": "Deberta",
    "deberta-v2": "DebertaV2",
    "distilbert": "DistilBert",
    "dpr": "DPRQuestionEncoder",
    "electra": "Electra",
    "flaubert": "Flaubert",
    "fnet": "FNet",
    "funnel": "Funnel",
    "gpt2": "GPT2",
    "ibert": "Roberta",
    "longformer": "Longformer",
    "luke": "Luke",
    "megatron-bert": "Bert",
    "mobilebert": "MobileBert",
    "mpnet": "MPNet",
    "nystromformer": "Albert",
    "phobert": "Phobert",
    "qdqbert": "Bert",
    "rembert": "RemBert",
    "retribert": "RetriBert",
    "roberta": "Roberta",
    "roformer": "RoFormer",
    "splinter": "Splinter",
    "squeezebert": "SqueezeBert",
    "t5": "T5",
    "wav2vec2": "Wav2Vec2CTC",
    "xlm": "XLM",
    "xlm-roberta": "XLMRoberta",
    "xlm-roberta-xl": "XLMRoberta",
    "xlnet": "XLNet",
    "yoso": "Albert",
}
