"""Commands whose time is up, or whose controller is: they end with all that they started, and leave nothing."""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

import gevent
import pytest
from gevent.pool import Pool

from pyinfra_agent_connector._identity import load_or_create
from pyinfra_agent_connector.client import AgentClient
from tests.agent.cgroups import delegated_cgroup
from tests.containers import Lab, containers_or_skip
from tests.e2e.helpers import AGENT, eventually
from tests.e2e.limits import with_config

TIMEOUTS = 500
AT_ONCE = 100
IDLE_CGROUPS_MOST = 16
GRACE_SECONDS = 1
SECONDS_MOST = 30  # 4 s on two idle processors


@pytest.fixture(params=["with cgroups", "without cgroups"])
def agent(request, lab, controller):
    """An agent in a cgroup of its own that was delegated to it, or in one that was not."""
    if request.param == "without cgroups":
        agent = lab.agent(controller, prefix=with_config(lab, f"grace = {GRACE_SECONDS}\n"))
        agent.cgroup = None
        yield agent
        return
    with delegated_cgroup("e2e", enter=False) as place:
        prefix = with_config(lab, f"grace = {GRACE_SECONDS}\n", f"echo 0 >{place}/cgroup.procs")
        agent = lab.agent(controller, prefix=prefix)
        agent.cgroup = place
        assert f"with-cgroups below={place}" in agent.log.read_text()
        yield agent
        lab.close()


@pytest.fixture
def controller(lab):
    return lab.controller()


@pytest.fixture
def client(agent, controller):
    client = connect(agent, controller)
    yield client
    client.close()


def connect(agent, controller):
    client = AgentClient(agent.host, agent.port, identity=load_or_create(controller.home), check_key=lambda *_: None)
    client.connect()
    return client


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def collect(client, argv, **options):
    """Run a command; return its result and its output."""
    said = []
    result = client.run(argv, on_output=lambda stream, data: said.append(data), **options)
    return result, b"".join(said)


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return True


def cgroups_in(cgroup):
    return [path for path in cgroup.iterdir() if path.is_dir()]


def threads_of(cgroup):
    try:
        return (cgroup / "cgroup.threads").read_text()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):  # the agent has just removed it: before it was open, or after
            return ""
        raise


def test_five_hundred_timeouts_leave_no_process_zombie_descriptor_or_cgroup(agent, client):
    collect(client, ["true"])
    before = agent.descriptors
    scripts = [["sleep", "60"], ["sh", "-c", "sleep 60 & setsid sleep 60 & sleep 60; :"]]
    started = time.monotonic()
    pool = Pool(AT_ONCE)
    results = pool.map(
        lambda number: client.run(scripts[number % 2], timeout_seconds=0.01 + number % 7 / 100), range(TIMEOUTS)
    )
    seconds = time.monotonic() - started
    print(f"{TIMEOUTS} timeouts, {AT_ONCE} at once: {seconds:.1f} s")
    assert {result.reason for result in results} == {"timeout"}
    assert seconds < SECONDS_MOST
    eventually(lambda: children(agent.process.pid) == [], what="no child left")
    eventually(lambda: agent.descriptors <= before, what="no descriptor left")
    if agent.cgroup is not None:
        assert len(cgroups_in(agent.cgroup)) <= IDLE_CGROUPS_MOST
        assert all(threads_of(path) == "" for path in cgroups_in(agent.cgroup))
    result, said = collect(client, ["echo", "well"])
    assert (result.exit, said) == (0, b"well\n")


def test_timeout_spares_the_daemon_of_an_earlier_command(agent, client):
    _, said = collect(client, ["sh", "-c", "setsid sleep 300 >/dev/null 2>&1 & echo $!"])
    daemon = int(said)
    stubborn = "setsid sh -c 'trap \"\" TERM; echo $$; sleep 300' & trap '' TERM; wait; sleep 300"
    started = time.monotonic()
    result, said = collect(client, ["sh", "-c", stubborn], timeout_seconds=0.3)
    assert GRACE_SECONDS < time.monotonic() - started < GRACE_SECONDS + 2
    assert result.reason == "timeout"
    assert is_gone(int(said))
    assert not is_gone(daemon)
    os.kill(daemon, 9)
    if agent.cgroup is not None:
        eventually(lambda: len(cgroups_in(agent.cgroup)) < 2, what="its cgroup gone")


def test_agent_that_stops_leaves_no_cgroup_but_those_that_are_lived_in(agent, client):
    _, said = collect(client, ["sh", "-c", "setsid sleep 300 >/dev/null 2>&1 & echo $!"])
    collect(client, ["true"])
    agent.stop()
    if agent.cgroup is not None:
        # Beside it stands `.control`, which systemd wants, and removes with the unit.
        (kept,) = agent.cgroup.glob("command-*")
        assert (kept / "cgroup.threads").read_text() == said.decode()
    os.kill(int(said), 9)


