"""From images to answers by the certified model: one path for the score stage, for `predict` and for Python."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stage1.bundle.manifest import MODEL, read_manifest, read_views
from stage1.bundle.verify import verify_bundle
from stage1.errors import ConfigError, DataError, IntegrityError
from stage1.inference.inputs import Picture, item_of, name_of
from stage1.inference.outputs import ModelOutputs, joined
from stage1.inference.views import WITHOUT, Viewing, ViewOutputs, joined_views, told
from stage1.policy import Certificate, Policy, load_policy, policy_file, reported
from stage1.runtime.crops import WHOLE, ViewPolicy
from stage1.runtime.images import decode
from stage1.runtime.preprocessing import Preprocessing
from stage1.runtime.session import Engine, Outputs
from stage1.runtime.stream import Item, WholeImages, Work, stream_work
from stage1.scores import Scores
from stage1.sources.listing import cell_text

if TYPE_CHECKING:
    from stage1.views import ViewsDocument

Failure: TypeAlias = tuple[int, Exception]
Texts: TypeAlias = NDArray[np.str_]
SliceValues: TypeAlias = Mapping[str, Sequence[object] | Texts]
"""Attribute -> its value for each image."""

DEFER = "defer"
GATE = "gate_logits"
# Seconds for each image of a batch. The slowest backbone known here (ViT-L at 518 px, one thread) takes about 13.
DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Row:
    """The answer for one image.

    path: as it was given; "#3" for the fourth image where it came as bytes, array or picture.
    label: class name, by the side on which the image exits, else that of the larger logit; None where the image is
    broken.
    probability: P(class 1) for two classes, else that of the label, after the bundle's calibration map (or from its
    gate); None where the image is broken. A map with a shift may state less than one half for the label of a deferred
    image.
    `confidence` says how likely the printed label is for any number of classes, `probabilities` what is stated for
    every class in their order (columns p_<class> of tables); `probability` stays for those who read it, new code takes
    these.
    decision: "exit:<class>" or "defer". A broken image defers, and `error` says in one line what is wrong with it.
    Where the bundle has views: `views`, how many were evaluated; `view`, the name of the one that contributed most
    towards the class of the larger aggregated logit; `box`, where that one lies, (top, left, bottom, right) in pixels
    of the decoded image; `small`: the image is no larger than the model's input, so that tiles add nothing.
    reason: why it defers whatever its score: its slice is not known or not certified (where thresholds differ by
    slice), or the class it looks like is shut (`unclaimed` of the certificate); else None.
    score: what its answer lies on, without an end where probabilities have one: logit_1 - logit_0 of two classes, of
    more the log odds of the likeliest class, as the model gives them; None where the image is broken. In no table.
    """

    path: str
    label: str | None
    probability: float | None
    exit: bool
    decision: str
    error: str | None = None
    views: int | None = None
    view: str | None = None
    box: tuple[int, int, int, int] | None = None
    small: bool = False
    confidence: float | None = None
    probabilities: tuple[float, ...] | None = None
    reason: str | None = None
    score: float | None = None


class Predictor:
    """A model file with its preprocessing, class names and, where it is to decide, a policy.

    model: .onnx path or bytes; its output `logits` has one column per class; where it has an output `gate_logits` [N],
    the policy gets it. views: which views of each image are evaluated and how they are aggregated; None: the whole
    image alone.
    A model that takes all views together (`Engine.views`) needs them, as views of a head on pooled features.
    batch_size: rows of one forward. threads, workers: batches at once and decoding threads, 0 = one per core.
    deadline_s: seconds that a batch may take for each of its images, None: no limit. device, intra_op_threads: see
    `Engine`. Without a policy every image defers.
    A policy with a certificate decides with the views of that certificate and with no others.
    Raises MissingError, IntegrityError (damaged, without `logits`, or of other views), DataError (preprocessing of
    another size).
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        preprocessing: Preprocessing,
        classes: Sequence[str],
        policy: Policy | None = None,
        *,
        views: ViewsDocument | None = None,
        batch_size: int = 32,
        threads: int = 0,
        workers: int = 0,
        deadline_s: float | None = None,
        device: str | None = None,
        intra_op_threads: int = 1,
    ) -> None:
        self.engine = Engine(
            model, threads=threads, deadline_s=deadline_s, device=device, intra_op_threads=intra_op_threads
        )
        self.preprocessing = preprocessing
        self.classes = tuple(classes)
        self.policy = policy
        self.views = views
        self._batch_size = batch_size
        self._workers = workers
        where = "model" if isinstance(model, bytes) else os.fspath(model)
        if "logits" not in self.engine.output_names:
            outputs = ", ".join(self.engine.output_names)
            raise IntegrityError(f"{where}: no output `logits` (it has {outputs}); export it with `stage1 export`")
        if self.engine.input_size not in (None, preprocessing.size):
            raise DataError(f"preprocessing: size {preprocessing.size}; {where} takes {self.engine.input_size}")
        _require_views(self.engine, views, where)
        _require_certified(policy, views)
        self._logits = self.engine.output_names.index("logits")
        self._gate = self.engine.output_names.index(GATE) if GATE in self.engine.output_names else None
        self._viewing = Viewing(
            self.engine, preprocessing, self._logits, self._gate, batch_size=batch_size, workers=workers
        )
        self._work: Work = WholeImages(self.engine, preprocessing) if views is None else self._viewing.work(views)

    def logits(self, items: Sequence[Item]) -> tuple[NDArray[np.int64], NDArray[Any], list[Failure]]:
        """Logits of every image that can be read: (rows int64 [M], logits [M, K], failures [(row, error)]).

        items: paths, bytes, or functions that give bytes. float32 as the model gives them; float64 where views are
        aggregated.
        """
        rows, logits, _, failures = self.outputs(items)
        return rows, logits, failures

    def outputs(
        self, items: Sequence[Item]
    ) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any] | None, list[Failure]]:
        """As `logits`, with the gate logits [M] after them (None: the model has no gate)."""
        rows, answered, failures = self.answered(items)
        return rows, answered.logits, answered.gate, failures

    def answered(self, items: Sequence[Item]) -> tuple[NDArray[np.int64], ModelOutputs, list[Failure]]:
        """(rows int64 [M], outputs of these images, failures [(row, error)]).

        The scores that are certified are made by this.
        """
        rows: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        made: list[ModelOutputs] = []
        failures: list[Failure] = []
        for batch_rows, answered, failed in self._batches(items):
            rows.append(batch_rows)
            made.append(answered)
            failures += failed
        filled = [one for one in made if len(one.logits)]
        return np.concatenate(rows), joined(filled, len(self.classes), gate=self._gate is not None), failures

    def view_outputs(
        self, items: Sequence[Item], policy: ViewPolicy
    ) -> tuple[NDArray[np.int64], ViewOutputs, list[Failure]]:
        """What the model says of each view, to choose an aggregator by: (rows int64 [M], outputs, failures)."""
        if self.engine.views is not None:
            raise IntegrityError("model: takes all views of an image together; it says nothing of single views")
        k = len(self.classes)
        rows: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        made: list[ViewOutputs] = []
        failures: list[Failure] = []
        for batch_rows, outputs, failed in self._viewing.outputs(items, policy):
            if len(batch_rows):
                _require_shape(outputs.logits, (len(batch_rows), policy.count, k))
                rows.append(batch_rows)
                made.append(outputs)
            failures += failed
        return np.concatenate(rows), joined_views(made, policy, k, gate=self._gate is not None), failures

    def predict(self, images: Iterable[Picture], *, slices: SliceValues | None = None) -> list[Row]:
        """One Row per image, in their order.

        images: any mix of paths, bytes, PIL images and RGB arrays uint8 [H, W, 3]. Arrays and pictures take the same
        decoder and resize kernel as files (by way of a lossless PNG in memory; EXIF orientation counts).
        slices: attribute -> value of each image, where thresholds differ by it (`Policy.sliced_by`): an image whose
        value is not given defers, and its `reason` says so.
        Raises DataError for an entry of another kind; a file that is missing or broken is a Row with `error`.
        """
        return [row for rows in self.stream(images, slices=slices) for row in rows]

    def answer(self, rgb: NDArray[np.uint8], name: str = "#0") -> Row:
        """The Row of one decoded image, uint8 [H, W, 3], as `predict` gives it; in this thread, which waits for no
        other: the way with the least work beside the model for who has one image at a time.

        name: `Row.path`. Raises DataError for another shape or dtype; may be called from several threads.
        """
        outputs = self._work.run([self._work.prepare(rgb)])
        return self._answers([name], self._outputs_of(outputs, 1), {})[0]

    def answer_batch(
        self, images: Sequence[bytes], *, slices: SliceValues | None = None, with_company: bool = False
    ) -> list[Row]:
        """One Row per image file, in their order, as `predict` gives them; decoded and run in this thread, as one
        batch, whatever its size: the way for a process of its own that is handed batches.

        with_company: an image that is alone runs beside itself. Some models sum one image alone in another order than
        one of several (`BatchLimit.run`); so its bits do not depend on which images came with it.
        """
        prepared: list[Any] = []
        rows: list[int] = []
        failed: dict[int, str] = {}
        for row, data in enumerate(images):
            try:
                prepared.append(self._work.prepare(decode(data, max_pixels=self._work.max_pixels)))
                rows.append(row)
            except DataError as error:
                failed[row] = one_line(error)
        columns = _slice_columns(slices, len(images))
        own = {name: values[rows] for name, values in columns.items()}
        made = iter(self._of_prepared(prepared, own, with_company))
        return [_unanswered(f"#{row}", failed[row]) if row in failed else next(made) for row in range(len(images))]

    def answer_tensors(
        self, tensors: NDArray[np.float32], *, slices: SliceValues | None = None, with_company: bool = False
    ) -> list[Row]:
        """One Row per image of float32 [N, 3, S, S], preprocessed by the caller exactly as `to_tensor` does it.

        Raises ConfigError where answers are made from several views of an image, DataError for another shape.
        """
        if self.views is not None:
            raise ConfigError("tensors: this bundle answers from several views of an image; send the image file")
        return self._of_prepared(list(tensors), _slice_columns(slices, len(tensors)), with_company)

    def _of_prepared(self, prepared: list[Any], slices: Mapping[str, Texts], with_company: bool) -> list[Row]:
        n = len(prepared)
        if n == 0:
            return []
        outputs = self._work.run(prepared * 2 if n == 1 and with_company else prepared)
        return self._answers([f"#{row}" for row in range(n)], self._outputs_of(_first(outputs, n), n), slices)

    def stream(
        self,
        images: Iterable[Picture],
        names: Sequence[str] | None = None,
        *,
        slices: SliceValues | None = None,
    ) -> Iterator[list[Row]]:
        """As `predict`, batch by batch while decoding runs ahead. names: `Row.path` of each image, where given."""
        if isinstance(images, (str, bytes, os.PathLike)):
            raise DataError("images: one path or byte string; give a list of images")
        pictures = list(images)
        items = [item_of(picture, row) for row, picture in enumerate(pictures)]
        shown = list(names) if names is not None else [name_of(picture, row) for row, picture in enumerate(pictures)]
        columns = _slice_columns(slices, len(items))
        for rows, answered, failed in self._batches(items):
            own = {name: values[rows] for name, values in columns.items()}
            answers = dict(zip(rows.tolist(), self._answers([shown[row] for row in rows], answered, own), strict=True))
            answers |= {row: _unanswered(shown[row], one_line(error)) for row, error in failed}
            yield [answers[row] for row in sorted(answers)]

    def _batches(self, items: Sequence[Item]) -> Iterator[tuple[NDArray[np.int64], ModelOutputs, list[Failure]]]:
        images = self._batch_size if self.views is None else self._viewing.batch_images(self.views)
        for rows, outputs, failed in stream_work(self._work, items, batch_size=images, workers=self._workers):
            yield rows, self._outputs_of(outputs, len(rows)), failed

    def _outputs_of(self, outputs: Outputs, n: int) -> ModelOutputs:
        """The outputs of n images, from what the engine gave for them or for their views."""
        k = len(self.classes)
        if self.views is not None:
            trace = self._viewing.trace(outputs, self.views)
            if n:
                _require_shape(trace.logits, (n, k))
            return ModelOutputs(trace.logits, trace.gate, trace)
        logits = np.asarray(outputs[self._logits], dtype=np.float32)
        gate = None if self._gate is None else np.asarray(outputs[self._gate], dtype=np.float32)
        if n:
            _require_shape(logits, (n, k))
        if n and gate is not None and gate.shape != (n,):
            raise IntegrityError(f"model: {GATE} {list(gate.shape)} for {n} images; export it anew")
        return ModelOutputs(logits.reshape(n, k), gate, None)

    def _answers(self, names: Sequence[str], answered: ModelOutputs, slices: Mapping[str, Texts]) -> list[Row]:
        finite = answered.finite
        kept = [name for name, good in zip(names, finite, strict=True) if good]
        answers = iter(self._decided(kept, answered, finite, slices))
        # A model may give NaN for one strange image; the others are answered.
        return [
            next(answers) if good else _unanswered(name, "the model gives NaN or infinity for it")
            for name, good in zip(names, finite, strict=True)
        ]

    def _decided(
        self, names: Sequence[str], answered: ModelOutputs, kept: NDArray[np.bool_], slices: Mapping[str, Texts]
    ) -> list[Row]:
        if not names:
            return []
        scores = answered.scores(kept, slices={name: values[kept] for name, values in slices.items()})
        reasons: list[str] = [""] * len(scores)
        if self.policy is not None:
            decision = self.policy.decide(scores)
            reasons = reasons if decision.why is None else decision.why.tolist()
            exits, labels, probabilities = decision.exit, decision.label, decision.probability
        else:
            exits, labels = np.zeros(len(scores), dtype=np.bool_), scores.logits.argmax(axis=1)
            column = np.ones_like(labels) if scores.n_classes == 2 else labels
            probabilities = np.take_along_axis(scores.probabilities, column[:, None], axis=1)[:, 0]
        if scores.n_classes == 2:
            of_classes = np.stack([1.0 - probabilities, probabilities], axis=1)
        else:
            of_classes = (scores if self.policy is None else reported(self.policy, scores)).probabilities
        columns = zip(
            names,
            exits.tolist(),
            labels.tolist(),
            probabilities.tolist(),
            of_classes.tolist(),
            reasons,
            _log_odds(scores).tolist(),
            self._told(answered, kept),
            strict=True,
        )
        return [
            Row(
                name,
                self.classes[label],
                probability,
                leaves,
                f"exit:{self.classes[label]}" if leaves else DEFER,
                confidence=shares[label],
                probabilities=tuple(shares),
                reason=reason or None,
                score=score,
                **told,
            )
            for name, leaves, label, probability, shares, reason, score, told in columns
        ]

    def _told(self, answered: ModelOutputs, kept: NDArray[np.bool_]) -> list[dict[str, Any]]:
        """What each row says of its views; nothing without views."""
        if self.views is None or answered.trace is None:
            return [{}] * int(kept.sum())
        names = self.views.policy.names
        return [told(names, row, answered.trace) for row in np.flatnonzero(kept).tolist()]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle folder, ready to answer. Made by `load_bundle`."""

    folder: Path
    manifest: dict[str, Any]
    predictor: Predictor
    policy: Policy
    certificate: Certificate

    @property
    def views(self) -> ViewPolicy:
        """The views that every answer is made from; the whole image alone where the bundle has no others."""
        return WHOLE if self.predictor.views is None else self.predictor.views.policy

    def require_views(self, wanted: ViewPolicy) -> None:
        """Raises ConfigError unless these are the views that the bundle is certified for."""
        if wanted.digest != self.views.digest:
            raise ConfigError(
                f"--views {wanted.text}: this bundle is certified for {self.views.description} and for no others; leave"
                f" --views out (or give {self.views.text}), or certify these views in a run of their own"
            )

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
        """What an answer names of its bundle: name, digest, policy, certified, classes, and, if any, views, the
        attribute by which thresholds differ, and the classes that are shut.
        """
        unclaimed = [found.name for found in self.certificate.unclaimed]
        return {
            "name": self.name,
            "digest": self.digest,
            "policy": self.policy.name,
            "certified": self.certificate.certified,
            "classes": list(self.classes),
            **({} if self.predictor.views is None else {"views": self.predictor.views.description}),
            **({} if self.policy.sliced_by is None else {"slices": self.policy.sliced_by}),
            **({"unclaimed": unclaimed} if unclaimed else {}),
        }

    def predict(self, images: Iterable[Picture], *, slices: SliceValues | None = None) -> list[Row]:
        """One Row per image, in their order; see `Predictor.predict`."""
        return self.predictor.predict(images, slices=slices)


def load_bundle(
    folder: str | os.PathLike[str],
    *,
    verify: bool = True,
    batch_size: int = 32,
    threads: int = 0,
    workers: int = 0,
    deadline_s: float | None = DEADLINE_S,
    device: str | None = None,
    intra_op_threads: int = 1,
) -> Bundle:
    """Open a bundle; nothing is written, and torch is not needed.

    verify: digest every file first (17 MB: about 20 ms), and see that model, policy, certificate, map and views belong
    together; whether the certificate is that of the scores beside it is asked by `stage1 verify`. Without it
    bundle.json, the documents and the model are still checked against each other as they are read.
    deadline_s: seconds that a batch may take for each of its images before it is given up (Stage1Error); None: no
    limit. device, intra_op_threads: see `Engine`.
    Raises MissingError (no such folder, no bundle), IntegrityError (changed, incomplete, two policies, newer version).

    Example: load_bundle("runs/demo/bundle").predict(["photo.jpg"])[0].decision
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if verify:
        verify_bundle(folder, scores=False).require()
    policy = load_policy(policy_file(folder))
    if policy.certificate is None:
        raise IntegrityError(f"{folder}: certificate.json is missing; restore the bundle")
    predictor = Predictor(
        folder / MODEL,
        Preprocessing.from_json(manifest["preprocessing"]),
        manifest["classes"],
        policy,
        views=read_views(folder, policy.certificate),
        batch_size=batch_size,
        threads=threads,
        workers=workers,
        deadline_s=deadline_s,
        device=device,
        intra_op_threads=intra_op_threads,
    )
    if predictor.engine.digest != manifest["files"][MODEL]["sha256"]:
        raise IntegrityError(f"{folder}: {MODEL} is not the one that was certified; restore the bundle")
    return Bundle(folder, manifest, predictor, policy, policy.certificate)


