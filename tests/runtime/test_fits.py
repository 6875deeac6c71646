"""How an image of any shape becomes the square that a model takes: against timm's transforms, and what always holds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from stage1.errors import DataError
from stage1.runtime.crops import ViewPolicy, adds_nothing, cut
from stage1.runtime.preprocessing import Preprocessing, to_tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPES = [(50, 91), (91, 50), (64, 64), (63, 65), (480, 640), (333, 257), (20, 700), (31, 17), (224, 225)]


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def timm_tensor(rgb: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    pytest.importorskip("timm")
    from timm.data.transforms_factory import transforms_imagenet_eval

    mode = {"center_crop": "center", "letterbox": "border"}[spec.fit]
    transform = transforms_imagenet_eval(
        spec.size,
        crop_pct=spec.crop_pct,
        crop_mode=mode,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
    )
    return np.asarray(transform(Image.fromarray(rgb)))


@pytest.mark.parametrize("height, width", SHAPES)
@pytest.mark.parametrize("fit, crop_pct", [("center_crop", 0.875), ("center_crop", 0.9), ("letterbox", 1.0)])
@pytest.mark.parametrize("size, interpolation", [(64, "bicubic"), (65, "bilinear")])
def test_pixels_are_those_of_timm(
    height: int, width: int, fit: str, crop_pct: float, size: int, interpolation: str
) -> None:
    spec = Preprocessing(size, fit, interpolation, MEAN, STD, crop_pct=crop_pct)
    rgb = photo(height, width)
    np.testing.assert_allclose(to_tensor(rgb, spec), timm_tensor(rgb, spec), atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(8, 48), st.sampled_from([0.1, 0.5, 0.875, 0.99, 1.0]))
def test_an_image_of_one_colour_stays_one(height: int, width: int, size: int, crop_pct: float) -> None:
    rgb = np.full((height, width, 3), (10, 128, 250), np.uint8)
    crop = Preprocessing(size, "center_crop", mean=(0, 0, 0), std=(1, 1, 1), crop_pct=crop_pct)
    colour = np.array([10, 128, 250])[:, None, None] / 255
    np.testing.assert_allclose(to_tensor(rgb, crop), np.broadcast_to(colour, (3, size, size)), atol=1e-6)
    boxed = to_tensor(rgb, Preprocessing(size, "letterbox", mean=(0, 0, 0), std=(1, 1, 1)))
    lit = boxed[2] > 0.5
    rows, columns = lit.any(axis=1), lit.any(axis=0)
    shown = (int(rows.sum()), int(columns.sum()))
    assert max(shown) == size
    assert lit.sum() == shown[0] * shown[1], "one rectangle"
    assert min(shown) == max(1, round(min(height, width) / (max(height, width) / size)))
    for seen in (rows, columns):
        before, after = int(seen.argmax()), int(seen[::-1].argmax())
        assert after - before in (0, 1), "in the middle"
    np.testing.assert_allclose(boxed[:, ~lit], 0.0, atol=1e-6)


def test_the_padding_is_the_mean_colour() -> None:
    spec = Preprocessing(40, "letterbox", mean=MEAN, std=STD)
    tensor = to_tensor(photo(20, 40), spec)
    # Half a level of 255, as the colour is one that an image can have.
    assert np.abs(tensor[:, :10]).max() <= 0.5 / 255 / min(STD) + 1e-6
    assert np.abs(tensor[:, 10:30]).max() > 0.5


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 60), st.sampled_from(["bicubic", "bilinear"]), st.integers(8, 40))
def test_a_square_image_is_squashed_by_a_letterbox(side: int, interpolation: str, size: int) -> None:
    rgb = photo(side, side)
    boxed, squashed = (to_tensor(rgb, Preprocessing(size, fit, interpolation)) for fit in ("letterbox", "squash"))
    np.testing.assert_array_equal(boxed, squashed)


@pytest.mark.parametrize("height, width", [(1, 16_000), (65_535, 3), (64, 40_000)])
def test_strips_become_squares_without_a_large_picture_between(height: int, width: int) -> None:
    rgb = np.full((height, width, 3), 128, np.uint8)
    for fit, crop_pct in (("letterbox", 1.0), ("center_crop", 0.5)):
        spec = Preprocessing(64, fit, max_pixels=2_000_000, mean=(0, 0, 0), std=(1, 1, 1), crop_pct=crop_pct)
        tensor = to_tensor(rgb, spec)
        assert tensor.shape == (3, 64, 64)
        assert np.isclose(tensor, 128 / 255, atol=1e-6).any()


def test_crop_pct_is_in_json_and_digest_only_where_it_says_something() -> None:
    plain = Preprocessing(size=96, fit="center_crop")
    assert "crop_pct" not in plain.to_json()
    assert plain == Preprocessing.from_json({**plain.to_json(), "crop_pct": 1})
    assert plain.digest == Preprocessing(size=96, fit="center_crop", crop_pct=1).digest
    cropped = Preprocessing(size=96, fit="center_crop", crop_pct=0.875)
    assert cropped.digest != plain.digest
    assert Preprocessing.from_json(json.loads(json.dumps(cropped.to_json()))) == cropped
    assert Preprocessing(size=96, fit="letterbox").digest not in {plain.digest, Preprocessing(size=96).digest}


def test_specs_of_before_keep_their_digest() -> None:
    """Features in a store and bundles are found by it. The digests are those of version 0.1.0."""
    known = {
        "squash": "67b97fb99ac7cfe71820a282f326247b179d7b8fd1057b12b8441a05fcad224e",
        "center_crop": "277651800dc8de16499b6ac822d95ef4cc466b4c2b7eb14bb3d097f289125d9a",
    }
    for fit, digest in known.items():
        assert Preprocessing(224, fit, "bicubic", MEAN, STD).digest == digest


@pytest.mark.parametrize(
    "values, message",
    [
        ({"fit": "center_crop", "crop_pct": 0}, r"crop_pct is 0; a number 0\.1\.\.1 is needed"),
        ({"fit": "center_crop", "crop_pct": 1.5}, "crop_pct is 1.5"),
        ({"fit": "center_crop", "crop_pct": float("nan")}, "crop_pct is nan"),
        ({"fit": "center_crop", "crop_pct": True}, "crop_pct is True"),
        ({"fit": "squash", "crop_pct": 0.9}, "it is for center_crop alone"),
        ({"fit": "letterbox", "crop_pct": 0.9}, "it is for center_crop alone"),
        ({"fit": "contain"}, "use squash or center_crop or letterbox"),
    ],
)
def test_a_bad_fit_is_refused_in_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=f"^preprocessing: .*{message}") as caught:
        Preprocessing.from_json({**Preprocessing().to_json(), **values})
    assert "\n" not in str(caught.value)


def test_what_a_fit_sees_of_an_image() -> None:
    crop = Preprocessing(64, "center_crop")
    assert crop.sees_all(50, 50)
    assert not crop.sees_all(50, 51)
    assert not Preprocessing(64, "center_crop", crop_pct=0.875).sees_all(50, 50), "a frame around the crop is gone"
    assert Preprocessing(64, "letterbox").sees_all(50, 20)
    tiles = ViewPolicy(grid=(2, 2))
    assert adds_nothing(50, 20, Preprocessing(64, "letterbox"), tiles)
    assert not adds_nothing(50, 50, Preprocessing(64, "center_crop", crop_pct=0.875), tiles)


def test_tiles_are_squashed_whatever_the_fit() -> None:
    rgb, policy = photo(60, 90), ViewPolicy(grid=(1, 2), overlap=0.0)
    squashed = cut(rgb, policy, Preprocessing(32))
    for spec in (Preprocessing(32, "letterbox"), Preprocessing(32, "center_crop", crop_pct=0.5)):
        made = cut(rgb, policy, spec)
        np.testing.assert_array_equal(made[1:], squashed[1:])
        np.testing.assert_array_equal(made[0], to_tensor(rgb, spec))
