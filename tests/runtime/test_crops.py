"""Geometry of views over every shape, the cut itself, and the spellings of a policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.errors import DataError
from stage1.runtime.crops import WHOLE, ViewPolicy, adds_nothing, cut, parse_views, small_line
from stage1.runtime.preprocessing import Preprocessing, to_tensor

SPEC = Preprocessing(size=16)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def policies():
    shares = st.integers(1, 19).map(lambda twentieth: twentieth / 20)
    grids = st.tuples(st.integers(1, 4), st.integers(1, 4)).filter(lambda grid: grid != (1, 1))
    return st.builds(
        ViewPolicy,
        whole=st.just(True),
        grid=st.none() | grids,
        overlap=st.floats(0, 1),
        flips=st.booleans(),
        scales=st.lists(shares, max_size=2, unique=True).map(tuple),
    )


sides = st.integers(1, 3000)


# ---- geometry ----------------------------------------------------------------------------------------------------


def test_three_by_three_with_twelve_percent_is_exact():
    boxes = ViewPolicy(grid=(3, 3), overlap=0.12).boxes(300, 600)
    assert boxes[0].tolist() == [0, 0, 300, 600]
    # tiles of 300 / 3 * 1.12 = 112 px: origins 0, 94, 188; and 224 px: 0, 188, 376
    assert boxes[1:4].tolist() == [[0, 0, 112, 224], [0, 188, 112, 412], [0, 376, 112, 600]]
    assert boxes[-1].tolist() == [188, 376, 300, 600]


def test_names_follow_the_order_of_the_boxes():
    policy = ViewPolicy(grid=(1, 2), scales=(0.7,), flips=True)
    names = ("whole", "centre .7", "tile r0c0", "tile r0c1")
    assert policy.names == (*names, *(f"{name} mirrored" for name in names))
    assert policy.count == 8
    boxes = policy.boxes(100, 50)
    assert boxes[1].tolist() == [15, 7, 85, 42]
    assert (boxes[:4] == boxes[4:]).all()


@settings(max_examples=200, deadline=None)
@given(policies(), sides, sides)
def test_every_box_lies_inside_and_holds_a_pixel(policy, height, width):
    boxes = policy.boxes(height, width)
    assert boxes.shape == (policy.count, 4) == (len(policy.names), 4)
    assert (boxes[:, 0] >= 0).all()
    assert (boxes[:, 1] >= 0).all()
    assert (boxes[:, 2] <= height).all()
    assert (boxes[:, 3] <= width).all()
    assert (boxes[:, 2] > boxes[:, 0]).all()
    assert (boxes[:, 3] > boxes[:, 1]).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6), st.floats(0, 1), sides)
def test_tiles_cover_every_pixel_are_of_one_size_and_overlap_by_the_share(n, overlap, side):
    if n == 1:
        return
    boxes = ViewPolicy(whole=False, grid=(n, 1), overlap=overlap).boxes(side, 7)
    starts, ends = boxes[:, 0], boxes[:, 2]
    seen = np.zeros(side, dtype=bool)
    for start, end in zip(starts, ends, strict=True):
        seen[start:end] = True
    assert seen.all(), "a pixel is in no tile"
    assert starts[0] == 0
    assert ends[-1] == side, "the last pixel row"
    assert len(set(ends - starts)) == 1
    length = ends[0] - starts[0]
    assert abs(length - max(1, min(side, side / n * (1 + overlap)))) <= 1
    steps = np.diff(starts)
    assert steps.max() - steps.min() <= 1, "origins lie evenly"


@settings(max_examples=100, deadline=None)
@given(policies(), sides, sides)
def test_geometry_is_symmetric_to_mirroring_the_image_up_to_a_pixel(policy, height, width):
    boxes = policy.boxes(height, width)
    mirrored = np.stack([boxes[:, 0], width - boxes[:, 3], boxes[:, 2], width - boxes[:, 1]], axis=1)
    distance = np.abs(boxes[:, None] - mirrored[None]).max(axis=2).min(axis=1)
    assert distance.max() <= 1


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1), (2, 3)])
def test_degenerate_images_have_all_their_views(shape):
    tensors = cut(noise(*shape), ViewPolicy(grid=(3, 3), scales=(0.5,), flips=True), SPEC)
    assert tensors.shape == (22, 3, 16, 16)
    assert np.isfinite(tensors).all()


def test_no_image_is_an_error():
    with pytest.raises(DataError, match="0 x 5"):
        WHOLE.boxes(0, 5)
    with pytest.raises(DataError, match="shape"):
        cut(np.zeros((0, 5, 3), np.uint8), WHOLE, SPEC)
    with pytest.raises(DataError, match="shape"):
        cut(np.zeros((5, 5), np.uint8), ViewPolicy(grid=(2, 2)), SPEC)


# ---- the cut -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, fit="center_crop"), replace(SPEC, interpolation="bilinear")])
def test_the_whole_view_is_the_tensor_without_views(spec):
    rgb = noise(40, 70)
    assert (cut(rgb, ViewPolicy(grid=(2, 2)), spec)[0] == to_tensor(rgb, spec)).all()


@pytest.mark.parametrize("fit", ["squash", "center_crop"])
def test_each_view_is_its_box_alone_by_the_kernel_of_to_tensor(fit):
    spec, policy = replace(SPEC, fit=fit), ViewPolicy(grid=(2, 3), scales=(0.6,), flips=True)
    rgb = noise(50, 83)
    tensors, boxes = cut(rgb, policy, spec), policy.boxes(50, 83)
    half = policy.count // 2
    for view in range(1, half):
        top, left, bottom, right = boxes[view]
        # A tile is squashed whatever the fit: what it covers is what is seen.
        alone = to_tensor(np.ascontiguousarray(rgb[top:bottom, left:right]), replace(spec, fit="squash"))
        assert (tensors[view] == alone).all()
    assert (tensors[half:] == tensors[:half, :, :, ::-1]).all()


def test_pixels_outside_a_tile_do_not_reach_into_it():
    policy = ViewPolicy(grid=(2, 2), overlap=0.0)
    rgb = noise(64, 64)
    changed = rgb.copy()
    changed[32:] = 255 - changed[32:]
    before, after = cut(rgb, policy, SPEC), cut(changed, policy, SPEC)
    assert (before[1:3] == after[1:3]).all()
    assert (before[3:] != after[3:]).any()


def test_some_views_alone_are_those_of_all():
    policy, rgb = ViewPolicy(grid=(3, 3), flips=True), noise(77, 61)
    everything = cut(rgb, policy, SPEC)
    which = [19, 0, 7, 7, -1]
    assert (cut(rgb, policy, SPEC, which) == everything[which]).all()
    assert cut(rgb, policy, SPEC, []).shape == (0, 3, 16, 16)
    with pytest.raises(IndexError):
        cut(rgb, policy, SPEC, [20])


def test_tiles_add_nothing_to_images_that_the_model_sees_whole():
    grid, crop = ViewPolicy(grid=(2, 2)), replace(SPEC, fit="center_crop")
    assert adds_nothing(16, 16, SPEC, grid)
    assert adds_nothing(3, 16, SPEC, ViewPolicy(scales=(0.7,)))
    assert not adds_nothing(17, 3, SPEC, grid)
    # The centre square of a wide image leaves pixels out that a tile shows.
    assert not adds_nothing(3, 16, crop, grid)
    assert adds_nothing(9, 9, crop, grid)
    assert (
        small_line(3, 7, 224)
        == "note: 3 of 7 images no larger than the model's input (224 px): tiles and crops add nothing there"
    )


@pytest.mark.parametrize(
    "policy",
    [WHOLE, ViewPolicy(whole=False, scales=(0.7,)), ViewPolicy(whole=False, grid=(2, 2)), ViewPolicy(flips=True)],
)
def test_nothing_is_said_of_tiles_where_no_whole_view_shows_what_they_show(policy):
    assert not adds_nothing(9, 9, SPEC, policy)


# ---- the policy as a value ---------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(policies())
def test_json_and_text_give_the_policy_back(policy):
    again = ViewPolicy.from_json(policy.to_json())
    assert again == policy
    assert again.digest == policy.digest
    assert parse_views(policy.text) == policy


@settings(max_examples=100, deadline=None)
@given(policies(), policies())
def test_digests_are_equal_exactly_where_policies_are(one, other):
    assert (one.digest == other.digest) == (one == other)


def test_texts_and_words():
    assert parse_views("3x3") == parse_views("whole+3x3@0.12") == ViewPolicy(grid=(3, 3))
    assert parse_views("no-whole+2x1") == ViewPolicy(whole=False, grid=(2, 1))
    assert parse_views("centre0.7 + flips") == ViewPolicy(scales=(0.7,), flips=True)
    assert ViewPolicy(grid=(3, 3)).description == "10 views (whole + 3x3 tiles, 12 % overlap)"
    assert (
        ViewPolicy(whole=False, grid=(2, 2), flips=True).description
        == "8 views (2x2 tiles, 12 % overlap, each also mirrored)"
    )
    assert WHOLE.description == "1 view (whole)"
    assert ViewPolicy(overlap=0.5) == WHOLE


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"whole": False}, "0 views"),
        ({"grid": (9, 9)}, "82 views"),
        ({"grid": (1, 1)}, "grid"),
        ({"grid": (0, 3)}, "grid"),
        ({"grid": (3,)}, "grid"),
        ({"grid": (2.5, 2)}, "grid"),
        ({"grid": (2, 2), "overlap": 1.5}, "overlap is 1.5"),
        ({"grid": (2, 2), "overlap": float("nan")}, "overlap is nan"),
        ({"scales": (1.0,)}, "scale 1.0"),
        ({"scales": (0.5, 0.5)}, "twice"),
    ],
)
def test_impossible_policies_are_named(values, word):
    with pytest.raises(DataError, match=word):
        ViewPolicy(**values)


@pytest.mark.parametrize("text", ["", "3", "3by3", "whole+tiles", "3x3@", "3x3@.1.2", "centre", "9x9"])
def test_texts_that_name_no_policy_are_refused(text):
    with pytest.raises(DataError, match="views: "):
        parse_views(text)


def test_documents_that_are_none_are_refused():
    document = ViewPolicy(grid=(2, 2)).to_json()
    with pytest.raises(DataError, match="'flips' is missing"):
        ViewPolicy.from_json({name: value for name, value in document.items() if name != "flips"})
    with pytest.raises(DataError, match="'zoom' is unknown"):
        ViewPolicy.from_json({**document, "zoom": 2})
