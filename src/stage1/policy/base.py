"""What a policy says of each image, and what every policy can do."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from stage1.calibration import FittedMap
from stage1.policy.certificate import Certificate
from stage1.scores import Scores
from stage1.storage.documents import DocumentKind, write_document

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Decision:
    """exit: bool [N], this stage answers. label: int [N], the answer where it exits, else the likelier class.

    probability: float [N], P(class 1) for two classes, else that of `label`. why: str [N], why a row defers whatever
    its score (its slice, a class that is shut), "" elsewhere; None: scores alone decide.

    >>> decision = Decision(np.array([True, False]), np.array([1, 0]), np.array([0.98, 0.4]))
    >>> decision.coverage
    0.5
    """

    exit: NDArray[np.bool_]
    label: NDArray[np.int64]
    probability: NDArray[np.float64]
    why: NDArray[np.str_] | None = None

    @property
    def coverage(self) -> float:
        """Share of images that exit, 0.0 for none."""
        return float(self.exit.mean()) if len(self.exit) else 0.0


@dataclass(frozen=True, slots=True)
class SelectedShare:
    """A claim on the share of `hits` in `among`, bool [N] each: at most `most`, at least `least`."""

    name: str
    hits: Bools
    among: Bools
    most: float = 1.0
    least: float = 0.0


class Policy(Protocol):
    """A fitted exit policy; alone, or with the calibration map of its run (policy/calibrated.py).

    >>> from stage1.policy import fit_policy
    >>> calib = Scores([[0.0, row - 199.5] for row in range(400)], labels=[0] * 200 + [1] * 200)
    >>> policy: Policy = fit_policy("softmax", calib=calib)
    >>> policy.name, policy.classes, policy.decide(calib).coverage
    ('softmax', ('0', '1'), 1.0)
    """

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def certified(self) -> bool: ...

    @property
    def certificate(self) -> Certificate | None: ...

    @property
    def base(self) -> Policy:
        """The policy without its calibration map: itself where it has none."""
        ...

    @property
    def frozen(self) -> FittedMap | None:
        """The calibration map of its run; None: it has none."""
        ...

    @property
    def own_probability(self) -> bool:
        """Whether it states a probability of its own, which no map of the scores may replace."""
        ...

    @property
    def decided_by(self) -> str | None:
        """Which of two scores decides, where the policy was fitted with a second one; None: there is no second."""
        ...

    @property
    def margin_thresholds(self) -> tuple[float | None, float | None]:
        """(lo, hi) on Scores.margin with the same exits, None: that side never exits; both None: there are none."""
        ...

    @property
    def sliced_by(self) -> str | None:
        """The attribute of Scores.slices by which thresholds differ: without it every image defers. None: none."""
        ...

    def decide(self, scores: Scores) -> Decision:
        """Exit, label and probability of every row."""
        ...

    def selected_shares(self, scores: Scores) -> tuple[SelectedShare, ...]:
        """What the certificate claims of labelled scores, where it is of selected images; (): of exits."""
        ...

    def refit_options(self) -> dict[str, Any]:
        """What fit_policy needs beside what the certificate states, to refit the same policy."""
        ...

    def shown(self) -> dict[str, Any]:
        """What the report shows of it beside `margin_thresholds`."""
        ...

    def with_certificate(self, certificate: Certificate) -> Policy:
        """The same policy with another certificate."""
        ...

    def to_document(self) -> dict[str, Any]:
        """Plain values of the policy file."""
        ...

    @property
    def document_kind(self) -> DocumentKind:
        """Kind of the policy file."""
        ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy file, whole or not at all; certificate.json and calibration.json are separate."""
        ...


class PlainPolicy(ABC):
    """What policies without a calibration map have in common; each is a frozen dataclass with a field `certificate`."""

    __slots__ = ()

    name: ClassVar[str]
    document_kind: ClassVar[DocumentKind]

    @property
    def base(self) -> Any:
        return self

    @property
    def frozen(self) -> FittedMap | None:
        return None

    @property
    def own_probability(self) -> bool:
        return False

    @property
    def decided_by(self) -> str | None:
        return None

    @property
    def sliced_by(self) -> str | None:
        return None

    def selected_shares(self, scores: Scores) -> tuple[SelectedShare, ...]:
        return ()

    def refit_options(self) -> dict[str, Any]:
        return {}

    def shown(self) -> dict[str, Any]:
        return {}

    def with_certificate(self, certificate: Certificate) -> Any:
        policy: Any = self  # a dataclass, which this class cannot say
        return replace(policy, certificate=certificate)

    @abstractmethod
    def to_document(self) -> dict[str, Any]:
        """Plain values of the policy file."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy file, whole or not at all (the certificate is a document of its own)."""
        write_document(path, self.to_document(), self.document_kind)
