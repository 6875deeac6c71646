"""The ledger: which looks at calibration images are known, in memory or in a file, with those of folders beside it.

A look is written down before its certificate is made, so that of two processes that look at the same images at once at
least one sees the other; it is withdrawn where no certificate comes of it. Only the own file is written: what others
know is read, and what overlaps is copied.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stage1.errors import IntegrityError, Stage1Error
from stage1.policy.attempts import Attempts, ImageSet, Look, Plan, standing
from stage1.policy.schema import ATTEMPTS_KIND
from stage1.scores import Scores
from stage1.scores.scores import silent
from stage1.storage.documents import read_document, write_document
from stage1.storage.files import digest_bytes

LEDGER_FILE = "attempts.json"


class Ledger:
    """Looks at calibration images. path: the file that keeps them; None: kept in memory alone.

    others: files that are read and never written. copies: files that get the looks too, where they can be written.
    earlier: looks that are known from elsewhere. say: gets a line where a file of others cannot be used.
    A clone of scikit-learn shares it: what a clone looks at is counted as well.

    >>> from stage1.policy import fit_policy
    >>> calib = Scores([[0.0, row - 199.5] for row in range(400)], labels=[0] * 200 + [1] * 200)
    >>> ledger = Ledger()
    >>> for target in (0.02, 0.03):
    ...     policy = fit_policy("softmax", calib=calib, risks={"fnr": target, "false_exit_rate": 0.05}, ledger=ledger)
    >>> policy.certificate.headline_confidence, len(ledger.looks)
    (0.9, 2)
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        others: Sequence[Path] = (),
        copies: Sequence[Path] = (),
        earlier: Sequence[Look] = (),
        say: Callable[[str], None] = silent,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.copies, self._others, self._earlier, self._say = tuple(copies), (*others, *copies), tuple(earlier), say
        self.looks: list[Look] = []
        self.dealt: list[str] = []
        self._read()

    def __sklearn_clone__(self) -> Ledger:
        return self

    def __deepcopy__(self, memo: Any) -> Ledger:
        return self

    @property
    def digest(self) -> str:
        """Of the looks and their images: what a certificate names."""
        return ledger_digest(_document(self.looks, self.dealt))

    def deal(self, images: ImageSet, *, untouched: bool) -> None:
        """Note that images were dealt. untouched: nothing here was looked at before the ledger began."""
        if (self.looks or self.dealt or untouched) and images.digest not in self.dealt:
            self.dealt.append(images.digest)
            self._write()

    @contextmanager
    def asking(self, own: Look, wish: float, plan: Plan) -> Iterator[tuple[Attempts, float]]:
        """(what the headline counts, the confidence of the look's own tests); the certificate is made in the block.

        Where the block fails, the look is withdrawn. Raises ConfigError where more looks are asked for than planned,
        Stage1Error where the file cannot be written.
        """
        self._read()
        before = list(self.looks)
        counted, own = standing(self._known(), own, wish, plan)
        self._note(own)
        try:
            # Again, now that others can see this look: who came at the same time is counted too.
            counted, own = standing(self._known(), own, wish, plan)
            self._note(own)
            assert own.confidence is not None
            yield replace(counted, ledger=self.digest), own.confidence
        except BaseException:
            self._withdraw(before)
            raise
        for copy in self.copies:
            self._copy(copy)

    def _read(self) -> None:
        """Take over what the own file holds by now: another object or process may have written it."""
        if self.path is not None and self.path.is_file():
            looks, dealt = read_ledger(self.path)
            self.looks = list({look.identity: look for look in (*looks, *self.looks)}.values())
            self.dealt = list(dict.fromkeys((*dealt, *self.dealt)))

    def _withdraw(self, before: list[Look]) -> None:
        if self.looks == before:
            return
        self.looks = before
        if self.path is None or before or self.dealt:
            self._write()
        else:
            self.path.unlink(missing_ok=True)

    def _known(self) -> list[Look]:
        found = [*self.looks, *self._earlier]
        for path in self._others:
            if path.is_file() and not (self.path is not None and _same(path, self.path)):
                try:
                    found += read_ledger(path)[0]
                except (IntegrityError, OSError) as error:
                    self._say(f"warning: looks at calibration images that this file knows are not counted: {error}")
        return found

    def _note(self, own: Look) -> None:
        known = {look.identity: look for look in self.looks}
        for look in self._known():
            if look.images.shared(own.images):
                known.setdefault(look.identity, look)
        known[own.identity] = own
        if list(known.values()) != self.looks:
            self.looks = list(known.values())
            self._write()

    def _write(self) -> None:
        if self.path is not None:
            write_document(self.path, _document(self.looks, self.dealt), ATTEMPTS_KIND)

    def _copy(self, path: Path) -> None:
        try:
            looks, dealt = read_ledger(path) if path.is_file() else ([], [])
            known = {look.identity: look for look in (*looks, *self.looks)}
            if list(known.values()) != looks:
                write_document(path, _document(list(known.values()), dealt), ATTEMPTS_KIND)
        except Stage1Error as error:
            self._say(f"warning: a look from a third folder will not know of this one ({error})")


