"""`pyinfra-agent trust`."""

from __future__ import annotations

import io
import re

import pytest

from pyinfra_agent_connector.trust_command import trust
from pyinfra_agent_protocol.certificates import format_authority
from pyinfra_agent_protocol.keys import KeyPair, fingerprint, format_public, format_secret
from tests.connector.fleet import FLEET, signed, trust_fleet
from tests.connector.helpers import LOCALHOST, FakeAgent, free_port, serve_quietly

ONE, TWO = (KeyPair.generate() for _ in range(2))
LINE = format_public(ONE.public, "front door")
AUTHORITY = format_authority(FLEET.public, "fleet")


@pytest.fixture
def known(agent_home):
    return agent_home / "known_agents"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_agent_is_added_by_its_key_line_listed_and_removed(known, capsys):
    assert trust(["add", "@agent/Web1", LINE]) == 0
    assert trust(["add", "web1:7963", *LINE.split()]) == 0
    said = capsys.readouterr().out.splitlines()
    was = ("is pinned", "was already pinned")
    assert said == [f"{known}: web1:7963 {words} with {fingerprint(ONE.public)}" for words in was]
    assert known.read_text() == f"web1:7963 {LINE}\n"
    assert trust(["list"]) == 0
    assert capsys.readouterr().out == f"web1:7963  {fingerprint(ONE.public)}  front door\n"
    assert trust(["remove", fingerprint(ONE.public)]) == 0
    assert capsys.readouterr().out == f"{known}: web1:7963 is not pinned any more\n"
    assert trust(["remove", "web1"]) == 1
    assert f"web1:7963 is not in {known}" in capsys.readouterr().err


def test_key_line_may_come_from_a_file(known, tmp_path):
    (tmp_path / "web1.key").write_text(f"{LINE}\n")
    assert trust(["add", "web1", str(tmp_path / "web1.key")]) == 0
    assert known.read_text() == f"web1:7963 {LINE}\n"


def test_another_key_is_not_added_and_the_command_that_helps_is_told(known, capsys):
    trust(["add", "web1", LINE])
    assert trust(["add", "web1", format_public(TWO.public)]) == 1
    said = capsys.readouterr().err
    assert "pyinfra-agent trust remove web1:7963" in said
    assert fingerprint(TWO.public) in said
    assert known.read_text() == f"web1:7963 {LINE}\n"


def test_secret_key_is_refused_and_not_shown(known, capsys):
    secret = format_secret(ONE)
    assert trust(["add", "web1", secret]) == 1
    assert secret.split()[1] not in capsys.readouterr().err
    assert not known.exists()


def test_list_tells_what_is_ignored_and_what_is_announced(known, agent_home, capsys):
    known.parent.mkdir()
    known.write_text(f"web1:7963 {LINE}\nrubbish\n@next web1:7963 {format_public(TWO.public)}\n")
    trust_fleet(agent_home, 'names="*.example.com"')
    assert trust(["list"]) == 0
    said = capsys.readouterr()
    rows = [line.split(None, 2) for line in said.out.splitlines()]
    assert rows[1] == ["web1:7963", fingerprint(TWO.public), "(announced for after its rotation)"]
    assert rows[2][0] == "authority"
    assert rows[2][2] == "names=*.example.com fleet"
    assert "line 2" in said.err


# --- asking the agent ---


def test_key_is_fetched_from_the_agent_and_nothing_of_ours_is_sent(known, capsys):
    with FakeAgent(serve_quietly, key=ONE) as agent:
        assert trust(["add", f"{LOCALHOST}:{agent.port}", "--yes"]) == 0
        assert known.read_text() == f"{LOCALHOST}:{agent.port} {format_public(ONE.public)}\n"
        assert agent.conversations == []


@pytest.mark.parametrize(("typed", "status"), [("y\n", 0), ("yes\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
def test_person_is_asked_whether_the_key_is_right(known, capsys, monkeypatch, typed, status):
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    with FakeAgent(serve_quietly, key=ONE) as agent:
        assert trust(["add", f"{LOCALHOST}:{agent.port}"]) == status
    assert fingerprint(ONE.public) in capsys.readouterr().err
    assert known.exists() == (status == 0)


def test_without_a_terminal_nothing_is_pinned_unasked(known, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with FakeAgent(serve_quietly, key=ONE) as agent:
        assert trust(["add", f"{LOCALHOST}:{agent.port}"]) == 1
    said = capsys.readouterr().err
    assert fingerprint(ONE.public) in said
    assert "give --yes" in said
    assert not known.exists()


@pytest.mark.parametrize(
    ("name", "said"), [(LOCALHOST, "an authority of yours says that it is right"), ("web2", "careful: its certificate")]
)
def test_person_is_told_what_the_certificate_says(agent_home, capsys, monkeypatch, name, said):
    trust_fleet(agent_home)
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    with FakeAgent(serve_quietly, key=ONE, certificate=signed(ONE.public, name)) as agent:
        assert trust(["add", f"{LOCALHOST}:{agent.port}"]) == 1
    assert said in capsys.readouterr().err


def test_agent_that_is_not_there_is_one_line(known, capsys):
    assert trust(["add", f"{LOCALHOST}:{free_port()}", "--yes"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "nothing listens" in said


def test_revoked_key_is_not_added(known, agent_home, capsys):
    agent_home.mkdir()
    (agent_home / "revoked").write_text(f"{LINE}\n")
    assert trust(["add", "web1", LINE]) == 1
    assert "is revoked" in capsys.readouterr().err
    assert not known.exists()


# --- authorities ---


def test_authority_is_added_once_and_removed_by_its_fingerprint(agent_home, capsys):
    path = agent_home / "authorities"
    line = f'names="*.example.com" {AUTHORITY}'
    assert trust(["add", "--authority", line]) == 0
    assert "for names=*.example.com" in capsys.readouterr().out
    path.write_text(f"# mine\n{path.read_text()}")
    assert trust(["add", "--authority", line]) == 0
    assert path.read_text() == f"# mine\n{line}\n"
    assert trust(["add", "--authority", AUTHORITY]) == 1
    (shown,) = {word for word in capsys.readouterr().err.split() if re.fullmatch("([a-z2-7]{5}-?){5}", word)}
    assert trust(["remove", shown]) == 0
    assert path.read_text() == "# mine\n"


def test_agent_key_is_no_authority(agent_home, capsys):
    assert trust(["add", "--authority", LINE]) == 1
    assert "an authority is a line of pyinfra-agent-authority" in capsys.readouterr().err
    assert not (agent_home / "authorities").exists()


@pytest.mark.parametrize("words", [[], ["add"], ["remove"], ["steal"]])
def test_mistake_in_the_arguments_ends_with_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        trust(words)
    assert caught.value.code == 2
    assert "--help" in capsys.readouterr().err
