"""extract: features of train and val_select by the backbone, cached."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from stage1.config import RunConfig
from stage1.errors import SourceChanged
from stage1.runs.artifacts import backbone_file, preprocessing_file, present
from stage1.runs.directory import RunDir
from stage1.runs.schema import FEATURES_KIND
from stage1.runs.stage import Context, Stage
from stage1.stages.own_backbone import MODULES, backbone_config, embedded_weights, exported
from stage1.stages.views import cached_state
from stage1.storage.documents import read_document, write_document
from stage1.storage.files import digest_file

if TYPE_CHECKING:
    from stage1.data.table import SampleTable
    from stage1.features.extract import EngineName, Extraction, Progress
    from stage1.model.backbone import Backbone
    from stage1.runtime.crops import ViewPolicy

TRAINING_ROLES = ("train", "val_select")


def _preflight(config: RunConfig) -> None:
    """A backbone that the run does not make itself is built, and its weights are read: what is missing is said now."""
    if not config.pretrains and not config.tunes:
        from stage1.model.backbone import load_backbone

        load_backbone(config.backbone, config.seed)


def extract(run: RunDir, context: Context) -> list[Path]:
    """Features of train and val_select by the backbone, the run's own where made; backbone.onnx, once."""
    from stage1.data.table import SampleTable
    from stage1.model.backbone import load_backbone
    from stage1.model.export import export_backbone
    from stage1.model.origin import origin

    config = run.config
    table = SampleTable.read(run / "samples.parquet")
    rows = np.concatenate([table.rows(role) for role in TRAINING_ROLES])
    backbone = load_backbone(backbone_config(run, backbone_file(config)), config.seed)
    onnx = run / "backbone.onnx"
    if not (onnx.is_file() and _made_of(run, backbone.fingerprint, onnx)):
        if config.chooses_preprocessing:  # which may have made it already
            exported(run, backbone).replace(onnx)
        else:
            export_backbone(backbone, onnx)
    views = config.views.cached
    done = extracted(run, context, table, rows, backbone, onnx, views=views)
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


def extracted(
    run: RunDir,
    context: Context,
    table: SampleTable,
    rows: NDArray[np.int64],
    backbone: Backbone,
    onnx: Path,
    *,
    engine: EngineName | Literal["auto"] | None = None,
    views: ViewPolicy | None = None,
    what: str = "images",
) -> Extraction:
    """Features of these rows, of the run's store where they are there. engine None: the one of the config.

    Raises SourceChanged where an image cannot be read any more.
    """
    from stage1.features import FeatureStore, extract_features

    features = run.config.features
    with context.progress.bar(what, len(rows)) as advance:
        seen = 0

        def report(state: Progress) -> None:
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
            FeatureStore(features.store or run / "features"),
            features,
            engine=engine or features.engine,
            progress=report,
            views=views,
        )
    if done.failed:
        name, error = done.failed[0]
        raise SourceChanged(
            f"{name}: could be read at the split and cannot now ({error}); restore it, or run `stage1 split` again"
        )
    return done


def _made_of(run: RunDir, fingerprint: str, onnx: Path) -> bool:
    path = run / "features.json"
    if not path.is_file():
        return False
    document = read_document(path, FEATURES_KIND)
    return bool(document["fingerprint"] == fingerprint and document["backbone_onnx"] == digest_file(onnx))


STAGE = Stage(
    name="extract",
    sections=("backbone", "features", "seed"),
    reads=lambda config: present("samples.parquet", preprocessing_file(config), backbone_file(config)),
    work=extract,
    external=cached_state,
    modules=(*MODULES, "onnx", "onnxscript"),
    modules_by_config=embedded_weights,
    preflight=_preflight,
)
