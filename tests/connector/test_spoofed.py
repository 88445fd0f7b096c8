"""Somebody who is not the agent: what an advert, a certificate and a copied key are good for, under every policy."""

from __future__ import annotations

import pytest
from pyinfra.api.exceptions import ConnectError

from pyinfra_agent_connector._identity import load_or_create
from pyinfra_agent_protocol.keys import KeyPair, fingerprint, format_public
from tests.connector.fleet import STRANGER, signed, trust_fleet
from tests.connector.helpers import LOCALHOST, FakeAgent, serve_quietly, state_of

#: What a user may have set; None is nothing.
POLICIES = [None, "strict", "accept-new", "ca"]


def found_host(agent, policy, **data):
    """Return the host that a spoofed advert for web1 makes: it leads to *agent*."""
    data |= {"agent_host": LOCALHOST, "agent_port": agent.port, "agent_found_by": "mdns"}
    data |= {"agent_announced_fingerprint": fingerprint(agent.key.public)}
    if policy is not None:
        data["agent_trust"] = policy
    return state_of(("@agent/web1", data)).inventory.get_host("@agent/web1")


def refused(agent, host):
    with pytest.raises(ConnectError) as caught:
        host.connector.connect()
    assert agent.conversations == [], "it has learned nothing about us"
    return str(caught.value)


def accepted(host):
    host.connector.connect()
    host.connector._agent.client._connection.drop()


@pytest.mark.parametrize("policy", POLICIES)
def test_spoofed_advert_of_a_pinned_agent_is_refused(agent_home, policy):
    """The name is pinned: an advert leads nowhere else, whatever its fingerprint says."""
    agent_home.mkdir()
    pinned = f"web1:7963 {format_public(KeyPair.generate().public)}\n"
    (agent_home / "known_agents").write_text(pinned)
    with FakeAgent(serve_quietly) as agent:
        assert "the key of web1:7963 has changed" in refused(agent, found_host(agent, policy))
    assert (agent_home / "known_agents").read_text() == pinned


@pytest.mark.parametrize("policy", POLICIES)
def test_spoofed_advert_of_an_agent_with_a_key_in_host_data_is_refused(policy):
    line = format_public(KeyPair.generate().public)
    with FakeAgent(serve_quietly) as agent:
        assert "agent_public_key" in refused(agent, found_host(agent, policy, agent_public_key=line))


@pytest.mark.parametrize("policy", [None, "strict", "ca"])
@pytest.mark.parametrize("shows", ["nothing", "stranger's"])
def test_spoofed_advert_of_an_unknown_agent_is_refused(agent_home, policy, shows):
    """Only a user who sets accept-new lets discovery choose a key."""
    trust_fleet(agent_home)
    key = KeyPair.generate()
    certificate = signed(key.public, "web1", by=STRANGER) if shows == "stranger's" else b""
    with FakeAgent(serve_quietly, key=key, certificate=certificate) as agent:
        assert fingerprint(key.public) in refused(agent, found_host(agent, policy))
    assert not (agent_home / "known_agents").exists()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("names", "fields", "said"),
    [
        (("web2",), {}, "for web2 and not for web1"),
        (("web1",), {"role": "controller"}, "for the role controller"),
        (("web1",), {"days": (-2, -1)}, "has expired"),
        (("web1",), {"key": KeyPair.generate().public}, "for another key"),
    ],
    ids=["another name", "a controller's", "expired", "another key's"],
)
def test_spoofed_advert_with_a_certificate_that_is_not_for_it_is_refused(agent_home, policy, names, fields, said):
    """Also with accept-new: who shows a certificate of the fleet is held to it."""
    trust_fleet(agent_home)
    key = KeyPair.generate()
    certificate = signed(fields.get("key", key.public), *names, **{n: v for n, v in fields.items() if n != "key"})
    with FakeAgent(serve_quietly, key=key, certificate=certificate) as agent:
        assert said in refused(agent, found_host(agent, policy))
    assert not (agent_home / "known_agents").exists()


@pytest.mark.parametrize("policy", POLICIES)
def test_announced_agent_that_is_certified_by_that_name_is_used(agent_home, policy):
    trust_fleet(agent_home)
    key = KeyPair.generate()
    with FakeAgent(serve_quietly, key=key, certificate=signed(key.public, "web1")) as agent:
        accepted(found_host(agent, policy))
    assert not (agent_home / "known_agents").exists()


@pytest.mark.parametrize("policy", POLICIES)
def test_our_own_key_presented_to_us_is_refused(agent_home, policy):
    """Pinned, certified, and ours: a reflected handshake, or a key file that was copied."""
    trust_fleet(agent_home)
    keypair = load_or_create(agent_home).keypair
    line = format_public(keypair.public)
    with FakeAgent(serve_quietly, key=keypair, certificate=signed(keypair.public, "web1")) as agent:
        assert "own key" in refused(agent, found_host(agent, policy))
        assert "own key" in refused(agent, found_host(agent, policy, agent_public_key=line))


@pytest.mark.parametrize("policy", POLICIES)
def test_agent_of_another_name_behind_the_name_that_the_user_wrote_is_refused(agent_home, policy):
    """As when DNS lies: the certificate has to name what was asked for."""
    trust_fleet(agent_home)
    key = KeyPair.generate()
    data = {"agent_host": LOCALHOST} | ({"agent_trust": policy} if policy else {})
    with FakeAgent(serve_quietly, key=key, certificate=signed(key.public, "db1")) as agent:
        host = state_of(("@agent/web1", data | {"agent_port": agent.port})).inventory.get_host("@agent/web1")
        assert "for db1 and not for" in refused(agent, host)


def test_certificate_of_this_controller_is_shown_to_agents_that_are_trusted_alone(agent_home):
    key = KeyPair.generate()
    public = load_or_create(agent_home).keypair.public
    certificate = signed(public, "ada", role="controller", days=(-1, 20))
    from pyinfra_agent_protocol.certificates import format_certificate

    (agent_home / "certificate").write_text(format_certificate(certificate))
    with FakeAgent(serve_quietly, key=key) as agent:
        refused(agent, found_host(agent, "strict"))
        accepted(found_host(agent, None, agent_public_key=format_public(key.public)))
        assert [one.payload.certificate for one in agent.conversations] == [certificate]
