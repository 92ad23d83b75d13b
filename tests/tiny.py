"""Tiny configurations and random inputs for every text encoder, by the names of fields and of inputs; what a table cannot know stands in OWN.

A card's rows (`derived_rows`) come from its `Config` fields, its heads and their input types: a new architecture needs an entry in OWN only
where its sizes constrain one another or an input means something special.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from interlingua.ir.card import Card
from interlingua.ir.config import Config

Arrays = dict[str, np.ndarray]

# field -> its values at sizes A and B; a field of another name is found through the card's `aliases`
SIZES: dict[str, tuple[Any, Any]] = {
    "vocab_size": (99, 67),
    "hidden_size": (32, 24),
    "num_hidden_layers": (2, 3),
    "num_attention_heads": (4, 2),
    "intermediate_size": (37, 50),
    "embedding_size": (16, 12),
    "type_vocab_size": (3, 2),
    "max_position_embeddings": (64, 40),
    "num_labels": (5, 3),
    "hidden_dim": (37, 50),  # DistilBERT's inner width
    "d_inner": (37, 50),
    "projection_dim": (16, 0),  # none at B
}
# name of an axis -> its length at A and B; no two lengths of a model are equal by chance, for `Case.live` finds the padded axis by its length
AXES: dict[str, tuple[int, int]] = {
    "batch": (4, 3),
    "choices": (2, 3),
    "seq": (9, 13),
    "keys": (9, 13),
    "memory": (7, 6),
    "entities": (3, 3),
    "mentions": (5, 5),
    "targets": (2, 2),
    "questions": (2, 2),
}
# given as labels are: only for a loss
LABELS = ("labels", "start_positions", "end_positions", "next_sentence_label", "sentence_order_label", "entity_labels")
LABELS += ("is_impossible", "cls_index", "mc_labels")
# never given at A or B, but by rows of their own
RARE = ("inputs_embeds", "position_ids", "encoder_hidden_states", "encoder_attention_mask", "head_mask", "input_mask")
# heads whose loss needs no labels
ALWAYS_LOSS = ("RetriBertModel",)
BINARY = ("next_sentence_label", "sentence_order_label", "is_impossible", "p_mask", "mc_labels")
_PLACES = "max_position_embeddings"


@dataclass
class Draw:
    """What an input is drawn from: the configuration, the head, and the inputs drawn before it."""

    config: Config
    head: str
    rng: np.random.Generator
    own: Own
    options: Mapping[str, Any]
    made: Arrays = field(default_factory=dict)

    def ids(self, shape: tuple[int, ...]) -> np.ndarray:
        """Token ids, none of which has a meaning of its own."""
        low, high = self.own.ids or (5, self.config.vocab_size)
        special = [v for f in dataclasses.fields(self.config) if f.name.endswith("token_id") and isinstance(v := getattr(self.config, f.name), int)]
        return self.rng.choice(np.setdiff1d(np.arange(low, high), special), shape)

    def mask(self, shape: tuple[int, ...], count: int = 3) -> np.ndarray:
        """i64, 0 for the first or last `count` of the last row of the batch."""
        mask, side = np.ones(shape, np.int64), self.options.get("pad", "right")
        if side != "none" and shape[-1] > count and shape[0] > 1:
            mask[-1, ..., slice(-count, None) if side == "right" else slice(0, count)] = 0
        return mask


@dataclass(frozen=True)
class Own:
    """What a model has of its own; keys that name heads are endings of class names.

    `config` fields at A and B, `heads` fields of some heads; `lengths` of sequences and `pad` sides at A and B ("none": unpadded); `axes` lengths;
    `ids` the range of token ids; `draw` inputs by name; `adjust` changes what was drawn; `give` inputs that a head gets at A too, `leave_out` those
    that it never gets;
    `edge` options of the shortest input; `vary` the other values that a field is tried with (none: not varied), `beside` what must change with it;
    `skip` heads and why they have no rows; `silent` values of fields with which the reference fails to give attention weights; `repair` what holds
    while the reference runs.
    """

    config: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    heads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lengths: tuple[int, int] = (9, 13)
    pad: tuple[str, str] = ("right", "left")
    axes: Mapping[str, int] = field(default_factory=dict)
    ids: tuple[int, int] | None = None
    draw: Mapping[str, Callable[[Draw, tuple[int, ...]], np.ndarray]] = field(default_factory=dict)
    adjust: Callable[[Draw], None] = lambda d: None
    give: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    leave_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    edge: Mapping[str, Any] = field(default_factory=dict)
    vary: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    skip: Mapping[str, str] = field(default_factory=dict)
    silent: Mapping[str, Any] = field(default_factory=dict)
    repair: Callable[[], AbstractContextManager[None]] = nullcontext

    def given(self, head: str) -> list[str]:
        """Inputs that a head gets at both sizes."""
        return [k for ending, names in self.give.items() if head.endswith(ending) for k in names]

    def left_out(self, head: str) -> list[str]:
        """Inputs that a head never gets."""
        return [k for ending, names in self.leave_out.items() if head.endswith(ending) for k in names]

    def skipped(self, head: str) -> str:
        """Why a head has no rows, or nothing."""
        return next((reason for ending, reason in self.skip.items() if head.endswith(ending)), "")


def _attention_mask(d: Draw, shape: tuple[int, ...]) -> np.ndarray:
    mask = d.mask(shape, d.options.get("pad_count", 3))
    if "input_ids" in d.made:
        d.made["input_ids"][mask == 0] = d.config.pad_token_id or 0
    return mask


def _segments(d: Draw, shape: tuple[int, ...]) -> np.ndarray:
    return d.rng.integers(0, max(1, getattr(d.config, "type_vocab_size", 2)), shape)


def _token_labels(d: Draw, shape: tuple[int, ...]) -> np.ndarray:
    """Two thirds of the unpadded tokens that follow an unpadded one have a label, the others -100, on whichever side padding is."""
    if d.head.endswith(("ElectraForPreTraining", "FunnelForPreTraining")):
        return d.rng.integers(0, 2, shape)
    count = (
        d.config.labels
        if d.head.endswith(("ForTokenClassification", "ForEntitySpanClassification"))
        else d.own.ids[1]
        if d.own.ids
        else d.config.vocab_size
    )
    live = d.made.get("attention_mask", np.ones(shape)) == 1
    live = live if live.shape == shape else np.ones(shape, bool)  # of entities or of targets
    live[..., 1:] &= live[..., :-1].copy()
    chosen = d.rng.random(shape) < 0.67
    chosen[..., -2:] = chosen[..., 1:2] = True
    return np.where(live & chosen, d.rng.integers(0, count, shape), -100)


def _labels(d: Draw, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype.startswith("f"):
        binary = d.config.problem_type == "multi_label_classification"
        return (d.rng.random(shape) < 0.5).astype(np.float32) if binary else d.rng.standard_normal(shape, np.float32)
    if len(shape) > 1:
        return _token_labels(d, shape)
    if d.head.endswith("ForMultipleChoice"):
        return d.rng.integers(0, d.made["input_ids"].shape[1], shape)
    return d.rng.integers(0, 2 if d.head.endswith("ForNextSentencePrediction") else d.config.labels, shape)


def _length(d: Draw) -> int:
    return d.made["input_ids" if "input_ids" in d.made else "inputs_embeds"].shape[-1 if "input_ids" in d.made else -2]


def _last_live(d: Draw, shape: tuple[int, ...]) -> np.ndarray:
    mask = d.made.get("attention_mask")
    return np.full(shape, _length(d) - 1) if mask is None else mask.shape[-1] - 1 - mask[..., ::-1].argmax(-1)


def _positions(d: Draw, shape: tuple[int, ...]) -> np.ndarray:
    return d.rng.integers(0, _length(d), shape)


def _forbidden(d: Draw, shape: tuple[int, ...]) -> np.ndarray:
    """Padding, and some of every other token: where no answer may be."""
    padding = d.made["attention_mask"] == 0 if "attention_mask" in d.made else np.zeros(shape, bool)
    return padding | ((d.rng.random(shape) < 0.4) & (np.arange(shape[-1]) % 2 == 1))


def _entity_positions(d: Draw, shape: tuple[int, ...]) -> np.ndarray:
    """Entity i covers 1 + i % 3 tokens from token i on; -1 fills the rest."""
    places, length = np.full(shape, -1, np.int64), _length(d)
    for i in range(shape[-2]):
        for j in range(min(1 + i % 3, shape[-1])):
            places[..., i, j] = min(i + j, length - 1)
    return places


def _global_mask(d: Draw, shape: tuple[int, ...]) -> np.ndarray:
    """The first token, and in the first row one more; two more for question answering."""
    mask = np.zeros(shape, np.int64)
    mask[..., 0] = 1
    mask[0, ..., [5, 6] if d.head.endswith("ForQuestionAnswering") else 5] = 1
    return mask


def _hidden_last(d: Draw, shape: tuple[int, ...]) -> np.ndarray:
    """XLNet's permutation [batch seq seq]: the last two tokens are seen by none."""
    mask = np.zeros(shape, np.float32)
    mask[..., -2:] = 1
    return mask


