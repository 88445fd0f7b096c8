"""Agents that announce themselves on real links, as the configuration says."""

from __future__ import annotations

import os
import sys
import time

import pytest

from pyinfra_agent_protocol.keys import fingerprint
from tests.discovery.lab import AGENT_PORT, HERE
from tests.e2e.helpers import eventually

CONTROLLER = "192.0.2.1"
ADDRESS = "192.0.2.2"
MIB_KIB = 1024

SOAK = os.environ.get("PYINFRA_AGENT_SOAK") == "1"

# Older releases cannot take up an interface that comes later.
OLD_ZEROCONF = """
import sys, zeroconf
del zeroconf.Zeroconf.update_interfaces
from pyinfra_agent.cli import main
sys.exit(main())
"""
WITHOUT_ZEROCONF = """
import sys
sys.modules["zeroconf"] = None
from pyinfra_agent.cli import main
sys.exit(main())
"""


@pytest.fixture
def machine(lab):
    """A namespace at the other end of a cable."""
    namespace = lab.namespace()
    lab.join(lab.controller, [f"{CONTROLLER}/24", "fe80::1/64"], namespace, [f"{ADDRESS}/24", "2001:db8::2/64"])
    return namespace


def seen(lab):
    """Return what is announced: addresses by instance."""
    return {one["instance"]: set(one["addresses"]) for one in lab.looked("browse")["agents"] if not one["problem"]}


def test_agent_announces_all_that_its_advert_has(lab, machine, serving):
    """By IPv4 and IPv6; its name is the host's, and the name of its addresses goes with it."""
    agent = serving(machine, "Web1.example.com", groups=["web", "berlin"])
    agent.says("announced")
    (one,) = lab.looked("browse")["agents"]
    assert (one["instance"], one["server"], one["port"]) == ("web1", "web1-agent.local", AGENT_PORT)
    assert one["addresses"][0] == ADDRESS
    assert "2001:db8::2" in one["addresses"]
    assert any(address.startswith("fe80::") for address in one["addresses"])
    advert = one["advert"]
    assert (advert["fingerprint"], advert["groups"]) == (fingerprint(agent.key), ["web", "berlin"])
    assert all(advert[key] for key in ("os", "arch", "software", "version"))


def test_agents_of_one_name_announce_different_ones(lab, machine, serving):
    """Who comes later is renamed, and so is its machine; who was there is not."""
    machine.run("ip", "address", "add", "192.0.2.3/24", "dev", "eth0")
    first = serving(machine, "web1", listen=f"{ADDRESS}:{AGENT_PORT}")
    assert "name=web1 " in first.says("announced")
    second = serving(machine, "web1", listen=f"192.0.2.3:{AGENT_PORT}")
    assert "name=web1-2 " in second.says("announced")
    servers = {one["instance"]: (one["server"], one["addresses"]) for one in lab.looked("browse")["agents"]}
    assert servers == {"web1": ("web1-agent.local", [ADDRESS]), "web1-2": ("web1-2-agent.local", ["192.0.2.3"])}


@pytest.mark.parametrize("program", [None, OLD_ZEROCONF] if SOAK else [None], ids=lambda text: "old" if text else "new")
def test_announcement_follows_addresses_and_interfaces(lab, machine, serving, program):
    """Both come and go; what is gone is not announced any longer."""
    agent = serving(machine, "web1", listen=f"0.0.0.0:{AGENT_PORT}", program=program)
    agent.says("announced")
    machine.run("ip", "address", "add", "192.0.2.7/24", "dev", "eth0")
    machine.run("ip", "address", "del", f"{ADDRESS}/24", "dev", "eth0")
    # Removing the first address of a subnet takes the others along.
    machine.run("ip", "address", "replace", "192.0.2.7/24", "dev", "eth0")
    eventually(lambda: seen(lab) == {"web1": {"192.0.2.7"}}, 10, "the new address")
    lab.join(lab.controller, ["198.51.100.1/24"], machine, ["198.51.100.2/24"], name="eth1")
    eventually(lambda: seen(lab) == {"web1": {"192.0.2.7", "198.51.100.2"}}, 10, "the second interface")
    machine.run("ip", "link", "set", "eth0", "down")
    eventually(lambda: seen(lab) == {"web1": {"198.51.100.2"}}, 10, "the first interface to be gone")