def look_of(images: ImageSet, asked: Mapping[str, Any]) -> Look:
    """The look at these images for what is asked: plain values that hold all that the certificate depends on."""
    return Look(digest_bytes(json.dumps(asked, sort_keys=True).encode()), images, asked=dict(asked))


def scores_digest(*parts: Scores | None) -> str:
    """Which scores a certificate is made of: logits, labels, second score and groups of each part, in their order."""
    pieces = []
    for scores in parts:
        if scores is not None:
            columns = (scores.logits, scores.labels, scores.gate, scores.groups)
            pieces += [b"-" if column is None else np.ascontiguousarray(column).tobytes() for column in columns]
    return digest_bytes("\n".join(digest_bytes(piece) for piece in pieces).encode())


def folders_beside(folder: Path) -> list[Path]:
    """The ledgers of the folders in the same parent folder, whatever they are of; sorted."""
    parent = Path(os.path.realpath(folder)).parent
    try:
        return sorted(path for path in parent.glob(f"*/{LEDGER_FILE}") if path.parent != Path(os.path.realpath(folder)))
    except OSError:
        return []


def file_beside(path: Path) -> Path:
    """The ledger of a score file or of recorded answers, which stands beside it: mine.parquet, mine.attempts.json."""
    real = Path(os.path.realpath(path))
    return real.with_name(f"{real.stem}.{LEDGER_FILE}")


def files_beside(path: Path) -> list[Path]:
    """All ledgers in the folder of a file; sorted."""
    folder = Path(os.path.realpath(path)).parent
    return sorted({*folder.glob(f"*.{LEDGER_FILE}"), *folder.glob(LEDGER_FILE)})


def looks_since(path: Path, images: str, others: Sequence[Path]) -> int:
    """How many looks that overlap this set of images (its digest) `others` know and the ledger does not."""
    if not path.is_file():
        return 0
    looks, _ = read_ledger(path)
    own = next((look.images for look in looks if look.images.digest == images), None)
    found: set[tuple[str, str]] = set()
    for other in others if own is not None else ():
        try:
            found |= {look.identity for look in read_ledger(other)[0] if own is not None and look.images.shared(own)}
        except Stage1Error:
            continue  # said when this run was calibrated, and again when it is
    return len(found - {look.identity for look in looks})


# ---- the document --------------------------------------------------------------------------------------------------


def read_ledger(path: Path) -> tuple[list[Look], list[str]]:
    """(looks, sets that were dealt) of a ledger of any version. Raises MissingError, IntegrityError."""
    return ledger_of(read_document(path, ATTEMPTS_KIND), path)


def ledger_of(document: Mapping[str, Any], path: Path) -> tuple[list[Look], list[str]]:
    """The same of a document that was read. Raises IntegrityError where its images are damaged."""
    if "attempts" in document:
        return [_earlier(attempt) for attempt in document["attempts"]], []
    images = {}
    for digest, known in document["images"].items():
        try:
            keys = np.frombuffer(base64.b64decode(known["keys"], validate=True), dtype="<u8").astype(np.uint64)
        except ValueError as error:
            raise IntegrityError(
                f"{path}: images: the keys of {digest[:12]} are damaged ({error}); restore it"
            ) from None
        images[digest] = ImageSet(digest, keys, known["n"], known["by"])
    looks = []
    for known in document["looks"]:
        if known["images"] not in images:
            raise IntegrityError(f"{path}: looks: one is at images that are not listed; restore the file")
        plan = Plan(known["planned"], known["schedule"])
        looks.append(
            Look(known["look"], images[known["images"]], known["wish"], known["confidence"], plan, known["asked"])
        )
    return looks, list(document["dealt"])


def ledger_digest(document: Mapping[str, Any]) -> str:
    """sha256 of the looks and their images. What was dealt when is no part of it."""
    return digest_bytes(json.dumps([document["looks"], document["images"]], sort_keys=True).encode())


def _document(looks: Sequence[Look], dealt: Sequence[str]) -> dict[str, Any]:
    images: dict[str, ImageSet] = {}
    for look in looks:  # of an earlier version the digest alone is known: keys that another look has are kept
        if look.images.by != "digest" or look.images.digest not in images:
            images[look.images.digest] = look.images
    return {
        "dealt": list(dealt),
        "images": {
            digest: {
                "n": one.n,
                "by": one.by,
                "keys": base64.b64encode(one.keys.astype("<u8").tobytes()).decode(),
            }
            for digest, one in images.items()
        },
        "looks": [
            {
                "look": look.look,
                "images": look.images.digest,
                "wish": look.wish,
                "confidence": look.confidence,
                "planned": look.plan.planned,
                "schedule": look.plan.schedule,
                "asked": dict(look.asked),
            }
            for look in looks
        ],
    }


def _earlier(attempt: Mapping[str, Any]) -> Look:
    """A look that an earlier version kept: of its images the digest alone."""
    images = ImageSet(attempt["calib_digest"], np.zeros(0, dtype=np.uint64), 0, "digest")
    asked = {name: value for name, value in attempt.items() if name != "calib_digest"}
    if "configuration" in attempt:
        return Look(attempt["configuration"], images, asked=asked)
    return replace(look_of(images, asked), wish=attempt["confidence"], confidence=attempt["confidence"])


def _same(a: Path, b: Path) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)