def _target_mapping(d: Draw, shape: tuple[int, ...]) -> np.ndarray:
    """The targets [batch targets seq] are the last tokens."""
    return np.broadcast_to(np.eye(shape[-1], dtype=np.float32)[-shape[-2] :], shape).copy()


# how an input is drawn by its name; others are normally distributed where they are floating-point, and an error elsewhere
DRAWS: dict[str, Callable[[Draw, tuple[int, ...]], np.ndarray]] = {
    "input_ids": lambda d, s: d.ids(s),
    "attention_mask": _attention_mask,
    "token_type_ids": _segments,
    "position_ids": lambda d, s: d.rng.integers(0, getattr(d.config, d.config.aliases.get(_PLACES, _PLACES)), s),
    "mc_token_ids": lambda d, s: _last_live(d, s) - d.rng.integers(0, 2, s) * (_length(d) > 4),
    "encoder_attention_mask": lambda d, s: d.mask(s, 2),
    "start_positions": _positions,
    "end_positions": _positions,
    "cls_index": _positions,
    "p_mask": _forbidden,
    "langs": lambda d, s: np.broadcast_to((np.arange(s[0]) % d.config.n_langs).reshape(-1, *[1] * (len(s) - 1)), s).copy(),  # type: ignore[attr-defined]
    "lengths": lambda d, s: d.made["attention_mask"].sum(-1) if "attention_mask" in d.made else np.full(s, _length(d)),
    "entity_ids": lambda d, s: d.rng.integers(1, d.config.entity_vocab_size, s),  # type: ignore[attr-defined]
    "entity_attention_mask": lambda d, s: d.mask(s, 1),
    "entity_token_type_ids": _segments,
    "entity_position_ids": _entity_positions,
    "entity_labels": lambda d, s: np.where(d.rng.random(s) < 0.7, d.rng.integers(0, d.config.entity_vocab_size, s), -100),  # type: ignore[attr-defined]
    "entity_start_positions": lambda d, s: np.maximum(d.made["entity_position_ids"][..., 0], 0),
    "entity_end_positions": lambda d, s: d.made["entity_position_ids"].max(-1),
    "global_attention_mask": _global_mask,
    "perm_mask": _hidden_last,
    "target_mapping": _target_mapping,
    "question_positions": lambda d, s: np.broadcast_to(2 * np.arange(1, s[-1] + 1), s).copy(),
}

