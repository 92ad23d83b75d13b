"""XLM (https://arxiv.org/abs/1901.07291): an encoder of many languages, each with a vector of its own; also causal."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar

from ..ir.authoring import Card, Layer, Size, Value, nn, only, ops
from ..ir.layers.span_beams import summary_heads


@dataclass(kw_only=True)
class XlmConfig(nn.SummaryConfig):
    """config.json of an XLM checkpoint."""

    aliases: ClassVar = {"hidden_size": "emb_dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers", "n_words": "vocab_size"}

    vocab_size: int = 30145
    emb_dim: int = 2048
    n_layers: int = 12
    n_heads: int = 16
    dropout: float = 0.1
    attention_dropout: float = 0.1
    gelu_activation: bool = True
    sinusoidal_embeddings: bool = False
    causal: bool = False
    asm: bool = only(False)  # adaptive softmax, which the reference cannot run on sequences either
    n_langs: int = 1
    use_lang_emb: bool = True
    max_position_embeddings: int = 512
    layer_norm_eps: float = 1e-12
    pad_index: int = 2
    is_encoder: bool = only(True)
    summary_last_dropout: float = 0.0
    start_n_top: int = 5
    end_n_top: int = 5
    pad_token_id: int | None = 2

    # what text encoders call them
    hidden_size, num_attention_heads, num_hidden_layers = (property(attrgetter(name)) for name in ("emb_dim", "n_heads", "n_layers"))
    hidden_dropout_prob, head_dropout = (property(attrgetter("dropout")) for _ in range(2))
    type_vocab_size = 0


class XlmEmbeddings(nn.TextEmbeddings):
    """Words, places and languages; a kind of token is a word too."""

    def __init__(self, c: XlmConfig):
        super().__init__(c)
        self.words = nn.Embedding(c.vocab_size, c.emb_dim, c.pad_index)
        self.langs = nn.Embedding(c.n_langs, c.emb_dim) if c.use_lang_emb and c.n_langs > 1 else None

    def position_table(self, c: XlmConfig, n: int) -> nn.Embedding:
        """A table that is learnt or not."""
        return (nn.Sinusoids if c.sinusoidal_embeddings else nn.Embedding)(c.max_position_embeddings, n)

    def forward(self, langs=None, token_type_ids=None, input_ids=None, position_ids=None, inputs_embeds=None) -> Value:
        """[batch seq n]."""
        x = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        if langs is not None and self.langs is not None:
            x = x + self.langs(langs)
        if token_type_ids is not None:
            x = x + self.words(token_type_ids)
        return super().forward(position_ids=position_ids, inputs_embeds=x)


class XlmBlock(nn.Block):
    """A block whose states of padding are zero."""

    def forward(self, x: Value, mask: Value | None = None, live: Value | None = None, *none: None) -> Value:
        """x [batch seq n], mask bool[batch 1 1 seq], live bool[batch seq] -> [batch seq n]."""
        return kept(super().forward(x, mask), live)


def kept(x: Value, live: Value | None) -> Value:
    """x [batch seq n], zero where bool[batch seq] is false."""
    return x if live is None else ops.where(live[:, :, None], x, 0.0)


class Xlm(nn.TextEncoder):
    """The encoder, which never pools."""

    embedding = XlmEmbeddings

    def __init__(self, c: XlmConfig, pool: bool = False):
        super().__init__(c, pool=False)
        self.causal, self.pad = c.causal, c.pad_index

    def attention(self, c: XlmConfig, **options: Any) -> nn.Attention:
        """Attention of a block."""
        return nn.Attention(c.emb_dim, c.n_heads, causal=c.causal, dropout=c.attention_dropout, out_dropout=c.dropout)

    def mlp(self, c: XlmConfig) -> nn.Mlp:
        """The feed-forward part of a block."""
        return nn.Mlp(c.emb_dim, 4 * c.emb_dim, "gelu" if c.gelu_activation else "relu", dropout=c.dropout)

    def block(self, c: XlmConfig) -> nn.Block:
        """One block."""
        return XlmBlock(self.kind, lambda: nn.LayerNorm(c.emb_dim, c.layer_norm_eps), self.attention(c), self.mlp(c))

    def live(self, length: Size, attention_mask: Value | None, lengths: Value | None, input_ids: Value | None) -> Value | None:
        """bool[batch seq]: what is not padding, by the mask, or else as many words from the left as there are."""
        if attention_mask is not None:
            return attention_mask > 0
        if lengths is None and input_ids is not None:
            lengths = ops.sum(ops.cast(~ops.equal(input_ids, self.pad), dtype="i64"), axis=1)
        return None if lengths is None else ops.iota(size=length)[None, :] < lengths[:, None]

    def forward(self, attention_mask=None, lengths=None, **words) -> dict[str, Any]:
        """-> last_hidden_state [batch seq n]."""
        x = self.embeddings(**words)
        live = self.live(x.shape[1], attention_mask, lengths, words.get("input_ids"))
        mask = None if live is None or self.causal else live[:, None, None, :]
        x, seen = nn.encode(self.blocks, kept(x, live), mask, live)
        return {"last_hidden_state": x, **seen}


def _inputs(c: XlmConfig) -> dict[str, str]:
    ids = "i64[batch seq]"
    return {**nn.text_inputs(c.emb_dim), "attention_mask": ids, "langs": ids, "lengths": "i64[batch]"}


def _choices(c: XlmConfig) -> dict[str, str]:
    """The reference takes no lengths here."""
    return nn.with_choices({name: kind for name, kind in _inputs(c).items() if name != "lengths"})


def _words(c: XlmConfig, body: Xlm) -> dict[str, Layer]:
    return {"vocabulary": nn.Vocabulary(c.emb_dim, c.vocab_size, body.embeddings.words if c.tie_word_embeddings else None, bias=True)}


def xlm_card(model_type: str, family: str, body: type[Xlm], config: type[XlmConfig]) -> Card:
    """A card in XLM's manner, whose classes begin with `family`."""
    own = {"decide": lambda c: nn.Identity(), "score": lambda c: nn.Linear(c.labels, 1), "words": _words, "beams": "qa_outputs."}
    return Card(
        model_type=model_type,
        config=config,
        base="transformer",
        heads=summary_heads(family, body, "WithLMHeadModel", inputs=_inputs, choices=_choices, **own),
        names={
            "embeddings.words": "embeddings",
            "embeddings.{positions,langs,norm}": "{position_embeddings,lang_embeddings,layer_norm_emb}",
            "blocks.*.attention.layer.{q,k,v,out}": "attentions.*.{q_lin,k_lin,v_lin,out_lin}",
            "blocks.*.{attention,mlp}.norm": "{layer_norm1,layer_norm2}.*",
            "blocks.*.mlp.layer.{up,down}": "ffns.*.{lin1,lin2}",
            "vocabulary": "pred_layer.proj",
            "pool.summary": "sequence_summary.summary",
        },
        unused=("*position_ids",),
    )


CARD = xlm_card("xlm", "XLM", Xlm, XlmConfig)
