"""Dropout in PyTorch: on a CPU, torch draws one number for each element, in one thread, which is a twentieth of a training step of BERT."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

_STEPS = 1 << 16


def dropout(x: torch.Tensor, rate: float) -> torch.Tensor:
    """x with elements zeroed at that rate, to 1 / 65536, and the others scaled so that the mean stays; random numbers are torch's."""
    if not _slow_on(x):
        return F.dropout(x, rate)
    if not (kept := round((1 - rate) * _STEPS)):
        return x * 0
    draws = torch.randint(-(1 << 63), (1 << 63) - 1, ((x.numel() + 3) // 4,))
    sixteen_bits = draws.view(torch.int16)[: x.numel()].view(x.shape)  # one draw is enough for four elements
    return x * ((sixteen_bits <= kept - 1 - _STEPS // 2).to(x.dtype) * (_STEPS / kept))


def _slow_on(x: torch.Tensor) -> bool:
    """Whether torch would draw one number after the other; compilers draw them in their own way, and halves are computed in float32 by torch."""
    return x.device.type == "cpu" and x.dtype.itemsize > 2 and not torch.compiler.is_compiling()


def attention_with_dropout(q: Any, k: Any, v: Any, mask: Any, *, rate: float, causal: bool, scale: float, grouped: bool) -> torch.Tensor:
    """`scaled_dot_product_attention` with that dropout of weights. A row that sees no key gives zeros."""
    if not _slow_on(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate, is_causal=causal, scale=scale, enable_gqa=grouped)
    if grouped:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    if causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    scores = q @ k.transpose(-2, -1) * scale
    if mask is None:
        return dropout(scores.softmax(-1), rate) @ v
    seen = mask if mask.dtype == torch.bool else mask > float("-inf")
    scores = scores if mask.dtype == torch.bool else scores + mask
    weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1)
    return dropout(weights, rate) @ v * seen.any(-1, keepdim=True)
