"""BigBird (https://arxiv.org/abs/2007.14062): BERT with attention to neighbouring, first, last and random blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..ir.authoring import Card, ConfigError, Layer, Value, choice, collecting, current, nn, only, ops
from ..ir.layers.block_sparse import SparseAttention, layout_of


@dataclass(kw_only=True)
class BigBirdConfig(nn.DecoderTextConfig):
    """config.json of a BigBird checkpoint."""

    vocab_size: int = 50358
    hidden_act: str = choice("gelu_new", nn.ACTIVATIONS)
    max_position_embeddings: int = 4096
    sep_token_id: int | None = 66
    attention_type: str = choice("block_sparse", ("block_sparse", "original_full"))
    block_size: int = 64
    num_random_blocks: int = 3
    use_bias: bool = True
    rescale_embeddings: bool = False
    add_cross_attention: bool = only(False)  # the reference lets self-attention read the encoder then

    def check(self, where: str) -> None:
        """Blocks see what follows them."""
        super().check(where)
        if self.is_decoder and self.attention_type == "block_sparse":
            raise ConfigError(f"{where}: is_decoder is true, expected attention_type 'original_full': block-sparse attention is not causal")
        if self.block_size < 1 or self.num_random_blocks < 0:
            found = f"block_size is {self.block_size} and num_random_blocks {self.num_random_blocks}"
            raise ConfigError(f"{where}: {found}, expected at least 1 and 0")


class BigBirdEmbeddings(nn.TextEmbeddings):
    """BERT's embeddings, words perhaps scaled, normalised after dropout."""

    def __init__(self, c: BigBirdConfig):
        super().__init__(c, norm=False)
        self.last, self.scale = nn.LayerNorm(c.hidden_size, c.layer_norm_eps), c.hidden_size**0.5 if c.rescale_embeddings else 1.0

    def forward(self, input_ids=None, inputs_embeds=None, **places) -> Value:
        """[batch seq n]."""
        x = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        return self.last(super().forward(inputs_embeds=x * self.scale if self.scale != 1 else x, **places))


class BigBird(nn.TextEncoder):
    """BERT's encoder; block-sparse attention pads to whole blocks, and so do hidden_states and attentions, as the reference's do."""

    embedding = BigBirdEmbeddings

    def __init__(self, c: BigBirdConfig, pool: bool = True):
        super().__init__(c, pool)
        self.config = c

    def attention(self, c: BigBirdConfig, **options: Any) -> nn.Attention:
        """Attention of a block."""
        options |= {"bias": c.use_bias, "out_bias": True}
        if c.attention_type == "original_full":
            return super().attention(c, **options)
        return SparseAttention(c.hidden_size, c.num_attention_heads, c.block_size, c.num_random_blocks, out_dropout=c.hidden_dropout_prob, **options)

    def forward(self, attention_mask=None, input_ids=None, inputs_embeds=None, position_ids=None, token_type_ids=None) -> dict[str, Any]:
        """-> last_hidden_state [batch seq n], pooler_output [batch n]."""
        c, words = self.config, {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "token_type_ids": token_type_ids}
        if c.attention_type == "original_full":
            return super().forward(attention_mask=attention_mask, position_ids=position_ids, **words)
        batch, length = (inputs_embeds if input_ids is None else input_ids).shape[:2]
        current().limit(length, c.max_position_embeddings, "the model has no positions beyond")
        layout = layout_of(length, c.block_size, c.num_random_blocks)
        more = layout.padded - length
        padding = ops.broadcast_to(ops.literal(value=[[c.pad_token_id or 0]]), shape=(batch, more))
        fill = {"input_ids": padding, "token_type_ids": padding * 0}
        if inputs_embeds is not None:
            fill["inputs_embeds"] = self.embeddings(input_ids=padding)  # embedded twice, as the reference does
        places = ops.minimum(ops.iota(size=layout.padded), c.max_position_embeddings - 1)
        places = places if position_ids is None else ops.concat(position_ids, padding, axis=1)
        x = self.embeddings(position_ids=places, **{k: None if y is None else ops.concat(y, fill[k], axis=1) for k, y in words.items()})
        mask = ops.literal(value=[[1]]) if attention_mask is None else attention_mask
        mask = ops.broadcast_to(mask, shape=(batch, length))
        with collecting() as seen:
            x, states = nn.run_blocks(self.blocks, x, ops.concat(mask, padding * 0, axis=1) > 0, layout)
        last = x[:, :length]
        states = [s[:, : layout.shown] for s in states]
        return {"last_hidden_state": last, "pooler_output": self.pooler and self.pooler(last), "hidden_states": states, **seen}


