from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stage1.config import HeadConfig, TrainConfig
from stage1.training import TrainResult, train_head


def blobs(n: int, dim: int, n_classes: int, seed: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Linear problem with label noise, features off-centre and of unequal scale: float32 [n, dim], int64 [n]."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(dim, n_classes))
    clean = rng.normal(size=(n, dim))
    labels = (clean @ directions + noise * rng.normal(size=(n, n_classes))).argmax(axis=1)
    labels[:n_classes] = np.arange(n_classes)
    scale = np.linspace(0.1, 10.0, dim)
    return (clean * scale + 3.0 * scale).astype(np.float32), labels.astype(np.int64)


@pytest.fixture
def make_blobs() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return blobs


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., TrainResult]:
    """Train on a small fixed problem; keywords of TrainConfig go there, those below elsewhere."""
    data = {"features": blobs(150, 6, 2, 0), "select": blobs(80, 6, 2, 1)}

    def run(
        folder: str | Path = "run",
        *,
        kind: str = "linear",
        seed: int = 3,
        train: tuple[np.ndarray, np.ndarray] | None = None,
        select: tuple[np.ndarray, np.ndarray] | None = None,
        n_classes: int = 2,
        progress: Any = None,
        stop: Any = None,
        fresh: bool = False,
        **config: Any,
    ) -> TrainResult:
        values: dict[str, Any] = {"epochs": 6, "batch_size": 16, "learning_rate": 0.02, **config}
        return train_head(
            *(train or data["features"]),
            *(select or data["select"]),
            config=TrainConfig(**values),
            head=HeadConfig(kind=kind, hidden=5, dropout=0.3),  # type: ignore[arg-type]
            n_classes=n_classes,
            seed=seed,
            folder=tmp_path / folder,
            progress=progress,
            stop=stop,
            fresh=fresh,
        )

    return run
