"""Image files: PNG, JPEG, WebP and BMP with changed bytes, with and without right checksums."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gandefense.image_files import UnreadableError, read_image
from tests.fuzz.mutations import fuzz, mutated, survives, with_checksums


def _originals() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 4), np.uint8)
    colour, grey = Image.fromarray(pixels[:, :, :3]), Image.fromarray(pixels[:, :, 0])
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    files = []
    for picture, options in (
        (colour, {"format": "PNG"}),
        (colour.quantize(8), {"format": "PNG", "transparency": 3}),
        (Image.fromarray(pixels.astype(np.uint16)[:, :, 0] * 257), {"format": "PNG"}),
        (grey.convert("1"), {"format": "PNG"}),
        (Image.fromarray(pixels), {"format": "PNG", "exif": exif}),
        (colour, {"format": "JPEG", "exif": exif}),
        (grey, {"format": "JPEG", "progressive": True}),
        (colour, {"format": "WEBP", "exif": exif}),
        (colour, {"format": "WEBP", "save_all": True, "append_images": [colour.rotate(180)]}),
        (colour, {"format": "BMP"}),
        (grey, {"format": "BMP"}),
        (colour, {"format": "PNG", "save_all": True, "append_images": [colour.rotate(180)]}),
    ):
        file = io.BytesIO()
        picture.save(file, **options)
        files.append(file.getvalue())
    return files


ORIGINALS = _originals()


@fuzz
@given(
    content=st.sampled_from(ORIGINALS).flatmap(mutated),
    right=st.booleans(),
    channels=st.sampled_from([1, 3]),
    size=st.sampled_from([None, 8]),
)
def test_an_image_is_read_or_refused(place: Path, content: bytes, right: bool, channels: int, size: int | None) -> None:
    path = place / "x.png"
    path.write_bytes(with_checksums(content) if right else content)
    found = survives(lambda: read_image(path, channels=channels, size=size), UnreadableError)
    if found is not None:
        image, done = found
        assert image.dtype == torch.uint8 and image.shape[0] == channels and image.numel() > 0
        assert size is None or image.shape[1:] == (size, size)
        assert all(isinstance(words, str) for pair in done.items() for words in pair)


@pytest.mark.parametrize("original", ORIGINALS)
def test_the_originals_are_images(tmp_path: Path, original: bytes) -> None:
    (tmp_path / "x.png").write_bytes(original)
    assert read_image(tmp_path / "x.png", channels=3, size=8)[0].shape == (3, 8, 8)
