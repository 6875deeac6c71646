"""Which parts of an image are evaluated: the geometry of views, and one decoded image cut into them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import DataError
from stage1.runtime.preprocessing import Preprocessing, to_tensor

MAX_VIEWS = 64
_GRID = re.compile(r"(\d+)x(\d+)(?:@([0-9.e-]+))?")
_CENTRE = re.compile(r"centre\s*([0-9.e-]+)")


@dataclass(frozen=True, slots=True)
class ViewPolicy:
    """The views of an image, the same for every image whatever its shape.

    whole: the whole image by the preprocessing of the bundle, exactly as without views. grid: (rows, columns) of tiles.
    overlap: a tile is side / n * (1 + overlap) long, and origins lie evenly from 0 to side - tile, so that tiles cover
    every pixel; 0 without a grid. scales: centre crops of this share of each side. flips: each view also mirrored.
    Order: whole, scales, tiles row by row, then the mirrored ones in the same order. Tiles and centre crops are
    squashed to the model's input whatever `Preprocessing.fit` says: what a tile covers is then what the model sees of
    it.
    Raises DataError naming the field.
    """

    whole: bool = True
    grid: tuple[int, int] | None = None
    overlap: float = 0.12
    flips: bool = False
    scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.grid is not None:
            _check_grid(self.grid)
            object.__setattr__(self, "grid", (int(self.grid[0]), int(self.grid[1])))
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        if not 0.0 <= self.overlap <= 1.0:
            raise DataError(f"views: overlap is {self.overlap!r}; a share of the tile's side is needed, 0 to 1")
        if self.grid is None:
            object.__setattr__(self, "overlap", 0.0)  # it says nothing then: equal policies are equal values
        for scale in self.scales:
            if not 0.0 < scale < 1.0:
                raise DataError(f"views: scale {scale!r}; a share of each side is needed, above 0 and below 1")
        if len(set(self.scales)) < len(self.scales):
            raise DataError(f"views: scales {list(self.scales)} name one twice; give each once")
        if not 1 <= self.count <= MAX_VIEWS:
            raise DataError(
                f"views: {self.count} views; 1 to {MAX_VIEWS} are needed (set whole, scales or grid, or a smaller grid)"
            )

    @property
    def count(self) -> int:
        """V, the number of views of every image."""
        return self._unmirrored * (2 if self.flips else 1)

    @property
    def _unmirrored(self) -> int:
        rows, columns = self.grid or (0, 0)
        return int(self.whole) + len(self.scales) + rows * columns

    @property
    def names(self) -> tuple[str, ...]:
        """One name for each view, in order: "whole", "centre .7", "tile r0c1", "whole mirrored"."""
        names = ["whole"] if self.whole else []
        names += [f"centre {f'{scale:g}'.lstrip('0')}" for scale in self.scales]
        rows, columns = self.grid or (0, 0)
        names += [f"tile r{row}c{column}" for row in range(rows) for column in range(columns)]
        return tuple(names + ([f"{name} mirrored" for name in names] if self.flips else []))

    @property
    def description(self) -> str:
        """In words, e.g. "10 views (whole + 3x3 tiles, 12 % overlap)"."""
        parts = ["whole"] if self.whole else []
        parts += [f"centre {f'{scale:g}'.lstrip('0')}" for scale in self.scales]
        if self.grid is not None:
            parts.append(f"{self.grid[0]}x{self.grid[1]} tiles, {100 * self.overlap:.4g} % overlap")
        inside = " + ".join(parts) + (", each also mirrored" if self.flips else "")
        return f"{self.count} view{'s' if self.count > 1 else ''} ({inside})"

    @property
    def text(self) -> str:
        """The shortest spelling that `parse_views` takes, e.g. "whole+3x3@0.12"."""
        parts = ["whole"] if self.whole else ["no-whole"]
        parts += [f"centre{scale!r}" for scale in self.scales]
        parts += [] if self.grid is None else [f"{self.grid[0]}x{self.grid[1]}@{self.overlap!r}"]
        return "+".join(parts + (["flips"] if self.flips else []))

    def boxes(self, height: int, width: int) -> NDArray[np.int64]:
        """int64 [V, 4]: (top, left, bottom, right) of each view in pixels of the decoded image; none is empty.

        Raises DataError for a side below 1.
        """
        if height < 1 or width < 1:
            raise DataError(f"views: an image of {height} x {width} px; each side is at least 1")
        boxes = [(0, 0, height, width)] if self.whole else []
        for scale in self.scales:
            (top, bottom), (left, right) = _centre(height, scale), _centre(width, scale)
            boxes.append((top, left, bottom, right))
        if self.grid is not None:
            down, across = _tiles(height, self.grid[0], self.overlap), _tiles(width, self.grid[1], self.overlap)
            boxes += [(top, left, bottom, right) for top, bottom in down for left, right in across]
        return np.array(boxes * (2 if self.flips else 1), dtype=np.int64)

    @property
    def digest(self) -> str:
        """sha256 of the policy: equal exactly where every image is cut in the same way."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The policy as plain JSON values."""
        return {
            "whole": self.whole,
            "grid": None if self.grid is None else list(self.grid),
            "overlap": float(self.overlap),
            "flips": self.flips,
            "scales": list(self.scales),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ViewPolicy:
        """The inverse of `to_json`. Raises DataError for an unknown or missing field, or a bad value."""
        known = set(cls.__slots__)
        if odd := sorted(known.symmetric_difference(document)):
            raise DataError(f"views: field {odd[0]!r} is {'missing' if odd[0] in known else 'unknown'}")
        grid = document["grid"]
        return cls(
            whole=bool(document["whole"]),
            grid=None if grid is None else tuple(grid),
            overlap=float(document["overlap"]),
            flips=bool(document["flips"]),
            scales=tuple(document["scales"]),
        )


WHOLE = ViewPolicy()


def parse_views(text: str) -> ViewPolicy:
    """The policy that a text names: parts joined by "+", of whole, ROWSxCOLUMNS[@OVERLAP], centreSHARE and flips.

    The whole view is always among them but where "no-whole" is one of the parts: "3x3" is "whole+3x3@0.12".
    Raises DataError naming the part.
    """
    values: dict[str, Any] = {"whole": True, "scales": ()}
    for part in (piece.strip() for piece in text.lower().split("+")):
        if part == "no-whole":
            values["whole"] = False
        elif part == "flips":
            values["flips"] = True
        elif found := _GRID.fullmatch(part):
            values["grid"] = (int(found[1]), int(found[2]))
            if found[3] is not None:
                values["overlap"] = _number(found[3], text)
        elif found := _CENTRE.fullmatch(part):
            values["scales"] = (*values["scales"], _number(found[1], text))
        elif part != "whole":
            raise DataError(
                f"views: {part!r} in {text!r}; give whole, 3x3, 3x3@0.12, centre0.7, flips or no-whole, joined by +"
            )
    return ViewPolicy(**values)


def cut(
    rgb: NDArray[np.uint8], policy: ViewPolicy, spec: Preprocessing, which: Sequence[int] | None = None
) -> NDArray[np.float32]:
    """The views `which` (None: all, in order) of one decoded image, uint8 [H, W, 3] -> float32 [n, 3, size, size].

    Each is resized by the kernel of `preprocessing.to_tensor`; view "whole" equals `to_tensor(rgb, spec)` bit by bit.
    The pixels outside a box do not reach into it. Raises DataError for another shape or dtype, IndexError for a view
    that is not there.
    """
    boxes = (
        policy.boxes(*rgb.shape[:2]) if rgb.ndim == 3 and 0 not in rgb.shape else np.zeros((policy.count, 4), np.int64)
    )
    tile_spec = spec.squashed
    views = range(policy.count) if which is None else which
    made = np.empty((len(views), 3, spec.size, spec.size), dtype=np.float32)
    for place, view in enumerate(views):
        mirrored, base = divmod(range(policy.count)[view], policy._unmirrored)
        whole = policy.whole and base == 0
        top, left, bottom, right = boxes[view]
        # A copy of the box alone: the kernel of a resize must not reach for pixels of the neighbouring tile.
        tensor = to_tensor(rgb, spec) if whole else to_tensor(rgb[top:bottom, left:right], tile_spec)
        made[place] = tensor[:, :, ::-1] if mirrored else tensor
    return made


def adds_nothing(height: int, width: int, spec: Preprocessing, policy: ViewPolicy) -> bool:
    """Whether a whole view already holds every pixel at full size, so that tiles and crops only enlarge it.

    False where the policy has no whole view, or nothing beside it but its mirror image.
    """
    enlarges = policy.whole and (policy.grid is not None or bool(policy.scales))
    return enlarges and max(height, width) <= spec.size and spec.sees_all(height, width)


def small_line(small: int, of: int, size: int) -> str:
    """What is said of images for which `adds_nothing` holds."""
    return (
        f"note: {small} of {of} images no larger than the model's input ({size} px): tiles and crops add nothing there"
    )


# ---- along one axis ----------------------------------------------------------------------------------------------


def _tiles(side: int, n: int, overlap: float) -> list[tuple[int, int]]:
    """(start, end) of n tiles along a side: equal lengths, the first starts at 0, the last ends at `side`, no gap."""
    # Rounded up (but for the noise of floating point): a shorter tile could leave a pixel between two neighbours.
    tile = min(side, max(1, math.ceil(side / n * (1.0 + overlap) - 1e-9)))
    free = side - tile
    starts = [0] if n == 1 else [(2 * index * free + n - 1) // (2 * (n - 1)) for index in range(n)]
    assert starts[-1] + tile == side, "the last pixel is in no tile"
    assert all(after - before <= tile for before, after in pairwise(starts)), "a gap between tiles"
    return [(start, start + tile) for start in starts]


def _centre(side: int, scale: float) -> tuple[int, int]:
    length = min(side, max(1, round(side * scale)))
    start = (side - length) // 2
    return start, start + length


def _check_grid(grid: Any) -> None:
    whole = isinstance(grid, (tuple, list)) and len(grid) == 2 and all(type(side) is int and side >= 1 for side in grid)
    if not whole or tuple(grid) == (1, 1):
        raise DataError(
            f"views: grid is {grid!r}; two whole numbers (rows, columns) are needed, more than one tile in all"
        )


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"views: {text!r} in {whole!r} is not a number; write 0.12") from error
