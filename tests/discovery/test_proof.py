"""Five machines in two subnets, a router that carries no multicast, and somebody who means harm."""

from __future__ import annotations

import json
import sys
import time

import pytest

from tests.discovery.lab import AGENT_PORT, ROOT, Lab, agent
from tests.discovery.serving import Serving
from tests.e2e.helpers import AGENT, PYINFRA, clean_environment, eventually, run

NEAR = {"web1": "192.0.2.11", "web2": "192.0.2.12"}
FAR = {"db1": "198.51.100.21", "db2": "198.51.100.22", "app1": "198.51.100.23"}
CONTROLLER, IMPOSTOR, MOVED = "192.0.2.1", "192.0.2.66", "192.0.2.77"
ROUTER = {"near": "192.0.2.254", "far": "198.51.100.254"}
AMISS = 3

# Silence is noticed after 20 s; with this, after 2.
MOVE = """
import sys
from pyinfra.api import Config, Inventory, State
from pyinfra_agent_connector import _link
_link._KEEPALIVE_SECONDS = (0.5, 0.5)
host = State(Inventory((["@agent/subnet"], {"agent_connect_timeout": 4})), Config()).inventory.get_host("@agent/web2")
host.connect(raise_exceptions=True)
print("connected", flush=True)
print(host.run_shell_command(f"touch {sys.argv[1]}; sleep 5; echo done")[1].stdout)
"""


class World:
    """Two switches, a router between them, a machine for each agent, and a user who has pinned all of them."""

    def __init__(self, directory):
        self.lab = Lab()
        self.directory = directory
        self.home = directory / "home"
        self.environment = clean_environment(
            PYINFRA_AGENT_HOME=str(self.home), XDG_CACHE_HOME=str(directory / "cache"), PYTHONPATH=str(ROOT)
        )
        switches = {"near": self._switch(), "far": self._switch()}
        self._plug(switches["near"], self.lab.controller, "controller", f"{CONTROLLER}/24")
        router = self.lab.namespace()
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        for side, address in ROUTER.items():
            self._plug(switches[side], router, side, f"{address}/24")
        self.lab.controller.run("ip", "route", "add", "198.51.100.0/24", "via", ROUTER["near"])
        self.enemy = self.lab.namespace()
        self._plug(switches["near"], self.enemy, "enemy", f"{IMPOSTOR}/24")
        self.agents = {}
        for side, machines in (("near", NEAR), ("far", FAR)):
            for name, address in machines.items():
                namespace = self.lab.namespace()
                self._plug(switches[side], namespace, name, f"{address}/24")
                namespace.run("ip", "route", "add", "default", "via", ROUTER[side])
                groups = [name.rstrip("12")]
                self.agents[name] = Serving(namespace, directory, name, listen=f"0.0.0.0:{AGENT_PORT}", groups=groups)
        identity = self.user(AGENT, "identity").stdout.strip()
        for name, one in self.agents.items():
            assert run(AGENT, "authorize", "--state-dir", one.state_dir, identity).status == 0
            with (self.home / "known_agents").open("a") as file:
                file.write(f"{name}:{AGENT_PORT} {one.key_line}\n")
        for one in self.agents.values():
            one.says("announced")

    def user(self, *command, status=0):
        return self.lab.controller.run(*map(str, command), status=status, env=self.environment, cwd=self.directory)

    def discover(self, *words, status=0):
        return json.loads(self.user(AGENT, "discover", "--json", *words, status=status).stdout)

    def _switch(self):
        switch = self.lab.namespace()
        switch.run("ip", "link", "add", "switch", "type", "bridge", "mcast_snooping", "0")
        switch.run("ip", "link", "set", "switch", "up")
        return switch

    def _plug(self, switch, namespace, name, address):
        self.lab.join(switch, [], namespace, [address], name=name)
        switch.run("ip", "link", "set", name, "master", "switch")

    def close(self):
        for one in self.agents.values():
            one.kill()
        self.lab.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("world"))
    yield world
    world.close()


