"""RunConfig: everything that decides a run, typed, validated, documented; where each value came from."""

from stage1.config.base import PositiveInt, Rate, Section, Share
from stage1.config.certify import (
    AcceptanceConfig,
    AcceptanceGate,
    AttemptsConfig,
    CalibrationConfig,
    EvaluationConfig,
    PolicyConfig,
)
from stage1.config.data import ChallengeConfig, DataConfig, FractionsConfig, RoadscenesConfig, SplitConfig
from stage1.config.head import HeadConfig, RiskTrainingConfig, SelectiveConfig, SweepConfig, TrainConfig
from stage1.config.loading import (
    PHASES,
    differences,
    known_keys,
    leaves,
    load_config,
    phase_recipe,
    recipe_text,
    recipes,
    text_keys,
    to_yaml,
    validated,
)
from stage1.config.model import (
    AdapterConfig,
    BackboneConfig,
    ExportConfig,
    FeaturesConfig,
    ImageTrainConfig,
    PretrainConfig,
)
from stage1.config.run import RunConfig
from stage1.config.views import ViewsConfig

__all__ = [
    "PHASES",
    "AcceptanceConfig",
    "AcceptanceGate",
    "AdapterConfig",
    "AttemptsConfig",
    "BackboneConfig",
    "CalibrationConfig",
    "ChallengeConfig",
    "DataConfig",
    "EvaluationConfig",
    "ExportConfig",
    "FeaturesConfig",
    "FractionsConfig",
    "HeadConfig",
    "ImageTrainConfig",
    "PolicyConfig",
    "PositiveInt",
    "PretrainConfig",
    "Rate",
    "RiskTrainingConfig",
    "RoadscenesConfig",
    "RunConfig",
    "Section",
    "SelectiveConfig",
    "Share",
    "SplitConfig",
    "SweepConfig",
    "TrainConfig",
    "ViewsConfig",
    "differences",
    "known_keys",
    "leaves",
    "load_config",
    "phase_recipe",
    "recipe_text",
    "recipes",
    "text_keys",
    "to_yaml",
    "validated",
]
