"""Reading and writing single image files."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gandefense.image_files import UnreadableError, read_image, write_image


@pytest.fixture
def pixels() -> np.ndarray:
    """A 32×32 picture whose four quarters differ, so that turning it shows."""
    picture = np.zeros((32, 32, 3), np.uint8)
    for number, (rows, columns) in enumerate(((0, 0), (0, 16), (16, 0), (16, 16))):
        picture[rows : rows + 16, columns : columns + 16] = (60 * number, 200 - 50 * number, 30 + 5 * number)
    return picture


def read(path: Path, channels: int = 3, size: int | None = 32) -> tuple[Tensor, dict[str, str]]:
    return read_image(path, channels=channels, size=size)


@pytest.mark.parametrize("ending", ["png", "bmp", "webp"])
def test_lossless_files_are_read_exactly(tmp_path: Path, pixels: np.ndarray, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    Image.fromarray(pixels).save(path, **({"lossless": True} if ending == "webp" else {}))
    image, done = read(path)
    assert image.dtype == torch.uint8 and np.array_equal(image.permute(1, 2, 0).numpy(), pixels)
    assert done == {}


def test_a_jpeg_under_another_name_is_read_by_its_contents(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.png", format="JPEG", quality=95)
    image, done = read(tmp_path / "x.png")
    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - pixels).mean() < 5 and not done


@pytest.mark.parametrize(
    ("mode", "source"),
    [("L", "greyscale"), ("LA", "greyscale with alpha"), ("P", "palette"), ("RGBA", "RGB with alpha"), ("1", "black and white")],
)
def test_other_colours_are_converted_and_told(tmp_path: Path, pixels: np.ndarray, mode: str, source: str) -> None:
    picture = Image.fromarray(pixels).convert(mode)
    picture.save(tmp_path / "x.png")
    image, done = read(tmp_path / "x.png")
    assert image.shape == (3, 32, 32) and done == {"converted to RGB": f"from {source}"}
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(picture.convert("RGB")))


def test_transparency_is_dropped_and_the_colours_stay(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(np.dstack([pixels, np.full((32, 32), 10, np.uint8)])).save(tmp_path / "x.png")
    assert np.array_equal(read(tmp_path / "x.png")[0].permute(1, 2, 0).numpy(), pixels)


def test_sixteen_bits_keep_their_brightness(tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32), 257 * 100, np.uint16)).save(tmp_path / "x.png")
    assert read(tmp_path / "x.png", channels=1)[0].unique().tolist() == [100]


def test_greyscale_for_a_greyscale_restorer(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "colour.png")
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "grey.png")
    image, done = read(tmp_path / "colour.png", channels=1)
    assert image.shape == (1, 32, 32) and done == {"converted to greyscale": "from RGB"}
    assert read(tmp_path / "grey.png", channels=1)[1] == {}


def test_other_sizes_are_resized_or_kept(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).resize((640, 480), Image.Resampling.NEAREST).save(tmp_path / "x.png")
    image, done = read(tmp_path / "x.png")
    assert image.shape == (3, 32, 32) and done == {"resized to 32×32": "from 640×480"}
    assert image[:, 8, 8].tolist() == pixels[8, 8].tolist() and image[:, 24, 8].tolist() == pixels[24, 8].tolist()
    kept, done = read(tmp_path / "x.png", size=None)
    assert kept.shape == (3, 480, 640) and not done


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_followed(tmp_path: Path, pixels: np.ndarray, orientation: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's numbers of the transposition that a camera would make
    picture = Image.fromarray(pixels)
    if orientation > 1:
        picture = picture.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "x.png", exif=exif)
    image, done = read(tmp_path / "x.png")
    assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)
    assert list(done) == (["turned as EXIF says"] if orientation > 1 else [])


def test_damaged_metadata_do_not_make_an_image_unreadable(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.jpg", exif=b"Exif\x00\x00no such thing")
    assert read(tmp_path / "x.jpg")[0].shape == (3, 32, 32)


def test_an_animation_gives_its_first_frame(tmp_path: Path, pixels: np.ndarray) -> None:
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:])
    image, done = read(tmp_path / "x.png")
    assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels) and done == {"first frame taken": "of 2"}


def bomb(width: int, height: int) -> bytes:
    """A whole PNG header that promises a picture of this size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"x" * 9)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no PNG, JPEG, WebP or BMP image"),
        (b"just words, no picture", "no PNG, JPEG, WebP or BMP image"),
        (b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff;", "no PNG, JPEG, WebP or BMP image"),
        (bomb(60_000, 60_000), "exceeds limit of"),
        (bomb(10_000, 10_000), "exceeds limit of"),  # of which Pillow alone would only warn
        (bomb(100, 100), ""),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 100, ""),
        (b"RIFF\x24\x00\x00\x00WEBPVP8 " + b"\x00" * 40, ""),
        (b"BM" + b"\xff" * 60, ""),
    ],
)
def test_what_is_no_image_says_why_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UnreadableError) as caught:
        read(tmp_path / "x.png")
    assert reason in str(caught.value) and str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_files_are_unreadable(tmp_path: Path, ending: str, share: float) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = tmp_path / f"x.{ending}"
    Image.fromarray(picture).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UnreadableError):
        read(path)


def test_only_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")  # reading it would wait for ever
    (tmp_path / "y.png").symlink_to(tmp_path / "absent")
    for name in ("x.png", "y.png", "absent.png"):
        with pytest.raises(UnreadableError, match="not a file"):
            read(tmp_path / name)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read_back(tmp_path: Path, channels: int) -> None:
    image = torch.randint(0, 256, (channels, 20, 12), dtype=torch.uint8)
    path = tmp_path / "deep" / "er" / "x.png"
    write_image(path, image.float() / 255)
    assert torch.equal(read(path, channels, None)[0], image)
    assert [entry.name for entry in path.parent.iterdir()] == ["x.png"]


def test_writing_rounds_and_never_wraps(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png", torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0]).view(1, 1, 4))
    assert read(tmp_path / "x.png", 1, None)[0].flatten().tolist() == [0, 0, 1, 255]
