"""From images to answers by the certified model: one path for the score stage, for `predict` and for Python."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage1.bundle.manifest import MODEL, read_manifest, verify_bundle
from stage1.engine import Engine, Item, stream
from stage1.errors import DataError, IntegrityError
from stage1.images import Preprocessing
from stage1.policy import Certificate, Policy, load_policy, policy_file
from stage1.scores import Scores

Picture: TypeAlias = Item | Image.Image | NDArray[np.uint8]
Failure: TypeAlias = tuple[int, Exception]

DEFER = "defer"
GATE = "gate_logits"
# What PNG can hold without loss; the rest of what `decode` accepts goes to RGB by the conversion that `decode` uses.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
_RGB_MODES = ("CMYK", "YCbCr", "RGBX", "RGBa", "La", "PA")


@dataclass(frozen=True, slots=True)
class Row:
    """The answer for one image.

    path: as it was given; "#3" for the fourth image where it came as bytes, array or picture.
    label: class name, by the side on which the image exits, else that of the larger logit; None where the image is broken.
    probability: P(class 1) for two classes, else that of the label, after the bundle's calibration map (or from its gate);
    None where the image is broken. A map with a shift may state less than one half for the label of a deferred image.
    decision: "exit:<class>" or "defer". A broken image defers, and `error` says in one line what is wrong with it.
    """

    path: str
    label: str | None
    probability: float | None
    exit: bool
    decision: str
    error: str | None = None


class Predictor:
    """A model file with its preprocessing, class names and, where it is to decide, a policy.

    model: .onnx path or bytes; its output `logits` has one column per class; where it has an output `gate_logits` [N], the
    policy gets it. threads, workers: batches at once and
    decoding threads, 0 = one per core. Without a policy every image defers.
    Raises MissingError, IntegrityError (damaged, or without `logits`), DataError (preprocessing of another size).
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        preprocessing: Preprocessing,
        classes: Sequence[str],
        policy: Policy | None = None,
        *,
        batch_size: int = 32,
        threads: int = 0,
        workers: int = 0,
    ) -> None:
        self.engine = Engine(model, threads=threads)
        self.preprocessing = preprocessing
        self.classes = tuple(classes)
        self.policy = policy
        self._batch_size = batch_size
        self._workers = workers
        where = "model" if isinstance(model, bytes) else os.fspath(model)
        if "logits" not in self.engine.output_names:
            outputs = ", ".join(self.engine.output_names)
            raise IntegrityError(f"{where}: no output `logits` (it has {outputs}); export it with `stage1 export`")
        if self.engine.input_size not in (None, preprocessing.size):
            raise DataError(f"preprocessing: size {preprocessing.size}; {where} takes {self.engine.input_size}")
        self._logits = self.engine.output_names.index("logits")
        self._gate = self.engine.output_names.index(GATE) if GATE in self.engine.output_names else None

    def logits(self, items: Sequence[Item]) -> tuple[NDArray[np.int64], NDArray[np.float32], list[Failure]]:
        """Logits of every image that can be read: (rows int64 [M], logits float32 [M, K], failures [(row, error)]).

        items: paths, bytes, or functions that give bytes.
        """
        rows, logits, _, failures = self.outputs(items)
        return rows, logits, failures

    def outputs(
        self, items: Sequence[Item]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32] | None, list[Failure]]:
        """As `logits`, with the gate logits float32 [M] after them (None: the model has no gate).

        The scores that are certified are made by this.
        """
        rows: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        logits: list[NDArray[np.float32]] = [np.zeros((0, len(self.classes)), dtype=np.float32)]
        gates: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)]
        failures: list[Failure] = []
        for batch_rows, batch_logits, batch_gate, failed in self._batches(items):
            rows.append(batch_rows)
            logits.append(batch_logits)
            if batch_gate is not None:
                gates.append(batch_gate)
            failures += failed
        gate = None if self._gate is None else np.concatenate(gates)
        return np.concatenate(rows), np.concatenate(logits), gate, failures

    def predict(self, images: Iterable[Picture]) -> list[Row]:
        """One Row per image, in their order.

        images: any mix of paths, bytes, PIL images and RGB arrays uint8 [H, W, 3]. Arrays and pictures take the same
        decoder and resize kernel as files (by way of a lossless PNG in memory; EXIF orientation counts).
        Raises DataError for an entry of another kind; a file that is missing or broken is a Row with `error`.
        """
        return [row for rows in self.stream(images) for row in rows]

    def stream(self, images: Iterable[Picture], names: Sequence[str] | None = None) -> Iterator[list[Row]]:
        """As `predict`, batch by batch while decoding goes on ahead. names: `Row.path` of each image, where given."""
        if isinstance(images, (str, bytes, os.PathLike)):
            raise DataError("images: one path or byte string; give a list of images")
        pictures = list(images)
        items = [_item(picture, row) for row, picture in enumerate(pictures)]
        shown = list(names) if names is not None else [_name(picture, row) for row, picture in enumerate(pictures)]
        for rows, logits, gate, failed in self._batches(items):
            answers = dict(zip(rows.tolist(), self._answers([shown[row] for row in rows], logits, gate), strict=True))
            answers |= {row: _unanswered(shown[row], one_line(error)) for row, error in failed}
            yield [answers[row] for row in sorted(answers)]

    def _batches(
        self, items: Sequence[Item]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32] | None, list[Failure]]]:
        batches = stream(self.engine, items, self.preprocessing, batch_size=self._batch_size, workers=self._workers)
        for rows, outputs, failed in batches:
            logits = np.asarray(outputs[self._logits], dtype=np.float32)
            gate = None if self._gate is None else np.asarray(outputs[self._gate], dtype=np.float32)
            if len(rows) and logits.shape != (len(rows), len(self.classes)):
                raise IntegrityError(
                    f"model: logits {list(logits.shape)} for {len(rows)} images, {len(self.classes)} classes"
                )
            if len(rows) and gate is not None and gate.shape != (len(rows),):
                raise IntegrityError(f"model: {GATE} {list(gate.shape)} for {len(rows)} images; export it anew")
            yield rows, logits.reshape(len(rows), len(self.classes)), gate, failed

    def _answers(
        self, names: Sequence[str], logits: NDArray[np.float32], gate: NDArray[np.float32] | None
    ) -> list[Row]:
        finite: NDArray[np.bool_] = np.asarray(np.isfinite(logits).all(axis=1))
        if gate is not None:
            finite = finite & np.isfinite(gate)
            gate = gate[finite]
        kept = [name for name, good in zip(names, finite, strict=True) if good]
        answers = iter(self._decided(kept, logits[finite], gate))
        # A model may give NaN for one strange image; the others are answered.
        return [
            next(answers) if good else _unanswered(name, "the model gives NaN or infinity for it")
            for name, good in zip(names, finite, strict=True)
        ]

    def _decided(
        self, names: Sequence[str], logits: NDArray[np.float32], gate: NDArray[np.float32] | None
    ) -> list[Row]:
        if not names:
            return []
        scores = Scores(logits=logits.astype(np.float64), gate=None if gate is None else gate.astype(np.float64))
        if self.policy is not None:
            decision = self.policy.decide(scores)
            exits, labels, probabilities = decision.exit, decision.label, decision.probability
        else:
            exits, labels = np.zeros(len(scores), dtype=np.bool_), scores.logits.argmax(axis=1)
            column = np.ones_like(labels) if scores.n_classes == 2 else labels
            probabilities = np.take_along_axis(scores.probabilities, column[:, None], axis=1)[:, 0]
        columns = zip(names, exits.tolist(), labels.tolist(), probabilities.tolist(), strict=True)
        return [
            Row(name, self.classes[label], probability, leaves, f"exit:{self.classes[label]}" if leaves else DEFER)
            for name, leaves, label, probability in columns
        ]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle folder, ready to answer. Made by `load_bundle`."""

    folder: Path
    manifest: dict[str, Any]
    predictor: Predictor
    policy: Policy
    certificate: Certificate

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def classes(self) -> tuple[str, ...]:
        return self.predictor.classes

    @property
    def digest(self) -> str:
        """The identity of the bundle, 64 hexadecimal digits."""
        return str(self.manifest["digest"])

    @property
    def about(self) -> dict[str, Any]:
        """What an answer should name of the bundle that gave it: name, digest, policy, certified, classes."""
        return {"name": self.name, "digest": self.digest, "policy": self.policy.name,
                "certified": self.certificate.certified, "classes": list(self.classes)}  # fmt: skip

    def predict(self, images: Iterable[Picture]) -> list[Row]:
        """One Row per image, in their order; see `Predictor.predict`."""
        return self.predictor.predict(images)


def load_bundle(
    folder: str | os.PathLike[str], *, verify: bool = True, batch_size: int = 32, threads: int = 0, workers: int = 0
) -> Bundle:
    """Open a bundle; nothing is written, and torch is not needed.

    verify: digest every file first (17 MB: about 20 ms). Without it bundle.json, the documents and the model are still
    checked against each other as they are read.
    Raises MissingError (no such folder, no bundle), IntegrityError (changed, incomplete, two policies, newer version).

    Example: load_bundle("runs/demo/bundle").predict(["photo.jpg"])[0].decision
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if verify:
        verify_bundle(folder).require()
    policy = load_policy(policy_file(folder))
    if policy.certificate is None:
        raise IntegrityError(f"{folder}: certificate.json is missing; restore the bundle")
    predictor = Predictor(
        folder / MODEL, Preprocessing.from_json(manifest["preprocessing"]), manifest["classes"], policy,
        batch_size=batch_size, threads=threads, workers=workers,
    )  # fmt: skip
    if predictor.engine.digest != manifest["files"][MODEL]["sha256"]:
        raise IntegrityError(f"{folder}: {MODEL} is not the one that was certified; restore the bundle")
    return Bundle(folder, manifest, predictor, policy, policy.certificate)


