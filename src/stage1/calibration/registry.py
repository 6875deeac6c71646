"""All maps by name: fitting one, and reading one back from its document.

| map | K = 2 | K > 2 | strictly rising in the raw score |
|---|---|---|---|
| temperature | yes | yes | K = 2 and slope > 0 |
| platt | yes | no (it is one logit) | slope > 0 |
| beta | yes | no (dirichlet is its form there) | a + b > 0 |
| isotonic | yes | one against the rest, divided by the sum | never |
| vector | no (beta is its form there) | yes | never |
| dirichlet | as a class only: it is beta with more parameters | yes, up to 100 classes by default | never as a candidate |
| identity | yes | yes | K = 2; what is written where no map lowers the NLL, never a candidate |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from stage1.calibration.binary import Beta, Platt
from stage1.calibration.dirichlet import Dirichlet
from stage1.calibration.isotonic import Isotonic
from stage1.calibration.maps import CalibrationMap, Identity
from stage1.calibration.scaling import Temperature, Vector
from stage1.errors import ConfigError, DataError, IntegrityError
from stage1.scores import Scores
from stage1.storage.documents import read_document

MAPS: dict[str, type[CalibrationMap]] = {
    kind.name: kind for kind in (Temperature, Platt, Beta, Vector, Dirichlet, Isotonic)
}
_READABLE: dict[str, type[CalibrationMap]] = {**MAPS, Identity.name: Identity}
BINARY = ("temperature", "platt", "beta", "isotonic")
BINARY_KEEPING_ORDER = ("temperature", "platt", "beta")
"""The candidates of `calibration.map=auto` for two classes: thresholds on the raw score stay as they are under
these.
"""
MULTICLASS = ("temperature", "vector", "dirichlet", "isotonic")


def fit_map(name: str, scores: Scores, **options: Any) -> CalibrationMap:
    """Fit the map of this name (a key of MAPS) with its own options. Raises ConfigError for an unknown name or option,
    DataError where these scores cannot fit it."""
    if name not in MAPS:
        raise ConfigError(f"calibration: {name!r} is unknown; use {', '.join(MAPS)}")
    try:
        return MAPS[name].fit(scores, **options)
    except TypeError as error:
        raise ConfigError(f"calibration: {name}: {error}") from error


def load_map(path: str | os.PathLike[str]) -> CalibrationMap:
    """Read calibration.json. Raises MissingError (no such file), IntegrityError (damaged, or parameters that no fit
    gives: a negative slope, a curve that falls, a wrong number of classes)."""
    return map_from_document(read_document(path, "calibration"), str(path))


def map_from_document(document: Mapping[str, Any], where: str = "calibration") -> CalibrationMap:
    """The map of a document that fits the schema; `where` names it in errors (IntegrityError)."""
    parameters = dict(document["parameters"])
    if document["name"] == "isotonic":
        curves = parameters.get("curves", ())
        parameters["curves"] = tuple((tuple(curve["scores"]), tuple(curve["values"])) for curve in curves)
    common = {name: document[name] for name in ("n", "n_classes", "fitted_on")}
    try:
        found = _READABLE[document["name"]](**{name: _frozen(value) for name, value in parameters.items()}, **common)
    except (TypeError, DataError) as error:
        raise IntegrityError(f"{where}: {document['name']}: {error}; it is damaged, calibrate again") from error
    for claim in ("monotone", "constrained"):
        if document[claim] != found.to_document()[claim]:
            raise IntegrityError(f"{where}: {claim} {document[claim]} is not what its parameters say; calibrate again")
    return found


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
