"""LUKE and mLUKE (https://arxiv.org/abs/2010.01057): RoBERTa that reads entities beside words, with queries of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..ir.authoring import Card, Head, InputError, Layer, Size, Value, nn, ops
from .roberta import roberta_words


@dataclass(kw_only=True)
class LukeConfig(nn.TextConfig):
    """config.json of a LUKE checkpoint."""

    vocab_size: int = 50267
    entity_vocab_size: int = 500000
    entity_emb_size: int = 256
    use_entity_aware_attention: bool = True
    pad_token_id: int | None = 1


class EntityEmbeddings(Layer):
    """Entities, the mean of the places that mention each, and segments, normalised."""

    def __init__(self, c: LukeConfig):
        n = c.hidden_size
        self.entities = nn.Embedding(c.entity_vocab_size, c.entity_emb_size, 0)
        self.dense = None if c.entity_emb_size == n else nn.Linear(c.entity_emb_size, n, bias=False)
        self.positions, self.segments = nn.Embedding(c.max_position_embeddings, n), nn.Embedding(c.type_vocab_size, n)
        self.norm, self.dropout = nn.LayerNorm(n, c.layer_norm_eps), nn.Dropout(c.hidden_dropout_prob)

    def forward(self, ids: Value, places: Value, token_type_ids: Value | None) -> Value:
        """ids i64[batch entities], places i64[batch entities mentions], filled up with -1 -> [batch entities n]."""
        x = self.entities(ids)
        x = x if self.dense is None else self.dense(x)
        there = (places >= 0)[..., None]
        count = ops.sum(ops.cast(there, dtype="f32"), axis=2)
        x = x + ops.sum(ops.where(there, self.positions(ops.maximum(places, 0)), 0.0), axis=2) / ops.maximum(count, 1.0)
        x = x + (self.segments.weight[0] if token_type_ids is None else self.segments(token_type_ids))
        return self.dropout(self.norm(x))


class EntityAttention(nn.Attention):
    """Attention among words and entities, each with one query for words and one for entities."""

    def __init__(self, n: int, heads: int, *, aware: bool, **options: Any):
        super().__init__(n, heads, **options)
        self.w2e, self.e2w, self.e2e = (nn.Linear(n, n) if aware else None for _ in range(3))

    def forward(self, x: Value, mask: Value | None = None, words: Size | None = None, *none: None) -> Value:
        """x [batch words+entities n], mask bool[batch 1 1 words+entities] -> the same as x; `words` is None where there are no entities."""
        if words is None or self.w2e is None:
            return super().forward(x, mask)
        by_head = lambda x, *layers: ops.concat(*(nn.heads_first(layer(x), self.heads) for layer in layers), axis=3)
        q = ops.concat(by_head(x[:, :words], self.q, self.w2e), by_head(x[:, words:], self.e2w, self.e2e), axis=2)
        k, v = self.keys_and_values(x)
        # a key is zero where a query for the other kind meets it, so that one product makes all four kinds of scores
        wide, flat = (0, 0, 0, k.shape[3]), (0, 0, 0, 0)
        k = ops.concat(ops.pad(k[:, :, :words], low=flat, high=wide), ops.pad(k[:, :, words:], low=wide, high=flat), axis=2)
        return self.out_dropout(self.out(nn.heads_last(nn.attend(q, k, v, mask, None, scale=self.scale, dropout=self.dropout))))


class Luke(nn.TextEncoder):
    """RoBERTa's encoder over words and, where there are some, entities."""

    embedding = nn.PaddedEmbeddings

    def __init__(self, c: LukeConfig, pool: bool = True):
        super().__init__(c, pool)
        self.entities = EntityEmbeddings(c)

    def attention(self, c: LukeConfig, **options: Any) -> EntityAttention:
        """Attention of a block."""
        rates = {"dropout": c.attention_probs_dropout_prob, "out_dropout": c.hidden_dropout_prob}
        return EntityAttention(c.hidden_size, c.num_attention_heads, aware=c.use_entity_aware_attention, **rates)

    def forward(
        self, attention_mask=None, entity_ids=None, entity_attention_mask=None, entity_token_type_ids=None, entity_position_ids=None, **inputs
    ) -> dict[str, Any]:
        """-> last_hidden_state [batch seq n], pooler_output [batch n], entity_last_hidden_state [batch entities n]."""
        x, words = self.embeddings(**inputs), None
        if entity_ids is not None:
            if entity_position_ids is None:
                raise InputError("LUKE lacks input 'entity_position_ids': i64[batch entities mentions], where each entity is mentioned")
            words = x.shape[1]
            attention_mask = _joined(attention_mask, entity_attention_mask, x, entity_ids)
            x = ops.concat(x, self.entities(entity_ids, entity_position_ids, entity_token_type_ids), axis=1)
        x, seen = nn.encode(self.blocks, x, nn.key_mask(attention_mask), words)
        if words is not None:
            states = seen["hidden_states"]
            seen |= {"hidden_states": [y[:, :words] for y in states], "entity_hidden_states": [y[:, words:] for y in states]}
            seen["entity_last_hidden_state"], x = x[:, words:], x[:, :words]
        return {"last_hidden_state": x, "pooler_output": self.pooler and self.pooler(x), **seen}


def _joined(words: Value | None, entities: Value | None, x: Value, ids: Value) -> Value | None:
    """The masks of words and entities in one; all are seen where one is missing."""
    if words is None and entities is None:
        return None
    ones = lambda like: ops.broadcast_to(ops.literal(value=[[1]]), shape=like.shape[:2])
    return ops.concat(ones(x) if words is None else words, ones(ids) if entities is None else entities, axis=1)


