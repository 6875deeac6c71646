"""A desk for the command line: small images that carry what two callable stages say of them, a table, a cascade
file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

CLASSES = ("none", "roadwork")
# calls: of each stage in this process, to see whether anything was asked.
_MODULE = """
import io
from PIL import Image
calls = [0, 0]
def _said(data, place):
    calls[place] += 1
    return Image.open(io.BytesIO(data)).getpixel((0, 0))[place] / 255
def first(data):
    return _said(data, 0)
def second(data):
    return _said(data, 1)
"""


def write_desk(folder: Path, n: int, *, seed: int = 0, test: bool = True) -> Path:
    """n images with labels and roles in labels.csv: the first stage is unsure of many, the second knows better."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    roles = ("val_select", "val_calib", "val_calib", "val_test" if test else "val_calib")
    rows = ["image,label,role"]
    for index in range(n):
        sign = 2 * int(rng.integers(0, 2)) - 1
        scores = np.array([1.5, 3.0]) * (sign + rng.normal(size=2) * [0.8, 0.5])
        pixels = np.zeros((2, 2, 3), dtype=np.uint8)
        pixels[0, 0, :2] = np.clip(np.round(255 / (1 + np.exp(-2 * scores))), 1, 254)
        pixels[1, 1] = index % 256, index // 256, 7  # another file for each index
        Image.fromarray(pixels).save(folder / "images" / f"{index:04d}.png")
        rows.append(f"images/{index:04d}.png,{CLASSES[(sign + 1) // 2]},{roles[index % 4]}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder / "labels.csv"


def write_stages(path: Path, limit: float, *, exit: object = "auto", **second: object) -> Path:
    """A cascade file of the two callables, from a module of this folder's own; second: further keys of the second
    stage.
    """
    name = f"desk_{abs(hash(str(path.parent.resolve())))}"
    (path.parent / f"{name}.py").write_text(_MODULE)
    document = {
        "classes": list(CLASSES),
        "risks": {"miss_rate": limit, "false_exit_rate": limit},
        "stages": [
            {"name": "first", "callable": f"{name}:first", "exit": exit},
            {"name": "second", "callable": f"{name}:second", "cost": {"money": 0.01}, **second},
        ],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def calls_of(path: Path) -> list[int]:
    """How often each stage of the cascade file was asked in this process."""
    module = yaml.safe_load(path.read_text())["stages"][0]["callable"].partition(":")[0]
    return list(sys.modules[module].calls)
