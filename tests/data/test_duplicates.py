"""Near-duplicates: the hash, the exactness of the blocked search, what it must not glue together, its speed."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stage1.data import duplicates as leakage
from stage1.data.duplicates import clusters, dhash, informative, near_duplicates, popcount, thumbnail_gray
from stage1.errors import DataError


def grays(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 9)).astype(np.uint8)


def shifted(values: np.ndarray, most: int, rng: np.random.Generator, share: float = 1.0) -> np.ndarray:
    change = rng.integers(-most, most + 1, values.shape) * (rng.random(values.shape) < share)
    return np.clip(values.astype(int) + change, 0, 255).astype(np.uint8)


def brute_force(hashes: np.ndarray, thumbs: np.ndarray, distance: int) -> np.ndarray:
    n = len(hashes)
    near = popcount(hashes[:, None] ^ hashes[None]) <= distance
    flat = thumbs.reshape(n, 72).astype(int)
    near &= np.abs(flat[:, None] - flat[None]).mean(2) <= leakage.MAX_GRAY_DIFFERENCE
    use = informative(thumbs)
    return np.argwhere(np.triu(near & use[:, None] & use[None], 1))


def test_dhash_bit_order() -> None:
    thumb = np.zeros((1, 8, 9), np.uint8)
    thumb[0, 0] = [0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert dhash(thumb)[0] == 0b1
    thumb[0, 2] = [0, 0, 0, 0, 0, 0, 0, 0, 7]
    assert dhash(thumb)[0] == 0b1 | 1 << (2 * 8 + 7)


def test_popcount_without_numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 2**64, 500, dtype=np.uint64)
    expected = [bin(int(value)).count("1") for value in values]
    assert popcount(values).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert popcount(values).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 64),
    seeds=st.integers(1, 12),
    most=st.integers(0, 8),
    share=st.floats(0, 1),
    distance=st.integers(0, 7),
    seed=st.integers(0, 10**6),
)
def test_blocked_search_equals_all_pairs(n: int, seeds: int, most: int, share: float, distance: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = grays(seeds, seed)
    thumbs = shifted(base[rng.integers(0, seeds, n)], most, rng, share)
    hashes = dhash(thumbs)
    np.testing.assert_array_equal(near_duplicates(hashes, thumbs, distance), brute_force(hashes, thumbs, distance))


@pytest.mark.parametrize("distance", range(1, 8))
@pytest.mark.parametrize("ones", [1, 2, 3])
def test_search_inside_big_buckets_equals_all_pairs(ones: int, distance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few bits set: most hashes share their bands, and the search has to go down, or compare all."""
    monkeypatch.setattr(leakage, "_BIG_BUCKET", 16)
    rng = np.random.default_rng(ones)
    draws = [rng.integers(0, 2**64, 500, dtype=np.uint64) for _ in range(ones)]
    hashes = np.unique(np.bitwise_and.reduce(draws))
    chunks = [np.empty((0, 2), np.int64)] + [np.stack(p, 1) for p in leakage._hash_pairs(hashes, 64, distance)]
    found = np.sort(np.concatenate(chunks), axis=1)
    expected = np.argwhere(np.triu(popcount(hashes[:, None] ^ hashes[None]) <= distance, 1))
    assert len(found) == len(expected)  # each pair once
    np.testing.assert_array_equal(found[np.lexsort((found[:, 1], found[:, 0]))], expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_clusters_equal_repeated_merging(case: tuple[int, list[tuple[int, int]]]) -> None:
    n, edges = case
    label = list(range(n))
    for _ in range(n):
        for a, b in edges:
            label[a] = label[b] = min(label[a], label[b])
    assert clusters(n, np.array(edges, dtype=np.int64).reshape(-1, 2)).tolist() == label


def test_crowds_and_pruned_pairs_keep_the_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    thumbs = np.concatenate([shifted(grays(1, seed).repeat(100, 0), 1, rng) for seed in range(4)])
    hashes = dhash(thumbs)
    expected = clusters(len(thumbs), brute_force(hashes, thumbs, 3))
    assert len(near_duplicates(hashes, thumbs, 3)) < len(brute_force(hashes, thumbs, 3))
    np.testing.assert_array_equal(clusters(len(thumbs), near_duplicates(hashes, thumbs, 3)), expected)
    monkeypatch.setattr(leakage, "_ENOUGH_PAIRS", 5)
    monkeypatch.setattr(leakage, "_CHUNK", 7)
    monkeypatch.setattr(leakage, "_CROWD", 10**9)
    np.testing.assert_array_equal(clusters(len(thumbs), near_duplicates(hashes, thumbs, 3)), expected)


def test_a_resized_and_recompressed_copy_is_found_another_photo_is_not() -> None:
    def scene(seed: int) -> np.ndarray:
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC))

    def copy(rgb: np.ndarray) -> np.ndarray:
        stream = io.BytesIO()
        Image.fromarray(rgb).resize((210, 160)).save(stream, "JPEG", quality=40)
        return np.asarray(Image.open(stream))

    pictures = [scene(seed) for seed in range(30)]
    thumbs = np.stack([thumbnail_gray(rgb) for rgb in [*pictures, *map(copy, pictures)]])
    assert near_duplicates(dhash(thumbs), thumbs, 3).tolist() == [[row, row + 30] for row in range(30)]