class Asked(BigBird):
    """An encoder that knows how long the question is: up to the first separator, where nobody says."""

    def forward(self, question_lengths=None, input_ids=None, inputs_embeds=None, token_type_ids=None, **words) -> dict[str, Any]:
        """-> what the encoder gives, and `question`, f32[batch seq 1]: 1 in the question but for its first token."""
        question, place = None, ops.iota(size=(inputs_embeds if input_ids is None else input_ids).shape[1])
        if question_lengths is None and input_ids is not None:
            separators = ops.cast(ops.equal(input_ids, self.config.sep_token_id), dtype="i64")
            question_lengths = ops.argmax(separators, axis=1, keep=True) + 1
        if question_lengths is not None:
            asked = place < question_lengths
            token_type_ids = 1 - ops.cast(asked, dtype="i64") if token_type_ids is None else token_type_ids
            question = ops.cast(asked & (place > 0), dtype="f32")[..., None]
        out = super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, token_type_ids=token_type_ids, **words)
        return {**out, "question": question}


class Answer(Layer):
    """Where an answer starts and ends: a feed-forward part before the scores, and no answer within the question."""

    def __init__(self, c: BigBirdConfig):
        n, rate = c.hidden_size, c.hidden_dropout_prob
        self.body, self.qa_outputs = Asked(c, pool=False), nn.Linear(n, 2)
        self.mlp, self.norm = nn.Mlp(n, c.intermediate_size, c.hidden_act, dropout=rate), nn.LayerNorm(n, c.layer_norm_eps)
        self.dropout = nn.Dropout(rate)

    def forward(self, start_positions=None, end_positions=None, **inputs) -> dict[str, Any]:
        """-> start_logits and end_logits [batch seq], loss where both positions are given (those behind the end are ignored)."""
        out = self.body(**inputs)
        x = out["last_hidden_state"]
        both = self.qa_outputs(self.norm(self.mlp(self.dropout(x)) + x))
        if out["question"] is not None:
            both = both - out["question"] * 1e6
        return nn.spanned(out, both[..., 0], both[..., 1], start_positions, end_positions)


def _body(c: BigBirdConfig, pool: bool = True) -> BigBird:
    """The reference keeps the pooler in every head but one."""
    return BigBird(c)


def _classifier(c: BigBirdConfig) -> nn.ClassificationHead:
    return nn.ClassificationHead(c.hidden_size, c.labels, c.head_dropout, nn.ACTIVATIONS[c.hidden_act])


def _pretraining(c: BigBirdConfig) -> nn.PreTraining:
    body = BigBird(c)
    return nn.PreTraining(body, **nn.word_scores(c, body), decide=nn.Linear(c.hidden_size, 2))


CARD = Card(
    model_type="big_bird",
    config=BigBirdConfig,
    base="bert",
    heads={
        **nn.text_heads("BigBird", _body, "bert", causal="BigBirdForCausalLM", classifier=_classifier),
        "BigBirdForPreTraining": nn.text_head(_pretraining, "bert", labels="i64[batch seq]", next_sentence_label="i64[batch]"),
        "BigBirdForQuestionAnswering": nn.text_head(
            Answer, "bert", question_lengths="i64[batch 1]", start_positions="i64[batch]", end_positions="i64[batch]"
        ),
    },
    names={
        **nn.TEXT_NAMES,
        **nn.BERT_WORDS,
        "embeddings.last": "embeddings.LayerNorm",
        "pooler.dense": "pooler",
        "mlp.{up,down}": "qa_classifier.{intermediate,output}.dense",
        "norm": "qa_classifier.output.LayerNorm",
        "qa_outputs": "qa_classifier.qa_outputs",
    },
    also={"cls.predictions.bias": ["cls.predictions.decoder.bias"]},
    unused=("*embeddings.position_ids", "*embeddings.token_type_ids"),
)
