"""stage1.runtime.images: every kind of file that users feed, the fast path against Pillow, the preprocessing spec."""

from __future__ import annotations

import io
import os
import socket
import struct
import time
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stage1.errors import DataError
from stage1.runtime import images
from stage1.runtime.images import ImageError, decode, read_image_file, thumbnail
from stage1.runtime.markers import MAX_PARTS
from stage1.runtime.preprocessing import Preprocessing, load_tensor, to_tensor

simplejpeg = images._simplejpeg()
needs_simplejpeg = pytest.mark.skipif(simplejpeg is None, reason="extra fast-io is not installed")


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x + y) % 256], -1)
    noise = np.random.default_rng(seed).normal(0, 25, (height, width, 3))
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def reason(data: bytes, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.reason in images.REASONS
    return caught.value.reason


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds hardly any pixels: what a decompression bomb looks like."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


# ---- the fast path -----------------------------------------------------------------------------------------------

SIZES = [(1, 1), (1, 9), (7, 13), (16, 16), (33, 65), (101, 47), (240, 321)]


@needs_simplejpeg
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_fast_path_equals_pillow(subsampling: int, progressive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        encoded(photo(h, w), "JPEG", quality=q, subsampling=subsampling, progressive=progressive)
        for h, w in SIZES
        for q in (20, 75, 97)
    ] + [encoded(photo(h, w)[:, :, 0], "JPEG", progressive=progressive) for h, w in SIZES]
    fast = [decode(data) for data in files]
    monkeypatch.setattr(images, "_simplejpeg", lambda: None)
    for data, pixels in zip(files, fast, strict=True):
        np.testing.assert_array_equal(pixels, decode(data))
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@needs_simplejpeg
@pytest.mark.parametrize("subsampling", ["440", "411"])
def test_fast_path_equals_pillow_for_rare_subsampling(subsampling: str) -> None:
    for h, w in SIZES:
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(photo(h, w)), quality=80, colorsubsampling=subsampling)
        np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@needs_simplejpeg
def test_fast_path_is_taken_and_only_for_rgb_and_gray(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: calls.append(1) or real(*a, **k))
    decode(encoded(photo(20, 30), "JPEG"))
    decode(encoded(photo(20, 30)[:, :, 0], "JPEG"))
    assert len(calls) == 2
    decode(encoded(Image.fromarray(photo(20, 30)).convert("CMYK"), "JPEG"))
    decode(encoded(photo(20, 30), "PNG"))
    assert len(calls) == 2


