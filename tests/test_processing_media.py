"""Images and sound against the reference's image processors and feature extractor, SciPy's resampling, and files that cannot be read."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from processing_files import pictures, write

from interlingua.ir.errors import ConfigError, InputError, UsageError
from interlingua.runtime.processing import AudioProcessor, ImageProcessor, MediaError
from interlingua.runtime.processing.audio import resample
from interlingua.runtime.processing.wav import read_wav

IMAGES = [  # preprocessor_config.json as publishers write it, with config.json
    {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 20}, "resample": 2, "image_mean": [0.5, 0.4, 0.3]},
    {"feature_extractor_type": "ViTFeatureExtractor", "size": 18, "resample": 3, "do_normalize": True, "do_resize": True},
    {"image_processor_type": "ViTImageProcessorFast", "do_normalize": False, "rescale_factor": 0.01, "do_convert_rgb": None},
    {"image_processor_type": "ViTImageProcessor", "size": [16, 30], "do_rescale": False},
    {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 30}, "do_convert_rgb": True},
    {"feature_extractor_type": "CLIPFeatureExtractor", "size": 20, "crop_size": 33, "resample": 3, "do_center_crop": True},
    {"image_processor_type": "CLIPImageProcessor", "size": {"height": 25, "width": 31}, "do_center_crop": False, "resample": 0},
    {"image_processor_type": "CLIPImageProcessor", "do_resize": False, "crop_size": 40},
    {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.875, "resample": 3},
    {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 50, "crop_pct": None, "image_std": 0.25, "resample": 4},
    {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, "resample": 1},
    {"image_processor_type": "DeiTImageProcessor", "size": 40, "crop_size": 31},
    {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 30}, "crop_size": 25, "resample": 5},
]


@pytest.mark.parametrize("settings", IMAGES, ids=lambda s: (s.get("image_processor_type") or s["feature_extractor_type"]) + str(s.get("size", "")))
def test_pixel_values_are_the_reference_s(settings, tmp_path):
    import transformers

    folder = write(tmp_path, preprocessor_config=settings)
    kind = (
        (settings.get("image_processor_type") or settings["feature_extractor_type"])
        .removesuffix("Fast")
        .replace("FeatureExtractor", "ImageProcessor")
    )
    reference = getattr(transformers, kind).from_pretrained(folder)
    ours = ImageProcessor.from_folder(folder, {})
    for image in pictures():
        expected = reference(image.convert("RGB"), return_tensors="np")["pixel_values"]
        got = ours.inputs(image)["pixel_values"]
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_image_files_and_defaults_of_model_types(tmp_path):
    from PIL import Image
    from transformers import ConvNextImageProcessor, ViTImageProcessor
    from transformers.image_utils import load_image

    picture = pictures()[1]
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=turned)
    for suffix in ("png", "bmp", "gif", "webp", "tiff"):
        picture.save(tmp_path / f"plain.{suffix}")
    for model_type, kind in (("vit", ViTImageProcessor), ("swin", ViTImageProcessor), ("resnet", ConvNextImageProcessor)):
        ours = ImageProcessor.from_folder(write(tmp_path, preprocessor_config={"size": 24}), {"model_type": model_type})
        reference = kind(size=24)  # type: ignore[arg-type]
        files = sorted(path for path in tmp_path.iterdir() if path.suffix != ".json")
        got = ours.inputs(files)["pixel_values"]
        for file, pixels in zip(files, got, strict=True):
            with Image.open(file) as opened:
                expected = reference(load_image(opened), return_tensors="np")["pixel_values"][0]
            np.testing.assert_allclose(pixels, expected, atol=1e-6)
    grey = ImageProcessor.from_folder(
        write(tmp_path, preprocessor_config={"size": 9, "image_mean": 0.5, "image_std": 0.5}), {"model_type": "vit", "num_channels": 1}
    )
    luma = np.asarray(picture.resize((9, 9), Image.Resampling.BILINEAR).convert("L"), np.float64)
    np.testing.assert_allclose(grey.inputs(picture)["pixel_values"][0, 0], luma / 127.5 - 1, atol=0.02)
    array = np.asarray(picture)
    np.testing.assert_array_equal(ours.inputs(array)["pixel_values"], ours.inputs(picture)["pixel_values"])


def test_images_that_cannot_be_read(tmp_path):
    ours = ImageProcessor.from_folder(write(tmp_path, preprocessor_config={"do_resize": False, "do_center_crop": False}), {"model_type": "clip"})
    whole = io.BytesIO()
    pictures()[0].save(whole, "PNG")
    for name, data, message in (
        ("text.png", b"no picture", "not an image; expected PNG"),
        ("empty.png", b"", "not an image"),
        ("cut.png", whole.getvalue()[:400], "corrupt image"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MediaError, match=f"{name}: {message}"):
            ours.inputs(tmp_path / name)
    with pytest.raises(UsageError, match=r"gone\.png: no such image file"):
        ours.inputs(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"images are of unequal sizes after processing.*image 0: 37x53, image 1: 47x61"):
        ours.inputs(pictures()[:2])
    with pytest.raises(InputError, match=r"image array is float64\[4, 4, 3\], expected uint8"):
        ours.inputs(np.zeros((4, 4, 3)))
    for settings, message in (
        ({"image_processor_type": "VidImageProcessor"}, "image_processor_type='VidImageProcessor'.*did you mean 'ViT'"),
        ({"size": {"longest_edge": 3}}, "size={'longest_edge': 3}, expected"),
        ({"resample": 9}, "resample=9, expected 0"),
        ({"image_mean": [0.5]}, "image_mean=\\[0.5\\], expected a number or 3 of them"),
    ):
        with pytest.raises(ConfigError, match=f"preprocessor_config.json: {message}"):
            ImageProcessor.from_folder(write(tmp_path, preprocessor_config=settings), {"model_type": "vit"})
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match=r"preprocessor_config\.json: no such file; it says how images become pixel_values"):
        ImageProcessor.from_folder(tmp_path, {"model_type": "vit"})


# -- sound -----------------------------------------------------------------------------------------------------------------------------------------


# -- sound -----------------------------------------------------------------------------------------------------------------------------------------


def chunks(*parts: tuple[bytes, bytes], size: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in parts)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def fmt(code: int, channels: int, rate: int, bits: int, extension: bytes = b"") -> tuple[bytes, bytes]:
    frame = channels * bits // 8
    return b"fmt ", struct.pack("<HHIIHH", code, channels, rate, rate * frame, frame, bits) + extension


def test_wav_files_of_every_width(tmp_path):
    from scipy.io import wavfile

    file = tmp_path / "sound.wav"
    truth = np.random.default_rng(0).uniform(-1, 1, (101, 2))
    for dtype, scale, offset, step in (
        ("u1", 128, 128, 1 / 128),
        ("<i2", 2**15, 0, 2**-15),
        ("<i4", 2**31, 0, 1e-7),
        ("<f4", 1, 0, 1e-7),
        ("<f8", 1, 0, 1e-7),
    ):
        written = (truth * scale * 0.99 + offset).astype(dtype)
        for samples in (written, written[:, 0]):
            wavfile.write(file, 22050, samples)
            got, rate = read_wav(file)
            assert rate == 22050
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, (truth * 0.99)[:, : got.shape[1]], atol=1.01 * step)
    wide = (truth * 2**23 * 0.99).astype("<i4")
    raw = wide.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    pcm = struct.pack("<HHIH", 22, 24, 3, 1) + bytes(14)
    for form in (fmt(1, 2, 8000, 24), fmt(0xFFFE, 2, 8000, 24, pcm)):  # plain and extensible, with another chunk of odd size before the samples
        file.write_bytes(chunks(form, (b"LIST", b"odd"), (b"data", raw)))
        np.testing.assert_allclose(read_wav(file)[0], truth * 0.99, atol=2**-22)
    streamed = chunks(fmt(1, 1, 8000, 16), (b"data", b"\1\0\2\0"), size=0xFFFFFFFF)
    file.write_bytes(streamed[:40] + b"\xff" * 4 + streamed[44:])
    np.testing.assert_array_equal(read_wav(file)[0][:, 0] * 2**15, [1, 2])


@pytest.mark.parametrize(("data", "message"), [
    (b"", "empty"),
    (b"fLaC" + bytes(40), "not a WAV file; expected RIFF/WAVE.*\n.*ffmpeg"),
    (chunks(fmt(1, 1, 8000, 16)), "no samples"),
    (chunks((b"data", bytes(8))), "samples come before their format"),
    (chunks((b"fmt ", bytes(4))), "format chunk of 4 bytes, expected at least 16"),
    (chunks(fmt(7, 1, 8000, 8), (b"data", bytes(8))), "WAV format 7 with 8 bits, expected PCM"),
    (chunks(fmt(1, 0, 8000, 16), (b"data", bytes(8))), "0 channels at 8000 Hz"),
    (chunks(fmt(1, 1, 2**30, 16), (b"data", bytes(8))), "1 channels at 1073741824 Hz, expected 1000 to 400000 Hz"),
    (chunks(fmt(1, 2, 8000, 16), (b"data", bytes(7))), "7 bytes of samples of 2 x 16 bits, expected a multiple of 4"),
    (chunks(fmt(1, 1, 8000, 16), (b"data", bytes(80)))[:-50], "cut short: 80 bytes of samples announced, 30 there"),
], ids=lambda value: value[:14] if isinstance(value, str) else "")  # fmt: skip
def test_wav_files_that_cannot_be_read(data, message, tmp_path):
    (tmp_path / "bad.wav").write_bytes(data)
    with pytest.raises(MediaError, match=rf"bad\.wav: .*{message}"):
        AudioProcessor().inputs(tmp_path / "bad.wav")


@pytest.mark.parametrize("settings", [
    {"do_normalize": True, "return_attention_mask": False, "sampling_rate": 16000},
    {"do_normalize": True, "return_attention_mask": True, "feature_extractor_type": "Wav2Vec2FeatureExtractor", "padding_value": 0.25},
    {"do_normalize": False, "return_attention_mask": True},
], ids=["group", "layer", "raw"])  # fmt: skip
def test_input_values_are_the_reference_s(settings, tmp_path):
    from transformers import Wav2Vec2FeatureExtractor

    folder = write(tmp_path, preprocessor_config=settings)
    ours, reference = AudioProcessor.from_folder(folder, {}), Wav2Vec2FeatureExtractor.from_pretrained(folder)
    generator = np.random.default_rng(0)
    waves = [(generator.standard_normal(n) * 0.1 + 0.05).astype(np.float32) for n in (1000, 700, 1)]
    for batch in (waves, waves[:1]):
        expected = reference(batch, sampling_rate=16000, padding=True, return_tensors="np")
        got = ours.inputs(batch)
        assert sorted(got) == sorted(expected)
        assert got["input_values"].dtype == np.float32
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, atol=1e-6)


@pytest.mark.parametrize("rates", [(44100, 16000), (8000, 16000), (48000, 16000), (11025, 16000), (16000, 44100), (7000, 5000)], ids=str)
def test_resampling_is_that_of_scipy(rates):
    from scipy.signal import resample_poly

    for length in (1, 2, 99, 3000):
        samples = np.random.default_rng(length).standard_normal(length)
        expected = resample_poly(samples, rates[1] // np.gcd(*rates), rates[0] // np.gcd(*rates))
        np.testing.assert_allclose(resample(samples, *rates), expected, atol=1e-12)


def test_recordings_are_mixed_and_resampled(tmp_path):
    from scipy.io import wavfile

    time = np.arange(44100) / 44100
    left, right = np.sin(2 * np.pi * 440 * time), 0.5 * np.sin(2 * np.pi * 1000 * time)
    wavfile.write(tmp_path / "stereo.wav", 44100, np.stack([left, right], 1).astype(np.float32))
    got = AudioProcessor(do_normalize=False).inputs(str(tmp_path / "stereo.wav"))
    time = np.arange(16000) / 16000
    truth = (np.sin(2 * np.pi * 440 * time) + 0.5 * np.sin(2 * np.pi * 1000 * time)) / 2
    np.testing.assert_allclose(got["input_values"][0, 100:-100], truth[100:-100], atol=2e-3)
    assert got.notes == [f"{tmp_path / 'stereo.wav'} was resampled from 44100 to 16000 Hz"]
    for bad, message in (
        (np.zeros(0), "holds no samples"),
        (np.zeros(4, int), r"is int64\[4\], expected floats"),
        (np.array([np.nan]), "not finite"),
    ):
        with pytest.raises(InputError, match=f"recording 0 {message}|recording 0 holds samples that are {message}"):
            AudioProcessor().inputs(bad)
    write(tmp_path, preprocessor_config={"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80})
    with pytest.raises(ConfigError, match="'WhisperFeatureExtractor' with feature_size=80, expected 'Wav2Vec2FeatureExtractor'"):
        AudioProcessor.from_folder(tmp_path, {})