class EntityLanguageModel(nn.LanguageModel):
    """Masked words and masked entities."""

    def __init__(self, c: LukeConfig):
        body = Luke(c)
        super().__init__(body, **roberta_words(c, body))
        n = c.entity_emb_size
        self.entity_transform = nn.Transform(c.hidden_size, n, nn.ACTIVATIONS[c.hidden_act], c.layer_norm_eps)
        self.entity_vocabulary = nn.Vocabulary(n, c.entity_vocab_size, body.entities.entities, bias=True)

    def forward(self, labels=None, entity_labels=None, **inputs):
        """-> logits [batch seq words], entity_logits [batch entities entity_words]; mlm_loss, mep_loss and their sum where labels are given."""
        out = self.body(**inputs)
        logits, entity_logits = self.vocabulary(self.transform(out["last_hidden_state"])), None
        if (entities := out.get("entity_last_hidden_state")) is not None:
            entity_logits = self.entity_vocabulary(self.entity_transform(entities))
        pairs = {"mlm_loss": (logits, labels), "mep_loss": (entity_logits, entity_labels)}
        losses = {name: ops.cross_entropy(*pair) for name, pair in pairs.items() if None not in pair}
        loss = sum(list(losses.values())[1:], start=next(iter(losses.values()))) if losses else None
        return {"loss": loss, **losses, "logits": logits, "entity_logits": entity_logits, **nn.rest(out)}


class EntityClassifier(Layer):
    """A decision from what `pool` makes of the states of words and entities and of the places where entities start and end."""

    def __init__(self, c: LukeConfig, pool: Callable[..., Value], width: int, bias: bool = True):
        self.body, self.dropout, self.pool = Luke(c), nn.Dropout(c.hidden_dropout_prob), pool
        self.classifier = nn.Linear(width * c.hidden_size, c.labels, bias)

    def forward(self, labels=None, entity_start_positions=None, entity_end_positions=None, **inputs):
        """-> logits [batch labels] or [batch entities labels], loss where labels are given: classes, or yes and no for each label."""
        if inputs.get("entity_ids") is None:
            raise InputError("this head of LUKE lacks input 'entity_ids': i64[batch entities], the entities to decide about")
        out = self.body(**inputs)
        places = [p for p in (entity_start_positions, entity_end_positions) if p is not None]
        logits = self.classifier(self.dropout(self.pool(out["last_hidden_state"], out["entity_last_hidden_state"], *places)))
        several = labels is not None and labels.rank == logits.rank
        return nn.scored(out, logits, labels, ops.binary_cross_entropy if several else ops.cross_entropy)


def _spans(words: Value, entities: Value, start: Value | None = None, end: Value | None = None) -> Value:
    """[batch entities 3n]: the states of the words that entities start and end with, and their own."""
    if start is None or end is None:
        raise InputError("LUKE lacks 'entity_start_positions' or 'entity_end_positions': i64[batch entities], the words they start and end with")
    states = [ops.gather(words, ops.broadcast_to(p[:, :, None], shape=(*p.shape, words.shape[2])), axis=1) for p in (start, end)]
    return ops.concat(*states, entities, axis=2)


_ENTITIES = {
    **dict.fromkeys(("entity_ids", "entity_attention_mask", "entity_token_type_ids"), "i64[batch entities]"),
    "entity_position_ids": "i64[batch entities mentions]",
}


def _inputs(c: LukeConfig) -> dict[str, str]:
    return {**nn.text_inputs(c.hidden_size), **_ENTITIES}


def _entity_head(pool: Callable[..., Value], width: int, axes: str = "batch", bias: bool = True, **places: str) -> Head:
    usual = ("input_ids", "attention_mask", "entity_ids", "entity_attention_mask", "entity_position_ids", *places)
    labels = lambda c: f"f32[{axes} {c.labels}]" if c.problem_type == "multi_label_classification" else f"i64[{axes}]"
    return nn.text_head(lambda c: EntityClassifier(c, pool, width, bias), "luke", _inputs, usual, labels=labels, **places)


_SPANS = dict.fromkeys(("entity_start_positions", "entity_end_positions"), "i64[batch entities]")
CARD = Card(
    model_type="luke",
    config=LukeConfig,
    base="luke",
    heads={
        **nn.text_heads("Luke", Luke, "luke", inputs=_inputs),
        "LukeForMaskedLM": nn.text_head(EntityLanguageModel, "luke", _inputs, labels="i64[batch seq]", entity_labels="i64[batch entities]"),
        "LukeForEntityClassification": _entity_head(lambda words, entities: entities[:, 0], 1),
        "LukeForEntityPairClassification": _entity_head(lambda words, entities: ops.concat(entities[:, 0], entities[:, 1], axis=1), 2, bias=False),
        "LukeForEntitySpanClassification": _entity_head(_spans, 3, "batch entities", **_SPANS),
    },
    names={
        **nn.TEXT_NAMES,
        **nn.ROBERTA_WORDS,
        "entities.{entities,dense}": "entity_embeddings.{entity_embeddings,entity_embedding_dense}",
        "entities.{positions,segments,norm}": "entity_embeddings.{position_embeddings,token_type_embeddings,LayerNorm}",
        "blocks.*.attention.layer.{w2e,e2w,e2e}": "encoder.layer.*.attention.self.{w2e_query,e2w_query,e2e_query}",
        "entity_transform.{dense,norm}": "entity_predictions.transform.{dense,LayerNorm}",
        "entity_vocabulary.bias": "entity_predictions.bias",
    },
    also={"lm_head.bias": ["lm_head.decoder.bias"]},
    unused=("*embeddings.position_ids", "entity_predictions.decoder.weight"),
)
