"""Links whose keys change every few records: a resume begins with fresh keys and a count of its own."""

from __future__ import annotations

import functools
import random
import sys

import pytest

from pyinfra_agent_connector import _opening
from tests.faults.helpers import NumberedLines, chunks_of, connected, times
from tests.faults.proxy import DEADLY, DOWN, UP, FaultProxy

REKEY_AFTER_RECORDS = 4
SERVE = f"""
import functools, sys
from pyinfra_agent import _connection, cli
_connection.Responder = functools.partial(_connection.Responder, rekey_after={REKEY_AFTER_RECORDS})
sys.exit(cli.main(sys.argv[2:]))
"""
SIZE_BYTES = 2 << 20


@pytest.fixture
def rekeying(lab, monkeypatch):
    """An agent and this process's controllers, which change keys every few records."""
    changing = functools.partial(_opening.Initiator, rekey_after=REKEY_AFTER_RECORDS)
    monkeypatch.setattr(_opening, "Initiator", changing)
    controller = lab.controller()
    return lab.agent(controller, prefix=(sys.executable, "-c", SERVE)), controller


@pytest.mark.parametrize("seed", range(times(2, 20)))
def test_links_that_change_keys_are_resumed(seed, rekeying, told, tmp_path):
    """Cuts before, at and behind a change of keys cost nothing, and no record is refused."""
    agent, controller = rekeying
    rng = random.Random(seed)
    content = rng.randbytes(SIZE_BYTES)
    lines = NumberedLines(tmp_path)
    with FaultProxy(agent.port) as proxy, connected(proxy.port, controller, notify=told.append) as client:
        for direction in (UP, DOWN):
            for _ in range(8):
                proxy.plan(rng.choice(DEADLY[:3]), direction, rng.randrange(SIZE_BYTES))
        lines.run(client)
        client.put(chunks_of(content), str(tmp_path / "file"))
        arrived = bytearray()
        client.get(str(tmp_path / "file"), arrived.extend)
        assert bytes(arrived) == content
        assert proxy.links > 8
    assert not [line for line in told if "refused" in line]
    assert "refused" not in agent.log.read_text()


@pytest.mark.usefixtures("rekeying")
def test_peers_that_change_keys_apart_lose_the_link(agent, controller, told):
    """The test above does change keys: an agent that does so at another record does not understand us."""
    with connected(agent.port, controller, notify=told.append) as client:
        for _ in range(REKEY_AFTER_RECORDS):
            client.run(["true"])
    assert "record was refused" in told[0] or "closed the connection" in told[0]
