from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.data.augment import CLIENT, RECIPES, augment, client, describe, training_tensor
from stage1.errors import ConfigError
from stage1.runtime.preprocessing import Preprocessing, to_tensor

SPEC = Preprocessing(size=48)
NAMES = ("none", "moderate", "aggressive", "client")


def scene(height: int = 120, width: int = 160) -> np.ndarray:
    """Smooth colours with an orange square on the left: structure that every distortion moves."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 / width, y * 255 / height, np.full_like(x, 90)], axis=2).astype(np.uint8)
    rgb[height // 3 : height // 2, width // 8 : width // 3] = (250, 130, 10)
    return rgb


@pytest.mark.parametrize("name", NAMES)
def test_one_image_is_a_function_of_seed_epoch_index_and_view(name):
    rgb = scene()
    before = rgb.copy()

    def make(**place):
        return training_tensor(rgb, name, SPEC, **{"seed": 1, "epoch": 2, "index": 3, **place})

    first = make()
    assert first.shape == (3, 48, 48)
    assert first.dtype == np.float32
    np.random.default_rng().random()
    np.testing.assert_array_equal(make(), first)
    others = [make(seed=2), make(epoch=3), make(index=4), make(view=1)]
    assert all(np.array_equal(other, first) for other in others) == (name == "none")
    if name != "none":
        assert len({other.tobytes() for other in [first, *others]}) == 5
    np.testing.assert_array_equal(rgb, before)


def test_none_is_what_evaluation_does():
    for spec in (SPEC, Preprocessing(size=32, fit="center_crop", interpolation="bilinear")):
        made = training_tensor(scene(), "none", spec, seed=0, epoch=9, index=9)
        np.testing.assert_array_equal(made, to_tensor(scene(), spec))


def distance(name: str) -> float:
    reference = to_tensor(scene(), SPEC)
    made = [training_tensor(scene(), name, SPEC, seed=0, epoch=0, index=i) for i in range(60)]
    return float(np.mean([np.abs(tensor - reference).mean() for tensor in made]))


def test_aggressive_moves_pixels_further_than_moderate():
    assert 0.02 < distance("moderate") < 0.8 * distance("aggressive")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(NAMES),
    st.integers(0, 2**31),
    st.sampled_from([("squash", 1.0), ("center_crop", 1.0), ("center_crop", 0.875), ("letterbox", 1.0)]),
)
def test_every_size_of_image_gives_a_finite_tensor(height, width, name, seed, fit):
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    tensor = training_tensor(
        rgb, name, Preprocessing(size=32, fit=fit[0], crop_pct=fit[1]), seed=seed, epoch=0, index=0
    )
    assert tensor.shape == (3, 32, 32)
    assert np.isfinite(tensor).all()
    assert np.abs(tensor).max() <= 1.0 + 1e-6


def test_what_is_learned_from_has_the_shape_of_what_is_judged():
    rgb = np.full((40, 100, 3), 255, np.uint8)
    letterbox = Preprocessing(size=50, fit="letterbox", mean=(0, 0, 0), std=(1, 1, 1))
    for index in range(20):
        made = augment(rgb, "moderate", letterbox, np.random.default_rng(index))
        lit = made.max(axis=2) > 100
        assert lit.sum() == 20 * 50, "the frame keeps its shape"
        assert lit[15:35].all()
    ramp = np.repeat(np.linspace(0, 250, 100).astype(np.uint8)[None, :, None], 100, axis=0).repeat(3, axis=2)
    crop = Preprocessing(size=64, fit="center_crop", crop_pct=0.5)
    for index in range(20):
        made = augment(ramp, "moderate", crop, np.random.default_rng(index))
        again = training_tensor(ramp, "moderate", crop, seed=index, epoch=0, index=0)
        once = augment(ramp, "moderate", crop, np.random.default_rng([index, 0, 0, 0]))
        # What is cropped already is not cropped again, and it is as much as evaluation sees.
        np.testing.assert_allclose(again, once.transpose(2, 0, 1) / 127.5 - 1, atol=1e-5)
        shown = abs(int(made[32, -1, 0]) - int(made[32, 0, 0])) / 250
        assert shown < 0.5 * np.sqrt(1.18) * 1.44 + 0.02, "half of the side, jittered, brighter by at most 1.44"


def test_flips_come_half_the_time_and_crops_keep_the_share_they_say():
    rgb = np.zeros((100, 100, 3), np.uint8)
    rgb[:, :, 0] = np.linspace(0, 250, 100)[None, :]  # red grows to the right: slope tells flip and width of the crop
    flips, widths = 0, []
    for index in range(400):
        made = augment(rgb, "moderate", Preprocessing(size=64), np.random.default_rng(index))
        red = made[32, :, 0].astype(float)
        flips += red[-1] < red[0]
        widths.append(abs(red[-1] - red[0]))
    assert 0.42 < flips / 400 < 0.58
    area = RECIPES["moderate"].area[0]
    # brightness and contrast stretch red by up to 1.44; without them a width of sqrt(area / 1.18) at least is kept
    assert min(widths) > 250 * np.sqrt(area / 1.18) * 0.6


def level_images(level: int, n: int = 80) -> list[np.ndarray]:
    return [client(scene(), np.random.default_rng(i), level) for i in range(n)]


def chroma_of(images: list[np.ndarray]) -> np.ndarray:
    values = np.stack(images).astype(float)
    return (values.max(axis=3) - values.min(axis=3)).mean(axis=(1, 2))


def test_client_levels_are_the_table_of_the_validator():
    plain = level_images(0, 3)
    assert all(image.shape == (224, 224, 3) for image in plain)
    assert np.array_equal(plain[0], plain[1])  # nothing is drawn at L0
    # L0 is the centre square: the frame's left eighth is gone, and JPEG keeps the rest close.
    y, x = 112, 112
    assert np.abs(plain[0][y, x].astype(int) - scene()[60, 80].astype(int)).max() < 12
    rotated = level_images(1)
    assert np.mean([(image[0, 0] < 12).all() for image in rotated]) > 0.1  # black corners of the rotation
    assert len({image.tobytes() for image in rotated}) == 80
    # chroma off in half of L2, in a third of L3; at .4 and .3 colour is nearly gone
    base = float(np.median(chroma_of(rotated)))
    weak = [float((chroma_of(level_images(level)) < 0.62 * base).mean()) for level in (1, 2, 3)]
    assert weak[0] < 0.1
    assert 0.35 < weak[1] < 0.65
    assert 0.5 < weak[2] < 0.85


def test_client_noise_and_blur_come_at_the_last_level_only():
    flat = np.full((224, 224, 3), 128, np.uint8)

    def spread(level: int) -> np.ndarray:
        made = [client(flat, np.random.default_rng(i), level)[60:160, 60:160].astype(float) for i in range(60)]
        return np.array([image.std() / 255 for image in made])

    assert spread(2).max() < 0.01  # a flat patch stays flat, where the black corners do not reach
    noisy = spread(3)
    # in two of three images; blur takes most of it away again in two of three of these
    assert 0.5 < (noisy > 0.002).mean() < 0.82
    assert 0.1 < (noisy > 0.03).mean() < 0.4
    # Added in studio range it comes back 3.8 times as large, on the average of R, G and B.
    assert noisy.max() < np.sqrt(3.8 * CLIENT.noise_variance[2]) * 1.2


def test_levels_are_drawn_equally_often():
    levels = [int(np.random.default_rng(i).integers(4)) for i in range(400)]
    drawn = [client(scene(), np.random.default_rng(i)) for i in range(40)]
    for i, image in enumerate(drawn):  # the level is the first number drawn; the rest goes on from there
        rng = np.random.default_rng(i)
        rng.integers(4)
        np.testing.assert_array_equal(image, client(scene(), rng, levels[i]))
    assert all(70 < levels.count(level) < 130 for level in range(4))


def test_descriptions_are_json_and_tell_recipes_apart():
    texts = [json.dumps(describe(name), sort_keys=True) for name in NAMES]
    assert len(set(texts)) == 4
    assert json.loads(texts[3])["chroma"] == [1.0, 0.4, 0.3]
    for call in (lambda: describe("wild"), lambda: training_tensor(scene(), "wild", SPEC, seed=0, epoch=0, index=0)):
        with pytest.raises(ConfigError, match=r"'wild' is unknown; use none, moderate, aggressive or client"):
            call()
