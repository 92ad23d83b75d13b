"""What a step's scores become before a token is chosen, and the choice: as the reference does it."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from test_generation import NEW, TARGETS, expected, ours, prompts

from interlingua.runtime.generating import scores
from interlingua.runtime.generating.options import Options


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_seed_draws_the_same_everywhere(kind: str):
    options = {"do_sample": True, "temperature": 1.4, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.2, "max_new_tokens": NEW}
    draws = [[ours(kind, t).generate(*prompts(kind), seed=seed, **options) for seed in range(4)] for t in TARGETS]
    for made in draws[1:]:
        for a, b in zip(made, draws[0], strict=True):
            np.testing.assert_array_equal(a, b)
    assert len({x.tobytes() for x in draws[0]}) == 4


def test_draws_follow_the_probabilities():
    logits = np.log(np.array([[0.5, 0.3, 0.0, 0.2]], np.float64) + 1e-30).repeat(40_000, 0)
    found = np.bincount(scores.draw(logits, np.random.default_rng(0)), minlength=4) / len(logits)
    np.testing.assert_allclose(found, [0.5, 0.3, 0, 0.2], atol=0.01)
    assert found[2] == 0


@pytest.mark.parametrize(
    "options",
    [
        *({"top_k": k} for k in (3, 99)),
        *({"top_p": p} for p in (0.6, 0.0)),
        *({"min_p": p} for p in (0.0, 0.1, 1.0)),
        *({"typical_p": p} for p in (0.05, 0.5, 0.95)),
        *({"epsilon_cutoff": p} for p in (1e-3, 0.9)),
        *({"eta_cutoff": p} for p in (1e-3, 0.3)),
        {"temperature": 0.3, "top_k": 9, "top_p": 0.4},
        {"temperature": 1.7, "top_k": 30, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.9, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02},
    ],
    ids=str,
)
def test_filters_are_the_reference_s(options: dict[str, Any]):
    torch, process = importlib.import_module("torch"), importlib.import_module("transformers.generation.logits_process")
    given, tokens = np.random.default_rng(1).normal(0, 3, (5, 40)), np.random.default_rng(2).integers(0, 40, (5, 6))
    true = torch.tensor(given)
    chain = [process.RepetitionPenaltyLogitsProcessor(1.6), process.MinNewTokensLengthLogitsProcessor(6, 1, [4, 5])]
    kinds = {"temperature": "Temperature", "top_k": "TopK", "top_p": "TopP", "min_p": "MinP", "typical_p": "Typical"}
    kinds |= {"epsilon_cutoff": "Epsilon", "eta_cutoff": "Eta"}
    chain += [getattr(process, f"{kinds[name]}LogitsWarper")(value) for name, value in options.items()]
    for step in chain:
        true = step(torch.tensor(tokens), true)
    asked = Options(repetition_penalty=1.6, min_new_tokens=1, eos_token_id=[4, 5], **options)
    np.testing.assert_allclose(scores.warped(scores.constrained(given, tokens, 0, asked), asked), true.numpy(), rtol=1e-12)


CONSTRAINTS: list[dict[str, Any]] = [
    *({"no_repeat_ngram_size": n} for n in (1, 2, 3)),
    {"min_length": 11, "eos_token_id": 5},
    {"min_length": 40, "min_new_tokens": 2, "eos_token_id": [*range(5, 30)]},  # the second overrules the first
    {"bad_words_ids": [[5], [7, 8], [11, 12, 13], [2], *([a, b] for a in range(6, 12) for b in range(20))], "eos_token_id": 2},
    {"suppress_tokens": [*range(4, 30)], "begin_suppress_tokens": [*range(30, 39)]},
    {"forced_bos_token_id": 9, "forced_eos_token_id": 6, "begin_suppress_tokens": [*range(20)]},
    {"forced_eos_token_id": [6, 7], "eos_token_id": [6, 7], "repetition_penalty": 1.3},
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "bad_words_ids": [[5]], "suppress_tokens": [6], "min_length": 9, "eos_token_id": 8},
]


@pytest.mark.parametrize("options", CONSTRAINTS, ids=str)
def test_what_may_follow_is_the_reference_s(options: dict[str, Any]):
    """The likeliest tokens and beams, after padded prompts and after a single token."""
    for kind in ("gpt2", "t5"):
        for beams_count in (1, 3):
            for ids, mask in (prompts(kind), prompts(kind, 1, 1)):
                asked = {"num_beams": beams_count, "max_new_tokens": NEW, "pad_token_id": 39, "eos_token_id": None, **options}
                made = ours(kind).generate(ids, mask, **asked)
                np.testing.assert_array_equal(made, expected(kind, ids, mask, **asked), err_msg=f"{kind} {asked}")
