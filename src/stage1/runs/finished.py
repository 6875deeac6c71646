"""A finished run as comparisons and acceptance read it: its config, split, scores and policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stage1.config import RunConfig
from stage1.data.table import SampleTable
from stage1.errors import DataError, IntegrityError, MissingError
from stage1.evaluation.arms import ArmRun
from stage1.policy import POLICY_FILES, Policy, load_policy
from stage1.runs.directory import stored_config
from stage1.scores import ROLES, Scores, read_role
from stage1.storage.files import digest_ids


@dataclass(frozen=True)
class FinishedRun:
    """One run directory that takes part."""

    path: Path
    config: RunConfig
    table: SampleTable

    @classmethod
    def read(cls, path: Path) -> FinishedRun:
        """Raises MissingError where it is no run directory with a split."""
        config = stored_config(path)
        if config is None:
            raise MissingError(
                f"{path}: not a run directory; compare run directories, or two score files (with --values)"
            )
        return cls(path, config, SampleTable.read(path / "samples.parquet"))

    @cached_property
    def digests(self) -> dict[str, str]:
        """Digest of the image ids of each role."""
        return {role: digest_ids(self.table.ids[self.table.rows(role)].tolist()) for role in ROLES}

    @cached_property
    def policy(self) -> Policy | None:
        """The certified (or refused) exit policy; None where the run was not calibrated."""
        there = any((self.path / name).is_file() for name in POLICY_FILES.values())
        return load_policy(self.path) if there and (self.path / "certificate.json").is_file() else None

    @property
    def target(self) -> str | None:
        """What the policy was asked to certify, as text; None without one."""
        if self.policy is None or self.policy.certificate is None:
            return None
        certificate = self.policy.certificate
        risks = {name: risk.target for name, risk in certificate.risks.items()}
        return json.dumps([risks, certificate.confidence, certificate.assume_iid], sort_keys=True)

    def scores(self, role: str) -> Scores:
        """Scores of a role. Raises IntegrityError where they are not of this split."""
        scores = read_role(self.path, role)
        if scores.ids is None or digest_ids(scores.ids.tolist()) != self.digests[role]:
            raise IntegrityError(f"{self.path}: scores of {role} are of another split; run `stage1 score {self.path}`")
        return scores

    @property
    def certified(self) -> bool | None:
        """Whether it certified anything; None where it was not calibrated."""
        certificate = None if self.policy is None else self.policy.certificate
        return None if certificate is None else certificate.certified

    @property
    def scored(self) -> int:
        """How many images the stage `score` answers."""
        return sum(len(self.table.rows(role)) for role in ROLES if role != "train")

    def arm_run(self, role: str, *, decide: bool) -> ArmRun:
        scores = self.scores(role)
        if not decide or self.policy is None:
            return ArmRun(scores)
        decision = self.policy.decide(scores)
        return ArmRun(scores, decision.exit, decision.label)


def refuse_other_splits(everyone: Sequence[FinishedRun]) -> None:
    first = everyone[0]
    for other in everyone[1:]:
        if other.table.classes != first.table.classes:
            raise DataError(
                f"{other.path}: classes {', '.join(other.table.classes)}, {first.path} has"
                f" {', '.join(first.table.classes)}; compare runs of one problem"
            )
        for role in ROLES:
            if other.digests[role] != first.digests[role]:
                counts = [len(finished.table.rows(role)) for finished in (other, first)]
                raise DataError(
                    f"{other.path}: {role} holds other images than in {first.path} ({counts[0]} and {counts[1]},"
                    f" digests {other.digests[role][:12]} and {first.digests[role][:12]}); compare runs of one split"
                    " (same data, split.seed and fractions)"
                )
