"""tune: the backbone, or an adapter in it, trained on the labelled images of train; only where it is asked for.

    split -> [pretrain] -> [tune] -> extract -> train -> ...
Whatever `pretrain` and `tune` change ends in one file of plain timm weights; from `extract` on it is a backbone as any
other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage1.config import RunConfig, TrainConfig
from stage1.runs.artifacts import (
    JOINT_HEAD,
    TUNE_FOLDER,
    TUNED_WEIGHTS,
    preprocessing_file,
    present,
    pretrained_file,
)
from stage1.runs.directory import RunDir
from stage1.runs.progress import Advance, Progress
from stage1.runs.schema import TUNE_KIND
from stage1.runs.stage import Context, Stage
from stage1.runs.torchrun import is_follower
from stage1.stages.own_backbone import MODULES, backbone_config, embedded_weights, share_line
from stage1.stages.resuming import is_fresh, remember
from stage1.storage.documents import write_document
from stage1.storage.files import digest_bytes, digest_file

if TYPE_CHECKING:
    from stage1.model.backbone import Backbone


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


def _modules_by_config(config: RunConfig) -> Iterator[str]:
    yield from embedded_weights(config)
    if config.adapter.kind in ("lora", "dora", "rslora"):
        yield "peft"


def _preflight(config: RunConfig) -> None:
    """Build the backbone and insert what tunes it, so that an impossible config fails now."""
    from stage1.model.backbone import load_backbone
    from stage1.training.distributed import chosen_device
    from stage1.training.half import half_precision
    from stage1.training.image_model import prepare

    half_precision(config.images.precision, chosen_device(config.images.device))
    prepare(load_backbone(config.backbone, config.seed), config.adapter, config.images, config.seed)


def tune(run: RunDir, context: Context) -> list[Path]:
    """The backbone on labelled images of train, to tune/backbone_tuned.safetensors; epoch and EMA by val_select.

    Under torchrun every process is here; the first one writes.
    """
    from stage1.data.table import SampleTable
    from stage1.model.backbone import load_backbone
    from stage1.model.export import require_exportable
    from stage1.training.distributed import chosen_device, processes
    from stage1.training.head_choice import TUNED_HEAD
    from stage1.training.image_tuning import ADAPTER, train_on_images
    from stage1.training.image_watch import Watch

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
        made_of = (backbone.fingerprint, backbone.preprocessing.digest)
        facts = (settings, config.images.model_copy(update=free), config.adapter, config.seed, *made_of)
        inputs = digest_bytes(repr((facts, digest_file(run / "samples.parquet"))).encode())
        # Asked of all before the first one writes it down, so that all start in the same way.
        fresh = group.any(is_fresh(folder / "inputs", inputs))
        if fresh and group.first:
            for old in [run / TUNED_WEIGHTS, *(folder / ADAPTER).glob("*")]:
                old.unlink(missing_ok=True)
            remember(folder / "inputs", inputs)
        with _Bars(context.progress) as bars, context.stop.deferred():
            result = train_on_images(
                backbone,
                *roles,
                config=settings,
                head=TUNED_HEAD,
                images=config.images,
                adapter=config.adapter,
                n_classes=len(table.classes),
                seed=config.seed,
                folder=folder,
                stop=context.stop,
                fresh=fresh,
                section="images",
                started=lambda trained, parameters: context.progress.say(share_line(trained, parameters)),
                watch=Watch(bars.begun, bars.seen, lambda line: context.progress.say(f"  {line}")),
            )
        if not group.first:
            return []
    kind = "EMA" if result.used_ema else "raw"
    context.progress.say(
        f"  best epoch {result.best_epoch} of {result.epochs_run} ({kind} weights): {settings.select_by} "
        f"{result.best_metric:.4f} on val_select; {result.waiting_share:.0%} of the time waiting for images"
    )
    if result.plan is not None and result.cut_short:
        context.progress.say(
            f"  the {config.images.minutes:g} minutes were over in epoch {result.epochs_run} of"
            f" {result.plan['epochs']}: steps took longer than at first; the best weights until then are kept"
        )
    if config.head.gate in ("linear", "mlp"):
        context.progress.say(
            "  WARNING head.gate: the backbone has seen the labels of train, so a gate fitted there sees too few"
            " errors; accept it only by its gain on val_select"
        )
    budget: dict[str, Any] = {}
    if result.plan is not None:
        plan = {name: result.plan[name] for name in ("epochs", "steps")}
        budget = {"budget": {"minutes": config.images.minutes, **plan, "cut_short": result.cut_short}}
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
            **budget,
        },
        TUNE_KIND,
    )
    adapter = sorted((folder / ADAPTER).glob("*"))
    return [run / TUNED_WEIGHTS, run / JOINT_HEAD, folder / "metrics.csv", folder / "tune.json", *adapter]


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


class _Bars:
    """One bar after another, as training goes from phase to phase."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._shown = ExitStack()
        self._advance: Advance | None = None

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.close()

    def begun(self, what: str, total: int, done: int) -> None:
        self._shown.close()
        self._advance = self._shown.enter_context(self._progress.bar(what, total, done))

    def seen(self, images: int, note: str) -> None:
        if self._advance is not None:
            self._advance(images, note)


STAGE = Stage(
    name="tune",
    sections=("images", "adapter", "train", "backbone", "seed"),
    reads=lambda config: present("samples.parquet", preprocessing_file(config), pretrained_file(config)),
    work=tune,
    wanted=lambda config: config.tunes,
    asked_by="adapter.kind=lora (or another) or images.unfreeze=last",
    modules=MODULES,
    modules_by_config=_modules_by_config,
    preflight=_preflight,
    distributed=True,
)
