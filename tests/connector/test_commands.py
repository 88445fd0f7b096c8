"""The controller's subcommands of `pyinfra-agent`."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib import metadata

import pytest

from pyinfra_agent_connector import commands
from pyinfra_agent_connector._errors import AgentError
from pyinfra_agent_connector._identity import load_or_create
from pyinfra_agent_protocol.keys import parse_public
from tests.connector.helpers import client_of


def test_commands_are_found_by_their_entry_points():
    found = {entry.name: entry.load() for entry in metadata.entry_points(group="pyinfra_agent.commands")}
    assert found["identity"] is commands.identity
    assert found["loopback"] is commands.loopback


def test_identity_prints_the_same_key_line_each_time(capsys, agent_home):
    assert commands.identity([]) == 0
    first = capsys.readouterr().out
    assert commands.identity([]) == 0
    assert capsys.readouterr().out == first
    assert parse_public(first.strip()).key == load_or_create(agent_home).keypair.public


def test_identity_takes_another_home(capsys, tmp_path, agent_home):
    assert commands.identity(["--home", str(tmp_path / "other")]) == 0
    assert capsys.readouterr().out.startswith("pyinfra-agent-key ")
    assert (tmp_path / "other" / "identity").exists()
    assert not agent_home.exists()


def test_identity_that_others_can_read_is_refused_in_one_line(capsys, agent_home):
    load_or_create(agent_home)
    (agent_home / "identity").chmod(0o644)
    assert commands.identity([]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("pyinfra-agent: ")
    assert "chmod 600" in said.err
    assert said.err.count("\n") == 1


def test_loopback_that_cannot_start_says_why(capsys, monkeypatch):
    def fail():
        raise AgentError("no trio here")

    monkeypatch.setattr("pyinfra_agent_connector._loopback.start_loopback", fail)
    monkeypatch.setattr("gevent.signal_handler", lambda *arguments: None)
    assert commands.loopback([]) == 1
    assert capsys.readouterr().err == "pyinfra-agent: no trio here\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_loopback_runs_until_it_is_told_to_stop(number, tmp_path):
    """The name and the key that it prints let another process in, and are gone with it."""
    from pathlib import Path

    process = subprocess.Popen(
        [sys.executable, "-m", "pyinfra_agent", "loopback"], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "@agent/" in line)
        words = line.split()
        port = int(words[1].rpartition(":")[2])
        home = Path(words[3].partition("=")[2])
        client = client_of(port, load_or_create(home))
        assert client.run(["true"]).exit == 0
        client._connection.drop()
        process.send_signal(number)
        assert process.wait(timeout=8) == 0
        assert not home.exists()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
