"""Which files of a run directory a config makes, by name below the directory; "" (or nothing) where it makes none."""

from __future__ import annotations

from collections.abc import Callable

from stage1.config import RunConfig
from stage1.policy import POLICY_FILES
from stage1.views import VIEWS_FILE

PREPROCESSING_FILE = "preprocessing.json"
PREPROCESS_FOLDER = "preprocess"
PRETRAINED_WEIGHTS = "backbone_explora.safetensors"
TUNE_FOLDER = "tune"
TUNED_WEIGHTS = f"{TUNE_FOLDER}/backbone_tuned.safetensors"
JOINT_HEAD = f"{TUNE_FOLDER}/model_best.pth"


def preprocessing_file(config: RunConfig) -> str:
    """What `preprocess` has chosen, or "" where the config leaves nothing open."""
    return PREPROCESSING_FILE if config.chooses_preprocessing else ""


def pretrained_file(config: RunConfig) -> str:
    """The weights that `pretrain` writes, or "" where the run has no such stage."""
    return PRETRAINED_WEIGHTS if config.pretrains else ""


def backbone_file(config: RunConfig) -> str:
    """The weights of the run's own backbone, made by `tune` or else `pretrain`; "" where the run has neither."""
    return TUNED_WEIGHTS if config.tunes else pretrained_file(config)


def joint_head_file(config: RunConfig) -> str:
    """The head that `tune` trains jointly with the backbone, which `train` compares with its own; "" without `tune`."""
    return JOINT_HEAD if config.tunes else ""


def views_file(config: RunConfig) -> str:
    """views.json where the run has views, or "" where it has none."""
    return "" if config.views.policy is None else VIEWS_FILE


def chosen_policy_file(config: RunConfig) -> str:
    """The one policy file of the run."""
    return POLICY_FILES[config.policy.name]


def role_files(role: str) -> tuple[str, ...]:
    """The files with the scores of a role."""
    return (f"{role}_logits.pt", f"{role}_labels.pt", f"{role}_ids.json")


def present(*files: str) -> tuple[str, ...]:
    """Those of `files` that the config makes."""
    return tuple(file for file in files if file)


def always(*files: str) -> Callable[[RunConfig], tuple[str, ...]]:
    """For a stage that reads the same files whatever the config."""
    return lambda config: files
