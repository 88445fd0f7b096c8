"""Where commands get cgroups of their own, and that none is left."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import trio

from pyinfra_agent import _cgroup
from pyinfra_agent._cgroup import CgroupsUnavailable, find_delegated, open_cgroups
from pyinfra_agent._spawn import Command, SpawnFailed
from pyinfra_agent._supervisor import Supervisor
from tests.agent.cgroups import delegated_cgroup, hierarchy, own_path
from tests.agent.helpers import until

ENV = {b"PATH": b"/usr/local/bin:/usr/bin:/bin"}


def sh(script):
    return Command([b"sh", b"-c", script.encode()], ENV)


@pytest.fixture
def own():
    """This process's own cgroup, delegated to it."""
    with delegated_cgroup() as place:
        yield place


@pytest.fixture
def cgroups(own):
    cgroups = open_cgroups()
    yield cgroups
    cgroups.close()


@pytest.fixture
def supervisor(nursery, cgroups):
    return Supervisor(nursery, cgroups)


@pytest.fixture
def no_systemd(tmp_path):
    """A machine that was not booted by systemd."""
    return tmp_path / "absent"


def commands_below(own):
    return sorted(path.name for path in own.glob("command-*"))


def members(cgroup):
    return members_of(cgroup.path)


def members_of(directory):
    return (directory / "cgroup.threads").read_text().split()


async def finish(process):
    while await process.read(4096) is not None:
        pass
    process.abandon()


# -- where


def test_own_cgroup_that_systemd_delegated_is_found(own):
    assert find_delegated() == own


def test_sub_cgroup_of_a_delegated_unit_is_found_as_delegatesubgroup_makes_it(own, tmp_path):
    inner = own / "main"
    inner.mkdir()
    (inner / "cgroup.procs").write_text("0")
    try:
        assert find_delegated(systemd=tmp_path) == inner
    finally:
        (own / "cgroup.procs").write_text("0")


def test_unit_below_a_delegated_one_is_not_taken(own, tmp_path):
    """As a session's scope is below user@1000.service, which was delegated to the user's own systemd."""
    inner = own / "session-1.scope"
    inner.mkdir()
    (inner / "cgroup.procs").write_text("0")
    try:
        with pytest.raises(CgroupsUnavailable, match="Delegate=yes"):
            find_delegated(systemd=tmp_path)
    finally:
        (own / "cgroup.procs").write_text("0")


def test_cgroup_that_was_delegated_to_whoever_started_us_is_not_taken():
    with delegated_cgroup(enter=False) as place:
        script = "import sys; from pyinfra_agent._cgroup import *\ntry: print(find_delegated())\n"
        script += "except CgroupsUnavailable as reason: print(reason)"
        starter = f'echo $$ >{place}/cgroup.procs; "$0" -c "$1"; :'
        done = subprocess.run(["sh", "-c", starter, sys.executable, script], capture_output=True, text=True, check=True)
    assert "to another process" in done.stdout, done


def test_cgroup_that_nobody_delegated_is_not_taken_where_systemd_runs(tmp_path):
    with delegated_cgroup(marked=False), pytest.raises(CgroupsUnavailable, match="Delegate=yes"):
        find_delegated(systemd=tmp_path)


def test_without_systemd_a_cgroup_in_which_we_are_alone_is_taken(no_systemd):
    with delegated_cgroup(marked=False) as place:
        assert find_delegated(systemd=no_systemd) == place


def test_without_systemd_a_cgroup_that_is_shared_is_not_taken(no_systemd):
    with delegated_cgroup(marked=False), subprocess.Popen(["sleep", "300"]) as other:
        with pytest.raises(CgroupsUnavailable, match="not alone"):
            find_delegated(systemd=no_systemd)
        other.kill()


