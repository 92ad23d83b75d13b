"""Generation inside one graph: the tokens of the step-by-step generator and of the reference, from a file that knows nothing of generation."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from cli_runs import run
from test_generation import NEW, endings, expected, folder, ours, prompts

import interlingua as il
from interlingua.exporters.onnx import prepare
from interlingua.exporters.onnx_tape import Tape
from interlingua.ir import ops
from interlingua.ir.errors import InputError, ParityError, ShapeError, UsageError
from interlingua.ir.graph import Graph
from interlingua.ir.op import OPS
from interlingua.ir.reference import Feed, ReferenceTable, reference
from interlingua.ir.table import INDEX, Table, lower, run as evaluate
from interlingua.ir.text import parse_graph
from interlingua.ir.weights import ArrayWeights
from interlingua.model import Model
from interlingua.runtime.generating.in_graph import MARGINS, SEQUENCES, generating_graph, options_for, wrong_tokens
from interlingua.runtime.generating.options import Options
from interlingua.runtime.session import Session

KINDS = ("gpt2", "t5")
FORMATS = ("onnx", "stablehlo")
PAD = 39
SIZES = ((3, 7), (2, 4))


def ending(kind: str, tmp_path: Path, end: int | list[int] | None) -> Model:
    """The tiny checkpoint, whose rows end by those tokens."""
    place = shutil.copytree(folder(kind), tmp_path / "checkpoint")
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": end, "pad_token_id": PAD, "decoder_start_token_id": 0}))
    return il.load(place)


def filled(ids: np.ndarray, length: int) -> np.ndarray:
    """Ids followed by padding up to a length, as a graph of one size gives them."""
    return np.pad(ids, ((0, 0), (0, length - ids.shape[1])), constant_values=PAD)


# ---- the same tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_artifact_gives_the_tokens_of_the_generator_and_of_the_reference(kind: str, to: str, tmp_path: Path):
    ends = endings(kind)
    (entry,) = ending(kind, tmp_path, ends).export(tmp_path / "out", to, generate=NEW)
    assert entry.errors == {SEQUENCES: 0.0}
    session, different = il.open(tmp_path / "out"), 0
    for rows, length in SIZES:
        ids, mask = prompts(kind, rows, length)
        made = session(input_ids=ids, attention_mask=mask)[SEQUENCES]
        options = {"eos_token_id": ends, "pad_token_id": PAD}
        stepped = ours(kind).generate(ids, mask, max_new_tokens=NEW, **options)
        np.testing.assert_array_equal(made, filled(stepped, made.shape[1]))
        np.testing.assert_array_equal(made, filled(expected(kind, ids, mask, **options), made.shape[1]))
        assert made.shape[1] == (length if kind == "gpt2" else 1) + NEW
        assert made.dtype == np.int64
        different += len({int((row == PAD).sum()) for row in made})
    assert different > len(SIZES)  # rows of one batch end at different steps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("new", [1, 2, 20])
def test_without_ends_all_tokens_are_written(kind: str, new: int):
    model = il.load(folder(kind))
    graph = generating_graph(model, Options(max_new_tokens=new, decoder_start_token_id=0))
    session = il.compile(model, graph=graph)
    ids, mask = prompts(kind)
    want = expected(kind, ids, mask, max_new_tokens=new, eos_token_id=None)
    np.testing.assert_array_equal(session(input_ids=ids, attention_mask=mask)[SEQUENCES], want)
    np.testing.assert_array_equal(reference(graph, {"input_ids": ids, "attention_mask": mask}, model.weights)[SEQUENCES], want)


def counting(steps: list[int]) -> Table:
    """The reference, which notes each step of a loop."""
    table = ReferenceTable("f32")

    def counted(*operands: Any, body: Any, **rest: Any) -> Any:
        def step(*xs: Any, index: int) -> Any:
            steps.append(index)
            return body(*xs, index=index)

        return ops.while_loop.reference(*operands, body=step, **rest)

    table.rules[ops.while_loop] = counted
    return table


def test_nothing_runs_after_the_last_row_has_ended():
    model, (ids, mask) = il.load(folder("gpt2")), prompts("gpt2")
    tokens = expected("gpt2", ids, mask, max_new_tokens=8, eos_token_id=None)[:, 7:]
    for ends, count in ([], 7), (sorted({*tokens[:, 0]}), 0), (sorted({*tokens[:, 3]}), None):
        options = Options(max_new_tokens=8, eos_token_id=[int(t) for t in ends] or None, pad_token_id=PAD)
        graph, steps = generating_graph(model, options), []
        arrays = {"input_ids": ids, "attention_mask": mask}
        made = evaluate(graph, counting(steps), Feed({v: arrays[v.name] for v in graph.inputs}, model.weights, "f32"))[SEQUENCES][:, 7:]
        last = max(next((i for i, t in enumerate(row) if t in ends), 7) for row in tokens)
        assert len(steps) == last
        assert count in (None, last)
        assert (made[:, last + 1 :] == PAD).all()


# ---- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_is_valid_and_its_loop_computes_only_what_changes(kind: str, opset: int, tmp_path: Path):
    model = il.load(folder(kind))
    model.export(tmp_path, generate=5, opset=opset, check=False)
    onnx.checker.check_model(str(tmp_path / "generator.onnx"), full_check=True)
    graph = onnx.load(tmp_path / "generator.onnx", load_external_data=False).graph
    (loop,) = (n for n in graph.node if n.op_type == "Loop")
    body = next(a.g for a in loop.attribute if a.name == "body")
    assert not body.initializer  # weights are not handed through the loop
    inside = {x.name for x in body.input} | {x for n in body.node for x in n.output}
    assert [n.name for n in body.node if not set(n.input) & inside] == []
    ids, mask = prompts(kind)
    want = ours(kind).generate(ids, mask, max_new_tokens=5)
    np.testing.assert_array_equal(il.open(tmp_path)(input_ids=ids, attention_mask=mask)[SEQUENCES], want)


@pytest.mark.parametrize("kind", KINDS)
def test_text_reads_back(kind: str):
    model, (ids, mask) = il.load(folder(kind)), prompts(kind)
    graph = generating_graph(model, Options(max_new_tokens=4, decoder_start_token_id=0))
    again = parse_graph(str(graph))
    assert str(again) == str(graph)
    arrays = {"input_ids": ids, "attention_mask": mask}
    np.testing.assert_array_equal(*(reference(g, arrays, model.weights)[SEQUENCES] for g in (graph, again)))


def test_command_line(tmp_path: Path):
    done = run("export", folder("gpt2"), tmp_path / "out", "--generate", "6")
    assert done.code == 0, done.err
    assert "sequences: i64[batch seq+6]  checked" in done.out
    ids, mask = prompts("gpt2")
    session = il.open(tmp_path / "out")
    want = ours("gpt2").generate(ids, mask, max_new_tokens=6)
    np.testing.assert_array_equal(session(input_ids=ids, attention_mask=mask)[SEQUENCES][:, : want.shape[1]], want)
    with pytest.raises(InputError, match=r"seq\+6 is 66, expected at most 64"):
        session(input_ids=np.ones((1, 60), int), attention_mask=np.ones((1, 60), int))


def test_wrong_use_is_said(tmp_path: Path):
    model = il.load(folder("gpt2"))
    for options, told in [
        ({"to": "saved_model", "generate": 4}, "generate=4 is for onnx and stablehlo, not for saved_model"),
        ({"generate": 0}, "generate is 0, expected the number of new tokens"),
        ({"generate": 4, "outputs": ["logits"]}, "generate=4 and outputs are given"),
        ({"generate": 4, "quantize": "int8"}, "generate=4 and quantize are given"),
        ({"generate": 64}, "max_new_tokens is 64, expected at most 63: the model has no positions beyond"),
    ]:
        with pytest.raises(UsageError, match=told):
            model.export(tmp_path, **options)
    with pytest.raises(UsageError, match="does not generate"):
        il.load(folder("gpt2"), "GPT2Model").export(tmp_path, generate=4)
    assert not list(tmp_path.iterdir())


def test_what_a_checkpoint_asks_for_and_is_not_done_is_said():
    model = SimpleNamespace(name="it", folder=None, values={})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert options_for(model, 7).max_new_tokens == 7
    place = folder("gpt2").parent / "asking"
    place.mkdir(exist_ok=True)
    (place / "generation_config.json").write_text('{"num_beams": 4, "do_sample": false}')
    with pytest.warns(UserWarning, match="it asks for num_beams, which generation inside a graph does not apply"):
        options_for(SimpleNamespace(name="it", folder=str(place), values={}), 7)


# ---- faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS)
def test_a_wrong_artifact_never_appears(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = il.load(folder("gpt2"))
    right = Session.__call__
    monkeypatch.setattr(Session, "__call__", lambda self, **xs: {k: np.roll(y, 1, -1) for k, y in right(self, **xs).items()})
    with pytest.raises(ParityError, match="tokens of sequences are not those of the float64 reference"):
        model.export(tmp_path, to, generate=4)
    assert not list(tmp_path.iterdir())


def test_a_position_too_far_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    count = Tape.count
    monkeypatch.setattr(Tape, "count", lambda self, index: count(self, self("Mul", index, self.constant(0))))
    with pytest.raises(ParityError):
        il.load(folder("gpt2")).export(tmp_path, generate=6)


def test_which_tokens_are_wrong():
    true = {SEQUENCES: np.array([[1, 5, 6, 7], [2, 8, 9, 3]]), MARGINS: np.array([[1.0, 1e-7, 2.0], [1.0, 1.0, 1.0]])}
    noisy = {SEQUENCES: true[SEQUENCES], MARGINS: true[MARGINS] + 1e-7}
    wrong = lambda ids, new=3: wrong_tokens(np.array(ids), true, noisy, new, 20.0)
    assert wrong([[1, 5, 6, 7], [2, 8, 9, 3]]) == 0
    assert wrong([[1, 5, 4, 4], [2, 8, 9, 3]]) == 0  # the likeliest word was ahead by less than rounding
    assert wrong([[1, 4, 6, 7], [2, 8, 9, 3]]) == 1
    assert wrong([[1, 5, 6, 7], [2, 8, 4, 4]]) == 2
    assert wrong([[9, 5, 6, 7], [2, 8, 9, 3]]) == 1  # a prompt
    assert wrong([[1, 5, 6, 7, 0], [2, 8, 9, 3, 0]], 4) == 0  # more than is checked
    assert wrong([[1, 5, 6], [2, 8, 9]]) == 6
    true[MARGINS][1, 0] = np.nan
    assert wrong([[1, 5, 6, 7], [2, 4, 9, 3]]) == 1


# ---- the op -------------------------------------------------------------------------------------


def collatz() -> Graph:
    """For each number of a row how many steps it takes to 1, in a loop within a loop over rows until all are done, at most 6 at a time."""
    inner, outer, graph = Graph(), Graph(), Graph()
    with inner.tracing():
        n, steps, one = inner.input("n", "i64[count]"), inner.input("steps", "i64[count]"), inner.input("one", "i64[count]")
        odd = ops.equal(n % 2, 1)
        going = ~ops.equal(n, one)
        n = ops.where(going, ops.where(odd, n * 3 + one, n // 2), n)
        inner.outputs = {"again": ops.any(~ops.equal(n, one), axis=0), "n": n, "steps": steps + ops.cast(going, dtype="i64")}
    with outer.tracing():
        n, steps, rounds, one = (outer.input(k, "i64[count]") for k in ("n", "steps", "rounds", "one"))
        n, steps = ops.while_loop(ops.any(~ops.equal(n, one), axis=0), n, steps, one, body=inner, carries=2, most=6)
        rounds = rounds + ops.size(value=INDEX + 1)
        outer.outputs = {"again": ops.any(~ops.equal(n, one), axis=0), "n": n, "steps": steps, "rounds": rounds}
    with graph.tracing():
        n = graph.input("n", "i64[count]")
        zero = n * 0
        found = ops.while_loop(ops.any(~ops.equal(n, 1), axis=0), n, zero, zero, zero + 1, body=outer, carries=3, most=4)
        graph.outputs = dict(zip(("left", "steps", "rounds"), found, strict=True))
    return graph


@pytest.mark.parametrize("target", ["numpy", "onnxruntime", "xla", "torch"])
def test_loops_in_loops(target: str):
    model, graph = SimpleNamespace(name="collatz", params=[], weights=ArrayWeights({})), collatz()
    session = il.compile(model, target, graph=graph)
    for n, steps, rounds in ([1, 1], [0, 0], 0), ([6, 1, 7], [8, 0, 16], 6), ([27, 2, 3, 4], [24, 1, 7, 2], 10):
        made = session(n=np.array(n))
        np.testing.assert_array_equal(made["steps"], steps)
        np.testing.assert_array_equal(made["rounds"], [rounds] * len(n))
        assert (made["left"] == 1).all() == (27 not in n)


def test_a_decomposed_loop_is_the_same():
    rules = {op: op.reference for op in OPS.values() if op is not ops.while_loop}
    flat = lower(collatz(), Table("without loops", rules))
    assert not any(n.op is ops.while_loop for n in flat.live())
    for n in ([1, 1], [6, 1, 7], [27, 2]):
        made, want = (reference(g, {"n": np.array(n)}) for g in (flat, collatz()))
        for k in want:
            np.testing.assert_array_equal(made[k], want[k])


def test_passes_reach_the_bodies_of_loops():
    body, graph = Graph(), Graph()
    with body.tracing():
        x = body.input("x", "f32[batch 2]")
        three = ops.constant(value=1.0, dtype="f32") + ops.constant(value=2.0, dtype="f32")
        body.outputs = {"again": ops.any(x < 9.0, axis=(0, 1)), "x": x * three}
    with graph.tracing():
        x = graph.input("x", "f32[batch 2]")
        graph.outputs = {"y": ops.while_loop(ops.any(x < 9.0, axis=(0, 1)), x, body=body, carries=1, most=5)}
    inside = lambda g: [n.op.name for node in g.live() if node.op is ops.while_loop for n in node.attrs["body"].live()]
    assert "add" in inside(graph)
    assert "add" not in inside(prepare(graph))
    assert "add" in inside(prepare(graph, switch_off=["fold_constants"]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"most": 0}, "most=0 and carries=1"),
        ({"carries": 2}, "body gives 2 values, expected 3"),
        ({"body": "type"}, r"body gives i64\[\], expected what it carries: f32\[\]"),
        ({"body": "again"}, r"body's first output is f32\[\]"),
    ],
)
def test_bodies_that_do_not_fit(change: dict[str, Any], told: str):
    body, graph = Graph(), Graph()
    with body.tracing():
        x = body.input("x", "f32[]")
        body.outputs = {"again": x < 1.0, "x": x + 1.0}
        if change.get("body") == "type":
            body.outputs["x"] = ops.cast(x, dtype="i64")
        if change.get("body") == "again":
            body.outputs["again"] = x
    with graph.tracing():
        x = graph.input("x", "f32[]")
        with pytest.raises(ShapeError, match=told):
            ops.while_loop(x < 1.0, x, **{"carries": 1, "most": 3, **change, "body": body})
