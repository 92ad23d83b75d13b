"""Heads: small layers over a body, shared between families. A body returns `last_hidden_state`, perhaps `pooler_output`, and lists on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import ops
from ..config import Config, choice
from ..errors import ConfigError
from ..graph import Param, Value, current
from ..layer import Layer
from .basic import ACTIVATIONS, Activation, Dropout, Embedding, LayerNorm, Linear

Outputs = dict[str, Any]
NEXT = ("next_sentence_label", "seq_relationship_logits")  # of BERT's second pre-training task


def text_inputs(n: int, memory: int | None = None) -> dict[str, str]:
    """The inputs of a text encoder or decoder of width n; `memory` is the width of the encoder states that it may attend to."""
    ids = "i64[batch seq]"
    inputs = {
        "input_ids": ids,
        "attention_mask": "i64[batch keys]",
        "token_type_ids": ids,
        "position_ids": ids,
        "inputs_embeds": f"f32[batch seq {n}]",
    }
    if memory is not None:
        inputs |= {"encoder_hidden_states": f"f32[batch memory {memory}]", "encoder_attention_mask": "i64[batch memory]"}
    return inputs


def rest(outputs: Outputs) -> Outputs:
    """What a head passes on from its body: lists of hidden states and attention weights, and an encoder's last state."""
    return {k: v for k, v in outputs.items() if isinstance(v, list) or k == "encoder_last_hidden_state"}


def scored(out: Outputs, logits: Value, labels: Value | None, loss: Callable[[Value, Value], Value] = ops.cross_entropy) -> Outputs:
    """What a head returns: its logits, their loss where labels are given, and the rest of its body's outputs."""
    return {"loss": None if labels is None else loss(logits, labels), "logits": logits, **rest(out)}


def problem_of(config: Config) -> str:
    """Which loss a classifier is trained with: the configured one, else regression for one label and classes for more."""
    return config.problem_type or ("regression" if config.labels == 1 else "single_label_classification")


def label_type(config: Config) -> str:
    """The type of a classifier's `labels`."""
    if problem_of(config) == "single_label_classification":
        return "i64[batch]"
    return "f32[batch]" if config.labels == 1 else f"f32[batch {config.labels}]"


def classification_loss(logits: Value, labels: Value, config: Config) -> Value:
    """The loss of logits [batch labels] by the configured problem."""
    match problem_of(config):
        case "regression":
            return ops.mean_squared_error(ops.squeeze(logits, -1) if config.labels == 1 else logits, labels)
        case "multi_label_classification":
            return ops.binary_cross_entropy(logits, labels if labels.rank == 2 else labels[:, None])
        case _:
            return ops.cross_entropy(logits, labels)


def causal_loss(logits: Value, labels: Value) -> Value:
    """Each position's logits against the next position's label."""
    return ops.cross_entropy(logits[:, :-1], labels[:, 1:])


class Pooler(Layer):
    """tanh of a linear layer on the first position."""

    def __init__(self, n: int, n_out: int | None = None, activation: Activation = ops.tanh):
        self.dense, self.activation = Linear(n, n_out or n), activation

    def forward(self, x: Value) -> Value:
        """[batch seq n] -> [batch n]."""
        return self.activation(self.dense(x[:, 0]))


class Vocabulary(Layer):
    """Scores of each word: a linear layer whose weight may be an embedding's."""

    def __init__(self, n: int, words: int, tied: Embedding | None = None, bias: bool = False):
        self.weight = tied.weight if tied else Param(words, n)
        self.bias = Param(words, init="zeros") if bias else None

    def forward(self, x: Value) -> Value:
        """[batch seq n] -> [batch seq words]."""
        return ops.linear(x, self.weight, self.bias)


class Transform(Layer):
    """Linear, activation and normalisation before a masked language model's vocabulary."""

    def __init__(self, n: int, n_out: int, activation: Activation, eps: float):
        self.dense, self.activation, self.norm = Linear(n, n_out), activation, LayerNorm(n_out, eps)

    def forward(self, x: Value) -> Value:
        """[batch seq n] -> [batch seq n_out]."""
        return self.norm(self.activation(self.dense(x)))


class LanguageModel(Layer):
    """Word scores of each position; `labels` are the words themselves (masked) or, where `causal`, the same ids, shifted here."""

    def __init__(self, body: Layer, vocabulary: Layer, transform: Any = None, causal: bool = False):
        self.body, self.transform, self.vocabulary, self.causal = body, transform, vocabulary, causal

    def forward(self, labels: Value | None = None, **inputs: Value | None) -> Outputs:
        """-> logits [batch seq words], loss where labels are given."""
        out = self.body(**inputs)
        x = out["last_hidden_state"]
        logits = self.vocabulary(x if self.transform is None else self.transform(x))
        return scored(out, logits, labels, causal_loss if self.causal else ops.cross_entropy)