@pytest.mark.parametrize("fast", [pytest.param(True, marks=needs_simplejpeg), False])
@pytest.mark.parametrize("progressive", [True, False])
def test_truncated_jpeg_is_an_error_at_every_length(
    progressive: bool, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr(images, "_simplejpeg", lambda: None)
    data = encoded(photo(40, 56), "JPEG", quality=60, progressive=progressive)
    for length in range(1, len(data)):
        # the reason is the same for all cuts behind the header; the first bytes alone are no image yet
        assert reason(data[:length]) in (("truncated",) if length > 700 else ("truncated", "corrupt", "not an image"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "kind, options",
    [
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("GIF", {}),
        ("PPM", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_truncated_file_is_an_error(kind: str, options: dict[str, Any]) -> None:
    data = encoded(photo(24, 20), kind, **options)
    decode(data)
    cuts = sorted({1, 2, 5, 12, *range(14, len(data) // 2, 23), len(data) // 2, len(data) - 4})
    if kind in ("TIFF", "GIF"):  # LZW or the directory may be complete before the last bytes (padding, trailer)
        cuts = [cut for cut in cuts if cut > 40]
    for cut in cuts:
        assert reason(data[:-cut])


def test_bytes_after_the_end_are_ignored() -> None:
    for kind in ("JPEG", "PNG"):
        data = encoded(photo(30, 40), kind)
        for tail in (b"garbage", bytes(5000), data):
            np.testing.assert_array_equal(decode(data + tail), decode(data))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on broken TIFF directories
@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]), st.integers(0, 400))
def test_arbitrary_bytes_give_an_array_or_an_image_error(noise: bytes, kind: str, at: int) -> None:
    data = encoded(photo(9, 11), kind)
    for candidate in (noise, data[:at] + noise, data[:at] + noise + data[at + len(noise) :]):
        try:
            pixels = decode(candidate, max_pixels=100_000)
        except ImageError as error:
            why, shape = error.reason, None
        else:
            why, shape = None, (pixels.dtype, pixels.ndim)
        assert why in images.REASONS or shape == (np.uint8, 3)


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"", "empty"),
        (bytes(100), "not an image"),
        (b"hello, this is text", "not an image"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not an image"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
        (b"%PDF-1.7 ...", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"GIF89a", "truncated"),
        (b"\xff\xd8\xff" + b"\x00" * 5000, "corrupt"),
    ],
)
def test_refused_with_reason(data: bytes, expected: str) -> None:
    assert reason(data) == expected


def test_refusal_names_what_the_content_is() -> None:
    with pytest.raises(ImageError, match="SVG"):
        decode(b"<svg width='1'></svg>")
    with pytest.raises(ImageError, match="HTML"):
        decode(b"\n <html></html>")


def test_size_is_refused_from_the_header() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns in between
        assert reason(png_header(30_000, 30_000)) == "too large"
        assert reason(png_header(9_000, 9_000)) == "too large"
        with pytest.raises(ImageError, match="30000 x 30000 px, more than max_pixels=64000000"):
            decode(png_header(30_000, 30_000))
    data = encoded(photo(40, 50), "JPEG")
    assert reason(data, max_pixels=1999) == "too large"
    assert decode(data, max_pixels=2000).shape == (40, 50, 3)


def test_text_chunk_bomb_is_refused() -> None:
    body = b"Comment\0\0" + zlib.compress(bytes(100_000_000))
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    data = encoded(photo(4, 4), "PNG")
    assert reason(data[:33] + chunk + data[33:]) in ("corrupt", "too large")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused_one_frame_is_an_image(kind: str) -> None:
    frames = [Image.fromarray(photo(12, 16, seed)) for seed in range(3)]
    assert reason(encoded(frames[0], kind, save_all=True, append_images=frames[1:])) == "animated"
    assert decode(encoded(frames[0], kind)).shape == (12, 16, 3)


def test_multi_picture_jpeg_is_its_first_picture() -> None:
    frames = [Image.fromarray(photo(12, 16, seed)) for seed in range(2)]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(decode(data).astype(int) - decode(encoded(frames[0], "JPEG"))).max() == 0


def test_flipped_bits_in_a_png_are_found() -> None:
    data = bytearray(encoded(photo(30, 40), "PNG"))
    data[len(data) // 2] ^= 0x10
    assert reason(bytes(data)) in ("corrupt", "truncated")


# ---- what costs too much, or is cut off though it holds an end mark --------------------------------------------------


@pytest.mark.parametrize("tail", ["cut", "zeros", "trailer"])
@pytest.mark.parametrize("fast", [pytest.param(True, marks=needs_simplejpeg), False])
def test_a_jpeg_with_a_whole_thumbnail_is_truncated_where_the_picture_is(
    fast: bool, tail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr(images, "_simplejpeg", lambda: None)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + encoded(photo(16, 16), "JPEG")
    data = encoded(photo(200, 240), "JPEG", exif=exif)
    assert decode(data).shape == (200, 240, 3)
    half = len(data) // 2
    ends = {"cut": b"", "zeros": bytes(len(data) - half), "trailer": encoded(photo(9, 9), "JPEG")}
    assert reason(data[:half] + ends[tail]) == "truncated"
    np.testing.assert_array_equal(decode(data + ends["trailer"]), decode(data))


def with_scans(data: bytes, scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated until it has so many."""
    at = data.rfind(b"\xff\xda")
    return data[:-2] + data[at:-2] * (scans - data.count(b"\xff\xda")) + data[-2:]


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded() -> None:
    data = encoded(np.zeros((64, 64, 3), np.uint8), "JPEG", progressive=True)
    assert decode(with_scans(data, images.MAX_SCANS)).shape == (64, 64, 3)
    assert reason(with_scans(data, images.MAX_SCANS + 1)) == "too complex"
    wide = encoded(np.zeros((4000, 4000, 3), np.uint8), "JPEG", progressive=True)
    start = time.process_time()
    with pytest.raises(ImageError, match="too many scans"):
        decode(with_scans(wide, 5000))
    assert time.process_time() - start < 2


def test_a_flood_of_chunks_is_refused_before_it_is_read() -> None:
    data = encoded(photo(4, 4), "PNG")
    flood = (struct.pack(">I", 0) + b"teXt" + struct.pack(">I", zlib.crc32(b"teXt"))) * (MAX_PARTS + 1)
    start = time.process_time()
    assert reason(data[:33] + flood + data[33:]) == "too complex"
    assert time.process_time() - start < 2


@pytest.mark.parametrize("size", [(1, 64_000_000), (64_000_000, 1), (1, 65_536)])
def test_a_side_too_long_is_refused_from_the_header(size: tuple[int, int]) -> None:
    assert reason(png_header(*size)) == "too large"


def test_what_is_no_file_or_has_no_end_is_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
    with open(tmp_path / "hole.jpg", "wb") as stream:
        stream.truncate(100 << 30)
    for path in (tmp_path / "pipe.jpg", tmp_path / "socket.jpg", Path("/dev/zero"), tmp_path):
        with pytest.raises(ImageError, match="^not a file"):
            read_image_file(path)
    with pytest.raises(ImageError, match="^too large: 107374182400 bytes"):
        read_image_file(tmp_path / "hole.jpg")
    with pytest.raises(FileNotFoundError):
        read_image_file(tmp_path / "gone.jpg")
    (tmp_path / "good.png").write_bytes(encoded(photo(3, 4), "PNG"))
    assert decode(read_image_file(tmp_path / "good.png", max_pixels=12)).shape == (3, 4, 3)


# ---- colour and orientation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(orientation: int, kind: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(photo(21, 34), kind, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    pixels = decode(data)
    assert pixels.shape == ((21, 34, 3) if orientation < 5 else (34, 21, 3))
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, np.asarray(expected))


def test_damaged_exif_block_leaves_the_pixels_as_stored() -> None:
    data = encoded(photo(10, 12), "JPEG", exif=b"Exif\0\0" + b"\xff" * 40)
    assert decode(data).shape == (10, 12, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(mode: str) -> None:
    rgba = np.dstack([photo(5, 6), np.repeat([[0, 128, 255, 0, 128, 255]], 5, 0).astype(np.uint8)])
    image = Image.fromarray(rgba).convert(mode)
    pixels = decode(encoded(image, "PNG"))
    assert (pixels[:, 0] == 255).all()
    straight = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pixels[:, 2], straight[:, 2])
    half = straight[:, 1] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(pixels[:, 1] - half).max() <= 1


def test_transparent_palette_entry_and_colour_key_become_white() -> None:
    palette = Image.new("P", (4, 2))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert decode(encoded(palette, "PNG", transparency=0))[0].tolist() == [[255] * 3, [0, 0, 255], [255] * 3, [255] * 3]
    assert decode(encoded(palette, "GIF", transparency=0))[0, 0].tolist() == [255] * 3
    assert decode(encoded(palette, "PNG"))[0, :2].tolist() == [[255, 0, 0], [0, 0, 255]]
    red = Image.new("RGB", (2, 2), (200, 0, 0))
    assert (decode(encoded(red, "PNG", transparency=(200, 0, 0))) == 255).all()


def test_cmyk_and_ycck_jpeg_become_rgb() -> None:
    image = Image.fromarray(photo(32, 48))
    data = encoded(image.convert("CMYK"), "JPEG", quality=95, subsampling=0)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert np.abs(decode(data).astype(int) - np.asarray(image)).mean() < 8
    # YCCK differs from CMYK by the Adobe marker's transform byte (2): the reader converts before it inverts
    at = data.index(b"Adobe") + 11
    ycck = data[:at] + b"\x02" + data[at + 1 :]
    np.testing.assert_array_equal(decode(ycck), np.asarray(Image.open(io.BytesIO(ycck)).convert("RGB")))
    assert (decode(ycck) != decode(data)).any()


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for kind in ("PNG", "TIFF"):
        pixels = decode(encoded(Image.fromarray(values), kind))
        expected = np.round(values / 257).astype(np.uint8)
        np.testing.assert_array_equal(pixels, np.repeat(expected[:, :, None], 3, 2))


def test_one_bit_gray_and_bmp() -> None:
    bits = Image.fromarray((photo(9, 11)[:, :, 0] > 99).astype(np.uint8) * 255).convert("1")
    assert set(np.unique(decode(encoded(bits, "PNG")))) == {0, 255}
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        np.testing.assert_array_equal(decode(encoded(photo(9, 11), kind)), photo(9, 11))


def raw_png(depth: int, colour: int, samples: np.ndarray, key: tuple[int, ...]) -> bytes:
    """A PNG of one row of samples [N] or [N, 3] with a tRNS of this key; colour 0: gray, 2: RGB."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    bits = "".join(format(value, f"0{depth}b") for value in samples.ravel().tolist())
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", len(samples), 1, depth, colour, 0, 0, 0))
    trns = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    return b"\x89PNG\r\n\x1a\n" + head + trns + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_colour_key_of_gray_is_laid_over_white_at_every_depth(depth: int) -> None:
    top = 2**depth - 1
    samples = np.array([0, top, top // 2, 0, top // 3, top, top // 2, 1])
    for key in {0, 1, top // 3, top // 2, top}:
        expected = np.where(samples == key, 255, np.round(samples * (255 / top))).astype(int)
        assert decode(raw_png(depth, 0, samples, (key,)))[0].tolist() == [[value] * 3 for value in expected.tolist()]


@pytest.mark.parametrize("depth", [8, 16])
def test_the_colour_key_of_rgb_compares_every_bit(depth: int) -> None:
    samples = np.array([[1, 2, 3], [1, 2, 4], [200, 2, 3], [0, 0, 0]]) << (depth - 8)
    samples[1:3] += (depth == 16) * np.array([[0, 0, 1], [5, 0, 0]])
    for key in samples.tolist():
        expected = [
            [255] * 3 if pixel == key else [value >> (depth - 8) for value in pixel] for pixel in samples.tolist()
        ]
        assert decode(raw_png(depth, 2, samples, tuple(key)))[0].tolist() == expected
    near = tuple(value ^ 1 for value in samples[1].tolist())  # differs in bits that 8-bit pixels of a 16-bit file lack
    assert decode(raw_png(depth, 2, samples, near))[0, 1].tolist() == [
        value >> (depth - 8) for value in samples[1].tolist()
    ]


def raw_tiff(samples: bytes, width: int, bits: int, photometric: int, *, order: str = "<", form: int = 1) -> bytes:
    """An uncompressed gray TIFF of one row. form: 1 unsigned, 2 signed, 3 floating point."""
    tags = [
        (256, width),
        (257, 1),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8 + 2 + 12 * 10 + 4),
        (277, 1),
        (278, 1),
        (279, len(samples)),
        (339, form),
    ]
    fields = [struct.pack(f"{order}HHIH", tag, 3, 1, value) + b"\0\0" for tag, value in tags]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + b"".join(fields) + bytes(4) + samples


@pytest.mark.parametrize("bits, order", [(1, "<"), (1, ">"), (4, "<"), (8, "<"), (8, ">"), (16, "<")])
def test_a_tiff_with_white_as_zero_is_255_minus_the_other(bits: int, order: str) -> None:
    samples = np.random.default_rng(0).integers(0, 256, 32, dtype=np.uint8).tobytes()
    width = len(samples) * 8 // bits
    white, black = (decode(raw_tiff(samples, width, bits, photometric, order=order)) for photometric in (0, 1))
    np.testing.assert_array_equal(white, 255 - black)
    assert len(np.unique(black)) > 1
    if bits == 16:
        values = np.frombuffer(samples, "<u2")
        np.testing.assert_array_equal(black[0, :, 0], np.round(values / 257))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits"])
def test_white_as_zero_holds_under_every_compression(compression: str) -> None:
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    white, black = (
        decode(encoded(Image.fromarray(values), "TIFF", compression=compression, tiffinfo={262: photometric}))
        for photometric in (0, 1)
    )
    np.testing.assert_array_equal(white, 255 - black)


def test_twelve_bit_gray_is_spread_over_the_whole_range() -> None:
    assert decode(raw_tiff(b"\xff\xf8\x00", 2, 12, 1))[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize(
    "bits, photometric, order, form",
    [
        (8, 1, "<", 2),
        (8, 1, ">", 2),
        (16, 1, "<", 2),
        (32, 1, "<", 3),
        (32, 0, ">", 3),
        (64, 1, "<", 3),
        (32, 1, "<", 1),
        (16, 0, ">", 1),
        (12, 0, "<", 1),
    ],
)
def test_tiff_samples_without_an_agreed_reading_are_refused_as_such(
    bits: int, photometric: int, order: str, form: int
) -> None:
    assert reason(raw_tiff(bytes(8), 64 // bits, bits, photometric, order=order, form=form)) == "unsupported mode"


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_an_agreed_range_are_refused(dtype: type) -> None:
    assert reason(encoded(Image.fromarray(photo(5, 5)[:, :, 0].astype(dtype)), "TIFF")) == "unsupported mode"


def test_icc_profile_changes_nothing() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    np.testing.assert_array_equal(decode(encoded(photo(6, 7), "PNG", icc_profile=profile)), photo(6, 7))


# ---- the spec ----------------------------------------------------------------------------------------------------


def test_squash_is_pillow_resize_and_normalisation() -> None:
    spec = Preprocessing(size=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    rgb = photo(50, 91)
    tensor = to_tensor(rgb, spec)
    small = np.asarray(Image.fromarray(rgb).resize((32, 32), Image.Resampling.BICUBIC)) / 255
    expected = ((small - spec.mean) / spec.std).transpose(2, 0, 1)
    assert tensor.shape == (3, 32, 32)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    np.testing.assert_allclose(tensor, expected, atol=1e-6)


@pytest.mark.parametrize("height, width", [(50, 91), (91, 50), (32, 33), (33, 32), (400, 30)])
def test_center_crop_is_resize_then_centre(height: int, width: int) -> None:
    spec = Preprocessing(size=32, fit="center_crop", mean=(0, 0, 0), std=(1, 1, 1))
    rgb = photo(height, width)
    w, h = (32, int(32 * height / width)) if width <= height else (int(32 * width / height), 32)
    resized = np.asarray(Image.fromarray(rgb).resize((w, h), Image.Resampling.BICUBIC))
    top, left = round((h - 32) / 2), round((w - 32) / 2)
    expected = resized[top : top + 32, left : left + 32].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(to_tensor(rgb, spec), expected, atol=1e-6)


@pytest.mark.parametrize("fit", ["squash", "center_crop"])
@pytest.mark.parametrize("height, width", [(1, 16_000), (16_000, 1), (2, 65_535), (65_535, 3), (64, 40_000)])
def test_no_strip_makes_a_picture_above_max_pixels_on_the_way(
    fit: str, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    real = Image.Image.resize

    def resize(self: Image.Image, size: tuple[int, int], *args: Any, **options: Any) -> Image.Image:
        # Between its two passes Pillow holds a picture of one side new and the other old.
        between = max(size[0] * self.height, self.width * size[1]) if 0 not in np.subtract(size, self.size) else 0
        made.append(max(size[0] * size[1], between if "box" not in options else 0))
        return real(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    spec = Preprocessing(size=224, fit=fit, max_pixels=2_000_000, mean=(0, 0, 0), std=(1, 1, 1))
    rgb = np.full((height, width, 3), 128, np.uint8)
    np.testing.assert_allclose(to_tensor(rgb, spec), 128 / 255, atol=1e-6)
    assert max(made) <= spec.max_pixels


@pytest.mark.parametrize("height, width", [(20, 700), (700, 20), (33, 500)])
def test_the_crop_of_a_strip_is_the_same_either_way(height: int, width: int) -> None:
    rgb = photo(height, width)
    whole = Preprocessing(size=64, fit="center_crop", mean=(0, 0, 0), std=(1, 1, 1))
    boxed = replace(whole, max_pixels=64 * 64)
    plain = to_tensor(rgb, whole)
    # Which pass comes first is Pillow's choice, and each rounds and clips to 8 bits.
    assert np.abs(plain - to_tensor(rgb, boxed)).mean() * 255 < 1.5
    moved = np.roll(rgb, 1, axis=0 if height > width else 1)
    assert np.abs(plain - to_tensor(moved, boxed)).mean() * 255 > 10, "another part is told apart"


def test_load_tensor_is_decode_then_to_tensor() -> None:
    spec = Preprocessing(size=48)
    data = encoded(photo(60, 70), "JPEG")
    np.testing.assert_array_equal(load_tensor(data, spec), to_tensor(decode(data), spec))
    with pytest.raises(ImageError, match="max_pixels=100"):
        load_tensor(data, Preprocessing(size=48, max_pixels=100))


def test_spec_survives_json_and_its_digest_follows_every_field() -> None:
    import json

    spec = Preprocessing(size=96, fit="center_crop", interpolation="bilinear", mean=(0.1, 0.2, 0.3), max_pixels=1000)
    again = Preprocessing.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.digest == spec.digest
    others = [
        Preprocessing(),
        Preprocessing(size=96),
        Preprocessing(fit="center_crop"),
        Preprocessing(mean=(0.5, 0.5, 0.4)),
        Preprocessing(std=(0.5, 0.5, 0.4)),
        Preprocessing(interpolation="bilinear"),
        Preprocessing(max_pixels=5),
        spec,
    ]
    assert len({other.digest for other in others}) == len(others)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": 2.5},
        {"size": True},
        {"fit": "stretch"},
        {"interpolation": "nearest"},
        {"mean": [1, 2]},
        {"std": [0, 1, 1]},
        {"std": [1, 1, float("nan")]},
        {"mean": "abc"},
        {"max_pixels": -1},
        {"colour": "bgr"},
        {"decode": {"orientation": "ignored"}},
    ],
)
def test_bad_spec_is_refused_in_one_line(change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"^preprocessing: ") as caught:
        Preprocessing.from_json({**Preprocessing().to_json(), **change})
    assert "\n" not in str(caught.value)


def test_to_tensor_refuses_other_arrays() -> None:
    for bad in (photo(4, 4)[:, :, 0], photo(4, 4).astype(np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(DataError, match="uint8"):
            to_tensor(bad, Preprocessing())


def test_thumbnail_is_a_small_oriented_jpeg() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    small = Image.open(io.BytesIO(thumbnail(encoded(photo(60, 120), "JPEG", exif=exif), 40)))
    assert small.format == "JPEG"
    assert small.size == (20, 40)


def test_a_box_is_framed_in_the_thumbnail():
    stream = io.BytesIO()
    Image.new("RGB", (400, 200), (120, 120, 120)).save(stream, "PNG")
    plain, framed = (decode(thumbnail(stream.getvalue(), 100, box)).astype(int) for box in (None, (100, 200, 200, 400)))
    assert framed.shape == plain.shape == (50, 100, 3)
    changed = np.abs(framed - plain).max(axis=2) > 60
    assert changed[25:, 50:].any()
    assert changed[25, 60:90].any()
    assert not changed[:20].any(), "nothing outside the box"
    assert not changed[34:42, 60:90].any(), "the picture inside stays"


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (2, 2)])
def test_a_box_on_a_picture_of_a_few_pixels_is_drawn_too(size):
    stream = io.BytesIO()
    Image.new("RGB", size, (120, 120, 120)).save(stream, "PNG")
    assert decode(thumbnail(stream.getvalue(), 100, (0, 0, 1, 1))).ndim == 3
