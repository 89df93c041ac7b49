"""Image files: one PNG, JPEG, WebP or BMP as a tensor, and a tensor as a PNG."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from gandefense.errors import reason
from gandefense.files import write_atomically

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # the only decoders that a file may reach, whatever its name says
LARGEST_FILE = 2**28  # bytes; the decoders read no more than a file has
MOST_PIXELS = 2**26  # of one image, before it is resized: 67 million, about 1 GB while it is converted
ORIENTATION = 0x0112  # the EXIF tag
MODES = {"L": "greyscale", "LA": "greyscale with alpha", "P": "palette", "RGBA": "RGB with alpha", "1": "black and white"}


class UnreadableError(Exception):
    """Why a file could not be read as an image, in a few words."""


def read_image(path: Path, *, channels: int, size: int | None, crop: bool = False) -> tuple[Tensor, dict[str, str]]:
    """An image as a restorer takes it.

    Its EXIF orientation is followed, its colours are converted (transparency is dropped), and another size is resized,
    with antialiasing, without regard to its shape unless it is cropped first.

    Args:
        path: a PNG, JPEG, WebP or BMP file; of an animated one the first frame is taken.
        channels: 3 for RGB, 1 for greyscale.
        size: height and width to resize to; None keeps them.
        crop: cut to the square in the middle before resizing.

    Returns:
        (C, H, W) uint8, and what was done to the image, in words: what → detail.

    Raises:
        UnreadableError: the file is no such image, damaged, larger than LARGEST_FILE, or of more than MOST_PIXELS pixels.
    """
    if not path.is_file():
        raise UnreadableError("not a file")
    if path.stat().st_size > LARGEST_FILE:
        raise UnreadableError(f"{path.stat().st_size:,} bytes, which exceeds the limit of {LARGEST_FILE:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            with Image.open(path, formats=FORMATS) as image:  # which reads the size, but no pixels yet
                if image.width * image.height > MOST_PIXELS:
                    raise UnreadableError(f"{image.width}×{image.height} pixels, which exceeds limit of {MOST_PIXELS:,} pixels")
                return _prepared(image, "L" if channels == 1 else "RGB", size, crop)
    except UnreadableError:
        raise
    except UnidentifiedImageError:
        raise UnreadableError("no PNG, JPEG, WebP or BMP image") from None
    except Exception as error:  # a damaged or malicious file may raise anything
        raise UnreadableError(getattr(error, "strerror", None) or reason(error)) from None


def _prepared(image: Image.Image, mode: str, size: int | None, crop: bool) -> tuple[Tensor, dict[str, str]]:
    done = {}
    image.load()  # before the metadata, because reading those decodes a PNG too, and a second decoding fails silently
    if getattr(image, "n_frames", 1) > 1:
        done["first frame taken"] = f"of {image.n_frames}"
    if _orientation(image) in range(2, 9):
        done["turned as EXIF says"] = ""
        image = ImageOps.exif_transpose(image)
    if image.mode != mode:
        done[f"converted to {MODES.get(mode, mode)}"] = f"from {MODES.get(image.mode, image.mode)}"
    if image.mode.startswith("I"):  # 16 bits a pixel, which `convert` would cut off at 255
        image = Image.fromarray((np.asarray(image, np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    elif image.mode == "P":  # the detour follows a palette's transparency, of which Pillow warns otherwise
        image = image.convert("RGBA")
    image = image.convert(mode)
    if crop and image.width != image.height:
        side, (width, height) = min(image.size), image.size
        done[f"cut to its middle, {side}×{side}"] = f"from {width}×{height}"
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if size is not None and image.size != (size, size):
        done[f"resized to {size}×{size}"] = f"from {image.width}×{image.height}"
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image))
    return (pixels[None] if mode == "L" else pixels.permute(2, 0, 1)), done


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata do not make an image unreadable
        return 1


def write_image(path: Path, image: Tensor) -> None:
    """Write an image (C, H, W) in [0, 1] as an 8-bit PNG, atomically."""
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))
