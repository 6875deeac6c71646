"""A certified exit policy with scikit-learn's interface: fit, predict, and "defer" where the policy does not answer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import ConfigError, DataError, MissingError
from stage1.policy import Certificate, Policy, fit_policy, policy_kind
from stage1.policy.attempts import Attempts, ImageSet, Plan
from stage1.policy.base import Decision
from stage1.policy.image_keys import image_set
from stage1.policy.ledger import Ledger, look_of, scores_digest
from stage1.scores import Scores, Values, appearance, from_probabilities
from stage1.scores.roles import hashed_roles

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, clone
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise MissingError("scikit-learn: needed for Stage1Policy; pip install 'scikit-learn>=1.6'") from error

if TYPE_CHECKING:
    from sklearn.utils import Tags

_ROLES = ("train", "val_select", "val_calib")


class Stage1Policy(ClassifierMixin, BaseEstimator):
    """Answer where a certified policy allows it, defer elsewhere; on scores of any model, or around a classifier.

    With `estimator=None` (the usual case) what goes in are the *scores* of a model that is already trained, made on
    images that it has not seen: float [N, K], one column per class in the order of `classes_`, or [N] or [N, 1] for two
    classes (logits: logit of the positive class minus that of the negative one; probabilities: P(positive)).
    With an estimator, features go in; a clone of it is fitted on the rows of role train and scores the others.

    Parameters, all keyword:
    risks: target, name -> value in (0, 1) of fnr, fpr, miss_rate, false_exit_rate, error; None: fnr 0.02,
    false_exit_rate 0.05.
    confidence: of the certificate, all risks jointly. policy: "softmax", "gate" (refused where it shows no gain) or
    "scrc".
    values: "logits" or "probabilities", what the scores are: needed without an estimator; it is never guessed.
    Ignored with an estimator.
    coverage, class_coverage, target_prior, allow_one_sided, assume_iid, against_argmax: as in stage1.fit_policy.
    classes: labels in the order of the columns, the positive one last; None: the sorted labels of y, as scikit-learn
    orders predict_proba. defer: what predict gives for a deferred row: "auto" is "defer" among text labels and -1 among
    numbers; None: the likelier class, so that predict looks like that of any classifier and only `exits` knows.
    estimator: a classifier with predict_proba or decision_function, or None. shares: of (train, val_select, val_calib)
    where fit gets no roles; None: (0.5, 0.1, 0.4) with an estimator, (0, 0.15, 0.85) without. seed: of the split and of
    the one-image-per-group draw. ledger: a file or a stage1.policy.ledger.Ledger that counts the looks at the rows of
    val_calib, by this object, its clones and whoever else has it; None: each object counts its own refits. Rows are
    known by their ids, without ids by what goes in. planned: so many looks share 1 - confidence.

    After fit: classes_, policy_ (a stage1 policy, `policy_.save(path)`), certificate_, roles_ (str [N]),
    n_features_in_, and estimator_ where there is an estimator. Not certifiable is no error: then certificate_.certified
    is False, certificate_.reason and .needed say why, and every row defers.

    >>> from stage1 import Stage1Policy
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["clean", "roadwork"], 1500)
    >>> s = rng.normal(np.where(y == "roadwork", 2.0, -2.0), 1.5)
    >>> policy = Stage1Policy(values="logits", risks={"fnr": 0.05, "false_exit_rate": 0.05}).fit(s, y)
    >>> bool(policy.certificate_.certified), policy.predict([-6.0, 0.1, 6.0]).tolist()
    (True, ['clean', 'defer', 'roadwork'])
    """

    def __init__(
        self,
        *,
        risks: Mapping[str, float] | None = None,
        confidence: float = 0.95,
        policy: str = "softmax",
        values: Values | None = None,
        coverage: float | None = None,
        class_coverage: Mapping[str, float] | None = None,
        target_prior: float | None = None,
        allow_one_sided: bool = False,
        assume_iid: bool = False,
        against_argmax: bool = False,
        classes: Sequence[Any] | None = None,
        defer: Any = "auto",
        estimator: Any = None,
        shares: tuple[float, float, float] | None = None,
        seed: int = 0,
        ledger: Ledger | str | os.PathLike[str] | None = None,
        planned: int | None = None,
    ) -> None:
        self.risks = risks
        self.confidence = confidence
        self.policy = policy
        self.values = values
        self.coverage = coverage
        self.class_coverage = class_coverage
        self.target_prior = target_prior
        self.allow_one_sided = allow_one_sided
        self.assume_iid = assume_iid
        self.against_argmax = against_argmax
        self.classes = classes
        self.defer = defer
        self.estimator = estimator
        self.shares = shares
        self.seed = seed
        self.ledger = ledger
        self.planned = planned

    # ---- scikit-learn's interface --------------------------------------------------------------------------------

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        groups: ArrayLike | None = None,
        ids: ArrayLike | None = None,
        roles: ArrayLike | None = None,
    ) -> Stage1Policy:
        """Choose the thresholds on the rows of val_select and certify them on those of val_calib.

        X: scores (or features, with an estimator), rows as `y`. groups: [N] unit of dependence (video, camera, site).
        ids: [N] unique names; the split is by hash of group, else id, else row number. roles: [N] of "train",
        "val_select", "val_calib", where the split is yours; rows of train are used by the estimator alone.
        Raises DataError (a ValueError) for scores or labels that cannot be used, ConfigError for a wrong parameter.
        """
        rows, y = validate_data(self, self._columns(X), y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_ = self._class_order(np.asarray(y))
        if len(self.classes_) != 2:
            # The words that scikit-learn's own checks look for.
            kind = "one class" if len(self.classes_) < 2 else "multiclass"
            raise DataError(
                f"Only binary classification is supported. The type of the target is {kind}: y has {len(self.classes_)}"
                " class(es), two are needed"
            )
        self._deferred()
        labels = np.searchsorted(self._sorted, y)
        labels = np.argsort(self.classes_, kind="stable")[labels]
        split = Scores(logits=np.zeros((len(y), 2)), labels=labels, groups=groups, ids=ids)  # type: ignore[arg-type]
        self.roles_ = self._roles(split, roles)
        if self.estimator is not None:
            train = self.roles_ == "train"
            self.estimator_ = clone(self.estimator).fit(rows[train], np.asarray(y)[train])
            if list(self.estimator_.classes_) != list(self._sorted):
                raise DataError(
                    f"estimator: saw {len(self.estimator_.classes_)} of 2 class(es) among {int(train.sum())} rows of"
                    " train; raise shares[0] or give roles"
                )
        scores = self._scores(rows, labels=labels, groups=split.groups, ids=split.ids)
        select, calib = (scores.take(self.roles_ == role) for role in ("val_select", "val_calib"))
        options = policy_kind(self.policy).judge(select, self.seed, lambda text: None).options
        asked = {name: repr(value) for name, value in self.get_params(deep=False).items() if name != "ledger"}
        look = look_of(self._images(rows, calib), {**asked, "scores": scores_digest(calib, select)})
        with self._ledger().asking(look, self.confidence, Plan(self.planned)) as (attempts, tested):
            self.policy_ = self._fitted(select, calib, options, attempts, tested)
        assert self.policy_.certificate is not None
        self.certificate_: Certificate = self.policy_.certificate
        return self

    def _fitted(
        self, select: Scores, calib: Scores, options: Mapping[str, Any], attempts: Attempts, confidence: float
    ) -> Policy:
        return fit_policy(
            self.policy,
            select=select,
            calib=calib,
            risks=self.risks,
            confidence=confidence,
            coverage=self.coverage,
            class_coverage=self.class_coverage,
            target_prior=self.target_prior,
            allow_one_sided=self.allow_one_sided,
            assume_iid=self.assume_iid,
            classes=[str(name) for name in self.classes_],
            seed=self.seed,
            against_argmax=self.against_argmax,
            attempts=attempts,
            **options,
        )

    def _ledger(self) -> Ledger:
        """The one that is given, else that of this object: a refit goes on with it, a clone begins anew."""
        if self.ledger is not None:
            return self.ledger if isinstance(self.ledger, Ledger) else Ledger(self.ledger)
        if not hasattr(self, "ledger_"):
            self.ledger_ = Ledger()
        return self.ledger_

    def _images(self, rows: NDArray[np.float64], calib: Scores) -> ImageSet:
        """The rows of val_calib: by id, else by what went in, which another model on the same rows does not change."""
        if calib.ids is not None:
            return image_set(calib)
        given = rows[self.roles_ == "val_calib"]
        return image_set(Scores(logits=np.hstack([np.zeros((len(given), 1)), given]), labels=calib.known_labels))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The class of each row that exits, the `defer` value for the others, [N]."""
        decision = self._decide(X)
        answers = self.classes_[decision.label]
        deferred = self._deferred()
        if deferred is None:
            return answers
        if answers.dtype.kind == "O":
            answers = answers.copy()
            answers[~decision.exit] = deferred
            return answers
        return np.where(decision.exit, answers, deferred)

    def exits(self, X: ArrayLike) -> NDArray[np.bool_]:
        """Whether each row is answered here, bool [N]."""
        return self._decide(X).exit

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probabilities, float [N, 2], columns as classes_: softmax of the scores, or the estimator's own."""
        return self._scores(self._checked(X)).probabilities

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """The raw score that the thresholds act on, float [N]: logit of classes_[1] minus that of classes_[0]."""
        return self._scores(self._checked(X)).margin

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    # ---- parts ---------------------------------------------------------------------------------------------------

    def _columns(self, X: ArrayLike) -> ArrayLike:
        """Scores [N] of two classes as [N, 1]; anything else unchanged."""
        one = self.estimator is None and (np.ndim(X) if isinstance(X, (list, tuple)) else getattr(X, "ndim", 2)) == 1
        return np.asarray(X).reshape(-1, 1) if one else X

    def _checked(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self, "policy_")
        return np.asarray(validate_data(self, self._columns(X), reset=False, dtype=np.float64))

    @property
    def _sorted(self) -> NDArray[Any]:
        return np.sort(self.classes_)

    def _class_order(self, y: NDArray[Any]) -> NDArray[Any]:
        found = np.unique(y)
        if self.classes is None:
            return found
        order = np.asarray(self.classes)
        if len(np.unique(order)) != len(order):
            raise ConfigError(f"classes: {order.tolist()} names a class twice")
        if unknown := [label for label in found.tolist() if label not in order.tolist()]:
            raise DataError(f"labels: {unknown[0]!r} is not among classes {order.tolist()}")
        return order

    def _deferred(self) -> Any:
        """What predict gives for a deferred row. Raises DataError where a class has that name."""
        value = self.defer
        if isinstance(value, str) and value == "auto":
            value = "defer" if isinstance(self.classes_[0], str) else -1
        if value is not None and value in self.classes_.tolist():
            raise DataError(f"defer: {value!r} is also a class; set defer to another value, or to None")
        return value

    def _roles(self, rows: Scores, given: ArrayLike | None) -> NDArray[np.str_]:
        if given is not None:
            roles = np.asarray(given).astype(np.str_)
            if roles.shape != (len(rows),):
                raise DataError(f"roles: shape {roles.shape} for {len(rows)} rows")
            if bad := sorted(set(roles.tolist()) - set(_ROLES)):
                raise DataError(f"roles: {bad[0]!r} is unknown; roles are {', '.join(_ROLES)}")
        else:
            shares = self.shares or ((0.0, 0.15, 0.85) if self.estimator is None else (0.5, 0.1, 0.4))
            if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
                raise ConfigError(f"shares: {shares!r}; three shares of {', '.join(_ROLES)} that sum to 1 are needed")
            roles = hashed_roles(rows, _ROLES, shares, self.seed)
        for role in ("val_calib", *(() if self.estimator is None else ("train",))):
            if not (roles == role).any():
                raise DataError(f"roles: none of the {len(rows)} row(s) is of {role}; give more rows, or roles")
        return roles

    def _scores(self, X: NDArray[np.float64], **fields: Any) -> Scores:
        """Scores with the columns of classes_, from scores or from features."""
        values = self.values
        if self.estimator is not None:
            order = np.searchsorted(self._sorted, self.classes_)
            if hasattr(self.estimator_, "predict_proba"):
                return from_probabilities(np.asarray(self.estimator_.predict_proba(X))[:, order], **fields)
            raw = np.asarray(self.estimator_.decision_function(X), dtype=np.float64)
            X, values = (raw if order[1] == 1 else -raw).reshape(-1, 1), "logits"
        if X.shape[1] not in (1, 2):
            raise DataError(
                f"scores: {X.shape[1]} columns for 2 classes; give [N] or [N, 2], or features together with an"
                " estimator"
            )
        given = X[:, 0] if X.shape[1] == 1 else X
        if values not in ("logits", "probabilities"):
            raise ConfigError(
                f"values: {values!r}; say values='logits' or 'probabilities', it is never guessed: {appearance(given)}"
            )
        if values == "probabilities":
            return from_probabilities(X, **fields)
        return Scores(logits=np.hstack([np.zeros_like(X), X]) if X.shape[1] == 1 else X, **fields)

    def _decide(self, X: ArrayLike) -> Decision:
        scores = self._scores(self._checked(X))
        return self.policy_.decide(scores)
