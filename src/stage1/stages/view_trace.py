"""looked.json of a run: of each image of val_test which views were evaluated and which one decided, for the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import IntegrityError
from stage1.policy import Decision
from stage1.runs.artifacts import views_file
from stage1.runs.directory import RunDir
from stage1.runs.schema import TRACE_KIND
from stage1.stages.views import shipped_views
from stage1.storage.documents import read_document, write_document
from stage1.storage.files import digest_file
from stage1.views import VIEWS_FILE, ViewsDocument

if TYPE_CHECKING:
    from stage1.inference.views import ViewTrace


TRACE_FILE = "looked.json"
TRACE_ROLE = "val_test"
Ints = NDArray[np.int64]
Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class RoleTrace:
    """Of each row of val_test, in the order of its scores.

    used: int64 [n], how many views were evaluated; deciding: int64 [n], the one that contributed most to the
    answer.
    """

    views: ViewsDocument
    used: Ints
    deciding: Ints

    def summary(self, decision: Decision, labels: Ints) -> dict[str, Any]:
        """The section `views` of evaluation.json: outcomes by number of views, and by the deciding view."""
        names = self.views.policy.names
        right = decision.label == labels

        def counts(rows: NDArray[np.bool_]) -> dict[str, int]:
            exits = rows & decision.exit
            return {
                "right": int((exits & right).sum()),
                "deferred": int((rows & ~decision.exit).sum()),
                "wrong": int((exits & ~right).sum()),
            }

        return {
            "of": len(names),
            "mean": float(self.used.mean()) if len(self.used) else None,
            "used": [{"views": seen, **counts(self.used == seen)} for seen in np.unique(self.used).tolist()],
            "decided": [{"view": names[at], **counts(self.deciding == at)} for at in np.unique(self.deciding).tolist()],
        }

    def words(self, row: int, *, exits: bool) -> str:
        """Of one image: "tile r0c2 decided, 10 views". For a deferred one: the view that weighed most."""
        name, count, used = self.views.policy.names[self.deciding[row]], self.views.policy.count, self.used[row]
        view = "the whole image" if name == "whole" else name
        evaluated = f"{count} views" if self.views.sequence is None else f"{used} of {count} views looked at"
        return f"{view} {'decided' if exits else 'weighed most'}, {evaluated}"

    def box(self, row: int, height: int, width: int) -> Box:
        """Where the view that decided lies, (top, left, bottom, right) in pixels of the decoded image."""
        top, left, bottom, right = self.views.policy.boxes(height, width)[self.deciding[row]].tolist()
        return top, left, bottom, right


def write_trace(run: RunDir, trace: ViewTrace | None) -> Iterator[Path]:
    """looked.json of the answers for val_test, where they are made from views; else an old one goes. Returns paths."""
    path = run / TRACE_FILE
    path.unlink(missing_ok=True)
    if trace is not None:
        document = {
            "role": TRACE_ROLE,
            "views": digest_file(run / VIEWS_FILE),
            "used": trace.used.tolist(),
            "deciding": trace.deciding.tolist(),
        }
        write_document(path, document, TRACE_KIND)
        yield path


def read_trace(run: RunDir, n: int) -> RoleTrace | None:
    """What `write_trace` wrote; None in a run on whole images alone. n: rows of val_test.

    Raises MissingError where it should be there, IntegrityError where it is of other views or another number of images.
    """
    views = shipped_views(run)
    if views is None:
        return None
    path = run / TRACE_FILE
    document = read_document(path, TRACE_KIND)
    used, deciding = (np.array(document[name], dtype=np.int64) for name in ("used", "deciding"))
    whole = len(used) == len(deciding) == n and document["views"] == views.digest
    if not whole or max(used.max(initial=1), deciding.max(initial=0) + 1) > views.policy.count:
        raise IntegrityError(
            f"{path}: is not of these {n} images and of {VIEWS_FILE} beside it; run `stage1 score` again"
        )
    return RoleTrace(views, used, deciding)


def trace_state(run: RunDir) -> str:
    """Digest of what evaluation and page say of views, "" in a run without them: part of what `evaluate` depends on."""
    if not views_file(run.config):
        return ""
    return "".join(digest_file(run / name) for name in (VIEWS_FILE, TRACE_FILE) if (run / name).is_file())
