"""Limits for each command, where the kernel of the container lets systemd keep them."""

from __future__ import annotations

import pytest

from tests.systemd.helpers import eventually

NEEDS = "the kernel offers no {0} controller here: max_{1} cannot be tried"


@pytest.fixture
def limited(machine):
    """A machine whose commands may use 64 MiB and 20 tasks."""
    offered = machine.run("cat", "/sys/fs/cgroup/cgroup.controllers").stdout.split()
    for controller, key in (("memory", "memory"), ("pids", "tasks")):
        if controller not in offered:
            # Not a skip, which CI refuses: no container on this kernel can do it, whatever is installed.
            pytest.xfail(NEEDS.format(controller, key))
    machine.configure('max_memory = "64M"\nmax_tasks = 20\n')
    machine.install()
    return machine


def test_limits_that_cannot_be_kept_are_refused(machine):
    """Where the kernel offers no controller the agent does not start as if there were limits, and says why."""
    offered = machine.run("cat", "/sys/fs/cgroup/cgroup.controllers").stdout.split()
    machine.configure('max_memory = "64M"\n')
    done = machine.agent("install")
    if "memory" in offered:
        assert done.status == 0
        assert "memory.max" in machine.run("sh", "-c", "ls /sys/fs/cgroup/system.slice/*").stdout
    else:
        assert done.status == 1
        assert "max_memory cannot be kept here: the kernel offers no memory controller" in machine.journal


def test_command_beyond_its_memory_is_killed_and_nothing_else(limited):
    before = limited.pid
    script = "result = connected().run(['sh', '-c', 'head -c 200M /dev/zero | tail']); print(result.exit)"
    assert limited.controller(script).stdout != "0\n"
    assert limited.pid == before
    limited.serves()


def test_command_with_limits_does_not_stop_a_restart(limited):
    limited.start_controller("output(connected(), 'sleep', '60')")
    eventually(lambda: limited.processes("sleep", "60"), 10, "the command")
    limited.systemctl("restart", "pyinfra-agent")
    limited.serves()
    assert limited.processes("sleep", "60")
