"""Knocking at a whole network, where nearly everybody is silent."""

from __future__ import annotations

import os

import pytest

from pyinfra_agent_protocol.keys import parse_public
from tests.discovery.lab import AGENT_PORT
from tests.e2e.helpers import AGENT, run
from tests.e2e.helpers import Lab as Processes

SOAK = os.environ.get("PYINFRA_AGENT_SOAK") == "1"


@pytest.fixture
def agent(lab, tmp_path):
    """An agent at 192.0.2.2, which is also the router to 10.77.0.0/16, where only 10.77.3.3 is it as well."""
    namespace = lab.namespace()
    lab.join(lab.controller, ["192.0.2.1/24"], namespace, ["192.0.2.2/24"])
    lab.controller.run("ip", "route", "add", "10.77.0.0/16", "via", "192.0.2.2")
    namespace.run("ip", "route", "add", "local", "10.77.0.0/16", "dev", "lo")
    namespace.firewall("ip daddr 10.77.3.3 accept", "ip daddr 10.77.0.0/16 drop")
    processes = Processes(tmp_path)
    agent = processes.agent(listen=f"0.0.0.0:{AGENT_PORT}", prefix=namespace.prefix)
    yield agent
    processes.close()


def key_of(agent):
    return parse_public(run(AGENT, "key", "--state-dir", agent.state_dir).stdout.strip()).key.hex()


@pytest.mark.parametrize(
    ("network", "attached", "address"), [("192.0.2.0/24", ["attached"], "192.0.2.2"), ("10.77.3.0/24", [], "10.77.3.3")]
)
def test_sweep_of_254_addresses_takes_less_than_a_second_and_a_half(lab, agent, network, attached, address):
    """On a link, where nobody answers for who is not there; and behind a router that drops."""
    swept = lab.looked("sweep", network, str(AGENT_PORT), *attached)
    assert swept["agents"] == [[address, key_of(agent)]]
    print(f"sweeping {network}: {swept['seconds']} s")
    assert swept["seconds"] - swept["waited_seconds"] < 1.5
    assert swept["counts"]["SILENT"] + swept["counts"]["REFUSED"] == 253


def test_sweep_leaves_nothing_but_an_unfinished_handshake(lab, agent):
    """The agent has learned no key, and has nobody's session."""
    lab.looked("sweep", "192.0.2.2/32", str(AGENT_PORT))
    log = agent.log.read_text()
    assert "denied" not in log
    assert "connected" not in log.replace("disconnected", "")


def test_sweep_of_65534_addresses_is_bounded(lab, agent):
    """A sixteenth of them where time is short."""
    network = "10.77.0.0/16" if SOAK else "10.77.0.0/20"
    count = 65_534 if SOAK else 4094
    swept = lab.looked("sweep", network, str(AGENT_PORT))
    assert [address for address, _ in swept["agents"]] == ["10.77.3.3"]
    assert swept["counts"]["SILENT"] == count - 1
    print(f"sweeping {count} addresses: {swept['seconds']} s")
    assert swept["seconds"] < count / (1400 if SOAK else 700)
    assert swept["peak_bytes"] < 100e6
    assert [done for done, _, _ in swept["progress"]] == sorted(done for done, _, _ in swept["progress"])
