"""calibration.json: the one fitted map of a run or bundle, with the comparison that it won; the identity included."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stage1.calibration.maps import CalibrationMap, Identity
from stage1.calibration.registry import map_from_document, non_monotone
from stage1.calibration.schema import CALIBRATION_KIND
from stage1.scores import Scores
from stage1.storage.documents import SCHEMA_VERSION, read_document, write_document
from stage1.storage.files import digest_bytes

if TYPE_CHECKING:
    from stage1.calibration.selection import Choice

CALIBRATION_FILE = "calibration.json"
Score = Literal["raw", "mapped"]


@dataclass(frozen=True, slots=True)
class FittedMap:
    """What calibration.json holds.

    map: applied to every probability that is stated. comparison: how it was chosen (`Choice.to_document`), for the
    reader; None where a map was saved without one.

    >>> import numpy as np
    >>> found = fitted_identity(Scores(np.array([[0.0, 2.0], [1.0, 0.0]]), labels=[1, 0]), "two rows are too few")
    >>> found.score, found.reason
    ('raw', 'identity: two rows are too few')
    """

    map: CalibrationMap
    comparison: Mapping[str, Any] | None = None

    @property
    def score(self) -> Score:
        """On what the thresholds lie: "raw", or "mapped" where the map does not keep the order of the scores."""
        return "raw" if self.map.keeps_order else "mapped"

    @property
    def reason(self) -> str:
        """One sentence: why this map."""
        return str(self.comparison["reason"]) if self.comparison else self.map.name

    @property
    def digest(self) -> str:
        """sha256 of the file, as `save` writes it."""
        content = {"schema_version": SCHEMA_VERSION, **self.to_document()}
        return digest_bytes((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    def to_document(self) -> dict[str, Any]:
        """Plain values for calibration.json: those of the map, then `comparison`."""
        document = self.map.to_document()
        return document if self.comparison is None else {**document, "comparison": dict(self.comparison)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write calibration.json, whole or not at all."""
        write_document(path, self.to_document(), CALIBRATION_KIND)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FittedMap:
        """Read calibration.json. Raises MissingError, IntegrityError (damaged, or a claim that is not true)."""
        document = read_document(path, CALIBRATION_KIND)
        return cls(map_from_document(document, str(path)), document.get("comparison"))


def fitted_map(choice: Choice, select: Scores) -> FittedMap:
    """The outcome of `choose_map` on `select`; the identity where no map was chosen.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 2, 400)
    >>> scores = Scores(np.stack([0 * labels, 3 * rng.normal(2 * labels - 1, 1)], axis=1), labels=labels)
    >>> from stage1.calibration import choose_map
    >>> found = fitted_map(choose_map(scores, candidates=["temperature"]), scores)
    >>> found.map.name, found.score
    ('temperature', 'raw')
    """
    return FittedMap(Identity.fit(select) if choice.map is None else choice.map, choice.to_document())


def fitted_identity(select: Scores, reason: str) -> FittedMap:
    """The identity without a comparison of maps. reason: why none was made, one sentence.

    >>> import numpy as np
    >>> scores = Scores(np.array([[0.0, 2.0], [1.0, 0.0]]), labels=[1, 0])
    >>> fitted_identity(scores, "two rows are too few").map.name
    'identity'
    """
    from stage1.calibration.selection import Choice

    choice = Choice(None, (), f"identity: {reason}", len(select), 0)
    return FittedMap(Identity.fit(select), choice.to_document())


def made_again(reported: FittedMap, select: Scores, seed: int) -> FittedMap:
    """The same choice among the same candidates on labelled scores of val_select; equals `stated` if that was made so.

    A map without a comparison is refitted. An identity for which no map was compared stays: there is
    nothing to fit.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 2, 400)
    >>> scores = Scores(np.stack([0 * labels, 3 * rng.normal(2 * labels - 1, 1)], axis=1), labels=labels)
    >>> from stage1.calibration import choose_map
    >>> reported = fitted_map(choose_map(scores, candidates=["platt"], seed=7), scores)
    >>> made_again(reported, scores, seed=7) == reported
    True
    """
    from stage1.calibration.selection import choose_map

    if reported.comparison is None:
        return FittedMap(reported.map.refit(select))
    candidates = [row["name"] for row in reported.comparison["table"] if row["name"] != "identity"]
    if not candidates:
        return FittedMap(Identity.fit(select), reported.comparison)
    keep_order = not any(non_monotone(name) for name in candidates)
    return fitted_map(choose_map(select, candidates=candidates, keep_order=keep_order, seed=seed), select)