def test_pictures_without_structure_glue_nothing() -> None:
    rng = np.random.default_rng(0)
    black = shifted(np.zeros((50, 8, 9)), 1, rng)
    fog = shifted(np.full((50, 8, 9), 200), 1, rng)
    sky = shifted(np.tile(np.linspace(180, 186, 8)[:, None], (50, 1, 9)), 1, rng)
    thumbs = np.concatenate([black, fog, sky])
    assert not informative(thumbs).any()
    assert len(near_duplicates(dhash(thumbs), thumbs, 7)) == 0


def test_the_same_hash_at_another_brightness_is_another_picture() -> None:
    thumb = (grays(1) // 4).astype(np.uint8)
    thumbs = np.concatenate([thumb, thumb + 60])
    assert dhash(thumbs)[0] == dhash(thumbs)[1]
    assert len(near_duplicates(dhash(thumbs), thumbs, 7)) == 0


def test_a_hundred_thousand_in_time() -> None:
    """Random pictures with 1,000 planted copies, then a fixed camera: half a second each when the machine is free."""
    n = 100_000
    rng = np.random.default_rng(1)
    thumbs = grays(n)
    thumbs[-1000:] = shifted(thumbs[:1000], 2, rng)
    start = time.process_time()
    found = {tuple(pair) for pair in near_duplicates(dhash(thumbs), thumbs, 3).tolist()}
    assert len(found & {(row, n - 1000 + row) for row in range(1000)}) >= 990
    camera = shifted(grays(1).repeat(n, 0), 1, rng)
    pairs = near_duplicates(dhash(camera), camera, 3)
    assert len(np.unique(clusters(n, pairs))) == 1
    assert time.process_time() - start < 15


@pytest.mark.slow
@pytest.mark.parametrize("distance", [3, 7])
def test_a_hundred_thousand_alike_but_different_in_time(distance: int) -> None:
    """The hard case: hashes of smooth pictures crowd into few buckets. At 7 it takes 15 s on a free core."""
    ramp = 60 + 10 * np.arange(9)
    noisy = ramp + np.random.default_rng(0).normal(0, 8, (100_000, 8, 9))
    thumbs = np.clip(noisy, 0, 255).astype(np.uint8)
    start = time.process_time()
    near_duplicates(dhash(thumbs), thumbs, distance)
    assert time.process_time() - start < (10 if distance == 3 else 60)  # memory shared with other work counts double


def test_bad_arguments_are_named() -> None:
    thumbs = grays(3)
    with pytest.raises(DataError, match="near_duplicate_distance: 8"):
        near_duplicates(dhash(thumbs), thumbs, 8)
    with pytest.raises(DataError, match="do not match"):
        near_duplicates(dhash(thumbs)[:2], thumbs, 3)
