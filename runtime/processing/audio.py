"""Sound to input values: reading WAV files, resampling, and the reference's feature extractor for models that take the waveform itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from ...ir.errors import ConfigError, InputError
from .files import Inputs, check_kinds, existing, preprocessor_settings
from .wav import RATES, read_wav

AudioSource = str | Path | np.ndarray | tuple[np.ndarray, int]
EXTRACTOR = "Wav2Vec2FeatureExtractor"
SETTING_KINDS: dict[str, tuple[type, ...]] = {
    "do_normalize": (bool,),
    "return_attention_mask": (bool,),
    "padding_value": (int, float),
    "padding_side": (str,),
    "feature_extractor_type": (str,),
}
EPSILON = 1e-7  # added to the variance by the reference's Wav2Vec2FeatureExtractor
LOBES = 10  # zero crossings of the resampling filter on each side; with the Kaiser window of beta 5: the filter of scipy.signal.resample_poly
KAISER_BETA = 5.0


@dataclass(frozen=True)
class AudioProcessor:
    """How sound becomes the input of a model: `sampling_rate` in Hz, whether to normalise to zero mean and unit variance, and what to pad with."""

    sampling_rate: int = 16000
    do_normalize: bool = True
    return_attention_mask: bool = False
    padding_value: float = 0.0
    padding_side: str = "right"

    @classmethod
    def from_folder(cls, folder: str | Path, config: Mapping[str, Any]) -> AudioProcessor:
        """The feature extractor that preprocessor_config.json describes; UsageError where there is no such file, ConfigError for another kind."""
        folder = Path(folder)
        settings = preprocessor_settings(folder, "feature_extractor", "sound becomes input_values")
        source = folder / "preprocessor_config.json"
        check_kinds(settings, SETTING_KINDS, source)
        kind = settings.get("feature_extractor_type") or EXTRACTOR
        if kind != EXTRACTOR or settings.get("feature_size", 1) != 1:
            raise ConfigError(
                f"{source}: feature_extractor_type={kind!r} with feature_size={settings.get('feature_size', 1)}, expected {EXTRACTOR!r} with 1"
            )
        rate = settings.get("sampling_rate", 16000)
        if not isinstance(rate, int) or rate <= 0:
            raise ConfigError(f"{source}: sampling_rate={rate!r}, expected a positive number of samples per second")
        return cls(
            sampling_rate=rate,
            do_normalize=settings.get("do_normalize", True),
            return_attention_mask=settings.get("return_attention_mask", False),
            padding_value=settings.get("padding_value", 0.0),
            padding_side=settings.get("padding_side", "right"),
        )

    def inputs(self, audio: AudioSource | list[AudioSource]) -> Inputs:
        """Waveforms of one or several recordings, padded to one length.

        Gives `input_values` float32 and, where the model wants one, `attention_mask` int64, both [batch samples]. A recording is the name of
        a WAV file, an array of samples at the model's rate, or a pair of an array and its rate in Hz; several channels are averaged, another rate is
        resampled, with a note. Raises UsageError for a missing file, MediaError for a corrupt one, InputError for a recording without samples.
        """
        sources = audio if isinstance(audio, list) else [audio]
        if not sources:
            raise InputError("audio is an empty list, expected at least one recording")
        result = Inputs()
        waves = [self._wave(source, number, result) for number, source in enumerate(sources)]
        live = np.zeros((len(waves), max(map(len, waves))), np.int64)
        for row, wave in zip(live, waves, strict=True):
            row[self._place(len(wave), len(row))] = 1
        result["input_values"] = np.stack([self._padded(wave, live.shape[1]) for wave in waves])
        if self.return_attention_mask:
            result["attention_mask"] = live
        return result

    def _wave(self, source: AudioSource, number: int, result: Inputs) -> np.ndarray:
        name = f"recording {number}"
        if isinstance(source, (str, Path)):
            name = str(source)
            samples, rate = read_wav(existing(source, "audio"))
        else:
            samples, rate = source if isinstance(source, tuple) else (source, self.sampling_rate)
            samples = _checked(samples, name)
        if samples.ndim == 2:
            samples = samples.mean(axis=1, dtype=np.float64).astype(np.float32)
        if not len(samples):
            raise InputError(f"{name} holds no samples")
        if not np.isfinite(samples).all():
            raise InputError(f"{name} holds samples that are not finite numbers")
        if rate != self.sampling_rate:
            result.notes.append(f"{name} was resampled from {rate} to {self.sampling_rate} Hz")
            samples = resample(samples, rate, self.sampling_rate)
        return samples

    def _place(self, length: int, total: int) -> slice:
        return slice(total - length, total) if self.padding_side == "left" else slice(0, length)

    def _padded(self, wave: np.ndarray, total: int) -> np.ndarray:
        place = self._place(len(wave), total)
        row = np.full(total, self.padding_value, np.float32)
        row[place] = wave
        if self.do_normalize:
            # Without a mask the reference takes mean and variance over the padding too: models trained so expect exactly that.
            part = row[place] if self.return_attention_mask else row
            part[...] = (part - part.mean()) / np.sqrt(part.var() + EPSILON)
        return row


def _checked(samples: Any, name: str) -> np.ndarray:
    samples = np.asarray(samples)
    if samples.dtype.kind != "f" or samples.ndim not in (1, 2):
        raise InputError(f"{name} is {samples.dtype}{list(samples.shape)}, expected floats between -1 and 1: [samples] or [samples channels]")
    return samples.astype(np.float32)


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Samples [samples] at `rate` Hz converted to `wanted` Hz by a polyphase Kaiser-windowed sinc filter, the one of scipy.signal.resample_poly.

    The result has ceil(len * wanted / rate) samples in the samples' dtype; what is before and after the recording counts as silence.
    """
    if rate not in RATES or wanted not in RATES:
        raise InputError(f"cannot resample from {rate} to {wanted} Hz, expected rates from {RATES[0]} to {RATES[-1]} Hz")
    up, down = wanted // gcd(rate, wanted), rate // gcd(rate, wanted)
    if up == down:
        return samples
    half = LOBES * max(up, down)
    time = np.arange(-half, half + 1)
    kernel = np.sinc(time / max(up, down)) * np.kaiser(2 * half + 1, KAISER_BETA)
    kernel *= up / kernel.sum()
    length = -(-len(samples) * up // down)
    # Output n lies at n * down of a grid with `up` points per input sample. Only every up-th tap meets an input sample, which ones depends on the
    # phase (n * down) % up alone, and outputs of one phase are `up` apart: one small matrix product per phase.
    taps = -(-(2 * half + 1) // up)
    reach = half // up
    padded = np.pad(samples.astype(np.float64), (taps, taps + reach + down + 1))
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps)
    result = np.empty(length)
    for first in range(min(up, length)):
        phase = (first * down + half) % up
        weights = kernel[phase::up]
        last = (first * down + half) // up  # the newest input sample that reaches this output
        start = last - len(weights) + 1 + taps
        rows = windows[start::down][: -(-(length - first) // up), : len(weights)]
        result[first::up] = rows @ weights[::-1]
    return result.astype(samples.dtype)