def test_root_of_the_hierarchy_is_never_taken(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("0::/\n")
    (tmp_path / "self/mountinfo").write_text(f"30 20 0:26 / {hierarchy()} rw - cgroup2 cgroup2 rw\n")
    with pytest.raises(CgroupsUnavailable, match="root of the hierarchy"):
        find_delegated(tmp_path)


@pytest.mark.parametrize(
    ("cgroup", "mountinfo"),
    [
        ("5:memory:/x\n", "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
        ("0::/x\n", "30 20 0:26 / /sys/fs/cgroup rw - cgroup cgroup rw\n"),
        ("0::/../x\n", "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
        ("0::/x\n", "30 20 0:26 /elsewhere /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n"),
        ("", ""),
    ],
    ids=["only v1", "v2 not mounted", "outside our namespace", "another part mounted", "nothing"],
)
def test_process_without_a_cgroup_in_reach_is_told(tmp_path, cgroup, mountinfo):
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text(cgroup)
    (tmp_path / "self/mountinfo").write_text(mountinfo)
    with pytest.raises(CgroupsUnavailable, match="no cgroup v2"):
        find_delegated(tmp_path)


def test_part_of_the_hierarchy_that_is_mounted_elsewhere_is_found(tmp_path):
    own = tmp_path / "mount point/inner"
    own.mkdir(parents=True)
    (own / "cgroup.type").write_text("domain\n")
    (own / "cgroup.threads").write_text("")
    (tmp_path / "self/task").mkdir(parents=True)
    (tmp_path / "self/cgroup").write_text("1:name=systemd:/\n0::/outer/inner\n")
    mount_point = str(tmp_path / "mount point").replace(" ", r"\040")
    (tmp_path / "self/mountinfo").write_text(f"30 20 0:26 /outer {mount_point} rw shared:9 - cgroup2 cgroup2 rw\n")
    assert find_delegated(tmp_path, tmp_path / "absent") == own


def test_cgroup_that_may_not_be_written_to_is_told_and_left_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "cgroup.threads").write_text("")
    monkeypatch.setattr(_cgroup, "find_delegated", lambda: tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CgroupsUnavailable, match=str(tmp_path)):
        open_cgroups()
    assert len(os.listdir("/proc/self/fd")) == before


# -- commands in them


async def test_command_is_in_its_cgroup_before_its_first_instruction_and_we_are_not(supervisor, own):
    process = supervisor.spawn(Command([b"cat", b"/proc/self/cgroup"], ENV))
    _, seen = await process.read(4096)
    assert seen.decode().splitlines()[-1].endswith(f"/{own.name}/command-1")
    await finish(process)
    assert own_path() == own.name


async def test_commands_one_after_another_use_one_cgroup(supervisor, own):
    for _ in range(5):
        await finish(supervisor.spawn(sh("true")))
    assert commands_below(own) == ["command-1"]


async def test_commands_at_the_same_time_have_a_cgroup_each(supervisor, own):
    processes = [supervisor.spawn(sh("read x </dev/null; sleep 300")) for _ in range(3)]
    assert len({process._cgroup.path for process in processes}) == 3
    for process in processes:
        assert str(process.pid) in members(process._cgroup)
        await process.terminate_tree()
        process.abandon()


async def test_command_that_cannot_start_leaves_its_cgroup_empty(supervisor, own):
    for _ in range(3):
        with pytest.raises(SpawnFailed):
            supervisor.spawn(Command([b"/nonexistent"], ENV))
    assert commands_below(own) == ["command-1"]
    assert members(supervisor._cgroups.take()) == []


async def test_cgroup_of_a_daemon_is_not_used_again_and_goes_when_the_daemon_does(supervisor, own, nursery):
    process = supervisor.spawn(sh("setsid sleep 300 >/dev/null 2>&1 & echo $!"))
    daemon = int((await process.read(100))[1])
    await finish(process)
    await finish(supervisor.spawn(sh("true")))
    assert commands_below(own) == ["command-1", "command-2"]
    os.kill(daemon, 9)
    await until(lambda: not process._cgroup.is_populated())
    supervisor._cgroups.sweep()
    assert commands_below(own) == ["command-2"]


async def test_many_commands_leave_few_cgroups_and_the_end_none(supervisor, own):
    processes = [supervisor.spawn(sh("read x")) for _ in range(40)]
    assert len(commands_below(own)) == 40
    for process in processes:
        await finish(process)
    assert len(commands_below(own)) <= 16
    supervisor._cgroups.close()
    assert commands_below(own) == []
    supervisor._cgroups._home = os.open("/dev/null", os.O_RDONLY)  # for the fixture to close


async def test_cgroups_that_a_command_made_in_its_own_are_removed_with_it(supervisor, own):
    await finish(supervisor.spawn(sh(f"mkdir {own}/command-1/mine {own}/command-1/mine/too")))
    await finish(supervisor.spawn(sh("true")))
    assert not (own / "command-1").exists() or os.listdir(own / "command-1").count("mine") == 0


async def test_cgroup_that_somebody_removed_does_not_stop_a_command(supervisor, own):
    await finish(supervisor.spawn(sh("true")))
    (own / "command-1").rmdir()
    process = supervisor.spawn(sh("echo runs"))
    assert await process.read(100) == (0, b"runs\n")
    await finish(process)
    await finish(supervisor.spawn(sh("true")))


async def test_leftovers_of_an_earlier_agent_are_removed_or_kept_while_somebody_lives_there(own, nursery):
    first = open_cgroups()
    process = Supervisor(nursery, first).spawn(sh("sleep 300"))
    (own / "command-77").mkdir()
    second = open_cgroups()
    fresh = second.take()
    assert commands_below(own) == ["command-1", "command-2"]
    assert fresh.path.name == "command-2"
    second.give_back(fresh)
    await process.terminate_tree(0)
    process.abandon()
    second.close()
    first.close()


# -- an agent that is not root's


@pytest.fixture
def ordinary(own, monkeypatch):
    """The cgroups of an agent that may signal nobody; it goes back to its unit's cgroup at the end."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(_cgroup, "_is_out_of_reach", lambda thread: True)
    cgroups = open_cgroups()
    yield cgroups
    cgroups.close()
    (own / "cgroup.procs").write_text("0")


async def test_ordinary_agent_lives_beside_a_cgroup_to_end_others_in(ordinary, own):
    assert own_path() == f"{own.name}/agent"
    assert ordinary.own == own / "agent"
    assert (own / "end/cgroup.type").read_text() == "domain\n"


async def test_those_who_may_not_be_signalled_are_killed_by_their_cgroup_and_nobody_else(ordinary, own, nursery):
    supervisor = Supervisor(nursery, ordinary)
    dies, lives = (supervisor.spawn(sh("setsid sleep 300 & exec sleep 300")) for _ in range(2))
    await until(lambda: len(members(dies._cgroup)) == len(members(lives._cgroup)) == 2)
    dies._cgroup.kill_others()
    ended = await dies.wait()
    assert (ended.code, ended.signal) == (None, 9)
    await until(lambda: not dies._cgroup.is_populated() and members_of(own / "end") == [])
    assert len(members(lives._cgroup)) == 2
    await lives.terminate_tree(0)
    for process in (dies, lives):
        process.abandon()


async def test_agent_above_commands_of_an_earlier_one_stays_where_it_is(own, nursery, monkeypatch):
    """That one had threaded cgroups right below the unit's: nothing else can be made there."""
    first = open_cgroups()
    process = Supervisor(nursery, first).spawn(sh("exec sleep 300"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    second = open_cgroups()
    assert second.own == own
    assert own_path() == own.name
    assert not (own / "agent").exists()
    second.take().kill_others()
    assert process.exit is None
    await process.terminate_tree(0)
    process.abandon()
    second.close()
    first.close()


async def test_cgroup_that_we_are_in_is_never_frozen(cgroups, own):
    cgroup = cgroups.take()
    with cgroup.entered(), cgroup.frozen():
        assert not cgroup.was_frozen
    cgroups.give_back(cgroup)


async def test_frozen_command_that_may_not_be_killed_goes_on(supervisor):
    process = supervisor.spawn(sh("while :; do echo tick; sleep 0.01; done"))
    await process.read(100)
    with process._cgroup.frozen():
        with trio.fail_after(5):
            await until(lambda: b"frozen 1" in (process._cgroup.path / "cgroup.events").read_bytes())
    while await process.read(65536) != (0, b"tick\n"):
        pass
    await process.terminate_tree(0)
    process.abandon()
