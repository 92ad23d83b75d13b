"""The first GPT (https://cdn.openai.com/research-covers/language-unsupervised/language_understanding_paper.pdf): GPT-2 that normalises behind."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..ir.authoring import Card, choice, nn
from .gpt2 import Gpt2, GptConfig, gpt_heads

_ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "silu"}


@dataclass(kw_only=True)
class OpenAiGptConfig(GptConfig):
    """config.json of a GPT checkpoint."""

    vocab_size: int = 40478
    n_positions: int = 512
    afn: str = choice("gelu", _ACTIVATIONS)


class OpenAiGpt(Gpt2):
    """Embeddings and causal blocks; nothing normalises the last state once more."""

    def last_norm(self, c: OpenAiGptConfig) -> None:
        """None."""

    def block(self, c: OpenAiGptConfig, i: int) -> nn.Block:
        """The block at place i."""
        n, rate = c.n_embd, c.resid_pdrop
        attention = nn.FusedAttention(n, c.n_head, causal=True, dropout=c.attn_pdrop, out_dropout=rate)
        mlp = nn.Mlp(n, 4 * n, _ACTIVATIONS[c.afn], layer=nn.Affine, dropout=rate)
        return nn.Block(nn.PostNorm, lambda: nn.LayerNorm(n, c.layer_norm_epsilon), attention, mlp)


_HEADS = gpt_heads("OpenAIGPT", OpenAiGpt)
_CHOICES = _HEADS["OpenAIGPTDoubleHeadsModel"]


def _without_mask(c: OpenAiGptConfig) -> dict[str, str]:
    """The reference takes no mask of several choices; padding on the right is behind all that is read."""
    return {name: kind for name, kind in _CHOICES.inputs_for(c).items() if name != "attention_mask"}


CARD = Card(
    model_type="openai-gpt",
    config=OpenAiGptConfig,
    base="transformer",
    heads=_HEADS | {"OpenAIGPTDoubleHeadsModel": replace(_CHOICES, inputs=_without_mask)},
    names={
        "{words,positions,vocabulary}": "{tokens_embed,positions_embed,lm_head}",
        "blocks.*.{attention,mlp}.norm": "h.*.{ln_1,ln_2}",
        "blocks.*.attention.layer.{qkv,out}": "h.*.attn.{c_attn,c_proj}",
        "blocks.*.mlp.layer.{up,down}": "h.*.mlp.{c_fc,c_proj}",
        "choice.summary": "multiple_choice_head.summary",
    },
    unused=("*attn.bias",),
)
