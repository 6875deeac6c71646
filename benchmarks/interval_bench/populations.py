"""Populations with a known truth: binary images in groups that share their luck.

Score of an image = separation x (label - 1/2) + sqrt(rho) x (of its group) + sqrt(1 - rho) x (its own), each normal.
The raw score is then the log-likelihood ratio of the marginal model, so a model that states it is calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stage1 import Scores

FloatArray = NDArray[np.float64]
LARGE = 1_000_000


@dataclass(frozen=True, slots=True)
class Grouped:
    """groups of `size` images. pure: a group is of one class (videos with and without the sign), `positives` of them;
    else each image of a group is positive with the group's own share, Beta with mean `prior` and spread 1 / 5.

    rho: correlation within a group. separation: between the classes, in standard deviations.
    """

    groups: int
    size: int
    rho: float = 0.3
    separation: float = 2.5
    pure: bool = True
    prior: float = 0.5

    @property
    def name(self) -> str:
        kind = "" if self.pure else ", mixed labels"
        if self.size == 1:
            return f"{self.groups} independent images"
        return f"{self.groups} groups of {self.size}{kind}"

    def labels(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """[groups, size]. Pure groups: the number of each class is fixed, as a stratified interval takes it."""
        if self.pure:
            of_group = np.arange(self.groups) < round(self.prior * self.groups)
            return np.repeat(of_group[:, None], self.size, axis=1).astype(np.int64)
        share = rng.beta(4 * self.prior, 4 * (1 - self.prior), size=(self.groups, 1))
        return (rng.random((self.groups, self.size)) < share).astype(np.int64)

    def draw(self, rng: np.random.Generator, models: int = 1) -> list[Scores]:
        """Scores of `models` exchangeable models on the same images: they share half of the noise of each image."""
        labels = self.labels(rng)
        shape = labels.shape
        common = self._noise(rng, shape)
        names = np.repeat(np.arange(self.groups), self.size) if self.size > 1 else None
        found = []
        for _ in range(models):
            noise = common if models == 1 else np.sqrt(0.5) * common + np.sqrt(0.5) * self._noise(rng, shape)
            value = self.separation * (labels - 0.5) + noise
            # log-likelihood ratio of two normals of variance 1
            margin = (self.separation * value + np.log(self.prior / (1 - self.prior))).reshape(-1)
            logits = np.stack([np.zeros_like(margin), margin], axis=1)
            found.append(
                Scores(logits, labels=labels.reshape(-1), groups=None if names is None else names.astype(np.str_))
            )
        return found

    def _noise(self, rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
        rho = self.rho if self.size > 1 else 0.0
        return np.sqrt(rho) * rng.normal(size=(shape[0], 1)) + np.sqrt(1 - rho) * rng.normal(size=shape)

    def large(self) -> Scores:
        """A million images for the truth of what has no closed form."""
        return _large(self)


@lru_cache(maxsize=16)
def _large(population: Grouped) -> Scores:
    rng = np.random.default_rng(20261130)
    groups = LARGE // population.size
    whole = Grouped(groups, population.size, population.rho, population.separation, population.pure, population.prior)
    return whole.draw(rng)[0]
