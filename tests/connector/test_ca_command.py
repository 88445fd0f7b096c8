"""`pyinfra-agent ca`: a fleet key, and what it signs."""

from __future__ import annotations

import io
import os
import shlex
import stat
import subprocess
import sys
import time

import pytest

from pyinfra_agent_connector import _passphrase
from pyinfra_agent_connector._fleet import Fleet
from pyinfra_agent_connector.ca_command import ca
from pyinfra_agent_connector.trust_command import trust
from pyinfra_agent_protocol.certificates import (
    CertificateRefused,
    check_certificate,
    open_certificate,
    parse_certificate,
)
from pyinfra_agent_protocol.keys import KeyPair, fingerprint, format_public, format_secret
from pyinfra_agent_protocol.trust_lines import parse_revocations

KEY = KeyPair.generate()
LINE = format_public(KEY.public, "web1")


@pytest.fixture
def directory(agent_home):
    return agent_home / "ca"


@pytest.fixture
def fleet(directory, capsys):
    assert ca(["init"]) == 0
    capsys.readouterr()
    return Fleet(directory)


def sign(capsys, *words):
    assert ca(["sign", *words]) == 0
    said = capsys.readouterr()
    assert said.out.count("\n") == 1, "a line that can be saved as it is"
    return parse_certificate(said.out), said.err


