"""Challenges and scenes are made in the process of the tests: two processes take 4 s of CPU to start, the few images of
a test not one. That processes change nothing is tested in tests/simulation and tests/streetvision.
"""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest

from stage1.runtime import processes


@pytest.fixture(scope="module", autouse=True)
def no_processes_started() -> Iterator[None]:
    """For each module that imports it, and for every test of runs."""
    with mock.patch.object(processes, "_POOL_FROM", 10**9):
        yield
