"""Writes what the reference library makes of the demo's sentences: python examples/minilm_reference.py (needs transformers and torch)."""

from __future__ import annotations

import numpy as np
import torch
from minilm_demo import REFERENCE, SENTENCES, checkpoint
from transformers import AutoModel, AutoTokenizer


def embed(sentences: list[str]) -> np.ndarray:
    """Mean of the live words' last states, of length 1, as the checkpoint's modules.json says."""
    words = AutoTokenizer.from_pretrained(checkpoint())(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(checkpoint())(**words).last_hidden_state
    live = words["attention_mask"][..., None].float()
    return torch.nn.functional.normalize((states * live).sum(1) / live.sum(1)).numpy()


if __name__ == "__main__":
    np.save(REFERENCE, embed(SENTENCES).astype(np.float32))
