"""extract, train, export, score: the stages that need torch, up to the scores of the exported model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import IntegrityError, SourceChanged
from stage1.runs.directory import RunDir
from stage1.runs.documents import FEATURES_KIND, PARITY_KIND, TRAIN_KIND
from stage1.runtime.crops import WHOLE, ViewPolicy, cut
from stage1.runtime.preprocessing import Preprocessing
from stage1.scores import write_role
from stage1.stages.tune import backbone_config, backbone_file, better_head
from stage1.stages.views import ROLE as LOOKED_ROLE
from stage1.stages.views import (
    choose_views,
    learning_state,
    pooled_views,
    require_all,
    save_looked,
    say_small,
    shipped_views,
)
from stage1.storage.documents import read_document, write_document
from stage1.storage.files import digest_file, write_text
from stage1.views import VIEWS_FILE

if TYPE_CHECKING:
    from stage1.config import HeadConfig
    from stage1.data.table import SampleTable
    from stage1.inference import Predictor
    from stage1.inference.outputs import ModelOutputs
    from stage1.runs.runner import Context
    from stage1.training.sweep import Swept

TRAINING_ROLES = ("train", "val_select")
SCORED_ROLES = ("val_select", "val_calib", "val_test")
SWEEP_TOLERANCE = 1e-4  # of a logit: one head's sums and those of a stack are rounded differently


def extract(run: RunDir, context: Context) -> list[Path]:
    """Features of train and val_select by the backbone, the run's own where it has made one; backbone.onnx,
    exported once.
    """
    from stage1.data.table import SampleTable
    from stage1.features import FeatureStore, extract_features
    from stage1.model.backbone import load_backbone
    from stage1.model.export import export_backbone
    from stage1.model.origin import origin

    config = run.config
    table = SampleTable.read(run / "samples.parquet")
    rows = np.concatenate([table.rows(role) for role in TRAINING_ROLES])
    backbone = load_backbone(backbone_config(run, backbone_file(config)), config.seed)
    onnx = run / "backbone.onnx"
    if not (onnx.is_file() and _made_of(run, backbone.fingerprint, onnx)):
        export_backbone(backbone, onnx)
    store = FeatureStore(config.features.store or run / "features")
    with context.progress.bar("images", len(rows)) as advance:
        seen = 0

        def report(state: Any) -> None:
            nonlocal seen
            advance(
                state.done - seen, f"{state.images_per_second:.0f} img/s, {state.waiting_share:.0%} waiting for decode"
            )
            seen = state.done

        done = extract_features(
            table.ids[rows].tolist(),
            table.items(rows),
            backbone,
            onnx,
            store,
            config.features,
            engine=config.features.engine,
            progress=report,
            views=config.views.cached,
        )
    if done.failed:
        name, error = done.failed[0]
        raise SourceChanged(
            f"{name}: could be read at the split and cannot now ({error}); restore it, or run `stage1 split` again"
        )
    views = config.views.cached
    of_views = "" if views is None else f", {views.description} of each"
    context.progress.say(f"  {len(rows)} images{of_views}, engine {done.engine}")
    write_document(
        run / "features.json",
        {
            "backbone": backbone.name,
            "pooling": backbone.pooling,
            "fingerprint": backbone.fingerprint,
            "licence": backbone.licence,
            "base_model": backbone.origin.base_model,
            "weights_sha256": origin(config.backbone).weights_sha256,
            "weights": Path(backbone.weights).name,
            "dim": backbone.dim,
            "preprocessing": backbone.preprocessing.to_json(),
            "backbone_onnx": digest_file(onnx),
            "engine": done.engine,
            "key": done.key.to_json(),
            "store": config.features.store,
            "seed": config.seed,
            **({} if views is None else {"views": views.to_json()}),
        },
        FEATURES_KIND,
    )
    return [onnx, run / "features.json"]


def _made_of(run: RunDir, fingerprint: str, onnx: Path) -> bool:
    path = run / "features.json"
    if not path.is_file():
        return False
    document = read_document(path, FEATURES_KIND)
    return bool(document["fingerprint"] == fingerprint and document["backbone_onnx"] == digest_file(onnx))


def train(run: RunDir, context: Context) -> list[Path]:
    """The head, on cached features of train; epoch and EMA are chosen on val_select, and so is it against the one
    of `tune`.
    """
    from stage1.data.table import SampleTable
    from stage1.training import train_head
    from stage1.training.view_pooling import ViewTraining

    config, document = run.config, read_document(run / "features.json", FEATURES_KIND)
    table = SampleTable.read(run / "samples.parquet")
    features, labels = zip(*(_features(run, document, table, role) for role in TRAINING_ROLES), strict=True)
    inputs = run / "checkpoints" / "inputs"
    digest = (
        digest_file(run / "features.json")
        + digest_file(run / "samples.parquet")
        + str((config.head, config.train, config.sweep, config.seed))
        + learning_state(run)
    )
    fresh = not inputs.is_file() or inputs.read_text(encoding="utf-8") != digest
    if fresh:
        for name in ("checkpoints/last.safetensors", "model_best.pth"):
            (run / name).unlink(missing_ok=True)
        write_text(inputs, digest)
    groups = [table.groups[table.rows(role)] for role in TRAINING_ROLES]
    swept, settings, head, seed = None, config.train, config.head, config.seed
    if config.sweep.enabled:
        swept = _sweep(run, context, features, labels, groups[1], len(table.classes))
        settings, head, seed = swept.candidate.train, swept.candidate.head, swept.candidate.seed
    learn = config.views.train
    views = ViewTraining(learn, config.views.pool) if learn in ("views", "mil") else None
    with context.progress.bar("epochs", settings.epochs) as advance, context.stop.deferred():
        result = train_head(
            features[0],
            labels[0],
            features[1],
            labels[1],
            config=settings,
            head=head,
            n_classes=len(table.classes),
            seed=seed,
            folder=run.path,
            stop=context.stop,
            fresh=fresh,
            groups=groups[0],
            views=views,
            progress=lambda row: advance(1, f"val_select nll {row['select_nll']:.4f}"),
        )
    kind = "EMA" if result.used_ema else "raw"
    context.progress.say(
        f"  best epoch {result.best_epoch} of {result.epochs_run} ({kind} weights): "
        f"{config.train.select_by} {result.best_metric:.4f} on val_select"
    )
    result, along = better_head(run, result, features[1], labels[1], len(table.classes), context)
    facts: dict[str, Any] = {
        "best_epoch": result.best_epoch,
        "best_metric": result.best_metric,
        "select_by": config.train.select_by,
        "used_ema": result.used_ema,
        "epochs_run": result.epochs_run,
        "metrics": dict(result.metrics),
        **along,
    }
    if result.gate is not None:
        facts["gate"] = result.gate.to_json()
        collapsed = result.gate.collapsed or ""
        named = "" if collapsed.startswith("not fitted") else "collapsed, "
        state = (
            f"WARNING {named}{collapsed}"
            if collapsed
            else (
                f"g between {result.gate.low:.3f} and {result.gate.high:.3f} for 95 % of val_select"
                + ("" if result.gate.auroc is None else f", AUROC of right answers {result.gate.auroc:.3f}")
            )
        )
        context.progress.say(f"  gate: {state}")
    if swept is not None:
        facts["sweep"] = _winner(swept, result.head, features[1], context)
    write_document(run / "train.json", facts, TRAIN_KIND)
    written = [run / "model_best.pth", run / "metrics.csv", run / "train.json"]
    return written if swept is None else [*written, run / "sweep.csv"]


def _sweep(
    run: RunDir, context: Context, features: Any, labels: Any, select_groups: NDArray[np.str_], n_classes: int
) -> Swept:
    """The best configuration of the sweep; the table of all goes to sweep.csv."""
    from stage1.training.selection import checked_features
    from stage1.training.sweep import SWEEP, candidates, train_sweep, write_sweep

    config = run.config
    entrants = candidates(config.sweep, config.train, config.head, config.seed)
    both = [
        checked_features(features[place], labels[place], n_classes, role) for place, role in enumerate(TRAINING_ROLES)
    ]
    with context.progress.bar(f"epochs of {len(entrants)} heads", config.train.epochs) as advance:
        found = train_sweep(
            both[0],
            both[1],
            entrants,
            n_classes=n_classes,
            groups=select_groups,
            resamples=config.sweep.resamples,
            progress=lambda epoch: advance(1, ""),
            stop=context.stop,
        )
    write_sweep(run / SWEEP, found)
    best = found[0].candidate
    width = f", hidden {best.head.hidden}" if best.head.kind == "mlp" else ""
    context.progress.say(
        f"  best of {len(found)} heads: learning_rate {best.train.learning_rate:g}, weight_decay"
        f" {best.train.weight_decay:g}, label_smoothing {best.train.label_smoothing:g}{width}, seed {best.seed}: AUGRC"
        f" {found[0].metrics.augrc:.5f} ({found[0].augrc_low:.5f} to {found[0].augrc_high:.5f}) on val_select"
    )
    return found[0]


def _winner(swept: Swept, head: Any, select: NDArray[np.float32], context: Context) -> dict[str, Any]:
    """Facts on the winner, and whether it gives the same logits trained alone as it did among the others."""
    from stage1.training.selection import all_logits

    difference = float(np.abs(all_logits([head], select)[0] - swept.logits).max())
    agrees = difference <= SWEEP_TOLERANCE
    if not agrees:
        context.progress.say(
            f"  WARNING the winner trained alone differs from the sweep by up to {difference:.3g} in a logit (expected "
            f"<= {SWEEP_TOLERANCE:g}): near-tied epochs; what ships is the one trained alone"
        )
    best = swept.candidate
    return {
        "learning_rate": best.train.learning_rate,
        "weight_decay": best.train.weight_decay,
        "label_smoothing": best.train.label_smoothing,
        "hidden": best.head.hidden,
        "seed": best.seed,
        "augrc": swept.metrics.augrc,
        "augrc_low": swept.augrc_low,
        "augrc_high": swept.augrc_high,
        "largest_difference": difference,
        "agrees": agrees,
    }


def trained_head(run: RunDir) -> HeadConfig:
    """The config of the head in model_best.pth: a sweep may have chosen its width."""
    config = run.config
    if not config.sweep.enabled:
        return config.head
    chosen = read_document(run / "train.json", TRAIN_KIND)["sweep"]
    return config.head.model_copy(update={"hidden": chosen["hidden"]})


def _features(
    run: RunDir, document: dict[str, Any], table: SampleTable, role: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from stage1.features import FeatureKey, FeatureStore, per_view

    rows = table.rows(role)
    store = FeatureStore(document["store"] or run / "features")
    features = store.read(table.ids[rows].tolist(), FeatureKey(**document["key"]))
    views = ViewPolicy.from_json(document["views"]) if "views" in document else None
    made = per_view(features, views)
    if views is not None and run.config.views.train == "pooled":
        from stage1.model.view_pooling import pool_features

        made = pool_features(made, views)
    return made, table.labels[rows]


def export(run: RunDir, context: Context) -> list[Path]:
    """model.onnx, and the parity gate: trained and exported model on the same real images, through the full path."""
    from stage1.data.table import SampleTable
    from stage1.inference import Predictor
    from stage1.model.backbone import load_backbone
    from stage1.model.export import export_model
    from stage1.model.view_pooling import pooled_width
    from stage1.training import load_head

    config, document = run.config, read_document(run / "features.json", FEATURES_KIND)
    table = SampleTable.read(run / "samples.parquet")
    backbone = load_backbone(backbone_config(run, backbone_file(config)), config.seed)
    if backbone.fingerprint != document["fingerprint"]:
        raise IntegrityError(
            f"{run / 'features.json'}: made by another backbone than the one loaded now; run `stage1 extract` again"
        )
    together, policy = pooled_views(run), config.views.policy
    width = backbone.dim if together is None else pooled_width(backbone.dim, together.policy)
    head = load_head(run / "model_best.pth", trained_head(run), width, len(table.classes))
    export_model(run / "backbone.onnx", head, run / "model.onnx", views=None if together is None else together.policy)
    rows = table.rows("val_select")
    tensors_each = 1 if policy is None else policy.count
    images = min(len(rows), -(-config.export.parity_images // tensors_each))
    # Spread over the role: neighbouring rows may be frames of one video.
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, images).astype(int))]
    items = table.items(rows)
    predictor = Predictor(run / "model.onnx", backbone.preprocessing, table.classes, views=together)
    exported, gates = _exported_outputs(predictor, table, rows, policy if together is None else None)
    trained, trained_gates = _trained_outputs(backbone, head, items, policy, together=together is not None)
    difference = float(np.abs(exported - trained).max())
    if gates is not None and trained_gates is not None:
        difference = max(difference, float(np.abs(gates - trained_gates).max()))
    passed = bool(difference <= config.export.parity_tolerance and (exported.argmax(1) == trained.argmax(1)).all())
    write_document(
        run / "parity.json",
        {
            "images": len(rows),
            "tolerance": config.export.parity_tolerance,
            "largest_difference": difference,
            "same_class": int((exported.argmax(1) == trained.argmax(1)).sum()),
            "passed": passed,
            "model": digest_file(run / "model.onnx"),
            "weights": digest_file(run / "model_best.pth"),
        },
        PARITY_KIND,
    )
    if not passed:
        raise IntegrityError(
            f"{run / 'model.onnx'}: logits differ from the trained model's by up to {difference:.3g} on {len(rows)}"
            f" images (allowed: {config.export.parity_tolerance:g}); see parity.json"
        )
    context.progress.say(
        f"  parity: largest difference {difference:.2g} on {len(rows)} images (allowed"
        f" {config.export.parity_tolerance:g})"
    )
    return [run / "model.onnx", run / "parity.json"]


def _exported_outputs(
    predictor: Predictor, table: SampleTable, rows: NDArray[np.int64], policy: ViewPolicy | None
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Logits [n, K] and gate logits of the exported model; with a policy, of each view as a row of its own."""
    if policy is None:
        answered, logits, gates, failures = predictor.outputs(table.items(rows))
        require_all(table, rows, answered, failures)
        return logits, gates
    answered, outputs, failures = predictor.view_outputs(table.items(rows), policy)
    require_all(table, rows, answered, failures)
    return outputs.logits.reshape(-1, len(table.classes)), None if outputs.gate is None else outputs.gate.reshape(-1)


