"""Runs of the command line in this process, and checkpoints of tiny random models for it, with tokenizers and preprocessor settings."""

from __future__ import annotations

import contextlib
import functools
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oracle_specs import config_json
from processing_files import LETTERS, MAKERS, write

import interlingua as il
from interlingua import cli
from interlingua.runtime import steps

VOCABULARY = {"bert": 400, "gpt2": 421, "t5": 420}
PIXELS = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
SOUND = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "return_attention_mask": False}
FILES: dict[str, dict[str, Any]] = {
    "vit": {"preprocessor_config": PIXELS},
    "clip": {"preprocessor_config": {**PIXELS, "image_processor_type": "CLIPImageProcessor"}},
    "wav2vec2": {"preprocessor_config": SOUND, "vocab": LETTERS, "tokenizer_config": {}},
}
TEXT = "the [MASK] fox"
ROOT = tempfile.TemporaryDirectory(prefix="interlingua-tests-")
steps.LATE = 3600.0  # whether progress is shown must not depend on how fast this machine is


@dataclass
class Done:
    """How a command ended: its exit code, and what it said on both streams."""

    code: int
    out: str
    err: str


def run(*arguments: Any) -> Done:
    """Runs a command in this process. It ends in an exit, as every command does: any other exception is the test's."""
    code = None
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            cli.main([str(a) for a in arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
    assert code is not None, "the command returned without an exit code"
    return Done(code, out.getvalue(), err.getvalue())


@functools.cache
def stock(kind: str, head: str) -> Path:
    """The checkpoint of a head, made once in a process; a test that changes it copies it."""
    folder, words = Path(ROOT.name) / head, kind in VOCABULARY
    il.from_config(config_json(kind, head, {"vocab_size": VOCABULARY[kind]} if words else {}), head, seed=1).save(folder)
    if words:
        MAKERS[kind](folder)
    return write(folder, **FILES.get(kind, {"tokenizer_config": {"model_max_length": 64}}))


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(p.name for p in folder.iterdir())
