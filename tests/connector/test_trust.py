"""Whether an agent's key is the right one."""

from __future__ import annotations

import pytest

from pyinfra_agent_connector._known import UntrustedAgent
from pyinfra_agent_connector._trust import KNOWN_AGENTS_FILE, key_checker
from pyinfra_agent_protocol.keys import KeyPair, fingerprint, format_public, format_secret

KEY = KeyPair.generate().public
OTHER = KeyPair.generate().public


def test_key_is_pinned_at_first_use_and_demanded_afterwards(tmp_path):
    check = key_checker(tmp_path, "web1", 7963, "accept-new", None)
    check(KEY)
    check(KEY)
    assert (tmp_path / KNOWN_AGENTS_FILE).read_text() == f"web1:7963 {format_public(KEY)}\n"
    with pytest.raises(UntrustedAgent, match="has changed"):
        check(OTHER)


def test_key_that_is_not_pinned_is_refused_by_strict(tmp_path):
    with pytest.raises(UntrustedAgent, match="strict"):
        key_checker(tmp_path, "web1", 7963, "strict", None)(KEY)
    assert not (tmp_path / KNOWN_AGENTS_FILE).exists()


def test_key_of_host_data_beats_the_file_and_is_not_written(tmp_path):
    key_checker(tmp_path, "web1", 7963, "accept-new", None)(OTHER)
    before = (tmp_path / KNOWN_AGENTS_FILE).read_text()
    check = key_checker(tmp_path, "web1", 7963, "accept-new", f" {format_public(KEY, 'web')} \n")
    check(KEY)
    with pytest.raises(UntrustedAgent) as caught:
        check(OTHER)
    assert fingerprint(KEY) in str(caught.value)
    assert fingerprint(OTHER) in str(caught.value)
    assert (tmp_path / KNOWN_AGENTS_FILE).read_text() == before


def test_key_of_host_data_that_is_none_is_refused_without_showing_it(tmp_path):
    """A secret key in the wrong place is refused and not printed."""
    secret = format_secret(KeyPair.generate())
    for text in ("", "nonsense", secret):
        with pytest.raises(UntrustedAgent, match="agent_public_key of web1 is no key line") as caught:
            key_checker(tmp_path, "web1", 7963, "strict", text)
        assert secret.split()[1] not in str(caught.value)


def test_policy_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UntrustedAgent, match="must be strict or accept-new"):
        key_checker(tmp_path, "web1", 7963, "yes", None)(KEY)


def test_two_hundred_hosts_read_the_file_once(tmp_path):
    checks = [key_checker(tmp_path, f"web{number}", 7963, "accept-new", None) for number in range(200)]
    for check in checks:
        check(KEY)
    assert len((tmp_path / KNOWN_AGENTS_FILE).read_text().splitlines()) == 200
