"""A new key for the agent: staged, announced, put in place."""

from __future__ import annotations

import os
import stat

import pytest

from pyinfra_agent._authorized import AuthorizedControllers
from pyinfra_agent._keys import StateError, load_key, load_or_create_key
from pyinfra_agent._rotation import commit_next_key, stage_next_key
from pyinfra_agent_protocol.certificates import AuthorityKey, Certificate, format_certificate
from pyinfra_agent_protocol.keys import parse_public

FLEET = AuthorityKey(bytes(range(32)))


def certificate_of(key, name="web1"):
    return FLEET.sign(Certificate(key, "agent", (name,), 0, 2**31, 1))


def write_certificate(path, key):
    path.write_text(format_certificate(certificate_of(key)))
    path.chmod(0o600)


def test_next_key_is_private_and_stays_the_same(tmp_path, capsys):
    before = load_or_create_key(tmp_path)
    stage_next_key(tmp_path)
    line = capsys.readouterr().out
    stage_next_key(tmp_path)
    assert capsys.readouterr().out == line
    following = load_key(tmp_path / "key.next")
    assert following is not None
    assert parse_public(line.strip()).key == following.public != before.public
    assert stat.S_IMODE((tmp_path / "key.next").stat().st_mode) == 0o600
    assert load_or_create_key(tmp_path).public == before.public


def test_next_key_is_announced_until_the_agent_has_it(tmp_path):
    old = load_or_create_key(tmp_path).public
    authorized = AuthorizedControllers(tmp_path)
    assert authorized.next_key_after(old) == b""
    stage_next_key(tmp_path)
    following = load_key(tmp_path / "key.next")
    assert following is not None
    assert authorized.next_key_after(old) == following.public
    commit_next_key(tmp_path)
    assert authorized.next_key_after(old) == following.public, "to whoever connects before the agent starts again"
    assert authorized.next_key_after(following.public) == b""


def test_commit_keeps_what_it_replaces(tmp_path):
    old = load_or_create_key(tmp_path)
    stage_next_key(tmp_path)
    following = load_key(tmp_path / "key.next")
    commit_next_key(tmp_path)
    kept = load_key(tmp_path / "key.old")
    assert following is not None
    assert kept is not None
    assert (load_or_create_key(tmp_path).public, kept.public) == (following.public, old.public)
    assert sorted(os.listdir(tmp_path)) == ["key", "key.old"]


def test_certificate_shown_is_always_that_of_the_key_in_use(tmp_path):
    """Before, between and after: a peer never sees one that is for another key."""
    old = load_or_create_key(tmp_path).public
    authorized = AuthorizedControllers(tmp_path)
    write_certificate(tmp_path / "certificate", old)
    stage_next_key(tmp_path)
    following = load_key(tmp_path / "key.next")
    assert following is not None
    write_certificate(tmp_path / "certificate.next", following.public)
    assert authorized.certificate_of(old) == certificate_of(old)
    commit_next_key(tmp_path)
    assert authorized.certificate_of(old) == certificate_of(old)
    assert authorized.certificate_of(following.public) == certificate_of(following.public)
    assert authorized.certificate_of(bytes(32)) == b""


def test_commit_refuses_to_leave_a_certified_agent_without_a_certificate(tmp_path):
    old = load_or_create_key(tmp_path).public
    write_certificate(tmp_path / "certificate", old)
    stage_next_key(tmp_path)
    with pytest.raises(StateError, match="its next key has none"):
        commit_next_key(tmp_path)
    assert load_or_create_key(tmp_path).public == old
    assert (tmp_path / "key.next").exists()


def test_commit_without_a_next_key_changes_nothing(tmp_path):
    old = load_or_create_key(tmp_path).public
    with pytest.raises(StateError, match="--rotate makes one"):
        commit_next_key(tmp_path)
    assert load_or_create_key(tmp_path).public == old


def test_next_key_that_others_can_read_is_refused(tmp_path):
    load_or_create_key(tmp_path)
    stage_next_key(tmp_path)
    (tmp_path / "key.next").chmod(0o644)
    for act in (stage_next_key, commit_next_key):
        with pytest.raises(StateError, match="chmod 600"):
            act(tmp_path)
