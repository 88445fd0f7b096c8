"""`pyinfra-agent identity`: passphrase and rotation."""

from __future__ import annotations

import os
import re
import shlex
import stat

import pytest

from pyinfra_agent_connector import _passphrase, identity_command
from pyinfra_agent_connector._identity import load_or_create
from pyinfra_agent_connector.identity_command import identity
from pyinfra_agent_protocol.certificates import format_certificate
from pyinfra_agent_protocol.keys import fingerprint, parse_public
from tests.connector.fleet import signed


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(_passphrase, "ARGON2_PASSES", 1)
    monkeypatch.setattr(_passphrase, "ARGON2_MEMORY_KIB", 8)
    monkeypatch.delenv("PYINFRA_AGENT_PASSPHRASE", raising=False)


@pytest.fixture
def answers(monkeypatch):
    """What is typed at the terminal, in turn."""
    typed = []
    monkeypatch.setattr(_passphrase, "_ask", lambda prompt, what: typed.pop(0))
    return typed


def public_of(home):
    return load_or_create(home).keypair.public


def test_passphrase_is_set_changed_and_removed_and_the_key_stays(agent_home, answers, capsys):
    before = public_of(agent_home)
    path = agent_home / "identity"
    answers += ["one", "one"]
    assert identity(["--passphrase"]) == 0
    assert path.read_text().startswith("pyinfra-agent-encrypted-key ")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    answers += ["one", "two", "two"]
    assert identity(["--passphrase"]) == 0
    answers += ["two"]
    assert public_of(agent_home) == before
    answers += ["", ""]
    assert identity(["--passphrase"]) == 0
    assert path.read_text().startswith("pyinfra-agent-secret-key ")
    assert public_of(agent_home) == before
    assert os.listdir(agent_home) == ["identity"]
    assert answers == []


def test_passphrases_that_differ_change_nothing(agent_home, answers, capsys):
    public_of(agent_home)
    before = (agent_home / "identity").read_text()
    answers += ["one", "two"]
    assert identity(["--passphrase"]) == 1
    assert "the two passphrases differ" in capsys.readouterr().err
    assert (agent_home / "identity").read_text() == before


def test_wrong_passphrase_is_one_line(agent_home, answers, capsys):
    public_of(agent_home)
    answers += ["one", "one"]
    identity(["--passphrase"])
    capsys.readouterr()
    answers += ["x", "y", "z"]
    assert identity([]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == (
        f"pyinfra-agent: the passphrase of the controller's key {agent_home / 'identity'} was wrong 3 times"
    )


def test_next_key_is_made_beside_the_one_in_use(agent_home, capsys):
    before = public_of(agent_home)
    assert identity(["--rotate"]) == 0
    first = capsys.readouterr().out
    assert public_of(agent_home) == before
    assert stat.S_IMODE((agent_home / "identity.next").stat().st_mode) == 0o600
    authorize, sign, look, commit = map(shlex.split, first.splitlines())
    line = authorize[authorize.index("authorize") + 1]
    assert parse_public(line).key == identity_command._opened(agent_home / "identity.next").keypair.public != before
    assert line in sign
    assert look[0] == f"PYINFRA_AGENT_KEY_FILE={agent_home / 'identity.next'}"
    assert commit == ["pyinfra-agent", "identity", "--commit"]
    assert identity(["--rotate"]) == 0
    assert capsys.readouterr().out == first, "the same next key"


def test_next_key_is_under_the_passphrase_of_the_one_in_use(agent_home, answers):
    public_of(agent_home)
    answers += ["one", "one"]
    identity(["--passphrase"])
    answers += ["one", "one"]
    assert identity(["--rotate"]) == 0
    assert (agent_home / "identity.next").read_text().startswith("pyinfra-agent-encrypted-key ")


def test_commit_puts_the_next_key_and_its_certificate_in_place(agent_home, capsys):
    before = public_of(agent_home)
    old = signed(before, "ada", role="controller")
    (agent_home / "certificate").write_text(format_certificate(old))
    identity(["--rotate"])
    after = identity_command._opened(agent_home / "identity.next").keypair.public
    new = signed(after, "ada", role="controller", days=(0, 20))
    (agent_home / "certificate.next").write_text(format_certificate(new))
    capsys.readouterr()
    assert identity(["--commit"]) == 0
    found = load_or_create(agent_home)
    assert (found.keypair.public, found.certificate) == (after, new)
    assert sorted(os.listdir(agent_home)) == ["certificate", "certificate.old", "identity", "identity.old"]
    said = capsys.readouterr().out
    assert re.search(rf"pyinfra-agent revoke {fingerprint(before)}$", said, re.MULTILINE)


def test_commit_without_a_next_key_changes_nothing(agent_home, capsys):
    before = public_of(agent_home)
    assert identity(["--commit"]) == 1
    assert "pyinfra-agent identity --rotate makes one" in capsys.readouterr().err
    assert public_of(agent_home) == before
