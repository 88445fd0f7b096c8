"""The containers of this directory: one to read facts in, and two to run operations in."""

from __future__ import annotations

import pytest

from tests.containers import Lab, containers_or_skip


@pytest.fixture(scope="session")
def lab():
    containers_or_skip()
    with Lab() as lab:
        yield lab