def test_init_makes_a_private_key_and_prints_a_line_for_each_side(directory, capsys, agent_home):
    assert ca(["init", "--comment", "our fleet"]) == 0
    on_agents, on_controllers = map(shlex.split, capsys.readouterr().out.splitlines())
    authority = (directory / "authority").read_text().strip()
    assert on_agents == ["pyinfra-agent", "authorize", "--authority", authority]
    assert on_controllers == ["pyinfra-agent", "trust", "add", "--authority", authority]
    assert authority.endswith(" our fleet")
    assert stat.S_IMODE((directory / "fleet_key").stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert trust(on_controllers[2:]) == 0
    assert (agent_home / "authorities").read_text() == f"{authority}\n"


def test_init_never_replaces_a_key(fleet, directory, capsys):
    before = (directory / "fleet_key").read_text(), (directory / "authority").read_text()
    assert ca(["init"]) == 1
    assert "there is a fleet key already" in capsys.readouterr().err
    assert ((directory / "fleet_key").read_text(), (directory / "authority").read_text()) == before


def test_agent_is_signed_for_its_names_and_groups_for_a_year(fleet, capsys):
    data, said = sign(capsys, "--agent", "Web1", "--agent", "2001:db8:0::1", "--group", "web", "--group", "db", LINE)
    authority = fleet.authority()
    certificate, _ = open_certificate(data, {authority.id: authority})
    assert (certificate.key, certificate.role) == (KEY.public, "agent")
    assert certificate.names == ("web1", "2001:db8::1")
    assert certificate.groups == ("web", "db")
    assert certificate.not_after - certificate.not_before == 365 * 86400
    assert abs(certificate.not_before - time.time()) < 5
    assert "/var/lib/pyinfra-agent/certificate" in said
    assert certificate.serial_text in said


@pytest.mark.parametrize(
    ("words", "seconds"), [((), 30 * 86400), (("--hours", "4"), 4 * 3600), (("--days", "2"), 2 * 86400)]
)
def test_controller_is_signed_for_as_long_as_is_said(fleet, capsys, words, seconds):
    data, said = sign(capsys, "--controller", "ci", *words, *LINE.split())
    authority = fleet.authority()
    certificate, _ = open_certificate(data, {authority.id: authority})
    assert (certificate.role, certificate.names) == ("controller", ("ci",))
    assert certificate.not_after - certificate.not_before == seconds
    assert "PYINFRA_AGENT_CERTIFICATE" in said


def test_key_is_taken_from_a_file_or_from_standard_input(fleet, capsys, tmp_path, monkeypatch):
    (tmp_path / "key").write_text(f"{LINE}\n")
    sign(capsys, "--agent", "web1", str(tmp_path / "key"))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{LINE}\n"))
    sign(capsys, "--agent", "web1", "-")
    assert [one.key for one in fleet.ledger()] == [KEY.public] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--agent", "web1", format_secret(KEY)), "this is a secret key"),
        (("--agent", "web1:7963", LINE), "not understood"),
        (("--agent", "10.0.0.0/8", LINE), "not understood"),
        (("--agent", "*.example.com", LINE), "not understood"),
        (("--agent", "web1", "rubbish line"), "a public key is a line"),
        (("--agent", "web1", "missing-file"), "missing-file No such file"),
        (("--agent", "web1", "--group", "", LINE), "takes a list"),
        (("--controller", "", LINE), "takes a list"),
        (("--controller", "x" * 300, LINE), "names"),
        (("--agent", "web1", "--days", "99999", LINE), "a hundred years"),
    ],
)
def test_what_cannot_be_signed_is_one_line_and_leaves_no_trace(fleet, capsys, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ca(["sign", *words]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert format_secret(KEY).split()[1] not in printed.err
    assert fleet.ledger() == ()


def test_serials_are_random_and_all_in_the_ledger(fleet, capsys):
    for number in range(5):
        sign(capsys, "--agent", f"web{number}", LINE)
    serials = [int(one.serial, 16) for one in fleet.ledger()]
    assert len(set(serials)) == 5
    assert max(serials) > 2**58
    assert stat.S_IMODE(fleet.ledger_path.stat().st_mode) == 0o600


def test_processes_that_sign_at_once_lose_no_entry(fleet, directory):
    code = "import sys; from pyinfra_agent_connector.ca_command import ca; sys.exit(ca(sys.argv[1:]))"
    words = ["sign", "--agent", "web1", "--dir", str(directory), LINE]
    running = [
        subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(4)
    ]
    assert [process.wait(60) for process in running] == [0] * 4
    assert len({one.serial for one in fleet.ledger()}) == 4


def test_revoked_serial_is_in_the_list_that_is_copied(fleet, directory, capsys):
    data, _ = sign(capsys, "--agent", "web1", LINE)
    (one,) = fleet.ledger()
    assert ca(["revoke", one.serial.upper()]) == 0
    said = capsys.readouterr()
    assert str(directory / "revoked") in said.out
    assert "dest=/var/lib/pyinfra-agent/revoked" in said.out
    revoked = parse_revocations((directory / "revoked").read_text())
    authority = fleet.authority()
    certificate, _ = open_certificate(data, {authority.id: authority})
    with pytest.raises(CertificateRefused, match="revoked"):
        check_certificate(certificate, authority, key=KEY.public, role="agent", now=time.time(), revoked=revoked)
    assert ca(["revoke", one.serial]) == 0
    assert "revoked already" in capsys.readouterr().err
    assert len((directory / "revoked").read_text().splitlines()) == 1


@pytest.mark.parametrize("by", ["fingerprint", "line"])
def test_revoked_key_is_signed_no_more(fleet, capsys, by):
    sign(capsys, "--agent", "web1", LINE)
    assert ca(["revoke", *({"fingerprint": [fingerprint(KEY.public)], "line": LINE.split()}[by])]) == 0
    assert fleet.revocations().keys == {KEY.public}
    capsys.readouterr()
    assert ca(["sign", "--agent", "web1", LINE]) == 1
    assert "was revoked" in capsys.readouterr().err
    assert len(fleet.ledger()) == 1


def test_what_nobody_knows_cannot_be_revoked(fleet, directory, capsys):
    for text in ("web1", "abc", "aaaaa-bbbbb-ccccc-ddddd-eeeee"):
        assert ca(["revoke", text]) == 1
    assert capsys.readouterr().err.count("\n") == 3
    assert not (directory / "revoked").exists()


def test_list_shows_what_was_signed_and_what_has_become_of_it(fleet, capsys, monkeypatch):
    sign(capsys, "--agent", "web1", "--group", "web", LINE)
    sign(capsys, "--controller", "ci", "--hours", "1", format_public(KeyPair.generate().public))
    ca(["revoke", fleet.ledger()[0].serial])
    capsys.readouterr()
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 3601)
    assert ca(["list"]) == 0
    title, first, second = capsys.readouterr().out.splitlines()
    assert title.startswith(f"authority {fleet.authority().fingerprint} ")
    assert first.split()[:3] == [fleet.ledger()[0].serial, "agent", fingerprint(KEY.public)]
    assert first.endswith("revoked  web1 groups=web")
    assert second.endswith("expired  ci")


@pytest.mark.parametrize("verb", [["sign", "--agent", "web1", LINE], ["list"], ["revoke", "0" * 16]])
def test_without_a_fleet_key_the_command_that_makes_one_is_told(verb, capsys, directory):
    assert ca(verb) == 1
    assert "pyinfra-agent ca init makes one" in capsys.readouterr().err
    assert not (directory / "revoked").exists()


def test_fleet_key_that_others_can_read_is_refused(fleet, directory, capsys):
    (directory / "fleet_key").chmod(0o644)
    assert ca(["sign", "--agent", "web1", LINE]) == 1
    assert f"chmod 600 {directory / 'fleet_key'}" in capsys.readouterr().err


def test_fleet_key_may_be_under_a_passphrase(directory, capsys, monkeypatch):
    monkeypatch.setattr(_passphrase, "ARGON2_PASSES", 1)
    monkeypatch.setattr(_passphrase, "ARGON2_MEMORY_KIB", 8)
    typed = ["secret", "secret"]
    monkeypatch.setattr(_passphrase, "_ask", lambda prompt, what: typed.pop(0))
    assert ca(["init", "--passphrase"]) == 0
    capsys.readouterr()
    assert (directory / "fleet_key").read_text().startswith("pyinfra-agent-encrypted-authority ")
    assert ca(["list"]) == 0, "which needs no passphrase"
    capsys.readouterr()
    monkeypatch.setenv("PYINFRA_AGENT_PASSPHRASE", "guess")
    assert ca(["sign", "--agent", "web1", LINE]) == 1
    assert "is not the one in $PYINFRA_AGENT_PASSPHRASE" in capsys.readouterr().err
    monkeypatch.setenv("PYINFRA_AGENT_PASSPHRASE", "secret")
    data, _ = sign(capsys, "--agent", "web1", LINE)
    authority = Fleet(directory).authority()
    open_certificate(data, {authority.id: authority})


def test_ledger_that_is_damaged_is_named(fleet, capsys):
    sign(capsys, "--agent", "web1", LINE)
    with open(fleet.ledger_path, "a") as file:
        file.write("{\n")
    assert ca(["list"]) == 1
    assert f"line 2 of {fleet.ledger_path}" in capsys.readouterr().err


def test_umask_of_zero_opens_nothing(directory, capsys):
    old = os.umask(0)
    try:
        ca(["init"])
        sign_words = ["sign", "--agent", "web1", LINE]
        ca(sign_words)
        ca(["revoke", "0" * 16])
    finally:
        os.umask(old)
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
