"""A cgroup for each command: what it started can be found and ended, however it forked.

Only below a cgroup that was given to the agent (`find_delegated`), and by means that need no controller, so that the
agent stays where it is: the rule against processes in inner cgroups is about cgroups with controllers.

A process has to be in its cgroup before it runs. Moving it after the exec comes too late for what it has forked by
then, and takes 8 ms on an idle machine, because moving a whole process waits until every processor has passed through
the scheduler (Linux 6.0 and later). clone3 could start it there, and cannot be called from Python. So the thread that
forks goes there for that moment: a process is born in the cgroup of the thread that forks it. A thread may move
without its process between *threaded* cgroups (cgroup-v2.rst, "Threads"), and one that moves itself waits for nobody.
It adds 0.06 ms to a command, 0.13 ms to a rare one, and a new cgroup costs 0.1 ms more: so they are used again.

A threaded cgroup has no cgroup.kill. Freezing it does the same: nothing in it forks any more, a child whose fork was
under way is born frozen, and SIGKILL reaches the frozen.

It reaches them if we may signal them. An agent that does not run as root may not signal what sudo started for one of
its commands, but it may move it between cgroups that are its own, and cgroup.kill asks for no more than the cgroup. So
such an agent makes a cgroup that is not threaded, to end others in. That cannot lie below a cgroup with threaded ones:
the agent goes from its unit's cgroup to one below, and the other is beside it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ._limits import RareLog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

__all__ = ["Cgroup", "CgroupsUnavailable", "CommandCgroups", "find_delegated", "open_cgroups"]

_NAME: Final = "command-{}"
_OUR_NAME: Final = re.compile(r"command-\d+")
#: For control processes of a unit (exec_params_get_cgroup_path in systemd); not ours to remove.
_SYSTEMDS_NAME: Final = ".control"
#: Of an agent that is not root's, in its unit's cgroup: where it lives, and where it ends processes of other users.
_HOME_NAME: Final = "agent"
_END_NAME: Final = "end"
_IDLE_MOST: Final = 16
_SWEEP_MOST: Final = 64
_FREEZING_LOOKS: Final = 100
#: The names of units, which systemd writes and no delegate: DelegateSubgroup= takes any other.
_UNIT_NAME: Final = re.compile(r".+\.(service|scope|slice|socket|mount|swap)")
_DELEGATED: Final = ("user.delegate", "trusted.delegate")  # systemd sets them (its CGROUP_DELEGATION.md)

_failures: Final = RareLog("cgroup-failed")


class CgroupsUnavailable(Exception):
    """Commands cannot have cgroups here; the text says why."""


class Cgroup:
    """The cgroup of one command. `CommandCgroups.take` makes it."""

    def __init__(self, path: Path, home: int, end: Path | None = None) -> None:
        self.path = path
        self.was_frozen = False
        self._home = home  # cgroup.threads of the agent's own
        self._end = end
        # Every command needs these two; making a Path takes longer than opening it.
        self._threads = f"{path}/cgroup.threads"
        self._events = f"{path}/cgroup.events"

    def entered(self) -> AbstractContextManager[None]:
        """Let processes that this thread forks within the block be born here.

        Should somebody have removed the cgroup, they are born in the agent's, and found by descent.
        """
        return _Entered(self)

    def enter(self) -> bool:
        """Go there with this thread; tell whether that was possible."""
        try:
            _write(self._threads, b"0")
        except OSError as error:
            _failures.note(path=self.path, error=error.strerror)
            return False
        return True

    def leave(self) -> None:
        """Go home with this thread."""
        try:
            os.write(self._home, b"0")
        except OSError as error:  # `freeze` spares a cgroup that we are in, and the next command takes us out
            _failures.note(path=self.path, error=error.strerror)

    def threads(self) -> set[int]:
        """Return the ids of all threads in it and below; the first thread of a process has the process's id."""
        found: set[int] = set()
        for directory in _with_descendants(self.path):
            with contextlib.suppress(OSError):
                found.update(map(int, (directory / "cgroup.threads").read_bytes().split()))
        return found - {0}  # 0 stands for a thread outside our pid namespace

    def is_populated(self) -> bool:
        """Tell whether anybody is in it or below; where that cannot be known, somebody is."""
        try:
            return b"populated 1" in _read(self._events)
        except OSError as error:
            return error.errno not in (errno.ENOENT, errno.ENODEV)

    def kill_others(self) -> None:
        """SIGKILL those in it whom we may not signal, because they run as another user; where that is possible."""
        if self._end is None:
            return
        for thread in filter(_is_out_of_reach, self.threads()):
            with contextlib.suppress(OSError):  # it is gone
                _write(self._end / "cgroup.procs", b"%d" % thread)
        with contextlib.suppress(OSError):  # before Linux 5.14
            _write(self._end / "cgroup.kill", b"1")

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop everybody in it within the block; SIGKILL acts all the same, and other signals after it."""
        is_frozen = self._freeze()
        try:
            yield
        finally:
            if is_frozen:
                with contextlib.suppress(OSError):
                    _write(self.path / "cgroup.freeze", b"0")

    def _freeze(self) -> bool:
        if not self.is_populated() or not self.threads().isdisjoint(map(int, os.listdir("/proc/self/task"))):
            return False
        try:
            _write(self.path / "cgroup.freeze", b"1")
        except OSError:
            return False
        self.was_frozen = True
        # A tenth of a millisecond until everybody stands still. Who waits for a disk may take longer, and cannot fork.
        for _ in range(_FREEZING_LOOKS):
            if b"frozen 1" in _read(self._events):
                break
        return True


class _Entered:
    __slots__ = ("_cgroup", "_is_there")

    def __init__(self, cgroup: Cgroup) -> None:
        self._cgroup = cgroup

    def __enter__(self) -> None:
        self._is_there = self._cgroup.enter()

    def __exit__(self, *error: object) -> None:
        if self._is_there:
            self._cgroup.leave()


class CommandCgroups:
    """The cgroups of an agent's commands, below its own; made by `open_cgroups`.

    A cgroup in which a daemon lives on is removed after the daemon's end, by the next `sweep` or `take`.

    Args:
        own: the agent's own cgroup.
        end: one that is not threaded, to move processes to that are to die; None if there is none.
    """

    def __init__(self, own: Path, end: Path | None = None) -> None:
        self.own = own
        self._end = end
        self._count = 0
        self._idle: list[Cgroup] = []
        self._occupied: deque[Path] = deque()
        self._home = os.open(own / "cgroup.threads", os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._adopt_leftovers()
            self._try()
            self._make_control()
        except OSError as error:
            os.close(self._home)
            raise CgroupsUnavailable(f"{own}: {_reason(error)}") from error

    def take(self) -> Cgroup | None:
        """Return an empty cgroup for a new command; None if there is none to be had, which was logged."""
        self.sweep(1)
        if self._idle:
            return self._idle.pop()
        try:
            return self._make()
        except OSError as error:
            _failures.note(path=self.own, error=error.strerror)
            return None

    def resume(self, path: str) -> Cgroup | None:
        """Return the cgroup of a command that an earlier agent started; None if it is gone."""
        found = next((occupied for occupied in self._occupied if str(occupied) == path), None)
        if found is None:
            return None
        self._occupied.remove(found)
        cgroup = Cgroup(found, self._home, self._end)
        cgroup.was_frozen = True  # for all that is known: it is not used again
        return cgroup

    def give_back(self, cgroup: Cgroup) -> None:
        """Take back the cgroup of a command that is over; whoever still lives there stays."""
        if cgroup.is_populated():
            self._occupied.append(cgroup.path)
        elif cgroup.was_frozen or len(self._idle) >= _IDLE_MOST or _has_children(cgroup.path):
            self._remove_or_keep(cgroup.path)
        else:
            self._idle.append(cgroup)

    def sweep(self, most: int = _SWEEP_MOST) -> None:
        """Remove those of the occupied that have become empty; looks at no more than *most*, and goes round."""
        for _ in range(min(most, len(self._occupied))):
            self._remove_or_keep(self._occupied.popleft())

    def close(self) -> None:
        """Remove what is empty. What is not stays for the next agent in this place."""
        for cgroup in self._idle:
            _remove(cgroup.path)
        self._idle.clear()
        self.sweep(len(self._occupied))
        if self._end is not None:
            _remove(self._end)
        os.close(self._home)

    def _remove_or_keep(self, path: Path) -> None:
        if not _remove(path):
            self._occupied.append(path)

    def _make(self) -> Cgroup:
        while True:
            self._count += 1
            path = self.own / _NAME.format(self._count)
            with contextlib.suppress(FileExistsError):  # an earlier agent's command lives on in it
                path.mkdir()
                break
        try:
            _write(path / "cgroup.type", b"threaded")
        except OSError:
            _remove(path)
            raise
        return Cgroup(path, self._home, self._end)

    def _try(self) -> None:
        """Go into a cgroup and back: raises OSError where that is not possible."""
        cgroup = self._make()
        try:
            _write(cgroup.path / "cgroup.threads", b"0")
            os.write(self._home, b"0")
        except OSError:
            _remove(cgroup.path)
            raise
        self._idle.append(cgroup)

    def _make_control(self) -> None:
        """Make the cgroup in which systemd starts what ExecReload= names, in a unit that was delegated.

        It would make one itself, and could use no other than a threaded one beside ours.
        """
        if _is_delegated(self.own):
            control = self.own / _SYSTEMDS_NAME
            with contextlib.suppress(OSError):  # no reload then; the agent is none the worse
                control.mkdir(exist_ok=True)
                _write(control / "cgroup.type", b"threaded")

    def _adopt_leftovers(self) -> None:
        with os.scandir(self.own) as entries:
            names = [entry.name for entry in entries if _OUR_NAME.fullmatch(entry.name)]
        for name in names:
            self._remove_or_keep(self.own / name)


def open_cgroups() -> CommandCgroups:
    """Return the cgroups of this process's commands.

    Raises:
        CgroupsUnavailable: this process has no cgroup in which it may make others.
    """
    own = find_delegated()
    if os.geteuid() == 0:
        return CommandCgroups(own)
    return CommandCgroups(*_with_end(own))


def _with_end(own: Path) -> tuple[Path, Path | None]:
    """Return the cgroup in which this process is from now on, and where it can end processes of other users."""
    if _is_delegated(own):
        # Who finds threaded cgroups here, of an agent that had not gone to one below, stays: EOPNOTSUPP.
        home = own / _HOME_NAME
        try:
            home.mkdir(exist_ok=True)
            _write(home / "cgroup.procs", b"0")
        except OSError as error:
            _failures.note(path=home, error=error.strerror)
            _remove(home)
            return own, None
        own = home
    if not _is_delegated(own.parent):
        return own, None
    end = own.parent / _END_NAME
    try:
        end.mkdir(exist_ok=True)
    except OSError as error:
        _failures.note(path=end, error=error.strerror)
        return own, None
    return own, end


def find_delegated(proc: Path = Path("/proc"), systemd: Path = Path("/run/systemd/system")) -> Path:
    """Return the directory of this process's own cgroup, if it is this process's to arrange.

    It is where systemd says so: by an attribute of the cgroup (Delegate=), or of the one above it where that unit
    has its processes in a sub-cgroup (DelegateSubgroup=); unless whoever started us is in it too, for then it was
    given to them. Without systemd it is where this process is alone. It never is the root of the hierarchy, and no
    login session, which is a scope that nobody delegated.

    Raises:
        CgroupsUnavailable: it is not, or there is no cgroup v2.
    """
    own = _own_directory(proc)
    if not (own / "cgroup.type").exists():
        raise CgroupsUnavailable(f"{own} is the root of the hierarchy" if own.is_dir() else f"{own} is not there")
    try:
        # Not cgroup.procs: that would list the commands of an earlier agent, too.
        others = set(map(int, (own / "cgroup.threads").read_bytes().split()))
        others -= set(map(int, os.listdir(proc / "self/task")))
    except OSError as error:
        raise CgroupsUnavailable(f"{own}: {_reason(error)}") from error
    if _is_delegated(own) or (not _UNIT_NAME.fullmatch(own.name) and _is_delegated(own.parent)):
        if others.isdisjoint(_ancestors(proc)):
            return own
        raise CgroupsUnavailable(f"{own} was delegated, but to another process than the agent")
    if systemd.is_dir():
        raise CgroupsUnavailable(f"systemd has not delegated {own} to the agent: Delegate=yes in its unit does that")
    if others:
        raise CgroupsUnavailable(f"the agent is not alone in {own}")
    return own


def _ancestors(proc: Path) -> set[int]:
    """Return the ids of those who started this process, and of the machine's or container's first process."""
    found = {1}
    pid = os.getppid()
    while pid not in found | {0}:
        found.add(pid)
        try:
            pid = int((proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[1])
        except OSError:
            break
    return found - {os.getpid()}


def _own_directory(proc: Path) -> Path:
    """Return where the cgroup v2 of this process is (cgroups(7), proc(5))."""
    try:
        memberships = (proc / "self/cgroup").read_text().splitlines()
        mounts = [line.split(" ") for line in (proc / "self/mountinfo").read_text().splitlines()]
    except OSError as error:
        raise CgroupsUnavailable(f"{proc} does not say: {_reason(error)}") from error
    for path in (line.removeprefix("0::") for line in memberships if line.startswith("0::")):
        for fields in mounts:
            if fields[fields.index("-") + 1] != "cgroup2" or path.startswith("/.."):  # outside our cgroup namespace
                continue
            root, mount_point = (_unescaped(field) for field in fields[3:5])
            relative = os.path.relpath(path, root)
            if relative.split("/")[0] != "..":
                return Path(mount_point, relative)
    raise CgroupsUnavailable("this process has no cgroup v2, or it is not mounted")


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _is_delegated(directory: Path) -> bool:
    for name in _DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(directory, name) == b"1":
                return True
    return False


def _reason(error: OSError) -> str:
    if error.errno == errno.EOPNOTSUPP:
        return "it has controllers or processes that rule out threaded cgroups"
    return os.strerror(error.errno or 0).lower()


def _read(path: str) -> bytes:
    """Return the beginning of a file; a few lines."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def _write(path: Path | str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def _is_out_of_reach(thread: int) -> bool:
    try:
        os.kill(thread, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        pass
    return False


def _has_children(path: Path) -> bool:
    try:
        return os.stat(path).st_nlink > 2
    except OSError:
        return False


def _with_descendants(path: Path) -> list[Path]:
    """Return *path* and the cgroups that a command made below it, the deepest last."""
    found = [path]
    for directory in found:
        if _has_children(directory):
            with contextlib.suppress(OSError):
                found += [entry for entry in directory.iterdir() if stat.S_ISDIR(entry.lstat().st_mode)]
    return found


def _remove(path: Path) -> bool:
    """Remove a cgroup and those below it; returns whether it is gone."""
    for directory in reversed(_with_descendants(path)):
        try:
            directory.rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # somebody lives there
            return False
    return True
