"""Near-duplicates: a 64-bit dHash per image, a blocked search without an all-pairs matrix, and clusters."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage1.errors import DataError

Pairs = NDArray[np.int64]

# Mean absolute difference of two 9x8 gray thumbnails (0..255) up to which equal-looking hashes count as duplicates.
# Re-encoded or resized copies stay below 2; on 2,235 road photos of 28 segments the nearest hash-alike of *different*
# segments is above 4 at every distance up to 7, while at distance 3 the hash alone would glue 34 pairs across segments.
MAX_GRAY_DIFFERENCE = 4.0
# A picture needs this many of the 64 comparisons to differ by 2 gray levels or more. Below, noise decides the bits
# (black frames, fog, blank sky), and all such pictures would look alike: they take no part in the search.
MIN_CLEAR_BITS = 24
# Above this many images with one and the same hash (a fixed camera), those that also agree within 1 gray level are
# joined to the first of them, and only that one is compared on.
_CROWD = 64
_CROWD_DIFFERENCE = 1.0
# Verified pairs after which pairs inside one cluster are no longer compared: they cannot change a cluster.
_ENOUGH_PAIRS = 1_000_000
_BIG_BUCKET = 2048
_CHUNK = 1 << 20


def thumbnail_gray(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Gray thumbnail uint8 [8, 9] (box filter over the whole image) of RGB pixels uint8 [H, W, 3]."""
    image = Image.fromarray(rgb).convert("L").resize((9, 8), Image.Resampling.BOX)
    return np.asarray(image)