_TYPE = re.compile(r"(\w+)\[(.*)\]")


def draw(card: Card, head: str, config: Config, size: int, names: list[str], options: Mapping[str, Any]) -> Arrays:
    """The named inputs of a head at size 0 (A) or 1 (B); `options` are batch, length, pad, pad_count, seed."""
    mine = own(card)
    types = card.heads[head].inputs_for(config)
    for flag, changed in card.heads[head].flags(config).items():
        types |= changed if flag in names else {}
    axes = {name: lengths[size] for name, lengths in AXES.items()} | dict(mine.axes)
    length = options.get("length", mine.lengths[size])
    batch = axes["batch"] // (2 if size == 0 and head.endswith("ForMultipleChoice") else 1)  # as many rows as other heads have: jax compiles once
    axes |= {"batch": options.get("batch", batch), "seq": length, "keys": length}
    d = Draw(config, head, np.random.default_rng(options.get("seed", 0) + 77), mine, {"pad": mine.pad[size], **options})
    for name in sorted(names, key=_order):
        dtype, dims = _TYPE.fullmatch(types[name]).groups()  # type: ignore[union-attr]
        shape = tuple(int(eval(dim, {"__builtins__": {}}, axes)) for dim in dims.split())
        d.made[name] = _drawn(d, name, shape, dtype)
    mine.adjust(d)
    return d.made


