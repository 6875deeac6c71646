"""RunConfig: everything that decides a run, typed, validated, documented; where each value came from."""

from stage1.config.backbone import BackboneConfig, ExportConfig, FeaturesConfig
from stage1.config.data import ChallengeConfig, DataConfig, FractionsConfig, RoadscenesConfig, SplitConfig
from stage1.config.evaluation import AcceptanceConfig, AcceptanceGate, EvaluationConfig
from stage1.config.head import HeadConfig, RiskTrainingConfig, SelectiveConfig, SweepConfig, TrainConfig
from stage1.config.keys import differences, known_keys, leaves, text_keys, to_yaml
from stage1.config.loading import load_config, validated
from stage1.config.policy import CalibrationConfig, PolicyConfig
from stage1.config.recipe import PHASES, phase_recipe, recipe_text, recipes
from stage1.config.run import RunConfig
from stage1.config.section import PositiveInt, Rate, Section, Share
from stage1.config.tuning import AdapterConfig, ImageTrainConfig, PretrainConfig
from stage1.config.views import ViewsConfig

__all__ = [
    "PHASES",
    "AcceptanceConfig",
    "AcceptanceGate",
    "AdapterConfig",
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
