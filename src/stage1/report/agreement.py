"""Whether the documents of a report belong to one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stage1.errors import IntegrityError
from stage1.scores import Scores

Document = Mapping[str, Any]


def refuse_disagreement(certificate: Document, evaluation: Document, policy: Document, scores: Scores) -> None:
    """A report over documents of different runs would be false, so there is none.

    Raises IntegrityError (one line) where the documents disagree on the certificate, the thresholds or the number of
    images.
    """
    for field, values in (
        ("certified", (certificate["certified"], evaluation["certified"], policy["certified"])),
        ("lo", (policy["lo"], evaluation["lo"])),
        ("hi", (policy["hi"], evaluation["hi"])),
        ("n", (evaluation["n"], len(scores))),
    ):
        if any(value != values[0] for value in values[1:]):
            shown = " and ".join(repr(value) for value in values)
            raise IntegrityError(
                f"report: `{field}` is {shown} in certificate, evaluation, policy or scores; run `stage1 evaluate`"
                " again"
            )
