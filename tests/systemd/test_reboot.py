"""`server.reboot` of every generation of pyinfra: the machine really reboots, and the deploy goes on."""

from __future__ import annotations

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.e2e.helpers import clean_environment
from tests.matrix.run import NotInstallable, build_wheel, make_cell
from tests.systemd.helpers import Machine, eventually

#: The newest, which is the one that runs the tests, compares uptimes; to the others any connection ends the wait.
OTHERS = ("1.7.3", "2.9.2")
VERSIONS = ("3", *OTHERS)

INTERVAL_SECONDS = 1
#: For one attempt to connect, an uptime and an operation, on a machine with other things to do.
MARGIN_SECONDS = 4
DEPLOY = f"""\
from pyinfra.operations import server

server.shell(name="Before", commands=["cat /proc/sys/kernel/random/boot_id > /root/before"])
server.reboot(name="Reboot", delay=1, interval={INTERVAL_SECONDS}, reboot_timeout=60)
server.shell(name="After", commands=["cat /proc/sys/kernel/random/boot_id > /root/after", "date +%s.%N > /root/ended"])
"""

#: Stands for `reboot`: what happens is that the agent alone ends, and systemd starts it again.
HICCUP = """\
#!/bin/sh
exec systemctl kill --kill-who=main --signal=KILL pyinfra-agent
"""

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The older generations, each in a virtual environment of its own, which are made while other things happen."""
    directory = tmp_path_factory.mktemp("cells")
    wheel = build_wheel(directory)
    with ThreadPoolExecutor() as pool:
        yield {
            version: pool.submit(make_cell, directory / version, sys.executable, version, wheel) for version in OTHERS
        }


@pytest.fixture(scope="module", params=VERSIONS)
def pyinfra(request, cells):
    """The words of the pyinfra command of one generation."""
    if request.param not in cells:
        return [Path(sys.executable).with_name("pyinfra"), "-y"]
    try:
        return [cells[request.param].result().with_name("pyinfra")]
    except NotInstallable as error:
        if "No matching distribution" in str(error):  # what pip says without a network
            pytest.skip(f"pyinfra {request.param} {error}")
        raise


@pytest.fixture(scope="module")
def rebooting(lab, home, pyinfra):
    """A machine with the service and an uptime of its own; one for each generation."""
    [container] = lab.boot(f"r{next(_numbers)}", own_clock=True)
    machine = Machine(lab, container, home)
    machine.install()
    yield machine
    machine.close()
    container.kill()


@pytest.fixture
def start_deploy(pyinfra, rebooting, home, tmp_path):
    """Starts the deploy."""
    started = []
    rebooting.run("rm", "-f", "/root/before", "/root/after", "/root/ended", check=True)

    def start():
        (tmp_path / "deploy.py").write_text(DEPLOY)
        words = [*pyinfra, f"@agent/{rebooting.address}", "deploy.py"]
        environment = clean_environment(PYINFRA_AGENT_HOME=str(home))
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(rebooting.lab.popen(*words, cwd=tmp_path, env=environment, **streams))
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


def ended(deploy, seconds=90):
    """Return what *deploy* said; it was right in the end."""
    said, _ = deploy.communicate(timeout=seconds)
    assert deploy.returncode == 0, said
    return said


def left(machine, name):
    """Return what the deploy wrote to a file."""
    return machine.container.path(f"/root/{name}").read_text()


def has_rebooted(machine):
    """Return whether the deploy has ended in another boot than it began in."""
    return left(machine, "before") != left(machine, "after")


def seconds_after_ready(machine):
    """Return the time from the agent's readiness to the end of the deploy."""
    words = ["systemctl", "show", "--value", "--timestamp=us", "--property=ActiveEnterTimestamp", "pyinfra-agent"]
    said = machine.run("env", "TZ=UTC", *words, check=True).stdout.strip()
    ready = datetime.strptime(said, "%a %Y-%m-%d %H:%M:%S.%f UTC").replace(tzinfo=timezone.utc)
    return float(left(machine, "ended")) - ready.timestamp()


def connections(machine):
    """Return how many the agent has accepted since it started."""
    status = machine.status()
    return status["connections"] if status is not None else 0


def test_deploy_goes_on_after_a_reboot(rebooting, start_deploy, record_property):
    """The next operation runs in the next boot, as soon as the agent is there again."""
    said = ended(start_deploy())
    assert has_rebooted(rebooting), said
    seconds = seconds_after_ready(rebooting)
    record_property("seconds_after_ready", seconds)
    assert 0 < seconds < INTERVAL_SECONDS + MARGIN_SECONDS, said


def test_restarted_agent_is_no_reboot(rebooting, start_deploy):
    """While the machine has yet to reboot, its agent ends and is back: the deploy waits on, until it has rebooted."""
    reboot = rebooting.container.path("/usr/local/sbin/reboot")
    reboot.write_text(HICCUP)
    reboot.chmod(0o755)
    before = rebooting.pid
    deploy = start_deploy()
    eventually(lambda: rebooting.pid not in (0, before), 30, "another agent")
    eventually(lambda: deploy.poll() is not None or connections(rebooting) >= 2, 30, "attempts to connect")
    assert deploy.poll() is None, deploy.communicate()[0]
    rebooting.container.reboot()
    said = ended(deploy)
    assert has_rebooted(rebooting), said
