"""pretrain: the backbone adapted to unlabelled images, before features are extracted; only where it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage1.config import RunConfig
from stage1.runs.artifacts import PRETRAINED_WEIGHTS, preprocessing_file, present
from stage1.runs.directory import RunDir
from stage1.runs.schema import PRETRAIN_KIND
from stage1.runs.stage import Context, Stage
from stage1.stages.own_backbone import MODULES, backbone_config, embedded_weights, share_line
from stage1.stages.resuming import is_fresh, remember
from stage1.storage.documents import write_document
from stage1.storage.files import digest_bytes

if TYPE_CHECKING:
    from stage1.training.pretrain.unlabelled import Prints

# Below this share of what rank and spread were before pretraining a person should look; training itself ends at
# collapse_share.
_WORRYING = 0.5


def folder_state(run: RunDir) -> str:
    """Digest of path, size and time of every unlabelled image; "" without a folder."""
    folder = run.config.pretrain.folder
    if folder is None:
        return ""
    from stage1.training.pretrain.unlabelled import unlabelled_images

    found = [(path, path.stat()) for path in unlabelled_images(folder)]
    return digest_bytes("\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in found).encode())


def _preflight(config: RunConfig) -> None:
    """The folder is listed and the backbone built, with what adapts it: what cannot be had is said now."""
    from stage1.model.backbone import load_backbone
    from stage1.training.distributed import chosen_device
    from stage1.training.half import half_precision
    from stage1.training.pretrain.adapter import prepare_explora
    from stage1.training.pretrain.unlabelled import unlabelled_images

    if config.pretrain.folder is not None:
        unlabelled_images(config.pretrain.folder)
    half_precision(config.pretrain.precision, chosen_device(config.pretrain.device))
    prepare_explora(load_backbone(config.backbone, config.seed), config.pretrain, config.seed)


def pretrain(run: RunDir, context: Context) -> list[Path]:
    """ExPLoRA on unlabelled images; backbone_explora.safetensors.

    Raises DataError where an unlabelled image is, or nearly is, in val_calib or val_test.
    """
    from stage1.model.backbone import load_backbone
    from stage1.model.export import require_exportable
    from stage1.training.distributed import chosen_device
    from stage1.training.pretrain.run import pretrain as pretrained

    config, settings = run.config, run.config.pretrain
    backbone = load_backbone(backbone_config(run, ""), config.seed)  # before the images: what lacks is said at once
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
    made_of = (backbone.fingerprint, backbone.preprocessing.digest)
    facts = (settings.model_copy(update=free), *made_of, config.seed, images.ids)
    inputs, path = digest_bytes(repr(facts).encode()), run / "checkpoints" / "pretrain_inputs"
    fresh = is_fresh(path, inputs)
    if fresh:
        (run / PRETRAINED_WEIGHTS).unlink(missing_ok=True)
        remember(path, inputs)
    with context.progress.bar("epochs", settings.epochs) as advance, context.stop.deferred():
        result = pretrained(
            backbone,
            images,
            config=settings,
            seed=config.seed,
            folder=run.path,
            stop=context.stop,
            fresh=fresh,
            started=lambda trained, parameters: context.progress.say(share_line(trained, parameters)),
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
    return [run / PRETRAINED_WEIGHTS, run / "pretrain.csv", run / "pretrain.json"]


def _unlabelled(run: RunDir) -> Prints:
    """The images to pretrain on: of the folder, checked against the roles that judge, and of train."""
    from stage1.data.table import SampleTable
    from stage1.training.pretrain.unlabelled import printed, protected_images, refuse_overlap, unlabelled_images

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


STAGE = Stage(
    name="pretrain",
    sections=("pretrain", "backbone", "seed"),
    reads=lambda config: present("samples.parquet", preprocessing_file(config)),
    work=pretrain,
    external=folder_state,
    wanted=lambda config: config.pretrains,
    asked_by="pretrain.folder=FOLDER or pretrain.train_images=true",
    modules=MODULES,
    modules_by_config=embedded_weights,
    preflight=_preflight,
)
