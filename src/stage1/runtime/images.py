"""The one way from the bytes of an image to pixels: safe decode, which every stage uses.

From the pixels to the tensor of a model: stage1.runtime.preprocessing.
"""

from __future__ import annotations

import io
import logging
import os
import stat
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, TiffImagePlugin, UnidentifiedImageError

from stage1.errors import DataError
from stage1.runtime.folders import HEIF_BRANDS
from stage1.runtime.markers import MAX_PARTS, Parts, jpeg_parts, png_parts

# Pillow logs errors that it also raises; without a handler Python prints them, between the lines that are ours.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# What a column of images may be called in a table, in this order.
IMAGE_COLUMNS = ("image", "path", "file_name", "filepath", "image_path")
MAX_PIXELS = 64_000_000
# The longest side that a JPEG can have. Readers spend some fifty bytes on each row, however short: 1 x 64,000,000 takes
# gigabytes.
MAX_SIDE = 65_535
# Progressive JPEGs have about 10 scans, and each costs a pass over the whole picture. At this many 64 million pixels
# take 2 s.
MAX_SCANS = 100
# Readers that only parse pixels. Left out on purpose: EPS (runs an interpreter), PSD and ICNS (documents, not photos).
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_READERS = ("Jpeg", "Mpo", "Png", "WebP", "Gif", "Bmp", "Tiff", "Ppm", "Avif")  # Pillow's modules of these
_ORIENTATION_TAG = 0x0112
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF 6.0
# What decode() does beyond size and normalisation. It is part of the spec: a bundle made by another decoder is refused.
DECODE = {
    "orientation": "EXIF applied",
    "alpha": "over white",
    "depth": "16-bit gray / 257, 16-bit colour high byte",
    "colour": "RGB, ICC profile ignored",
    "resize": "Pillow, antialiased",
}


class ImageError(DataError):
    """Bytes that are no usable image. `reason` is one of REASONS; the message is one line.

    reason: "empty", "truncated", "corrupt", "not an image", "too large", "too complex" (more scans or parts than any
    writer makes), "animated" (several frames or pages), "unsupported mode" (no agreed way to 8-bit RGB, e.g. floating
    point), "unread format" (an image of a format that is not read, e.g. HEIC) or "not a file" (a pipe, a device, a
    folder).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


REASONS = (
    "empty",
    "truncated",
    "corrupt",
    "not an image",
    "too large",
    "too complex",
    "animated",
    "unsupported mode",
    "unread format",
    "not a file",
)


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Image bytes -> RGB pixels, uint8 [H, W, 3], C-contiguous.

    Formats: JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF (where Pillow has it), recognised by content, never by name.
    - EXIF orientation is applied. ICC profiles are ignored: the numbers in the file are taken as sRGB.
    - Transparency of any kind (RGBA, LA, palette, tRNS) is laid over white. Palette and 1-bit become RGB.
    - CMYK and YCCK JPEGs become RGB by Pillow's formula. 16-bit gray is scaled, round(v / 257), not clipped, and 12-bit
      gray likewise; of 16-bit colour the high byte counts. A TIFF in which 0 is white is inverted, whatever its depth;
      signed and floating-point samples are refused ("unsupported mode").
    - A GIF, WebP, PNG or TIFF with one frame is an image; with several it is refused ("animated"), as none of them is
      the picture. Of a multi-picture JPEG (MPO, from phones) the first picture counts: it is the photo.
    - The size is checked before a pixel is decoded: above `max_pixels` (width x height), or with a side above MAX_SIDE,
      "too large". Pillow's own bomb limit, 179 million pixels, holds above that. A JPEG of more than MAX_SCANS scans is
      "too complex": its time grows with them.
    - Truncated is an error, always: also where only the end marker is missing, or where the one that is there belongs
      to a thumbnail. Bytes after the end are ignored.

    JPEGs in RGB or gray take simplejpeg where it is installed: identical pixels (tested), and wherever it complains
    Pillow decides, so that the verdict on a file never depends on an extra. What neither notices: bits flipped inside
    the compressed data of a JPEG; they give wrong pixels without an error.

    Raises ImageError with `.reason`.
    """
    if len(data) == 0:
        raise ImageError("empty", "0 bytes; fetch the file again")
    parts = _parts(data)
    image = _open(data, max_pixels)
    _require_one_frame(image)
    if parts is not None and not parts.ends:
        # Pillow stops at the last pixel: a file cut off right behind it passes there. The end marker settles it.
        raise ImageError("truncated", f"{image.format} without its end marker, {len(data)} bytes; fetch the file again")
    pixels = _fast_jpeg(data, image)
    if pixels is None:
        return _upright(image)
    return np.ascontiguousarray(_oriented(pixels, _orientation(image)))


