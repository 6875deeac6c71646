"""Pictures of Pillow's against their files: the same pixels, the same refusals, in every mode and every orientation."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from stage1.runtime.images import ImageError, decode, picture_pixels

HEIGHT, WIDTH = 14, 22
ORIENTATIONS = range(1, 9)


def colours(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def alpha() -> Image.Image:
    return Image.linear_gradient("L").resize((WIDTH, HEIGHT))


def sixteen(mode: str) -> Image.Image:
    values = np.random.default_rng(1).integers(0, 1 << 16, (HEIGHT, WIDTH)).astype(np.uint16)
    order = ">u2" if mode == "I;16B" else "<u2"
    return Image.frombytes(mode, (WIDTH, HEIGHT), values.astype(order).tobytes())


def picture(mode: str) -> Image.Image:
    """Noise in this mode, with alpha where the mode has it."""
    if mode.startswith("I;16"):
        return sixteen(mode)
    if mode in ("LA", "RGBA", "La", "RGBa"):
        whole = colours().convert(mode[:-1] + "A")
        whole.putalpha(alpha())
        return whole.convert(mode)
    if mode == "PA":
        return colours().convert("P").convert("PA")
    return colours().convert(mode)


def oriented(image: Image.Image, orientation: int) -> Image.Image:
    image.getexif()[0x0112] = orientation
    return image


def by_way_of_png(image: Image.Image) -> np.ndarray:
    """How pictures were read before there was `picture_pixels`: through a lossless file."""
    kept = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    whole = image if image.mode in kept else image.convert("RGBA" if "a" in image.mode.lower() else "RGB")
    stream = io.BytesIO()
    whole.save(stream, "PNG", exif=image.getexif())
    return decode(stream.getvalue())


ORDINARY = ("RGB", "L", "P", "1", "CMYK", "LA", "RGBA", "I;16", "YCbCr", "RGBX", "RGBa", "PA")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("mode", ORDINARY)
def test_every_bit_is_as_by_way_of_a_lossless_file(mode, orientation):
    image = oriented(picture(mode), orientation)
    found = picture_pixels(image)
    assert (found.dtype, found.flags.c_contiguous) == (np.uint8, True)
    assert found.shape == ((HEIGHT, WIDTH, 3) if orientation < 5 else (WIDTH, HEIGHT, 3))
    np.testing.assert_array_equal(found, by_way_of_png(image))


@pytest.mark.parametrize("mode, key", [("L", 0), ("L", 7), ("P", 0), ("P", 7), ("1", 0), ("RGB", (10, 20, 30))])
def test_a_transparent_colour_is_laid_over_white_as_in_the_file(mode, key):
    image = picture(mode)
    image.info["transparency"] = key
    np.testing.assert_array_equal(picture_pixels(image), by_way_of_png(image))


def test_a_palette_with_alpha_is_laid_over_white_as_in_the_file():
    image = picture("RGBA").quantize(16)
    assert image.palette.mode == "RGBA"
    found = picture_pixels(image)
    np.testing.assert_array_equal(found, by_way_of_png(image))
    opaque = np.asarray(image.convert("RGB"))
    assert (found != opaque).any()


FILES = {
    "RGB JPEG": ("RGB", "JPEG", {"quality": 75}),
    "gray JPEG": ("L", "JPEG", {}),
    "CMYK JPEG": ("CMYK", "JPEG", {}),
    "CMYK TIFF": ("CMYK", "TIFF", {}),
    "YCbCr TIFF": ("YCbCr", "TIFF", {}),
    "palette PNG": ("P", "PNG", {}),
    "palette PNG, tRNS": ("P", "PNG", {"transparency": 3}),
    "bits PNG": ("1", "PNG", {}),
    "LA PNG": ("LA", "PNG", {}),
    "RGBA PNG": ("RGBA", "PNG", {}),
    "RGBA WebP": ("RGBA", "WEBP", {"lossless": True}),
    "RGBA TIFF": ("RGBA", "TIFF", {}),
    "palette GIF": ("P", "GIF", {"transparency": 2}),
    "16-bit PNG": ("I;16", "PNG", {}),
    "16-bit TIFF": ("I;16", "TIFF", {}),
    "16-bit TIFF, big-endian": ("I;16B", "TIFF", {"big_endian": True}),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("name", FILES)
def test_an_opened_file_gives_the_pixels_of_its_bytes(name, orientation):
    mode, kind, options = FILES[name]
    stream = io.BytesIO()
    exif = {} if kind == "GIF" else {"exif": oriented(Image.new("L", (1, 1)), orientation).getexif()}
    picture(mode).save(stream, kind, **options, **exif)
    opened = Image.open(io.BytesIO(stream.getvalue()))
    if name == "16-bit TIFF, big-endian":
        assert opened.mode == "I;16B"
    expected = decode(stream.getvalue())
    np.testing.assert_array_equal(picture_pixels(opened), expected)
    # Read before it is handed over, and once more: nothing is applied twice.
    np.testing.assert_array_equal(picture_pixels(opened), expected)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_16_bits_are_scaled_whatever_their_order(mode):
    values = np.random.default_rng(1).integers(0, 1 << 16, (HEIGHT, WIDTH))
    expected = np.repeat(np.round(values / 257).astype(np.uint8)[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(picture_pixels(sixteen(mode)), expected)


def test_premultiplied_gray_is_what_it_was_before():
    plain = picture("LA")
    difference = picture_pixels(plain).astype(int) - picture_pixels(plain.convert("La"))
    # Multiplied by alpha, rounded, divided and laid over white: one level, and two roundings.
    assert np.abs(difference).max() <= 2


def test_hsv_is_the_same_colours():
    np.testing.assert_array_equal(picture_pixels(picture("HSV")), np.asarray(picture("HSV").convert("RGB")))


def refused(call) -> str:
    with pytest.raises(ImageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def unranged(name: str) -> bytes:
    if name == "16-bit PGM":
        return b"P5 4 2 65535\n" + bytes(range(16))
    stream = io.BytesIO()
    Image.new({"floating-point TIFF": "F", "LAB TIFF": "LAB", "32-bit TIFF": "I"}[name], (4, 2)).save(stream, "TIFF")
    return stream.getvalue()


@pytest.mark.parametrize("name", ["16-bit PGM", "floating-point TIFF", "LAB TIFF", "32-bit TIFF"])
def test_what_has_no_agreed_range_is_refused_in_the_same_words(name):
    data = unranged(name)
    said = refused(lambda: picture_pixels(Image.open(io.BytesIO(data))))
    assert said == refused(lambda: decode(data))
    assert said.startswith("unsupported mode: pixels of mode ")


def test_what_is_broken_says_how():
    stream = io.BytesIO()
    colours().resize((300, 300)).save(stream, "JPEG")
    cut = Image.open(io.BytesIO(stream.getvalue()[:-2000]))
    assert refused(lambda: picture_pixels(cut)).startswith("truncated: ")
    closed = Image.open(io.BytesIO(stream.getvalue()))
    closed.close()
    assert refused(lambda: picture_pixels(closed)).startswith("corrupt: ")


def test_the_size_is_checked_before_a_pixel_is_read():
    stream = io.BytesIO()
    colours().save(stream, "PNG")
    lazy = Image.open(io.BytesIO(stream.getvalue()[:-40]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            refused(lambda: picture_pixels(lazy, max_pixels=300))
            == "too large: 22 x 14 px, more than max_pixels=300; shrink it"
        )


def test_pictures_need_no_reader_of_jpegs_beside_pillows():
    code = (
        "import io, sys\nfrom PIL import Image\nfrom stage1.runtime.images import decode, picture_pixels\n"
        "stream = io.BytesIO(); Image.new('RGB', (9, 9)).save(stream, 'JPEG')\n"
        "picture_pixels(Image.open(stream))\n"
        "print(sorted(name for name in sys.modules if 'jpeg' in name.lower() and not name.startswith('PIL')))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
