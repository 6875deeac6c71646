"""The table of stages: name, config sections, files read, and the function that does it."""

from __future__ import annotations

from stage1.runs.runner import Stage
from stage1.stages.acceptance import acceptance_state
from stage1.stages.certify import bundle, calibrate, evaluate, evaluation_state
from stage1.stages.features import export, extract, score, train
from stage1.stages.split import source_state, split
from stage1.stages.tune import folder_state, pretrain, tune
from stage1.stages.views import cached_state, choosing_state, cut_state, learning_state

ROLE_FILES = {
    role: (f"{role}_logits.pt", f"{role}_labels.pt", f"{role}_ids.json")
    for role in ("val_select", "val_calib", "val_test")
}

STAGES = (
    Stage("split", ("data", "split"), (), split, source_state),
    Stage(
        "pretrain",
        ("pretrain", "backbone", "seed"),
        ("samples.parquet",),
        pretrain,
        folder_state,
        wanted=lambda config: config.pretrains,
    ),
    Stage(
        "tune",
        ("images", "adapter", "train", "backbone", "seed"),
        ("samples.parquet", "{pretrained}"),
        tune,
        wanted=lambda config: config.tunes,
    ),
    Stage("extract", ("backbone", "features", "seed"), ("samples.parquet", "{backbone}"), extract, cached_state),
    Stage(
        "train",
        ("head", "train", "sweep", "seed"),
        ("samples.parquet", "features.json", "{along}"),
        train,
        learning_state,
    ),
    Stage("export", ("export", "head"), ("model_best.pth", "backbone.onnx", "features.json"), export, cut_state),
    Stage("score", (), ("model.onnx", "parity.json", "samples.parquet", "features.json"), score, choosing_state),
    Stage(
        "calibrate",
        (
            "calibration",
            "policy",
            "risks",
            "coverage",
            "class_coverage",
            "target_prior",
            "confidence",
            "allow_one_sided",
            "assume_iid",
            "unit",
            "seed",
        ),
        (
            *ROLE_FILES["val_select"],
            *ROLE_FILES["val_calib"],
            "samples.parquet",
            "splits.json",
            "model.onnx",
            "{views}",
        ),
        calibrate,
    ),
    Stage(
        "evaluate",
        ("evaluation", "acceptance", "name", "seed"),
        (
            *ROLE_FILES["val_test"],
            *ROLE_FILES["val_calib"],
            "{policy}",
            "certificate.json",
            "calibration.json",
            "samples.parquet",
            "splits.json",
            "features.json",
        ),
        evaluate,
        evaluation_state,
    ),
    Stage(
        "bundle",
        ("name",),
        (
            "model.onnx",
            "{policy}",
            "certificate.json",
            "calibration.json",
            "evaluation.json",
            "features.json",
            "samples.parquet",
            "{views}",
            *ROLE_FILES["val_calib"],
        ),
        bundle,
        acceptance_state,
    ),
)
