"""Small image tasks and models for the tests that train through a backbone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stage1.config import AdapterConfig, BackboneConfig, HeadConfig, ImageTrainConfig, TrainConfig
from stage1.model.backbone import Backbone, load_backbone
from stage1.training.image_tuning import ImageTrainResult, train_on_images

SIDE = 32


def stripes(n: int, seed: int, side: int = SIDE) -> tuple[list[str], list[bytes], np.ndarray]:
    """Noisy stripes, upright (1) or level (0), of random phase and colour: equal means, so colour tells nothing."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 2)
    items = []
    for label in labels:
        wave = 60 * np.sin(np.arange(side) * 2 * np.pi / 8 + rng.uniform(0, 6.28))
        grid = np.tile(wave, (side, 1)) if label else np.tile(wave[:, None], (1, side))
        rgb = 128 + grid[:, :, None] * rng.uniform(0.5, 1.0, 3) + rng.normal(0, 10, (side, side, 3))
        stream = io.BytesIO()
        Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8)).save(stream, "PNG")
        items.append(stream.getvalue())
    return [f"{seed}-{i:04d}" for i in range(n)], items, labels.astype(np.int64)


def tiny(name: str = "test_vit", seed: int = 0, **fields: Any) -> Backbone:
    return load_backbone(BackboneConfig(name=name, random_weights=True, input_size=SIDE, **fields), seed=seed)


def fit(
    folder: Path,
    *,
    name: str = "test_vit",
    n: int = 48,
    seed: int = 3,
    images: dict[str, Any] | None = None,
    adapter: dict[str, Any] | None = None,
    head: dict[str, Any] | None = None,
    train: Any = None,
    select: Any = None,
    progress: Any = None,
    stop: Any = None,
    fresh: bool = False,
    watch: Any = None,
    n_classes: int = 2,
    **config: Any,
) -> ImageTrainResult:
    """Train on stripes; keywords of TrainConfig go there."""
    values: dict[str, Any] = {"epochs": 2, "batch_size": 12, "learning_rate": 3e-3, **config}
    learn: dict[str, Any] = {
        "workers": 1,
        "threads": 1,
        "augment": "none",
        "learning_rate_scale": 1.0,
        **(images or {}),
    }
    return train_on_images(
        tiny(name),
        stripes(n, 0) if train is None else train,
        stripes(24, 1) if select is None else select,
        config=TrainConfig(**values),
        head=HeadConfig(**(head or {})),
        images=ImageTrainConfig(**learn),
        adapter=AdapterConfig(**(adapter or {})),
        n_classes=n_classes,
        seed=seed,
        folder=folder,
        progress=progress,
        stop=stop,
        fresh=fresh,
        watch=watch,
    )
