"""The verdict on what a folder holds: a run directory, or what `calibrate --scores` made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stage1.errors import MissingError
from stage1.evaluation.schema import EVALUATION_KIND
from stage1.evaluation.verdict import Seen, Verdict, judge
from stage1.policy import decided_on, load_policy
from stage1.policy.schema import CERTIFICATE_KIND
from stage1.scores import Scores, read_role, read_scores
from stage1.stages.reporting import SCORES_FILE
from stage1.storage.documents import read_document


def verdict_of_calibration(folder: Path, calib: Scores | None = None) -> Verdict:
    """Before val_test is opened: the certificate, and how model and answers did on the calibration rows themselves.

    calib: these rows, where they are at hand; None: as the folder keeps them. Their labels are read after the
    certificate is written; nothing is chosen by them. Raises MissingError.
    """
    policy = load_policy(folder)
    if policy.certificate is None:
        raise MissingError(f"{folder / 'certificate.json'}: no such file; run `stage1 calibrate` again")
    calib = _calibration_rows(folder) if calib is None else calib
    decision, ranked = policy.decide(calib), decided_on(policy, calib)
    seen = Seen.of_scores(ranked, decision.exit, decision.label, policy.classes, "val_calib")
    return judge(policy.certificate.to_document(), None, seen)


def verdict_of_evaluation(folder: Path, evaluation: Mapping[str, Any] | None = None) -> Verdict:
    """With val_test. evaluation: the document; None: evaluation.json of the folder (with certificate.json)."""
    document = read_document(folder / "evaluation.json", EVALUATION_KIND) if evaluation is None else evaluation
    path = folder / "certificate.json"
    return judge(read_document(path, CERTIFICATE_KIND) if path.is_file() else None, document)


def _calibration_rows(folder: Path) -> Scores:
    if (folder / SCORES_FILE).is_file():
        scores, roles = read_scores(folder / SCORES_FILE)
        if roles is not None:
            return scores.take(roles == "val_calib")
    return read_role(folder, "val_calib")
