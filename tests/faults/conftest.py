"""An agent, and a network between it and its controller that breaks when it is told to."""

from __future__ import annotations

import pytest

from pyinfra_agent_connector import _link
from tests.e2e.helpers import Lab
from tests.faults.proxy import FaultProxy


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


@pytest.fixture
def agent(shared):
    return shared[0]


@pytest.fixture
def controller(shared):
    return shared[1]


@pytest.fixture
def proxy(agent):
    with FaultProxy(agent.port) as proxy:
        yield proxy


@pytest.fixture
def told():
    """Lines that the user was told."""
    return []


@pytest.fixture
def impatient(monkeypatch):
    """Let controllers take a silent link for lost within a second, where 20 are usual."""
    monkeypatch.setattr(_link, "_KEEPALIVE_SECONDS", (0.4, 0.2))
