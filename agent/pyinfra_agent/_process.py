"""Running commands: their streams, their end, and what they leave behind.

A command is over when its main process has exited and both outputs are at EOF, or have been quiet for a moment
(`Drain`): `sleep 300 &` holds the outputs open for five minutes, while `exec > >(tee log)` still writes up to 50 ms
after the exit. Normal exit never kills anything. An output that is not at EOF is read and thrown away until it is,
and never closed before: a daemon that still prints must not die of SIGPIPE.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import signal
import struct
import termios
from dataclasses import dataclass
from typing import Final

import trio

from pyinfra_agent._kill import ProcessTree
from pyinfra_agent._pty import end_of_file, set_size
from pyinfra_agent._spawn import Child, Command, start_child

__all__ = ["Drain", "Exit", "Process", "Supervisor"]

_DISCARD_BYTES: Final = 64 * 1024
_UNKILLABLE_SECONDS: Final = 2.0  # a process in uninterruptible sleep survives SIGKILL for as long as it sleeps
_KEYBOARD_SIGNALS: Final = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP})


@dataclass(frozen=True, slots=True)
class Exit:
    """How a main process ended: exactly one of the exit code (0..255) and the signal that killed it is set."""

    code: int | None
    signal: int | None


@dataclass(frozen=True, slots=True)
class Drain:
    """How long outputs that stay open are listened to after the exit: while bytes come, and at most so long in all.

    Only a reader's time counts, not the time in which it could not take more: quiet is counted while a read waits on
    every open output, and a pause between two reads counts as no more than one quiet time.
    """

    quiet_seconds: float = 0.25
    most_seconds: float = 5.0


_DEFAULT_DRAIN: Final = Drain()


class Supervisor:
    """Starts commands, waits for them, and reaps and drains what they leave behind; an agent has one.

    Its tasks run in the nursery it is given, which should live as long as the agent. Cancelling that nursery closes
    no output under a living process; the end of the agent's process does.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._processes: dict[int, Process] = {}
        self._discarding: set[int] = set()

    @property
    def processes(self) -> tuple[Process, ...]:
        """The commands whose main process is alive."""
        return tuple(self._processes.values())

    @property
    def discarding(self) -> frozenset[int]:
        """The outputs that are being thrown away: what an agent that restarts hands to its successor."""
        return frozenset(self._discarding)

    def spawn(self, command: Command, drain: Drain = _DEFAULT_DRAIN) -> Process:
        """Start `command`; returns once it was executed.

        Raises:
            SpawnFailed: it did not start, and nothing of it is left.
        """
        process = Process(self, start_child(command), command, drain)
        self._processes[process.pid] = process
        self._nursery.start_soon(process._supervise)
        return process

    def discard(self, descriptor: int) -> None:
        """Read `descriptor` and throw it away until EOF, then close it."""
        self._discarding.add(descriptor)
        self._nursery.start_soon(self._discard, descriptor)

    def reap_orphans(self) -> int:
        """Reap every dead child that is no command of ours; returns how many.

        With the agent as subreaper these are what daemons become when they die. Children that somebody else in this
        process started and will wait for are in the agent's own session, where no command's descendant can be.
        """
        reaped = 0
        own_session = os.getsid(0)
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if dead is None:
                    return reaped
                process = self._processes.get(dead.si_pid)
                if process is not None:
                    process._reap()  # the kernel shows nobody else before this one is gone
                    continue
                if os.getsid(dead.si_pid) == own_session:
                    return reaped  # and it hides the rest until it is waited for
                os.waitid(os.P_PID, dead.si_pid, os.WEXITED | os.WNOHANG)
            except (ChildProcessError, ProcessLookupError):
                return reaped
            reaped += 1

    async def reap_orphans_forever(self) -> None:
        """Reap orphans as they die. Runs in the main thread only, as trio's signal receivers do."""
        with trio.open_signal_receiver(signal.SIGCHLD) as deaths:
            self.reap_orphans()
            async for _ in deaths:
                self.reap_orphans()

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