def dhash(grays: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Difference hash: uint8 [N, 8, 9] -> uint64 [N]; bit 8 r + c: pixel (r, c+1) is brighter than (r, c)."""
    bits = grays[:, :, 1:] > grays[:, :, :-1]
    packed = np.packbits(bits.reshape(len(grays), 64), axis=1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u8").reshape(len(grays)).astype(np.uint64)


def informative(grays: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """bool [N]: pictures with enough structure for their hash to mean something (MIN_CLEAR_BITS)."""
    steps = np.abs(np.diff(grays.astype(np.int16), axis=2))
    return np.asarray((steps >= 2).sum(axis=(1, 2)) >= MIN_CLEAR_BITS)


def near_duplicates(hashes: NDArray[np.uint64], grays: NDArray[np.uint8], distance: int) -> Pairs:
    """Pairs of near-duplicate images, int64 [P, 2], row i < row j, sorted.

    hashes: uint64 [N], see `dhash`. grays: uint8 [N, 8, 9]. distance: 0..7.
    Near-duplicate: both informative, Hamming distance of the hashes <= `distance`, and mean absolute difference of the
    thumbnails <= MAX_GRAY_DIFFERENCE. Every such pair is returned, with two exceptions that bound the work and leave
    the clusters as they are: in crowds of one hash only pairs with the first alike, and beyond a million pairs only
    those that join two clusters.
    Raises DataError for a distance outside 0..7 or arrays that do not match.
    """
    if not 0 <= distance <= 7:
        raise DataError(f"near_duplicate_distance: {distance} is outside 0..7")
    if hashes.shape != (len(hashes),) or grays.shape != (len(hashes), 8, 9):
        raise DataError(f"near-duplicates: hashes {hashes.shape} and thumbnails {grays.shape} do not match")
    flat = grays.reshape(len(grays), 72)
    rows = np.flatnonzero(informative(grays))
    if len(rows) < 2:
        return np.empty((0, 2), np.int64)
    rows = rows[np.argsort(hashes[rows], kind="stable")]
    rows, found = _thinned(hashes, flat, rows)
    unique, first, count = np.unique(hashes[rows], return_index=True, return_counts=True)
    chunks = [found]
    total, labels = len(found), None
    for left, right in _candidates(unique, first, count, distance):
        pairs = np.stack([rows[left], rows[right]], axis=1)
        if total > _ENOUGH_PAIRS:
            if labels is None:
                labels = clusters(len(hashes), np.concatenate(chunks))
            pairs = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
        difference = np.abs(flat[pairs[:, 0]].astype(np.int16) - flat[pairs[:, 1]]).sum(axis=1)
        pairs = pairs[difference <= MAX_GRAY_DIFFERENCE * 72]
        if len(pairs):
            chunks.append(pairs)
            total, labels = total + len(pairs), None
    result = np.sort(np.concatenate(chunks), axis=1)
    return np.asarray(result[np.lexsort((result[:, 1], result[:, 0]))], dtype=np.int64)


def clusters(n: int, pairs: Pairs) -> NDArray[np.int64]:
    """Connected components: int64 [n], the smallest member of each element's cluster. pairs: int [P, 2] in 0..n-1."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(pairs), dtype=np.bool_)
    graph = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, component = connected_components(graph, directed=False)
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    return np.asarray(first[inverse.reshape(n)], dtype=np.int64)


def _thinned(
    hashes: NDArray[np.uint64], flat: NDArray[np.uint8], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Pairs]:
    """Join crowds of one hash to their first images; `rows` is sorted by hash. Returns the rows left, and the pairs."""
    _, first, count = np.unique(hashes[rows], return_index=True, return_counts=True)
    dropped: list[NDArray[np.int64]] = []
    pairs = [np.empty((0, 2), np.int64)]
    for start, size in zip(first[count > _CROWD], count[count > _CROWD], strict=True):
        open_rows = rows[start : start + size]
        while len(open_rows) > 1:
            leader, rest = open_rows[0], open_rows[1:]
            difference = np.abs(flat[rest].astype(np.int16) - flat[leader]).sum(axis=1)
            alike = difference <= _CROWD_DIFFERENCE * 72
            dropped.append(rest[alike])
            pairs.append(np.stack([np.full(int(alike.sum()), leader), rest[alike]], axis=1))
            open_rows = rest[~alike]
    if dropped:
        rows = rows[~np.isin(rows, np.concatenate(dropped))]
    return rows, np.concatenate(pairs)


def _candidates(
    unique: NDArray[np.uint64], first: NDArray[np.int64], count: NDArray[np.int64], distance: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of positions (in the order of the hashes) whose hashes are within `distance`, in chunks."""
    if (count > 1).any():
        yield from _gathered(_bucket_pairs(count))
    if distance == 0:
        return
    # A fixed shuffle of the bits: neighbouring bits of a dHash agree more often than not, and a band made of
    # neighbours would put many unlike pictures into one bucket. Hamming distance does not depend on the order.
    order = np.random.default_rng(64).permutation(64)
    bits = np.unpackbits(unique.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    packed = np.ascontiguousarray(np.packbits(bits[:, order], axis=1, bitorder="little"))
    shuffled = packed.view("<u8").reshape(-1).astype(np.uint64)
    for a, b in _gathered(_hash_pairs(shuffled, 64, distance)):
        yield from _products(first, count, a, b)


def _products(
    first: NDArray[np.int64], count: NDArray[np.int64], a: NDArray[np.int64], b: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All image pairs of hash pairs (a, b), at most about _CHUNK at a time."""
    sizes = count[a] * count[b]
    cuts = np.flatnonzero(np.diff(np.cumsum(sizes) // _CHUNK)) + 1
    for part in np.split(np.arange(len(a)), cuts):
        size = sizes[part]
        pair = np.repeat(part, size)
        inner = np.arange(len(pair)) - np.repeat(np.cumsum(size) - size, size)
        yield first[a[pair]] + inner // count[b[pair]], first[b[pair]] + inner % count[b[pair]]


def _hash_pairs(
    hashes: NDArray[np.uint64], width: int, distance: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of distinct hashes (lowest `width` bits) at Hamming distance <= `distance`, each pair once.

    Pigeonhole: of distance + 1 bands, two such hashes agree in at least one. Inside a big bucket the same holds for the
    remaining bits, so the search continues there with narrower bands, as long as that halves the comparisons: hashes
    that are nearly all alike are compared one with all, and the recursion ends.
    """
    n = len(hashes)
    edges = [width * band // (distance + 1) for band in range(distance + 2)]
    runs = []
    if n > _BIG_BUCKET and width > distance:
        for low, high in pairwise(edges):
            keys = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
            order = np.argsort(keys, kind="stable").astype(np.int64)
            _, start, count = np.unique(keys[order], return_index=True, return_counts=True)
            runs.append((low, high, order, start, count))
    if not runs or 2 * sum(int((count.astype(np.float64) ** 2).sum()) for *_, count in runs) > n * n:
        for offset in range(1, n):
            left = np.flatnonzero(popcount(hashes[:-offset] ^ hashes[offset:]) <= distance)
            yield left, left + offset
        return
    for low, high, order, start, count in runs:
        big = count > _BIG_BUCKET
        for at, size in zip(start[big], count[big], strict=True):
            members = order[at : at + size]
            below = hashes[members] & np.uint64((1 << low) - 1)
            above = hashes[members] >> np.uint64(high) if high < 64 else np.zeros(len(members), np.uint64)
            rest = below | (above << np.uint64(low))
            for a, b in _hash_pairs(rest, width - (high - low), distance):
                yield _first_found(hashes, members[a], members[b], edges, low)
        small = order[np.repeat(~big, count)]
        in_order = hashes[small]
        for a, b in _bucket_pairs(count[~big]):
            near = popcount(in_order[a] ^ in_order[b]) <= distance
            yield _first_found(hashes, small[a[near]], small[b[near]], edges, low)


def _first_found(
    hashes: NDArray[np.uint64], a: NDArray[np.int64], b: NDArray[np.int64], edges: list[int], low: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keep a pair found in the band that starts at bit `low` only where no earlier band agrees: it comes once."""
    different = hashes[a] ^ hashes[b]
    keep = np.ones(len(a), dtype=np.bool_)
    for start, end in pairwise(edges):
        if start >= low:
            break
        keep &= (different >> np.uint64(start)) & np.uint64((1 << (end - start)) - 1) != 0
    return a[keep], b[keep]


def _bucket_pairs(
    count: NDArray[np.int64],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs of positions inside runs of lengths `count`. One yield per offset inside the run."""
    remaining = np.repeat(np.cumsum(count), count) - np.arange(count.sum())
    active = np.flatnonzero(remaining > 1)
    offset = 1
    while len(active):
        yield active, active + offset
        offset += 1
        active = active[remaining[active] > offset]


def _gathered(
    parts: Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The same pairs in fewer, larger chunks."""
    held: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    size = 0
    for part in parts:
        if len(part[0]):
            held.append(part)
            size += len(part[0])
        if size >= _CHUNK:
            yield np.concatenate([a for a, _ in held]), np.concatenate([b for _, b in held])
            held, size = [], 0
    if held:
        yield np.concatenate([a for a, _ in held]), np.concatenate([b for _, b in held])


def popcount(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Number of 1 bits of each value, uint8."""
    if hasattr(np, "bitwise_count"):  # numpy 2
        return np.asarray(np.bitwise_count(values), dtype=np.uint8)
    pieces = np.ascontiguousarray(values).view(np.uint16).reshape(*values.shape, 4)
    return np.asarray(_ones_16()[pieces].sum(axis=-1), dtype=np.uint8)


@cache
def _ones_16() -> NDArray[np.uint8]:
    return np.array([bin(value).count("1") for value in range(1 << 16)], dtype=np.uint8)
