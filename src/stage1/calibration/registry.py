"""The table of maps, by name: which there are, for how many classes and rows, and reading one back from its document.

| map | K = 2 | K > 2 | strictly rising in the raw score |
|---|---|---|---|
| temperature | yes | yes | K = 2 and slope > 0 |
| platt | yes | no (it is one logit) | slope > 0 |
| beta | yes | no (dirichlet is its form there) | a + b > 0 |
| isotonic | yes | one against the rest, divided by the sum | never |
| vector | no (beta is its form there) | yes | never |
| dirichlet | as a class only: it is beta with more parameters | yes, up to 100 classes | never as a candidate |
| identity | yes | yes | K = 2; what is written where no map lowers the NLL, never a candidate |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stage1.calibration.binary import Beta, Platt
from stage1.calibration.dirichlet import Dirichlet
from stage1.calibration.isotonic import ISOTONIC_ROWS, Isotonic
from stage1.calibration.maps import CalibrationMap, Identity
from stage1.calibration.scaling import Temperature, Vector
from stage1.calibration.schema import CALIBRATION_KIND
from stage1.errors import ConfigError, DataError, IntegrityError
from stage1.scores import Scores
from stage1.storage.documents import read_document


@dataclass(frozen=True, slots=True)
class MapKind:
    """A row of MAPS: a map, and where it is a candidate.

    binary, multiclass: a candidate for two classes, for more. monotone: of the form with which thresholds on the raw
    score stay valid (`calibration.map=auto` compares these alone); the others are asked for by name, and thresholds and
    certificate are then of the mapped score. least_rows, most_classes: outside of these it is left out of a comparison
    in which it was not named.

    >>> MAPS["isotonic"].left_out(rows=90, n_classes=2)
    'left out: 90 rows, it needs about 1000'
    """

    map: type[CalibrationMap]
    binary: bool
    multiclass: bool
    monotone: bool
    least_rows: int = 0
    most_classes: int | None = None

    def left_out(self, rows: int, n_classes: int) -> str | None:
        """Why it is not compared on so many rows and classes where nobody named it; None where it is."""
        if rows < self.least_rows:
            return f"left out: {rows} rows, it needs about {self.least_rows}"
        if self.most_classes is not None and n_classes > self.most_classes:
            return f"left out: {n_classes} classes, more than {self.most_classes}"
        return None


MAPS: dict[str, MapKind] = {
    kind.map.name: kind
    for kind in (
        MapKind(Temperature, binary=True, multiclass=True, monotone=True),
        MapKind(Platt, binary=True, multiclass=False, monotone=True),
        MapKind(Beta, binary=True, multiclass=False, monotone=True),
        MapKind(Vector, binary=False, multiclass=True, monotone=False),
        MapKind(Dirichlet, binary=False, multiclass=True, monotone=False, most_classes=100),
        MapKind(Isotonic, binary=True, multiclass=True, monotone=False, least_rows=ISOTONIC_ROWS),
    )
}
"""Every map that can be asked for, compared and read back. A further one is its file and its row here."""


def candidates(n_classes: int) -> tuple[str, ...]:
    """The maps for so many classes.

    >>> candidates(2)
    ('temperature', 'platt', 'beta', 'isotonic')
    """
    return tuple(name for name, kind in MAPS.items() if (kind.binary if n_classes == 2 else kind.multiclass))


def automatic(n_classes: int) -> tuple[str, ...]:
    """The candidates of `calibration.map=auto`: under these, thresholds on the raw score stay valid.

    >>> automatic(2), automatic(10)
    (('temperature', 'platt', 'beta'), ('temperature',))
    """
    return tuple(name for name in candidates(n_classes) if MAPS[name].monotone)


def non_monotone(name: str) -> bool:
    """Whether `name` is a map that may change which images exit: it moves the order of the scores.

    >>> non_monotone("isotonic"), non_monotone("platt")
    (True, False)
    """
    return name in MAPS and not MAPS[name].monotone


def config_names() -> tuple[str, ...]:
    """What `calibration.map` may be: auto, none, the maps for two classes, then the others."""
    return tuple(dict.fromkeys(("auto", "none", *candidates(2), *MAPS)))


def fit_map(name: str, scores: Scores, **options: Any) -> CalibrationMap:
    """Fit the map of this name (a key of MAPS) with its own options. Raises ConfigError for an unknown name or option,
    DataError where these scores cannot fit it.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 2, 400)
    >>> scores = Scores(np.stack([0 * labels, 3 * rng.normal(2 * labels - 1, 1)], axis=1), labels=labels)
    >>> found = fit_map("platt", scores)
    >>> round(found.parameters["slope"], 2)
    0.67
    """
    if name not in MAPS:
        raise ConfigError(f"calibration: {name!r} is unknown; use {', '.join(MAPS)}")
    try:
        return MAPS[name].map.fit(scores, **options)
    except TypeError as error:
        raise ConfigError(f"calibration: {name}: {error}") from error


def load_map(path: str | os.PathLike[str]) -> CalibrationMap:
    """Read calibration.json. Raises MissingError (no such file), IntegrityError (damaged, or parameters that no fit
    gives: a negative slope, a curve that falls, a wrong number of classes).

    >>> import tempfile
    >>> import numpy as np
    >>> scores = Scores(np.array([[0.0, 2.0], [1.0, 0.0]]), labels=[1, 0])
    >>> folder = tempfile.TemporaryDirectory()
    >>> Identity.fit(scores).save(f"{folder.name}/calibration.json")
    >>> load_map(f"{folder.name}/calibration.json").name
    'identity'
    >>> folder.cleanup()
    """
    return map_from_document(read_document(path, CALIBRATION_KIND), str(path))


def map_from_document(document: Mapping[str, Any], where: str = "calibration") -> CalibrationMap:
    """The map of a document that fits the schema; `where` names it in errors (IntegrityError).

    >>> import numpy as np
    >>> made = Identity.fit(Scores(np.array([[0.0, 2.0], [1.0, 0.0]]), labels=[1, 0]))
    >>> map_from_document(made.to_document()) == made
    True
    """
    name = document["name"]
    if name != Identity.name and name not in MAPS:
        raise IntegrityError(f"{where}: name: {name!r} is not one of {[Identity.name, *MAPS]}; calibrate again")
    kind = Identity if name == Identity.name else MAPS[name].map
    common = {key: document[key] for key in ("n", "n_classes", "fitted_on")}
    try:
        found = kind.from_parameters(document["parameters"], **common)
    except (TypeError, DataError) as error:
        raise IntegrityError(f"{where}: {name}: {error}; it is damaged, calibrate again") from error
    for claim in ("monotone", "constrained"):
        if document[claim] != found.to_document()[claim]:
            raise IntegrityError(f"{where}: {claim} {document[claim]} is not what its parameters say; calibrate again")
    return found
