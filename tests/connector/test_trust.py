"""Whether an agent's key is the right one."""

from __future__ import annotations

import pytest

from pyinfra_agent_connector import _authorities
from pyinfra_agent_connector._known import UntrustedAgent
from pyinfra_agent_connector._trust import KNOWN_AGENTS_FILE, AgentTrust
from pyinfra_agent_protocol.keys import KeyPair, fingerprint, format_public, format_secret
from tests.connector.fleet import STRANGER, signed, trust_fleet

KEY = KeyPair.generate().public
OTHER = KeyPair.generate().public


def check(home, key=KEY, certificate=b"", *, policy="accept-new", pinned=None, host="web1", called=()):
    AgentTrust(home, host, 7963, policy, pinned, called=called).check(key, certificate)


def pins(home):
    path = home / KNOWN_AGENTS_FILE
    return path.read_text() if path.exists() else ""


def test_key_is_pinned_at_first_use_and_demanded_afterwards(tmp_path):
    check(tmp_path)
    check(tmp_path)
    assert pins(tmp_path) == f"web1:7963 {format_public(KEY)}\n"
    with pytest.raises(UntrustedAgent, match="has changed"):
        check(tmp_path, OTHER)


@pytest.mark.parametrize("policy", ["strict", "ca", "pinned"])
def test_key_that_nobody_knows_is_refused(tmp_path, policy):
    with pytest.raises(UntrustedAgent, match=r"strict|is ca|discovery") as caught:
        check(tmp_path, policy=policy)
    assert format_public(KEY) in str(caught.value)
    assert fingerprint(KEY) in str(caught.value)
    assert pins(tmp_path) == ""


def test_key_of_host_data_beats_the_file_and_is_not_written(tmp_path):
    check(tmp_path, OTHER)
    before = pins(tmp_path)
    check(tmp_path, pinned=f" {format_public(KEY, 'web')} \n")
    with pytest.raises(UntrustedAgent) as caught:
        check(tmp_path, OTHER, pinned=format_public(KEY))
    assert fingerprint(KEY) in str(caught.value)
    assert fingerprint(OTHER) in str(caught.value)
    assert pins(tmp_path) == before


def test_host_data_may_hold_the_key_of_today_and_that_of_tomorrow(tmp_path):
    both = f"{format_public(KEY)}\n{format_public(OTHER, 'from Monday on')}\n"
    check(tmp_path, KEY, pinned=both)
    check(tmp_path, OTHER, pinned=both)
    with pytest.raises(UntrustedAgent, match="or"):
        check(tmp_path, KeyPair.generate().public, pinned=both)


def test_key_of_host_data_that_is_none_is_refused_without_showing_it(tmp_path):
    """A secret key in the wrong place is refused and not printed."""
    secret = format_secret(KeyPair.generate())
    for text in ("", "nonsense", secret):
        with pytest.raises(UntrustedAgent, match="agent_public_key of web1 is no key line") as caught:
            check(tmp_path, policy="strict", pinned=text)
        assert secret.split()[1] not in str(caught.value)


def test_policy_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UntrustedAgent, match="must be strict, accept-new or ca"):
        check(tmp_path, policy="yes")


def test_two_hundred_hosts_read_the_files_once(tmp_path, monkeypatch):
    trust_fleet(tmp_path)
    reads = []
    parse = _authorities.parse_authority_line
    monkeypatch.setattr(_authorities, "parse_authority_line", lambda line: reads.append(line) or parse(line))
    for number in range(200):
        check(tmp_path, host=f"web{number}")
    assert len(pins(tmp_path).splitlines()) == 200
    assert len(reads) == 1


# --- certificates ---

POLICIES = ["strict", "accept-new", "ca", "pinned"]


@pytest.mark.parametrize("policy", POLICIES)
def test_certified_agent_is_accepted_and_not_pinned(tmp_path, policy):
    """No state is left of it: its key may change with its certificate."""
    trust_fleet(tmp_path)
    check(tmp_path, certificate=signed(KEY, "web1"), policy=policy)
    check(tmp_path, OTHER, certificate=signed(OTHER, "WEB1."), policy=policy)
    assert pins(tmp_path) == ""


