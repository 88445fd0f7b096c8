"""Killing everything that a command started, and nothing else."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from pyinfra_agent._kill import ProcessTree, become_subreaper
from pyinfra_agent._process import Exit, Supervisor
from pyinfra_agent._pty import PtySize
from pyinfra_agent._spawn import Command, Stdin

ENV = {b"PATH": b"/usr/local/bin:/usr/bin:/bin"}
PR_SET_CHILD_SUBREAPER = 36

pytestmark = pytest.mark.skipif(shutil.which("setsid") is None, reason="setsid is not installed")


@pytest.fixture(autouse=True)
def _subreaper():
    """The agent is a subreaper; the process that runs the tests is one only here."""
    become_subreaper()
    yield
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def supervisor(nursery):
    return Supervisor(nursery)


@pytest.fixture
def cgroup():
    """A cgroup of its own for one command, removed afterwards."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    places = [Path(line.split()[1]) for line in mounts if line.split()[2] == "cgroup2"]
    for place in places:
        directory = place / f"pyinfra-agent-test-{os.getpid()}"
        try:
            directory.mkdir()
        except OSError:
            continue
        yield directory
        directory.rmdir()
        return
    pytest.skip("no cgroup v2 hierarchy that may be written to")


def sh(script, **fields):
    return Command([b"sh", b"-c", script.encode()], ENV, **fields)


async def read_pids(process, count):
    """Read `count` process ids, one a line, from stdout."""
    seen = b""
    with trio.fail_after(30):
        while seen.count(b"\n") < count:
            output = await process.read(4096)
            assert output is not None, f"ended after {seen!r}"
            seen += output[1]
    return [int(line) for line in seen.split()]


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except FileNotFoundError:
        return False


def is_reaped(pid):
    return not os.path.exists(f"/proc/{pid}")


async def until(condition):
    """Wait for what the kernel tells nobody about."""
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for
            await trio.sleep(0.001)


def open_descriptors():
    return sorted(os.listdir("/proc/self/fd"))


STUBBORN = "setsid sh -c 'trap \"\" TERM HUP INT; echo $$; while :; do sleep 1; done' &"


async def test_tree_gets_its_grace_and_ends_by_itself(supervisor):
    process = supervisor.spawn(sh("trap 'exit 3' TERM; echo $$; while :; do sleep 0.02; done"))
    await read_pids(process, 1)
    start = trio.current_time()
    assert await process.terminate_tree(grace_seconds=30) == set()
    assert trio.current_time() - start < 5
    assert await process.wait() == Exit(3, None)
    process.abandon()


async def test_grandchild_in_its_own_session_that_ignores_sigterm_is_killed(supervisor):
    process = supervisor.spawn(sh(f"{STUBBORN} echo $$; wait"))
    pids = await read_pids(process, 2)
    assert await process.terminate_tree(grace_seconds=0.1) == set()
    assert not any(map(is_alive, pids))
    assert (await process.wait()).signal == signal.SIGTERM
    process.abandon()


async def test_kill_is_immediate(supervisor):
    process = supervisor.spawn(sh(f"trap '' TERM; {STUBBORN} echo $$; wait"))
    pids = await read_pids(process, 2)
    process.kill_tree()
    assert await process.wait() == Exit(None, signal.SIGKILL)
    await until(lambda: not any(map(is_alive, pids)))
    process.abandon()


async def test_cancelled_termination_cuts_the_grace_and_kills_all_the_same(supervisor):
    process = supervisor.spawn(sh(f"trap '' TERM; {STUBBORN} echo $$; wait"))
    pids = await read_pids(process, 2)
    with trio.move_on_after(0.05) as scope:
        await process.terminate_tree(grace_seconds=60)
    assert scope.cancelled_caught
    assert not any(map(is_alive, pids))
    process.abandon()


async def test_stopped_command_is_ended_within_its_grace(supervisor):
    process = supervisor.spawn(sh("trap 'exit 3' TERM; echo $$; kill -STOP $$; while :; do sleep 0.02; done"))
    await read_pids(process, 1)
    await process.terminate_tree(grace_seconds=30)
    assert await process.wait() == Exit(3, None)
    process.abandon()


async def test_daemon_of_an_earlier_command_is_untouched(supervisor):
    """It is the agent's child by then, just as the orphans of the command that is killed."""
    earlier = supervisor.spawn(sh("setsid sleep 300 >/dev/null 2>&1 & echo $!; sleep 300 >/dev/null 2>&1 & echo $!"))
    daemons = await read_pids(earlier, 2)
    await earlier.wait()
    earlier.abandon()
    later = supervisor.spawn(sh(f"{STUBBORN} echo $$; wait"))
    pids = await read_pids(later, 2)
    assert await later.terminate_tree(grace_seconds=0.05) == set()
    later.abandon()
    assert not any(map(is_alive, pids))
    assert all(map(is_alive, daemons))
    for pid in daemons:
        os.kill(pid, signal.SIGKILL)


