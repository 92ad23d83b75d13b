"""Heads over a body that hears: transcription, classification of recordings and frames, speaker vectors, pre-training."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..errors import ConfigError
from ..graph import Param, Value
from ..layer import Layer
from .audio import MarginLoss, Quantizer, TimeDelay, ctc_loss, frame_count, frames_of, least_samples, mask_until, mean_and_deviation
from .basic import Dropout, Linear
from .heads import Outputs, rest, scored


class Transcriber(Layer):
    """Characters of each frame, trained to align with `labels`."""

    def __init__(self, body: Layer, c: Any):
        self.body, self.dropout, self.lm_head, self.config = body, Dropout(c.final_dropout), Linear(c.width, c.vocab_size), c

    def forward(self, input_values: Value, attention_mask: Value | None = None, labels: Value | None = None) -> Outputs:
        """-> logits [batch frames words], loss where labels i64[batch n] are given (negative ones are none)."""
        c, out = self.config, self.body(input_values, attention_mask)
        logits = self.lm_head(self.dropout(out["last_hidden_state"]))
        loss = None
        if labels is not None:
            frames = c.frames(adapted=True)
            if attention_mask is None:
                lengths = ops.broadcast_to(ops.literal(value=[0]) + logits.shape[1], shape=(labels.shape[0],))
            else:
                lengths = frames_of(attention_mask, frames)
            loss = ctc_loss(logits, labels, lengths, blank=c.pad_token_id or 0, reduction=c.ctc_loss_reduction, zero_infinity=c.ctc_zero_infinity)
        return {"loss": loss, "logits": logits, **rest(out)}


class Unmasked(Layer):
    """Characters of each frame without a loss; the reference's head of this name reads neither mask nor labels."""

    def __init__(self, body: Layer, c: Any):
        self.body, self.dropout, self.lm_head = body, Dropout(c.final_dropout), Linear(c.hidden_size, c.vocab_size)

    def forward(self, input_values: Value, attention_mask: Value | None = None, labels: Value | None = None) -> Outputs:
        """-> logits [batch frames words]."""
        out = self.body(input_values)
        return {"logits": self.lm_head(self.dropout(out["last_hidden_state"])), **rest(out)}


class AudioHead(Layer):
    """The last state, or a learnt mean of all states (https://arxiv.org/abs/2105.01051)."""

    def __init__(self, body: Layer, c: Any, adapters: bool = True):
        if c.add_adapter and not adapters:
            raise ConfigError("add_adapter is true, expected false: this head does not go with an adapter")
        self.body, self.config = body, c
        self.layer_weights = Param(c.num_hidden_layers + 1, init="ones") if c.use_weighted_layer_sum else None

    def states(self, out: Outputs) -> Value:
        """[batch frames n]."""
        if self.layer_weights is None:
            return out["last_hidden_state"]
        every = ops.stack(*out["hidden_states"], axis=1)
        return ops.sum(every * ops.softmax(self.layer_weights)[:, None, None], axis=1)


class RecordingClassifier(AudioHead):
    """One decision for a recording, from the mean of its live frames."""

    def __init__(self, body: Layer, c: Any):
        super().__init__(body, c, adapters=False)
        self.projector, self.classifier = Linear(c.hidden_size, c.classifier_proj_size), Linear(c.classifier_proj_size, c.labels)

    def forward(self, input_values: Value, attention_mask: Value | None = None, labels: Value | None = None) -> Outputs:
        """-> logits [batch labels], loss where labels i64[batch] are given."""
        out = self.body(input_values, attention_mask)
        x = self.projector(self.states(out))
        if attention_mask is None:
            pooled = ops.mean(x, axis=1)
        else:
            live = ops.cast(mask_until(frames_of(attention_mask, self.config.frames()), x.shape[1]), dtype="f32")[:, :, None]
            pooled = ops.sum(x * live, axis=1) / ops.sum(live, axis=1)
        logits = self.classifier(pooled)
        return scored(out, logits, labels)


class FrameClassifier(AudioHead):
    """A decision for each frame."""

    def __init__(self, body: Layer, c: Any):
        super().__init__(body, c, adapters=False)
        self.classifier = Linear(c.hidden_size, c.labels)

    def forward(self, input_values: Value, attention_mask: Value | None = None, labels: Value | None = None) -> Outputs:
        """-> logits [batch frames labels], loss where labels [batch frames labels] (the largest is meant) are given."""
        out = self.body(input_values, attention_mask)
        logits = self.classifier(self.states(out))
        return scored(out, logits, labels, lambda logits, labels: ops.cross_entropy(logits, ops.argmax(labels, axis=2)))


