"""The fixture `loopback_agent`: a private agent for tests of deploys.

    def test_site(loopback_agent):
        host = loopback_agent.host
        run the deploy's operations on loopback_agent.state, look at the machine with host.get_fact(...)

Every pytest of the environment loads this module, so it imports nothing before the fixture is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyinfra.api import Host, State

__all__ = ["ConnectedAgent", "loopback_agent"]


@dataclass(frozen=True)
class ConnectedAgent:
    """A private agent that pyinfra is connected to.

    Attributes:
        name: its inventory name.
        state: a pyinfra State whose inventory holds this host alone.
        host: the connected host.
    """

    name: str
    state: State
    host: Host


@pytest.fixture
def loopback_agent() -> Iterator[ConnectedAgent]:
    """A pyinfra State and Host connected to a private agent, which ends with the test; for pyinfra 2 and later."""
    from pyinfra.api import Config, Inventory, State
    from pyinfra.api.connect import connect_all, disconnect_all
    from pyinfra.context import ctx_host, ctx_state

    inventory = Inventory((["@agent/loopback"], {}))  # type: ignore[no-untyped-call]
    state = State(inventory, Config())  # type: ignore[no-untyped-call]
    connect_all(state)
    host = state.inventory.get_host("@agent/loopback")
    try:
        with ctx_state.use(state), ctx_host.use(host):
            yield ConnectedAgent("@agent/loopback", state, host)
    finally:
        disconnect_all(state)
