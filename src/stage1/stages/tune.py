"""pretrain, tune: the stages that make the run's own backbone, before features are extracted; each only where it is
asked for.

    split -> [pretrain] -> [tune] -> extract -> train -> ...
Whatever they change ends in one file of plain timm weights; from `extract` on it is a backbone as any other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage1.config import BackboneConfig, RunConfig, TrainConfig
from stage1.errors import ConfigError
from stage1.runs.directory import RunDir
from stage1.runs.documents import PRETRAIN_KIND, TUNE_KIND
from stage1.storage.documents import read_document, write_document
from stage1.storage.files import digest_bytes, digest_file, write_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stage1.model.backbone import Backbone
    from stage1.runs.runner import Context
    from stage1.training import TrainResult
    from stage1.training.pretrain.data import Prints

TUNE_FOLDER = "tune"
_TUNED = f"{TUNE_FOLDER}/backbone_tuned.safetensors"
_ALONG = f"{TUNE_FOLDER}/model_best.pth"
_PRETRAINED = "backbone_explora.safetensors"
ASKED_BY = {
    "pretrain": "pretrain.folder=FOLDER or pretrain.train_images=true",
    "tune": "adapter.kind=lora (or another) or images.unfreeze=last",
}
# Below this share of what rank and spread were before pretraining a person should look; training itself ends at
# collapse_share.
_WORRYING = 0.5


def pretrained_file(config: RunConfig) -> str:
    """The weights that `pretrain` writes, or "" where the run has no such stage."""
    return _PRETRAINED if config.pretrains else ""


def backbone_file(config: RunConfig) -> str:
    """The weights of the run's own backbone, made by `tune` or else `pretrain`; "" where the run has neither."""
    return _TUNED if config.tunes else pretrained_file(config)


def along_file(config: RunConfig) -> str:
    """The head that `tune` trains along with the backbone, which `train` looks at; "" where the run has no such
    stage.
    """
    return _ALONG if config.tunes else ""


def backbone_config(run: RunDir, file: str) -> BackboneConfig:
    """The backbone of the config, with the weights in `file` of the run directory ("": its own)."""
    given = run.config.backbone
    if not file:
        return given
    from stage1.model.origin import origin

    # Weights that the run made from others stay under the licence of those.
    known = origin(given)
    return given.model_copy(
        update={
            "weights": str(run / file),
            "random_weights": False,
            "licence": known.licence,
            "base_model": known.base_model,
        }
    )


def tune_settings(config: RunConfig) -> TrainConfig:
    """How the backbone is trained: `train`, with what `images` says instead, and the loss that works on images."""
    images = config.images
    return config.train.model_copy(
        update={
            "epochs": images.epochs,
            "batch_size": images.batch_size,
            "learning_rate": images.learning_rate,
            "objective": "ce",
            "entropy": 0.0,
        }
    )


# ---- pretrain ----------------------------------------------------------------------------------------------------


