"""Generation against the reference's own `generate`, token for token, on every target that generates."""

from __future__ import annotations

import copy
import functools
import importlib
import itertools
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import run, stock

import interlingua as il
from interlingua.exporters import quantization
from interlingua.ir.errors import ConfigError, InputError, TargetError, UsageError
from interlingua.runtime.generating import beams
from interlingua.runtime.generating.options import Options
from interlingua.runtime.generating.xla import rounded
from interlingua.runtime.generation import Generator

TARGETS = ("onnxruntime", "torch", "xla")
KINDS = ("gpt2", "t5", "t5-v1.1")
ROOT = tempfile.TemporaryDirectory(prefix="interlingua-generation-")
NEW = 12
SIZES = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"vocab_size": 40, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}),
    "t5": ("T5", SIZES),
    "t5-v1.1": ("T5", {**SIZES, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
}


@functools.cache
def reference(kind: str) -> Any:
    """A tiny model of the reference library, whose weights are large enough for its choices to differ from step to step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
        transformers.logging.set_verbosity_error()
        name, fields = CONFIGS[kind]
        head = "LMHeadModel" if name == "GPT2" else "ForConditionalGeneration"
        torch.manual_seed(0)
        model = getattr(transformers, name + head)(getattr(transformers, f"{name}Config")(**fields)).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, weight in sorted(model.named_parameters()):
                if weight.ndim > 1:
                    scale = 3.0 if "relative" in name else 0.3 if "shared" in name or "wte" in name else 0.4
                    weight.copy_(scale * torch.randn(weight.shape, generator=generator))
        model.save_pretrained(Path(ROOT.name) / kind)
        return model


def folder(kind: str) -> Path:
    """Where the reference's checkpoint lies."""
    reference(kind)
    return Path(ROOT.name) / kind


@functools.cache
def ours(kind: str, target: str = "onnxruntime") -> Generator:
    """A generator of the reference's checkpoint, compiled in memory."""
    return il.generator(il.load(folder(kind)), target)


def prompts(kind: str, rows: int = 3, length: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of which all but the first are padded, on the side where the reference wants padding."""
    ids, mask = np.random.default_rng(3).integers(3, 40, (rows, length)), np.ones((rows, length), np.int64)
    for row in range(1, rows):
        mask[row, :row] = 0
    return (ids, mask) if kind == "gpt2" else (ids, mask[:, ::-1].copy())


def expected(kind: str, ids: np.ndarray, mask: np.ndarray | None, **options: Any) -> np.ndarray:
    torch = importlib.import_module("torch")
    options = {"max_new_tokens": NEW, "do_sample": False, **options}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return reference(kind).generate(torch.tensor(ids), attention_mask=None if mask is None else torch.tensor(mask), **options).numpy()


def same(kind: str, target: str, ids: np.ndarray, mask: np.ndarray | None, **options: Any) -> np.ndarray:
    """What both make, which must be the same."""
    made = ours(kind, target).generate(ids, mask, **{"max_new_tokens": NEW, **options})
    np.testing.assert_array_equal(made, expected(kind, ids, mask, **options))
    assert made.dtype == np.int64
    return made


def endings(kind: str) -> list[int]:
    """Ids that greedy rows meet at different steps, so that some rows end while others go on."""
    made = expected(kind, *prompts(kind), eos_token_id=None)[:, -NEW:]
    first = lambda row, t: int(np.argmax(row == t)) if t in row else NEW
    return sorted(set(made.flatten().tolist()), key=lambda t: -len({first(row, t) for row in made}))[:2]


# ---- the reference's tokens ---------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "repetition penalty": {"repetition_penalty": 1.7},
    "2 beams": {"num_beams": 2},
    "4 beams, short": {"num_beams": 4, "length_penalty": -1.0},
    "4 beams, long, never": {"num_beams": 4, "length_penalty": 2.0, "early_stopping": "never"},
    "4 beams, first, penalty": {"num_beams": 4, "early_stopping": True, "repetition_penalty": 1.3},
    "2 beams, no length": {"num_beams": 2, "length_penalty": 0.0, "early_stopping": "never", "min_new_tokens": 4},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", TARGETS)
def test_padded_batch(target: str, kind: str, case: str):
    for end in ([], endings(kind)[:1], endings(kind)):
        same(kind, target, *prompts(kind), **CASES[case], eos_token_id=end or None, pad_token_id=39)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", TARGETS)
def test_a_single_row(target: str, kind: str):
    ids = prompts(kind, 1)[0]
    greedy, beams = same(kind, target, ids, None), same(kind, target, ids, None, num_beams=3, eos_token_id=endings(kind)[0])
    assert greedy.shape[1] == (7 if kind == "gpt2" else 1) + NEW
    assert not np.array_equal(greedy, beams)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_end_early_are_filled(kind: str):
    end = endings(kind)[0]
    made = same(kind, "onnxruntime", *prompts(kind), eos_token_id=end, pad_token_id=39)[:, -NEW:]
    lengths = [int(np.argmax(row == end)) + 1 if end in row else len(row) for row in made]
    assert len(set(lengths)) > 1  # or the test does not test what it says
    assert all((row[n:] == 39).all() for row, n in zip(made, lengths, strict=True))
    longer = same(kind, "onnxruntime", *prompts(kind), eos_token_id=end, pad_token_id=39, min_new_tokens=NEW)
    assert not (longer[:, -NEW:][:, : NEW - 1] == end).any()
    all_ended = same(kind, "onnxruntime", *prompts(kind), eos_token_id=list(range(3, 40)))
    assert all_ended.shape[1] <= (7 if kind == "gpt2" else 1) + NEW


@functools.cache
def _looked_up(words: int) -> Any:
    """A model of the reference library whose logits are rows of a table, by place and last token: a search is all that it does."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    made = importlib.import_module("transformers.modeling_outputs").CausalLMOutput
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=words, n_positions=64, n_embd=4, n_layer=1, n_head=1))
    model.forward = lambda input_ids=None, attention_mask=None, **_: made(logits=torch.tensor(model.table[input_ids.shape[1]])[input_ids])
    return model