def _trained_outputs(
    backbone: Any, head: Any, items: list[Any], policy: ViewPolicy | None, *, together: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """The same of the trained model."""
    import torch

    from stage1.model.head import split
    from stage1.model.view_pooling import pool_features
    from stage1.runtime.images import decode

    spec = backbone.preprocessing
    logits, gates = [], []
    with torch.inference_mode():
        for start in range(0, len(items), 16):
            images = [decode(item(), max_pixels=spec.max_pixels) for item in items[start : start + 16]]
            batch = np.concatenate([cut(image, policy or WHOLE, spec) for image in images])
            features = backbone.features(batch)
            if together and policy is not None:
                features = pool_features(features.reshape(len(images), policy.count, -1), policy)
            made, gate = split(head(torch.from_numpy(features)))
            logits.append(made.numpy())
            if gate is not None:
                gates.append(gate.numpy())
    return np.concatenate(logits), np.concatenate(gates) if gates else None


def score(run: RunDir, context: Context) -> list[Path]:
    """Scores of the evaluation roles, from image bytes, by the exported model and the predictor that users run.

    Views, where the run has them, are fixed first, on val_select; every other role is then scored with what ships, and
    val_select too, unless what ships was fitted on it: then each of its images by a fit on the other folds.
    """
    from stage1.data.table import SampleTable
    from stage1.inference import Predictor

    document = read_document(run / "features.json", FEATURES_KIND)
    parity = read_document(run / "parity.json", PARITY_KIND)
    if not parity["passed"] or parity["model"] != digest_file(run / "model.onnx"):
        raise IntegrityError(f"{run / 'parity.json'}: is not of this model.onnx; run `stage1 export` again")
    table = SampleTable.read(run / "samples.parquet")
    spec = Preprocessing.from_json(document["preprocessing"])
    written: list[Path] = []
    views = None
    known: dict[str, ModelOutputs] = {}
    (run / VIEWS_FILE).unlink(missing_ok=True)
    if (together := pooled_views(run)) is not None:
        together.save(run / VIEWS_FILE)
        written.append(run / VIEWS_FILE)
        views = shipped_views(run)
        predictor = Predictor(run / "model.onnx", spec, table.classes, views=views)
        context.progress.say(f"  views: {together.description}")
    elif run.config.views.policy is not None:
        predictor = Predictor(run / "model.onnx", spec, table.classes)
        chosen = choose_views(run, predictor, table, context.progress.say)
        chosen.views.save(run / VIEWS_FILE)
        written.append(run / VIEWS_FILE)
        views = shipped_views(run)  # as a bundle reads it
        if views is not None:
            known["val_select"] = chosen.answered(spec)
            predictor = Predictor(run / "model.onnx", spec, table.classes, views=views)
    else:
        predictor = Predictor(run / "model.onnx", spec, table.classes)
    for role in SCORED_ROLES:
        rows = table.rows(role)
        answered = known[role] if role in known else _scored(predictor, table, rows)
        looked = "" if answered.looked is None else f", {answered.looked.used.mean():.2f} views on average"
        context.progress.say(f"  {role}: {len(rows)} images{looked}")
        if together is not None and role == "val_select" and answered.looked is not None:
            say_small(int(answered.looked.small.sum()), len(rows), spec, context.progress.say)
        if role == LOOKED_ROLE:
            written += save_looked(run, answered.looked)
        scores = answered.scores(
            labels=table.labels[rows],
            groups=table.groups[rows],
            ids=table.ids[rows],
            slices={name: values[rows] for name, values in table.slices.items()},
        )
        written += write_role(run.path, role, scores)
    return written


def _scored(predictor: Predictor, table: SampleTable, rows: NDArray[np.int64]) -> ModelOutputs:
    places, answered, failures = predictor.answered(table.items(rows))
    require_all(table, rows, places, failures)
    return answered
