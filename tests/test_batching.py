"""Many examples of different lengths: each gets what it gets alone, and none pays for the longest."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import interlingua as il
from interlingua.ir import ops
from interlingua.ir.errors import InputError
from interlingua.ir.layer import Layer
from interlingua.model import Model
from interlingua.runtime.batching import Costs, split
from interlingua.runtime.session import Session

BERT = {"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
LENGTHS = (3, 17, 5, 5, 9, 30, 4, 1, 3, 12)


class Recording(Session):
    """Another session, with the shapes of what it was called with."""

    def __init__(self, inner: Session):
        super().__init__(inner.graph, name=inner.name)
        self.inner, self.calls, self.compiles_sizes = inner, [], inner.compiles_sizes

    def run(self, arrays: Any) -> Any:
        self.calls.append(next(iter(arrays.values())).shape)
        return self.inner.run(arrays)


def examples(seed: int = 0, lengths: Any = LENGTHS) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"input_ids": rng.integers(1, 40, n), "token_type_ids": rng.integers(0, 2, n)} for n in lengths]


def alone(session: Session, example: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    inputs = {k: x[None] for k, x in example.items()}
    masked = {"attention_mask": np.ones_like(inputs["input_ids"])} if "attention_mask" in session.inputs else {}
    return {k: x[0] for k, x in session(**inputs, **masked).items()}


def same(session: Session, rows: list[dict[str, np.ndarray]], given: list[dict[str, np.ndarray]]) -> None:
    assert len(rows) == len(given)
    for row, example in zip(rows, given, strict=True):
        expected = alone(session, example)
        assert row.keys() == expected.keys()
        for k in expected:
            assert row[k].shape == expected[k].shape
            np.testing.assert_allclose(row[k], expected[k], atol=1e-5, err_msg=k)


@pytest.fixture(scope="module")
def bert() -> Model:
    return il.from_config({**BERT, "max_position_embeddings": 30}, "BertForQuestionAnswering")


@pytest.mark.parametrize("target", ["onnxruntime", "xla"])
def test_each_gets_what_it_gets_alone(bert: Model, target: str):
    session = Recording(il.compile(bert, target, outputs=["start_logits", "hidden_states.1", "attentions.0"]))
    for seed in range(3):
        given = examples(seed)
        session.calls.clear()
        rows = session.many(given)
        assert sum(n for n, _ in session.calls) >= len(given)
        if target == "xla":  # few sizes, and none beyond the positions that there are
            assert all(n & (n - 1) == 0 and (length & (length - 1) == 0 or length == 30) for n, length in session.calls), session.calls
        same(session.inner, rows, given)


def test_a_mask_that_is_given_counts(bert: Model):
    session = il.compile(bert, "numpy")
    given = examples()
    given[1]["attention_mask"] = np.arange(17) < 11
    (row,) = session.many([given[1]])
    expected = session(**{k: x[None, :11] for k, x in given[1].items()})
    np.testing.assert_allclose(row["start_logits"][:11], expected["start_logits"][0], atol=1e-9)
    others = [i for i in range(len(given)) if i != 1]
    assert [r["start_logits"].shape for r in session.many([given[i] for i in others])] == [(LENGTHS[i],) for i in others]


def test_padding_is_what_was_asked_for(bert: Model):
    session = Recording(il.compile(bert, "numpy"))
    seen: list[np.ndarray] = []
    run, session.run = session.run, lambda arrays: seen.append(arrays["input_ids"]) or run(arrays)  # type: ignore[method-assign]
    session.many(examples(lengths=(4, 3)), pad={"input_ids": 39})
    assert [x[1, 3] for x in seen if len(x) == 2] == [39]


class Smooth(Layer):
    """Depends on its neighbours, and has no mask."""

    def forward(self, x: Any) -> dict[str, Any]:
        return {"y": ops.cumsum(ops.flip(x, axis=1), axis=1)}


def test_without_a_mask_only_equal_lengths_share_a_call():
    session = Recording(il.compile(Model(Smooth(), {"x": "f32[batch n 2]"}), "numpy"))
    rng = np.random.default_rng(0)
    given = [{"x": rng.standard_normal((n, 2)).astype(np.float32)} for n in LENGTHS]
    same(session.inner, session.many(given, most=2), given)
    assert sorted(session.calls) == sorted((min(2, c), n, 2) for n, c in {n: LENGTHS.count(n) for n in LENGTHS}.items())


def test_the_split_takes_least():
    """Against all ways to cut the row of examples."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = sorted(rng.integers(1, 60, 8).tolist(), reverse=True)
        costs = Costs()
        for rows, length in rng.integers(1, 30, (6, 2)):
            costs.learn(int(rows), int(length), 0.1 + rows * length * 0.01 + rows * length**2 * 1e-4)
        counts = split(lengths, costs, 5)
        assert sum(counts) == 8
        assert max(counts) <= 5

        total = lambda cuts, lengths=lengths, costs=costs: sum(costs(b - a, lengths[a]) for a, b in pairwise([0, *cuts, 8]))
        every = [[i + 1 for i in range(7) if bits >> i & 1] for bits in range(128)]
        allowed = [c for c in every if max(b - a for a, b in pairwise([0, *c, 8])) <= 5]
        assert total(list(np.cumsum(counts)[:-1])) == pytest.approx(min(map(total, allowed)))


def test_costs_are_learnt():
    """Where a call costs much beside its elements, fewer calls are made than where it costs nothing."""
    lengths = [40, 39, 20, 19, 10, 9, 5, 4]
    made = {}
    for call in (0.0, 100.0):
        costs = Costs()
        for rows, length in [(1, 10), (4, 10), (8, 40), (2, 20), (1, 40)]:
            costs.learn(rows, length, 1e-6 + call + rows * length)
        made[call] = len(split(lengths, costs, 64))
        assert costs(3, 30) == pytest.approx(call + 90, rel=0.01)
    assert made[100.0] < made[0.0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([{"input_ids": np.ones((1, 3), int)}], r"example 0: input 'input_ids' has shape \[1, 3\], expected i64\[batch seq\] without its batch axis"),
        ([{"input_ids": np.ones(3, int), "token_type_ids": np.ones(4, int)}], r"example 0: its inputs have the lengths \[3, 4\], expected one"),
        ([*examples(lengths=(3,)), {"input_ids": np.ones(3, int)}], r"example 1 lacks input 'token_type_ids', which others have"),
        ([{"input_idz": np.ones(3, int)}], r"has no input 'input_idz'; did you mean 'input_ids'"),
    ],
)
def test_an_example_that_does_not_fit_is_named(bert: Model, given: list[dict[str, np.ndarray]], told: str):
    with pytest.raises(InputError, match=told):
        il.compile(bert, "numpy").many(given)


def test_no_examples_make_no_call(bert: Model):
    assert il.compile(bert, "numpy").many([]) == []