def folder_state(run: RunDir) -> str:
    """Digest of path, size and time of every unlabelled image; "" without a folder."""
    folder = run.config.pretrain.folder
    if folder is None:
        return ""
    from stage1.training.pretrain.data import unlabelled_images

    found = [(path, path.stat()) for path in unlabelled_images(folder)]
    return digest_bytes("\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in found).encode())


def pretrain(run: RunDir, context: Context) -> list[Path]:
    """ExPLoRA on unlabelled images; backbone_explora.safetensors.

    Raises DataError where an unlabelled image is, or nearly is, in val_calib or val_test.
    """
    from stage1.model.backbone import load_backbone
    from stage1.model.export import require_exportable
    from stage1.training.distributed import chosen_device
    from stage1.training.pretrain.run import pretrain as pretrained

    config, settings = run.config, run.config.pretrain
    backbone = load_backbone(config.backbone, config.seed)  # before the images: what lacks is said at once
    require_exportable(backbone)
    images = _unlabelled(run)
    context.progress.say(f"  {len(images)} images, objective {settings.objective}")
    free = {
        "folder": None,
        "train_images": False,
        "workers": 0,
        "threads": 0,
        "device": chosen_device(settings.device).type,
    }
    facts = (settings.model_copy(update=free), backbone.fingerprint, config.seed, images.ids)
    inputs, path = digest_bytes(repr(facts).encode()), run / "checkpoints" / "pretrain_inputs"
    fresh = _is_fresh(path, inputs)
    if fresh:
        (run / _PRETRAINED).unlink(missing_ok=True)
        _remember(path, inputs)
    with context.progress.bar("epochs", settings.epochs) as advance, context.stop.deferred():
        result = pretrained(
            backbone,
            images,
            config=settings,
            seed=config.seed,
            folder=run.path,
            stop=context.stop,
            fresh=fresh,
            started=lambda trained, parameters: context.progress.say(_share_line(trained, parameters)),
            progress=lambda row: advance(1, f"loss {row['loss']:.4f}, rank {row['rank']:.1f}"),
        )
    first, last = result.rows[0], result.rows[-1]
    vitals = {name: (getattr(result.before, name), float(last[name])) for name in ("rank", "spread")}
    context.progress.say(
        f"  loss {first['loss']:.4f} -> {last['loss']:.4f}; of the features: "
        + ", ".join(f"{name} {before:.3g} -> {after:.3g}" for name, (before, after) in vitals.items())
    )
    for name, (before, after) in vitals.items():
        if after < _WORRYING * before:
            context.progress.say(
                f"  WARNING {name} of the features fell to {after / before:.0%}: near collapse; compare with a run"
                " without pretraining, lower pretrain.learning_rate or use the other pretrain.objective"
            )
    if not last["loss"] < first["loss"] and len(result.rows) > 1:
        context.progress.say("  WARNING the loss did not fall; more pretrain.epochs or another pretrain.learning_rate")
    write_document(
        run / "pretrain.json",
        {
            "objective": settings.objective,
            "images": len(images),
            "loss_first": float(first["loss"]),
            "loss_last": float(last["loss"]),
            "rank_before": vitals["rank"][0],
            "rank_after": vitals["rank"][1],
            "spread_before": vitals["spread"][0],
            "spread_after": vitals["spread"][1],
            "share": result.share,
            "adapted": len(result.adapted),
            "fingerprint": result.backbone.fingerprint,
        },
        PRETRAIN_KIND,
    )
    return [run / _PRETRAINED, run / "pretrain.csv", run / "pretrain.json"]


def _unlabelled(run: RunDir) -> Prints:
    """The images to pretrain on: of the folder, checked against the roles that judge, and of train."""
    from stage1.data.table import SampleTable
    from stage1.training.pretrain.data import printed, protected_images, refuse_overlap, unlabelled_images

    config, settings = run.config, run.config.pretrain
    table = SampleTable.read(run / "samples.parquet")
    items: list[Any] = []
    names: list[str] = []
    if settings.folder is not None:
        paths = unlabelled_images(settings.folder)
        found = printed(
            paths, [str(path) for path in paths], workers=settings.workers, max_pixels=config.data.max_pixels
        )
        protected = protected_images(table, workers=settings.workers)
        refuse_overlap(found, protected, config.data.near_duplicate_distance)
        if not settings.train_images:
            return found
        items, names = list(found.items), list(found.names)
    # Of train nothing is checked: the split keeps images and near-duplicates of it out of the other roles.
    rows = table.rows("train")
    items, names = [*items, *table.items(rows)], [*names, *table.paths[rows].tolist()]
    return printed(items, names, workers=settings.workers, max_pixels=config.data.max_pixels)


# ---- tune --------------------------------------------------------------------------------------------------------


def tune(run: RunDir, context: Context) -> list[Path]:
    """The backbone on the labelled images of train; epoch and EMA are chosen on val_select.
    tune/backbone_tuned.safetensors.

    Under torchrun every process is here; the first one writes.
    """
    from stage1.data.table import SampleTable
    from stage1.model.backbone import load_backbone
    from stage1.model.export import require_exportable
    from stage1.training.distributed import chosen_device, processes
    from stage1.training.head_choice import ALONG
    from stage1.training.images import ADAPTER, train_on_images

    config, folder = run.config, run / TUNE_FOLDER
    settings = tune_settings(config)
    backbone = load_backbone(backbone_config(run, pretrained_file(config)), config.seed, config.images.drop_path)
    if not is_follower():
        for line in _what_learns(config, backbone):
            context.progress.say(line)
        require_exportable(backbone)
    table = SampleTable.read(run / "samples.parquet")
    roles = []
    for role in ("train", "val_select"):
        rows = table.rows(role)
        roles.append((table.ids[rows].tolist(), table.items(rows), table.labels[rows]))
    device = chosen_device(config.images.device)
    with processes(device) as group:
        free = {"workers": 0, "threads": 0, "device": device.type}
        facts = (settings, config.images.model_copy(update=free), config.adapter, config.seed, backbone.fingerprint)
        inputs = digest_bytes(repr((facts, digest_file(run / "samples.parquet"))).encode())
        # Asked of all before the first one writes it down, so that all start in the same way.
        fresh = group.any(_is_fresh(folder / "inputs", inputs))
        if fresh and group.first:
            for old in [run / _TUNED, *(folder / ADAPTER).glob("*")]:
                old.unlink(missing_ok=True)
            _remember(folder / "inputs", inputs)
        with context.progress.bar("epochs", settings.epochs) as advance, context.stop.deferred():
            result = train_on_images(
                backbone,
                *roles,
                config=settings,
                head=ALONG,
                images=config.images,
                adapter=config.adapter,
                n_classes=len(table.classes),
                seed=config.seed,
                folder=folder,
                stop=context.stop,
                fresh=fresh,
                section="images",
                started=lambda trained, parameters: context.progress.say(_share_line(trained, parameters)),
                progress=lambda row: advance(1, _tune_note(row)),
            )
        if not group.first:
            return []
    kind = "EMA" if result.used_ema else "raw"
    context.progress.say(
        f"  best epoch {result.best_epoch} of {result.epochs_run} ({kind} weights): {settings.select_by} "
        f"{result.best_metric:.4f} on val_select; {result.waiting_share:.0%} of the time waiting for images"
    )
    if config.head.gate in ("linear", "mlp"):
        context.progress.say(
            "  WARNING head.gate: the backbone has seen the labels of train, so a gate fitted there sees too few"
            " errors; accept it only by its gain on val_select"
        )
    write_document(
        folder / "tune.json",
        {
            "best_epoch": result.best_epoch,
            "best_metric": result.best_metric,
            "select_by": settings.select_by,
            "used_ema": result.used_ema,
            "epochs_run": result.epochs_run,
            "metrics": result.metrics,
            "trainable": result.trainable,
            "share": result.share,
            "processes": group.world,
            "fingerprint": result.backbone.fingerprint,
        },
        TUNE_KIND,
    )
    adapter = sorted((folder / ADAPTER).glob("*"))
    return [run / _TUNED, run / _ALONG, folder / "metrics.csv", folder / "tune.json", *adapter]


def better_head(
    run: RunDir,
    again: TrainResult,
    select: NDArray[np.float32],
    labels: NDArray[np.int64],
    n_classes: int,
    context: Context,
) -> tuple[TrainResult, dict[str, Any]]:
    """Of the head that `train` has just made and the one that `tune` trained along, the better one, and what train.json
    says of it.

    select: features of val_select, where the choice is made and nowhere else. In a run without `tune` there is one head
    alone.
    """
    from stage1.training.head_choice import better_head as better
    from stage1.training.head_choice import why_not_compared

    if not run.config.tunes:
        return again, {}
    if (reason := why_not_compared(run.config)) is not None:
        context.progress.say(f"  the head trained along with the backbone is not compared: {reason}")
        return again, {"along": {"ships": "again", "skipped": reason}}
    by, facts = run.config.train.select_by, read_document(run / TUNE_FOLDER / "tune.json", TUNE_KIND)
    result, compared = better(again, run / _ALONG, facts, select, labels, by=by, n_classes=n_classes, folder=run.path)
    which = "one trained along" if compared.ships == "along" else "new one"
    scaled = ", at the temperature that is best for each" if by == "nll" else ""
    context.progress.say(
        f"  {by} on val_select{scaled}: this head {compared.again.value(by):.5f}, the one trained along with the"
        f" backbone {compared.along.value(by):.5f}; the {which} ships"
    )
    return result, {"along": compared.to_json()}


def is_follower() -> bool:
    """Whether torchrun started this process as another than the first one: it computes, and writes nothing."""
    return int(os.environ.get("RANK", "0")) > 0


def require_alone(what: str) -> None:
    """Raises ConfigError under torchrun: only `tune` shares its work between processes."""
    if (world := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ConfigError(
            f"{what} is the work of one process, torchrun started {world}; start it without, only `tune` takes many"
        )


# ---- small things ------------------------------------------------------------------------------------------------


def _what_learns(config: RunConfig, backbone: Backbone) -> list[str]:
    """Lines on which linear layers an adapter changes and which it leaves out, and on stochastic depth."""
    from stage1.model.adapter import LOW_RANK, layer_counts, left_out, linear_targets
    from stage1.model.backbone import drop_path_rates

    model, lines = backbone.module.model, []
    if config.adapter.kind in LOW_RANK:
        names = linear_targets(model, config.adapter, backbone.name)
        others = left_out(model, names)
        rest = f"; left out: {_counted(others)}" if others else "; none is left out"
        lines.append(f"  {config.adapter.kind} on {len(names)} linear layers: {_counted(layer_counts(names))}{rest}")
    rates = drop_path_rates(model)
    depth = f"up to {max(rates):g} in {len(rates)} places" if rates else "none (images.drop_path sets it)"
    return [*lines, f"  stochastic depth: {depth}"]


def _counted(names: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in names.items())


def _share_line(trained: int, parameters: int) -> str:
    return f"  {trained:,} of {parameters:,} parameters are trained ({trained / parameters:.2%})"


def _tune_note(row: Mapping[str, Any]) -> str:
    return f"loss {row['train_loss']:.4f}, val_select nll {row['select_nll']:.4f}"


def _is_fresh(path: Path, inputs: str) -> bool:
    return not path.is_file() or path.read_text(encoding="utf-8") != inputs


def _remember(path: Path, inputs: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, inputs)