def _order(name: str) -> tuple[int, str]:
    """What others depend on is drawn first: tokens, masks, then what refers to places, labels last."""
    first = ("input_ids", "inputs_embeds", "attention_mask", "entity_position_ids")
    return (first.index(name) if name in first else 9 if name in LABELS else 5, name)


def _drawn(d: Draw, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    kinds = {"f32": np.float32, "i64": np.int64, "i32": np.int32, "bool": np.bool_}
    if rule := d.own.draw.get(name) or DRAWS.get(name):
        array = rule(d, shape)
    elif name == "labels":
        array = _labels(d, shape, dtype)
    elif name in BINARY:
        array = d.rng.integers(0, 2, shape)
    else:
        assert dtype == "f32", f"how is {name!r} drawn? Add it to DRAWS, or to the model's entry in OWN"
        array = d.rng.standard_normal(shape, np.float32)
    assert array.shape == shape, f"{name} drawn as {array.shape}, expected {shape}"
    return array.astype(kinds[dtype])


def _question_tokens(d: Draw) -> None:
    """Splinter's marks: one question for question answering, two for pre-training, which is not padded: its lowest scores would allow any error."""
    if not d.head.endswith("Model") and "input_ids" in d.made:
        count = 2 if d.head.endswith("PreTraining") else 1
        d.made["input_ids"][:, [2, 4][:count]] = d.config.question_token_id  # type: ignore[attr-defined]
        if d.head.endswith("PreTraining") and "attention_mask" in d.made:
            d.made["attention_mask"][:] = 1


def _padding_unmasked(d: Draw) -> None:
    """DPR's encoders tell padding by its id where there is no mask."""
    if "attention_mask" not in d.made and d.made.get("input_ids", np.empty((0, 0))).shape[-1] > 3:
        d.made["input_ids"][-1, -3:] = d.config.pad_token_id


def _separators(d: Draw) -> None:
    """Longformer's question answering attends globally to the question, which ends at the first of three separators."""
    if d.head.endswith("ForQuestionAnswering") and d.made["input_ids"].shape[1] > 6:
        d.made["input_ids"][:, 3:5] = d.config.sep_token_id
        d.made["input_ids"][:, 6] = d.config.sep_token_id


def _end_of_question(d: Draw) -> None:
    if d.head.endswith("ForQuestionAnswering") and d.made["input_ids"].shape[1] > 7:
        d.made["input_ids"][:, 6] = d.config.sep_token_id


@contextmanager
def _exact_waves() -> Iterator[None]:
    """XLNet's waves in the precision of the model: the reference's are float32 always, which two streams in float64 then refuse."""
    torch = importlib.import_module("torch")
    model = importlib.import_module("transformers").XLNetModel

    def waves(places: Any, speeds: Any, batch: int | None = None) -> Any:
        width, dtype = 2 * len(speeds), torch.get_default_dtype()
        speeds = 1 / torch.pow(10000, torch.arange(0, width, 2).to(dtype) / width)
        angles = torch.outer(places.to(dtype), speeds)
        made = torch.cat((angles.sin(), angles.cos()), -1)[:, None]
        return made if batch is None else made.expand(-1, batch, -1)

    before, model.positional_embedding = model.positional_embedding, staticmethod(waves)
    try:
        yield
    finally:
        model.positional_embedding = staticmethod(before)


# states of padding are all alike, so that question answering needs to be told not to choose among them
_XLM = Own(
    config={"n_langs": (2, 3), "start_n_top": (2, 3), "end_n_top": (2, 2)},
    give={"ForQuestionAnswering": ("p_mask",)},
    edge={"length": 3},
    vary={"n_langs": (1,)},
    beside={"summary_use_proj": {"num_labels": 32}, "summary_proj_to_labels": {"num_labels": 32}},
)
_RELATIVE = {"relative_attention": (True, True), "position_biased_input": (False, True), "type_vocab_size": (0, 2)}
_MEMS = tuple(f"past_mems.{i}" for i in range(3))
_TASKS = ("SequenceClassification", "TokenClassification", "MultipleChoice", "QuestionAnsweringSimple", "QuestionAnswering")
# One entry per model_type, in the order of the alphabet: add yours between its neighbours.
OWN: dict[str, Own] = {
    "albert": Own(
        config={"embedding_size": (24, 32), "num_hidden_groups": (1, 2), "inner_group_num": (2, 1)},
        heads={"ForPreTraining": {"num_labels": 2}},  # the reference's loss takes no other number
    ),
    "big_bird": Own(
        config={"max_position_embeddings": (128, 160), "block_size": (4, 4), "num_random_blocks": (1, 1), "sep_token_id": (66, 66)},
        heads={"ForCausalLM": {"attention_type": "original_full"}},
        lengths=(44, 56),  # whole blocks: attentions of what is padded beyond the mask have no meaning
        adjust=_end_of_question,
        draw={"question_lengths": lambda d, s: np.full(s, 7)},
        leave_out={"ForQuestionAnswering": ("token_type_ids",)},
    ),
    "canine": Own(
        config={"num_hash_functions": (4, 2), "num_hash_buckets": (40, 31), "max_position_embeddings": (40, 31), "local_transformer_stride": (8, 8)}
        | {"downsampling_rate": (4, 4), "upsampling_kernel_size": (4, 3)},
        ids=(32, 0x3000),
        lengths=(24, 28),
        edge={"length": 4},
    ),
    "convbert": Own(
        config={"embedding_size": (24, 24), "head_ratio": (2, 1), "conv_kernel_size": (5, 3)},
        vary={"num_groups": (2,)},
        beside={"num_groups": {"intermediate_size": 38}},
    ),
    "deberta": Own(
        config={**_RELATIVE, "pos_att_type": (["c2p", "p2c"], ["c2p"]), "max_position_embeddings": (16, 24), "pooler_hidden_size": (32, 24)},
        vary={"pos_att_type": (["p2c"], "c2p|p2c", None)},
    ),
    "deberta-v2": Own(
        config={**_RELATIVE, "pos_att_type": (["p2c", "c2p"], ["p2c"]), "max_position_embeddings": (16, 24), "pooler_hidden_size": (32, 24)}
        | {"position_buckets": (4, -1), "norm_rel_ebd": ("layer_norm", "none"), "share_att_key": (True, False)},
        vary={"pos_att_type": (["c2p"], "c2p|p2c", None), "norm_rel_ebd": ("none",), "conv_kernel_size": (3,), "max_relative_positions": (12,)},
        beside={"legacy": {"tie_word_embeddings": False}, "conv_act": {"conv_kernel_size": 3}, "relative_attention": {"norm_rel_ebd": "none"}},
    ),
    "dpr": Own(heads={"Reader": {"projection_dim": 0}}, vary={"projection_dim": (32,)}, adjust=_padding_unmasked),
    "flaubert": dataclasses.replace(_XLM, config={**_XLM.config, "n_langs": (1, 2)}, vary={"n_langs": (2,)}, silent={"pre_norm": True}),
    "funnel": Own(
        config={"block_sizes": ([1, 2, 1], [2, 1]), "num_decoder_layers": (1, 2), "d_head": (8, 12)},
        lengths=(13, 15),
        edge={"length": 5},  # below, the reference's relative shift mixes up distances
    ),
    # integers need calibrated ranges: tests/test_integer_path.py
    "ibert": Own(config={"type_vocab_size": (2, 2)}, vary={"quant_mode": (), "force_dequant": ()}),
    # as many slots as the busiest row has global tokens, so that attentions have the reference's shape, which depends on the values of the mask
    "longformer": Own(
        config={"attention_window": ([4, 8], [8, 4, 4]), "sep_token_id": (2, 2), "max_global_tokens": (2, 2)},
        heads={"ForQuestionAnswering": {"max_global_tokens": 3}},
        lengths=(13, 15),
        adjust=_separators,
        give={"ForMultipleChoice": ("global_attention_mask",)},
        edge={"length": 7},
    ),
    "luke": Own(config={"entity_vocab_size": (20, 17), "entity_emb_size": (12, 24)}),
    "mobilebert": Own(
        config={"hidden_size": (64, 48), "embedding_size": (32, 24), "intra_bottleneck_size": (32, 24), "num_feedforward_networks": (2, 1)},
        beside={"key_query_shared_bottleneck": {"use_bottleneck_attention": True}},
    ),
    # the reference's buckets are 32 whatever the configuration says
    "mpnet": Own(config={"relative_attention_num_buckets": (32, 32)}, lengths=(15, 13), vary={"relative_attention_num_buckets": (40, 16)}),
    "nystromformer": Own(
        config={"num_landmarks": (4, 3), "segment_means_seq_len": (16, 12), "conv_kernel_size": (5, 3)},
        lengths=(16, 12),
        edge={"length": 16},  # the only one that it takes
        vary={"num_landmarks": (16,), "conv_kernel_size": (None,)},
    ),
    "qdqbert": Own(skip={"": "the reference needs a package that is not on PyPI"}),
    "rembert": Own(config={"input_embedding_size": (18, 12), "output_embedding_size": (43, 20)}),
    "retribert": Own(
        # the reference's configuration lacks the field that it reads
        config={"projection_dim": (16, 20), "position_embedding_type": ("absolute", "absolute")},
        axes={"query": 10, "doc": 12},
        draw={"input_ids_query": Draw.ids, "input_ids_doc": Draw.ids, "attention_mask_query": Draw.mask, "attention_mask_doc": Draw.mask},
    ),
    "splinter": Own(
        config={"question_token_id": (4, 3)},
        adjust=_question_tokens,
        edge={"length": 6},
        leave_out={"ForQuestionAnswering": ("question_positions",)},  # the reference masks them wrongly
    ),
    "squeezebert": Own(
        config={"embedding_size": (32, 24), "intermediate_size": (64, 48), "q_groups": (2, 1), "k_groups": (2, 4), "v_groups": (2, 2)}
        | {"post_attention_groups": (1, 2), "intermediate_groups": (4, 2), "output_groups": (4, 1)}
    ),
    "xlm": _XLM,
    "xlnet": Own(
        config={"mem_len": (6, 6), "start_n_top": (2, 3), "end_n_top": (2, 2)},
        pad=("left", "right"),
        ids=(6, 67),
        edge={"length": 3},
        give={"LMHeadModel": ("perm_mask", "target_mapping")},
        leave_out={"Model": _MEMS} | {f"For{task}": (*_MEMS, "target_mapping") for task in _TASKS},
        # one-way attention takes no mask in the reference; test_xlnet.py tries it without
        vary={"attn_type": (), "clamp_len": (3,), "reuse_len": (4,), "mem_len": (None, 20)},
        repair=_exact_waves,
    ),
    "yoso": Own(config={"hash_code_len": (4, 3), "num_hash": (8, 4)}, lengths=(9, 13), vary={"conv_window": (5,)}),
}


def own(card: Card) -> Own:
    """The entry of a card."""
    return OWN.get(card.model_type, Own())