@pytest.mark.parametrize(("on_lost", "lives"), [("keep", True), ("kill", False)])
def test_vanished_controllers_command_runs_on_or_is_ended_as_configured(lab, controller, on_lost, lives):
    config = f'on_lost = "{on_lost}"\non_lost_after = 0.2\nsession_ttl = 0.5\n'
    agent = lab.agent(controller, prefix=with_config(lab, config))
    script = f"echo $$ >{lab.directory}/pid; sleep 60 & setsid sleep 60 & echo on; wait; :"
    code = (
        "import sys\n"
        "from pyinfra_agent_connector._identity import agent_home, load_or_create\n"
        "from pyinfra_agent_connector.client import AgentClient\n"
        "client = AgentClient('127.0.0.1', int(sys.argv[1]), identity=load_or_create(agent_home()),"
        " check_key=lambda *_: None)\n"
        "client.run(['sh', '-c', sys.argv[2]], on_output=lambda *_: __import__('os')._exit(9))\n"
    )
    assert controller.python(code, agent.port, script).status == 9
    pid = int((lab.directory / "pid").read_text())
    descendants = [pid, *map(int, children(pid))]
    assert len(descendants) == 3
    time.sleep(1)
    if not lives:
        eventually(lambda: all(map(is_gone, descendants)), what="the end of its commands")
    assert not any(map(is_gone, descendants)) or not lives
    for pid in descendants if lives else ():
        os.kill(pid, 9)


def test_cancelled_request_ends_its_command_at_once(agent, client):
    said = []
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.5):
        client.run(["sh", "-c", "setsid sleep 60 & echo $!; wait"], on_output=lambda stream, data: said.append(data))
    gevent.sleep(0.2)  # the cancel is written by another greenlet
    eventually(lambda: is_gone(int(b"".join(said))), what="the grandchild's end")


# -- under systemd

UNIT = f"""\
[Service]
Type=exec
ExecStart={AGENT} serve --listen 127.0.0.1:7963
Delegate=yes
KillMode=process
"""

CLIENT = """\
import sys
from pyinfra_agent_connector._identity import agent_home, load_or_create
from pyinfra_agent_connector.client import AgentClient

client = AgentClient("127.0.0.1", 7963, identity=load_or_create(agent_home()), check_key=lambda *_: None)
client.connect()
seconds = float(sys.argv[2]) if sys.argv[2:] else None
ended = client.run(
    ["sh", "-c", sys.argv[1]], on_output=lambda stream, data: print(data.decode(), end=""), timeout_seconds=seconds
)
print(ended.reason)
client.close()
"""


@pytest.fixture(scope="module")
def machine():
    """A machine that systemd booted, with an agent as a service that was delegated its cgroup."""
    containers_or_skip()
    with Lab() as lab:
        (machine,) = lab.boot("web1")
        machine.path("/etc/systemd/system/agent.service").write_text(UNIT)
        machine.path("/root/client.py").write_text(CLIENT)
        key = machine.run(AGENT, "identity", check=True).stdout.strip()
        machine.run(AGENT, "authorize", key, check=True)
        machine.run("useradd", "--create-home", "bob", check=True)
        machine.run("systemctl", "daemon-reload", check=True)
        restart(machine, "start")
        yield machine


def restart(machine, how="restart"):
    """Start the service (again), and wait until it listens."""
    machine.run("systemctl", how, "agent", check=True)
    eventually(lambda: machine.run("sh", "-c", "ss -tln | grep -q 127.0.0.1:7963").status == 0, what="listening")


def ask(machine, script, *seconds):
    return machine.run(sys.executable, "/root/client.py", script, *seconds, check=True).stdout.splitlines()


@pytest.mark.parametrize("switch", ["su - bob -c", "su bob -c", "sudo -n -i -u bob sh -c"])
def test_tree_that_left_its_cgroup_through_pam_is_ended(machine, switch):
    """pam_systemd moves what su and sudo start to a session's scope."""
    *said, reason = ask(machine, f"{switch} 'cat /proc/self/cgroup; setsid sleep 60.1 & sleep 60.2'", "1.5")
    (place,) = [line for line in said if line.startswith("0::")]
    assert "/session-" in place
    assert reason.endswith("timeout")  # su says something without a newline
    assert machine.run("pgrep", "-f", "^sleep 60").stdout == ""


def test_restart_of_the_service_spares_a_daemon_and_its_cgroup_goes_when_it_ends(machine):
    daemon, place, _ = ask(machine, "setsid sleep 300 >/dev/null 2>&1 & echo $!; tail -n 1 /proc/self/cgroup")
    cgroup = machine.path(f"/sys/fs/cgroup{place.removeprefix('0::')}")
    restart(machine)
    assert (cgroup / "cgroup.threads").read_text() != ""
    assert ask(machine, "tail -n 1 /proc/self/cgroup") != [place, "exited"]
    machine.run("kill", "-9", daemon, check=True)
    ask(machine, "true")  # its parent is systemd now: the agent does not see it die, and looks when it needs a cgroup
    assert not cgroup.exists()