def names(found):
    return {one["name"]: one["key"] for one in found["agents"]}


def test_link_has_those_this_side_of_the_router(world):
    found = world.discover()
    assert names(found) == dict.fromkeys(NEAR, "pinned")
    assert {one["name"]: one["groups"] for one in found["agents"]} == {"web1": ["web"], "web2": ["web"]}


def test_network_behind_the_router_is_found_by_knocking(world):
    """They have their pinned names: the key that each proves leads to it."""
    assert names(world.discover("198.51.100.0/24")) == dict.fromkeys(FAR, "pinned")


def test_pyinfra_runs_on_all_five(world):
    done = world.user(PYINFRA, "-y", "@agent/subnet,@agent/198.51.100.0/24", "exec", "--", "true")
    text = " ".join((done.stdout + done.stderr).split())
    assert all(f"[@agent/{name}] Connected" in text for name in (*NEAR, *FAR)), text


def test_agent_that_moves_while_pyinfra_runs_is_found_again_and_its_command_is_not_lost(world, tmp_path):
    """Its address goes for good; it announces the new one itself, and the session is resumed there."""
    one = world.agents["web2"]
    begun = tmp_path / "begun"
    process = world.lab.controller.start(
        *(sys.executable, "-c", MOVE, str(begun)), env=world.environment, stdin=-3, stdout=-1, stderr=-1, text=True
    )
    try:
        eventually(begun.exists, 15, "the command")
        one.namespace.run("ip", "address", "del", f"{NEAR['web2']}/24", "dev", "web2")
        one.namespace.run("ip", "address", "add", f"{MOVED}/24", "dev", "web2")
        stdout, stderr = process.communicate(timeout=40)
    finally:
        process.kill()
        process.wait()
    assert stdout.split() == ["connected", "done"], stderr
    assert "resumed" in stderr
    (found,) = [each for each in world.discover()["agents"] if each["name"] == "web2"]
    assert (found["address"], found["key"]) == (MOVED, "pinned")


def test_impostor_loses_loudly(world):
    """It announces web1 with its own key and answers for it; the pinned one keeps the name."""
    enemy = Serving(world.enemy, world.directory, "enemy", "--no-announce")
    claim = agent("web1", [IMPOSTOR], key=enemy.key)
    process = world.lab.announce(world.enemy, {"interfaces": [IMPOSTOR], "agents": [claim]})
    try:
        found = world.discover(status=AMISS)
        done = world.user(PYINFRA, "-y", "@agent", "exec", "--", "true", status=None)
    finally:
        process.kill()
        process.wait()
        enemy.kill()
    keys = {one["name"]: (one["address"], one["key"]) for one in found["agents"]}
    assert keys["web1"] == (NEAR["web1"], "pinned")
    assert keys[IMPOSTOR] == (IMPOSTOR, "changed")
    assert any("calls itself web1, but its key" in warning for warning in found["warnings"])
    text = " ".join((done.stdout + done.stderr).split())
    assert "calls itself web1, but its key" in text
    assert "[@agent/web1] Connected" in text
    assert f"[@agent/{IMPOSTOR}] Connected" not in text


def test_flood_neither_hides_agents_nor_makes_them_swell(world):
    """Ten thousand agents that are not there, again and again."""
    before = {name: world.agents[name].kib for name in NEAR}
    with world.enemy.attacked("instances", IMPOSTOR):
        began = time.monotonic()
        done = world.user(AGENT, "discover", "--json", status=None)
        seconds = time.monotonic() - began
    found = {one["name"] for one in json.loads(done.stdout)["agents"] if one["key"] == "pinned"}
    assert found == set(NEAR)
    assert seconds < 15
    for name, kib in before.items():
        assert world.agents[name].kib - kib < 24 * 1024
