"""A trained model as a folder that stock transformers load: config.json, preprocessor_config.json, model.safetensors.

The client's own detector takes such a folder (AutoModelForImageClassification, label "Roadwork") and never runs our
code, so nothing but weights and preprocessing can travel: no thresholds, no deferral, no views. The head is folded into
one linear layer. The folder appears only after it was loaded again and gave the exported model's logits on real images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict

from stage1.bundle.licences import licence_header, licence_text
from stage1.errors import ConfigError, IntegrityError, MissingError
from stage1.integrations.stock import WAY_OUT, stock_model
from stage1.model.backbone import Backbone
from stage1.model.head import Ensemble, GatedHead, Head
from stage1.runtime.preprocessing import Preprocessing
from stage1.storage.documents import Document, DocumentKind, write_document
from stage1.storage.fields import Count, Digest, NotNegative, Pooling, PositiveInt, Rate
from stage1.storage.files import digest_file, write_bytes, write_error, write_text
from stage1.storage.publishing import publish
from stage1.storage.temporaries import temporary_folder

FACTS, WEIGHTS = "stage1_export.json", "model.safetensors"
TOLERANCE = 1e-4  # of a logit, absolute
CLIENT_SIDE = 224  # pixels of what the client sends
_RESAMPLE = {"bilinear": 2, "bicubic": 3}


class StockParity(TypedDict):
    """The folder, loaded again by transformers, against the exported model."""

    images: PositiveInt
    tolerance: Annotated[float, Field(gt=0)]
    largest_difference: NotNegative
    same_class: Count


class ClientProcessor(TypedDict):
    """What the client's own resizing to `side` changes."""

    images: PositiveInt
    side: PositiveInt
    largest_difference: NotNegative


class HfExportDocument(Document):
    """What an exported folder was made of, and how it answers."""

    backbone: str
    pooling: Pooling
    architecture: str
    classes: Annotated[list[str], Field(min_length=2)]
    labels: Annotated[list[str], Field(min_length=2)]
    decision_threshold: Rate
    margin_shift: float
    parity: StockParity
    client_processor: ClientProcessor | None
    transformers: str
    model: Digest
    weights: Digest


HF_EXPORT_KIND = DocumentKind("hf_export", HfExportDocument)


@dataclass(frozen=True, slots=True)
class Reference:
    """What the folder must reproduce. images: RGB uint8 [H, W, 3]. logits: float32 [N, K] of the exported model.

    digest: sha256 of that model's file.
    """

    images: Sequence[NDArray[np.uint8]]
    logits: NDArray[np.float32]
    digest: str


@dataclass(frozen=True, slots=True)
class Answers:
    """How the folder answers. labels: names of the classes in config.json, in their order.

    margin_shift: taken off the margin of class 1 over class 0 (two classes), so that the stock 0.5 lies where the
    stated probability is `decision_threshold`.
    """

    labels: Sequence[str]
    margin_shift: float = 0.0
    decision_threshold: float = 0.5


