"""Images to pixel values, as the reference's (PIL-based) image processors do it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ...ir.errors import ConfigError, InputError, nearest
from .files import Inputs, MediaError, check_kinds, existing, preprocessor_settings

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource: TypeAlias = "str | Path | np.ndarray | Image"

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
NEAREST, LANCZOS, BILINEAR, BICUBIC = range(4)
WARP_FROM = 384  # ConvNext: from this size on images are warped to a square, below it they are cropped
DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {"size": {"height": 224, "width": 224}, "resample": BILINEAR, "image_mean": HALF, "image_std": HALF},
    "CLIP": {
        "size": {"shortest_edge": 224},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": 224,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    },
    "ConvNext": {"size": {"shortest_edge": 384}, "resample": BILINEAR, "crop_pct": 224 / 256, "image_mean": HALF, "image_std": HALF},
}
DEFAULTS["Bit"] = DEFAULTS["CLIP"]
DEFAULTS["DeiT"] = DEFAULTS["CLIP"] | {"size": {"height": 256, "width": 256}, "image_mean": HALF, "image_std": HALF}
MODEL_TYPES = {"vit": "ViT", "swin": "ViT", "resnet": "ConvNext", "clip": "CLIP", "clip_vision_model": "CLIP"}
SUFFIXES = ("ImageProcessorFast", "ImageProcessor", "FeatureExtractor")

SETTING_KINDS: dict[str, tuple[type, ...]] = (
    dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), (bool,))
    | dict.fromkeys(("image_mean", "image_std"), (int, float, list))
    | dict.fromkeys(("image_processor_type", "feature_extractor_type"), (str,))
    | {"rescale_factor": (int, float), "crop_pct": (int, float), "resample": (int,)}
)


@dataclass(frozen=True)
class ImageProcessor:
    """The steps of an image processor in their order: resize, crop, rescale, normalise; a step that is None is left out.

    `resize` maps (height, width) of an image to the size to resize to; `mean` and `std` are per channel, of values after `scale`.
    """

    resize: Callable[[int, int], tuple[int, int]] | None = None
    resample: int = BICUBIC
    crop: tuple[int, int] | None = None
    scale: float | None = 1 / 255
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: int = 3
    source: Path = field(default_factory=Path)

    @classmethod
    def from_folder(cls, folder: str | Path, config: Mapping[str, Any]) -> ImageProcessor:
        """The processor that preprocessor_config.json describes, in any of its spellings.

        `config` is the model's config.json: its `model_type` says which processor where the file does not. Raises UsageError where the file is
        missing, ConfigError where a field has a value that the reference would not take either.
        """
        folder = Path(folder)
        settings = preprocessor_settings(folder, "image_processor", "images become pixel_values")
        source = folder / "preprocessor_config.json"
        check_kinds(settings, SETTING_KINDS, source)
        kind = _kind(settings, config, source)
        settings = DEFAULTS[kind] | {key: value for key, value in settings.items() if value is not None}
        resize, crop = _geometry(kind, settings, source)
        channels = int((config.get("vision_config") or config).get("num_channels", 3))
        normalize = settings.get("do_normalize", True)
        return cls(
            resize=resize,
            resample=_resample(settings["resample"], source),
            crop=crop,
            scale=float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else None,
            mean=_per_channel(settings, "image_mean", channels, source) if normalize else None,
            std=_per_channel(settings, "image_std", channels, source) if normalize else None,
            channels=channels,
            source=source,
        )

    def inputs(self, image: ImageSource | list[ImageSource]) -> Inputs:
        """Pixel values of one or several images: `pixel_values` float32 [batch channels height width].

        An image is a file name, a PIL image, or an array of uint8 [height width channels]. Raises UsageError for a missing file, MediaError for one
        that is not an image, InputError for arrays of another shape or images that do not become of one size.
        """
        images = image if isinstance(image, list) else [image]
        if not images:
            raise InputError("image is an empty list, expected at least one image")
        arrays = [self._pixels(source) for source in images]
        sizes = {array.shape for array in arrays}
        if len(sizes) > 1:
            listed = ", ".join(f"image {i}: {a.shape[1]}x{a.shape[2]}" for i, a in enumerate(arrays))
            raise InputError(f"the images are of unequal sizes after processing, expected one size in a batch ({listed})\n  settings: {self.source}")
        return Inputs({"pixel_values": np.stack(arrays)})

    def _pixels(self, source: ImageSource) -> np.ndarray:
        from PIL import Image

        image = read_image(source, self.channels)
        if self.resize is not None:
            height, width = self.resize(image.height, image.width)
            image = image.resize((width, height), resample=Image.Resampling(self.resample))
        pixels = np.asarray(image)
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        if self.crop is not None:
            pixels = _center_crop(pixels, *self.crop)
        values = pixels.astype(np.float32) if self.scale is None else (pixels.astype(np.float64) * self.scale).astype(np.float32)
        if self.mean is not None and self.std is not None:
            values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1))


def read_image(source: ImageSource, channels: int = 3) -> Image:
    """The picture in a file, array or PIL image, upright, in RGB (grey for one channel); of several frames the first."""
    from PIL import Image

    if isinstance(source, np.ndarray):
        return _upright(_from_array(source), channels, "image array")
    if isinstance(source, Image.Image):
        return _upright(source, channels, "image")
    path = existing(source, "image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise MediaError(f"{path}: too large to be an image that is meant: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise MediaError(f"{path}: not an image; expected PNG, JPEG, WebP, GIF, BMP, TIFF or another format that Pillow reads") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError(f"{path}: corrupt image: {error}") from error
    with image:
        return _upright(image, channels, str(path))


def _upright(image: Image, channels: int, name: str) -> Image:
    """The image turned as its EXIF tag says; MediaError where its data is cut or corrupt."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise, which read the pixels only here
        raise MediaError(f"{name}: corrupt image: {error}") from error


