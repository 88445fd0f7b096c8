"""Killing everything that a command started, and nothing else."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import signal
import subprocess
import sys

import pytest
import trio
import trio.testing

from pyinfra_agent import _kill
from pyinfra_agent._cgroup import open_cgroups
from pyinfra_agent._kill import ProcessTree, become_subreaper
from pyinfra_agent._process import Exit
from pyinfra_agent._pty import PtySize
from pyinfra_agent._spawn import Command, Stdin
from pyinfra_agent._supervisor import Supervisor
from tests.agent.cgroups import delegated_cgroup

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
def contained(nursery):
    """A supervisor whose commands have cgroups of their own."""
    with delegated_cgroup():
        cgroups = open_cgroups()
        yield Supervisor(nursery, cgroups)
        cgroups.close()


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


async def test_child_that_is_born_after_the_look_gets_the_signal_with_its_group(supervisor):
    process = supervisor.spawn(sh("read go; sleep 300 & echo $!; wait", stdin=Stdin.PIPE))
    members = process._tree.find()
    await process.write_stdin(b"go\n")
    (born,) = await read_pids(process, 1)
    assert born not in members
    process._tree.send(signal.SIGTERM, members)
    await until(lambda: not is_alive(born))
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


async def test_cgroup_reaches_an_orphan_that_nothing_else_attributes(contained):
    process = contained.spawn(sh("setsid sleep 300 & echo $!; setsid sh -c 'sleep 300 & echo $!'; exit 0"))
    pids = await read_pids(process, 2)
    await process.wait()
    assert await process.terminate_tree(grace_seconds=0) == set()
    assert not any(map(is_alive, pids))
    process.abandon()


async def test_cgroup_does_not_limit_the_walk(contained):
    """A descendant that left the cgroup, as one of sudo does through PAM, is killed with the rest."""
    outside = contained._cgroups.own
    script = f"sh -c 'echo $$ >{outside}/cgroup.procs; echo $$; exec setsid -w sleep 300' & echo $$; wait"
    process = contained.spawn(sh(script))
    pids = await read_pids(process, 2)
    assert not process._cgroup.threads().issuperset(pids)
    assert await process.terminate_tree(grace_seconds=0) == set()
    assert not any(map(is_alive, pids))
    process.abandon()


async def test_chain_that_forks_and_exits_faster_than_a_look_is_caught_by_its_cgroup(contained):
    chain = (
        "import os\n"
        "print(os.getpid(), flush=True)\n"
        "for link in range(200_000):\n"  # bounded, in case it is not caught
        "    if os.fork():\n"
        "        os._exit(0)\n"
        "    os.setsid()\n"
    )
    process = contained.spawn(Command([os.fsencode(sys.executable), b"-c", chain.encode()], ENV))
    await read_pids(process, 1)
    assert process._cgroup.is_populated()
    await process.terminate_tree(grace_seconds=0)
    assert not process._cgroup.is_populated()
    process.abandon()
    with trio.fail_after(5):
        await until(lambda: not contained.discarding)  # whoever lived would hold the outputs open


async def test_threads_of_one_process_are_no_obstacle(contained):
    script = "import threading, time\nfor _ in range(5): threading.Thread(target=time.sleep, args=(300,)).start()\n"
    script += "print(threading.get_native_id(), flush=True)\n"
    process = contained.spawn(Command([os.fsencode(sys.executable), b"-c", script.encode()], ENV))
    (pid,) = await read_pids(process, 1)
    assert len(process._cgroup.threads()) == 6
    assert process._tree.find() == {pid}
    assert await process.terminate_tree(grace_seconds=1) == set()
    process.abandon()


async def test_daemon_of_an_earlier_command_is_untouched_in_its_cgroup(contained):
    earlier = contained.spawn(sh("setsid sleep 300 >/dev/null 2>&1 & echo $!"))
    (daemon,) = await read_pids(earlier, 1)
    await earlier.wait()
    earlier.abandon()
    later = contained.spawn(sh(f"{STUBBORN} echo $$; wait"))
    assert later._cgroup.path != earlier._cgroup.path
    await read_pids(later, 2)
    assert await later.terminate_tree(grace_seconds=0.05) == set()
    later.abandon()
    assert is_alive(daemon)
    os.kill(daemon, signal.SIGKILL)
    await until(lambda: contained.reap_orphans() or is_reaped(daemon))


async def test_five_hundred_trees_ended_at_once_share_their_looks(supervisor, monkeypatch):
    looks = []
    real = _kill._Table.__init__
    monkeypatch.setattr(_kill._Table, "__init__", lambda table: (looks.append(1), real(table))[1])
    trees = [ProcessTree(2**22 + number) for number in range(500)]  # of nobody
    for tree in trees:
        assert tree.kill() == set()
    assert len(looks) < 250  # each needs two


def test_reused_process_id_is_not_signalled():
    """A process is its id and its start time."""
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as victim:
        tree = ProcessTree(victim.pid)
        assert tree.find() == {victim.pid}
        known = tree._known[victim.pid]
        tree._known[victim.pid] = known._replace(started=known.started - 1)  # as if it were another, and gone
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
    gc.collect()
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
    # What a test before this one has left to be closed is not ours.
    assert len(open_descriptors()) <= len(before)
    assert all(map(is_reaped, pids))


async def orphan_of(supervisor):
    process = supervisor.spawn(sh("setsid sleep 300 >/dev/null 2>&1 & echo $!"))
    (orphan,) = await read_pids(process, 1)
    await process.wait()
    process.abandon()
    return orphan


async def test_orphans_are_reaped_as_they_die(supervisor, nursery):
    before = signal.getsignal(signal.SIGCHLD)
    nursery.start_soon(supervisor.reap_orphans_forever)
    orphan = await orphan_of(supervisor)
    await until(lambda: signal.getsignal(signal.SIGCHLD) not in (signal.SIG_DFL, before))
    os.kill(orphan, signal.SIGKILL)
    await until(lambda: is_reaped(orphan))
    nursery.cancel_scope.cancel()


async def test_handler_of_sigchld_is_put_back(supervisor):
    before = signal.getsignal(signal.SIGCHLD)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.reap_orphans_forever)
        await trio.testing.wait_all_tasks_blocked()
        assert signal.getsignal(signal.SIGCHLD) is not before
        nursery.cancel_scope.cancel()
    assert signal.getsignal(signal.SIGCHLD) is before


async def test_orphans_are_reaped_while_a_command_runs(supervisor, nursery):
    """A script that stops a daemon waits until it is gone, and a zombie is not."""
    nursery.start_soon(supervisor.reap_orphans_forever)
    orphan = await orphan_of(supervisor)
    script = f"kill {orphan}; while kill -0 {orphan} 2>/dev/null; do sleep 0.01; done"
    process = supervisor.spawn(sh(script))
    with trio.fail_after(10):
        assert await process.wait() == Exit(0, None)
    process.abandon()
    assert is_reaped(orphan)
    nursery.cancel_scope.cancel()


async def test_command_that_runs_on_does_not_keep_orphans_from_being_reaped(supervisor, nursery):
    nursery.start_soon(supervisor.reap_orphans_forever)
    orphan = await orphan_of(supervisor)
    long = supervisor.spawn(sh("exec sleep 300"))
    await until(lambda: signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL)
    os.kill(orphan, signal.SIGKILL)
    await until(lambda: is_reaped(orphan))
    long.kill_tree()
    await long.wait()
    long.abandon()
    nursery.cancel_scope.cancel()
