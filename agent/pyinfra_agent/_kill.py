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
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from ._limits import reserved_descriptors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ._cgroup import Cgroup

__all__ = ["ProcessTree", "become_subreaper"]

_PR_SET_CHILD_SUBREAPER: Final = 36
_MOST_ROUNDS: Final = 20
_LOOKS_WITHOUT_NEWS: Final = 2
_FIRST_POLL_SECONDS: Final = 0.004
_LAST_POLL_SECONDS: Final = 0.1
#: Trees that are ended at the same time share what passes over /proc saw, for so long; 500 of them would make 2,500
#: otherwise. The second is for the look before anything is signalled, which should miss nobody.
_SHARED_SECONDS: Final = 0.05
_FRESH_SECONDS: Final = 0.005


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
        cgroup: the command's alone; set to None when it is not any more.
    """

    def __init__(self, leader: int, cgroup: Cgroup | None = None) -> None:
        self.leader_reaped = False
        self.cgroup = cgroup
        self._leader = leader
        self._known: dict[int, _Seen] = {}
        self._looked = time.monotonic()

    def find(self, most_seconds: float = _SHARED_SECONDS) -> set[int]:
        """Return the ids of the tree's live processes; a pass over /proc takes 1 to 3 ms on a small machine.

        It is not older than `most_seconds`, and began later than the one before for this tree.
        """
        table = _look_around(self._looked, most_seconds)
        self._looked = table.begun
        found = {pid for pid, seen in self._known.items() if table.has(pid, seen.started)}
        found |= self._in_cgroup(table) | self._in_session(table)
        found.discard(os.getpid())
        unvisited = list(found)
        while unvisited:
            for child in table.children.get(unvisited.pop(), ()):
                if child not in found:
                    found.add(child)
                    unvisited.append(child)
        self._known = {pid: table.seen[pid] for pid in found if not table.seen[pid].is_dead}
        return set(self._known)

    def export(self) -> tuple[tuple[int, int, int, int, int], ...]:
        """Return whom the last look found: id, parent, group, session and start time of each."""
        return tuple((pid, seen.parent, seen.group, seen.session, seen.started) for pid, seen in self._known.items())

    def restore(self, known: Iterable[tuple[int, int, int, int, int]]) -> None:
        """Know those whom the last look of the agent before us found."""
        self._known = {
            pid: _Seen(parent, group, session, started, is_dead=False) for pid, parent, group, session, started in known
        }

    def send(self, number: int, pids: Iterable[int]) -> None:
        """Signal those of `pids` that the last look found. Gone ones, and those of another user, are passed over.

        The command's own process group gets it as a whole, which reaches a child that was born after the look.
        """
        group_is_done = False
        for pid in pids:
            known = self._known.get(pid)
            if known is None:
                continue
            is_in_group = known.group == known.session == self._leader
            if is_in_group and group_is_done:
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError), reserved_descriptors():
                pidfd = os.pidfd_open(pid)
                try:
                    seen = _look_at(pid)
                    if seen is None or seen.started != known.started:
                        continue
                    if is_in_group:
                        group_is_done = True
                        os.killpg(self._leader, number)
                    else:
                        signal.pidfd_send_signal(pidfd, number)
                finally:
                    os.close(pidfd)

    def signal(self, *numbers: int) -> None:
        """Send each of `numbers` to the whole tree."""
        with self._frozen():
            # Whom a cgroup holds is read anew in any case.
            members = self.find(_FRESH_SECONDS if self.cgroup is None else _SHARED_SECONDS)
            for number in numbers:
                self.send(number, members)

    def kill(self) -> set[int]:
        """SIGKILL the whole tree without waiting; returns who was found alive.

        Everything is stopped first, until looks find nobody new: a stopped process cannot fork. Two looks, because a
        process that forks and exits all the time can slip through one: its child came after the listing of /proc was
        read, and the parent was gone when its turn came. One that does so faster than a look takes is only caught by
        its cgroup, which is stopped as a whole.
        """
        stopped: set[int] = set()
        looks_without_news = 0
        with self._frozen():
            for _ in range(_MOST_ROUNDS):
                fresh = self.find() - stopped
                if fresh:
                    self.send(signal.SIGSTOP, fresh)
                    self._looked = time.monotonic()  # what was seen before this is no news
                    stopped |= fresh
                    looks_without_news = 0
                else:
                    looks_without_news += 1
                    if looks_without_news == _LOOKS_WITHOUT_NEWS:
                        break
            self.send(signal.SIGKILL, stopped)
            if self.cgroup is not None:
                self.cgroup.kill_others()
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
        await trio.sleep(interval)
        while self._is_known_alive() or self.find() or (self.cgroup is not None and self.cgroup.is_populated()):
            await trio.sleep(interval)
            interval = min(interval * 2, _LAST_POLL_SECONDS)

    def _is_known_alive(self) -> bool:
        """Tell whether one whom the last look found is there still; much cheaper than another look."""
        with reserved_descriptors():
            found = ((_look_at(pid), known) for pid, known in self._known.items())
            return any(seen and seen.started == known.started and not seen.is_dead for seen, known in found)

    @contextlib.contextmanager
    def _frozen(self) -> Iterator[None]:
        with reserved_descriptors(), self.cgroup.frozen() if self.cgroup is not None else contextlib.nullcontext():
            yield

    def _in_session(self, table: _Table) -> set[int]:
        if self.leader_reaped and self._leader in table.seen:
            return set()  # the id was given to somebody else, and so was the session's number
        return table.sessions.get(self._leader, set())

    def _in_cgroup(self, table: _Table) -> set[int]:
        threads = self.cgroup.threads() if self.cgroup is not None else set()
        for pid in threads - table.seen.keys():
            # No process but one of its further threads, or a process that began a moment ago.
            seen = _look_at(pid) if _leads_its_process(pid) else None
            if seen is not None:
                table.add(pid, seen)
        return threads & table.seen.keys()


class _Seen(NamedTuple):
    parent: int
    group: int
    session: int
    started: int
    is_dead: bool


class _Table:
    """What one pass over /proc saw."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.seen: dict[int, _Seen] = {}
        self.children: dict[int, list[int]] = {}
        self.sessions: dict[int, set[int]] = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                seen = _look_at(int(name))
                if seen is not None:
                    self.add(int(name), seen)
        self.ended = time.monotonic()

    def add(self, pid: int, seen: _Seen) -> None:
        self.seen[pid] = seen
        self.children.setdefault(seen.parent, []).append(pid)
        self.sessions.setdefault(seen.session, set()).add(pid)

    def has(self, pid: int, started: int) -> bool:
        return pid in self.seen and self.seen[pid].started == started


_tables: Final[deque[_Table]] = deque(maxlen=_LOOKS_WITHOUT_NEWS)


def _look_around(after: float, most_seconds: float) -> _Table:
    """Return what a pass over /proc saw that began after the moment *after*, and ended no longer ago than that."""
    for table in _tables:
        if table.begun > after and time.monotonic() - table.ended < most_seconds:
            return table
    with reserved_descriptors():
        _tables.append(_Table())
    return _tables[-1]


def _leads_its_process(pid: int) -> bool:
    try:
        os.close(os.pidfd_open(pid))  # further threads are refused
    except OSError:
        return False
    return True


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
    return _Seen(int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]), fields[0] in (b"Z", b"X"))
