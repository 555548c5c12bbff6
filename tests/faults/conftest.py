"""One uninterrupted run, made once, to which the runs with faults are compared."""

from __future__ import annotations

import pytest

from tests.faults import small_run
from tests.faults.small_run import SmallRun


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """Read only: damage a copy."""
    return small_run.make(tmp_path_factory.mktemp("small"))
