"""The certificate of a bundle recomputed from the scores that travel in it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from stage1.bundle.card import model_card
from stage1.bundle.manifest import (
    CARD,
    CERTIFICATE,
    MANIFEST,
    SELECTION,
    read_calibration,
    read_manifest,
    read_selection,
    read_views,
)
from stage1.bundle.recount import claims_in_words, recounted
from stage1.calibration import CALIBRATION_FILE, made_again
from stage1.errors import Stage1Error
from stage1.policy import Certificate, Policy, load_policy, refit
from stage1.policy.certificate import percent
from stage1.policy.joint import as_earlier
from stage1.policy.schema import CERTIFICATE_KIND
from stage1.scores import Scores
from stage1.storage.documents import read_document
from stage1.storage.files import digest_ids
from stage1.version import __version__

# Binomial tails differ in the last digits between versions of scipy; a threshold is a score that was read, and exact.
_RELATIVE = 1e-9
# A map is found by iterating: its parameters agree to what the stopping rule asks for.
_MAP_RELATIVE = 1e-6
OTHER_VERSION = "--accept-other-version"

# What a reader believes and nothing in a bundle can show, by field of bundle.json; docs/GUARANTEES.md says so in words.
# The scores and labels in calibration.parquet and selection.parquet, that the ledger lists every look, how groups were
# dealt, and intervals over groups are taken on trust as well.
TRUSTED = (
    "name",
    "preprocessing",
    "backbone",
    "data",
    "evaluation.role",
    "evaluation.n_groups",
    "evaluation.unit",
    "evaluation.level",
    "evaluation.resamples",
    "evaluation.metrics",
    "evaluation.exit_confusion",
    "evaluation.views",
    "evaluation.argmax",
    "evaluation.label_shift",
    "created_from.config",
    "created_from.evaluation",
    "created_from.versions",
)


@dataclass(frozen=True, slots=True)
class Recomputed:
    """problems: a line for each difference (file, field, what it says, what comes out). notes: not compared."""

    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


def recompute(folder: str | os.PathLike[str], *, accept_other_version: bool = False) -> Recomputed:
    """Refit the policy on calibration.parquet, and compare thresholds, certificate, map and model card with the result.

    Target, confidence, unit, flags, attempt and seed are those that the certificate states; the map is chosen again on
    selection.parquet among the candidates that calibration.json lists; the card is written again from all of it.
    A bundle of another version of stage1 may have other thresholds and other words than would be made here. Its
    thresholds are not found anew: errors, exits and exact bounds are counted again at them. Its words cannot be made
    again, which is a problem, or with `accept_other_version` a note that says what was shown.
    No problems: the certificate follows from the data. Raises Stage1Error kinds where the bundle cannot be read;
    whether its bytes are the original ones is for `verify_bundle` to say.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    policy_file = manifest["policy_file"]
    policy = load_policy(folder / policy_file)
    reported = policy.certificate
    if reported is None:
        return Recomputed((f"{CERTIFICATE}: missing; restore the bundle",))
    calibration, selection = read_calibration(folder), read_selection(folder)
    if manifest["stage1_version"] != __version__:
        return _of_another_version(policy, reported, calibration, selection, manifest, accept_other_version)
    try:
        again = refit(policy, calib=calibration, select=selection)
    except Stage1Error as error:
        return Recomputed((f"{CERTIFICATE}: cannot be made again from the calibration data ({error})",))
    if again.certificate is None:
        return Recomputed((f"{CERTIFICATE}: the policy {reported.policy!r} gave none",))
    # What the file says, not what this version reads into it; without joint bounds, those of each risk alone.
    before = {
        name: value
        for name, value in read_document(folder / CERTIFICATE, CERTIFICATE_KIND).items()
        if name != "schema_version"
    }
    after = again.certificate if reported.bounds is not None else as_earlier(again.certificate)
    problems = (
        *_map_problems(policy, selection, reported.seed),
        *(f"{policy_file}: {line}" for line in _differences(policy.to_document(), again.to_document(), True)),
        *(f"{CERTIFICATE}: {line}" for line in _differences(before, after.to_document(), True)),
        *_card_problems(folder, manifest, reported),
    )
    return Recomputed(problems)


