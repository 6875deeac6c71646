"""The peak of a stage is the stage's own, not that of what ran before it."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.runs.memory import peak_mib, reset_peak


def test_the_peak_is_counted_anew():
    if not reset_peak():
        pytest.skip("this system cannot count the peak anew (only Linux can)")
    before = peak_mib()
    big = np.ones(2**25)  # 256 MiB, touched
    assert peak_mib() >= before + 250
    del big
    assert reset_peak()
    assert peak_mib() < before + 100
