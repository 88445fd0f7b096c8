"""A lab, and a fleet key in it."""

from __future__ import annotations

import pytest

from tests.e2e.helpers import Lab
from tests.trust_e2e.helpers import FleetKey


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture
def fleet(lab):
    return FleetKey(lab.directory / "ca")
