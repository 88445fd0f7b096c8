"""What stands after `@agent`, as hosts of a pyinfra inventory."""

from __future__ import annotations

import ipaddress
import re

import pytest
from pyinfra.api import Inventory
from pyinfra.api.exceptions import ConnectError, InventoryError

from pyinfra_agent_connector import _mdns, _search, _selectors
from pyinfra_agent_connector._announced import Announced
from pyinfra_agent_connector._interfaces import Interface
from pyinfra_agent_connector._mdns import Browsed
from pyinfra_agent_connector._probe import Outcome, Probed, Swept
from pyinfra_agent_connector._search import resolve_selector
from pyinfra_agent_connector._selectors import hosts_for
from pyinfra_agent_connector._zone import Zoned, ZoneError
from pyinfra_agent_protocol.advert import Advert
from pyinfra_agent_protocol.keys import KeyPair, fingerprint, format_public
from tests.connector.helpers import LOCALHOST, FakeAgent, serve_quietly, state_of

KEY = {name: KeyPair.generate().public for name in ("web1", "web2", "db1", "other")}
ETH0 = Interface("eth0", 2, (ipaddress.ip_address("192.0.2.9"),), (ipaddress.ip_network("192.0.2.0/24"),))


def announced(name, *addresses, key=None, groups=(), port=7963, problem=""):
    advert = Advert(fingerprint(key or KEY[name]), tuple(groups), "Debian")
    return Announced(name, f"{name}.local", port, addresses, advert, problem, "eth0", 0.01)


WEB1 = announced("web1", "192.0.2.1", groups=["web"])
WEB2 = announced("web2", "192.0.2.2", "2001:db8::2", groups=["web"])
DB1 = announced("db1", "198.51.100.3", groups=["db"])


class Network:
    """What is out there; `asked` counts how often it was looked at."""

    def __init__(self):
        self.agents = [WEB1, WEB2, DB1]
        self.answers = []
        self.zone = []
        self.asked = []

    def browse(self, seconds=None):
        self.asked.append("mdns")
        return Browsed(tuple(self.agents), (ETH0,), 0.6)

    def sweep(self, network, port, *, is_attached, progress):
        self.asked.append(f"{network} {is_attached}")
        progress(network.num_addresses, network.num_addresses, len(self.answers))
        counts = {Outcome.AGENT: len(self.answers), Outcome.SILENT: network.num_addresses - 2 - len(self.answers)}
        return Swept(tuple(self.answers), counts, 1.3)

    def browse_zone(self, zone):
        self.asked.append(zone)
        if zone == "dead.example":
            raise ZoneError(f"no DNS server answers for {zone}: asked 192.0.2.53")
        return Zoned(tuple(self.zone), ("192.0.2.53",), 0.1)


