"""pyinfra with `@agent` as its inventory: real agents, announced by python-zeroconf, and an impostor."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pyinfra_agent_protocol.keys import format_public, parse_public
from tests.discovery.lab import AGENT_PORT, Lab, agent
from tests.e2e.helpers import AGENT, PYINFRA, eventually, run
from tests.e2e.helpers import Lab as Processes

if TYPE_CHECKING:
    from pathlib import Path

ADDRESSES = {"web1": "192.0.2.2", "db1": "192.0.2.3"}
GROUPS = {"web1": ["web"], "db1": ["db"]}
IMPOSTOR = "203.0.113.66"

LOOK = """
import json, sys
from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all
inventory = Inventory((sys.argv[1:], {}), db=([], {"role": "store"}))
state = State(inventory, Config())
connect_all(state)
print(json.dumps({
    host.name: [host.data.agent_host, host.data.get("role"), host.run_shell_command("echo here")[1].stdout]
    for host in state.active_hosts
}))
"""

# Silence is noticed after 20 s; with this, after 2. The run ends when the agent is where nobody knew it to be.
MOVE = """
import sys
from pyinfra.api import Config, Inventory, State
from pyinfra_agent_connector import _link, _mdns
_link._KEEPALIVE_SECONDS = (0.5, 0.5)
host = State(Inventory((["@agent/subnet"], {"agent_connect_timeout": 4})), Config()).inventory.get_host("@agent/web1")
host.connect(raise_exceptions=True)
print("connected", flush=True)
print(host.run_shell_command(f"touch {sys.argv[1]}; sleep 4; echo done")[1].stdout)
"""


@dataclass
class World:
    lab: Lab
    processes: Processes
    agents: dict
    directory: Path

    def keys(self):
        return {name: key_line(one) for name, one in self.agents.items()}

    def controller(self, directory, **pins):
        return Controller(self, self.processes.controller(directory.name), directory, pins)


class Controller:
    """A user in the controller's namespace whose known_agents has these pins."""

    def __init__(self, world, user, directory, pins):
        self._world = world
        self.user = user
        self.directory = directory
        directory.mkdir(exist_ok=True)
        for one in world.agents.values():
            one.authorize(user)
        user.home.mkdir(exist_ok=True)
        self.known_agents = user.home / "known_agents"
        self.known_agents.write_text("".join(f"{name.replace('_', ':')} {line}\n" for name, line in pins.items()))
        self.environment = {**user.environment, "XDG_CACHE_HOME": str(directory / "cache")}

    def run(self, *words):
        prefix = self._world.lab.controller.prefix
        return run(*prefix, *words, cwd=self.directory, env=self.environment)

    def pyinfra(self, *words):
        return self.run(PYINFRA, "-y", *words)

    def look(self, *names):
        done = self.run(sys.executable, "-c", LOOK, *names)
        assert done.status == 0, done.text
        return json.loads(done.stdout.splitlines()[-1]), done.stderr


def key_line(one):
    return format_public(parse_public(run(AGENT, "key", "--state-dir", one.state_dir).stdout.strip()).key)


