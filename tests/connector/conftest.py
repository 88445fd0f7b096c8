"""Fixtures of the connector's tests: a home of their own, and agents to talk to."""

from __future__ import annotations

import pytest

from pyinfra_agent_connector._loopback import start_loopback
from tests.connector.helpers import CuttingProxy, client_of


@pytest.fixture(autouse=True)
def agent_home(tmp_path, monkeypatch):
    """Keep the user's own key and pins out of it."""
    home = tmp_path / "agent-home"
    monkeypatch.setenv("PYINFRA_AGENT_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def agent():
    """A private agent, one for all tests: it ends with them."""
    agent = start_loopback()
    yield agent
    agent.stop()


@pytest.fixture
def client(agent):
    """A client that is connected to the agent."""
    client = client_of(agent.port, agent.identity)
    client.connect()
    yield client
    client.close()


@pytest.fixture
def proxy(agent):
    """A network between client and agent that can break."""
    with CuttingProxy(agent.port) as proxy:
        yield proxy


@pytest.fixture
def told():
    """Lines that the user was told."""
    return []


@pytest.fixture
def far_client(agent, proxy, told):
    """A client that is connected to the agent through the proxy."""
    client = client_of(proxy.port, agent.identity, notify=told.append, resume_seconds=10.0)
    client.connect()
    yield client
    client.close()