def _require_views(engine: Engine, views: ViewsDocument | None, where: str) -> None:
    """Raises IntegrityError where the model takes all views and these are none for it, or the reverse."""
    together = views is not None and views.pooled
    if engine.views is None and not together:
        return
    count = views.policy.count if views is not None and together else None
    if engine.views == count and WITHOUT not in engine.output_names:
        raise IntegrityError(f"{where}: no output `{WITHOUT}`, which a model of all views has; export it anew")
    if engine.views != count:
        takes = "one image at a time" if engine.views is None else f"{engine.views} views of an image together"
        wanted = (
            "the views beside it are not for that" if count is None else f"its views are {count}, by pooled features"
        )
        raise IntegrityError(f"{where}: takes {takes}, and {wanted}; use the model and views.json of one run")


def _require_certified(policy: Policy | None, views: ViewsDocument | None) -> None:
    """Raises IntegrityError where the policy's certificate is of other views than these: it would not hold."""
    if policy is None or policy.certificate is None:
        return
    claim = policy.certificate.views
    if (None if claim is None else claim.digest) == (None if views is None else views.digest):
        return
    certified = "the whole image alone" if claim is None else f"{claim.description} (sha256 {claim.digest[:12]})"
    given = "the whole image alone" if views is None else f"{views.description} (sha256 {views.digest[:12]})"
    raise IntegrityError(
        f"views: the policy is certified for {certified}, given are {given}; use policy and views.json of one run"
    )


