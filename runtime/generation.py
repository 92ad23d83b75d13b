"""Generation of text, token by token: one loop for every target, with caches that stay on its device."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.files import read_json
from ..exporters.artifact import MANIFEST, GraphFile, read_manifest
from ..exporters.quantization import SCHEMES, in_fewer_bits
from ..ir.cache import PAST
from ..ir.definition import Definition, check_inputs
from ..ir.errors import InputError, UsageError, nearest
from .generating import beams
from .generating.decoding import Decoding, Draft, Pieces, Stream, rows_alone
from .generating.options import Options, defaults
from .generating.stepper import Stepper
from .session import Session
from .targets import compile, open

TARGETS = {"onnxruntime": "onnx", "xla": "stablehlo", "torch": ""}  # what each opens
AWAKE = {"session.intra_op.allow_spinning": "1", "session.force_spinning_stop": "1"}  # ops of a step are too short to wake threads for each
Load = Callable[[str, str | None], Definition]
ENCODER, DECODER, ALONE = "encoder_model", "decoder_model", "model"


class Generator:
    """A model that generates, on one target and device: a decoder, and an encoder where it has one.

    `options` are the checkpoint's defaults, `assistant` is a smaller generator of the same words. Attributes say what it is: `name`, `target`,
    `device`.
    """

    def __init__(
        self,
        decoder: Stepper,
        encoder: Stepper | None,
        options: Options,
        folder: Path | None = None,
        config: Mapping[str, Any] | None = None,
        assistant: Generator | None = None,
    ):
        self.assistant = assistant
        self.decoder, self.encoder, self.options, self.folder, self.config = decoder, encoder, options, folder, dict(config or {})
        self.name, self.target, self.device = decoder.session.name, decoder.session.target, decoder.session.device

    def __call__(self, input_ids: Any, attention_mask: Any = None, **options: Any) -> np.ndarray:
        """`generate`."""
        return self.generate(input_ids, attention_mask, **options)

    def generate(self, input_ids: Any, attention_mask: Any = None, *, stream: Stream | None = None, **options: Any) -> np.ndarray:
        """Tokens i64[batch prompt+new] after prompts i64[batch prompt]; with an encoder i64[batch 1+new], after the token that decoding starts with.

        Prompts of unequal length are padded on the left, and `attention_mask` has zeros there; without one, tokens that are `pad_token_id` are
        padding where no row ends by that token. `options` are the fields of `Options`, named as those of the reference's `generate`, and
        what comes out is the same token for token (drawn tokens aside: they depend on `seed` and are the same on every target). `stream`
        is called with the tokens i64[batch] of each step. An assistant changes no token, except where two are equally likely but for
        rounding; beams go without it. Errors: UsageError for options that cannot be meant, InputError for inputs that do
        not fit or would leave no room for `max_new_tokens`.
        """
        chosen = self.options.changed(options)
        if stream is not None and chosen.num_beams > 1:
            raise UsageError(f"stream is given and num_beams is {chosen.num_beams}, expected one of the two: beams change what they have said")
        ids, mask = self._inputs(input_ids, attention_mask, chosen)
        prompt, run = self._begin(ids, mask, chosen)
        if chosen.num_beams == 1:
            draft = Draft(self.assistant._begin(ids, mask, chosen)[1], chosen) if self.assistant else None
            return rows_alone(prompt, run.step(prompt), run, chosen, stream, draft)
        logits = run.step(prompt)[:, 0]
        run.select(np.repeat(np.arange(len(prompt)), chosen.num_beams), everything=True)
        return beams.search(prompt, logits, run.after, chosen)

    def _begin(self, ids: np.ndarray, mask: np.ndarray, options: Options) -> tuple[np.ndarray, Decoding]:
        """What the decoder is to read first, and a generation in which it has read nothing yet."""
        prompt = ids if self.encoder is None else np.full((len(ids), 1), self._start(options), np.int64)
        self._check_room(prompt.shape[1], options.max_new_tokens)
        run = Decoding(self.decoder, prompt, mask if self.encoder is None else None, options)
        if self.encoder is not None:
            _, state = self.encoder.run({"input_ids": ids, "attention_mask": mask}, {})
            run.remember(state, mask)
        return prompt, run

    def _inputs(self, input_ids: Any, attention_mask: Any, options: Options) -> tuple[np.ndarray, np.ndarray]:
        ids = _table(input_ids, "input_ids")
        words = self.decoder.outputs["logits"].shape[-1]
        if ids.size == 0:
            raise InputError(f"input 'input_ids' has shape {list(ids.shape)}, expected at least one row of one token")
        if isinstance(words, int) and not 0 <= (worst := int(ids.min() if ids.min() < 0 else ids.max())) < words:
            raise InputError(f"input 'input_ids' has {worst}, expected 0 to {words - 1}: the ids of the model's words")
        if attention_mask is None:
            pad = -1 if options.pad is None or options.pad in options.ends else options.pad
            mask = (ids != pad).astype(np.int64)
        else:
            mask = (_table(attention_mask, "attention_mask") != 0).astype(np.int64)
        if mask.shape != ids.shape:
            raise InputError(f"input 'attention_mask' has shape {list(mask.shape)}, expected {list(ids.shape)} as 'input_ids' has")
        if self.encoder is not None:
            check_inputs(self.encoder.graph, {"input_ids": ids, "attention_mask": mask}, self.name)
        elif not mask[:, -1].all():
            row = int(np.argmin(mask[:, -1]))
            raise InputError(f"row {row} of 'input_ids' ends with padding, expected a token: pad prompts on the left, so that new tokens follow them")
        elif self.decoder.most and "position_ids" not in self.decoder.inputs and not mask.all():
            told = f"{self.name} takes no 'position_ids', without which padded prompts mean something else"
            raise InputError(f"{told}\n  export it again, or generate one row at a time")
        return ids, mask

    def _start(self, options: Options) -> int:
        if options.decoder_start_token_id is None:
            told = f"{self.name}: decoder_start_token_id is missing, expected the id that decoding starts with"
            raise UsageError(f"{told}\n  pass decoder_start_token_id")
        return options.decoder_start_token_id

    def _check_room(self, prompt: int, new: int) -> None:
        if self.decoder.most and prompt + new > self.decoder.most[0]:
            most, why = self.decoder.most
            told = f"{self.name}: the prompt has {prompt} tokens and max_new_tokens is {new}, expected at most {most} together: {why}"
            raise InputError(f"{told}\n  shorten the prompt, or pass max_new_tokens={max(1, most - prompt)}")

    # ---- text

    @cached_property
    def text_processor(self) -> Any:
        """The tokenizer beside the model; UsageError where there is none."""
        from .processing.text import TextProcessor

        if self.folder is None:
            raise UsageError(f"{self.name} has no folder with a tokenizer\n  pass token ids to generate")
        found = TextProcessor.from_folder(self.folder, self.config)
        end = self.options.pad
        if "pad_token" not in found.special and end is not None and (token := found.tokenizer.id_to_token(end)):
            found = found.with_special(pad_token=token)
        return found

    def encode(self, texts: str | Sequence[str]) -> dict[str, np.ndarray]:
        """`input_ids` and `attention_mask` of texts, padded on the side that generation needs."""
        made = self.text_processor.inputs(texts, padding_side="left" if self.encoder is None else "right", truncation=None)
        return {k: made[k] for k in ("input_ids", "attention_mask")}

    def text(self, texts: str | Sequence[str], *, stream: Callable[[str], Any] | None = None, **options: Any) -> list[str]:
        """What follows each text (with an encoder: the answer to it), without special tokens.

        `options` are those of `generate`; `stream` is called with each new piece of the answer to a single text. Errors: those of `generate`,
        UsageError where the tokenizer is missing or cannot pad texts of unequal length.
        """
        given = self.encode(texts)
        if stream is not None and len(given["input_ids"]) > 1:
            raise UsageError(f"stream is given and texts are {len(given['input_ids'])}, expected one: pieces of several would mix")
        pieces = None if stream is None else Pieces(self.text_processor.decode, stream)
        made = self.generate(**given, stream=pieces, **options)
        start = given["input_ids"].shape[1] if self.encoder is None else 1
        found = [self.text_processor.decode(row) for row in made[:, start:]]
        if pieces is not None:
            pieces.end(found[0])
        return found

    def __repr__(self) -> str:
        return f"<generator of {self.name} on {self.target}, {self.device}>"


def _table(x: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(x)
    except ValueError as error:  # lists of unequal length
        raise InputError(f"input {name!r} is no array: {error}\n  pad rows of unequal length on the left, with zeros in attention_mask") from None
    if array.ndim != 2 or array.dtype.kind not in "iub":
        raise InputError(f"input {name!r} is {array.dtype} of shape {list(array.shape)}, expected integers [batch tokens]")
    return array.astype(np.int64)


def generator(
    model: Definition | str | os.PathLike[str],
    on: str | None = None,
    *,
    device: str = "cpu",
    assistant: Generator | Definition | str | os.PathLike[str] | None = None,
    **options: Any,
) -> Generator:
    """A generator of a loaded model, or of a folder that an export wrote (without any model code).

    `on` is onnxruntime, xla or torch; by default onnxruntime for a model, and for a folder what it was exported for. `options` are the
    target session's (`threads`, `dtype`). An `assistant` guesses tokens that the model then reads in one call, as soon as one token (speculative
    decoding, https://arxiv.org/abs/2211.17192): a smaller model of the same words, or the name of a quantisation (`int8-weights`), which is the
    model itself with weights of fewer bits, on onnxruntime.
    Errors: UsageError for a model that does not generate, a folder without graphs that do, an assistant that does not fit, or an unknown target.
    """
    if on is not None and on not in TARGETS:
        raise UsageError(f"target {on!r} does not generate{nearest(on, TARGETS)}")
    if isinstance(model, (str, os.PathLike)):
        folder, config = Path(model), {}
        sessions = _opened(folder, on, device=device, **options)
        if (folder / "config.json").exists():
            config = read_json(folder / "config.json", "the configuration of a model")
    else:
        place, config = getattr(model, "folder", None), getattr(model, "values", {})
        folder = Path(place) if place else None
        sessions = _compiled(model, on or "onnxruntime", assistant is not None, device=device, **options)
    if isinstance(assistant, str) and assistant in SCHEMES:
        assistant = _in_fewer_bits(model, assistant, device=device, **(options if on in (None, "onnxruntime") else {}))
    elif assistant is not None and not isinstance(assistant, Generator):
        assistant = generator(assistant, device=device)
    made = Generator(*_steppers(sessions), defaults(folder, config), folder, config, assistant)
    _check_assistant(made)
    return made


def _in_fewer_bits(model: Any, scheme: str, **options: Any) -> Generator:
    """A loaded model that guesses for itself, with its weights quantised."""
    if isinstance(model, (str, os.PathLike)):
        told = f"assistant={scheme!r} is made of a model's weights, {model} is a folder of graphs"
        raise UsageError(f"{told}\n  load the checkpoint, or export it with quantize={scheme!r} and pass that folder as assistant")
    return Generator(*_steppers(_compiled(model, "onnxruntime", False, scheme, **options)), Options())


def _check_assistant(model: Generator) -> None:
    """UsageError where a generator has an assistant that cannot guess for it."""
    if (assistant := model.assistant) is None:
        return
    if not model.decoder.gives_all:
        told = f"{model.name} gives the logits of the last position alone, expected those of all, so that it can judge what an assistant guesses"
        raise UsageError(f"{told}\n  export it with all_positions=True (--all-positions), or generate from the checkpoint")
    words, known = (g.decoder.outputs["logits"].shape[-1] for g in (model, assistant))
    if words != known:
        raise UsageError(f"the assistant {assistant.name} has {known} words, expected the {words} of {model.name}")
    if (model.encoder is None) != (assistant.encoder is None):
        has = "no encoder" if assistant.encoder is None else "an encoder"
        raise UsageError(f"the assistant {assistant.name} has {has}, unlike {model.name}")


def generator_for(place: str, load: Load, on: str | None = None, *, head: str | None = None, assistant: Any = None, **options: Any) -> Generator:
    """A generator of a folder's exported graphs where it has some for the target and head, else of the checkpoint that `load(place, head)` reads.

    An `assistant` is one of what `generator` takes or a checkpoint's place; for it graphs have to give the logits of all positions. One that is
    the name of a quantisation is made of the checkpoint.
    """
    if isinstance(assistant, str) and assistant in SCHEMES:
        return generator(load(place, head), on, assistant=assistant, **options)
    if isinstance(assistant, (str, os.PathLike)):
        assistant = generator_for(os.fspath(assistant), load, **options)
    options["assistant"] = assistant
    folder = Path(place).expanduser()
    graphs = read_manifest(folder) if (folder / MANIFEST).exists() else []
    kinds = {kind for target, kind in TARGETS.items() if on in (None, target)}
    fits = _gives_all if assistant else _cached
    if any(g.target in kinds and head in (None, g.head) and fits(g) for g in graphs):
        return generator(folder, on, **options)
    return generator(load(place, head), on, **options)


def _cached(graph: GraphFile) -> bool:
    return any(k.startswith(PAST) for k in graph.inputs)


def _gives_all(graph: GraphFile) -> bool:
    return _cached(graph) and graph.graph().outputs["logits"].type.shape[1] != 1


def _compiled(model: Definition, on: str, all_positions: bool, scheme: str = "", **options: Any) -> list[Session]:
    """Sessions of a loaded model's graphs, the encoder's first; with a `scheme` its layers are quantised."""
    card = getattr(model, "card", None)
    parts = card.heads[model.head].parts if card else ()  # type: ignore[attr-defined]
    if not parts:
        generating = [name for name, head in card.heads.items() if head.parts] if card else []
        hint = f"\n  load it with head={generating[0]!r}" if generating else ""
        raise UsageError(f"{model.name} does not generate: it has no key and value caches{hint}")
    graphs = {part.file: part.graph(model, padded=on == "xla", all_positions=all_positions) for part in parts}
    if scheme:
        model = in_fewer_bits(model, graphs, scheme)  # type: ignore[assignment]
        graphs = model.graphs  # type: ignore[attr-defined]
    options = _for_steps(on, options)
    return [compile(model, on, graph=graph, **options) for graph in graphs.values()]


def _for_steps(on: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of sessions that take steps: on onnxruntime the logits' layer stays apart, and threads wait awake while a step runs."""
    given = options.get("session_options") or {}
    if on != "onnxruntime" or not isinstance(given, Mapping):
        return dict(options)
    return {**options, "apart": "logits", "session_options": {**AWAKE, **given}}


