"""Out of memory: the kernel's killer ends the command that ate it, and the agent lives on."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.systemd.helpers import eventually

LIMIT_BYTES = 128 << 20

#: `tail` keeps what it reads until there is a line's end. Should nothing limit it, it fails at four times as much.
EATER = f"ulimit -v {4 * LIMIT_BYTES >> 10}; exec tail /dev/zero"


def memory_hierarchy():
    """Return where version 1's memory controller is mounted; None if it is not."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[0] == "cgroup" and "memory" in right.split()[-1].split(","):
            return Path(left.split()[4])
    return None


def outer_pid(container, pid):
    """Return the id that a process of the container has on this machine."""
    namespace = os.readlink(f"/proc/{container.leader}/ns/pid")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "ns/pid") == namespace:
                ids = re.search(r"^NSpid:\s+(.*)$", (process / "status").read_text(), re.MULTILINE)
                if ids[1].split()[-1] == str(pid):
                    return int(process.name)
        except OSError:  # it has ended
            continue
    raise AssertionError(f"{container} has no process {pid}")


def counted(file):
    """Return how many processes the killer has ended, which both versions write in the same way."""
    return int(dict(line.split() for line in file.read_text().splitlines())["oom_kill"])


def is_removed(group):
    try:
        group.rmdir()
    except OSError:  # what has just died may hold it for a little longer
        return False
    return True


@pytest.fixture
def killed(service):
    """How many processes the killer has ended, as a function, of an agent that has little memory for all it runs."""
    hierarchy = memory_hierarchy()
    if hierarchy is not None:
        # Beside the container's own cgroups, which are of version 2.
        group = hierarchy / f"{service.lab.namespace}-{service.container.name}"
        group.mkdir()
        try:
            (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
            (group / "cgroup.procs").write_text(str(outer_pid(service.container, service.pid)))
            yield lambda: counted(group / "memory.oom_control")
        finally:
            service.container.kill()
            eventually(lambda: is_removed(group), 10, "the end of all in the group")
    elif "memory" in service.run("cat", "/sys/fs/cgroup/cgroup.controllers").stdout.split():
        service.systemctl("set-property", "--runtime", "pyinfra-agent", f"MemoryMax={LIMIT_BYTES}")
        events = service.container.path("/sys/fs/cgroup/system.slice/pyinfra-agent.service/memory.events")
        yield lambda: counted(events)
    else:
        # Not a skip, which CI refuses: no container on this kernel can do it, whatever is installed.
        pytest.xfail("the kernel offers no memory controller here: nothing can be short of memory but all of it")


def test_command_that_eats_all_memory_is_killed_and_nothing_else(service, killed):
    """The real killer, of the kernel: its victim's end is the command's result, and the unit goes on."""
    before = service.pid
    script = f"result = connected().run(['sh', '-c', {EATER!r}]); print(result.exit, result.signal)"
    assert service.controller(script).stdout == "None 9\n"
    assert killed() == 1
    service.serves()
    assert service.pid == before
    assert (service.show("ActiveState"), service.show("Result")) == ("active", "success")


def test_agent_is_the_last_to_be_killed_and_its_commands_are_not(service):
    assert service.show("OOMPolicy") == "continue"
    assert service.show("OOMScoreAdjust") == "-900"
    # Some kernels let not even root of a container lower a score; systemd then leaves it as it is.
    may_lower = service.run("sh", "-c", "echo -900 > /proc/self/oom_score_adj").status == 0
    score = service.run("cat", f"/proc/{service.pid}/oom_score_adj").stdout
    assert score == ("-900\n" if may_lower else "0\n")
    script = "print(output(connected(), 'cat', '/proc/self/oom_score_adj'))"
    assert service.controller(script).stdout == "(0, '0\\n')\n"
