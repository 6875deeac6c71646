"""Which members of a WebDataset tar are one sample: by names alone, dots in them included, and nothing lost in
silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from stage1.errors import DataError
from stage1.runtime.folders import named_as_image

LABEL_ENDINGS = (".cls", ".txt", ".json")


@dataclass(frozen=True, slots=True)
class Samples:
    """images: key -> member. notes: (key, member), labels and annotations of these images, in order. further: (image,
    why it is not the image of its sample). alone: keys of labels without an image."""

    images: dict[str, str] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    further: list[tuple[str, str]] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)


def samples(members: Iterable[str], starts_as_image: Callable[[str], bool], where: str) -> Samples:
    """The samples of an archive.

    An image is what is named as one, and a member without ending that starts as one. Its key is the name up to the last
    dot:
    "cam.3.png" and "cam.3.cls" are one sample. WebDataset cuts at the first dot, so that one sample has several files
    ("x.jpg", "x.seg.png", "x.cls"): where only the name up to the first dot has a label, that is the key, and an image
    beside the one called by the key alone is a further file of its sample. Hidden members and files of other kinds are
    passed over.
    Raises DataError where two images are left under one key.
    """
    found: list[tuple[str, str, str]] = []
    labels: list[tuple[str, str, str]] = []
    for name in members:
        inner = PurePosixPath(name)
        if inner.name.startswith("."):
            continue
        long, short = str(inner.with_suffix("")), str(inner.parent / inner.name.partition(".")[0])
        if named_as_image(inner.name) or (not inner.suffix and starts_as_image(name)):
            found.append((name, long, short))
        elif inner.suffix.lower() in LABEL_ENDINGS:
            labels.append((name, long, short))
    made = Samples()
    labelled = {long for _, long, _ in labels}
    plain = {long for _, long, short in found if long == short}
    for name, long, short in found:
        key = short if long not in labelled and short in labelled else long
        if key != long and short in plain:
            made.further.append((name, f"a further file of sample {short!r}"))
        elif key in made.images:
            raise DataError(f"{where}: {made.images[key]!r} and {name!r} share the key {key!r}; one image per key")
        else:
            made.images[key] = name
    for name, long, short in labels:
        if long in made.images:
            made.notes.append((long, name))
        elif short not in made.images:
            made.alone.append(long)
    return made
