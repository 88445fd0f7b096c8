"""Agents that register themselves in a zone of BIND 9, signed with TSIG."""

from __future__ import annotations

import shutil
import sys

import pytest

from pyinfra_agent_protocol.keys import fingerprint
from tests.discovery.lab import AGENT_PORT
from tests.discovery.named import ZONE
from tests.discovery.registry import OTHER_SECRET, key_file, key_text, registry
from tests.e2e.helpers import AGENT, clean_environment, eventually

SERVER = "192.0.2.1"
ADDRESS = "192.0.2.2"


@pytest.fixture(autouse=True)
def _able_to_serve_zones():
    if shutil.which("named") is None:
        pytest.skip("named is not installed (package bind9)")


@pytest.fixture
def machine(lab):
    namespace = lab.namespace()
    lab.join(lab.controller, [f"{SERVER}/24"], namespace, [f"{ADDRESS}/24", "192.0.2.3/24"])
    return namespace


@pytest.fixture
def start(serving, machine, tmp_path):
    """Starts an agent that registers itself and announces nothing."""

    def start(name="web1", address=ADDRESS, key=None, server=SERVER, **config):
        dns = {"zone": ZONE, "server": server, "key_file": key or key_file(tmp_path)}
        config = {"listen": f"{address}:{AGENT_PORT}", "groups": ["web"], "announce": False, "dns": dns, **config}
        return serving(machine, name, **config)

    return start


def listed(lab):
    """Return what a controller finds in the zone: instance, name of the machine and fingerprint."""
    agents = lab.looked("browse-zone", ZONE, SERVER)["agents"]
    return sorted((one["instance"], one["server"], one["advert"]["fingerprint"]) for one in agents)


def entry(name, agent):
    return name, f"{name}.pyinfra-agent.{ZONE}", fingerprint(agent.key)


def answers(lab, name, kind):
    """Return what the zone says."""
    script = (
        "import dns.message, dns.query, sys\n"
        "answer = dns.query.udp(dns.message.make_query(sys.argv[1], sys.argv[2]), sys.argv[3], timeout=5)\n"
        "print(*(rdata for rrset in answer.answer for rdata in rrset))"
    )
    return lab.controller.run(sys.executable, "-c", script, name, kind, SERVER).stdout.split()


def test_agent_registers_itself_and_removes_itself_on_stop(lab, tmp_path, start):
    """Its records, its addresses as they change, and nothing of what else the machine has there."""
    with registry(lab.controller, tmp_path):
        agent = start(listen=f"0.0.0.0:{AGENT_PORT}")
        assert f"zone={ZONE} name=web1 " in agent.says("registered")
        assert listed(lab) == [entry("web1", agent)]
        host = f"web1.pyinfra-agent.{ZONE}"
        assert set(answers(lab, host, "A")) == {ADDRESS, "192.0.2.3"}
        agent.namespace.run("ip", "address", "add", "198.51.100.7/32", "dev", "eth0")
        eventually(lambda: "198.51.100.7" in answers(lab, host, "A"), 10, "the new address")
        assert agent.stop() == 0
        assert listed(lab) == []
        assert answers(lab, host, "A") == []
        assert answers(lab, f"web1.{ZONE}", "A") == ["192.0.2.99"]


def test_record_of_an_agent_that_was_killed_is_taken_over_and_one_of_another_is_not(lab, tmp_path, start):
    """By its key after a restart, by its address after it was installed anew; another machine's name stays its own."""
    with registry(lab.controller, tmp_path):
        first = start()
        first.says("registered")
        first.kill()
        anew = start()
        assert "name=web1 " in anew.says("registered")
        assert anew.key != first.key
        other = start(address="192.0.2.3")
        assert "name=web1-2 " in other.says("registered")
        assert listed(lab) == [entry("web1", anew), entry("web1-2", other)]
        assert other.stop() == 0
        assert listed(lab) == [entry("web1", anew)]


def test_stale_record_is_harmless(lab, tmp_path, start):
    """Whoever looks is told why the agent is not there."""
    with registry(lab.controller, tmp_path):
        agent = start()
        agent.says("registered")
        agent.kill()
        (tmp_path / "resolv.conf").write_text(f"nameserver {SERVER}\n")
        program = f'mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && exec "$@"'
        done = lab.controller.run(
            *("unshare", "--mount", "sh", "-c", program, "sh"),
            *(str(AGENT), "discover", f"dns:{ZONE}", "--home", str(tmp_path / "home")),
            status=1,
            env=clean_environment(XDG_CACHE_HOME=str(tmp_path / "cache")),
        )
    assert "port closed: the machine is up, and no agent listens there" in done.stdout
    assert f"web1.pyinfra-agent.{ZONE}:{AGENT_PORT}" in done.stdout


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (key_text(secret=OTHER_SECRET), "the server has another secret for the key agents"),
        (key_text(name="nobody"), "the server does not know the key nobody"),
        ("agents:c2VjcmV0\n", "as tsig-keygen writes it"),
        (key_text(algorithm="rot13"), "its algorithm or secret cannot be used"),
    ],
    ids=["wrong secret", "unknown key", "no key", "unknown algorithm"],
)
def test_wrong_key_is_one_line_and_the_agent_serves(lab, tmp_path, start, key, said):
    with registry(lab.controller, tmp_path):
        agent = start(key=key_file(tmp_path, key))
        assert said in agent.says("not-registered")
        assert lab.looked("sweep", f"{ADDRESS}/32", str(AGENT_PORT))["agents"] == [[ADDRESS, agent.key.hex()]]
        assert listed(lab) == []
    assert agent.said.count("not-registered") == 1
    assert agent.stop() == 0


def test_key_that_every_user_can_read_is_refused(lab, tmp_path, start):
    path = key_file(tmp_path, mode=0o644)
    assert f"{path} is open to every user (mode 0644): chmod o= {path}" in start(key=path).says("not-registered")


def test_dead_server_is_one_line_and_is_tried_again(lab, tmp_path, start):
    """It comes back five seconds later; the agent stops in time all the while."""
    agent = start()
    said = agent.says("not-registered")
    assert f"the server {SERVER}:53" in said
    assert "Connection refused" in said
    with registry(lab.controller, tmp_path):
        agent.says("registered", 10)
    assert agent.said.count("not-registered") == 1
    assert agent.stop() == 0
    assert "not-unregistered" in agent.said