def _of_another_version(
    policy: Policy,
    reported: Certificate,
    calibration: Scores,
    selection: Scores | None,
    manifest: Mapping[str, Any],
    accepted: bool,
) -> Recomputed:
    """Its numbers counted again at its own thresholds (bundle/recount.py); its texts cannot be made again."""
    problems = [
        *_map_problems(policy, selection, reported.seed),
        *(f"{CERTIFICATE}: {line}; do not rely on this bundle" for line in recounted(policy, reported, calibration)),
    ]
    untold = (
        f"texts not compared and thresholds not found anew: stage1-pro {manifest['stage1_version']} wrote this bundle,"
        f" this is {__version__}"
    )
    if not accepted:
        problems.append(
            f"{untold}; verify with that version, or have the numbers counted again at its thresholds with"
            f" {OTHER_VERSION} and believe no sentence of it"
        )
        return Recomputed(tuple(problems))
    return Recomputed(
        tuple(problems),
        (
            (
                f"{untold}. Believe no sentence of {CERTIFICATE} and {CARD}; what its own tests showed, with"
                f" confidence {percent(reported.headline_confidence)}, is: {claims_in_words(reported)}"
            ),
        ),
    )


def _card_problems(folder: Path, manifest: Mapping[str, Any], certificate: Certificate) -> Iterator[str]:
    """The model card, written again from the documents; its first line that differs."""
    if "evaluation" not in manifest:
        yield f"{MANIFEST}: evaluation is missing, so {CARD} cannot be written again; do not rely on this bundle"
        return
    wanted = model_card(manifest, certificate, manifest["evaluation"], read_views(folder, certificate))
    found = (folder / CARD).read_bytes().decode("utf-8", "replace")
    if found == wanted:
        return
    pairs = zip_longest(found.split("\n"), wanted.split("\n"), fillvalue="")
    number, (said, due) = next((row, pair) for row, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    yield (
        f"{CARD}: line {number} is {said[:160]!r}, the documents say {due[:160]!r}; do not rely on this bundle"
        if said != due
        else f"{CARD}: is not what the documents say; do not rely on this bundle"
    )


def _map_problems(policy: Policy, selection: Scores | None, seed: int) -> Iterator[str]:
    """A map is allowed to be anything, but it must come from val_select: from val_calib it would know the answers."""
    frozen = policy.frozen
    if frozen is None:
        return
    if selection is None or selection.labels is None:
        if frozen.map.n:
            yield (
                f"{CALIBRATION_FILE}: no labelled {SELECTION}, so its map cannot be made again; do not rely on its"
                " probabilities"
            )
        return
    if selection.ids is not None:
        fitted_on = frozen.map.fitted_on
        if fitted_on is not None and fitted_on != digest_ids(selection.ids.tolist()):
            yield (
                f"{CALIBRATION_FILE}: was fitted on other images than those of {SELECTION}; do not rely on this bundle"
            )
            return
    try:
        again = made_again(frozen, selection, seed)
    except Stage1Error as error:
        yield (
            f"{CALIBRATION_FILE}: its map cannot be made again from {SELECTION} ({error}); do not rely on its"
            " probabilities"
        )
        return
    for line in _differences(frozen.to_document(), again.to_document(), True, relative=_MAP_RELATIVE):
        yield f"{CALIBRATION_FILE}: {line}"


def _differences(
    reported: Any, again: Any, all_fields: bool, where: str = "", relative: float = _RELATIVE
) -> Iterator[str]:
    """all_fields: also fields that only `again` has."""
    if isinstance(reported, dict) and isinstance(again, dict):
        for name in [*reported, *(name for name in again if all_fields and name not in reported)]:
            yield from _differences(
                reported.get(name), again.get(name), all_fields, f"{where}.{name}" if where else name, relative
            )
    elif isinstance(reported, list) and isinstance(again, list) and len(reported) == len(again):
        for place, pair in enumerate(zip(reported, again, strict=True)):
            yield from _differences(*pair, all_fields, f"{where}[{place}]", relative)
    elif isinstance(reported, float) and isinstance(again, float):
        if not math.isclose(reported, again, rel_tol=relative, abs_tol=1e-300):
            yield f"{where} is {reported!r}, recomputed {again!r}; do not rely on this bundle"
    elif reported != again or isinstance(reported, bool) != isinstance(again, bool):
        yield f"{where} is {reported!r}, recomputed {again!r}; do not rely on this bundle"