async def test_orphan_that_kept_the_session_is_killed_after_the_main_process_is_gone(supervisor):
    """The timeout covers the drain too. An orphan in a session of its own cannot be told from a daemon."""
    process = supervisor.spawn(sh("sleep 300 & echo $!; setsid sh -c 'echo $$; exec sleep 300' &"))
    kept, left = await read_pids(process, 2)
    await process.wait()
    await process.terminate_tree(grace_seconds=5)
    assert not is_alive(kept)
    assert is_alive(left)
    os.kill(left, signal.SIGKILL)
    process.abandon()


async def test_terminal_and_its_children_are_killed(supervisor):
    process = supervisor.spawn(sh(f"trap '' TERM HUP; {STUBBORN} echo $$; wait", pty=PtySize(24, 80)))
    pids = await read_pids(process, 2)
    assert await process.terminate_tree(grace_seconds=0.05) == set()
    assert not any(map(is_alive, pids))
    process.abandon()


async def test_fork_bomb_is_killed(supervisor):
    """Every process of it goes on forking while it is hunted; bounded to 256 processes, in case it is not caught."""
    bomb = (
        "import os, time\n"
        "print(os.getpid(), flush=True)\n"
        "generation = 0\n"
        "while generation < 8:\n"
        "    os.fork()\n"
        "    generation += 1\n"
        "    time.sleep(0.02)\n"
        "time.sleep(300)\n"
    )
    process = supervisor.spawn(Command([os.fsencode(sys.executable), b"-c", bomb.encode()], ENV))
    await read_pids(process, 1)
    assert await process.terminate_tree(grace_seconds=0) == set()
    process.abandon()
    await until(lambda: not supervisor.discarding)  # whoever lived would hold the outputs open


async def test_cgroup_reaches_an_orphan_that_nothing_else_attributes(supervisor, cgroup):
    script = "read go; setsid sleep 300 & echo $!; setsid sh -c 'sleep 300 & echo $!'; exit 0"
    process = supervisor.spawn(sh(script, cgroup=cgroup, stdin=Stdin.PIPE))
    await process.write_stdin(b"go\n")
    pids = await read_pids(process, 2)
    await process.wait()
    assert await process.terminate_tree(grace_seconds=0) == set()
    assert not any(map(is_alive, pids))
    process.abandon()


async def test_cgroup_does_not_limit_the_walk(supervisor, cgroup):
    """A descendant that left the cgroup, as one of sudo does through PAM, is killed with the rest."""
    script = f"sh -c 'echo $$ >{cgroup.parent}/cgroup.procs; echo $$; exec setsid -w sleep 300' & echo $$; wait"
    process = supervisor.spawn(sh(script, cgroup=cgroup))
    pids = await read_pids(process, 2)
    assert await process.terminate_tree(grace_seconds=0) == set()
    assert not any(map(is_alive, pids))
    process.abandon()


async def test_missing_cgroup_is_no_obstacle(supervisor, tmp_path):
    process = supervisor.spawn(sh("echo $$; sleep 300", cgroup=tmp_path / "absent"))
    pids = await read_pids(process, 1)
    assert await process.terminate_tree() == set()
    assert not is_alive(pids[0])
    process.abandon()


def test_reused_process_id_is_not_signalled():
    """A process is its id and its start time."""
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as victim:
        tree = ProcessTree(victim.pid)
        assert tree.find() == {victim.pid}
        tree._known[victim.pid] -= 1  # as if it had started earlier than the one there now
        tree.send(signal.SIGKILL, {victim.pid})
        with pytest.raises(subprocess.TimeoutExpired):
            victim.wait(0.1)
        victim.kill()


def test_session_is_not_believed_once_its_number_belongs_to_somebody_else():
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as stranger:
        tree = ProcessTree(stranger.pid)
        tree.leader_reaped = True
        assert tree.find() == set()
        assert tree.kill() == set()
        assert stranger.poll() is None
        stranger.kill()


async def test_process_name_with_parentheses_is_parsed(supervisor, tmp_path):
    program = tmp_path / "a) Z 1 (b"
    shutil.copy("/bin/sleep", program)
    process = supervisor.spawn(Command([os.fsencode(program), b"300"], ENV))
    assert await process.terminate_tree() == set()
    assert await process.wait() == Exit(None, signal.SIGTERM)
    process.abandon()


async def test_thirty_kills_leave_no_descriptor_and_no_zombie(supervisor):
    before = open_descriptors()
    pids = []
    for number in range(30):
        pty = PtySize(24, 80) if number % 10 == 0 else None
        process = supervisor.spawn(sh(f"{STUBBORN} echo $$; wait", pty=pty))
        pids += await read_pids(process, 2)
        assert await process.terminate_tree(grace_seconds=0.01) == set()
        process.abandon()
    await until(lambda: not supervisor.discarding and not supervisor.processes)
    await trio.testing.wait_all_tasks_blocked()
    supervisor.reap_orphans()
    assert open_descriptors() == before
    assert all(map(is_reaped, pids))


async def test_orphans_are_reaped_as_they_die(supervisor, nursery):
    nursery.start_soon(supervisor.reap_orphans_forever)
    process = supervisor.spawn(sh("setsid sleep 300 >/dev/null 2>&1 & echo $!"))
    (orphan,) = await read_pids(process, 1)
    await process.wait()
    process.abandon()
    os.kill(orphan, signal.SIGKILL)
    await until(lambda: is_reaped(orphan))
    nursery.cancel_scope.cancel()
