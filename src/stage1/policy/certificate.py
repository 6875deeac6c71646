"""The certificate: what is claimed, on what evidence, under which assumptions; as data and as an English sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import copysign, floor, inf
from typing import TYPE_CHECKING, Any

from stage1.policy.attempts import Attempts, counted_words, headline
from stage1.policy.schema import CERTIFICATE_KIND
from stage1.policy.slices import SliceClaim, SliceCounts
from stage1.risk.definition import on_average
from stage1.risk.risks import risk_of
from stage1.storage.documents import read_document, write_document

if TYPE_CHECKING:
    from stage1.policy.target import Request

_LARGEST = sys.float_info.max


@dataclass(frozen=True, slots=True)
class RiskBound:
    """One certified (or refused) risk.

    target: claimed upper limit. errors wrong among n counted units; observed = errors / n, None where n = 0; `error`
    at a target_prior: with each class weighed to it.
    bound: where the target is certified, upper bounds of all risks of the certificate that hold together with its
    confidence, none above its target (policy/joint.py; of SCRC-T the target, on average); else of this risk alone at 1
    - delta, at the thresholds that were refused. alone: that bound of this risk alone also where it is certified; no
      claim, and not written.
    needed: smallest n that can certify with 0 errors.
    by_construction: the wrong answer is never given (that side never exits), so the risk is 0 whatever the data.

    >>> bound = RiskBound("fnr", 0.02, observed=0.0, bound=0.019, n=150, errors=0, delta=0.05, needed=149)
    >>> bound.holds
    True
    """

    name: str
    target: float
    observed: float | None
    bound: float
    n: int
    errors: int
    delta: float
    needed: int
    by_construction: bool = False
    alone: float | None = field(default=None, compare=False)

    @property
    def holds(self) -> bool:
        return self.bound <= self.target

    @classmethod
    def counted(
        cls,
        name: str,
        target: float,
        counts: tuple[int, int],
        upper: Callable[[], float],
        delta: float,
        *,
        never: bool,
        share: Callable[[], float | None] | None = None,
        needed: Callable[[float, float], int] | None = None,
    ) -> RiskBound:
        """A risk by itself, from (errors, trials) and its upper bound at 1 - delta.

        never: the wrong answer is never given; upper is then not asked for. share: the risk as observed, None: errors
        / trials. needed: smallest n for (target, delta), None: `minimum_samples`.
        """
        from stage1.risk import minimum_samples

        errors, n = counts
        observed = (errors / n if n else None) if share is None else share()
        bound = 0.0 if never else float(upper())
        least = (minimum_samples if needed is None else needed)(target, delta)
        return cls(name, target, observed, bound, n, errors, delta, least, never, bound)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Exits among n units of val_calib: the observed share, over all or of a class.

    floor, bound: where a floor was asked for, it and a lower bound that reaches it, all floors of the certificate
    together (policy/joint.py); else None (no claim is made: read val_test for what to expect). alone: as in RiskBound.
    """

    value: float
    n: int
    exits: int
    floor: float | None = None
    bound: float | None = None
    alone: float | None = field(default=None, compare=False)

    @classmethod
    def counted(
        cls,
        exits: int,
        n: int,
        floor: float | None,
        lower: Callable[[], float],
        *,
        certified: bool,
        value: float | None = None,
    ) -> Coverage:
        """Of these units, with the lower bound of its floor alone where one is certified. value: None: exits / n."""
        bound = float(lower()) if floor is not None and certified else None
        return cls((exits / n if n else 0.0) if value is None else value, n, exits, floor, bound, bound)


@dataclass(frozen=True, slots=True)
class ViewsClaim:
    """Which views of each image the scores are made of. digest: of views.json. description: for the statement.

    >>> ViewsClaim(digest="9f2c", description="the whole image and its four quarters").description
    'the whole image and its four quarters'
    """

    digest: str
    description: str


@dataclass(frozen=True, slots=True)
class UnclaimedClass:
    """A class that is shut: no image exits as it, and nothing is claimed of its images.

    name: the class. risk, target: the claim that was asked for and is not made. n: selected calibration images of the
    class, of `members`; errors: those of them that exit, as another class. needed: n with which the whole target could
    be certified with no error.
    """

    name: str
    risk: str
    target: float
    n: int
    errors: int
    members: int
    needed: int


