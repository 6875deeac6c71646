"""stage1.runtime.folders: one list of endings, content where the name says nothing, and a count of what is left out."""

from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from stage1.runtime.folders import IMAGE_SUFFIXES, UNREAD_SUFFIXES, Walk, image_files, named_as_image, starts_as_image
from stage1.runtime.images import ImageError, decode


def picture(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, kind)
    return stream.getvalue()


def test_the_list_names_what_pillow_writes_under_the_formats_that_are_read() -> None:
    Image.init()
    known = {
        ending
        for ending, kind in Image.EXTENSION.items()
        if kind in ("JPEG", "MPO", "PNG", "GIF", "BMP", "TIFF", "WEBP")
    }
    assert known <= set(IMAGE_SUFFIXES)
    assert not set(IMAGE_SUFFIXES) & set(UNREAD_SUFFIXES)
    assert named_as_image("IMG_1.JFIF")
    assert named_as_image("a.b.HeIC")
    assert not named_as_image("labels.csv")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP"])
def test_content_tells_an_image(kind: str) -> None:
    assert starts_as_image(picture(kind)[:16])


@pytest.mark.parametrize(
    "head, name",
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0", "HEIC"),
        (b"\xff\x0a\0\0", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"8BPS\0\x01", "PSD"),
    ],
)
def test_an_image_of_a_format_that_is_not_read_is_called_by_its_name(head: bytes, name: str) -> None:
    with pytest.raises(ImageError, match=f"^unread format: {name} is not read; save it as JPEG or PNG$"):
        decode(head + bytes(100))


def test_a_walk_takes_images_by_name_or_content_and_counts_the_rest(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jfif", "c.HEIC", "d.avif", "sub/e.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"whatever")
    (tmp_path / "noend").write_bytes(picture("PNG"))
    (tmp_path / "odd.dat").write_bytes(picture("JPEG"))
    for name in ("LICENSE", "x.txt", "y.TXT", ".hidden.jpg", "Thumbs.db", "empty"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path, tmp_path / "link")
    for own, files in (("run", ("stages.json", "figure.png")), ("bundle", ("bundle.json", "model.onnx", "x.png"))):
        (tmp_path / own).mkdir()
        for name in files:
            (tmp_path / own / name).write_bytes(picture("PNG"))
    walk = Walk()
    found = [os.fsencode(path.relative_to(tmp_path)) for path in image_files(tmp_path, walk)]
    assert found == [b"a.jpg", b"b.jfif", b"c.HEIC", b"caf\xe9.png", b"d.avif", b"noend", b"odd.dat", b"sub/e.PNG"]
    assert walk.left_out == Counter({"": 3, ".txt": 2, "linked folder": 1, "run directory or bundle": 2})
    assert str(walk).startswith("8 entries (3 without ending, 2 ")
    assert "2 .txt" in str(walk)
    assert str(Walk()) == ""
