"""Train a head on features in memory: the one entry point, and torch's global state around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stage1.config import HeadConfig, TrainConfig
from stage1.errors import DataError
from stage1.training.inputs import checked_features
from stage1.training.run import THREADS, Run, TrainResult


def train_head(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    select_features: NDArray[np.float32],
    select_labels: NDArray[np.int64],
    *,
    config: TrainConfig,
    head: HeadConfig,
    n_classes: int,
    seed: int,
    folder: Path,
    progress: Callable[[Mapping[str, Any]], None] | None = None,
    stop: Callable[[], bool] | None = None,
    fresh: bool = False,
) -> TrainResult:
    """Train a head on `features` [N, D], choosing epoch and raw or EMA weights on `select_features` [M, D].

    Goes on from `folder`/checkpoints/last.safetensors where that is there, bit-equal to never having stopped (same
    machine and versions); a finished run returns its result at once. Writes that file, model_best.pth, metrics.csv,
    log.jsonl and, if asked, tensorboard/.
    progress: called after each epoch with its row of metrics.csv. stop: asked before each optimizer step; True writes a
    checkpoint and raises Checkpointed. fresh: drop what an earlier run left in `folder`.
    Raises DataError (shapes, NaN, labels, a class without images), ConfigError (checkpoint of another config or
    data), IntegrityError (damaged checkpoint), MissingError (tensorboard), Stage1Error (loss or gradient not finite,
    disk full).
    Torch's global state (threads, determinism, generator, grad mode) is as before when this returns or raises.
    """
    folder = Path(folder)
    train = checked_features(features, labels, n_classes, "train")
    select = checked_features(select_features, select_labels, n_classes, "val_select")
    if train.features.shape[1] != select.features.shape[1]:
        raise DataError(
            f"val_select: {select.features.shape[1]} feature columns, train has {train.features.shape[1]}; "
            "extract both with the same backbone"
        )
    with _own_torch_state():
        run = Run(train, select, config, head, n_classes, seed, folder)
        run.begin(fresh)
        try:
            while not run.at.done:
                run.train_epoch(stop)
                row = run.finish_epoch()
                if progress is not None:
                    progress(row)
        finally:
            run.close()
        return run.result()


@contextmanager
def _own_torch_state() -> Iterator[None]:
    """Deterministic algorithms, a fixed thread count and gradients on; everything as before afterwards."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    generator = torch.get_rng_state()
    try:
        torch.set_num_threads(THREADS)
        torch.use_deterministic_algorithms(True)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_rng_state(generator)
