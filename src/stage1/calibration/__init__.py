"""From raw scores to probabilities: temperature, Platt, beta, isotonic, vector, Dirichlet; which, if any; and its
file.
"""

from stage1.calibration.binary import Beta, Platt
from stage1.calibration.dirichlet import Dirichlet, odir_penalty
from stage1.calibration.document import CALIBRATION_FILE, REORDERING, FrozenMap, frozen, frozen_identity, made_again
from stage1.calibration.isotonic import Isotonic, pool_adjacent_violators
from stage1.calibration.maps import CalibrationMap, Identity
from stage1.calibration.registry import (
    BINARY,
    BINARY_KEEPING_ORDER,
    MAPS,
    MULTICLASS,
    fit_map,
    load_map,
    map_from_document,
)
from stage1.calibration.scaling import Temperature, Vector
from stage1.calibration.selection import Candidate, Choice, choose_map

__all__ = [
    "BINARY",
    "BINARY_KEEPING_ORDER",
    "CALIBRATION_FILE",
    "MAPS",
    "MULTICLASS",
    "REORDERING",
    "Beta",
    "CalibrationMap",
    "Candidate",
    "Choice",
    "Dirichlet",
    "FrozenMap",
    "Identity",
    "Isotonic",
    "Platt",
    "Temperature",
    "Vector",
    "choose_map",
    "fit_map",
    "frozen",
    "frozen_identity",
    "load_map",
    "made_again",
    "map_from_document",
    "odir_penalty",
    "pool_adjacent_violators",
]