class XVector(AudioHead):
    """A vector for the speaker (https://www.danielpovey.com/files/2018_icassp_xvectors.pdf)."""

    def __init__(self, body: Layer, c: Any):
        super().__init__(body, c)
        self.projector = Linear(c.hidden_size, c.tdnn_dim[0])
        widths = [c.tdnn_dim[0], *c.tdnn_dim]
        self.tdnn = [TimeDelay(*row) for row in zip(widths, c.tdnn_dim, c.tdnn_kernel, c.tdnn_dilation, strict=False)]
        self.feature_extractor = Linear(2 * c.tdnn_dim[-1], c.xvector_output_dim)
        self.classifier = Linear(c.xvector_output_dim, c.xvector_output_dim)
        self.objective = MarginLoss(c.xvector_output_dim, c.labels)

    def forward(self, input_values: Value, attention_mask: Value | None = None, labels: Value | None = None) -> Outputs:
        """-> logits and embeddings [batch m], loss where labels i64[batch] are given."""
        out = self.body(input_values, attention_mask)
        x = self.projector(self.states(out))
        for layer in self.tdnn:
            x = layer(x)
        embeddings = self.feature_extractor(mean_and_deviation(x, None if attention_mask is None else self._lengths(attention_mask)))
        logits = self.classifier(embeddings)
        return {**scored(out, logits, labels, self.objective), "embeddings": embeddings}

    @staticmethod
    def least_frames(c: Any) -> int:
        """The frames that the time-delay layers see at once, before the adapter, whose convolutions are padded by one on each side."""
        steps, spans = c.num_adapter_layers if c.add_adapter else 0, [(k - 1) * d + 1 for k, d in zip(c.tdnn_kernel, c.tdnn_dilation, strict=False)]
        return least_samples([c.adapter_kernel_size - 2] * steps + spans, [c.adapter_stride] * steps + [1] * len(spans))

    def _lengths(self, attention_mask: Value) -> Value:
        """Live frames behind the time-delay layers; dilation is left out of account, as the reference leaves it."""
        frames = frames_of(attention_mask, self.config.frames(adapted=True))
        return frame_count(frames, self.config.tdnn_kernel, [1] * len(self.config.tdnn_kernel))


class Contrastive(Layer):
    """Hidden frames told apart from others by their quantised features."""

    def __init__(self, body: Layer, c: Any):
        self.body, self.config, self.dropout = body, c, Dropout(c.feat_quantizer_dropout)
        self.quantizer = Quantizer(c.conv_dim[-1], c.num_codevector_groups, c.num_codevectors_per_group, c.codevector_dim)
        self.project_hid, self.project_q = Linear(c.hidden_size, c.proj_codevector_dim), Linear(c.codevector_dim, c.proj_codevector_dim)

    def forward(self, input_values, attention_mask=None, mask_time_indices=None, sampled_negative_indices=None) -> Outputs:
        """-> projected_states and projected_quantized_states [batch frames m], codevector_perplexity; the losses where negatives
        i64[batch frames n] (places in batch x frames) and the hidden frames bool[batch frames] are given."""
        out = self.body(input_values, attention_mask, mask_time_indices)
        states = self.project_hid(out["last_hidden_state"])
        vectors, codes, perplexity = self.quantizer(self.dropout(out["extract_features"]), mask_time_indices)
        targets = self.project_q(vectors)
        losses: Outputs = {}
        if sampled_negative_indices is not None and mask_time_indices is not None:
            losses = self._losses(states, targets, codes, perplexity, sampled_negative_indices, mask_time_indices)
        named = {"projected_states": states, "projected_quantized_states": targets, "codevector_perplexity": perplexity}
        return {"loss": losses.pop("loss", None), **named, **rest(out), **losses}

    def _losses(self, states: Value, targets: Value, codes: Value, perplexity: Value, negatives: Value, masked: Value) -> Outputs:
        c, (batch, frames, width) = self.config, targets.shape
        others = ops.take(ops.view(targets, (batch * frames, width)), negatives)  # [batch frames n width]
        of_others = ops.take(ops.view(codes, (batch * frames, codes.shape[2])), negatives)
        same = ops.all(ops.equal(of_others, codes[:, :, None]), axis=3)
        unit = lambda x: ops.l2_normalize(x, eps=1e-8)
        anchor = unit(states)
        positive = ops.sum(anchor * unit(targets), axis=2, keep=True) / c.contrastive_logits_temperature
        negative = ops.sum(anchor[:, :, None] * unit(others), axis=3) / c.contrastive_logits_temperature
        logits = ops.concat(positive, ops.where(same, ops.LOWEST, negative), axis=2)
        right = ops.log_softmax(logits)[..., 0]
        contrastive = -ops.sum(ops.where(masked, right, 0.0), axis=(0, 1))
        every = float(c.num_codevectors_per_group * c.num_codevector_groups)
        diversity = (every - perplexity) / every * ops.sum(ops.cast(masked, dtype="f32"), axis=(0, 1))
        return {"loss": contrastive + c.diversity_loss_weight * diversity, "contrastive_loss": contrastive, "diversity_loss": diversity}
