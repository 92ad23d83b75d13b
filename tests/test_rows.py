"""Every row of the text encoders whole: a folder as its publishers ship it (configuration, tokenizer, weights), raw text in, the answer out.

Rows that are another checkpoint of an architecture (BERTweet, PhoBERT, BORT, mLUKE) have no card of their own; this shows that they need none.
Each folder holds a small random model of the reference library; answers are compared with those of its own pipelines, to 1e-4.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import derived_rows
import numpy as np
import pytest
import tokenizer_files
from processing_files import write

import interlingua as il
from interlingua import models

TEXT = "the quick brown fox jumps over the lazy dog"


@dataclass(frozen=True)
class Published:
    """A row: its card, its tokenizer's files, what config.json and tokenizer_config.json say besides sizes, and how its weights are stored."""

    card: str
    files: Callable[[Path], None]
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    pickled: bool = False
    needs: str = ""


def _files(layout: str) -> Callable[[Path], None]:
    return tokenizer_files.LAYOUTS[layout]


def _nothing(folder: Path) -> None:
    """CANINE's code points need no file."""


def _named(name: str) -> dict[str, Any]:
    return {"tokenizer_class": f"{name}Tokenizer"}


_BORT = {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5, **_named("Roberta")}
_ONE_KIND = {"type_vocab_size": 1, "pad_token_id": 1}
ROWS: dict[str, Published] = {
    "ALBERT": Published("albert", _files("albert")),
    "BERTweet": Published("roberta", tokenizer_files.fastbpe, _ONE_KIND | _named("Bertweet"), pickled=True),
    "BigBird-RoBERTa": Published("big_bird", _files("big_bird"), {"attention_type": "original_full"}),
    "BORT": Published("bert", _files("roberta"), _BORT, _named("Roberta"), pickled=True),
    "CamemBERT": Published("camembert", _files("camembert")),
    "CANINE": Published("canine", _nothing, {"num_hash_buckets": 80}),  # as many as there are places: the reference looks both up in one
    "ConvBERT": Published("convbert", _files("convbert")),
    "Data2VecText": Published("data2vec_text", _files("roberta"), {}, _named("Roberta")),
    "DeBERTa": Published("deberta", _files("deberta")),
    "DeBERTa-v2": Published("deberta_v2", _files("deberta-v2")),
    "DistilBERT": Published("distilbert", _files("distilbert")),
    "ELECTRA": Published("electra", _files("electra")),
    "FlauBERT": Published("flaubert", tokenizer_files.moses, needs="sacremoses"),
    "FNet": Published("fnet", _files("fnet")),
    "Funnel Transformer": Published("funnel", _files("funnel")),
    "I-BERT": Published("ibert", _files("roberta"), {}, _named("Roberta")),
    "Longformer": Published("longformer", _files("longformer")),
    "LUKE": Published("luke", _files("luke"), {}, _named("Luke")),
    "mLUKE": Published("luke", _files("mluke"), {}, _named("MLuke"), pickled=True, needs="sentencepiece"),
    "Megatron-BERT": Published("megatron_bert", _files("bert"), {}, _named("Bert")),
    "MobileBERT": Published("mobilebert", _files("mobilebert")),
    "MPNet": Published("mpnet", _files("mpnet")),
    "Nyströmformer": Published("nystromformer", _files("albert"), {"segment_means_seq_len": 4, "num_landmarks": 4}, _named("Albert")),
    "PhoBERT": Published("roberta", tokenizer_files.fastbpe, _ONE_KIND | _named("Phobert"), pickled=True),
    "RemBERT": Published("rembert", _files("rembert")),
    "RoBERTa": Published("roberta", _files("roberta")),
    "RoFormer": Published("roformer", _files("bert"), needs="rjieba"),
    "Splinter": Published("splinter", _files("splinter")),
    "SqueezeBert": Published("squeezebert", _files("squeezebert")),
    "XLM": Published("xlm", tokenizer_files.moses, needs="sacremoses"),
    "XLM-RoBERTa": Published("xlm_roberta", _files("xlm-roberta")),
    "XLM-RoBERTa-XL": Published("xlm_roberta_xl", _files("xlm-roberta"), {}, _named("XLMRoberta")),
    "XLNet": Published("xlnet", _files("xlnet")),
    "YOSO": Published("yoso", _files("albert"), {}, _named("Albert")),
}


def _published(row: Published, folder: Path) -> tuple[str, Any]:
    """Writes a row's folder; its head and the reference's tokenizer of it."""
    import torch
    import transformers

    card = models.card(row.card)
    masked = [h for h in card.heads if h.endswith(("ForMaskedLM", "WithLMHeadModel"))]
    head = masked[0] if masked else next(h for h in card.heads if h.endswith("Model"))
    row.files(folder)
    places = {k: 80 for k in ("max_position_embeddings",) if hasattr(card.config(), k)}  # XLNet has none
    config = derived_rows.values(card, head, 0, {**row.config, **places}) | {"model_type": card.model_type}
    write(folder, config=config, tokenizer_config={"model_max_length": 64, **row.tokenizer})
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    kind = getattr(transformers, head)
    known = kind.config_class(**{k: v for k, v in config.items() if k != "model_type"})
    known.vocab_size = known.n_words = max(len(tokenizer), 1) if hasattr(known, "vocab_size") else 0
    torch.manual_seed(0)
    model = kind(known).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape) * 0.05)
    model.save_pretrained(folder, safe_serialization=not row.pickled)
    saved = json.loads((folder / "config.json").read_text())
    write(folder, config={**saved, **{k: v for k, v in row.config.items() if k == "tokenizer_class"}})
    return head, tokenizer


@pytest.mark.parametrize("name", ROWS)
def test_raw_text_to_answer(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    if row.needs:
        pytest.importorskip(row.needs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        head, tokenizer = _published(row, tmp_path)
        task = "fill-mask" if tokenizer.mask_token and head.endswith(("ForMaskedLM", "WithLMHeadModel")) else "feature-extraction"
        text = TEXT.replace("brown", tokenizer.mask_token) if task == "fill-mask" else TEXT
        theirs = transformers.pipeline(task, model=str(tmp_path), tokenizer=tokenizer, device="cpu")(text)
    ours = il.pipeline(task, tmp_path)(text)
    if task == "feature-extraction":
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        return
    assert [(r["token"], r["token_str"], r["sequence"]) for r in ours] == [(r["token"], r["token_str"], r["sequence"]) for r in theirs]
    np.testing.assert_allclose([r["score"] for r in ours], [r["score"] for r in theirs], atol=1e-4)
