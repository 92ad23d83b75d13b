"""Where a checkpoint is: a folder, or a Hugging Face id that becomes one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ..ir.errors import InterlinguaError, UsageError, nearest
from .checkpoint import LAYOUTS, read_index

_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE_SUFFIXES = {".safetensors", ".bin", ".json", ".onnx", ".pt", ".h5", ".gguf"}
_DENSE = "[0-9]*_*/"  # the module folders of sentence-transformers
# configuration, tokenizers and preprocessors: all that a model needs beside its weights
_SMALL = [
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "vocab.txt", "merges.txt", "vocab.bpe", "bpe.codes", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
    "sentencepiece.model", "spm.model", "source.spm", "target.spm", "prophetnet.tokenizer", "entity_vocab.json", "dict.txt",
    "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
    f"{_DENSE}config.json", f"{_DENSE}model.safetensors",
]  # fmt: skip


def resolve(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
) -> Path:
    """The folder of a checkpoint: `model` itself where it is a folder, else the downloaded files of the Hugging Face id `model`.

    `offline=True` takes what has been downloaded before and asks nobody; None follows the environment variable HF_HUB_OFFLINE.
    Raises UsageError with the next step where there is neither such a folder nor such an id, or where the hub does not give it.
    """
    path = Path(model).expanduser()
    if not str(model):
        raise UsageError("model is an empty text, expected a folder or a Hugging Face id")
    if path.is_dir():
        return path
    if path.exists():
        raise UsageError(f"model {str(model)!r} is a file, expected a folder or a Hugging Face id\n  its folder is {path.absolute().parent}")
    if not isinstance(model, str) or not _looks_like_id(model):
        raise UsageError(f"model {str(model)!r} does not exist, expected a folder or a Hugging Face id{_sibling(path)}")
    if offline is None:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    common = {"token": token, "cache_dir": cache_dir, "local_files_only": offline}
    try:
        return _download(model, revision, common)
    except InterlinguaError:
        raise
    except Exception as error:  # huggingface_hub raises its own, requests' or httpx's, by version
        raise _explained(error, model, revision, path) from error


def _download(model: str, revision: str | None, common: dict[str, Any]) -> Path:
    """The small files and one set of weights: safetensors, else pickles; shards by the names in their index."""
    from huggingface_hub import snapshot_download

    def fetch(patterns: list[str]) -> Path:
        return Path(str(snapshot_download(model, revision=revision, allow_patterns=patterns, **common)))

    for number, (_, single, index) in enumerate(LAYOUTS):
        folder = fetch([*(_SMALL if number == 0 else [f"{_DENSE}pytorch_model.bin"]), single, index])
        if _COMMIT.fullmatch(folder.name):
            revision = folder.name  # so that all files are of one commit
        if (folder / single).exists():
            break
        if (folder / index).exists():
            fetch(sorted(set(read_index(folder / index).values())))
            break
    return folder


def _looks_like_id(model: str) -> bool:
    return bool(_ID.fullmatch(model)) and Path(model).suffix not in _FILE_SUFFIXES


def _sibling(path: Path) -> str:
    """The folder that may have been meant: the one with the nearest name where the path leaves what exists."""
    path = path.absolute()
    while not path.parent.is_dir():
        path = path.parent
    try:
        folders = [p.name for p in path.parent.iterdir() if p.is_dir() and not p.name.startswith(".")]
    except OSError:
        return ""
    text = nearest(path.name, folders)
    return f"{text} (in {path.parent})" if text.startswith("; did you mean") else ""


def _explained(error: Exception, model: str, revision: str | None, path: Path) -> InterlinguaError:
    """What went wrong at the hub, and what to do."""
    from huggingface_hub import errors

    what = f"model {model!r}"
    if isinstance(error, errors.GatedRepoError):
        return UsageError(
            f"{what} is gated\n  accept its terms at https://huggingface.co/{model} and pass a token (token=, HF_TOKEN, `hf auth login`)"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return UsageError(
            f"{what} is neither a folder nor a public id on the hub{_sibling(path)}\n  if it is private, pass a token (token=, HF_TOKEN)"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(f"{what} has no revision {revision!r}\n  see https://huggingface.co/{model}/tree/main for those it has")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return UsageError(
            f"{what} is no folder, its files are not all downloaded, and the hub cannot be reached{_sibling(path)}\n"
            f"  go online (is HF_HUB_OFFLINE set?), or download it elsewhere and pass the folder"
        )
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{what} is neither a folder nor a Hugging Face id (name or organisation/name){_sibling(path)}")
    if isinstance(error, OSError) and error.errno is not None and getattr(error, "response", None) is None:
        return InterlinguaError(f"{what} could not be downloaded: {error.strerror or error}")
    first = str(error).strip().splitlines()[:1]
    return UsageError(
        f"{what} could not be downloaded: {type(error).__name__}: {''.join(first)}\n  try again, or download it elsewhere and pass the folder"
    )
