"""From raw text, images and sound to a model's inputs, and from its outputs to an answer that a person can read."""

from __future__ import annotations

from .answers import Answer
from .audio import AudioProcessor
from .files import Inputs, MediaError
from .image import ImageProcessor
from .processor import Processor, processor_for
from .text import TextProcessor

__all__ = ["Answer", "AudioProcessor", "ImageProcessor", "Inputs", "MediaError", "Processor", "TextProcessor", "processor_for"]
