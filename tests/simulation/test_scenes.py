"""The embedded task: reproducible, resumable, and neither trivial (colour alone fails) nor unfair (nothing but the
site tells).
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1.errors import ConfigError, Stage1Error
from stage1.simulation.scenes import describe_video, folder, video_frames, write_roadscenes

VIDEOS, TRAIN, SEED = 400, 240, 11
# Pixels a side: shares of colours hardly hang on it, the time to draw 600 pictures does.
sizes = pytest.mark.parametrize("size", [80, pytest.param(160, marks=pytest.mark.slow)])


def rgb_hsv_histogram(frame: np.ndarray) -> np.ndarray:
    """8 x 8 x 8 bins of RGB and of HSV, as shares: [1024]."""
    image = Image.fromarray(frame)
    parts = []
    for pixels in (np.asarray(image), np.asarray(image.convert("HSV"))):
        bins = (pixels // 32).astype(np.int64)
        parts.append(np.bincount(((bins[..., 0] * 8 + bins[..., 1]) * 8 + bins[..., 2]).ravel(), minlength=512))
    return np.concatenate(parts) / frame[..., 0].size


@cache
def scenes(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of 400 videos, colour histograms of a first frame each: as drawn, and drawn without the site."""
    labels, drawn, bare = [], [], []
    for index in range(VIDEOS):
        label = describe_video(SEED, index).label == "roadwork"
        plain = rgb_hsv_histogram(first_frame(index, size, roadwork=False))
        labels.append(label)
        bare.append(plain)
        drawn.append(rgb_hsv_histogram(first_frame(index, size, roadwork=True)) if label else plain)
    return np.array(labels, dtype=np.int64), np.array(drawn), np.array(bare)


def first_frame(index: int, size: int, roadwork: bool) -> np.ndarray:
    return video_frames(SEED, index, size, roadwork=roadwork, frames=1)[1][0]


