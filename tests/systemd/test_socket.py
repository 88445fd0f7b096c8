"""Socket activation: connections wait while the agent is away, and none is refused."""

from __future__ import annotations

import subprocess

CONNECT_IN_A_LOOP = """
import socket
slowest, count, lost = 0.0, 0, 0
until = time.monotonic() + float(sys.argv[3])
print("begun", flush=True)
while time.monotonic() < until:
    started = time.monotonic()
    socket.create_connection((sys.argv[1], 7963), 10).close()
    try:
        made = connected(connect_seconds=10)
        assert output(made, "echo", "served") == (0, "served\\n")
        made.close()
    except (ConnectionLost, Unreachable) as error:  # the agent was killed under the handshake, or the command
        assert "nothing listens" not in str(error)
        lost += 1
    slowest, count = max(slowest, time.monotonic() - started), count + 1
print(count, slowest, lost)
"""


def test_no_connection_is_refused_while_the_agent_restarts(machine):
    """A controller connects in a loop while the agent is restarted, killed, and stopped and started."""
    machine.install("--socket")
    looping = machine.start_controller(CONNECT_IN_A_LOOP, 5, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert looping.stdout.readline() == "begun\n"
    machine.systemctl("restart", "pyinfra-agent")
    machine.systemctl("kill", "--kill-who=main", "--signal=KILL", "pyinfra-agent")
    machine.systemctl("restart", "pyinfra-agent")
    stdout, stderr = looping.communicate(timeout=30)
    assert looping.returncode == 0, stderr
    count, slowest, lost = stdout.split()
    assert int(count) > 10
    assert float(slowest) < 5
    assert int(lost) <= 3


def test_first_connection_starts_the_agent(machine):
    machine.install("--socket", "--listen", f"{machine.address}:7963")
    machine.systemctl("stop", "--quiet", "pyinfra-agent")
    assert machine.show("ActiveState") == "inactive"
    machine.serves()
    assert f"listening address={machine.address}:7963 " in machine.journal
    assert machine.status()["listening"] == [f"{machine.address}:7963"]


def test_socket_can_be_added_and_taken_back(service):
    service.install("--socket")
    assert service.show("ActiveState", "pyinfra-agent.socket") == "active"
    service.serves()
    service.install()
    assert service.show("LoadState", "pyinfra-agent.socket") == "not-found"
    service.serves()
