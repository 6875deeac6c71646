"""The recipes of the package, and the phases that stand for some of them."""

from __future__ import annotations

from importlib import resources

from stage1.config.nearest import nearest
from stage1.errors import ConfigError

PHASES = {
    0: "data", 1: "baseline", 2: "selective-metrics", 3: "gate", 4: "explora", 5: "risk-training", 6: "continuous-learning",
}  # fmt: skip


def recipes() -> list[str]:
    """Names of the recipes in the package."""
    folder = resources.files("stage1").joinpath("recipes")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """The YAML of a recipe. Raises ConfigError naming the nearest one."""
    if name not in recipes():
        raise ConfigError(f"recipe {name!r} is not there{nearest(name, recipes())}; recipes: {', '.join(recipes())}")
    return resources.files("stage1").joinpath(f"recipes/{name}.yaml").read_text(encoding="utf-8")


def phase_recipe(phase: int) -> str:
    """The recipe that `--phase` stands for. Raises ConfigError where there is none yet."""
    if phase not in PHASES:
        raise ConfigError(f"--phase {phase}: phases are 0 to 6")
    if PHASES[phase] not in recipes():
        raise ConfigError(
            f"--phase {phase}: its recipe {PHASES[phase]!r} is not built yet; recipes: {', '.join(recipes())}"
        )
    return PHASES[phase]
