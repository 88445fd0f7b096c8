"""What can befall a machine: afterwards the agent answers again, by itself, and says what it does not know."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.systemd.helpers import eventually

LOSES_A_COMMAND = """
made = connected(resume_seconds=10)
print("connected", flush=True)
try:
    output(made, "sh", "-c", "echo run >> /root/runs; sleep 30; echo survived >> /root/runs")
except ConnectionLost as error:
    print("lost", time.time(), error, flush=True)
print(output(made, "echo", "again"))
"""

OPENS_MANY = """
import resource, socket
count = int(sys.argv[3])
wanted = count + 100
resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
held = []
for number in range(count):
    held.append(socket.create_connection((sys.argv[1], 7963), 10))
    held[-1].sendall(sys.argv[4].encode())
print("open", flush=True)
sys.stdin.readline()
"""


def test_killed_agent_is_back_and_names_what_it_does_not_know(service):
    """The controller learns within 2 s that its command's outcome is unknown; the command runs on, and only once."""
    losing = service.start_controller(LOSES_A_COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    eventually(lambda: service.processes("sleep", "30"), 10, "the command")
    killed = time.time()
    service.systemctl("kill", "--kill-who=main", "--signal=KILL", "pyinfra-agent")
    stdout, stderr = losing.communicate(timeout=20)
    assert losing.returncode == 0, stderr
    lost = next(line for line in stdout.splitlines() if line.startswith("lost"))
    assert float(lost.split()[1]) - killed < 2
    assert "whether it has finished is not known" in lost
    assert stdout.endswith("(0, 'again\\n')\n")
    assert service.processes("sleep", "30"), "a command that prints nothing lives on"
    assert service.container.path("/root/runs").read_text() == "run\n"
    assert service.show("NRestarts") == "1"


def test_command_that_is_killed_for_memory_does_not_take_the_agent(service):
    """What the out-of-memory killer does to a command is its result; the unit goes on (OOMPolicy=continue)."""
    before = service.pid
    assert service.show("OOMPolicy") == "continue"
    script = "result = connected().run(['sh', '-c', 'kill -KILL $$']); print(result.exit, result.signal)"
    assert service.controller(script).stdout == "None 9\n"
    assert service.pid == before


def test_full_disk_passes(machine):
    """With no room for anything the agent still runs commands; an upload says why it fails, and works afterwards."""
    state = machine.container.path("/var/lib")
    machine.run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/var/lib", check=True)
    assert state.is_dir()
    machine.install()
    machine.run("sh", "-c", "cat /dev/zero > /var/lib/full; mkdir /var/lib/pyinfra-agent/x", check=False)
    machine.serves()
    upload = """
import io
try:
    connected().put(io.BytesIO(b"x" * 100_000), "/var/lib/uploaded")
    print("done")
except Exception as error:
    print(type(error).__name__, error)
"""
    assert "no space left" in machine.controller(upload).stdout.lower()
    machine.systemctl("restart", "pyinfra-agent")
    machine.serves()
    machine.run("rm", "/var/lib/full", check=True)
    assert machine.controller(upload).stdout == "done\n"


def test_read_only_file_system_passes(service):
    """Commands run while everything is read-only, and an agent that cannot start there starts once it is writable."""
    places = ("/etc", "/root", "/var")
    for place in places:
        service.run("mount", "--bind", place, place, check=True)
        service.run("mount", "-o", "remount,bind,ro", place, check=True)
    try:
        service.serves()
        service.systemctl("kill", "--kill-who=main", "--signal=KILL", "pyinfra-agent")
        eventually(lambda: int(service.show("NRestarts")) >= 2, 10, "a failed start")
    finally:
        for place in places:
            service.run("mount", "-o", "remount,bind,rw", place, check=True)
    eventually(lambda: service.show("ActiveState") == "active", 35, "the agent's return")
    service.serves()


@pytest.mark.parametrize("word", ["", "pyinfra-agent"], ids=["silent", "speaking"])
@pytest.mark.parametrize("count", [10_000])
def test_many_connections_pass(service, count, word):
    """Thousands of connections lock nobody out for longer than they are there, whether they begin to speak or not."""
    before, refused = service.pid, service.status()["connections_refused"]
    opening = service.start_controller(
        OPENS_MANY, count, word, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert opening.stdout.readline() == "open\n"
    service.controller("print(output(connected(connect_seconds=15), 'echo', 'served'))")
    opening.communicate("end\n", timeout=20)
    eventually(lambda: service.status()["open_descriptors"] < 100, 20, "the connections' end")
    service.serves()
    assert service.pid == before
    if word:  # the kernel keeps silent ones
        assert service.status()["connections_refused"] > refused


def test_missing_descriptors_pass(service):
    """Without a descriptor the agent takes nobody, and nothing restarts it; with some again it serves."""
    directory = service.container.path("/etc/systemd/system/pyinfra-agent.service.d")
    directory.mkdir()
    (directory / "few.conf").write_text("[Service]\nLimitNOFILE=100\nWatchdogSec=2\n")
    service.systemctl("daemon-reload")
    service.systemctl("restart", "pyinfra-agent")
    before = service.pid
    opening = service.start_controller(
        OPENS_MANY, 300, "pyinfra-agent", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert opening.stdout.readline() == "open\n"
    eventually(lambda: "accept-failed" in service.journal, 10, "the shortage")
    time.sleep(3)
    opening.communicate("end\n", timeout=20)
    service.serves()
    assert service.pid == before
