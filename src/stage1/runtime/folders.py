"""Which files below a folder are images, by their ending, else by their first bytes: one rule for every folder."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# How the name of an image file ends. Whether it can be read is for `images.decode` to say.
IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".jif",
    ".mpo",
    ".png",
    ".apng",
    ".webp",
    ".avif",
    ".gif",
    ".bmp",
    ".dib",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
)
# Images that are not read here. They are named as such, never passed over: who has them means them.
UNREAD_SUFFIXES = (
    ".heic",
    ".heif",
    ".hif",
    ".avifs",
    ".jxl",
    ".jp2",
    ".j2k",
    ".jpf",
    ".jpx",
    ".svg",
    ".psd",
    ".tga",
    ".ico",
    ".exr",
    ".hdr",
    ".pfm",
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".orf",
    ".rw2",
    ".raf",
    ".raw",
)
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
# The brands of the ISO file format that hold pictures.
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
_BRANDS = (b"avif", b"avis", *HEIF_BRANDS)
# Written by file managers, archivers and disks, in lower case; they are never meant as images or classes.
SYSTEM_FILES = (
    "thumbs.db",
    "desktop.ini",
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "system volume information",
    "lost+found",
)


def named_as_image(name: str) -> bool:
    """Whether a file name ends as images do, those that are not read here among them."""
    return name.lower().endswith((*IMAGE_SUFFIXES, *UNREAD_SUFFIXES))


def starts_as_image(head: bytes) -> bool:
    """Whether the first 16 bytes are those of an image."""
    boxed = (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or (head[4:8] == b"ftyp" and head[8:12] in _BRANDS)
    return head.startswith(_STARTS) or boxed


def is_ours(folder: str | os.PathLike[str]) -> bool:
    """Whether this is a run directory, finished or not, or a bundle: its pictures derive from others."""
    try:
        names = set(os.listdir(folder))
    except OSError:  # said when it is listed
        return False
    made = ({"stages.json"}, {"bundle.json", "model.onnx"}, {".lock", "config.yaml"})
    return names == {".lock"} or any(files <= names for files in made)


@dataclass(slots=True)
class Walk:
    """What a walk through a folder met beside images.

    left_out: ending -> how many files are no image by name and content ("" where a name has no ending); linked folders
    and our own too.
    unreadable: folders that could not be listed.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    unreadable: list[OSError] = field(default_factory=list)

    def __str__(self) -> str:
        """What was left out in words: "3 entries (2 .txt, 1 without ending)"; "" where there is nothing."""
        if not self.left_out:
            return ""
        kinds = ", ".join(f"{n} {ending or 'without ending'}" for ending, n in self.left_out.most_common(5))
        more = ", .." if len(self.left_out) > 5 else ""
        total = self.left_out.total()
        return f"{total} {'entry' if total == 1 else 'entries'} ({kinds}{more})"


def image_files(folder: str | os.PathLike[str], walk: Walk) -> Iterator[Path]:
    """The images below `folder`, at every depth, sorted within each folder; what else lies there goes into `walk`.

    An image is what is named as one, and a regular file that starts as one whatever its name. Hidden files and folders
    are passed over; linked folders, run directories and bundles are counted and not entered.
    """
    for inside, folders, files in os.walk(folder, onerror=walk.unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name.lower() not in SYSTEM_FILES)
        linked = [name for name in folders if os.path.islink(os.path.join(inside, name))]
        ours = [name for name in folders if name not in linked and is_ours(os.path.join(inside, name))]
        folders[:] = [name for name in folders if name not in ours]
        for kind, names in (("linked folder", linked), ("run directory or bundle", ours)):
            if names:
                walk.left_out[kind] += len(names)
        for name in sorted(files):
            path = Path(inside, name)
            if name.startswith(".") or name.lower() in SYSTEM_FILES:
                continue
            if named_as_image(name) or _starts_as_image(path):
                yield path
            else:
                walk.left_out[path.suffix.lower()] += 1


def _starts_as_image(path: Path) -> bool:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would block
            return False
        with open(path, "rb") as stream:
            return starts_as_image(stream.read(16))
    except OSError:  # cannot be read and is not called an image: counted as left out
        return False
