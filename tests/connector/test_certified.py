"""What authorities say of agents that were found."""

from __future__ import annotations

import pytest

from pyinfra_agent_connector._announced import Announced
from pyinfra_agent_connector._authorities import Authorities
from pyinfra_agent_connector._certified import with_certificates
from pyinfra_agent_connector._found import FoundAgent, named
from pyinfra_agent_connector._known import Pin
from pyinfra_agent_protocol.advert import Advert
from pyinfra_agent_protocol.keys import KeyPair, fingerprint
from tests.connector.fleet import STRANGER, signed, trust_fleet
from tests.connector.helpers import LOCALHOST, FakeAgent, free_port, serve_quietly


def announced(port, key, instance="db1", groups=("db", "root")):
    advert = Advert(fingerprint(key), groups, "Debian", "x86_64", "0.1.0")
    said = Announced(instance, f"{instance}.local", port, (LOCALHOST,), advert, "", "eth0", 0.01)
    return FoundAgent(LOCALHOST, port, "mdns", said)


@pytest.fixture
def authorities(tmp_path):
    trust_fleet(tmp_path)
    return Authorities(tmp_path)


def test_announced_agent_goes_by_its_certified_name_and_groups(authorities):
    """Whatever its advert says."""
    key = KeyPair.generate()
    certificate = signed(key.public, "web1.example.com", groups=("web",))
    with FakeAgent(serve_quietly, key=key, certificate=certificate) as agent:
        found, warnings = with_certificates([announced(agent.port, key.public)], authorities)
        (one,), _ = named(found, {})
        assert (one.name, one.groups()) == (f"web1.example.com:{agent.port}", ["agent", "web"])
        assert warnings == ()
        assert agent.conversations == [], "nothing of ours was sent"


def test_nobody_is_knocked_at_without_an_authority(tmp_path):
    key = KeyPair.generate()
    with FakeAgent(serve_quietly, key=key) as agent:
        candidate = announced(agent.port, key.public)
        assert with_certificates([candidate], Authorities(tmp_path)) == ([candidate], ())
        assert agent.connections == 0


@pytest.mark.parametrize("by_name", ["unsigned", "stranger", "another key"])
def test_announcement_that_no_authority_backs_stays_what_it_is(authorities, by_name):
    key, other = KeyPair.generate(), KeyPair.generate()
    certificates = {
        "unsigned": b"",
        "stranger": signed(key.public, "web1", by=STRANGER),
        "another key": signed(key.public, "web1"),
    }
    said = other.public if by_name == "another key" else key.public
    with FakeAgent(serve_quietly, key=key, certificate=certificates[by_name]) as agent:
        (one,), warnings = with_certificates([announced(agent.port, said)], authorities)
        assert one.certified is None
        assert one.groups() == ["agent", "db", "root"]
        assert warnings == ()


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"role": "controller"}, "role controller"), ({"days": (-2, -1)}, "expired"), ({"serial": 9}, "was revoked")],
)
def test_certificate_that_does_not_count_is_told(authorities, tmp_path, fields, said):
    (tmp_path / "revoked").write_text("0000000000000009\n")
    key = KeyPair.generate()
    with FakeAgent(serve_quietly, key=key, certificate=signed(key.public, "web1", **fields)) as agent:
        (one,), (warning,) = with_certificates([announced(agent.port, key.public)], authorities)
        assert one.certified is None
        assert said in warning


def test_agent_that_is_gone_is_left_as_it_was_announced(authorities):
    candidate = announced(free_port(), KeyPair.generate().public)
    assert with_certificates([candidate], authorities) == ([candidate], ())


def certified(address, key, *names, groups=(), by="probe", authorities=None):
    candidate = FoundAgent(address, 7963, by, key=key, certificate=signed(key, *names, groups=groups))
    (one,), _ = with_certificates([candidate], authorities)
    return one


def test_certified_agent_keeps_its_name_before_one_that_only_announces_it(authorities):
    good, spoofer = KeyPair.generate().public, KeyPair.generate().public
    spoofed = announced(7963, spoofer, "web1")
    agents, warnings = named([spoofed, certified("192.0.2.9", good, "web1", authorities=authorities)], {})
    assert {one.name: one.key for one in agents} == {"web1": good, LOCALHOST: b""}
    assert any("more than one" in warning for warning in warnings)


def test_certified_name_does_not_take_the_place_of_a_pin(authorities):
    pinned, certified_key = KeyPair.generate().public, KeyPair.generate().public
    one = certified("192.0.2.9", certified_key, "web1", authorities=authorities)
    agents, warnings = named([one], {"web1:7963": Pin(pinned, 1)})
    assert [agent.name for agent in agents] == ["192.0.2.9"]
    assert "is not the one pinned for web1" in warnings[0]


def test_pinned_agent_keeps_the_name_of_its_pin(authorities):
    key = KeyPair.generate().public
    one = certified("192.0.2.9", key, "web1", groups=("web",), authorities=authorities)
    (agent,), _ = named([one], {"front:7963": Pin(key, 1)})
    assert (agent.name, agent.groups()) == ("front", ["agent", "web"])