def announce(world, name, address, *, called=None):
    key = parse_public(key_line(world.agents[name])).key
    one = agent(called or name, [address], groups=GROUPS.get(name, []), key=key)
    namespace = world.lab.namespaces["impostor" if name == "impostor" else "agents"]
    return world.lab.announce(namespace, {"interfaces": [address], "agents": [one]})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two agents that are announced and one that is not, all on one link; on another, one that can be an impostor."""
    directory = tmp_path_factory.mktemp("world")
    lab, processes = Lab(), Processes(directory)
    try:
        namespace, enemy = lab.namespace(), lab.namespace()
        lab.namespaces = {"agents": namespace, "impostor": enemy}
        addresses = {**ADDRESSES, "quiet": "192.0.2.4"}
        lab.join(lab.controller, ["192.0.2.1/24"], namespace, [f"{address}/24" for address in addresses.values()])
        lab.join(lab.controller, ["203.0.113.1/24"], enemy, [f"{IMPOSTOR}/24"], name="eth2")
        agents = {
            name: processes.agent(listen=f"{address}:{AGENT_PORT}", state=name, prefix=namespace.prefix)
            for name, address in addresses.items()
        }
        agents["impostor"] = processes.agent(listen=f"{IMPOSTOR}:{AGENT_PORT}", state="impostor", prefix=enemy.prefix)
        world = World(lab, processes, agents, directory)
        for name, address in ADDRESSES.items():
            announce(world, name, address)
        yield world
    finally:
        processes.close()
        lab.close()


@pytest.fixture
def controller(world, tmp_path):
    """A user who has pinned all of them."""
    keys = world.keys()
    return world.controller(tmp_path / "alice", web1_7963=keys["web1"], db1_7963=keys["db1"], quiet_7963=keys["quiet"])


def connected(run):
    # Names are padded to one width.
    ends = [line.rpartition("]") for line in run.text.splitlines()]
    return {start.strip().lstrip("[") for start, _, end in ends if end.strip() == "Connected"}


def test_agents_are_found_and_nobody_is_trusted_for_being_found(world, tmp_path):
    """Each fails with the line to type; after that line it is used. Nothing was pinned meanwhile."""
    bob = world.controller(tmp_path / "bob")
    done = bob.pyinfra("@agent", "exec", "--", "true")
    assert done.status != 0
    for name, line in world.keys().items():
        wanted = f"pyinfra-agent trust add {name}:7963 '{line}'"
        assert (wanted in " ".join(done.text.split())) == (name in ADDRESSES), done.text
    assert bob.known_agents.read_text() == ""
    done = bob.pyinfra("@agent", "--data", "agent_trust=accept-new", "exec", "--", "true")
    assert done.status == 0, done.text
    assert sorted(bob.known_agents.read_text().splitlines()) == sorted(
        f"{name}:7963 {world.keys()[name]}" for name in ADDRESSES
    )


def test_agents_are_an_inventory_with_groups_and_data(controller):
    """In an inventory file, in a list, with --limit, and with the data of a group from a file."""
    (controller.directory / "inventory.py").write_text('found = ["@agent"]\n')
    (controller.directory / "group_data").mkdir()
    (controller.directory / "group_data/db.py").write_text('role = "store"\n')
    everybody = {"@agent/web1", "@agent/db1"}
    for words, names in (
        (["inventory.py"], everybody),
        (["@agent"], everybody),
        (["@agent/subnet", "--limit", "web"], {"@agent/web1"}),
        (["@agent", "--limit", "@agent/db1"], {"@agent/db1"}),
        (["@agent/db1,@agent/web1"], everybody),
        (["@agent/192.0.2.0/29"], {*everybody, "@agent/quiet"}),
    ):
        done = controller.pyinfra(*words, "exec", "--", "true")
        assert done.status == 0, done.text
        assert connected(done) == names, done.text
    shown = controller.pyinfra("inventory.py", "debug-inventory").text
    assert "store" in shown
    assert '"agent_os": "Debian GNU/Linux 12"' in shown.replace("'", '"')


def test_agents_are_an_inventory_of_the_api_without_patches(controller):
    found, _ = controller.look("@agent")
    assert found == {"@agent/web1": ["192.0.2.2", None, "here"], "@agent/db1": ["192.0.2.3", "store", "here"]}
    found, told = controller.look("@agent/192.0.2.0/29", "@agent")
    assert set(found) == {"@agent/web1", "@agent/db1", "@agent/quiet"}
    assert told.count("is in this inventory by @agent/192.0.2.0/29 already") == 2


def test_name_that_only_multicast_dns_has_is_connected_to(controller):
    """In both its forms; what was typed is the host's name and its pin's."""
    found, _ = controller.look("@agent/web1", "@agent/db1:7963")
    assert found == {"@agent/web1": ["web1", None, "here"], "@agent/db1:7963": ["db1", None, "here"]}
    done = controller.pyinfra("@agent/nobody", "exec", "--", "true")
    assert "no agent on its links announces that name" in " ".join(done.text.split())


def test_selector_that_finds_nothing_is_one_line(controller):
    done = controller.pyinfra("@agent/198.51.100.0/30", "exec", "--", "true")
    assert done.status != 0
    assert "Traceback" not in done.text
    assert "@agent/198.51.100.0/30 found no agent: knocked on port 7963 of 2 addresses" in " ".join(done.text.split())


def test_impostor_with_the_name_of_another_loses_loudly(world, controller):
    """It announces web1 with its own key: the pinned one keeps the name, and people are told."""
    process = announce(world, "impostor", IMPOSTOR, called="web1")
    try:
        found, told = controller.look("@agent")
        assert found["@agent/web1"] == ["192.0.2.2", None, "here"]
        assert f"@agent/{IMPOSTOR}" not in found, "it is listed, and not connected to"
        assert "calls itself web1, but its key" in told
        assert f"pyinfra-agent trust add {IMPOSTOR}:7963" in " ".join(told.split())
    finally:
        process.kill()
        process.wait()


def test_agent_that_moves_while_pyinfra_runs_is_found_again(world, tmp_path):
    """Its address is gone for good; its announcement leads to the new one, and the command is not lost."""
    namespace = world.lab.namespace()
    world.lab.join(world.lab.controller, ["198.51.100.1/24"], namespace, ["198.51.100.2/24"], name="eth1")
    world.agents["mover"] = mover = world.processes.agent(
        listen=f"0.0.0.0:{AGENT_PORT}", state="mover", prefix=namespace.prefix
    )
    key = parse_public(key_line(mover)).key
    carol = world.controller(tmp_path / "carol", web1_7963=key_line(world.agents["web1"]), mover_7963=key_line(mover))
    del world.agents["mover"]
    first = world.lab.announce(
        namespace, {"interfaces": ["198.51.100.2"], "agents": [agent("mover", ["198.51.100.2"], key=key)]}
    )
    begun = tmp_path / "begun"
    process = world.processes.keep(
        world.lab.controller.start(
            *(sys.executable, "-c", MOVE.replace("@agent/web1", "@agent/mover"), str(begun)),
            cwd=carol.directory,
            env=carol.environment,
            stdin=-3,
            stdout=-1,
            stderr=-1,
            text=True,
        )
    )
    eventually(begun.exists, 15, "the command")
    namespace.run("ip", "address", "del", "198.51.100.2/24", "dev", "eth1")
    namespace.run("ip", "address", "add", "198.51.100.7/24", "dev", "eth1")
    first.kill()
    first.wait()
    world.lab.announce(
        namespace, {"interfaces": ["198.51.100.7"], "agents": [agent("mover", ["198.51.100.7"], key=key)]}
    )
    stdout, stderr = process.communicate(timeout=40)
    assert stdout.split() == ["connected", "done"], stderr
    assert "resumed" in stderr