def is_square(data: bytes, *, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether the picture in `data` is as wide as it is high, by its header alone. Raises ImageError."""
    width, height = _open(data, max_pixels).size
    return bool(width == height)


def read_image_file(path: str | os.PathLike[str], *, max_pixels: int | None = MAX_PIXELS) -> bytes:
    """The bytes of an image file, after its kind and size: a pipe would block, a device or a hole never end.

    max_pixels: a file with more bytes than so many pixels can take is refused unread; None: any size.
    Raises ImageError ("not a file", "too large"), OSError.
    """
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        kind = "a folder" if stat.S_ISDIR(state.st_mode) else "a pipe, a socket or a device"
        raise ImageError("not a file", f"{kind}; give an image file")
    require_bytes(state.st_size, max_pixels)
    with open(path, "rb") as stream:
        return stream.read()


def require_bytes(size: int, max_pixels: int | None) -> None:
    """Raises ImageError ("too large") where an image of at most `max_pixels` cannot have so many bytes."""
    # 8 bytes a pixel (16-bit RGBA, uncompressed) is the most that an image within the limit takes, plus metadata.
    if max_pixels is not None and size > 8 * max_pixels + (16 << 20):
        raise ImageError("too large", f"{size} bytes for at most {max_pixels} pixels; shrink it")


def picture_pixels(image: Image.Image, *, max_pixels: int | None = None) -> NDArray[np.uint8]:
    """The pixels of a Pillow picture, as `decode` gives them for a file: uint8 [H, W, 3], C-contiguous.

    What only the bytes of a file show is not checked here: a missing end marker, further frames. max_pixels: None: no
    limit.
    Raises ImageError ("too large", "unsupported mode", "truncated" or "corrupt" where a file that is read now is
    broken).
    """
    if max_pixels is not None:
        _require_size(image, max_pixels)
    return _upright(image)


def _upright(image: Image.Image) -> NDArray[np.uint8]:
    try:
        stored = _stored_mode(image)
        low = _low_bytes(image) if stored == "RGB;16B" and "transparency" in image.info else None
        image.load()
        # Read after load(): TIFF applies and removes it there.
        orientation = _orientation(image)
        pixels = _to_rgb(image, stored, low)
    except ImageError:
        raise
    except Exception as error:  # a reader fed with arbitrary bytes may raise anything; all of it means: broken file
        raise _read_error(error) from error
    return np.ascontiguousarray(_oriented(pixels, orientation))


def _parts(data: bytes) -> Parts | None:
    """Of a JPEG or PNG, before Pillow. Raises ImageError where there are too many to read in bounded time."""
    if data.startswith(b"\xff\xd8\xff"):
        kind, parts = "JPEG", jpeg_parts(data)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        kind, parts = "PNG", png_parts(data)
    else:
        return None
    if parts.scans > MAX_SCANS:
        what = f"{kind} with too many scans (more than {MAX_SCANS})"
        raise ImageError("too complex", f"{what}; save it again, not as a progressive one")
    if parts.count > MAX_PARTS:
        raise ImageError("too complex", f"{kind} of more than {MAX_PARTS} parts; save it again")
    return parts


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=_readable())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        size = _png_size(data)
        what = f"{size[0]} x {size[1]} px" if size else str(error).split(",")[0]
        raise ImageError("too large", f"{what}, more than max_pixels={max_pixels}; shrink it") from error
    except UnidentifiedImageError as error:
        if data[:4] in (b"II*\0", b"MM\0*") and _is_unknown_tiff(data):
            raise ImageError(
                "unsupported mode", "TIFF samples of a kind that is not read; save as 8-bit RGB or 16-bit gray"
            ) from error
        if kind := _unread_format(data):
            raise ImageError("unread format", f"{kind} is not read; save it as JPEG or PNG") from error
        if reason := _known_start(data):
            raise ImageError(reason, f"{len(data)} bytes with the start of an image but no readable header") from error
        raise ImageError(
            "not an image", f"the content is {_looks_like(data)}; give JPEG, PNG, WebP, BMP or TIFF"
        ) from error
    except Exception as error:
        raise _read_error(error) from error
    _require_size(image, max_pixels)
    return image


@cache
def _readable() -> tuple[str, ...]:
    """Those of _FORMATS that this Pillow reads; their readers alone are loaded, of its forty-odd."""
    for name in _READERS:
        with suppress(ImportError):  # AVIF, of an older Pillow or one built without it
            import_module(f"PIL.{name}ImagePlugin")
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _require_size(image: Image.Image, max_pixels: int) -> None:
    if max(image.size) > MAX_SIDE:
        raise ImageError("too large", f"{image.width} x {image.height} px, a side above {MAX_SIDE}; cut or shrink it")
    if image.width * image.height > max_pixels:
        raise ImageError(
            "too large", f"{image.width} x {image.height} px, more than max_pixels={max_pixels}; shrink it"
        )


def _png_size(data: bytes) -> tuple[int, int] | None:
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        return None
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def _unread_format(data: bytes) -> str | None:
    """The name of an image format that no reader here takes; None for anything else."""
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        if brand in (b"avif", b"avis"):
            return "AVIF" if "AVIF" not in Image.OPEN or brand == b"avis" else None
        return "HEIC" if brand in HEIF_BRANDS else None
    starts = {
        b"\xff\x0a": "JPEG XL",
        b"\0\0\0\x0cJXL ": "JPEG XL",
        b"\0\0\0\x0cjP  ": "JPEG 2000",
        b"\xff\x4f\xff\x51": "JPEG 2000",
        b"8BPS": "PSD",
        b"v/1\x01": "OpenEXR",
        b"#?RADIANCE": "Radiance HDR",
        b"Pf\n": "PFM",
        b"PF\n": "PFM",
    }
    return next((name for start, name in starts.items() if data.startswith(start)), None)


def _known_start(data: bytes) -> str | None:
    """Broken header or a file cut off inside it: not the same as what never was an image."""
    starts = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
    if data.startswith(starts) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP") or data[4:12] == b"ftypavif":
        return "truncated" if len(data) < 4096 else "corrupt"
    return None


def _is_unknown_tiff(data: bytes) -> bool:
    """Whether the header is whole, but Pillow reads no such samples (64-bit, big-endian 16-bit, white as 0)."""
    try:
        TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    except SyntaxError as error:
        return "unknown pixel mode" in str(error)
    except Exception:  # a damaged header may raise anything: that is no unknown kind
        return False
    return False


def _looks_like(data: bytes) -> str:
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head:
        return "SVG (a drawing, no pixels)"
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if head.startswith(b"%pdf"):
        return "a PDF document"
    if not data.strip(b"\0"):
        return "zeros only"
    try:
        data[:1024].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < 1000:
            return "no known image format"
    return "text" if b"\0" not in data[:1024] else "no known image format"


def _require_one_frame(image: Image.Image) -> None:
    try:
        several = image.format != "MPO" and getattr(image, "is_animated", False)
    except Exception as error:  # the property of a GIF or TIFF looks for the second frame in arbitrary bytes
        raise _read_error(error) from error
    if several:
        what = "pages" if image.format == "TIFF" else "frames"
        raise ImageError("animated", f"{image.format} with several {what}; save the one that counts as its own file")


def _read_error(error: Exception) -> ImageError:
    text = " ".join(str(error).split())[:160] or type(error).__name__
    if "truncated" in text.lower() or "premature" in text.lower() or isinstance(error, EOFError):
        return ImageError("truncated", f"{text}; fetch the file again")
    if isinstance(error, MemoryError):
        return ImageError("too large", "no memory for its pixels; shrink it")
    return ImageError("corrupt", f"{text}; fetch the file again")


@cache
def _simplejpeg() -> Any:
    """The module, None without the extra `fast-io`. Imported by who decodes bytes alone: the client's detector, which
    is given pictures, must import nothing that its environment might have in another version."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _fast_jpeg(data: bytes, image: Image.Image) -> NDArray[np.uint8] | None:
    """Pixels by simplejpeg [H, W, 3], or None where Pillow has to read or to judge the file."""
    simplejpeg = _simplejpeg()
    if simplejpeg is None or image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)
    except ValueError:
        return None
    return pixels if pixels.shape == (image.height, image.width, 3) else None