class Process:
    """A running command. `Supervisor.spawn` makes it; whoever asked for it calls `abandon` when done with it.

    One task at a time may read each output, and one may write. An output ends early (`Drain`) only while every open
    output is being read, so both must be.
    """

    def __init__(self, supervisor: Supervisor, child: Child, command: Command, drain: Drain) -> None:
        self.pid = child.pid
        self._supervisor = supervisor
        self._pidfd = child.pidfd
        self._has_terminal = child.has_terminal
        self._stdin = child.stdin  # with a terminal, its master, which is stdout's to close
        self._last_byte: int | None = None
        self._exit: Exit | None = None
        self._exited = trio.Event()
        self._tree = ProcessTree(child.pid, command.cgroup)
        self._ending = _Ending(drain)
        self._stdout = _Output(child.stdout, self._ending)
        self._stderr = _Output(child.stderr, self._ending)

    def __repr__(self) -> str:
        state = "running" if self._exit is None else repr(self._exit)
        return f"<Process {self.pid}: {state}>"

    @property
    def exit(self) -> Exit | None:
        """How the main process ended, or None while it runs."""
        return self._exit

    async def wait(self) -> Exit:
        """Wait until the main process has exited. Its outputs may still have something to say."""
        await self._exited.wait()
        assert self._exit is not None
        return self._exit

    async def read_stdout(self, max_bytes: int) -> bytes:
        """Return what is there, at least one byte; b"" when the stream is over, by EOF or by `Drain`.

        A read that is cancelled has taken nothing.

        Raises:
            trio.ClosedResourceError: `abandon` was called.
        """
        return await self._stdout.receive(max_bytes)

    async def read_stderr(self, max_bytes: int) -> bytes:
        """As `read_stdout`; with a terminal it is over at once."""
        return await self._stderr.receive(max_bytes)

    async def write_stdin(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`. If cancelled, an unknown part of it was written.

        Waits for as long as nobody reads, even past the end of the main process: cancel it then.

        Raises:
            trio.BrokenResourceError: nobody can read it any more.
            trio.ClosedResourceError: there is no stdin, or it was ended.
        """
        await trio.lowlevel.checkpoint()
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                if self._stdin is None:
                    raise trio.ClosedResourceError("the command has no standard input, or it was ended")
                if self._has_terminal and self._terminal is None:
                    raise trio.BrokenResourceError("the command closed its terminal")
                try:
                    sent += os.write(self._stdin, view[sent:])
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._stdin)
                except OSError as error:
                    raise trio.BrokenResourceError("the command closed its standard input") from error
            if sent:
                self._last_byte = view[-1]

    async def end_stdin(self) -> None:
        """Let the command see the end of its input; no error if it has ended or never was.

        A terminal stays open, so there the end-of-file character is typed.
        """
        if self._stdin is not None and self._terminal is not None:
            with contextlib.suppress(trio.BrokenResourceError):
                await self.write_stdin(end_of_file(self._terminal, self._last_byte))
        else:
            await trio.lowlevel.checkpoint()
        self._close_stdin()

    def signal(self, number: int) -> None:
        """Signal the command's process group; nothing happens once the main process has exited.

        What a keyboard would send (SIGINT, SIGQUIT, SIGTSTP) goes to a terminal's foreground group, as from there.
        """
        if self._exit is not None:
            return  # the group's number may be somebody else's by now
        group = self.pid
        if self._terminal is not None and number in _KEYBOARD_SIGNALS:
            with contextlib.suppress(OSError):
                group = os.tcgetpgrp(self._terminal) or self.pid
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)

    def resize(self, rows: int, columns: int) -> None:
        """Resize the terminal; nothing happens without one."""
        if self._terminal is not None:
            set_size(self._terminal, rows, columns)

    async def terminate_tree(self, grace_seconds: float = 5.0) -> set[int]:
        """End the command and all that it started: SIGTERM (and a terminal's SIGHUP), grace, SIGKILL.

        Cancelling it cuts the grace short, not the killing. Returns the ids of survivors: processes of another user,
        or ones stuck in the kernel.
        """
        members = self._tree.find()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCONT):
            if number is not signal.SIGHUP or self._terminal is not None:
                self._tree.send(number, members)
        try:
            with trio.move_on_after(grace_seconds):
                await self._tree.wait_gone()
        finally:
            with trio.CancelScope(deadline=trio.current_time() + _UNKILLABLE_SECONDS, shield=True):
                await self._tree.kill_until_gone()
            self._supervisor.reap_orphans()
        return self._tree.find()

    def kill_tree(self) -> None:
        """SIGKILL the command and all that it started, at once and without waiting."""
        self._tree.kill()

    def abandon(self) -> None:
        """Let go of the command: end its input, throw away the output still to come. It lives on if it is alive.

        A read or write in progress ends with `trio.ClosedResourceError`. Calling it again does nothing.
        """
        self._close_stdin()
        for output in (self._stdout, self._stderr):
            descriptor = output.let_go()
            if descriptor is not None:
                self._supervisor.discard(descriptor)

    @property
    def _terminal(self) -> int | None:
        return self._stdout.descriptor if self._has_terminal else None

    def _close_stdin(self) -> None:
        descriptor, self._stdin = self._stdin, None
        if descriptor is not None and not self._has_terminal:
            trio.lowlevel.notify_closing(descriptor)
            os.close(descriptor)

    async def _supervise(self) -> None:
        try:
            while self._exit is None:
                await trio.lowlevel.wait_readable(self._pidfd)
                self._reap()
        finally:
            os.close(self._pidfd)
        self._supervisor.reap_orphans()

    def _reap(self) -> None:
        """Take the main process's status, if it has exited and this was not done before."""
        if self._exit is not None:
            return
        status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG)
        if status is None:
            return
        by_itself = status.si_code == os.CLD_EXITED
        self._exit = Exit(status.si_status, None) if by_itself else Exit(None, status.si_status)
        del self._supervisor._processes[self.pid]
        self._tree.leader_reaped = True
        self._ending.begin()
        self._exited.set()


class _Output:
    """The reading end of one output of a command."""

    def __init__(self, descriptor: int | None, ending: _Ending) -> None:
        self.over = descriptor is None
        self.waiting: trio.CancelScope | None = None
        self.descriptor = descriptor
        self._abandoned = False
        self._last_bytes: int | None = None  # once the drain's time is spent: how much more is delivered
        self._ending = ending
        ending.outputs.append(self)

    async def receive(self, max_bytes: int) -> bytes:
        if max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        await trio.lowlevel.checkpoint_if_cancelled()
        data = self._read_nowait(max_bytes)
        if data is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return data
        while data is None:
            was_quiet = await self._wait_until_readable_or_quiet()
            data = self._read_nowait(max_bytes)
            if data is None and was_quiet:
                self._finish()
                return b""
        return data

    def let_go(self) -> int | None:
        """Give up the descriptor, if it is still open."""
        descriptor, self.descriptor = self.descriptor, None
        self._abandoned = True
        self._finish()
        if descriptor is not None:
            trio.lowlevel.notify_closing(descriptor)
        return descriptor

    async def _wait_until_readable_or_quiet(self) -> bool:
        """Return whether `_Ending` said that enough was waited."""
        assert self.descriptor is not None
        with trio.CancelScope() as self.waiting:
            scope = self.waiting
            self._ending.arm()
            try:
                await trio.lowlevel.wait_readable(self.descriptor)
            finally:
                self.waiting = None
                self._ending.charge()
                self._ending.arm()
        return scope.cancelled_caught

    def _read_nowait(self, max_bytes: int) -> bytes | None:
        if self._abandoned:
            raise trio.ClosedResourceError("the command's output was abandoned")
        if self.over:
            return b""
        assert self.descriptor is not None
        self._ending.charge()
        if self._ending.is_spent:
            if self._last_bytes is None:
                self._last_bytes = _readable_bytes(self.descriptor)
            max_bytes = min(max_bytes, self._last_bytes)
            if not max_bytes:
                self._finish()
                return b""
        try:
            data = os.read(self.descriptor, max_bytes)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EIO:  # a terminal's EOF: nobody has it open any more
                raise
            data = b""
        if self._last_bytes is not None:
            self._last_bytes -= len(data)
        if not data:
            trio.lowlevel.notify_closing(self.descriptor)
            os.close(self.descriptor)
            self.descriptor = None
            self._finish()
        return data

    def _finish(self) -> None:
        self.over = True
        self._ending.arm()


class _Ending:
    """The clock that ends the outputs of a command after its exit.

    It runs for both outputs at once: either may be the one that something still writes to.
    """

    def __init__(self, drain: Drain) -> None:
        self.outputs: list[_Output] = []
        self._quiet = drain.quiet_seconds
        self._left = drain.most_seconds
        self._marked = math.inf  # when time was last charged; infinite until the exit

    @property
    def is_spent(self) -> bool:
        return self._left <= 0

    def begin(self) -> None:
        self._marked = trio.current_time()
        self.arm()

    def charge(self) -> None:
        """Count the time since the last call, or no more than one quiet time of it."""
        if self._marked < math.inf:
            now = trio.current_time()
            self._left -= min(now - self._marked, self._quiet)
            self._marked = now

    def arm(self) -> None:
        """Set the moment at which waiting reads give up: never, unless every output that is open waits."""
        waiting = [output.waiting for output in self.outputs if not output.over]
        deadline = math.inf
        if self._marked < math.inf and None not in waiting:
            deadline = trio.current_time() + max(0.0, min(self._quiet, self._left))
        for scope in waiting:
            if scope is not None:
                scope.deadline = deadline


def _readable_bytes(descriptor: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4))
    return int(count)
