"""What a config asks for, checked against its classes as soon as they are known, before hours of work depend on it."""

from __future__ import annotations

from collections.abc import Sequence

from stage1.config import RunConfig
from stage1.data.splits import SPLITS_KIND
from stage1.errors import ConfigError
from stage1.policy.in_slices import check_slice_thresholds
from stage1.policy.registry import check_classes, policy_kind
from stage1.policy.units import ALL_IMAGES
from stage1.runs.directory import RunDir
from stage1.storage.documents import read_document
from stage1.views.registry import check_classes as check_aggregate


def check_config(config: RunConfig) -> None:
    """`check_all` where the config itself says which classes there are. Raises ConfigError."""
    if config.data.classes is not None:
        check_all(config, config.data.classes)
    elif config.data.source == "roadscenes":
        check_all(config, ("none", "roadwork"))


def check_split(run: RunDir, *, views_only: bool = False) -> None:
    """`check_all` with the classes of the split. views_only: for one stage; `calibrate` may yet get the target."""
    classes = read_document(run / "splits.json", SPLITS_KIND)["classes"]
    (check_views if views_only else check_all)(run.config, classes)


def check_all(config: RunConfig, classes: Sequence[str]) -> None:
    """Raises ConfigError where views, policy or target of the config cannot be had with these classes."""
    check_views(config, classes)
    check_classes(config.policy.name, len(classes))
    policy_kind(config.policy.name).check(config, classes)
    has_floor = config.coverage is not None or bool(config.class_coverage)
    check_slice_thresholds(config.policy.slice_thresholds, config.data.slices, has_floor)
    for key, given in (
        ("data.slices", bool(config.data.slices)),
        (f"unit={config.unit}", config.unit in ALL_IMAGES),
        ("train.objective=risk", config.train.objective == "risk"),
    ):
        if given and len(classes) > 2:
            raise ConfigError(f"{key}: is for two classes, there are {len(classes)}; leave it out")


def check_views(config: RunConfig, classes: Sequence[str]) -> None:
    """Raises ConfigError where the views of the config cannot be had with so many classes."""
    views, n = config.views, len(classes)
    if views.policy is None or n <= 2:
        return
    if views.adaptive:
        raise ConfigError(f"views.adaptive: is for two classes, there are {n}; set views.adaptive=false")
    if views.train in ("views", "mil") and views.pool != "mean":
        raise ConfigError(f"views.pool: {views.pool} is for two classes, there are {n}; use mean")
    for name in views.names or ():
        check_aggregate(name, n)
