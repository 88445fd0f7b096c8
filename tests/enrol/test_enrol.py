"""A machine that is reached by SSH, and by its agent from then on; one after the other, on one machine."""

from __future__ import annotations

from tests.enrol.helpers import TARGET_PYTHON, changed, failed, succeeded, unchanged

DEPLOY = """
from pyinfra import host
from pyinfra.operations import files
from pyinfra_agent_connector import enrol

enrol(name="Let the agent in", wheel_dir={wheels!r}, python={python!r})
files.file(name="Go on", path="/root/went-on")
"""


def test_enrol_brings_the_agent_and_pins_it_and_unenrol_leaves_nothing(user, target):
    """The whole life: enrolled, used, enrolled again without a change, and taken away."""
    before = target.left_overs()

    text = changed(user.enrol())

    assert f"@agent/{user.name} answers" in text
    (pin,) = user.pins()
    key = target.run("/opt/pyinfra-agent/bin/pyinfra-agent", "key").stdout.strip()
    assert pin.startswith(f"{user.name} {' '.join(key.split()[:2])}")
    assert target.container.name in succeeded(user.agent("fact", "server.Hostname"))
    assert target.run("systemctl", "is-enabled", "pyinfra-agent").stdout.strip() == "enabled"
    process = target.run("systemctl", "show", "--value", "-p", "MainPID", "pyinfra-agent").stdout

    unchanged(user.enrol())

    assert target.run("systemctl", "show", "--value", "-p", "MainPID", "pyinfra-agent").stdout == process
    assert user.pins() == [pin]

    changed(user.unenrol())

    assert target.left_overs() == before
    assert user.pins() == []
    assert target.run("systemctl", "status", "pyinfra-agent").status == 4  # no such unit
    unchanged(user.unenrol())


def test_enrol_in_a_deploy_works_and_what_stopped_is_started(user, target):
    """In a deploy it is an operation like others; what stands in its way on the machine is repaired."""
    script = user.directory / "deploy.py"
    script.write_text(DEPLOY.format(wheels=str(user.wheels), python=str(TARGET_PYTHON)))
    succeeded(user.ssh("deploy.py"))
    assert target.exists("/root/went-on")

    target.run("systemctl", "disable", "--now", "pyinfra-agent", check=True)
    changed(user.enrol())
    succeeded(user.agent("fact", "server.Hostname"))

    # As if the connection had been lost while pip ran.
    target.run("rm", "-r", "/opt/pyinfra-agent/installed", check=True)
    target.run("sh", "-c", "rm -r /opt/pyinfra-agent/lib/python3*/site-packages/trio", check=True)
    changed(user.enrol())
    succeeded(user.agent("fact", "server.Hostname"))

    other = user.directory / "other"
    refused = user.agent("fact", "server.Hostname", PYINFRA_AGENT_HOME=other)
    failed(refused, "does not let this controller in")
    changed(user.enrol(PYINFRA_AGENT_HOME=other))  # a second controller: nothing is installed for it
    succeeded(user.agent("fact", "server.Hostname", PYINFRA_AGENT_HOME=other))
    succeeded(user.agent("fact", "server.Hostname"))
    succeeded(user.unenrol())


def test_enrol_fails_on_a_machine_where_it_cannot_succeed(user, target):
    """One line each, before anything was done there."""
    before = target.left_overs()
    failed(user.enrol(python="/nowhere/python3"), "there is no /nowhere/python3 on this host", "Python 3.10")

    target.run("sh", "-c", "printf '#!/bin/sh\\necho 3.8\\n' > /root/old && chmod +x /root/old", check=True)
    failed(user.enrol(python="/root/old"), "/root/old on this host is Python 3.8, and the agent needs 3.10")

    failed(user.enrol(wheel_dir=user.directory), "has no pyinfra_agentd-", "pip wheel")
    failed(user.enrol("--sudo", "--sudo-user", "nobody"), "removed by root", "--sudo")

    target.run("mkdir", "/opt/pyinfra-agent", check=True)
    failed(user.enrol(), "/opt/pyinfra-agent on this host is no virtual environment")
    target.run("rmdir", "/opt/pyinfra-agent", check=True)
    assert target.left_overs() == before

    user.home.mkdir(exist_ok=True)
    elsewhere = "pyinfra-agent-key hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo= elsewhere"
    (user.home / "known_agents").write_text(f"{user.name} {elsewhere}\n")
    failed(user.enrol(), f"{user.name} is pinned with the key", f"pyinfra-agent trust remove {user.name}")
    assert target.left_overs() == before


def test_enrol_says_no_where_the_agent_is_not_reached(user, target):
    """It runs, but not where this controller can see it: that is a failure, and what is missing is said."""
    failed(user.enrol("listen=127.0.0.1:7963"), "@agent/", "is not reached from here")
    changed(user.enrol())  # on every address, as nothing else is asked for
    succeeded(user.unenrol())
