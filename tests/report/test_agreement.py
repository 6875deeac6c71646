"""Documents of different runs make no report."""

from __future__ import annotations

import pytest

from stage1.errors import IntegrityError
from stage1.report.agreement import refuse_disagreement


@pytest.mark.parametrize(
    "document,field,value",
    [("policy", "lo", -9.5), ("evaluation", "hi", 9.5), ("evaluation", "n", 7), ("policy", "certified", False)],
)
def test_documents_of_different_runs_make_no_report(certified, document, field, value):
    getattr(certified, document)[field] = value
    with pytest.raises(IntegrityError, match=f"`{field}`"):
        refuse_disagreement(certified.certificate, certified.evaluation, certified.policy, certified.scores)
