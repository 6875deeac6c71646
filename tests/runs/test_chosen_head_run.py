"""A run that chooses its head: from photos through the refit to a bundle; val_select is scored out of fold."""

from __future__ import annotations

import numpy as np
import pytest

from stage1 import load_bundle, run
from stage1.bundle import verify_bundle
from stage1.errors import IntegrityError
from stage1.runs.schema import TRAIN_KIND
from stage1.scores import read_role
from stage1.stages.chosen_head import OUT_OF_FOLD, out_of_fold_scores
from stage1.storage.documents import read_document
from stage1.storage.files import digest_file

from .conftest import SETTINGS

pytest.importorskip("timm", reason="the extra train is not installed")

MADE = ("model_best.pth", "train.json", OUT_OF_FOLD, "val_select_logits.pt", "certificate.json", "thresholds.json")


def test_a_refitted_head_ships_and_val_select_is_scored_out_of_fold(photos, tmp_path):
    overrides = [*SETTINGS, f"data.table={photos}", "head.kind=auto", "backbone.fit=squash", "features.engine=onnx"]
    result = run(recipe="baseline", overrides=overrides, output=tmp_path / "run")
    folder = result.folder
    choice = read_document(folder / "train.json", TRAIN_KIND)["choice"]
    assert choice["kind"] == "logistic"
    assert choice["refit"]
    assert {row["kind"] for row in choice["adam"]} == {"linear", "mlp"}
    assert choice["out_of_fold"] == digest_file(folder / OUT_OF_FOLD)

    from stage1.data.table import SampleTable

    table = SampleTable.read(folder / "samples.parquet")
    bundle = load_bundle(result.bundle)
    by_model = {}
    for role in ("val_select", "val_calib"):
        made = bundle.predictor.outputs([table.read_bytes(row) for row in table.rows(role)])[1]
        by_model[role] = np.abs(made - read_role(folder, role).logits).max()
    # What is certified is what ships; val_select alone is scored by fits that have not seen the image.
    assert by_model["val_calib"] < 1e-4
    assert by_model["val_select"] > 1e-2
    assert np.abs(read_role(folder, "val_select").logits - _stored(folder)).max() < 1e-6
    assert verify_bundle(result.bundle, recompute=True).problems == ()
    assert "logistic" in (folder / "report.html").read_text(encoding="utf-8")
    assert "val_select" in (folder / "bundle" / "README.md").read_text(encoding="utf-8")

    # Killed after the weights, before train.json: the same command ends with the same bytes.
    before = {name: digest_file(folder / name) for name in MADE}
    (folder / "train.json").unlink()
    (folder / OUT_OF_FOLD).unlink()
    again = run(recipe="baseline", overrides=overrides, output=tmp_path / "run")
    assert again.done[0] == "train"
    assert {name: digest_file(folder / name) for name in MADE} == before


def _stored(folder):
    with np.load(folder / OUT_OF_FOLD) as stored:
        return stored["logits"]


class _Run:
    """What `out_of_fold_scores` asks of a run directory."""

    def __init__(self, folder):
        from stage1.config import RunConfig

        self.path, self.config = folder, RunConfig.model_validate({"head": {"kind": "auto"}})

    def __truediv__(self, name):
        return self.path / name


def test_scores_of_another_training_are_refused(tmp_path):
    from stage1.scores import Scores, write_scores
    from stage1.storage.documents import write_document

    ids = np.array(["a" * 64, "b" * 64])
    write_scores(tmp_path / OUT_OF_FOLD, Scores([[0.0, 1.0], [1.0, 0.0]], labels=[1, 0], ids=ids))
    facts = {
        "best_epoch": 0,
        "best_metric": 0.1,
        "select_by": "nll",
        "used_ema": False,
        "epochs_run": 0,
        "metrics": {"nll": 0.1},
        "choice": {"kind": "logistic", "refit": True, "out_of_fold": digest_file(tmp_path / OUT_OF_FOLD)},
    }
    write_document(tmp_path / "train.json", facts, TRAIN_KIND)
    held = _Run(tmp_path)
    assert out_of_fold_scores(held, ids).tolist() == [[0.0, 1.0], [1.0, 0.0]]
    with pytest.raises(IntegrityError, match="other images"):
        out_of_fold_scores(held, ids[::-1])
    (tmp_path / OUT_OF_FOLD).write_bytes(b"changed")
    with pytest.raises(IntegrityError, match=r"train\.json names"):
        out_of_fold_scores(held, ids)
