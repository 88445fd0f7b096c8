"""What the agent costs while nothing happens, how fast it is ready, and that it does not grow."""

from __future__ import annotations

import os
import statistics
import subprocess
import time

from tests.systemd.helpers import SOAK

KIB, MIB = 1 << 10, 1 << 20
COMMANDS, CONNECTIONS = (100_000, 10_000) if SOAK else (600, 60)

HOLDS_SESSIONS = """
held = [connected() for _ in range(int(sys.argv[3]))]
print("open", flush=True)
sys.stdin.readline()
"""

RUNS_COMMANDS = """
import gevent
made = connected()
def work(count):
    for _ in range(count):
        assert made.run(["true"]).exit == 0
gevent.joinall([gevent.spawn(work, int(sys.argv[3]) // 8) for _ in range(8)], raise_error=True)
made.close()
"""

CONNECTS = """
for _ in range(int(sys.argv[3])):
    made = connected()
    assert made.run(["true"]).exit == 0
    made.close()
"""


def busy_seconds(machine):
    """Return the processor time that the agent has used, threads that have ended included (proc_pid_stat(5))."""
    fields = machine.container.path(f"/proc/{machine.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def memory(machine):
    return machine.status()["resident_memory_bytes"]


def milliseconds_to_ready(machine):
    machine.systemctl("restart", "pyinfra-agent")
    begun = int(machine.show("ExecMainStartTimestampMonotonic"))
    return (int(machine.show("ActiveEnterTimestampMonotonic")) - begun) / 1000


def test_agent_is_ready_soon_after_its_start(service):
    taken = statistics.median(milliseconds_to_ready(service) for _ in range(5))
    print(f"ready_ms {taken:.4g}")
    assert taken < (400 if SOAK else 1200), "400 ms on an idle machine"


def test_idle_agent_needs_little_memory_and_little_more_for_a_session(service):
    service.serves()
    idle = memory(service)
    count = 60
    holding = service.start_controller(HOLDS_SESSIONS, count, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holding.stdout.readline() == "open\n"
    each = (memory(service) - idle) / count
    holding.communicate("\n")
    print(f"idle_mib {idle / MIB:.4g}")
    print(f"session_kib {each / KIB:.4g}")
    assert idle <= 40 * MIB
    assert each <= 150 * KIB


def test_idle_agent_leaves_the_processor_alone(service):
    """Under a thousandth of a core, what announces it and the watchdog's tries included."""
    time.sleep(4)  # in which it announces itself
    before, started = busy_seconds(service), time.monotonic()
    time.sleep(120 if SOAK else 12)  # a hundredth of a second is the finest that can be seen
    share = (busy_seconds(service) - before) / (time.monotonic() - started)
    print(f"idle_share {share:.4g}")
    assert share <= 0.001


def test_agent_does_not_grow(service):
    """After a first part, in which caches fill, memory and descriptors stay what they are."""

    def work(share):
        service.controller(RUNS_COMMANDS, int(COMMANDS * share), seconds=3600)
        service.controller(CONNECTS, int(CONNECTIONS * share), seconds=3600)

    work(0.2)
    before = service.status()
    work(0.8)
    after = service.status()
    growth = after["resident_memory_bytes"] - before["resident_memory_bytes"]
    print(f"growth_kib {growth / KIB:.4g}")
    assert growth <= 2 * MIB
    assert after["open_descriptors"] <= before["open_descriptors"] + 2
    assert after["sessions"] == 0
    directory = service.container.path("/sys/fs/cgroup/system.slice/pyinfra-agent.service")
    assert len([entry for entry in directory.iterdir() if entry.is_dir()]) <= 40
