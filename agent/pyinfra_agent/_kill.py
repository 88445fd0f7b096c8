"""Finding and killing everything that one command started.

Whom a process belongs to is known in three ways, and a command's tree is their union:

- descent, by parent id in /proc. It reaches setsid'ed grandchildren and those that sudo and su move to another
  cgroup, but it breaks when a parent dies, so it is walked before anything is signalled;
- the session that the command leads, which orphans keep until they call setsid;
- the command's cgroup, where it has one, which nothing leaves by itself.

An orphan that none of the three attributes to this command stays alive: with the agent as subreaper it is the agent's
child, as is every daemon that an earlier command started.

Process ids are reused. A process is remembered as id and start time, and signalled through a descriptor for the
process whose start time was verified after the descriptor was opened.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["ProcessTree", "become_subreaper"]

_PR_SET_CHILD_SUBREAPER: Final = 36
_MOST_ROUNDS: Final = 20
_LOOKS_WITHOUT_NEWS: Final = 2
_FIRST_POLL_SECONDS: Final = 0.004
_LAST_POLL_SECONDS: Final = 0.1


def become_subreaper() -> None:
    """Make orphans of this process's descendants its own children, so that no tree is cut off from it (prctl(2)).

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot become a child subreaper: {os.strerror(number).lower()}")


class ProcessTree:
    """The processes of one command, found anew at each look; whoever was found once stays known.

    Attributes:
        leader_reaped: set when the command's main process is gone, and with it the certainty that `leader` is its id.
    """

    def __init__(self, leader: int, cgroup: Path | None = None) -> None:
        self.leader_reaped = False
        self._leader = leader
        self._cgroup = cgroup
        self._known: dict[int, int] = {}  # process id -> start time

    def find(self) -> set[int]:
        """Return the ids of the tree's live processes; one pass over /proc, 1 to 3 ms on a small machine."""
        table = _process_table()
        self._known = {
            pid: started for pid, started in self._known.items() if pid in table and table[pid].started == started
        }
        found = set(self._known) | self._in_cgroup() | self._in_session(table)
        children: dict[int, list[int]] = {}
        for pid, seen in table.items():
            children.setdefault(seen.parent, []).append(pid)
        found.discard(os.getpid())
        unvisited = list(found)
        while unvisited:
            for child in children.get(unvisited.pop(), ()):
                if child not in found:
                    found.add(child)
                    unvisited.append(child)
        self._known = {pid: table[pid].started for pid in found if pid in table and not table[pid].is_dead}
        return set(self._known)

    def send(self, number: int, pids: Iterable[int]) -> None:
        """Signal those of `pids` that the last look found. Gone ones, and those of another user, are passed over."""
        for pid in pids:
            started = self._known.get(pid)
            if started is None:
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError):
                pidfd = os.pidfd_open(pid)
                try:
                    seen = _look_at(pid)
                    if seen is not None and seen.started == started:
                        signal.pidfd_send_signal(pidfd, number)
                finally:
                    os.close(pidfd)

    def kill(self) -> set[int]:
        """SIGKILL the whole tree without waiting; returns who was found alive.

        Everything is stopped first, until looks find nobody new: a stopped process cannot fork. Two looks, because a
        process that forks and exits all the time can slip through one: its child came after the listing of /proc was
        read, and the parent was gone when its turn came. One that does so faster than a look takes is only caught by
        its cgroup.
        """
        stopped: set[int] = set()
        looks_without_news = 0
        for _ in range(_MOST_ROUNDS):
            fresh = self.find() - stopped
            if fresh:
                self.send(signal.SIGSTOP, fresh)
                self._kill_cgroup()
                stopped |= fresh
                looks_without_news = 0
            else:
                looks_without_news += 1
                if looks_without_news == _LOOKS_WITHOUT_NEWS:
                    break
        self.send(signal.SIGKILL, stopped)
        return stopped

    async def kill_until_gone(self) -> None:
        """Kill again and again until nobody is found alive; the first time before anything else can run."""
        interval = _FIRST_POLL_SECONDS
        while self.kill():
            await trio.sleep(interval)
            interval = min(interval * 2, _LAST_POLL_SECONDS)
        await trio.lowlevel.checkpoint()

    async def wait_gone(self) -> None:
        """Wait until a look finds nobody alive."""
        interval = _FIRST_POLL_SECONDS
        while self.find():
            await trio.sleep(interval)
            interval = min(interval * 2, _LAST_POLL_SECONDS)
        await trio.lowlevel.checkpoint()

    def _in_session(self, table: dict[int, _Seen]) -> set[int]:
        if self.leader_reaped and self._leader in table:
            return set()  # the id was given to somebody else, and so was the session's number
        return {pid for pid, seen in table.items() if seen.session == self._leader}

    def _in_cgroup(self) -> set[int]:
        pids: set[int] = set()
        if self._cgroup is not None:
            with contextlib.suppress(OSError):
                for listing in self._cgroup.rglob("cgroup.procs"):
                    pids.update(map(int, listing.read_bytes().split()))
        return pids - {0}  # 0 stands for a process outside our pid namespace

    def _kill_cgroup(self) -> None:
        if self._cgroup is not None:
            with contextlib.suppress(OSError):  # before Linux 5.14 there is none, and the walk does it all
                (self._cgroup / "cgroup.kill").write_text("1")


class _Seen(NamedTuple):
    parent: int
    session: int
    started: int
    is_dead: bool


def _process_table() -> dict[int, _Seen]:
    table = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            seen = _look_at(int(name))
            if seen is not None:
                table[int(name)] = seen
    return table


def _look_at(pid: int) -> _Seen | None:
    """Read /proc/PID/stat (proc(5)); None where there is no such process."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            line = os.read(descriptor, 4096)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    # The name, in parentheses, may hold spaces and parentheses itself; field 3 comes after the last one.
    fields = line.rpartition(b")")[2].split()
    return _Seen(int(fields[1]), int(fields[3]), int(fields[19]), fields[0] in (b"Z", b"X"))
