"""Making the certificate of a bundle again, from the scores that travel in it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from stage1.bundle.manifest import CERTIFICATE, SELECTION, read_calibration, read_manifest, read_selection
from stage1.calibration import CALIBRATION_FILE
from stage1.errors import Stage1Error
from stage1.files import digest_ids
from stage1.policy import CalibratedPolicy, Policy, load_policy, refit
from stage1.scores import Scores

# Binomial tails differ in the last digits between versions of scipy; a threshold is a score that was read, and exact.
_RELATIVE = 1e-9
# Wording may improve from version to version; the numbers may not change.
_WORDS = ("statement", "method", "assumptions", "void_if", "reason", "needed")


def recompute(folder: str | os.PathLike[str]) -> list[str]:
    """Fit the policy anew on calibration.parquet and compare thresholds and certificate value by value.

    Target, confidence, unit, flags and seed are those that the certificate states. Texts are compared only where the
    same version of stage1 wrote them.
    Returns one line per difference (file, field, what it says, what comes out); none: the certificate follows from the
    data. Raises Stage1Error kinds where the bundle cannot be read; whether its bytes are the original ones is for
    `verify_bundle` to say.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    policy_file = manifest["policy_file"]
    policy = load_policy(folder / policy_file)
    stated = policy.certificate
    if stated is None:
        return [f"{CERTIFICATE}: missing; restore the bundle"]
    calibration, selection = read_calibration(folder), read_selection(folder)
    try:
        again = refit(policy, calib=calibration, select=selection)
    except Stage1Error as error:
        return [f"{CERTIFICATE}: cannot be made again from the calibration data ({error})"]
    if again.certificate is None:
        return [f"{CERTIFICATE}: the policy {stated.policy!r} gave none"]
    before, after = stated.to_document(), again.certificate.to_document()
    if manifest["stage1_version"] != metadata.version("stage1-pro"):
        before, after = (
            {name: value for name, value in document.items() if name not in _WORDS} for document in (before, after)
        )
    return [
        *_map_problems(policy, selection),
        *(f"{policy_file}: {line}" for line in _differences(policy.to_document(), again.to_document())),
        *(f"{CERTIFICATE}: {line}" for line in _differences(before, after)),
    ]


def _map_problems(policy: Policy, selection: Scores | None) -> Iterator[str]:
    """A map is allowed to be anything, but it must come from val_select: from val_calib it would know the answers."""
    if isinstance(policy, CalibratedPolicy) and selection is not None and selection.ids is not None:
        fitted_on = policy.frozen.map.fitted_on
        if fitted_on is not None and fitted_on != digest_ids(selection.ids.tolist()):
            yield f"{CALIBRATION_FILE}: was fitted on other images than those of {SELECTION}; do not rely on this bundle"


def _differences(stated: Any, again: Any, where: str = "") -> Iterator[str]:
    if isinstance(stated, dict) and isinstance(again, dict):
        for name in [*stated, *(name for name in again if name not in stated)]:
            yield from _differences(stated.get(name), again.get(name), f"{where}.{name}" if where else name)
    elif isinstance(stated, float) and isinstance(again, float):
        if not math.isclose(stated, again, rel_tol=_RELATIVE, abs_tol=1e-300):
            yield f"{where} is {stated!r}, recomputed {again!r}; do not rely on this bundle"
    elif stated != again:
        yield f"{where} is {stated!r}, recomputed {again!r}; do not rely on this bundle"