@dataclass(frozen=True, slots=True)
class Certificate:
    """The guarantee of one policy, or the reason why there is none.

    certified is True only if the exact tests show every risk to be at most its target, jointly at `confidence`, and
    images exit. attempts: the looks at the calibration images, and the confidence that is true after them
    (policy/attempts.py), which is the one to state (`headline_confidence`); None: not counted.
    unit: "image", "group" (one image of each group, drawn by hash) or "group_mean" (all images, by group means; the
    counts of risks and coverage are then of images, n_units of groups). against_argmax: images may exit as a class that
    their probability does not favour (so it was before there was a choice); boundary: else the limits of the two
    thresholds (lo, hi), fixed before val_calib; None: none, as for more than two classes. views: None where whole
    images are judged. slices: the same risks where an attribute has a value; slices_asked: the attributes.
    slice_thresholds: "own" where each slice was asked for with thresholds of its own, None: one pair for all. reason,
    needed: why nothing, or one side, can exit and what that takes; None where both sides exit. never_answered: classes
    as which no image exits. unlimited: one sentence for each kind of wrong answer that is given and that no risk limits
    (policy/unlimited.py). dealing: how groups came to val_calib (policy/group_dealing.py), None where not recorded.
    unclaimed: classes of more than two as which no image exits and of whose images nothing is claimed;
    the risks that were asked for them are then none of `risks`.
    bounds: "joint"; None in certificates of earlier versions, whose bounds are each of one risk alone.

    >>> from stage1.policy import fit_policy
    >>> from stage1.scores import Scores
    >>> margin = [-9.0 + row / 20 for row in range(160)] + [1.0 + row / 20 for row in range(160)]
    >>> calib = Scores([[0.0, value] for value in margin], labels=[0] * 160 + [1] * 160)
    >>> target = {"miss_rate": 0.02, "false_exit_rate": 0.05}
    >>> certificate = fit_policy("softmax", calib=calib, risks=target).certificate
    >>> certificate.certified, certificate.risks["miss_rate"].needed
    (True, 182)
    >>> print(certificate.needed)
    22 more labelled images of class '1' in val_calib, or risks.miss_rate=0.023, the least that 160 can certify.
    """

    certified: bool
    statement: str
    policy: str
    method: str
    confidence: float
    delta: float
    unit: str
    assume_iid: bool
    risks: dict[str, RiskBound]
    coverage: Coverage
    per_class: dict[str, Coverage]
    classes: tuple[str, ...]
    n_images: int
    n_units: int
    calib_digest: str
    seed: int
    attempt: int
    target_prior: float | None
    assumptions: tuple[str, ...]
    void_if: tuple[str, ...]
    reason: str | None = None
    needed: str | None = None
    slices: tuple[SliceClaim, ...] = ()
    slices_asked: tuple[str, ...] = ()
    slice_thresholds: str | None = None
    views: ViewsClaim | None = None
    dealing: str | None = None
    bounds: str | None = None
    never_answered: tuple[str, ...] = ()
    unlimited: tuple[str, ...] = ()
    against_argmax: bool = True
    boundary: tuple[float, float] | None = None
    attempts: Attempts | None = None
    unclaimed: tuple[UnclaimedClass, ...] = ()

    @property
    def headline_confidence(self) -> float:
        """The confidence that every page prints: `confidence` less what other looks at the same images cost."""
        return headline(self.attempts, self.confidence)

    def to_document(self) -> dict[str, Any]:
        """Plain values for certificate.json."""
        document: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        document["risks"] = {name: _plain(risk, "name") for name, risk in self.risks.items()}
        document["coverage"] = _plain(self.coverage)
        document["per_class"] = {name: _plain(coverage) for name, coverage in self.per_class.items()}
        document["slices"] = [claim.to_document() for claim in self.slices]
        if self.views is None:
            del document["views"]
        else:
            document["views"] = asdict(self.views)
        if self.attempts is not None:
            document["attempts"] = asdict(self.attempts)
        document["unclaimed"] = [asdict(found) for found in self.unclaimed] or None
        for name in ("dealing", "bounds", "unclaimed", "attempts", "slice_thresholds"):
            if document[name] is None:
                del document[name]
        for name in _LISTS:
            document[name] = list(document[name])
        if self.boundary is not None:
            # A side that no image may take has its limit at infinity, which JSON has not: the largest number represents
            # it.
            document["boundary"] = [max(-_LARGEST, min(limit, _LARGEST)) for limit in self.boundary]
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Certificate:
        """The inverse of to_document."""
        # Certificates made before there were slices, or lists of what is without a limit, lack them.
        values: dict[str, Any] = {name: document[name] for name in cls.__slots__ if name in document}
        values["views"] = ViewsClaim(**document["views"]) if "views" in document else None
        values["risks"] = {name: RiskBound(name=name, **fields) for name, fields in document["risks"].items()}
        values["coverage"] = Coverage(**document["coverage"])
        values["per_class"] = {name: Coverage(**fields) for name, fields in document["per_class"].items()}
        values["slices"] = tuple(
            SliceClaim(**{**claim, "risks": {name: SliceCounts(**counts) for name, counts in claim["risks"].items()}})
            for claim in values.get("slices", ())
        )
        if "attempts" in document:
            values["attempts"] = Attempts(**document["attempts"])
        values["unclaimed"] = tuple(UnclaimedClass(**found) for found in values.get("unclaimed", ()))
        for name in _LISTS:
            values[name] = tuple(values.get(name, ()))
        if values.get("boundary") is not None:
            lo, hi = values["boundary"]
            values["boundary"] = (_read_limit(lo), _read_limit(hi))
        return cls(**values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write certificate.json, whole or not at all."""
        write_document(path, self.to_document(), CERTIFICATE_KIND)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Certificate:
        """Read certificate.json. Raises MissingError or IntegrityError."""
        return cls.from_document(read_document(path, CERTIFICATE_KIND))


_LISTS = ("classes", "assumptions", "void_if", "slices_asked", "never_answered", "unlimited")


def _read_limit(limit: float) -> float:
    return limit if abs(limit) < _LARGEST else copysign(inf, limit)


def _plain(counted: RiskBound | Coverage, *without: str) -> dict[str, Any]:
    return {name: getattr(counted, name) for name in counted.__slots__ if name not in (*without, "alone")}


def shown_bound(document: Mapping[str, Any], name: str) -> float | None:
    """The bound that may be printed beside the target of a risk; document: of a certificate.

    None where there is none to print: nothing is certified, the bound says no more than the target, it is of this risk
    alone (certificates of earlier versions), or the promise is a mean (SCRC-T).
    """
    if not document["certified"] or document.get("bounds") is None or on_average(document["method"]):
        return None
    bound: float = document["risks"][name]["bound"]
    return bound if bound < document["risks"][name]["target"] else None


def percent(share: float) -> str:
    """0.05 -> "5 %", 0.955 -> "95.5 %"."""
    return f"{100 * share:.4g} %"


# ---- words -------------------------------------------------------------------------------------------------------


def claim(name: str, target: float, classes: Sequence[str], prior: float | None = None) -> str:
    """One risk limit in words, e.g. "among roadwork images that exit, at most 2 % are called 'none'"."""
    risk, index = risk_of(name, classes)
    limit = risk.text(f"at most {percent(target)}", classes, index, images)
    # What counts images of several classes moves with their shares.
    return limit if risk.of_one_class else limit + _where(prior, classes[-1])


def _where(prior: float | None, positive: str) -> str:
    if prior is None:
        return " (at the class balance of the calibration data)"
    return f" (where {percent(prior)} of the images are {positive})"


def claims(request: Request) -> str:
    """All limits and floors of a target in words, joined."""
    parts = [claim(name, target, request.classes, request.target_prior) for name, target in request.targets.items()]
    if request.coverage is not None:
        parts.append(
            f"at least {percent(request.coverage)} of images exit{_where(request.target_prior, request.classes[1])}"
        )
    parts += [f"at least {percent(floor)} of {images(name)} exit" for name, floor in request.class_coverage.items()]
    return ", and ".join(parts)


def images(class_name: str, unit: str = "image") -> str:
    """ "roadwork images"; of a class that is named by a number, "images of class '1'"."""
    return f"{unit}s of class '{class_name}'" if class_name.isdigit() else f"{class_name} {unit}s"


def certified_statement(
    request: Request,
    coverage: float,
    unit: str,
    *,
    assume_iid: bool,
    attempts: Attempts | None,
    closed: str | None,
    closed_because: str = "",
    open_ends: Sequence[str] = (),
    where: str = "",
) -> str:
    """The sentence that opens certificate, card and report. closed: class as which nothing exits; closed_because: why.

    open_ends: sentences about what the target does not limit (policy/unlimited.py). where: of which images, before the
    limits.
    """
    # Rounded down: "100 %" is said of all, not of almost all.
    shown = percent(floor(1000 * coverage) / 1000)
    counted = "image" if unit in ("group_draws", "group_mean") else unit
    limits = f"{where}{claims(request)}"
    sentence = (
        f"With confidence {percent(headline(attempts, request.confidence))}, {limits}; {shown} of the calibration"
        f" {counted}s exit."
    )
    if closed is not None:
        sentence += f" No image exits as '{closed}', such images always defer: {closed_because}"
    sentence += "".join(f" {text}" for text in open_ends)
    if unit == "group":
        sentence += " An image here is a random image of a random group (one image of each group was counted)."
    if unit == "group_mean":
        sentence += (
            " An image here is a random image of a random group (all images were counted, each group with the same"
            " weight)."
        )
    if unit == "group_draws":
        sentence += (
            " An image here is a random image of a random group (21 draws of one image of each group were counted; at"
            " least half of them, in their order, show it)."
        )
    if assume_iid:
        sentence += (
            " This holds only if images are independent of each other although they come in groups (assume_iid)."
        )
    return sentence + counted_words(attempts, request.confidence)


def refused_statement(request: Request, reason: str) -> str:
    """The sentence of a certificate that certifies nothing."""
    return (
        f"Not certifiable at confidence {percent(request.confidence)}: {claims(request)}. {reason} Every image defers."
    )


def assumptions(unit: str, assume_iid: bool, request: Request) -> tuple[str, ...]:
    """What must be true for the sentence to be true."""
    moved = [name for name in request.risks if not risk_of(name, request.classes)[0].of_one_class]
    moved += ["coverage"] if request.coverage is not None else []
    if not moved:
        class_balance = "The share of each class may differ from that of the calibration data: the risks are per class."
    elif request.target_prior is None:
        several = len(moved) > 1
        named = (
            "error and coverage move"
            if len(request.classes) == 2 and {*moved} <= {"error", "coverage"}
            else f"{' and '.join(moved)} move{'' if several else 's'}"
        )
        class_balance = f"The share of each class is that of the calibration data: {named} with it."
    else:
        class_balance = (
            f"The share of {request.classes[1]} is {percent(request.target_prior)}: error and coverage are stated"
            " for it."
        )
    drawn = {
        "image": (
            "The calibration images are an independent random sample of the images that the bundle will see, class by"
            " class."
        ),
        **dict.fromkeys(
            ("group_draws", "group_mean"),
            "The calibration groups are an independent random sample of the groups that the bundle will see.",
        ),
        "group": (
            "The calibration groups are an independent random sample of the groups that the bundle will see, class by"
            " class."
        ),
    }[unit]
    listed = [
        drawn,
        "No calibration image was used for training, for choosing the model, or for choosing the target.",
        "The labels of the calibration images are right.",
        class_balance,
    ]
    if request.boundary is not None:
        listed.append(request.boundary.sentence)
    if assume_iid:
        listed.insert(
            1,
            "assume_iid: images of the same group are treated as if they were independent. If they are not, the bound"
            " is too small.",
        )
    return tuple(listed)


VOID_IF = (
    "model.onnx, the preprocessing or a threshold is changed, quantised or re-exported",
    "the images come from another kind of source (camera, place, season, compression) than the calibration images",
    "the calibration images are used for other targets or models, beyond the looks that the confidence counts",
)