def test_agent_without_a_network_is_announced_when_there_is_one(lab, serving):
    """It works meanwhile, and says once what it waits for."""
    machine = lab.namespace()
    agent = serving(machine, "web1")
    assert "no interface is up" in agent.says("not-announced")
    lab.join(lab.controller, [f"{CONTROLLER}/24"], machine, [f"{ADDRESS}/24"])
    agent.says("announced")
    assert agent.said.count("not-announced") == 1
    assert ADDRESS in seen(lab)["web1"]


@pytest.mark.parametrize(
    ("options", "config"),
    [(["--no-announce"], {}), ([], {"announce": False}), ([], {"listen": f"127.0.0.1:{AGENT_PORT}"})],
    ids=["--no-announce", "announce = false", "loopback"],
)
def test_agent_that_is_not_to_announce_itself_opens_no_socket_for_it(lab, machine, serving, options, config):
    agent = serving(machine, "web1", *options, **config)
    time.sleep(0.5)
    assert ":5353" not in machine.run("ss", "-Hulpn").stdout
    assert "announced" not in agent.said


def test_agent_announces_itself_only_on_the_interfaces_that_are_chosen(lab, machine, serving):
    """Nor does it tell there what its other addresses are."""
    lab.join(lab.controller, ["198.51.100.1/24"], machine, ["198.51.100.2/24"], name="eth1")
    agent = serving(machine, "web1", announce_interfaces=["eth1"], listen=f"0.0.0.0:{AGENT_PORT}")
    assert " on=eth1 addresses=198.51.100.2" in agent.says("announced")
    (one,) = lab.looked("browse")["agents"]
    assert one["addresses"] == ["198.51.100.2"]


def test_agent_without_zeroconf_says_so_once_and_works(lab, machine, serving):
    agent = serving(machine, "web1", program=WITHOUT_ZEROCONF)
    assert "the package zeroconf is missing" in agent.says("not-announced")
    swept = lab.looked("sweep", f"{ADDRESS}/32", str(AGENT_PORT))
    assert swept["agents"] == [[ADDRESS, agent.key.hex()]]


def test_agent_says_goodbye_when_it_stops(lab, machine, serving):
    """Within a second, and to those who only listen."""
    agent = serving(machine, "web1")
    agent.says("announced")
    listening = lab.controller.start(
        *(sys.executable, str(HERE / "looker.py"), "goodbyes"),
        stdout=-1,
        text=True,
        env={"PYTHONPATH": str(HERE.parents[1])},
    )
    eventually(lambda: ":5353" in lab.controller.run("ss", "-Hulpn").stdout, 20, "somebody who listens")
    began = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - began < 2
    stdout, _ = listening.communicate(timeout=10)
    assert '"web1"' in stdout


def test_announcing_costs_little_memory_and_no_time(lab, machine, serving):
    """Beside an agent that does not; it sleeps while nobody asks."""
    silent = serving(machine, "db1", "--no-announce", listen=f":{AGENT_PORT + 1}")
    agent = serving(machine, "web1")
    agent.says("announced")
    lab.looked("browse")
    time.sleep(1.5)  # the third announcement
    cpu_seconds = agent.cpu_seconds
    cost_kib = agent.kib - silent.kib
    time.sleep(2)
    assert cost_kib < 6 * MIB_KIB
    assert agent.cpu_seconds - cpu_seconds < 0.05


@pytest.mark.parametrize("attack", ["instances", "junk", "endless"] if SOAK else ["instances"])
def test_agent_beside_a_hostile_neighbour_stays_small_and_serves(lab, machine, serving, attack):
    """It keeps what it hears, as every responder does, up to a bound."""
    lab.controller.run("ip", "address", "add", "192.0.2.66/24", "dev", "eth0")
    agent = serving(machine, "web1")
    agent.says("announced")
    before = agent.kib
    with lab.controller.attacked(attack, "192.0.2.66"):
        time.sleep(3)
    eventually(
        lambda: lab.looked("sweep", f"{ADDRESS}/32", str(AGENT_PORT))["agents"] == [[ADDRESS, agent.key.hex()]], 10
    )
    assert agent.kib - before < 24 * MIB_KIB
    assert len(agent.said.splitlines()) < 8, agent.said
