"""Bad input through the command line: one line that names the thing and the way out, the exit code, nothing
half-written.
"""

from __future__ import annotations

import json
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .command_line import stage1
from .drawing import no_figures_drawn  # noqa: F401 (fixture)
from .runs.conftest import finished, one_line_error, photos  # noqa: F401 (fixtures)
from .tracing import backbones_traced_once  # noqa: F401 (fixture)


def image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def table(folder: Path, rows: list[str], header: str = "image,label") -> list[str]:
    for index in range(40):
        image(folder / f"{index}.png", index)
    (folder / "t.csv").write_text("\n".join([header, *rows]) + "\n")
    return ["data.table=t.csv"]


def good_rows(n: int = 40) -> list[str]:
    return [f"{index}.png,{('a', 'b')[index % 2]}" for index in range(n)]


def huge_png(path: Path) -> None:
    """30,000 x 30,000 px in a few bytes: the header alone must be enough to refuse it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def one_class(folder: Path) -> list[str]:
    return table(folder, [f"{index}.png,a" for index in range(40)])


def unknown_label(folder: Path) -> list[str]:
    return [*table(folder, [*good_rows(39), "39.png,c"]), "data.classes=[a, b]"]


def missing_column(folder: Path) -> list[str]:
    return table(folder, good_rows(), header="image,lable")


def few_rows(folder: Path) -> list[str]:
    return table(folder, good_rows(3))


def missing_images(folder: Path) -> list[str]:
    return table(folder, [*good_rows(), "nowhere.png,a", "nowhere2.png,b"])


def same_image_two_labels(folder: Path) -> list[str]:
    return table(folder, [*good_rows(), "0.png,b"])


def leaking_roles(folder: Path) -> list[str]:
    roles = ("train", "val_select", "val_calib", "val_test")
    rows = [f"{index}.png,{('a', 'b')[index % 2]},{roles[index // 2 % 4]}" for index in range(40)]
    shutil.copy(folder / "0.png", folder / "copy.png") if (folder / "0.png").exists() else None
    options = table(folder, [*rows, "copy.png,a,val_calib"], header="image,label,role")
    shutil.copy(folder / "0.png", folder / "copy.png")
    return options


def huge(folder: Path) -> list[str]:
    options = table(folder, [*good_rows(), "huge.png,a"])
    huge_png(folder / "huge.png")
    return options


def svg_as_jpg(folder: Path) -> list[str]:
    options = table(folder, [*good_rows(), "drawing.jpg,a"])
    (folder / "drawing.jpg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    return options


def animated_gif(folder: Path) -> list[str]:
    options = table(folder, [*good_rows(), "moving.gif,a"])
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    return options


def empty_tar(folder: Path) -> list[str]:
    with tarfile.open(folder / "empty.tar", "w"):
        return ["data.table=empty.tar"]


def a_role_column_with_a_typo(folder: Path) -> list[str]:
    return table(folder, [f"{row},tset" for row in good_rows()], header="image,label,role")


CASES: list[tuple[Callable[[Path], list[str]], int, list[str]]] = [
    (one_class, 2, ["class"]),
    (unknown_label, 2, ["'c'", "data.classes"]),
    (missing_column, 2, ["t.csv", "label"]),
    (few_rows, 2, ["role"]),
    (missing_images, 2, ["nowhere.png", "quarantine"]),
    (same_image_two_labels, 2, ["0.png", "label"]),
    (leaking_roles, 2, ["copy.png", "allow_leakage"]),
    (huge, 2, ["huge.png", "too large"]),
    (svg_as_jpg, 2, ["drawing.jpg", "not an image"]),
    (animated_gif, 2, ["moving.gif", "animated"]),
    (empty_tar, 2, ["empty.tar"]),
    (a_role_column_with_a_typo, 2, ["tset"]),
]


@pytest.mark.parametrize("make, code, words", CASES, ids=lambda value: value.__name__ if callable(value) else None)
def test_sources_that_cannot_be_used(make, code, words, tmp_path):
    options = make(tmp_path)
    # Else a few images that cannot be used would pass, by name in quarantine.csv.
    strict = [*options, "data.max_quarantine=0"]
    result = stage1("run", "--recipe", "baseline", *strict, "--output", "run", cwd=tmp_path)
    one_line_error(result, code, *words)
    written = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert written <= {".lock", "config.yaml", "quarantine.csv"}, written


def test_allowed_leakage_leaves_the_run_uncertified(tmp_path):
    options = leaking_roles(tmp_path)
    small = [
        "backbone.input_size=64",
        "backbone.fit=squash",
        "head.kind=linear",
        "train.epochs=1",
        "evaluation.resamples=10",
        "risks={miss_rate: 0.9, false_exit_rate: 0.9}",
    ]
    result = stage1("run", "--recipe", "baseline", *options, *small, "--allow-leakage", "--output", "run", cwd=tmp_path)
    one_line_error(result, 4, "two roles")
    assert json.loads((tmp_path / "run" / "certificate.json").read_text())["certified"] is False
    assert not (tmp_path / "run" / "bundle").exists()


def test_a_bundle_of_a_newer_schema(finished, tmp_path):  # noqa: F811
    bundle = shutil.copytree(finished.bundle, tmp_path / "bundle")
    text = (bundle / "bundle.json").read_text()
    (bundle / "bundle.json").write_text(text.replace('"schema_version": 1', '"schema_version": 2', 1))
    one_line_error(stage1("predict", bundle, tmp_path), 5, "newer", "upgrade")
    assert stage1("verify", bundle).returncode == 5


def test_a_changed_bundle_answers_nothing(finished, tmp_path):  # noqa: F811
    bundle = shutil.copytree(finished.bundle, tmp_path / "bundle")
    thresholds = json.loads((bundle / "thresholds.json").read_text())
    (bundle / "thresholds.json").write_text(json.dumps({**thresholds, "lo": 3.0, "hi": 3.0}, indent=2) + "\n")
    one_line_error(stage1("predict", bundle, tmp_path), 5, "thresholds.json")
    result = stage1("verify", bundle)
    assert result.returncode == 5
    assert "thresholds.json" in result.stdout


def test_predict_names_broken_files_and_answers_the_rest(finished, photos, tmp_path):  # noqa: F811
    good = sorted((photos.parent / "images").iterdir())[:3]
    (tmp_path / "broken.jpg").write_bytes(good[0].read_bytes()[:200])
    result = stage1("predict", finished.bundle, *good, tmp_path / "broken.jpg", tmp_path / "nowhere.jpg", "--json")
    assert result.returncode == 1
    assert "broken.jpg" in result.stderr
    assert "nowhere.jpg" in result.stderr
    assert "Traceback" not in result.stderr
    document = json.loads(result.stdout)
    rows = next(
        value for value in document.values() if isinstance(value, list) and value and isinstance(value[0], dict)
    )
    assert [row["error"] is None for row in rows] == [True, True, True, False, False]


def test_predict_reads_paths_from_stdin(finished, photos):  # noqa: F811
    good = sorted((photos.parent / "images").iterdir())[:3]
    result = stage1("predict", finished.bundle, "-", "--format", "csv", input="\n".join(map(str, good)) + "\n")
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.strip().splitlines()) == 4


def test_output_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    options = table(tmp_path, good_rows())
    result = stage1("run", "--recipe", "baseline", *options, "--output", "file", cwd=tmp_path)
    assert result.returncode in (1, 2)
    one_line_error(result, result.returncode, "file")


def test_no_weights_and_no_network(tmp_path):
    options = table(tmp_path, good_rows())
    result = stage1(
        "run",
        "--recipe",
        "baseline",
        *options,
        "backbone.name=vit_small_patch14_dinov2.lvd142m",
        "--output",
        "run",
        cwd=tmp_path,
        environment={"HF_HOME": str(tmp_path / "hub")},
    )
    one_line_error(result, 3, "vit_small_patch14_dinov2", "backbone.weights")
