"""The ledger of a bundle: whether the confidence of its certificate counts the looks that it lists, and since when."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from stage1.errors import Stage1Error
from stage1.policy import Certificate
from stage1.policy.attempts import standing
from stage1.policy.image_keys import image_set
from stage1.policy.ledger import LEDGER_FILE, ledger_digest, ledger_of
from stage1.policy.schema import ATTEMPTS_KIND
from stage1.scores import Scores
from stage1.storage.documents import read_document


def ledger_problems(folder: Path, certificate: Certificate, calibration: Scores) -> Iterator[str]:
    """What the certificate says of looks and the ledger beside it does not; every look is counted again."""
    counted, path = certificate.attempts, folder / LEDGER_FILE
    named = None if counted is None else counted.ledger
    if counted is None or named is None:
        if path.is_file():
            yield f"{LEDGER_FILE}: the certificate names no ledger"
        return
    if not path.is_file():
        yield f"{LEDGER_FILE}: missing; the certificate names it (sha256 {named[:12]})"
        return
    try:
        document = read_document(path, ATTEMPTS_KIND)
        looks, _ = ledger_of(document, path)
    except Stage1Error as error:
        yield str(error).replace(f"{folder}/", "")
        return
    if "looks" not in document or ledger_digest(document) != named:
        yield f"{LEDGER_FILE}: is not the ledger that the certificate names (sha256 {named[:12]})"
        return
    images = image_set(calibration)
    own = next((look for look in looks if look.identity == (counted.look, images.digest)), None)
    if own is None or own.wish is None or own.confidence is None:
        yield f"{LEDGER_FILE}: has no look that this certificate is"
        return
    if own.images.keys.tolist() != images.keys.tolist():
        yield f"{LEDGER_FILE}: names other images than calibration.parquet holds"
    if not math.isclose(own.confidence, certificate.confidence, rel_tol=1e-12):
        yield f"certificate.json: confidence is {certificate.confidence!r}, {LEDGER_FILE} has {own.confidence!r}"
    again = asdict(standing(looks, own, own.wish, own.plan)[0])
    for name, value in asdict(counted).items():
        if name != "ledger" and value != again[name]:
            yield f"certificate.json: attempts.{name} is {value!r}, {LEDGER_FILE} gives {again[name]!r}"


def ledger_notes(folder: Path, certificate: Certificate) -> Iterator[str]:
    """Where looks may be missing: no ledger, or one that is younger than its calibration images."""
    if certificate.attempts is None or certificate.attempts.ledger is None:
        if certificate.certified:
            yield (
                "certificate.json: names no ledger: how often its calibration images were looked at was not counted by"
                " stage1"
            )
        return
    _, dealt = ledger_of(read_document(folder / LEDGER_FILE, ATTEMPTS_KIND), folder / LEDGER_FILE)
    if certificate.calib_digest not in dealt:
        yield (
            f"{LEDGER_FILE}: is younger than its calibration images: it was begun by a look at them, not when they were"
            " dealt. Looks from before are not in it, and the confidence does not count them"
        )
