"""From raw scores to probabilities: temperature, Platt, beta, isotonic, vector, Dirichlet; which, if any; its file."""

from typing import TYPE_CHECKING

from stage1.late import names

if TYPE_CHECKING:
    from stage1.calibration.binary import Beta, Platt
    from stage1.calibration.dirichlet import Dirichlet, odir_penalty
    from stage1.calibration.document import CALIBRATION_FILE, FittedMap, fitted_identity, fitted_map, made_again
    from stage1.calibration.isotonic import Isotonic, pool_adjacent_violators
    from stage1.calibration.maps import CalibrationMap, Identity
    from stage1.calibration.registry import (
        MAPS,
        MapKind,
        automatic,
        candidates,
        fit_map,
        load_map,
        map_from_document,
        non_monotone,
    )
    from stage1.calibration.scaling import Temperature, Vector
    from stage1.calibration.selection import Candidate, Choice, choose_map
else:
    __getattr__ = names(
        __name__,
        binary="Beta Platt",
        dirichlet="Dirichlet odir_penalty",
        document="CALIBRATION_FILE FittedMap fitted_identity fitted_map made_again",
        isotonic="Isotonic pool_adjacent_violators",
        maps="CalibrationMap Identity",
        registry="MAPS MapKind automatic candidates fit_map load_map map_from_document non_monotone",
        scaling="Temperature Vector",
        selection="Candidate Choice choose_map",
    )

__all__ = [
    "CALIBRATION_FILE",
    "MAPS",
    "Beta",
    "CalibrationMap",
    "Candidate",
    "Choice",
    "Dirichlet",
    "FittedMap",
    "Identity",
    "Isotonic",
    "MapKind",
    "Platt",
    "Temperature",
    "Vector",
    "automatic",
    "candidates",
    "choose_map",
    "fit_map",
    "fitted_identity",
    "fitted_map",
    "load_map",
    "made_again",
    "map_from_document",
    "non_monotone",
    "odir_penalty",
    "pool_adjacent_violators",
]
