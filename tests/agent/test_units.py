"""The files that `install` writes."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from pyinfra_agent import _units
from pyinfra_agent._units import command_line, openrc_script, unit_files

SERVICE = "pyinfra-agent.service"


@pytest.fixture
def odd_python(monkeypatch):
    """An interpreter whose path has everything that systemd would take for its own."""
    monkeypatch.setattr(_units.sys, "executable", '/srv/my "env"/100%/$HOME/python')


def test_service_runs_this_interpreter_in_isolation():
    text = unit_files(252)[SERVICE]
    assert f"\nExecStart={sys.executable} -I -m pyinfra_agent serve\n" in text
    assert f"\nExecReload={sys.executable} -I -m pyinfra_agent check-config\n" in text
    assert "/usr/bin/python3" not in text.replace(sys.executable, "")


def test_path_of_the_interpreter_is_quoted_for_systemd(odd_python):
    assert '\nExecStart="/srv/my \\"env\\"/100%%/$$HOME/python" -I -m' in unit_files(252)[SERVICE]


def test_addresses_are_given_to_whoever_listens():
    listen = ["127.0.0.1:1", "[::1]:2", ":3"]
    files = unit_files(252, listen=listen)
    assert "serve --listen 127.0.0.1:1 --listen [::1]:2 --listen :3\n" in files[SERVICE]
    files = unit_files(252, listen=listen, with_socket=True)
    assert "--listen" not in files[SERVICE]
    addresses = re.findall("^ListenStream=(.*)$", files["pyinfra-agent.socket"], re.MULTILINE)
    assert addresses == ["127.0.0.1:1", "[::1]:2", "3"]


def test_directives_that_systemd_is_too_old_for_are_left_out():
    assert "RestartSteps" not in unit_files(253)[SERVICE].replace("RestartSteps= slows", "")
    assert "\nRestartSteps=8\n" in unit_files(254)[SERVICE]


def test_user_gets_a_drop_in_and_root_none():
    assert list(unit_files(252)) == [SERVICE]
    assert "\nUser=web\n" in unit_files(252, user="web")[f"{SERVICE}.d/unprivileged.conf"]


def test_openrc_script_is_one_that_a_shell_reads(odd_python):
    script = openrc_script("web", ["127.0.0.1:1"])
    assert subprocess.run(["sh", "-n"], input=script, text=True, timeout=10, check=False).returncode == 0
    shown = subprocess.run(
        ["sh", "-c", script + '\nprintf "%s|%s|%s" "$command" "$command_args" "$command_user"'],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    ).stdout
    assert shown == '/srv/my "env"/100%/$HOME/python|-I -m pyinfra_agent serve --listen 127.0.0.1:1|web'


def test_command_line_is_what_a_person_can_run():
    assert command_line(["x:1"])[1:] == ["-I", "-m", "pyinfra_agent", "serve", "--listen", "x:1"]