def _slice_columns(slices: SliceValues | None, n: int) -> dict[str, Texts]:
    """Each attribute's values as text, str [N], as a run reads its tables. Raises DataError for another number."""
    found = {}
    for name, values in (slices or {}).items():
        if isinstance(values, str) or len(values) != n:
            raise DataError(f"slices: {name}: give one value for each of the {n} images (None where it is not known)")
        found[name] = np.array([cell_text(value) for value in values], dtype=np.str_)
    return found


def _first(outputs: Outputs, n: int) -> Outputs:
    return tuple(values[:n] for values in outputs)


def _log_odds(scores: Scores) -> NDArray[np.float64]:
    """float64 [N]: `Row.score`."""
    if scores.n_classes == 2:
        return scores.margin
    rows, likeliest = np.arange(len(scores)), scores.logits.argmax(axis=1)
    others = scores.logits.copy()
    others[rows, likeliest] = -np.inf
    return np.asarray(scores.logits[rows, likeliest] - np.logaddexp.reduce(others, axis=1))


def _require_shape(logits: NDArray[Any], shape: tuple[int, ...]) -> None:
    if logits.shape != shape:
        raise IntegrityError(f"model: logits {list(logits.shape)} for {shape[0]} images, {shape[-1]} classes")


def one_line(error: BaseException) -> str:
    """What is wrong, in one line, without the path (which is printed beside it)."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _unanswered(name: str, error: str) -> Row:
    return Row(name, None, None, False, DEFER, error)