def accuracies(features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Held-out accuracy by video of a linear and a forest classifier."""
    pytest.importorskip("sklearn", reason="the colour classifiers need scikit-learn (extra dev)")
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    models = (LogisticRegression(C=100, max_iter=300), RandomForestClassifier(200, random_state=0))
    return {
        type(model).__name__: float(model.fit(features[:TRAIN], labels[:TRAIN]).score(features[TRAIN:], labels[TRAIN:]))
        for model in models
    }


@sizes
def test_colour_alone_does_not_solve_the_task(size: int) -> None:
    labels, drawn, _ = scenes(size)
    found = accuracies(drawn, labels)
    assert max(found.values()) < 0.85, found


@sizes
def test_the_colour_classifier_would_notice_a_giveaway(size: int) -> None:
    # control for the two tests beside it: a twentieth of each positive picture moved into one colour
    labels, drawn, _ = scenes(size)
    marked = drawn.copy()
    marked[labels == 1] *= 0.95
    marked[labels == 1, 7 * 64 + 4 * 8 + 1] += 0.05
    assert max(accuracies(marked, labels).values()) > 0.95


@sizes
def test_without_the_site_nothing_tells_the_label(size: int) -> None:
    labels, _, bare = scenes(size)
    found = accuracies(bare, labels)
    assert all(abs(value - 0.5) < 0.15 for value in found.values()), found  # 160 held-out videos: se 0.04


def test_the_site_is_all_that_differs() -> None:
    untouched = []
    for index in range(24):
        (_, with_site), (_, without) = (video_frames(3, index, 128, roadwork=drawn) for drawn in (True, False))
        assert len(with_site) == len(without)
        for one, other in zip(with_site, without, strict=True):
            difference = np.abs(one.astype(int) - other.astype(int)).max(axis=2)
            assert (difference > 10).mean() > 0.003, f"video {index}: the site cannot be seen"
            untouched.append((difference == 0).mean())
    assert np.median(untouched) > 0.5


def test_labels_are_balanced_and_videos_short() -> None:
    videos = [describe_video(5, index) for index in range(3000)]
    assert 0.46 < np.mean([video.label == "roadwork" for video in videos]) < 0.54
    frames = np.array([video.frames for video in videos])
    assert set(frames) == {1, 2, 3, 4, 5}
    assert 1.9 < frames.mean() < 2.15
    assert len({name for video in videos for name in video.images}) == frames.sum()


def test_frames_have_the_promised_shape_and_label() -> None:
    for index in range(6):
        video = describe_video(1, index)
        label, frames = video_frames(1, index, 96)
        assert label == video.label
        assert len(frames) == video.frames
        assert all(frame.shape == (96, 96, 3) and frame.dtype == np.uint8 for frame in frames)


def test_same_seed_same_pixels_other_seed_other_pixels() -> None:
    once, again, other = (video_frames(seed, 4, 96)[1][0] for seed in (0, 0, 1))
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)


def test_frames_of_one_video_are_neighbours() -> None:
    videos = [index for index in range(60) if describe_video(2, index).frames >= 2][:12]
    small = {}
    for index in videos:
        for number, frame in enumerate(video_frames(2, index, 96)[1][:2]):
            small[index, number] = np.asarray(Image.fromarray(frame).resize((24, 24)), dtype=float)
    within = [np.abs(small[index, 0] - small[index, 1]).mean() for index in videos]
    across = [np.abs(small[a, 0] - small[b, 0]).mean() for a, b in pairwise(videos)]
    assert min(within) > 0.0
    assert np.median(within) < 0.5 * np.median(across)


def test_size_changes_the_resolution_not_the_scene() -> None:
    index = next(index for index in range(20) if describe_video(0, index).frames == 1)
    small, large = (video_frames(0, index, size)[1][0] for size in (128, 512))
    shrunk = np.asarray(Image.fromarray(large).resize((128, 128), Image.Resampling.BOX), dtype=float)
    blurred = np.asarray(Image.fromarray(small).reduce(4), dtype=float)
    assert np.abs(blurred - np.asarray(Image.fromarray(shrunk.astype(np.uint8)).reduce(4), dtype=float)).mean() < 8


def test_high_resolution_works() -> None:
    index = next(index for index in range(20) if describe_video(0, index).frames == 1)
    assert video_frames(0, index, 2048)[1][0].shape == (2048, 2048, 3)


@pytest.mark.parametrize("size", [0, 63, 2049])
def test_a_size_out_of_range_is_refused(size: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"size {size} is not within 64..2048"):
        video_frames(0, 0, size)
    with pytest.raises(ConfigError, match=f"size {size} is not within 64..2048"):
        write_roadscenes(tmp_path / "new", videos=2, size=size, seed=0)
    assert not (tmp_path / "new").exists()


# --- on disk -------------------------------------------------------------------------------------------------------


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_written_table_lists_every_frame_with_its_group(tmp_path: Path) -> None:
    table = write_roadscenes(tmp_path, videos=5, size=64, seed=0, workers=1)
    assert table == tmp_path / "labels.csv"
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    videos = [describe_video(0, index) for index in range(5)]
    assert [row["image"] for row in rows] == [name for video in videos for name in video.images]
    assert {row["group"]: row["label"] for row in rows} == {video.group: video.label for video in videos}
    assert {row["source"] for row in rows} == {"roadscenes"}
    assert len({row["timestamp"] for row in rows}) == len(rows)
    for row in rows:
        with Image.open(tmp_path / row["image"]) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (64, 64), "RGB")


def test_more_videos_change_no_earlier_pixel(tmp_path: Path) -> None:
    write_roadscenes(tmp_path / "few", videos=2, size=64, seed=0, workers=1)
    write_roadscenes(tmp_path / "more", videos=4, size=64, seed=0, workers=1)
    few, more = content(tmp_path / "few" / "images"), content(tmp_path / "more" / "images")
    assert few.items() <= more.items()


def test_processes_change_nothing(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_roadscenes(tmp_path / "one", videos=24, size=64, seed=0, workers=1)
    write_roadscenes(tmp_path / "two", videos=24, size=64, seed=0, workers=2, progress=lambda *at: seen.append(at))
    assert content(tmp_path / "one") == content(tmp_path / "two")
    total = sum(describe_video(0, index).frames for index in range(24))
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_a_complete_folder_is_returned_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_roadscenes(tmp_path, videos=3, size=64, seed=0, workers=1)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(folder, "_write_video", lambda *_: pytest.fail("drawn again"))
    write_roadscenes(tmp_path, videos=3, size=64, seed=0, workers=1)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_a_killed_run_is_finished_with_the_same_bytes(tmp_path: Path) -> None:
    write_roadscenes(tmp_path / "whole", videos=12, size=64, seed=0, workers=1)
    script = (
        "import os, sys, signal\n"
        "from stage1.simulation.scenes import write_roadscenes\n"
        "stop = lambda done, total: done > 6 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_roadscenes(sys.argv[1], videos=12, size=64, seed=0, workers=1, progress=stop)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "cut")], check=False)
    assert ended.returncode == -9
    assert not (tmp_path / "cut" / "labels.csv").exists()
    before = content(tmp_path / "cut" / "images")
    assert before
    kept = {name: (tmp_path / "cut" / "images" / name).stat().st_mtime_ns for name in before}
    write_roadscenes(tmp_path / "cut", videos=12, size=64, seed=0, workers=1)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert kept == {name: (tmp_path / "cut" / "images" / name).stat().st_mtime_ns for name in before}


def test_a_lost_image_is_drawn_again(tmp_path: Path) -> None:
    table = write_roadscenes(tmp_path, videos=3, size=64, seed=0, workers=1)
    lost = tmp_path / describe_video(0, 1).images[0]
    data = lost.read_bytes()
    lost.unlink()
    write_roadscenes(tmp_path, videos=3, size=64, seed=0, workers=1)
    assert lost.read_bytes() == data
    assert table.exists()


@pytest.mark.parametrize("changed", [{"seed": 1}, {"size": 96}, {"videos": 4}])
def test_a_folder_of_other_parameters_is_refused(tmp_path: Path, changed: dict[str, int]) -> None:
    write_roadscenes(tmp_path, videos=3, size=64, seed=0, workers=1)
    before = content(tmp_path)
    (key, value), *_ = changed.items()
    with pytest.raises(
        ConfigError, match=f"holds road scenes with {key}=.*not {value}; remove it or choose another folder"
    ):
        write_roadscenes(tmp_path, **{"videos": 3, "size": 64, "seed": 0, "workers": 1, **changed})
    assert content(tmp_path) == before


@pytest.mark.parametrize("wrong", [{"videos": 0}, {"workers": -1}])
def test_wrong_counts_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        write_roadscenes(tmp_path / "new", **{"videos": 3, "size": 64, "seed": 0, "workers": 1, **wrong})
    assert not (tmp_path / "new").exists()


def test_a_full_disk_is_one_line_and_leaves_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "images").mkdir()
    write_roadscenes(tmp_path, videos=1, size=64, seed=0, workers=1)
    (tmp_path / describe_video(0, 0).images[0]).unlink()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Stage1Error, match="No space left on device") as caught:
        write_roadscenes(tmp_path, videos=1, size=64, seed=0, workers=1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "labels.csv").exists()
    assert not list((tmp_path / "images").glob(".*.tmp"))


def test_a_dead_drawing_process_is_named(tmp_path: Path) -> None:
    # a script without a main guard: every spawned process runs it again and dies
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import sys\nfrom stage1.simulation.scenes import write_roadscenes\n"
        "write_roadscenes(sys.argv[1], videos=24, size=64, seed=0, workers=2)\n"
    )
    ended = subprocess.run(
        [sys.executable, script, tmp_path / "out"], check=False, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    # Python's own tracker may add two lines of its own, of semaphores that the dead process left.
    ours = [line for line in ended.stderr.strip().splitlines() if not ("resource_tracker" in line or "warn(" in line)]
    assert ours[-1].endswith("use workers=1")
    assert not (tmp_path / "out" / "labels.csv").exists()


def test_the_generator_needs_numpy_and_pillow_only() -> None:
    script = "import sys, stage1.simulation.scenes as r; r.video_frames(0, 0, 64); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "timm", "cv2", "scipy", "sklearn", "pandas", "matplotlib"} & set(loaded)
