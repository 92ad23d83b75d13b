"""Eager latency of bert-base in PyTorch, our `to_torch()` and the reference library's model in turns in one process."""

from __future__ import annotations

import argparse
from functools import partial

from common import Table, bert_base, in_turns, median
from latency import TEXT as SIZES


def measure(seconds: float = 6) -> Table:
    """A row for each size: medians, and the ratio of the reference's to ours (above 1: ours is faster)."""
    import torch
    from transformers import BertModel

    import interlingua as il

    folder = bert_base()
    ours = il.load(folder).to_torch(outputs=["last_hidden_state", "pooler_output"]).eval()
    columns = ["batch x tokens", "interlingua", "reference's attention", "reference", "reference / interlingua"]
    table = Table("Eager latency of bert-base in PyTorch (CPU)", columns)
    for kind in ("sdpa", "eager"):
        theirs = BertModel.from_pretrained(folder, attn_implementation=kind).eval()
        for batch, length in SIZES:
            inputs = {"input_ids": torch.randint(1, 30000, (batch, length)), "attention_mask": torch.ones(batch, length, dtype=torch.long)}
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
            inputs["attention_mask"][0, length - length // 4 :] = 0
            with torch.inference_mode():
                times = in_turns({"ours": partial(ours, **inputs), "theirs": partial(theirs, **inputs)}, seconds)
            own, other = median(times["ours"]), median(times["theirs"])
            table.rows.append([f"{batch} x {length}", f"{own * 1e3:.1f} ms", kind, f"{other * 1e3:.1f} ms", f"{other / own:.3f}"])
    table.notes.append(f"torch {torch.__version__}; medians of calls in turns for {seconds:.0f} s a row, in inference_mode; padded; same weights.")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6, help="for each row")
    print(measure(parser.parse_args().seconds))