def pooled(outputs: Outputs, inputs: Any) -> Value:
    """The body's pooled state [batch n]."""
    return outputs["pooler_output"]


def first_state(outputs: Outputs, inputs: Any) -> Value:
    """The state of the first position [batch n]."""
    return outputs["last_hidden_state"][:, 0]


class ClassificationHead(Layer):
    """Linear, activation, dropout, linear."""

    def __init__(self, n: int, labels: int, dropout: float, activation: Activation = ops.tanh):
        self.dense, self.activation, self.dropout, self.out_proj = Linear(n, n), activation, Dropout(dropout), Linear(n, labels)

    def forward(self, x: Value) -> Value:
        """[batch n] -> [batch labels]."""
        return self.out_proj(self.dropout(self.activation(self.dense(x))))


class PreTraining(Layer):
    """Masked words, and a decision `names` about the two sentences: its label and its logits."""

    def __init__(self, body: Layer, transform: Layer, vocabulary: Layer, decide: Layer, names: Sequence[str] = NEXT, dropout: float = 0.0):
        self.body, self.transform, self.vocabulary, self.next, self.names = body, transform, vocabulary, decide, names
        self.dropout = Dropout(dropout)

    def forward(self, labels: Value | None = None, **inputs: Value | None) -> Outputs:
        """-> prediction_logits [batch seq words], the decision's logits [batch 2], loss where both labels are given."""
        label, logits = self.names
        decided = inputs.pop(label, None)
        out = self.body(**inputs)
        words, decision = self.vocabulary(self.transform(out["last_hidden_state"])), self.next(self.dropout(out["pooler_output"]))
        given = labels is not None and decided is not None
        loss = ops.cross_entropy(words, labels) + ops.cross_entropy(decision, decided) if given else None
        return {"loss": loss, "prediction_logits": words, logits: decision, **rest(out)}


class NextSentence(Layer):
    """Whether the second sentence follows the first."""

    def __init__(self, body: Layer, n: int):
        self.body, self.next = body, Linear(n, 2)

    def forward(self, labels: Value | None = None, **inputs: Value | None) -> Outputs:
        """-> logits [batch 2]: class 0 is that it follows."""
        out = self.body(**inputs)
        return scored(out, self.next(out["pooler_output"]), labels)


class SequenceClassifier(Layer):
    """One decision for a sequence or image, from the body's pooled output or what `pool` makes of its outputs and the inputs."""

    def __init__(self, body: Layer, classifier: Layer, config: Config, dropout: float = 0.0, pool: Any = pooled):
        self.body, self.dropout, self.classifier = body, Dropout(dropout), classifier
        self.config, self.pool = config, pool

    def forward(self, labels: Value | None = None, **inputs: Value | None) -> Outputs:
        """-> logits [batch labels], loss where labels are given."""
        out = self.body(**inputs)
        logits = self.classifier(self.dropout(self.pool(out, inputs)))
        return scored(out, logits, labels, lambda logits, labels: classification_loss(logits, labels, self.config))


class TokenClassifier(Layer):
    """A decision for each position."""

    def __init__(self, body: Layer, n: int, labels: int, dropout: float = 0.0):
        self.body, self.dropout, self.classifier = body, Dropout(dropout), Linear(n, labels)

    def forward(self, labels: Value | None = None, **inputs: Value | None) -> Outputs:
        """-> logits [batch seq labels], loss where labels are given (-100 is ignored)."""
        out = self.body(**inputs)
        return scored(out, self.classifier(self.dropout(out["last_hidden_state"])), labels)


def position_loss(logits: Value, positions: Value) -> Value:
    """The loss of logits [batch seq] for places i64[batch]; those behind the end do not count."""
    length = logits.shape[1]
    return ops.cross_entropy(logits, ops.minimum(ops.maximum(positions, 0), length), ignore=length)


def spanned(out: Outputs, start: Value, end: Value, starts: Value | None, ends: Value | None, loss: Any = position_loss) -> Outputs:
    """What a head returns that finds spans: the logits of both ends, the mean of their losses where both places are given, the body's rest."""
    both = starts is not None and ends is not None
    return {"loss": (loss(start, starts) + loss(end, ends)) / 2.0 if both else None, "start_logits": start, "end_logits": end, **rest(out)}


class SpanClassifier(Layer):
    """Where an answer starts and ends."""

    def __init__(self, body: Layer, n: int, labels: int = 2, dropout: float = 0.0):
        if labels != 2:
            raise ConfigError(f"num_labels is {labels}, expected 2 for question answering: where the answer starts and where it ends")
        self.body, self.dropout, self.qa_outputs = body, Dropout(dropout), Linear(n, 2)

    def forward(self, start_positions: Value | None = None, end_positions: Value | None = None, **inputs: Value | None) -> Outputs:
        """-> start_logits and end_logits [batch seq], loss where both positions are given (those behind the end are ignored)."""
        out = self.body(**inputs)
        both = self.qa_outputs(self.dropout(out["last_hidden_state"]))
        return spanned(out, both[..., 0], both[..., 1], start_positions, end_positions)