@pytest.fixture(autouse=True)
def network(monkeypatch, tmp_path):
    network = Network()
    for name in ("browse", "sweep", "browse_zone"):
        monkeypatch.setattr(_search, name, getattr(network, name))
    monkeypatch.setattr(_search, "interfaces", lambda: (ETH0,))
    monkeypatch.setattr(_selectors, "_selections", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return network


@pytest.fixture
def told(monkeypatch):
    lines = []
    monkeypatch.setattr(_selectors._logger, "warning", lines.append)
    return lines


def pin(home, **names):
    home.mkdir(parents=True, exist_ok=True)
    lines = [f"{name.replace('_', ':')} {format_public(key)}\n" for name, key in names.items()]
    (home / "known_agents").write_text("".join(lines))


def found(selector):
    return {name: data["agent_host"] for name, data, _ in hosts_for(selector)}


# --- each row of the table ---


def test_bare_agent_is_every_announced_one():
    hosts = {name: (data, groups) for name, data, groups in hosts_for(None)}
    assert list(hosts) == ["@agent/db1", "@agent/web1", "@agent/web2"]
    assert hosts["@agent/web1"] == (
        {
            "agent_host": "192.0.2.1",
            "agent_port": 7963,
            "agent_found_by": "mdns",
            "agent_announced_fingerprint": fingerprint(KEY["web1"]),
            "agent_os": "Debian",
        },
        ["agent", "web"],
    )


def test_subnet_is_what_is_inside_this_machines_networks():
    assert found("subnet") == {"@agent/web1": "192.0.2.1", "@agent/web2": "192.0.2.2"}


def test_network_is_what_is_announced_there_and_what_answers_there(network):
    """The same place, or the same key, is one agent; one that is only announced elsewhere is not there."""
    network.answers = [
        Probed("192.0.2.1", 7963, Outcome.AGENT, KEY["web1"]),
        Probed("192.0.2.7", 7963, Outcome.AGENT, KEY["other"]),
        Probed("192.0.2.8", 7963, Outcome.AGENT, KEY["other"]),
    ]
    assert found("192.0.2.0/24") == {
        "@agent/192.0.2.7": "192.0.2.7",
        "@agent/web1": "192.0.2.1",
        "@agent/web2": "192.0.2.2",
    }
    assert sorted(network.asked) == ["192.0.2.0/24 True", "mdns"]


def test_network_behind_a_router_is_only_knocked_at(network):
    network.answers = [Probed("203.0.113.5", 7963, Outcome.AGENT, KEY["other"])]
    assert found("203.0.113.0/24") == {"@agent/203.0.113.5": "203.0.113.5"}
    assert network.asked == ["203.0.113.0/24 False"]


def test_network_where_another_key_answers_than_announced_has_what_answers(network):
    network.answers = [Probed("192.0.2.1", 7963, Outcome.AGENT, KEY["other"])]
    assert found("192.0.2.0/28") == {"@agent/192.0.2.1": "192.0.2.1", "@agent/web2": "192.0.2.2"}


def test_ipv6_network_is_what_is_announced_there(network):
    assert found("2001:db8::/64") == {"@agent/web2": "2001:db8::2"}
    assert network.asked == ["mdns"]


def test_zone_is_what_it_lists(network):
    network.zone = [Announced("web1", "web1.example.com", 8000, (), WEB1.advert, "", "example.com", 0.01)]
    ((name, data, groups),) = hosts_for("dns:example.com")
    assert (name, data["agent_host"], data["agent_port"]) == ("@agent/web1", "web1.example.com", 8000)
    assert data["agent_found_by"] == "dns:example.com"
    assert groups == ["agent", "web"]


def test_known_is_every_pinned_agent_and_asks_nobody(network, agent_home):
    """They are the user's own: nothing marks them as found."""
    pin(agent_home, web1_7963=KEY["web1"], **{"db1.example.com_8000": KEY["db1"]})
    assert [*hosts_for("known")] == [
        ("@agent/web1", {"agent_host": "web1", "agent_port": 7963}, ["agent"]),
        ("@agent/db1.example.com:8000", {"agent_host": "db1.example.com", "agent_port": 8000}, ["agent"]),
    ]
    assert network.asked == []


@pytest.mark.parametrize("name", ["web1", "WEB1:99", "192.0.2.1", "known:7963", "web1.example.com"])
def test_name_is_exactly_what_was_typed_and_asks_nobody(network, name):
    ((host, data, groups),) = hosts_for(name)
    assert (host, groups) == (f"@agent/{name}", ["agent"])
    assert "agent_found_by" not in data
    assert network.asked == []


def test_pinned_agents_are_found_by_the_names_of_their_pins(agent_home):
    pin(agent_home, **{"front.example.com_7963": KEY["web1"]})
    assert found("subnet") == {"@agent/front.example.com": "192.0.2.1", "@agent/web2": "192.0.2.2"}


# --- errors ---


@pytest.mark.parametrize(
    ("selector", "words"),
    [
        (
            None,
            "@agent found no agent: asked by multicast DNS for 0.6 s on eth0 (192.0.2.0/24); is `pyinfra-agent serve`",
        ),
        ("subnet", "@agent/subnet found no agent: asked by multicast DNS"),
        ("192.0.2.0/24", "knocked on port 7963 of 254 addresses: 254 no answer; asked by multicast DNS"),
        ("2001:db8::/64", "too many to be tried"),
        ("dns:example.com", "asked 192.0.2.53 for example.com; does the zone list them"),
        ("dns:dead.example", "no DNS server answers for dead.example: asked 192.0.2.53"),
        ("known", "known_agents, which pins 0; connect to an agent by its name first"),
        ("10.0.0.0/8", "16,777,216 addresses, and at most 65,536"),
        ("10.0.0.1/24", "write 10.0.0.0/24"),
        ("a,b", "pyinfra splits names at commas"),
        ("no host", "write HOST, HOST:PORT"),
    ],
)
def test_selector_that_finds_nothing_says_what_was_searched_and_where(network, selector, words):
    network.agents = []
    with pytest.raises(InventoryError, match=re.escape(words)) as caught:
        list(hosts_for(selector))
    assert len(str(caught.value).splitlines()) == 1


def test_selector_with_pins_that_cannot_be_read_says_so(agent_home):
    (agent_home / "known_agents").mkdir(parents=True)
    with pytest.raises(InventoryError, match=r"known agents in .* cannot be read"):
        list(hosts_for(None))


def test_browsing_time_that_is_none_says_so(monkeypatch):
    monkeypatch.setattr(_search, "browse", _mdns.browse)
    monkeypatch.setenv("PYINFRA_AGENT_BROWSE_SECONDS", "soon")
    with pytest.raises(InventoryError, match="set it to seconds, from"):
        resolve_selector(None)


def test_hosts_that_were_seen_lately_and_are_missing_are_named(network, told, monkeypatch):
    list(hosts_for(None))
    assert told == []
    network.agents = [WEB2]
    monkeypatch.setattr(_selectors, "_selections", {})
    list(hosts_for(None))
    assert told == ["@agent; seen lately and not now: web1 (192.0.2.1, just now)"]
    network.agents = []
    with pytest.raises(InventoryError, match=r"seen lately and not now: web2 \(192\.0\.2\.2, just now\), web1"):
        resolve_all()


def resolve_all():
    _selectors._selections.clear()
    return list(hosts_for(None))


def test_hosts_seen_on_another_network_are_not_missed(network, told, monkeypatch):
    """A laptop that was in the office is at home now."""
    list(hosts_for(None))
    home = Interface("eth0", 2, (ipaddress.ip_address("10.9.0.2"),), (ipaddress.ip_network("10.9.0.0/24"),))
    monkeypatch.setattr(_search, "browse", lambda: Browsed((announced("other", "10.9.0.1"),), (home,), 0.6))
    resolve_all()
    assert told == []


def test_agent_of_no_use_is_passed_over_and_people_are_told(network, told):
    network.agents = [WEB1, announced("web2", "192.0.2.2", problem="it speaks version 2 of the protocol")]
    assert list(found(None)) == ["@agent/web1"]
    assert told == ["@agent: web2 on eth0 is passed over: it speaks version 2 of the protocol"]


def test_big_network_is_worth_a_line(network, capsys):
    network.answers = [Probed("10.1.0.1", 7963, Outcome.AGENT, KEY["other"])]
    found("10.1.0.0/16")
    assert capsys.readouterr().err == "@agent/10.1.0.0/16: 65,536 of 65,536 addresses tried, 1 agents\n"
    found("10.1.2.0/24")
    assert capsys.readouterr().err == ""


# --- inventories ---


def test_inventory_is_looked_up_once_and_gets_data_of_its_own_each_time(network):
    """The command line makes two inventories of the same names, and pyinfra writes into what it gets."""
    first, second = (Inventory((["@agent"], {"x": 1})) for _ in "12")
    assert network.asked == ["mdns"]
    for inventory in (first, second):
        assert set(inventory.hosts) == {"@agent/db1", "@agent/web1", "@agent/web2"}
        assert {host.name for host in inventory.get_group("web")} == {"@agent/web1", "@agent/web2"}
        assert len(inventory.get_group("agent")) == 3
    first.host_data["@agent/web1"]["agent_host"] = "changed"
    assert second.get_host("@agent/web1").data.agent_host == "192.0.2.1"
    assert {name: data["agent_host"] for name, data, _ in hosts_for("")}["@agent/web1"] == "192.0.2.1"


def test_inventory_with_overlapping_selectors_has_no_dead_hosts(network, told):
    """A host that is asked for twice is there once, in its groups too, and people are told."""
    inventory = Inventory((["@agent/subnet", ("@agent", {"colour": "red"})], {}))
    assert sorted(inventory.hosts) == ["@agent/db1", "@agent/web1", "@agent/web2"]
    for group in ("agent", "web", "db"):
        assert all(inventory.get_host(host.name) is host for host in inventory.get_group(group))
    assert len(inventory.get_group("agent")) == 3
    assert len(told) == 2
    assert told[0].startswith("@agent/web1 is in this inventory by @agent/subnet already: what @agent would add")
    assert inventory.get_host("@agent/db1").data.colour == "red"
    assert "colour" not in inventory.host_data["@agent/web1"]


def test_inventory_keeps_the_host_that_was_typed_first(told):
    inventory = Inventory(([("@agent/web1", {"agent_public_key": "mine"}), "@agent"], {}))
    assert inventory.get_host("@agent/web1").data.agent_public_key == "mine"
    assert "agent_found_by" not in inventory.host_data["@agent/web1"]
    assert len(told) == 1


def test_inventory_with_two_agents_of_one_name_has_both(network, told):
    """The second goes by its address."""
    network.zone = [
        Announced("web1", "web1.example.com", 7963, (), Advert(fingerprint(KEY["other"])), "", "example.com", 0.01)
    ]
    inventory = Inventory((["@agent/subnet", "@agent/dns:example.com"], {}))
    assert sorted(inventory.hosts) == ["@agent/web1", "@agent/web1.example.com", "@agent/web2"]
    assert "found another @agent/web1" in told[0]


def test_inventories_do_not_know_of_each_other(told):
    for selector in ("@agent", "@agent/subnet", "@agent"):
        assert "@agent/web1" in Inventory(([selector], {})).hosts
    assert told == []


def test_inventory_data_of_groups_reaches_found_hosts():
    inventory = Inventory((["@agent"], {}), web=([], {"role": "front"}), agent=([], {"agent_trust": "strict"}))
    assert inventory.get_host("@agent/web2").data.role == "front"
    assert inventory.get_host("@agent/db1").data.agent_trust == "strict"


# --- connecting to what was found ---


def found_host(network, agent, **data):
    network.agents = [announced("web1", LOCALHOST, key=agent.key.public, port=agent.port)]
    return state_of(("@agent", data)).inventory.get_host("@agent/web1")


def test_found_agent_that_is_not_pinned_fails_with_the_line_to_type(network, agent_home):
    with FakeAgent(serve_quietly) as agent:
        host = found_host(network, agent)
        line = f"pyinfra-agent trust add web1:7963 '{format_public(agent.key.public)}'"
        with pytest.raises(ConnectError, match=re.escape(line)):
            host.connector.connect()
        assert agent.conversations == [], "it has learned nothing about us"
    assert not (agent_home / "known_agents").exists()


def test_found_agent_that_is_pinned_is_used(network, agent_home):
    with FakeAgent(serve_quietly) as agent:
        pin(agent_home, web1_7963=agent.key.public)
        host = found_host(network, agent)
        host.connector.connect()
        host.connector._agent.client._connection.drop()


def test_found_agent_with_the_users_own_pin_is_used(network):
    with FakeAgent(serve_quietly) as agent:
        host = found_host(network, agent, agent_public_key=format_public(agent.key.public))
        host.connector.connect()
        host.connector._agent.client._connection.drop()


def test_found_agent_is_pinned_where_the_user_says_so(network, agent_home):
    """Under its name and not its address, so that typing the name finds the pin."""
    with FakeAgent(serve_quietly) as agent:
        host = found_host(network, agent, agent_trust="accept-new")
        host.connector.connect()
        host.connector._agent.client._connection.drop()
        assert (agent_home / "known_agents").read_text() == f"web1:7963 {format_public(agent.key.public)}\n"


def test_impostor_with_the_fingerprint_of_another_is_refused(network, agent_home):
    """Its advert is a copy: the name is the pinned one's, and so is the key that is demanded."""
    pin(agent_home, web1_7963=KEY["web1"])
    with FakeAgent(serve_quietly) as impostor:
        network.agents = [announced("web1", LOCALHOST, key=KEY["web1"], port=impostor.port)]
        for trust in ({}, {"agent_trust": "accept-new"}, {"agent_trust": "strict"}):
            host = state_of(("@agent", trust)).inventory.get_host("@agent/web1")
            with pytest.raises(ConnectError, match="the key of web1:7963 has changed from"):
                host.connector.connect()
        assert impostor.conversations == []