@pytest.mark.parametrize("policy", POLICIES)
def test_pinned_agent_is_accepted_whatever_its_certificate_says(tmp_path, policy):
    trust_fleet(tmp_path)
    check(tmp_path, policy="accept-new")
    for certificate in (b"", signed(KEY, "other"), signed(KEY, days=(-2, -1)), signed(KEY, by=STRANGER), b"rubbish"):
        check(tmp_path, certificate=certificate, policy=policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_changed_key_is_refused_although_it_is_certified(tmp_path, policy):
    """A pin beats an authority: whoever has the fleet key cannot take a pinned agent's place."""
    trust_fleet(tmp_path)
    check(tmp_path)
    with pytest.raises(UntrustedAgent, match="has changed") as caught:
        check(tmp_path, OTHER, signed(OTHER, "web1"), policy=policy)
    assert {fingerprint(KEY), fingerprint(OTHER)} <= set(str(caught.value).replace(":", " ").split())
    assert f"line 1 of {tmp_path / KNOWN_AGENTS_FILE}" in str(caught.value)
    with pytest.raises(UntrustedAgent, match="agent_public_key"):
        check(tmp_path, OTHER, signed(OTHER, "web1"), policy=policy, pinned=format_public(KEY))


REFUSED = {
    "another name": (signed(KEY, "web2", "web2.example.com"), "for web2, web2.example.com and not for web1"),
    "a controller's": (signed(KEY, "web1", role="controller"), "for the role controller"),
    "another key's": (signed(OTHER, "web1"), "for another key"),
    "expired": (signed(KEY, days=(-9, -1)), "has expired"),
    "not yet valid": (signed(KEY, days=(1, 2)), "not valid yet"),
    "changed": (signed(KEY, "web1")[:-1] + b"\0", "does not verify"),
    "cut": (signed(KEY, "web1")[:40], "is none"),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("which", REFUSED)
def test_certificate_that_proves_nothing_is_refused_and_nothing_is_pinned(tmp_path, which, policy):
    """Also by accept-new: a name that the fleet's key speaks of is not left to whoever comes first."""
    certificate, said = REFUSED[which]
    trust_fleet(tmp_path)
    with pytest.raises(UntrustedAgent, match=said):
        check(tmp_path, certificate=certificate, policy=policy)
    assert pins(tmp_path) == ""


@pytest.mark.parametrize("policy", ["strict", "ca", "pinned"])
@pytest.mark.parametrize("certificate", [b"", signed(KEY, "web1", by=STRANGER), b"rubbish" * 20])
def test_certificate_of_nobody_known_is_none(tmp_path, certificate, policy):
    trust_fleet(tmp_path)
    with pytest.raises(UntrustedAgent):
        check(tmp_path, certificate=certificate, policy=policy)
    check(tmp_path, certificate=certificate, policy="accept-new")
    assert pins(tmp_path).startswith("web1:7963 ")


def test_refusal_by_ca_says_what_is_wrong_with_the_certificate(tmp_path):
    trust_fleet(tmp_path)
    path = tmp_path / "authorities"
    with pytest.raises(UntrustedAgent, match=f"shows no certificate of those in {path}"):
        check(tmp_path, policy="ca")
    with pytest.raises(UntrustedAgent, match=f"of an authority that is not in {path}"):
        check(tmp_path, certificate=signed(KEY, by=STRANGER), policy="ca")


def test_certificate_has_to_name_what_the_user_called_the_agent(tmp_path):
    """The inventory's name will do where agent_host says another, and so will that."""
    trust_fleet(tmp_path)
    called = ["192.0.2.7", "web1"]
    check(tmp_path, certificate=signed(KEY, "web1"), host="192.0.2.7", called=called, policy="ca")
    check(tmp_path, certificate=signed(KEY, "192.0.2.7"), host="192.0.2.7", called=called, policy="ca")
    with pytest.raises(UntrustedAgent, match=r"and not for 192\.0\.2\.7"):
        check(tmp_path, certificate=signed(KEY, "web2"), host="192.0.2.7", called=called, policy="ca")


def test_authority_counts_for_the_names_of_its_line_alone(tmp_path):
    trust_fleet(tmp_path, 'names="*.Example.com,db?"')
    check(tmp_path, certificate=signed(KEY, "web1.example.COM"), host="web1.example.com", policy="ca")
    check(tmp_path, certificate=signed(KEY, "db1"), host="db1", policy="ca")
    with pytest.raises(UntrustedAgent, match=r"trusted only for \*.example.com, db\?"):
        check(tmp_path, certificate=signed(KEY, "web1", "db1"), host="web1", policy="ca")


def test_two_authorities_count_at_once(tmp_path):
    """As while the fleet key is changed."""
    trust_fleet(tmp_path)
    trust_fleet(tmp_path, key=STRANGER)
    check(tmp_path, certificate=signed(KEY), policy="ca")
    check(tmp_path, certificate=signed(KEY, by=STRANGER), policy="ca")
    (tmp_path / "authorities").write_text("")
    with pytest.raises(UntrustedAgent):
        check(tmp_path, certificate=signed(KEY), policy="ca")


# --- revocation ---


@pytest.mark.parametrize("policy", POLICIES)
def test_revoked_certificate_is_refused(tmp_path, policy):
    trust_fleet(tmp_path)
    certificate = signed(KEY, serial=0xABC)
    check(tmp_path, certificate=certificate, policy=policy)
    (tmp_path / "revoked").write_text("# lost\n0000000000000abc web1, stolen\n")
    with pytest.raises(UntrustedAgent, match="0000000000000abc was revoked"):
        check(tmp_path, certificate=certificate, policy=policy)
    check(tmp_path, certificate=signed(KEY, serial=0xABD), policy=policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_revoked_key_is_refused_whoever_knows_it(tmp_path, policy):
    trust_fleet(tmp_path)
    check(tmp_path)
    (tmp_path / "revoked").write_text(f"{format_public(KEY, 'stolen')}\n")
    for pinned in (None, format_public(KEY)):
        with pytest.raises(UntrustedAgent, match="is revoked in"):
            check(tmp_path, certificate=signed(KEY), policy=policy, pinned=pinned)


@pytest.mark.parametrize("text", ["0123\n", "pyinfra-agent-key AAAA\n", "\x00\xff\n"])
def test_revocations_that_cannot_be_read_let_nobody_in(tmp_path, text):
    """The line that is damaged may be the one that matters."""
    trust_fleet(tmp_path)
    check(tmp_path, policy="accept-new")
    (tmp_path / "revoked").write_text(f"\n{text}")
    for _ in range(2):
        with pytest.raises(UntrustedAgent, match=f"until {tmp_path / 'revoked'} can be read: line 2"):
            check(tmp_path)
    (tmp_path / "revoked").unlink()
    check(tmp_path)


def test_files_that_cannot_be_read_are_not_empty(tmp_path):
    (tmp_path / "authorities").mkdir(parents=True)
    with pytest.raises(UntrustedAgent, match="authorities cannot be read"):
        check(tmp_path)
    (tmp_path / "authorities").rmdir()
    (tmp_path / "revoked").mkdir()
    with pytest.raises(UntrustedAgent, match="revoked cannot be read"):
        check(tmp_path)


# --- rotated keys ---


def test_agent_that_announced_its_next_key_is_known_by_it_afterwards(tmp_path):
    trust = AgentTrust(tmp_path, "web1", 7963, "strict", None)
    with pytest.raises(UntrustedAgent):
        trust.check(KEY, b"")
    check(tmp_path)
    trust.learn(KEY, OTHER)
    trust.check(OTHER, b"")
    assert pins(tmp_path) == f"web1:7963 {format_public(OTHER)}\n"


def test_next_key_that_is_none_is_not_noted(tmp_path):
    check(tmp_path)
    before = pins(tmp_path)
    for nonsense in (b"", b"short", bytes(32)):
        AgentTrust(tmp_path, "web1", 7963, "strict", None).learn(KEY, nonsense)
    assert pins(tmp_path) == before


def test_next_key_of_an_agent_in_host_data_is_told_to_the_user(tmp_path, caplog):
    trust = AgentTrust(tmp_path, "web1", 7963, "strict", format_public(KEY))
    trust.learn(KEY, OTHER)
    assert format_public(OTHER) in caplog.text
    assert pins(tmp_path) == ""
