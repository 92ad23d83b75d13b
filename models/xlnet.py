"""XLNet (https://arxiv.org/abs/1906.08237): predicts words in any order by a second stream that knows only places, and remembers earlier text."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import reduce
from operator import and_, attrgetter
from typing import Any, ClassVar

from ..ir.authoring import Card, ConfigError, Layer, Param, Size, Value, choice, collecting, current, maximum, minimum, nn, only, ops
from ..ir.layers.span_beams import summary_heads


@dataclass(kw_only=True)
class XlnetConfig(nn.SummaryConfig):
    """config.json of an XLNet checkpoint."""

    aliases: ClassVar = {"hidden_size": "d_model", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer", "n_token": "vocab_size"}

    vocab_size: int = 32000
    d_model: int = 1024
    n_layer: int = 24
    n_head: int = 16
    d_head: int | None = None
    d_inner: int = 4096
    ff_activation: str = choice("gelu", nn.ACTIVATIONS)
    attn_type: str = choice("bi", ("bi", "uni"))
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1
    mem_len: int | None = 512
    reuse_len: int | None = None
    use_mems_eval: bool = True
    use_mems_train: bool = False
    bi_data: bool = False
    clamp_len: int = -1
    same_length: bool = False
    summary_type: str = choice("last", ("last", "first", "mean", "cls_index"))
    summary_activation: str | None = choice("tanh", (None, *nn.ACTIVATIONS))
    summary_proj_to_labels: bool = only(False)
    summary_first_dropout: float = 0.0
    start_n_top: int = 5
    end_n_top: int = 5
    pad_token_id: int | None = 5

    hidden_size, head_dropout = property(attrgetter("d_model")), 0.0

    def check(self, where: str) -> None:
        """Heads make up the width."""
        super().check(where)
        if self.d_head not in (None, self.d_model // self.n_head):
            raise ConfigError(f"{where}: d_head is {self.d_head}, expected {self.d_model // self.n_head}: d_model by n_head")


class RelativeAttention(Layer):
    """Attention whose scores are of words, of how far apart they are, and of whether they are of one segment, each with a bias of its own."""

    def __init__(self, c: XlnetConfig):
        n, heads, head = c.d_model, c.n_head, c.d_model // c.n_head
        self.q, self.k, self.v, self.o, self.r = (Param(n, heads, head) for _ in range(5))
        self.r_r_bias, self.r_s_bias, self.r_w_bias = (Param(heads, head, init="zeros") for _ in range(3))
        self.seg_embed = Param(2, heads, head, init="normal")
        self.heads, self.rate, self.scale = heads, c.dropout, head**-0.5
        self.norm, self.dropout = nn.LayerNorm(n, c.layer_norm_eps), nn.Dropout(c.dropout)

    def by_head(self, x: Value, weight: Value) -> Value:
        """x [batch seq n], weight [n heads head] -> [batch heads seq head]."""
        return nn.heads_first(ops.affine(x, ops.view(weight, (weight.shape[0], self.heads * weight.shape[2]))), self.heads)

    def forward(self, x: Value, whole: Value, waves: Value, mask: Value | None, other: Value | None, mapping: Value | None, kind: str) -> Value:
        """A stream x [batch rows n] over all words, remembered and new, [batch keys n] and waves [batch|1 distances n] -> [batch rows n].

        mask bool[batch|1 1 seq|1 keys] is what may be seen, other bool[batch 1 seq keys] whether of another segment, mapping [batch rows seq].
        """
        q, k, v, r = (self.by_head(y, w) for y, w in ((x, self.q), (whole, self.k), (whole, self.v), (waves, self.r)))
        if mapping is not None:
            mapping = mapping[:, None]
            q = ops.transpose(mapping, perm=(0, 1, 3, 2)) @ q
        bias = _shifted((q + self.r_r_bias[:, None]) @ ops.transpose(r, perm=(0, 1, 3, 2)), k.shape[2])
        if other is not None:
            segments = (q + self.r_s_bias[:, None]) @ ops.transpose(self.seg_embed, perm=(1, 2, 0))
            bias = bias + ops.where(other, segments[..., 1:], segments[..., :1])
        y = nn.attend(q + self.r_w_bias[:, None], k, v, mask, bias * self.scale, scale=self.scale, dropout=self.rate, kind=kind)
        if mask is not None:  # the first of all words in order sees none, and takes the mean of all
            y = ops.where(ops.any(mask, axis=3, keep=True), y, ops.mean(v, axis=2, keep=True))
        y = nn.heads_last(y if mapping is None else mapping @ y)
        return self.norm(x + self.dropout(ops.linear(y, ops.view(self.o, (self.o.shape[0], y.shape[2])))))


def _shifted(scores: Value, keys: Size) -> Value:
    """[batch heads rows keys] of scores [batch heads rows distances] for distances falling from `keys` on, which begin one later in each row."""
    batch, heads, rows, distances = scores.shape
    scores = ops.view(scores, (batch, heads, distances, rows))[:, :, 1:]
    return ops.view(scores, (batch, heads, rows, distances - 1))[..., :keys]


class XlnetBlock(Layer):
    """Attention and a feed-forward part, for the stream of words and the one of places."""

    def __init__(self, c: XlnetConfig):
        self.attention = RelativeAttention(c)
        inner = nn.Mlp(c.d_model, c.d_inner, c.ff_activation, inner_dropout=c.dropout, dropout=c.dropout)
        self.mlp = nn.PostNorm(inner, nn.LayerNorm(c.d_model, c.layer_norm_eps))

    def forward(self, h: Value, g: Value | None, memory: Value | None, waves: Value, masks: Any, other: Value | None, mapping: Any) -> Any:
        """h [batch seq n], g [batch targets n], memory [batch mem n] -> h and g."""
        whole = h if memory is None else ops.concat(memory, h, axis=1)
        made = self.mlp(self.attention(h, whole, waves, masks[0], other, None, "words"))
        return made, None if g is None else self.mlp(self.attention(g, whole, waves, masks[1], other, mapping, "places"))


class Xlnet(Layer):
    """Words, and blocks of one stream or, where targets are mapped, two."""

    def __init__(self, c: XlnetConfig, pool: bool = False):
        self.words, self.mask = nn.Embedding(c.vocab_size, c.d_model), Param(1, 1, c.d_model, init="normal")
        self.blocks, self.dropout, self.config = [XlnetBlock(c) for _ in range(c.n_layer)], nn.Dropout(c.dropout), c

    def waves(self, batch: Size, rows: Size, keys: Size) -> Value:
        """[batch|1 distances n]: sines and cosines of distances from `keys` down; backwards for the second half of the batch of `bi_data`."""
        c = self.config
        place = keys - ops.iota(size=keys + (rows if c.attn_type == "bi" else 1))
        if c.clamp_len > 0:
            place = ops.minimum(ops.maximum(place, -c.clamp_len), c.clamp_len)
        speed = ops.exp(ops.cast(ops.iota(size=c.d_model // 2), dtype="f32") * (-2 * math.log(10000) / c.d_model))
        angles = (ops.cast(place, dtype="f32")[:, None] * speed)[None]
        sines, cosines = ops.sin(angles), ops.cos(angles)
        if c.bi_data:
            sign = ops.where(ops.iota(size=batch) < batch // 2, 1.0, -1.0)[:, None, None]
            sines, cosines = sines * sign, ops.broadcast_to(cosines, shape=(batch, *cosines.shape[1:]))
        return self.dropout(ops.concat(sines, cosines, axis=2))

    def seen(self, rows: Size, past: Size, hidden: list[Value]) -> tuple[Value | None, Value | None]:
        """bool[batch|1 1 seq|1 keys] of both streams: what is neither later (of one-way attention) nor `hidden`; words see themselves as well."""
        row, key = ops.iota(size=rows)[:, None], ops.iota(size=past + rows)[None, :]
        masks = [ops.pad(x, low=(0, 0, past), high=(0, 0, 0)) <= 0.0 for x in hidden]
        if self.config.attn_type == "uni":
            masks += [(x <= y)[None] for x, y in [(key, row + past), (row, key)][: 1 + self.config.same_length]]
        if not masks:
            return None, None
        places = reduce(and_, masks)
        return (places | ops.equal(key, row + past)[None])[:, None], places[:, None]

    def remembered(self, x: Value, memory: Value | None) -> Value:
        """[mem batch n]: the last states that later text may look at."""
        c, reuse = self.config, self.config.reuse_len or 0
        x = x[:, : minimum(x.shape[1], reuse)] if reuse > 0 else x
        x = x if memory is None else ops.concat(memory, x, axis=1)
        x = x[:, maximum(x.shape[1] - c.mem_len, 0) :] if c.mem_len else x
        return ops.stop_gradient(ops.transpose(x, perm=(1, 0, 2)))

    def forward(
        self, input_ids=None, attention_mask=None, token_type_ids=None, inputs_embeds=None, perm_mask=None, target_mapping=None, **others
    ) -> dict[str, Any]:
        """-> last_hidden_state [batch seq|targets n], mems n_layer of [mem batch n]."""
        h = self.dropout(self.words(input_ids) if inputs_embeds is None else inputs_embeds)
        g = None if target_mapping is None else self.dropout(ops.broadcast_to(self.mask, shape=(h.shape[0], target_mapping.shape[1], h.shape[2])))
        memories = [m if m is None else ops.transpose(m, perm=(1, 0, 2)) for m in (others.get(f"past_mems.{i}") for i in range(len(self.blocks)))]
        (batch, rows, _), past = h.shape, 0 if memories[0] is None else memories[0].shape[1]
        padding = others.get("input_mask") if attention_mask is None else 1.0 - ops.cast(attention_mask, dtype="f32")
        masks = self.seen(rows, past, [x for x in (None if padding is None else padding[:, None], perm_mask) if x is not None])
        other = None
        if token_type_ids is not None:
            kinds = ops.pad(token_type_ids, low=(0, past), high=(0, 0), value=0)
            other = ~ops.equal(token_type_ids[:, :, None], kinds[:, None, :])[:, None]
        waves, states, kept = self.waves(batch, rows, rows + past), [], []
        with collecting() as seen:
            for block, memory in zip(self.blocks, memories, strict=True):
                kept.append(self.remembered(h, memory))
                states += [h] if g is None else [h, g]
                h, g = block(h, g, memory, waves, masks, other, target_mapping)
        states += [h] if g is None else [h, g]
        weights = seen.get("words", []) if g is None else [list(pair) for pair in zip(seen["words"], seen["places"], strict=True)]
        keeps = self.config.use_mems_train if current().training else self.config.use_mems_eval
        last = self.dropout(h if g is None else g)
        return {"last_hidden_state": last, "mems": kept if keeps else None, "hidden_states": states, "attentions": weights}


def _inputs(c: XlnetConfig) -> dict[str, str]:
    """The reference calls memories `mems` where they come in as well; an ONNX graph has no two values of one name."""
    common = {name: kind for name, kind in nn.text_inputs(c.d_model).items() if name != "position_ids"}
    streams = {"perm_mask": "f32[batch seq seq]", "target_mapping": "f32[batch targets seq]", "input_mask": "f32[batch seq]"}
    return {**common, "attention_mask": "i64[batch seq]", **streams, **{f"past_mems.{i}": f"f32[mem batch {c.d_model}]" for i in range(c.n_layer)}}


def _choices(c: XlnetConfig) -> dict[str, str]:
    """Masks of order and memories are of all choices in one row, as the reference takes them."""
    flat = ("perm_mask", "target_mapping", "past_mems.")
    inputs = _inputs(c)
    return nn.with_choices(inputs) | {k: t.replace("batch", "batch*choices") for k, t in inputs.items() if k.startswith(flat)}


def _words(c: XlnetConfig, body: Xlnet) -> dict[str, Layer]:
    return {"vocabulary": nn.Vocabulary(c.d_model, c.vocab_size, body.words if c.tie_word_embeddings else None, bias=True)}


_own = {"decide": lambda c: nn.Linear(c.d_model, c.labels), "score": lambda c: nn.Linear(c.d_model, 1), "words": _words}
_heads = summary_heads("XLNet", Xlnet, "LMHeadModel", inputs=_inputs, choices=_choices, **_own)
_targets = lambda c: {"target_mapping": {"labels": "i64[batch targets]"}}
CARD = Card(
    model_type="xlnet",
    config=XlnetConfig,
    base="transformer",
    heads=_heads | {"XLNetLMHeadModel": replace(_heads["XLNetLMHeadModel"], flags=_targets)},
    names={
        "words": "word_embedding",
        "mask": "mask_emb",
        "blocks.*.attention": "layer.*.rel_attn",
        "blocks.*.attention.norm": "layer.*.rel_attn.layer_norm",
        "blocks.*.mlp.{layer.up,layer.down,norm}": "layer.*.ff.{layer_1,layer_2,layer_norm}",
        "vocabulary": "lm_loss",
        "pool.summary": "sequence_summary.summary",
    },
)
