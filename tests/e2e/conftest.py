"""A lab for each test, and one agent for all tests of a module that leave it as it was."""

from __future__ import annotations

import pytest

from tests.e2e.helpers import Lab


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """An agent, and a controller that it lets in."""
    lab = Lab(tmp_path_factory.mktemp("shared"))
    controller = lab.controller()
    try:
        yield lab.agent(controller), controller
    finally:
        lab.close()
