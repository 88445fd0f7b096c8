"""The names that found agents get."""

from __future__ import annotations

import pytest

from pyinfra_agent_connector._announced import Announced
from pyinfra_agent_connector._found import FoundAgent, address_name, named, short_name
from pyinfra_agent_connector._known import Pin
from pyinfra_agent_protocol.advert import Advert
from pyinfra_agent_protocol.keys import KeyPair, fingerprint

KEY, OTHER = (KeyPair.generate().public for _ in "12")


def found(address="192.0.2.1", instance="web1", key=KEY, *, port=7963, proved=b"", by="mdns"):
    advert = Advert(fingerprint(key), ("web", "agent"), "Debian", "x86_64", "0.1.0")
    announced = Announced(instance, f"{instance}.local", port, (address,), advert, "", "eth0", 0.01)
    return FoundAgent(address, port, by, announced if instance else None, proved)


def names(candidates, **pins):
    agents, warnings = named(candidates, {name.replace("_", ":"): Pin(key, 1) for name, key in pins.items()})
    return {agent.name: agent for agent in agents}, warnings


def test_agent_goes_by_the_name_it_announces():
    agents, warnings = names([found()])
    assert warnings == ()
    assert agents["web1"].host_data() == {
        "agent_host": "192.0.2.1",
        "agent_port": 7963,
        "agent_found_by": "mdns",
        "agent_announced_fingerprint": fingerprint(KEY),
        "agent_os": "Debian",
        "agent_arch": "x86_64",
        "agent_version": "0.1.0",
    }
    assert agents["web1"].groups() == ["agent", "web"]
    assert agents["web1"].host_data() is not agents["web1"].host_data()


def test_agent_whose_key_is_pinned_goes_by_the_name_of_the_pin():
    agents, warnings = names([found()], **{"front.example.com_7963": KEY, "back_8000": OTHER})
    assert list(agents) == ["front.example.com"]
    assert agents["front.example.com"].is_pinned
    assert list(names([found()], back_8000=KEY)[0]) == ["back:8000"]
    assert list(names([found()], other_7963=KEY, web1_7963=KEY)[0]) == ["web1"]
    assert warnings == ()


def test_agent_without_a_name_goes_by_its_address():
    candidates = [
        FoundAgent("192.0.2.1", 7963, "probe", key=KEY),
        FoundAgent("192.0.2.2", 8000, "probe", key=OTHER),
        FoundAgent("fe80::1%eth0", 7963, "mdns"),
        FoundAgent("2001:db8::1", 8000, "mdns"),
    ]
    assert set(names(candidates)[0]) == {"192.0.2.1", "192.0.2.2:8000", "fe80::1%eth0", "[2001:db8::1]:8000"}


@pytest.mark.parametrize(
    "instance", ["10.0.0.1", "2001:db8::1", "Bob's laptop", "a,b", "a/b", "x" * 64, "\u212a", "010"]
)
def test_name_that_cannot_be_a_hosts_is_not_taken(instance):
    """Least of all somebody's address."""
    assert list(names([found(instance=instance)])[0]) == ["192.0.2.1"]


@pytest.mark.parametrize("instance", ["known", "loopback", "subnet"])
def test_name_that_means_something_else_has_its_port(instance):
    assert list(names([found(instance=instance)])[0]) == [f"{instance}:7963"]


def test_impostor_does_not_get_a_pinned_name():
    """It announces somebody else's name with its own key: it is listed by address, and people are told."""
    real, impostor = found(), found("192.0.2.66", key=OTHER)
    for candidates in ([real, impostor], [impostor, real]):
        agents, (warning,) = names(candidates, web1_7963=KEY)
        assert (agents["web1"].host, agents["192.0.2.66"].is_pinned) == ("192.0.2.1", False)
        assert fingerprint(KEY) in warning
        assert fingerprint(OTHER) in warning


def test_copied_fingerprint_does_not_displace_what_was_proved():
    """It can be announced by anybody. The one who proved the key keeps the name."""
    copy, real = found("192.0.2.66"), found(proved=KEY)
    agents, (warning,) = names([copy, real], web1_7963=KEY)
    assert (agents["web1"].host, agents["192.0.2.66"].is_pinned) == ("192.0.2.1", False)
    assert "192.0.2.66" in warning


def test_name_that_two_announce_is_neither_ones():
    for candidates in ([found(), found("192.0.2.2", key=OTHER)], [found("192.0.2.2", key=OTHER), found()]):
        agents, warnings = names(candidates)
        assert list(agents) == ["192.0.2.1", "192.0.2.2"]
        assert len(warnings) == 2


def test_agent_at_one_place_is_one():
    assert len(names([found(), found(instance="again")])[0]) == 1


@pytest.mark.parametrize(
    ("pinned", "short"),
    [
        ("web1:7963", "web1"),
        ("web1:8000", "web1:8000"),
        ("known:7963", "known:7963"),
        ("192.0.2.1:7963", "192.0.2.1"),
        ("[2001:db8::1]:7963", "2001:db8::1"),
        ("[2001:db8::1]:8000", "[2001:db8::1]:8000"),
    ],
)
def test_name_is_short_where_that_means_the_same(pinned, short):
    assert short_name(pinned) == short


def test_name_by_address_is_that_of_its_pin():
    assert address_name(found("fe80::1%eth0")) == "fe80::1%eth0"