class MultipleChoice(Layer):
    """One score for each of several sequences, from the body's pooled output or what `pool` makes of its outputs and the inputs."""

    def __init__(self, body: Layer, classifier: Layer, dropout: float = 0.0, pool: Any = pooled):
        self.body, self.dropout, self.classifier, self.pool = body, Dropout(dropout), classifier, pool

    def forward(self, labels: Value | None = None, **inputs: Value | None) -> Outputs:
        """Inputs [batch choices seq], others as they are -> logits [batch choices], loss where labels [batch] are given."""
        first = next(x for x in inputs.values() if x is not None)
        together = lambda x: ops.view(x, (x.shape[0] * x.shape[1], *x.shape[2:])) if x.shape[:2] == first.shape[:2] else x
        flat = {k: None if x is None else together(x) for k, x in inputs.items()}
        out = self.body(**flat)
        logits = ops.view(self.classifier(self.dropout(self.pool(out, flat))), first.shape[:2])
        return scored(out, logits, labels)


def with_choices(inputs: dict[str, str]) -> dict[str, str]:
    """Text inputs with an axis of choices after the batch."""
    return {k: t.replace("[batch ", "[batch choices ").replace("keys", "seq") for k, t in inputs.items()}


def last_token(input_ids: Value, pad: int | None) -> Value:
    """i64[batch]: the place of each row's last token that is not padding; the last place where no padding is defined."""
    length = input_ids.shape[1]
    places = ops.iota(size=length)
    if pad is None:
        return ops.broadcast_to(ops.literal(value=[-1]) + length, shape=(input_ids.shape[0],))
    return ops.max(ops.where(~ops.equal(input_ids, pad), places, 0), axis=1)


def pick(x: Value, place: Value) -> Value:
    """x [batch seq n] at place i64[batch] -> [batch n]."""
    where = ops.broadcast_to(place[:, None, None], shape=(x.shape[0], 1, x.shape[2]))
    return ops.squeeze(ops.gather(x, where, axis=1), 1)


@dataclass(kw_only=True)
class SummaryConfig(Config):
    """How a `SequenceSummary` makes one vector of a sequence."""

    summary_type: str = choice("first", ("last", "first", "mean", "cls_index"))
    summary_use_proj: bool = True
    summary_proj_to_labels: bool = True
    summary_activation: str | None = choice(None, (None, *ACTIVATIONS))
    summary_first_dropout: float = 0.1
    summary_last_dropout: float = 0.1


class SequenceSummary(Layer):
    """One vector for a sequence: a state or the mean of all, projected to `labels` or as wide as it was, activated."""

    def __init__(self, c: SummaryConfig, n: int, labels: int = 0):
        n_out = labels if c.summary_proj_to_labels and labels else n
        self.summary = Linear(n, n_out) if c.summary_use_proj else None
        self.kind, self.activation = c.summary_type, ACTIVATIONS[c.summary_activation or "linear"]
        self.first, self.last = Dropout(c.summary_first_dropout), Dropout(c.summary_last_dropout)

    def forward(self, x: Value, place: Value | None = None) -> Value:
        """x [batch seq n], place i64[batch] (of a summary by `cls_index`; the last one if None) -> [batch labels or n]."""
        states = {"first": lambda: x[:, 0], "mean": lambda: ops.mean(x, axis=1)}
        chosen = pick(x, place) if self.kind == "cls_index" and place is not None else states.get(self.kind, lambda: x[:, -1])()
        chosen = self.first(chosen)
        return self.last(self.activation(chosen if self.summary is None else self.summary(chosen)))


class Projected(Layer):
    """A tower's pooled state in the common space."""

    def __init__(self, body: Layer, n: int, width: int, name: str):
        self.body, self.projection, self.name = body, Linear(n, width, bias=False), name

    def forward(self, **inputs):
        """-> text_embeds or image_embeds [batch width], last_hidden_state."""
        out = self.body(**inputs)
        return {self.name: self.projection(out["pooler_output"]), "last_hidden_state": out["last_hidden_state"], **rest(out)}


def contrastive_loss(per_text: Value, per_image: Value) -> Value:
    """The mean of choosing the image for each text and the text for each image; there must be as many of one as of the other."""
    texts, images = per_text.shape
    for more in (texts - images, images - texts):
        current().limit(more, 0, "return_loss pairs each text with an image")
    return (ops.cross_entropy(per_text, ops.iota(size=texts)) + ops.cross_entropy(per_image, ops.iota(size=images))) / 2.0