def write_stock_folder(
    folder: str | os.PathLike[str],
    backbone: Backbone,
    head: nn.Module,
    classes: Sequence[str],
    answers: Answers,
    reference: Reference,
) -> dict[str, Any]:
    """Write the folder, whole or not at all, and return its facts (stage1_export.json). classes: names in the run.

    Raises ConfigError (an architecture, head or preprocessing that stock classes have not; a folder that is not empty),
    MissingError (transformers is not installed), IntegrityError (other logits than the exported model's).
    """
    if find_spec("transformers") is None:
        raise MissingError("export --to hf: needs the extra that loads the folder again: pip install 'stage1-pro[hf]'")
    target = Path(os.path.realpath(folder))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{folder}: is there and not empty; it is not overwritten: remove it, or give another folder")
    documents, weights = _stock_files(backbone, head, answers)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target) as fresh:
            for name, document in documents.items():
                write_text(fresh / name, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
            _write_weights(fresh / WEIGHTS, weights)
            wanted = reference.logits.astype(np.float64)
            wanted[:, -1] -= answers.margin_shift
            facts = {
                "backbone": backbone.name, "pooling": backbone.pooling,
                "architecture": documents["config.json"]["architectures"][0], "classes": list(classes),
                "labels": list(answers.labels), "decision_threshold": answers.decision_threshold,
                "margin_shift": answers.margin_shift, "parity": parity(fresh, reference.images, wanted, str(folder)),
                "client_processor": client_difference(fresh, reference.images), "transformers": version("transformers"),
                "model": reference.digest, "weights": digest_file(fresh / WEIGHTS),
            }  # fmt: skip
            write_document(fresh / FACTS, facts, HF_EXPORT_KIND)
            write_text(fresh / "README.md", _readme(facts, backbone))
            text = licence_text(backbone.name, backbone.licence, None)
            write_text(fresh / "LICENSES" / "backbone.txt", text)
            publish(fresh, target)
    except OSError as error:
        raise write_error(target, error) from error
    return facts


def _stock_files(
    backbone: Backbone, head: nn.Module, answers: Answers
) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """The two JSON documents by file name, and the state dict."""
    model, size = backbone.module.model, backbone.preprocessing.size
    assert isinstance(model, nn.Module)
    processor = stock_preprocessor(backbone.preprocessing)
    weight, bias = linear_head(head)
    bias[-1] -= answers.margin_shift
    stock = stock_model(model, backbone.name, backbone.pooling, size, weight.float(), bias.float())
    config = {
        **stock.config,
        "id2label": {str(index): name for index, name in enumerate(answers.labels)},
        "label2id": {name: index for index, name in enumerate(answers.labels)},
        "torch_dtype": "float32",
    }
    weights = {**stock.weights, "classifier.weight": stock.classifier[0], "classifier.bias": stock.classifier[1]}
    return {"config.json": config, "preprocessor_config.json": processor}, weights


def linear_head(head: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight [K, D] and bias [K], float64, of a head that is linear in the raw features: its normalisation folded in.

    The members of a linear ensemble are averaged; a gate beside a linear classifier is left out. Raises ConfigError
    else.
    """
    if isinstance(head, GatedHead):
        return linear_head(head.classifier)
    if isinstance(head, Ensemble):
        weights, biases = zip(*(linear_head(member) for member in head.members), strict=True)
        return torch.stack(weights).mean(dim=0), torch.stack(biases).mean(dim=0)
    if not isinstance(head, Head) or len(head.layers) != 1:
        raise ConfigError(
            "head: a stock classifier ends in one linear layer, this head has more; train with head.kind=linear, or"
            f" {WAY_OUT}"
        )
    layer = head.layers[0]
    assert isinstance(layer, nn.Linear)
    weight = layer.weight.detach().double() / head.scale.double()
    return weight, layer.bias.detach().double() - weight @ head.mean.double()


def stock_preprocessor(spec: Preprocessing) -> dict[str, Any]:
    """preprocessor_config.json for ViTImageProcessor, which the client can load (it asks for its fast form).

    Raises ConfigError for other fits: ViTImageProcessor neither crops nor pads, and the stock classes that do round the
    place of the crop otherwise where a side is odd, which are other pixels.
    """
    if spec.fit != "squash":
        raise ConfigError(
            f"preprocessing: fit {spec.fit!r} is not what the stock processor does; train with backbone.fit=squash, or"
            f" {WAY_OUT}"
        )
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": spec.size, "width": spec.size},
        "resample": _RESAMPLE[spec.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }


# ---- loading it again --------------------------------------------------------------------------------------------


def stock_logits(
    folder: str | os.PathLike[str], images: Sequence[NDArray[np.uint8]], *, fast: bool = False
) -> NDArray[np.float64]:
    """Logits [N, K] of the folder by transformers alone. fast: the client's torchvision processor; else Pillow's."""
    import transformers
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True).eval()
    if fast:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, use_fast=True)
    else:
        # From version 5 on, ViTImageProcessor is the torchvision one.
        kind = getattr(transformers, "ViTImageProcessorPil", transformers.ViTImageProcessor)
        processor = kind.from_pretrained(folder, local_files_only=True)
    made = []
    with torch.inference_mode():
        for image in images:
            inputs = processor(images=Image.fromarray(image), return_tensors="pt")
            made.append(model(inputs["pixel_values"]).logits.double().numpy())
    return np.concatenate(made)


def parity(
    folder: Path, images: Sequence[NDArray[np.uint8]], wanted: NDArray[np.float64], where: str
) -> dict[str, Any]:
    """Largest difference of a logit on real images. Raises IntegrityError above TOLERANCE, or where a class differs."""
    made = stock_logits(folder, images)
    gap = float(np.abs(made - wanted).max()) if made.shape == wanted.shape else float("inf")
    same = int((made.argmax(1) == wanted.argmax(1)).sum()) if made.shape == wanted.shape else 0
    if not gap <= TOLERANCE:
        raise IntegrityError(
            f"{where}: logits differ from the exported model's by up to {gap:.3g} on {len(images)} images (allowed:"
            f" {TOLERANCE:g}); it was not written: {WAY_OUT}"
        )
    return {"images": len(images), "tolerance": TOLERANCE, "largest_difference": gap, "same_class": same}


def client_difference(folder: Path, images: Sequence[NDArray[np.uint8]]) -> dict[str, Any] | None:
    """How far the client's torchvision processor moves a logit on images of the client's size; None: no torchvision.

    Both do the same where nothing has to be resized; their antialiasing differs by a level or two where it has.
    """
    if find_spec("torchvision") is None:
        return None
    squares = [np.asarray(Image.fromarray(image).resize((CLIENT_SIDE, CLIENT_SIDE))) for image in images]
    gap = float(np.abs(stock_logits(folder, squares, fast=True) - stock_logits(folder, squares)).max())
    return {"images": len(squares), "side": CLIENT_SIDE, "largest_difference": gap}


# ---- parts -------------------------------------------------------------------------------------------------------


def _write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    # transformers refuse a file that does not say "pt".
    write_bytes(path, save({key: weights[key].contiguous() for key in sorted(weights)}, metadata={"format": "pt"}))


def _readme(facts: dict[str, Any], backbone: Backbone) -> str:
    licence = "\n".join(f"{name}: {value}" for name, value in licence_header(backbone.licence).items())
    base = "" if backbone.origin.base_model is None else f"\nbase_model: {backbone.origin.base_model}"
    moved = (
        ""
        if facts["margin_shift"] == 0
        else (
            f"\nThe decision threshold {facts['decision_threshold']:.6g} of the stated probability was moved to 0.5.\n"
        )
    )
    return f"""---
{licence}{base}
library_name: transformers
pipeline_tag: image-classification
---
# {facts["architecture"]}

Backbone {facts["backbone"]} ({facts["pooling"]}), labels {", ".join(facts["labels"])}; written by stage1-pro.\
 It answers every
image: thresholds, deferral and the certificate stay with the bundle. No error rate of these answers is\
 certified or limited.
{moved}
Loaded again by transformers {facts["transformers"]}, its logits differed from the exported model's by at most
{facts["parity"]["largest_difference"]:.2g} on {facts["parity"]["images"]} images.
"""