def _opened(folder: Path, on: str | None, **options: Any) -> list[Session]:
    """The sessions of an exported folder, the encoder's first."""
    hint = f"\n  for a checkpoint: interlingua.generator(interlingua.load({str(folder)!r}))"
    if not (folder / MANIFEST).exists():
        raise UsageError(f"{folder} has no {MANIFEST}, expected a folder that `interlingua export` wrote{hint}")
    if on == "torch":
        raise UsageError(f"torch runs models, not what {folder} has of them{hint}")
    known = [g for g in read_manifest(folder) if on is None or g.target == TARGETS[on]]
    for kind in TARGETS.values():
        stems = {Path(g.file).stem: g for g in known if g.target == kind}
        chain = [ENCODER, DECODER] if {ENCODER, DECODER} <= set(stems) else [ALONE]
        if chain[-1] in stems and _cached(stems[chain[-1]]):
            options = _for_steps(next(on for on, known in TARGETS.items() if known == kind), options)
            return [open(folder, name=stem, target=kind, **options) for stem in chain]
    have = ", ".join(f"{g.file} ({g.target})" for g in known) or "nothing"
    told = f"{folder} has {have}{f' for {on}' if on else ''}, expected graphs with key and value caches"
    raise UsageError(f"{told}\n  export a head that generates, and choose no inputs or outputs")


def _steppers(sessions: Sequence[Session]) -> tuple[Stepper, Stepper | None]:
    """Of the decoder, and of the encoder where there is one."""
    return _stepper(sessions[-1]), _stepper(sessions[0]) if len(sessions) > 1 else None


def _stepper(session: Session) -> Stepper:
    if session.target == "onnxruntime":
        from .generating.ort import OrtStepper

        return OrtStepper(session)  # type: ignore[arg-type]
    if session.target == "xla":
        from .generating.xla import XlaStepper

        return XlaStepper(session)  # type: ignore[arg-type]
    from .generating.torch import TorchStepper

    return TorchStepper(session)  # type: ignore[arg-type]
