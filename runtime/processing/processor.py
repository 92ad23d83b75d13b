"""One processor for a checkpoint: text, images and sound in, the arrays out that its model takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...ir.errors import InputError, UsageError
from . import vocabularies
from .audio import AudioProcessor, AudioSource
from .files import Inputs, read_optional
from .image import DEFAULTS as IMAGE_KINDS, SUFFIXES as IMAGE_SUFFIXES, ImageProcessor, ImageSource
from .text import TextProcessor, Texts
from .tokenizer_kinds import MODEL_TYPES

# What models take that do not take text alone; wav2vec2 takes no text, but needs its character table to spell what it heard.
MODALITIES: dict[str, frozenset[str]] = {
    "vit": frozenset({"image"}),
    "resnet": frozenset({"image"}),
    "swin": frozenset({"image"}),
    "wav2vec2": frozenset({"audio"}),
    "clip": frozenset({"text", "image"}),
    "clip_vision_model": frozenset({"image"}),
}
TEXT = frozenset({"text"})


@dataclass(frozen=True)
class Processor:
    """The front ends of one checkpoint, each read from its files when it is first needed.

    `modalities` says which of text, image and audio the model takes.
    """

    folder: Path
    config: Mapping[str, Any]
    modalities: frozenset[str]

    @cached_property
    def text(self) -> TextProcessor:
        """The tokenizer; UsageError where its files are missing."""
        return TextProcessor.from_folder(self.folder, self.config)

    @cached_property
    def image(self) -> ImageProcessor:
        """The image processor; UsageError where its file is missing."""
        return ImageProcessor.from_folder(self.folder, self.config)

    @cached_property
    def audio(self) -> AudioProcessor:
        """The feature extractor; UsageError where its file is missing."""
        return AudioProcessor.from_folder(self.folder, self.config)

    def inputs(
        self,
        *,
        text: Texts | None = None,
        pair: Texts | None = None,
        image: ImageSource | list[ImageSource] | None = None,
        audio: AudioSource | list[AudioSource] | None = None,
        **options: Any,
    ) -> Inputs:
        """The model's inputs for raw ones: `input_ids` and its masks for `text`, `pixel_values` for `image`, `input_values` for `audio`.

        `options` are those of `TextProcessor.inputs` (choices, padding, truncation, max_length, stride, padding_side, pad_token). Raises InputError
        where nothing is given, or a kind of input that the model does not take.
        """
        given = [name for name, value in (("text", text), ("image", image), ("audio", audio)) if value is not None]
        wrong = [name for name in given if name not in self.modalities]
        takes = " and ".join(sorted(self.modalities))
        if wrong or not given:
            raise InputError(f"{self.folder}: got {' and '.join(wrong) or 'no input'}, expected {takes}: {self._name} takes {takes}")
        if text is None and (pair is not None or options):
            raise InputError(f"{', '.join([*(['pair'] if pair is not None else []), *options])} given without text: they say how text is read")
        result = Inputs()
        if text is not None:
            result.merge(self.text.inputs(text, pair, **options))
        if image is not None:
            result.merge(self.image.inputs(image))
        if audio is not None:
            result.merge(self.audio.inputs(audio))
        return result

    @property
    def _name(self) -> str:
        return f"a model of type {self.config['model_type']!r}" if self.config.get("model_type") else "this model"


def processor_for(folder: str | Path, config: Mapping[str, Any]) -> Processor:
    """The processor of a checkpoint folder, chosen by the `model_type` of its config.json, or by its files where the type is not known.

    The files themselves are read when an input needs them. Raises UsageError where there is no folder, or neither type nor files say what it takes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder, expected a checkpoint with its tokenizer or preprocessor files")
    kind = config.get("model_type", "")
    modalities = MODALITIES.get(kind) or (TEXT if kind in MODEL_TYPES else _from_files(folder))
    if not modalities:
        raise UsageError(
            f"{folder}: no tokenizer.json, tokenizer files or preprocessor_config.json, expected those that came with the checkpoint\n"
            "  copy them from the checkpoint that this one was made from, or pass the model's inputs as arrays"
        )
    return Processor(folder, dict(config), modalities)


def _from_files(folder: Path) -> frozenset[str]:
    settings = read_optional(folder / "preprocessor_config.json")
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type") or ""
    image = any(kind == stem + suffix for stem in IMAGE_KINDS for suffix in IMAGE_SUFFIXES)
    found = {"text": vocabularies.has_tokenizer(folder), "image": image, "audio": "sampling_rate" in settings}
    return frozenset(name for name, present in found.items() if present)
