"""Checkpoints in the Hugging Face layout: finding, reading and writing them, unchanged and without running anything that is in them."""

from .checkpoint import Checkpoint
from .companions import companion_files, sentence_modules
from .hub import resolve
from .pickled import PickledFile
from .safetensors import SafetensorsFile
from .writing import save

__all__ = ["Checkpoint", "PickledFile", "SafetensorsFile", "companion_files", "resolve", "save", "sentence_modules"]