@pytest.mark.parametrize("group", range(4))
def test_beam_search_on_any_scores(group: int):
    """With many ends that steps meet all the time, of sharp scores and flat ones."""
    torch = importlib.import_module("torch")
    for seed in range(75 * group, 75 * group + 75):
        rng = np.random.default_rng(seed)
        words = int(rng.integers(6, 14))
        table, prompt = rng.normal(0, rng.choice([0.3, 1, 3]), (10, words, words)).astype(np.float32), rng.integers(0, words, (3, 2))
        options = {
            "num_beams": int(rng.integers(2, 5)),
            "length_penalty": float(rng.choice([-2, -0.5, 0, 1, 3])),
            "early_stopping": [True, False, "never"][rng.integers(3)],
            "eos_token_id": rng.choice(words, rng.integers(1, words // 2), replace=False).tolist(),
            "pad_token_id": int(rng.integers(2)),
            "max_new_tokens": 8,
        }
        model = _looked_up(words)
        model.table = table
        given = {"attention_mask": torch.ones(3, 2, dtype=torch.long), "use_cache": False, "do_sample": False, **options}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            true = model.generate(torch.tensor(prompt), **given)
        places = itertools.count(3)
        made = beams.search(prompt, table[2][prompt[:, -1]], lambda tokens, _, table=table, n=places: table[next(n)][tokens], Options(**options))
        np.testing.assert_array_equal(made, true.numpy(), err_msg=f"seed {seed}: {options}")


def test_a_mask_that_is_left_out_is_read_off_the_padding():
    ids = prompts("gpt2")[0].copy()
    ids[1, :3] = ids[2, 0] = 39
    masked = same("gpt2", "onnxruntime", ids, None, pad_token_id=39)
    assert not np.array_equal(masked, same("gpt2", "onnxruntime", ids, np.ones_like(ids), pad_token_id=39))
    same("gpt2", "onnxruntime", ids, None, pad_token_id=39, eos_token_id=39)  # then it may be an end, and is seen


def test_up_to_the_last_position():
    ids = np.random.default_rng(5).integers(3, 40, (2, 60))
    mask = np.ones_like(ids)
    mask[1, :9] = 0
    for target in TARGETS:
        same("gpt2", target, ids, mask, max_new_tokens=4, eos_token_id=None)


@pytest.mark.parametrize("target", ["torch", "xla"])
def test_half_precision(target: str):
    made = il.generator(il.load(folder("gpt2")), target, dtype="f16")
    np.testing.assert_array_equal(made.generate(*prompts("gpt2"), max_new_tokens=4), expected("gpt2", *prompts("gpt2"), max_new_tokens=4))
    state = made.decoder.run({"input_ids": [[5]], "attention_mask": [[1]], "position_ids": [[0]]}, made.decoder.begin(1, 4))[1]
    assert {str(x.dtype).removeprefix("torch.") for x in state.values()} == {"float16"}


# ---- an assistant that guesses ------------------------------------------------------------------


@functools.cache
def guessing(kind: str, noise: float) -> Path:
    """The reference's checkpoint with noise in its weights, so that it agrees on some tokens and not on others."""
    torch, model = importlib.import_module("torch"), copy.deepcopy(reference(kind))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            weight.add_(noise * weight.std() * torch.randn(weight.shape, generator=generator)) if weight.ndim > 1 else None
    model.save_pretrained(place := Path(ROOT.name) / f"{kind}-{noise}")
    return place


@functools.cache
def assisted(kind: str, target: str, noise: float) -> Generator:
    assistant = il.generator(il.load(guessing(kind, noise)))  # on onnxruntime, whatever the target
    return il.generator(il.load(folder(kind)), target, assistant=assistant)


def reads(made: Generator, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each call of the larger model reads from now on."""
    found, real = [], made.decoder.run

    def run(arrays: Any, *rest: Any) -> Any:
        found.append(next(x for k, x in arrays.items() if k.endswith("input_ids")).shape[1])
        return real(arrays, *rest)

    monkeypatch.setattr(made.decoder, "run", run)
    return found


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize(("target", "noise"), [("onnxruntime", 0.02), ("onnxruntime", 2.0), *((t, 0.2) for t in TARGETS)])
def test_an_assistant_changes_no_token(target: str, kind: str, noise: float):
    made, (ids, mask) = assisted(kind, target, noise), prompts(kind)
    for end, count in ((None, 2), (endings(kind), 5)):
        for rows in (1, 3):
            options = {"max_new_tokens": NEW, "eos_token_id": end, "pad_token_id": 39}
            found = made.generate(ids[:rows], mask[:rows], num_assistant_tokens=count, **options)
            np.testing.assert_array_equal(found, expected(kind, ids[:rows], mask[:rows], **options))


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_guesses_are_read_at_once(kind: str, monkeypatch: pytest.MonkeyPatch):
    """One that agrees saves calls, one that does not costs none; in between some guesses are kept."""
    ids, calls = prompts(kind, 1)[0], {}
    for noise in (0.0, 0.05, 2.0):
        made = assisted(kind, "onnxruntime", noise)
        read = reads(made, monkeypatch)
        np.testing.assert_array_equal(made.generate(ids, max_new_tokens=31), expected(kind, ids, None, max_new_tokens=31))
        assert read[0] == (7 if kind == "gpt2" else 1)
        calls[noise] = len(read) - 1
    assert calls[0.0] == 5  # of six tokens each
    assert calls[0.0] < calls[0.05] < calls[2.0] <= 30


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_an_assistant_draws_what_would_be_drawn(kind: str, monkeypatch: pytest.MonkeyPatch):
    """With the random numbers that the larger model will use: where the two agree, all that it draws is kept."""
    options = {"do_sample": True, "temperature": 1.4, "top_k": 20, "repetition_penalty": 1.2, "max_new_tokens": 19}
    for seed in range(3):
        plain = ours(kind).generate(*prompts(kind), seed=seed, **options)
        for noise in (0.0, 0.2):
            np.testing.assert_array_equal(assisted(kind, "onnxruntime", noise).generate(*prompts(kind), seed=seed, **options), plain)
    read = reads(assisted(kind, "onnxruntime", 0.0), monkeypatch)
    assisted(kind, "onnxruntime", 0.0).generate(*prompts(kind), **options)
    assert read[1:] == [6, 6, 6]


def test_assisted_tokens_are_streamed_and_beams_go_without():
    said: list[np.ndarray] = []
    made, (ids, mask) = assisted("gpt2", "onnxruntime", 0.2), prompts("gpt2")
    found = made.generate(ids, mask, max_new_tokens=NEW, eos_token_id=endings("gpt2")[0], stream=said.append)
    np.testing.assert_array_equal(np.stack(said, 1), found[:, 7:])
    beams = made.generate(ids, mask, max_new_tokens=NEW, num_beams=3)
    np.testing.assert_array_equal(beams, expected("gpt2", ids, mask, max_new_tokens=NEW, num_beams=3))


def test_up_to_the_last_position_with_an_assistant():
    ids, mask = prompts("gpt2", length=52)
    for target in TARGETS:
        made = assisted("gpt2", target, 0.2).generate(ids, mask, max_new_tokens=12, eos_token_id=None)
        np.testing.assert_array_equal(made, expected("gpt2", ids, mask, max_new_tokens=12, eos_token_id=None))


def test_an_exported_assistant_in_fewer_bits(tmp_path: Path):
    model, (ids, mask) = il.load(folder("gpt2")), prompts("gpt2")
    model.export(tmp_path, quantize="int8-weights", check=False)
    made = il.generator(model, assistant=tmp_path)
    np.testing.assert_array_equal(made.generate(ids, mask, max_new_tokens=NEW), expected("gpt2", ids, mask, max_new_tokens=NEW))


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize(("target", "scheme"), [("onnxruntime", "int8-weights"), ("onnxruntime", "int4-weights"), ("xla", "int8-weights")])
def test_a_model_guesses_for_itself_in_fewer_bits(target: str, scheme: str, kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantization, "LEAST", 64)
    (ids, mask), options = prompts(kind), {"max_new_tokens": NEW, "eos_token_id": None}
    made = il.generator(il.load(folder(kind)), target, assistant=scheme)
    assert sum(p.key.endswith(f".q{scheme[3]}") for p in made.assistant.decoder.graph.params()) > 8
    read = reads(made, monkeypatch)
    np.testing.assert_array_equal(made.generate(ids, mask, **options), expected(kind, ids, mask, **options))
    assert 6 in read  # five guesses and the token before them


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize(("target", "to"), [("onnxruntime", "onnx"), ("xla", "stablehlo")])
def test_an_export_of_all_positions_takes_an_assistant(target: str, to: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (ids, mask), options = prompts(kind), {"max_new_tokens": NEW, "eos_token_id": None}
    il.load(folder(kind)).export(tmp_path, to, all_positions=True)
    made = il.generator(tmp_path, target, assistant=il.load(guessing(kind, 0.0)))
    read = reads(made, monkeypatch)
    np.testing.assert_array_equal(made.generate(ids, mask, **options), expected(kind, ids, mask, **options))
    assert 6 in read
    np.testing.assert_array_equal(il.generator(tmp_path, target).generate(ids, mask, **options), expected(kind, ids, mask, **options))


def test_all_positions_of_what_gives_them_anyway(tmp_path: Path):
    with pytest.raises(UsageError, match="all_positions is given, expected graphs with caches beside it"):
        il.load(folder("gpt2")).export(tmp_path, outputs=["logits"], all_positions=True)
    assert list(tmp_path.iterdir()) == []


def test_assistants_that_do_not_fit(tmp_path: Path):
    model = il.load(folder("gpt2"))
    other = il.from_config({"model_type": "gpt2", "vocab_size": 41, "n_positions": 64, "n_embd": 8, "n_layer": 1, "n_head": 2}, "GPT2LMHeadModel")
    with pytest.raises(UsageError, match="the assistant GPT2LMHeadModel has 41 words, expected the 40 of GPT2LMHeadModel"):
        il.generator(model, assistant=other)
    with pytest.raises(UsageError, match="the assistant T5ForConditionalGeneration has an encoder, unlike GPT2LMHeadModel"):
        il.generator(model, assistant=ours("t5"))
    model.export(tmp_path, check=False)
    with pytest.raises(UsageError, match=r"logits of the last position alone, expected those of all.*\n  export it with all_positions=True"):
        il.generator(tmp_path, assistant=model)
    with pytest.raises(UsageError, match=r"assistant='int8-weights' is made of a model's weights.*\n  load the checkpoint, or export"):
        il.generator(tmp_path, assistant="int8-weights")
    short = il.generator(model, assistant=il.load(guessing("gpt2", 0.2)))
    with pytest.raises(UsageError, match="num_assistant_tokens is 0, expected an integer of at least 1"):
        short.generate(prompts("gpt2")[0], num_assistant_tokens=0)


# ---- where things stay --------------------------------------------------------------------------


def _fetched(target: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what comes to the host from now on, as it comes."""
    seen: list[tuple[int, ...]] = []

    def watch(owner: Any, name: str, shape: Callable[[Any], tuple[int, ...]]) -> None:
        real = getattr(owner, name)

        def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(shape(self))
            return real(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    if target == "onnxruntime":
        watch(importlib.import_module("onnxruntime").OrtValue, "numpy", lambda x: tuple(x.shape()))
    elif target == "torch":
        watch(importlib.import_module("torch").Tensor, "numpy", lambda x: tuple(x.shape))
    else:  # NumPy reads JAX's arrays through the buffer protocol
        kind, real = importlib.import_module("jax").Array, np.asarray
        monkeypatch.setattr(np, "asarray", lambda x, *rest, **named: (isinstance(x, kind) and seen.append(x.shape), real(x, *rest, **named))[1])
    return seen


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("target", TARGETS)
def test_keys_and_values_stay_on_the_device(target: str, kind: str, monkeypatch: pytest.MonkeyPatch):
    options = {"max_new_tokens": 5, "eos_token_id": None}
    made = [ours(kind, target).generate(*prompts(kind), num_beams=n, **options) for n in (1, 2)]
    seen = _fetched(target, monkeypatch)
    for n, before in zip((1, 2), made, strict=True):
        seen.clear()
        np.testing.assert_array_equal(ours(kind, target).generate(*prompts(kind), num_beams=n, **options), before)
        assert len(seen) == 5  # logits alone, once a step, whatever their rank
        assert {shape[0] for shape in seen} <= {3, 3 * n}
        assert all(shape[-1] == 40 and np.prod(shape[1:-1]) == 1 for shape in seen)


@pytest.mark.parametrize("target", TARGETS)
def test_keys_and_values_stay_on_the_device_when_guesses_are_taken_back(target: str, monkeypatch: pytest.MonkeyPatch):
    made, (ids, mask) = assisted("gpt2", target, 0.2), prompts("gpt2")
    options = {"max_new_tokens": NEW, "eos_token_id": None}
    before, seen = made.generate(ids, mask, **options), _fetched(target, monkeypatch)
    np.testing.assert_array_equal(made.generate(ids, mask, **options), before)
    assert all((shape[0], shape[-1]) == (3, 40) and np.prod(shape[1:-1]) <= 7 for shape in seen)  # 7 of the prompt, 6 guessed


def test_xla_compiles_a_few_lengths_only():
    made = il.generator(il.load(folder("gpt2")), "xla")
    for length in (3, 9, 16):
        made.generate(np.full((2, length), 7), max_new_tokens=12, eos_token_id=None)
    assert made.decoder._first._cache_size() == 2  # prompts of up to 16 whose rooms are 16 and 32
    assert made.decoder._next._cache_size() == 2
    assert [rounded(n) for n in (1, 16, 17, 200, 257, 600)] == [16, 16, 32, 256, 512, 768]
    assert (rounded(60, 64), rounded(17, 20), rounded(300, 400)) == (64, 20, 400)


def test_streamed_tokens_are_those_that_are_returned():
    said: list[np.ndarray] = []
    ids, mask = prompts("gpt2")
    made = ours("gpt2").generate(ids, mask, max_new_tokens=NEW, eos_token_id=endings("gpt2")[0], stream=said.append)
    np.testing.assert_array_equal(np.stack(said, 1), made[:, 7:])


# ---- what an export wrote, text, the command line -----------------------------------------------


@pytest.mark.parametrize("to", ["onnx", "stablehlo"])
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_exported_folders_generate(kind: str, to: str, tmp_path: Path):
    il.load(folder(kind)).export(tmp_path, to, check=False)
    opened = il.generator(tmp_path)
    assert opened.target == {"onnx": "onnxruntime", "stablehlo": "xla"}[to]
    for n in (1, 3):
        options = {"num_beams": n, "eos_token_id": endings(kind)[0], "max_new_tokens": NEW}
        np.testing.assert_array_equal(opened.generate(*prompts(kind), **options), expected(kind, *prompts(kind), **options))


def test_what_generation_config_says(tmp_path: Path):
    il.load(folder("gpt2")).save(tmp_path)
    asked = {"eos_token_id": [5, 6], "num_beams": 2, "encoder_no_repeat_ngram_size": 3, "max_new_tokens": 4, "no_repeat_ngram_size": 2}
    (tmp_path / "generation_config.json").write_text(json.dumps(asked))
    with pytest.warns(UserWarning, match="asks for encoder_no_repeat_ngram_size, which generation here does not apply"):
        made = il.generator(il.load(tmp_path))
    assert (made.options.ends, made.options.pad, made.options.num_beams) == ([5, 6], 5, 2)
    ids = prompts("gpt2", 1)[0]
    wanted = expected("gpt2", ids, None, num_beams=2, eos_token_id=[5, 6], max_new_tokens=4, no_repeat_ngram_size=2)
    np.testing.assert_array_equal(made.generate(ids), wanted)
    (tmp_path / "generation_config.json").write_text('{"top_p": 7}')
    with pytest.raises(ConfigError, match=r"generation_config\.json: top_p is 7, expected a number from 0 to 1"):
        il.generator(il.load(tmp_path))


@pytest.mark.parametrize(("kind", "head"), [("gpt2", "GPT2LMHeadModel"), ("t5", "T5ForConditionalGeneration")])
def test_texts(kind: str, head: str):
    made, texts = il.generator(il.load(stock(kind, head))), ["the quick brown fox", "she"]
    both = made.text(texts, max_new_tokens=6)
    assert both == [made.text(text, max_new_tokens=6)[0] for text in texts]  # padding changes nothing
    pieces: list[str] = []
    drawn = made.text(texts[0], max_new_tokens=20, do_sample=True, stream=pieces.append)[0]
    assert "".join(pieces) == drawn
    assert len(pieces) > 2
    with pytest.raises(UsageError, match="stream is given and texts are 2, expected one"):
        made.text(texts, stream=pieces.append)


@pytest.mark.parametrize(("kind", "head"), [("gpt2", "GPT2LMHeadModel"), ("t5", "T5ForConditionalGeneration")])
def test_generate_command(kind: str, head: str, tmp_path: Path):
    text, place = "the quick fox", stock(kind, head)
    plain = il.generator(il.load(place)).text(text, max_new_tokens=7)[0]
    options = ("--max-new-tokens", 7)
    assert run("generate", place, text, *options).out == plain + "\n"
    assert run("generate", place, text, *options, "--on", "torch").out == plain + "\n"
    assert run("export", place, tmp_path / "out", "--no-check").code == 0
    assert run("generate", tmp_path / "out", text, *options).out == plain + "\n"
    drawn = [run("generate", tmp_path / "out", text, *options, "--sample", "--temperature", 2, "--seed", s).out for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert run("generate", place, text, *options, "--assistant", tmp_path / "out").out == plain + "\n"
    assert run("generate", place, text, *options, "--assistant", "int8-weights").out == plain + "\n"
    assert run("export", place, tmp_path / "all", "--no-check", "--all-positions").code == 0
    assert run("generate", tmp_path / "all", text, *options, "--assistant", place).out == plain + "\n"
    beams = run("generate", tmp_path / "out", text, *options, "--num-beams", 3)
    assert beams.out == il.generator(il.load(place)).text(text, max_new_tokens=7, num_beams=3)[0] + "\n"
    refused = run("generate", place, text, "--top-k", 4)
    assert (refused.code, "--top-k: it says how tokens are drawn; pass --sample too" in refused.err) == (2, True)
    bad = run("generate", place, text, "--on", "tensorflow")
    assert (bad.code, "'tensorflow' is unknown" in bad.err) == (2, True)


# ---- errors -------------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown": ({"num_beam": 2}, UsageError, "generation has no option 'num_beam'; did you mean 'num_beams'?"),
    "none new": ({"max_new_tokens": 0}, UsageError, "max_new_tokens is 0, expected an integer of at least 1"),
    "cold": ({"temperature": 0.0}, UsageError, "temperature is 0.0, expected a number above 0; for the likeliest tokens leave do_sample out"),
    "top_p": ({"top_p": 1.5}, UsageError, "top_p is 1.5, expected a number from 0 to 1"),
    "early": ({"early_stopping": "maybe"}, UsageError, "early_stopping is 'maybe', expected True, False or 'never'"),
    "drawn beams": ({"num_beams": 2, "do_sample": True}, UsageError, "do_sample is True and num_beams 2, expected one of the two"),
    "streamed beams": ({"num_beams": 2, "stream": print}, UsageError, "stream is given and num_beams is 2, expected one of the two"),
    "room": ({"max_new_tokens": 58}, InputError, "the prompt has 7 tokens and max_new_tokens is 58, expected at most 64 together: the model has no"),
    "word": ({"input_ids": [[3, 40]]}, InputError, "input 'input_ids' has 40, expected 0 to 39: the ids of the model's words"),
    "rank": ({"input_ids": [3, 4]}, InputError, r"input 'input_ids' is int64 of shape \[2\], expected integers \[batch tokens\]"),
    "ragged": ({"input_ids": [[3, 4], [5]]}, InputError, "input 'input_ids' is no array: .*\n  pad rows of unequal length on the left"),
    "empty": ({"input_ids": np.zeros((2, 0), int)}, InputError, r"input 'input_ids' has shape \[2, 0\], expected at least one row of one token"),
    "mask": ({"attention_mask": np.ones((3, 6), int)}, InputError, r"input 'attention_mask' has shape \[3, 6\], expected \[3, 7\]"),
    "right": (
        {"attention_mask": [[1] * 7, [1] * 6 + [0], [1] * 7]},
        InputError,
        "row 1 of 'input_ids' ends with padding, expected a token: pad",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant(case: str, monkeypatch: pytest.MonkeyPatch):
    changes, kind, told = WRONG[case]
    made = ours("gpt2")
    monkeypatch.setattr(made.decoder, "run", lambda *_: pytest.fail("work was done before the check"))
    ids, mask = prompts("gpt2")
    given = {"input_ids": ids, "attention_mask": mask if "input_ids" not in changes else None, "max_new_tokens": 4, **changes}
    with pytest.raises(kind, match=told):
        made.generate(**given)


def test_what_does_not_generate(tmp_path: Path):
    bert = stock("bert", "BertForMaskedLM")
    with pytest.raises(UsageError, match="BertForMaskedLM does not generate: it has no key and value caches"):
        il.generator(il.load(bert))
    with pytest.raises(UsageError, match=r"GPT2Model does not generate.*\n  load it with head='GPT2LMHeadModel'"):
        il.generator(il.load(stock("gpt2", "GPT2LMHeadModel"), "GPT2Model"))
    with pytest.raises(UsageError, match="target 'tensorflow' does not generate"):
        il.generator(ours("gpt2").folder, "tensorflow")
    with pytest.raises(UsageError, match=r"has no interlingua\.json, expected a folder that `interlingua export` wrote\n  for a checkpoint: "):
        il.generator(folder("gpt2"))
    model = il.load(folder("gpt2"))
    model.export(tmp_path, cache=False, check=False)
    with pytest.raises(UsageError, match=r"has model\.onnx \(onnx\), expected graphs with key and value caches"):
        il.generator(tmp_path)
    with pytest.raises(UsageError, match=r"torch runs models, not what .* has of them"):
        il.generator(tmp_path, "torch")


def test_graphs_that_lack_an_input(tmp_path: Path):
    model, (ids, mask) = il.load(folder("gpt2")), prompts("gpt2")
    model.export(tmp_path, inputs=["input_ids", "attention_mask"], cache=True, check=False)
    with pytest.raises(InputError, match="takes no 'position_ids', without which padded prompts mean something else"):
        il.generator(tmp_path).generate(ids, mask)
    np.testing.assert_array_equal(il.generator(tmp_path).generate(ids[:1], max_new_tokens=5), expected("gpt2", ids[:1], None, max_new_tokens=5))
    model.export(tmp_path / "xla", "stablehlo", inputs=["input_ids"], cache=True, check=False)
    with pytest.raises(TargetError, match="takes input_ids, and no mask of all tokens, without which caches cannot be padded"):
        il.generator(tmp_path / "xla")


def test_options_are_the_reference_s():
    """Whoever knows the reference's names knows ours."""
    known = importlib.import_module("transformers").GenerationConfig().to_dict()
    assert set(Options.__dataclass_fields__) - set(known) == {"seed"}


@pytest.mark.parametrize("target", TARGETS)
def test_generations_may_be_under_way_at_once(target: str):
    """A generator holds nothing of a generation: another one may begin while a first goes on."""
    ids, mask = prompts("gpt2")
    inner: list[np.ndarray] = []
    again = lambda _: inner.append(ours("gpt2", target).generate(ids, mask, max_new_tokens=30)) if not inner else None
    outer = ours("gpt2", target).generate(ids, mask, max_new_tokens=4, stream=again)
    np.testing.assert_array_equal(outer, expected("gpt2", ids, mask, max_new_tokens=4))
    np.testing.assert_array_equal(inner[0], expected("gpt2", ids, mask, max_new_tokens=30))