def one_line(error: BaseException) -> str:
    """What is wrong, in one line, without the path (which stands beside it)."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _unanswered(name: str, error: str) -> Row:
    return Row(name, None, None, False, DEFER, error)


def _name(picture: Picture, row: int) -> str:
    return os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else f"#{row}"


def _item(picture: Picture, row: int) -> Item:
    if isinstance(picture, (str, Path, bytes)):
        return picture
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise DataError(
                f"images[{row}]: {picture.dtype} of shape {picture.shape}; uint8 [H, W, 3] (RGB) is expected"
            )
        return _png(Image.fromarray(picture))
    if isinstance(picture, Image.Image):
        return _png(picture)
    if callable(picture):
        return picture
    raise DataError(
        f"images[{row}]: {type(picture).__name__}; give a path, bytes, a PIL image or a uint8 array [H, W, 3]"
    )


def _png(image: Image.Image) -> Callable[[], bytes]:
    def encoded() -> bytes:
        if image.mode not in _PNG_MODES + _RGB_MODES:
            raise DataError(f"unsupported mode: pixels of mode {image.mode} have no agreed range; convert it to RGB")
        try:
            exif = image.getexif()
            whole = image if image.mode in _PNG_MODES else image.convert("RGBA" if "a" in image.mode.lower() else "RGB")
            buffer = io.BytesIO()
            whole.save(buffer, "PNG", compress_level=0, exif=exif)
        except (OSError, SyntaxError, ValueError) as error:  # a picture that was opened but not read yet may be broken
            raise DataError(f"corrupt: {one_line(error)}") from error
        return buffer.getvalue()

    return encoded
