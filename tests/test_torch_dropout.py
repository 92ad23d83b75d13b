"""Dropout on CPUs: it drops what it says, keeps the mean, and its attention is attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interlingua.frontends.torch_dropout import attention_with_dropout, dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999, 1.0])
def test_dropout_by_sixteen_bits(rate: float):
    torch.manual_seed(0)
    x = torch.full((1001, 999), 2.0, requires_grad=True)
    y = dropout(x, rate)
    y.sum().backward()
    kept = round((1 - rate) * 65536) / 65536
    assert set(y.unique().tolist()) == ({0.0, float(np.float32(2) * np.float32(1 / kept))} if kept else {0.0})
    assert float((y != 0).double().mean()) == pytest.approx(1 - rate, abs=2e-3)
    assert torch.equal(x.grad, y.detach() / 2)
    rows = (y != 0).double()
    assert abs(float(torch.corrcoef(torch.stack([rows[:-1].flatten(), rows[1:].flatten()]))[0, 1])) < 5e-3 or rate == 1


@pytest.mark.parametrize("keys", [6, 2])
@pytest.mark.parametrize("kind", ["none", "causal", "bool", "float"])
def test_attention_with_dropout_is_attention(kind: str, keys: int):
    """At a rate at which nothing is dropped; one row sees no key."""
    q, k, v = (torch.randn(2, heads, 5, 4, requires_grad=True) for heads in (6, keys, keys))
    seen = torch.rand(2, 1, 5, 5) < 0.7
    seen[1, 0, 3] = False
    masks = {"bool": seen, "float": torch.randn(2, 6, 5, 5).masked_fill(~seen, float("-inf"))}
    mask, causal, grouped = masks.get(kind), kind == "causal", keys != 6
    ours = attention_with_dropout(q, k, v, mask, rate=1e-6, causal=causal, scale=0.7, grouped=grouped)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=0.7, enable_gqa=grouped)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(*(torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (ours, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
