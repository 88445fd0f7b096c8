"""All commands of an agent: started, waited for, and what they leave behind reaped and drained."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Final

import trio

from pyinfra_agent._drain import Drain
from pyinfra_agent._limits import reserved_descriptors
from pyinfra_agent._process import Process
from pyinfra_agent._spawn import Command, SpawnFailed, start_child

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType

    from pyinfra_agent._cgroup import Cgroup, CommandCgroups
    from pyinfra_agent._saved import Descriptors, SavedProcess

__all__ = ["Supervisor"]

_DISCARD_BYTES: Final = 64 * 1024
#: Between two looks while commands run; the later ones for those that run for long. Who waits for a daemon to end
#: asks less often.
_FIRST_LOOK_FOR_ORPHANS_SECONDS: Final = 0.02
_LAST_LOOK_FOR_ORPHANS_SECONDS: Final = 0.1

_DEFAULT_DRAIN: Final = Drain()


class Supervisor:
    """Starts commands, waits for them, and reaps and drains what they leave behind; an agent has one.

    Its tasks run in the nursery it is given, which should live as long as the agent. Cancelling that nursery closes
    no output under a living process; the end of the agent's process does.
    """

    def __init__(self, nursery: trio.Nursery, cgroups: CommandCgroups | None = None) -> None:
        self._nursery = nursery
        self._cgroups = cgroups
        self._processes: dict[int, Process] = {}
        self._begun = 0  # commands so far
        self._news = trio.lowlevel.ParkingLot()
        self._unfinished: set[Process] = set()
        self._discarding: set[int] = set()

    @property
    def processes(self) -> tuple[Process, ...]:
        """The commands whose main process is alive."""
        return tuple(self._processes.values())

    @property
    def unfinished(self) -> int:
        """How many commands hold something of the agent's: they run, or nobody has let go of them yet."""
        return len(self._unfinished)

    @property
    def discarding(self) -> frozenset[int]:
        """The outputs that are being thrown away: what an agent that restarts hands to its successor."""
        return frozenset(self._discarding)

    def spawn(self, command: Command, drain: Drain = _DEFAULT_DRAIN) -> Process:
        """Start `command`; returns once it was executed.

        Raises:
            SpawnFailed: it did not start, and nothing of it is left.
        """
        cgroup = self._cgroups.take() if self._cgroups is not None else None
        try:
            child = start_child(command, cgroup)
        except SpawnFailed:
            self._give_back(cgroup)
            raise
        with reserved_descriptors():  # it cannot fail now: the child runs
            process = Process(self, child, cgroup, drain)
        self._begin(process)
        self._unfinished.add(process)
        return process

    def restore(self, saved: SavedProcess, descriptors: Descriptors, drain: Drain = _DEFAULT_DRAIN) -> Process:
        """Go on with a command that the agent before this one started."""
        cgroup = self._cgroups.resume(saved.cgroup) if self._cgroups is not None and saved.cgroup is not None else None
        process = Process.restored(self, saved, descriptors, cgroup, drain)
        if process.exit is None:
            self._begin(process)
        self._unfinished.add(process)
        return process

    def discard(self, descriptor: int) -> None:
        """Read `descriptor` and throw it away until EOF, then close it."""
        self._discarding.add(descriptor)
        # Closed, when the agent ends or is handed over: the output stays open until its process is gone.
        with contextlib.suppress(RuntimeError):
            self._nursery.start_soon(self._discard, descriptor)

    def reap_orphans(self) -> int:
        """Reap every dead child that is no command of ours; returns how many.

        With the agent as subreaper these are what daemons become when they die. Children that somebody else in this
        process started and will wait for are in the agent's own session, where no command's descendant can be.
        """
        reaped = self._reap_orphans()
        if reaped and self._cgroups is not None:
            self._cgroups.sweep()  # one of theirs may be empty now
        return reaped

    def _reap_orphans(self) -> int:
        reaped = 0
        own_session = os.getsid(0)
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if dead is None:
                    return reaped
                process = self._processes.get(dead.si_pid)
                if process is not None:
                    process.reap()  # the kernel shows nobody else before this one is gone
                    continue
                if os.getsid(dead.si_pid) == own_session:
                    return reaped  # and it hides the rest until it is waited for
                os.waitid(os.P_PID, dead.si_pid, os.WEXITED | os.WNOHANG)
            except (ChildProcessError, ProcessLookupError):
                return reaped
            reaped += 1

    async def reap_orphans_forever(self) -> None:
        """Reap orphans as they die. Runs in the main thread only, where alone Python handles signals.

        While no command runs SIGCHLD tells of each. But it also comes with the end of every command, which a pidfd has
        told already, and takes as long as all the rest of that end: while commands run, orphans are looked for.
        """
        before = signal.getsignal(signal.SIGCHLD)
        try:
            while True:
                await self._wait_for_an_orphan_or_a_command()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                await self._look_for_orphans_while_commands_run()
        finally:
            signal.signal(signal.SIGCHLD, before)

    async def _wait_for_an_orphan_or_a_command(self) -> None:
        token = trio.lowlevel.current_trio_token()

        def look(number: int, frame: FrameType | None) -> None:
            token.run_sync_soon(self._news.unpark_all, idempotent=True)

        signal.signal(signal.SIGCHLD, look)
        while True:
            self.reap_orphans()
            if self._processes:
                return
            await self._news.park()

    async def _look_for_orphans_while_commands_run(self) -> None:
        interval = _FIRST_LOOK_FOR_ORPHANS_SECONDS
        begun = -1
        while self._processes or begun != self._begun:
            interval = min(interval * 2, _LAST_LOOK_FOR_ORPHANS_SECONDS)
            if begun != self._begun:
                begun, interval = self._begun, _FIRST_LOOK_FOR_ORPHANS_SECONDS
            await trio.sleep(interval)
            self.reap_orphans()

    def _begin(self, process: Process) -> None:
        self._processes[process.pid] = process
        self._begun += 1
        self._news.unpark_all()

    # --- for its processes ---

    def start_soon(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run *function* as a task that lives as long as the agent."""
        self._nursery.start_soon(function)

    def note_exit(self, process: Process) -> None:
        """Note that the main process of *process* is gone: its number may be somebody else's."""
        if self._processes.get(process.pid) is process:
            del self._processes[process.pid]

    def let_go(self, process: Process, cgroup: Cgroup | None) -> None:
        """Note that nothing is held for *process* any more; its cgroup is another command's from now on."""
        self._unfinished.discard(process)
        self._give_back(cgroup)

    def _give_back(self, cgroup: Cgroup | None) -> None:
        if self._cgroups is not None and cgroup is not None:
            self._cgroups.give_back(cgroup)

    async def _discard(self, descriptor: int) -> None:
        while True:
            try:
                if not os.read(descriptor, _DISCARD_BYTES):
                    break
                await trio.lowlevel.checkpoint()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(descriptor)
            except OSError:  # EIO: a terminal that nobody has open any more
                break
        self._discarding.discard(descriptor)
        os.close(descriptor)
