"""preprocess: how images are fitted to the model's square, chosen on train and val_select; only where it is left open.

    split -> [preprocess] -> [pretrain] -> [tune] -> extract -> ...
Judged with the backbone as it starts, before the run changes it. Features go to the run's store, so `extract` makes
those of the winner no second time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import ConfigError, SourceChanged
from stage1.runs.artifacts import PREPROCESS_FOLDER, PREPROCESSING_FILE, always
from stage1.runs.directory import RunDir
from stage1.runs.schema import PREPROCESSING_KIND
from stage1.runs.stage import Context, Stage
from stage1.runtime.preprocessing import Fit, Preprocessing
from stage1.stages.extract import TRAINING_ROLES, extracted
from stage1.stages.own_backbone import MODULES, embedded_weights, exported, fitted
from stage1.storage.documents import write_document

if TYPE_CHECKING:
    from stage1.data.table import SampleTable
    from stage1.model.backbone import Backbone
    from stage1.training.cross_validation import PairedDifference
    from stage1.training.preprocessing_choice import Judged

FITS: tuple[Fit, ...] = ("center_crop", "squash", "letterbox")
"""In order of preference. First what the weights were evaluated with, at about the scale that they were trained on: on
road signs, road surfaces and drawn scenes the held-out AUROC was higher than squashed by .038, .027 and .010 in the
mean (benchmarks/side_by_side/depths.py). The others win by what the sample shows, as where evidence is at the edges.
"""
MOST_IMAGES = 1200
"""Images that are judged, at most: more would cost more than the choice is worth."""
FEWEST_GROUPS = 10
"""Groups that hold a class, at least: below, out of fold is by chance."""
_LARGER = 1.3  # of the model's own side
_STEP = 32  # pixels: the reduction of a ConvNet


def preprocess(run: RunDir, context: Context) -> list[Path]:
    """preprocessing.json: the fit and the input side of this run, and the table they were chosen from."""
    from stage1.data.spread import spread_sample
    from stage1.data.table import SampleTable
    from stage1.model.backbone import load_backbone
    from stage1.training.grouped_folds import fewest_groups
    from stage1.training.preprocessing_choice import tell_nothing

    config = run.config
    table = SampleTable.read(run / "samples.parquet")
    known = np.concatenate([table.rows(role) for role in TRAINING_ROLES])
    preferred = FITS[0] if config.backbone.fit == "auto" else config.backbone.fit
    first = load_backbone(fitted(config.backbone, preferred, None, config.backbone.crop_pct), config.seed)
    worst, held = fewest_groups(table.labels[known], table.groups[known], len(table.classes))
    if held < FEWEST_GROUPS:
        reason = (
            f"{first.preprocessing.in_words}: {table.classes[worst]!r} is in {held} groups of train and val_select,"
            f" {FEWEST_GROUPS} are needed to compare others"
        )
        return [_written(run, context, first.preprocessing, reason, known[:0], table, [], [], [])]
    sample = spread_sample(table.labels[known], table.groups[known], table.ids[known], MOST_IMAGES, config.seed)
    search = _Search(run, context, table, known[sample], first)
    fits, left_out = _fits(config.backbone.fit, table, known[sample], first.preprocessing.max_pixels)
    judged = [search.judged(fit, None) for fit in fits]
    index, apart = search.best(judged)
    if config.backbone.input_size == "auto":
        found = search.larger(judged[index].spec)
        if isinstance(found, str):
            left_out.append(found)
        else:
            judged.append(found)
            index, apart = search.best(judged)
    if config.pretrains or config.tunes:  # `extract` will export another backbone
        shutil.rmtree(run / PREPROCESS_FOLDER, ignore_errors=True)
    reason = _reason(judged, index, apart, len(sample), tell_nothing(judged, table.labels[known[sample]]))
    return [_written(run, context, judged[index].spec, reason, known[sample], table, judged, apart, left_out)]


class _Search:
    """Candidates judged on the same images, one after the other."""

    def __init__(
        self, run: RunDir, context: Context, table: SampleTable, rows: NDArray[np.int64], first: Backbone
    ) -> None:
        self.run, self.context, self.table, self.rows, self.first = run, context, table, rows, first
        self.engine: Any = None  # that of the first candidate, so that it is measured once

    def judged(self, fit: str, size: int | None) -> Judged:
        """Raises ConfigError where the backbone does not run at that size."""
        from stage1.model.backbone import load_backbone
        from stage1.training.preprocessing_choice import judge

        config = self.run.config
        given = fitted(config.backbone, fit, size, config.backbone.crop_pct)
        same = given.first_fit == self.first.preprocessing.fit and size is None
        backbone = self.first if same else load_backbone(given, config.seed)
        spec = backbone.preprocessing
        done = extracted(
            self.run,
            self.context,
            self.table,
            self.rows,
            backbone,
            exported(self.run, backbone),
            engine=self.engine,
            what=spec.in_words,
        )
        self.engine = done.engine
        labels, groups = self.table.labels[self.rows], self.table.groups[self.rows]
        return judge(spec, done.features, labels, groups, len(self.table.classes), seed=config.seed)

    def larger(self, spec: Preprocessing) -> Judged | str:
        """The same fit at about a third more pixels a side; in words why not, where the backbone refuses."""
        size = round(_LARGER * spec.size / _STEP) * _STEP
        try:
            return self.judged(spec.fit, size)
        except ConfigError as error:
            return f"{size} px: {error}"

    def best(self, judged: Sequence[Judged]) -> tuple[int, list[PairedDifference]]:
        from stage1.training.preprocessing_choice import chosen_of

        return chosen_of(judged, self.table.labels[self.rows], self.table.groups[self.rows])


def _fits(asked: str, table: SampleTable, rows: NDArray[np.int64], max_pixels: int) -> tuple[list[str], list[str]]:
    """The fits to compare, in order of preference, and what is left out."""
    if asked != "auto":
        return [asked], []
    fits: list[str] = list(FITS)
    if all(_squares(table, rows, max_pixels)):
        fits.remove("letterbox")
        return fits, ["letterbox: every image is a square, which squash leaves as it is"]
    return fits, []


def _squares(table: SampleTable, rows: NDArray[np.int64], max_pixels: int) -> Iterator[bool]:
    from stage1.runtime.images import ImageError, is_square

    for row in rows.tolist():
        try:
            yield is_square(table.read_bytes(row), max_pixels=max_pixels)
        except (ImageError, OSError) as error:
            raise SourceChanged(
                f"{table.paths[row]}: could be read at the split and cannot now ({error}); restore it, or run `stage1"
                " split` again"
            ) from error


def _reason(judged: Sequence[Judged], index: int, apart: Sequence[PairedDifference], images: int, blind: bool) -> str:
    """One sentence: what was chosen over what."""
    best = min(range(len(judged)), key=lambda one: apart[one].difference)
    chosen = judged[index]
    others = ", ".join(f"{one.spec.in_words} {one.metrics.nll:.4f}" for one in judged if one is not chosen)
    sample = f"{images} images of train and val_select"
    text = f"{chosen.spec.in_words}: NLL {chosen.metrics.nll:.4f} out of fold on {sample}"
    if not others:
        return text
    if blind:
        text += ", no better than always the commonest class, so the others are not told apart"
    elif best != index:
        text += f", within a standard error ({apart[index].error:.4f}) of the least"
    return f"{text}; {others}"


def _written(
    run: RunDir,
    context: Context,
    chosen: Preprocessing,
    reason: str,
    rows: NDArray[np.int64],
    table: SampleTable,
    judged: Sequence[Judged],
    apart: Sequence[PairedDifference],
    left_out: Sequence[str],
) -> Path:
    for line in (reason, *left_out):
        context.progress.say(f"  {line}")
    write_document(
        run / PREPROCESSING_FILE,
        {
            "chosen": _shape(chosen),
            "reason": reason,
            "images": len(rows),
            "groups": len(np.unique(table.groups[rows])),
            "seed": run.config.seed,
            "table": [
                {
                    **_shape(one.spec),
                    "augrc": one.metrics.augrc,
                    "nll": one.metrics.nll,
                    "accuracy": one.metrics.accuracy,
                    "auroc": one.auroc,
                    "nll_excess": gap.difference,
                    "standard_error": gap.error,
                }
                for one, gap in zip(judged, apart, strict=True)
            ],
            "left_out": list(left_out),
        },
        PREPROCESSING_KIND,
    )
    return run / PREPROCESSING_FILE


def _shape(spec: Preprocessing) -> dict[str, Any]:
    return {"fit": spec.fit, "size": spec.size, "crop_pct": spec.crop_pct}


STAGE = Stage(
    name="preprocess",
    sections=("backbone", "features", "seed"),
    reads=always("samples.parquet"),
    work=preprocess,
    wanted=lambda config: config.chooses_preprocessing,
    asked_by="backbone.fit=auto or backbone.input_size=auto",
    modules=(*MODULES, "onnx", "onnxscript"),
    modules_by_config=embedded_weights,
)