def _to_rgb(image: Image.Image, stored: str, low: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """Loaded picture -> uint8 [H, W, 3]. stored, low: see `_stored_mode` and `_low_bytes`."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PNG"):
        return _three(_gray_of_16_bits(image))
    if mode == "L" and _tiff_tag(image, _SAMPLE_FORMAT, (1,))[0] == 2:  # Pillow reads -1 as 255
        raise ImageError("unsupported mode", "signed samples have no agreed range; save as 8-bit RGB or 16-bit gray")
    if (hidden := _colour_key(image, stored, low)) is not None:
        pixels = _three(np.asarray(image)) if mode == "L" else np.array(image)
        pixels[hidden] = 255
        return pixels
    if image.has_transparency_data and mode in ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "RGBa", "La"):
        rgba = (image.convert("LA") if mode == "La" else image).convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
    # HSV is in no file; a program may pass such a picture.
    if mode in ("RGB", "L", "P", "1", "CMYK", "YCbCr", "RGBX", "HSV"):
        return np.asarray(image if mode == "RGB" else image.convert("RGB"))
    raise ImageError(
        "unsupported mode", f"pixels of mode {mode} have no agreed range; save as 8-bit RGB or 16-bit gray"
    )


def _three(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(gray[:, :, None], 3, axis=2)


def _gray_of_16_bits(image: Image.Image) -> NDArray[np.uint8]:
    full = 4095 if _tiff_tag(image, _BITS, (16,))[0] == 12 else 65535
    # round(255 v / full), for 16 bits round(v / 257), maps 0..full onto 0..255 exactly; convert("L") would clip at 255.
    scale = np.minimum((np.arange(65536, dtype=np.uint32) * 255 + full // 2) // full, 255).astype(np.uint8)
    if (
        image.format == "TIFF" and _tiff_tag(image, _PHOTOMETRIC, 0) == 0
    ):  # white is zero; Pillow inverts 8 bits and fewer
        scale = 255 - scale
    values = np.asarray(image).astype(np.uint16)
    gray = scale[values]
    key = image.info.get("transparency")
    if isinstance(key, int):
        gray[values == key] = 255
    return gray


def _tiff_tag(image: Image.Image, tag: int, default: Any) -> Any:
    return getattr(image, "tag_v2", {}).get(tag, default) if image.format == "TIFF" else default


def _stored_mode(image: Image.Image) -> str:
    """How an unloaded PNG stores its pixels, in Pillow's words ("L;4", "RGB;16B"); "" where unknown."""
    tiles = getattr(image, "tile", None) if image.format == "PNG" else None
    if not tiles:
        return ""
    arguments = tiles[0][3]
    return str(arguments if isinstance(arguments, str) else arguments[0])


def _low_bytes(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 [H, W, 3], low bytes of a 16-bit colour PNG (Pillow keeps the high ones): read as little-endian."""
    stream: Any = image.fp  # type: ignore[attr-defined]
    position = stream.tell()
    stream.seek(0)
    again: Any = Image.open(io.BytesIO(stream.read()), formats=["PNG"])
    stream.seek(position)
    again.tile = [(*tile[:3], "RGB;16L") for tile in again.tile]
    return np.asarray(again)


def _colour_key(image: Image.Image, stored: str, low: NDArray[np.uint8] | None) -> NDArray[np.bool_] | None:
    """bool [H, W], pixels that a PNG's tRNS makes transparent, where Pillow compares other numbers."""
    key = image.info.get("transparency")
    if image.mode == "L" and stored in ("L;2", "L;4") and isinstance(key, int):
        # Pillow spreads 0..3 and 0..15 over 0..255, but not the key.
        return _equal(np.asarray(image), min(key * (85 if stored == "L;2" else 17), 255))
    wide = low is not None or (isinstance(key, tuple) and max(key) > 255)
    if image.mode != "RGB" or not wide or not isinstance(key, tuple):
        return None
    hidden = _equal(np.asarray(image), np.array([value >> 8 for value in key], dtype=np.uint8))
    if low is not None:  # None: a picture that was read before it came here, whose low bytes are gone
        hidden &= _equal(low, np.array([value & 255 for value in key], dtype=np.uint8))
    return hidden


def _equal(pixels: NDArray[np.uint8], key: NDArray[np.uint8] | int) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = pixels == key
    return same if same.ndim == 2 else np.logical_and.reduce(same, axis=2)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block: the pixels are whole, and viewers show them as stored
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _oriented(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """EXIF orientations 1..8: bit by bit, 5..8 swap the axes, then the rest are mirrors."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def thumbnail(data: bytes, side: int, box: tuple[int, int, int, int] | None = None) -> bytes:
    """A JPEG (bytes) of the image, oriented, longer side at most `side` pixels; for the report.

    box: (top, left, bottom, right) in pixels of the decoded image, drawn as a frame. Raises ImageError.
    """
    image = Image.fromarray(decode(data))
    width, height = image.size
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    if box is not None:
        top, left, bottom, right = box
        across, down = image.width / width, image.height / height
        frame = [round(left * across), round(top * down), round(right * across) - 1, round(bottom * down) - 1]
        # Bright between dark lines: seen on any picture. A box narrower than the lines is drawn as the lines.
        draw = ImageDraw.Draw(image)
        for inset, colour, thick in ((0, (20, 20, 20), 5), (1, (255, 214, 10), 3)):
            first, second = frame[0] + inset, frame[1] + inset
            corners = (first, second, max(frame[2] - inset, first), max(frame[3] - inset, second))
            draw.rectangle(corners, outline=colour, width=thick)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return stream.getvalue()