def _from_array(array: np.ndarray) -> Image:
    from PIL import Image

    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(f"image array is {array.dtype}{list(array.shape)}, expected uint8 [height width] or [height width 1|3|4]")
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of an image [h w channels]; where the image is smaller, it stands in the middle of zeros."""
    have_height, have_width = pixels.shape[:2]
    short_height, short_width = max(height - have_height, 0), max(width - have_width, 0)
    if short_height or short_width:
        # the odd row of padding goes before the image on an axis that was padded
        top, left = (short_height + 1) // 2, (short_width + 1) // 2
        pixels = np.pad(pixels, ((top, short_height - top), (left, short_width - left), (0, 0)))
    top, left = (max(have_height - height, 0)) // 2, (max(have_width - width, 0)) // 2
    return pixels[top : top + height, left : left + width]


# -- preprocessor_config.json ----------------------------------------------------------------------------------------------------------------------


def _kind(settings: Mapping[str, Any], config: Mapping[str, Any], source: Path) -> str:
    stated = settings.get("image_processor_type") or settings.get("feature_extractor_type") or ""
    kind = next((stated.removesuffix(suffix) for suffix in SUFFIXES if stated.endswith(suffix)), stated)
    kind = kind or MODEL_TYPES.get(config.get("model_type", ""), "")
    if kind not in DEFAULTS:
        what = f"image_processor_type={stated!r}" if stated else f"no image_processor_type, and model_type={config.get('model_type')!r} implies none"
        raise ConfigError(f"{source}: {what}, expected one of the known processors{nearest(kind, DEFAULTS)}")
    return kind


def _geometry(kind: str, settings: Mapping[str, Any], source: Path) -> tuple[Callable[[int, int], tuple[int, int]] | None, tuple[int, int] | None]:
    """How to resize, and what to crop to."""
    crop = None
    if "crop_size" in DEFAULTS[kind] and settings["do_center_crop"]:
        crop = _size(settings["crop_size"], "crop_size", True, source)
        if isinstance(crop, int):
            raise ConfigError(f"{source}: crop_size={settings['crop_size']}, expected a number or {{'height': h, 'width': w}}")
    if not settings.get("do_resize", True):
        return None, crop
    size = _size(settings["size"], "size", kind in ("ViT", "DeiT"), source)
    if kind != "ConvNext":
        return (_shortest_edge(size) if isinstance(size, int) else lambda height, width: size), crop
    if not isinstance(size, int):
        raise ConfigError(f"{source}: size={settings['size']}, expected {{'shortest_edge': n}} for a ConvNext processor")
    if size >= WARP_FROM:
        return (lambda height, width: (size, size)), None
    if not settings["crop_pct"] > 0:
        raise ConfigError(f"{source}: crop_pct={settings['crop_pct']}, expected a positive number")
    return _shortest_edge(int(size / settings["crop_pct"])), (size, size)


def _shortest_edge(edge: int) -> Callable[[int, int], tuple[int, int]]:
    def resize(height: int, width: int) -> tuple[int, int]:
        longest = int(edge * max(height, width) / min(height, width))
        return (edge, longest) if height <= width else (longest, edge)

    return resize


def _size(value: Any, name: str, square: bool, source: Path) -> int | tuple[int, int]:
    """(height, width), or the length of the shortest edge."""
    if isinstance(value, dict):
        numbers = [value.get("height"), value.get("width")] if set(value) == {"height", "width"} else [value.get("shortest_edge")]
        numbers = numbers if len(numbers) == len(value) else []
    else:
        numbers = value if isinstance(value, list) and len(value) == 2 else [value, value] if square else [value]
    match [number for number in numbers if isinstance(number, int) and number > 0]:
        case [height, width]:
            return height, width
        case [edge] if len(numbers) == 1:
            return edge
    raise ConfigError(f"{source}: {name}={value!r}, expected a positive number, {{'height': h, 'width': w}} or {{'shortest_edge': n}}")


def _resample(value: Any, source: Path) -> int:
    if value not in range(6):
        raise ConfigError(f"{source}: resample={value!r}, expected 0 (nearest), 1 (Lanczos), 2 (bilinear), 3 (bicubic), 4 (box) or 5 (Hamming)")
    return value


def _per_channel(settings: Mapping[str, Any], name: str, channels: int, source: Path) -> tuple[float, ...]:
    value = settings[name]
    values = list(value) if isinstance(value, (list, tuple)) else [value] * channels
    if not all(isinstance(v, (int, float)) for v in values) or len(values) != channels:
        raise ConfigError(f"{source}: {name}={value!r}, expected a number or {channels} of them: the model takes images of {channels} channels")
    return tuple(float(v) for v in values)
