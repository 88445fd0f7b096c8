"""What a look at a target says, before pyinfra and a machine are there."""

from __future__ import annotations

import os
import subprocess

import pytest

from pyinfra_agent_connector._installation import (
    AgentInstallation,
    Installation,
    certificate_script,
    install_script,
    note_script,
    remove_script,
)


def look(python, path=os.environ["PATH"]):
    """Run the script as a shell on a target does."""
    script = AgentInstallation().command(python=str(python))
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, env={"PATH": path}, check=False)
    assert done.returncode == 0, done.stderr
    return AgentInstallation().process(done.stdout.splitlines())


def stub(directory, text):
    path = directory / "py thon"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_look_finds_this_python():
    found = look("python3")

    assert found.uid == os.getuid()
    assert found.python >= (3, 10)
    assert "venv" in found.has


@pytest.mark.parametrize(
    ("text", "python"),
    [("echo 3.8", (3, 8)), ("echo 3.10", (3, 10)), ("exit 127", None), ("echo what is this", None)],
)
def test_look_tells_versions_apart(tmp_path, text, python):
    assert look(stub(tmp_path, text)).python == python


def test_look_without_python_says_so():
    found = look("/nowhere/python3")

    assert found.python is None
    assert found.has.isdisjoint({"venv", "ensurepip"})


def test_parse_reads_every_line():
    lines = [
        *("uid=0", "python=3.11", "has=venv", "has=systemd", "key=pyinfra-agent-key AAA=", "noise"),
        *("authorized=# comment", 'authorized=from="10.0.0.0/8" pyinfra-agent-key BBB= a=b'),
        *("certificate=pyinfra-agent-certificate CCC=", "version=1.2", "note=1.2 --listen :1", "state=/s"),
    ]

    assert Installation.parse(lines) == Installation(
        uid=0,
        python=(3, 11),
        has=frozenset({"venv", "systemd"}),
        key_line="pyinfra-agent-key AAA=",
        authorized=("# comment", 'from="10.0.0.0/8" pyinfra-agent-key BBB= a=b'),
        certificate="pyinfra-agent-certificate CCC=",
        state_dir="/s",
        version="1.2",
        note="1.2 --listen :1",
    )


def test_parse_of_nothing_is_a_failed_look():
    assert Installation.parse([]).uid is None


@pytest.mark.parametrize(
    "script",
    [
        AgentInstallation().command(python="it's; here"),
        install_script("it's; here", "1.0'; reboot", wheels_sha256="0" * 64),
        install_script("python3", "1.0", wheels_sha256=None),
        certificate_script("/var/lib/it's", "line'; reboot"),
        note_script("1.0'; reboot"),
        remove_script(),
    ],
)
def test_script_is_one_for_every_shell(script):
    """A shell can read it whatever stands in it, and nothing that was put in is taken for a command."""
    checked = subprocess.run(["/bin/sh", "-n", "-c", script], capture_output=True, text=True, check=False)

    assert (checked.returncode, checked.stderr) == (0, "")
    assert "\nreboot" not in script


def test_certificate_script_writes_the_line_whole(tmp_path):
    subprocess.run(["/bin/sh", "-c", certificate_script(str(tmp_path), "a line's %s")], check=True)

    assert (tmp_path / "certificate").read_text() == "a line's %s\n"
    assert os.listdir(tmp_path) == ["certificate"]
