"""One running command: its streams and its end.

A command is over when its main process has exited and both outputs are at EOF, or have been quiet for a moment
(`_drain`): `sleep 300 &` holds the outputs open for five minutes, while `exec > >(tee log)` still writes up to 50 ms
after the exit. Normal exit never kills anything. An output that is not at EOF is read and thrown away until it is,
and never closed before: a daemon that still prints must not die of SIGPIPE.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from pyinfra_agent._drain import Draining
from pyinfra_agent._exits import UNKNOWN, is_our_child, wait_status
from pyinfra_agent._kill import ProcessTree
from pyinfra_agent._pty import end_of_file, has_unread_input, open_slave, set_size
from pyinfra_agent._saved import SavedProcess
from pyinfra_agent._spawn import Child

if TYPE_CHECKING:
    from pyinfra_agent._cgroup import Cgroup
    from pyinfra_agent._drain import Drain
    from pyinfra_agent._saved import Descriptors
    from pyinfra_agent._supervisor import Supervisor

__all__ = ["Exit", "Process"]

_UNKILLABLE_SECONDS: Final = 2.0  # a process in uninterruptible sleep survives SIGKILL for as long as it sleeps
_REAPED_POLL_SECONDS: Final = 0.01
_KEYBOARD_SIGNALS: Final = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP})
#: Between two looks whether what was typed at a terminal was read.
_FIRST_LOOK_SECONDS: Final = 0.001
_LAST_LOOK_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Exit:
    """How a main process ended: one of the exit code (0..255) and the signal that killed it is set.

    Neither is where nobody knows: it ended while one agent took the place of another (`_exits`).
    """

    code: int | None
    signal: int | None


class Process:
    """A running command. `Supervisor.spawn` makes it; whoever asked for it calls `abandon` when done with it.

    One task at a time may read, and one may write.
    """

    # Most commands are short, and a task costs more than all the system calls of one. So the task that reads both
    # outputs also sees the exit: it waits on an epoll descriptor that holds all three. Only where somebody waits for
    # the exit without reading does a task of its own do that. And until the exit the writing ends of the outputs are
    # kept open here: else each output's end would wake the agent once more, in the moment before the exit does.

    def __init__(self, supervisor: Supervisor, child: Child, cgroup: Cgroup | None, drain: Drain) -> None:
        self.pid = child.pid
        self._supervisor = supervisor
        self._pidfd = -1 if child.pidfd is None else child.pidfd
        self._is_child = True
        self._has_terminal = child.has_terminal
        self._stdin = child.stdin  # with a terminal, its master, which is stdout's to close
        self._last_byte: int | None = None
        self._unwritten = b""
        self._exit: Exit | None = None
        self._exited = trio.Event()
        self._is_watched = False
        self._cgroup = cgroup
        self._tree = ProcessTree(child.pid, cgroup)
        #: Open outputs and the stream that each is: 0 stdout, 1 stderr.
        self._outputs = {
            number: stream for stream, number in enumerate((child.stdout, child.stderr)) if number is not None
        }
        self._terminal = child.stdout if child.has_terminal else None
        self._held = child.held
        self._poll = select.epoll()
        for descriptor in self._outputs:
            self._poll.register(descriptor, select.EPOLLIN)
        if child.pidfd is not None:
            self._poll.register(child.pidfd, select.EPOLLIN)
        self._ready: list[int] = []
        self._is_waiting = False  # for an output or the exit, and for as long as that takes
        self._drain = Draining(drain)
        self._is_abandoned = False

    def __repr__(self) -> str:
        state = "running" if self._exit is None else repr(self._exit)
        return f"<Process {self.pid}: {state}>"

    # --- handing over ---

    def export(self, descriptors: Descriptors) -> SavedProcess:
        """Return what an agent must know that takes this one's place. Nobody may read or write any more."""
        self._let_outputs_end()
        outputs = {stream: number for number, stream in self._outputs.items()}
        stdout, stderr = outputs.get(0), outputs.get(1)
        stdin = None if self._has_terminal and stdout is None else self._stdin
        ended = self._exit or Exit(None, None)
        drain_seconds, rest = self._drain.export((stdout, stderr))
        return SavedProcess(
            pid=self.pid,
            has_terminal=self._has_terminal,
            pidfd=descriptors.add(self._pidfd) if self._exit is None else None,
            stdin=descriptors.add(stdin),
            stdout=descriptors.add(stdout),
            stderr=descriptors.add(stderr),
            has_exited=self._exit is not None,
            exit_code=ended.code,
            exit_signal=ended.signal,
            unwritten=self._unwritten,
            last_byte=self._last_byte,
            drain_seconds=drain_seconds,
            rest=rest,
            cgroup=str(self._cgroup.path) if self._cgroup is not None else None,
            tree=self._tree.export(),
        )

    @classmethod
    def restored(
        cls, supervisor: Supervisor, saved: SavedProcess, descriptors: Descriptors, cgroup: Cgroup | None, drain: Drain
    ) -> Process:
        """Return the process that was exported."""
        pidfd, stdin, stdout, stderr = map(descriptors.take, (saved.pidfd, saved.stdin, saved.stdout, saved.stderr))
        process = cls(supervisor, Child(saved.pid, pidfd, stdin, stdout, stderr, saved.has_terminal), cgroup, drain)
        if saved.has_terminal and stdout is not None and not saved.has_exited:
            process._held = open_slave(stdout)
        process._unwritten, process._last_byte = saved.unwritten, saved.last_byte
        process._tree.restore(saved.tree)
        if saved.has_exited:
            process._exit = Exit(saved.exit_code, saved.exit_signal)
            process._exited.set()
            process._tree.leader_reaped = True
            process._drain.resume(saved.drain_seconds, dict(zip((stdout, stderr), saved.rest, strict=True)))
        else:
            process._is_child = is_our_child(saved.pid)
        return process

    async def write_rest(self) -> None:
        """Write what the agent before this one had not yet written; raises as `write_stdin` does."""
        rest, self._unwritten = self._unwritten, b""
        await self.write_stdin(rest)

    # --- use ---

    @property
    def exit(self) -> Exit | None:
        """How the main process ended, or None while it runs."""
        return self._exit

    async def wait(self) -> Exit:
        """Wait until the main process has exited. Its outputs may still have something to say."""
        self._watch()
        await self._exited.wait()
        assert self._exit is not None
        return self._exit

    async def read(self, max_bytes: int) -> tuple[int, bytes] | None:
        """Return the next output, as 0 (stdout) or 1 (stderr) and at least one byte; None when the command is over.

        It is over when the main process has exited and its outputs are at EOF or drained (`Drain`). With a terminal
        everything is on 0. A read that is cancelled has taken nothing.

        Raises:
            trio.ClosedResourceError: `abandon` was called.
        """
        if max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        await trio.lowlevel.checkpoint_if_cancelled()
        has_waited = False
        self._drain.charge()
        while not self._is_abandoned:
            found = self._read_last(max_bytes) if self._drain.is_spent else self._read_ready(max_bytes)
            if found is not None or self._is_over:
                if not has_waited:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return found
            self._ready = [descriptor for descriptor, _ in self._poll.poll(0)]
            if not self._ready:
                await self._wait_until_ready()
                has_waited = True
        raise trio.ClosedResourceError("the command's output was abandoned")

    async def write_stdin(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`. If cancelled, `export` knows which part of it was not written.

        Waits for as long as nobody reads, even past the end of the main process: cancel it then.

        Raises:
            trio.BrokenResourceError: nobody can read it any more.
            trio.ClosedResourceError: there is no stdin, or it was ended.
        """
        with memoryview(data) as view:
            sent = 0
            try:
                await trio.lowlevel.checkpoint()
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
            except trio.Cancelled:
                self._unwritten = bytes(view[sent:])
                raise
            finally:
                if sent:
                    self._last_byte = view[sent - 1]

    async def end_stdin(self) -> None:
        """Let the command see the end of its input; no error if it has ended or never was.

        A terminal stays open, so there the end-of-file character is typed, once everything before it was read.
        """
        interval = _FIRST_LOOK_SECONDS
        while self._stdin is not None and self._terminal is not None and has_unread_input(self._terminal):
            await trio.sleep(interval)
            interval = min(interval * 2, _LAST_LOOK_SECONDS)
        if self._stdin is not None and self._terminal is not None:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self.write_stdin(end_of_file(self._terminal, self._last_byte))
        else:
            await trio.lowlevel.checkpoint()
        self._close_stdin()

    def signal(self, number: int) -> None:
        """Signal the command's process group; nothing happens once the main process has exited.

        What a keyboard would send (SIGINT, SIGQUIT, SIGTSTP) goes to a terminal's foreground group, as from there.
        """
        if self._exit is not None or not self._is_there():
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
        self._watch()
        hang_up = (signal.SIGHUP,) if self._terminal is not None else ()
        self._tree.signal(signal.SIGTERM, *hang_up, signal.SIGCONT)
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
        if self._is_abandoned:
            return
        self._is_abandoned = True
        if self._exit is not None:
            self._supervisor.reap_orphans()
        self._close_stdin()
        if not self._has_terminal:
            self._let_outputs_end()
        self._watch()
        trio.lowlevel.notify_closing(self._poll)
        self._poll.close()
        self._terminal = None
        while self._outputs:
            descriptor, _ = self._outputs.popitem()
            trio.lowlevel.notify_closing(descriptor)
            self._supervisor.discard(descriptor)
        self._finish()

    # --- reading ---

    @property
    def _is_over(self) -> bool:
        return self._exit is not None and (not self._outputs or self._drain.is_over)

    def _read_ready(self, max_bytes: int) -> tuple[int, bytes] | None:
        """Take note of what is ready, up to the first output that says something."""
        while self._ready:
            descriptor = self._ready.pop(0)  # in the order in which they became ready
            if descriptor == self._pidfd:
                self.reap()
                # What was written before the exit is there.
                self._ready = list(self._outputs)
            elif descriptor in self._outputs:
                data = self._read_output(descriptor, max_bytes)
                if data:
                    return self._outputs[descriptor], data
        return None

    def _read_last(self, max_bytes: int) -> tuple[int, bytes] | None:
        """The drain's time is spent: return what had been written by then, and no more."""
        for descriptor, stream in tuple(self._outputs.items()):
            most = min(max_bytes, self._drain.rest_of(descriptor))
            data = self._read_output(descriptor, most) if most else None
            if data:
                self._drain.take(descriptor, len(data))
                return stream, data
        self._drain.is_over = True
        return None

    def _read_output(self, descriptor: int, max_bytes: int) -> bytes | None:
        """Return what is there, if anything; an output that is at its end is closed."""
        try:
            data = os.read(descriptor, max_bytes)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EIO:  # a terminal's EOF: nobody has it open any more
                raise
            data = b""
        if not data:
            del self._outputs[descriptor]
            if self._terminal is not None:
                self._terminal = None
                trio.lowlevel.notify_closing(descriptor)  # somebody may wait to write there
            os.close(descriptor)
        return data

    async def _wait_until_ready(self) -> None:
        """Wait for an output or the exit; after the exit no longer than the drain says."""
        if self._exit is None:
            # Most commands wait here once, and no deadline would take as long to set up and down as all else they do.
            self._is_waiting = True
            try:
                await trio.lowlevel.wait_readable(self._poll)
            except trio.ClosedResourceError:
                if self._is_abandoned:
                    raise
                # Somebody else saw the exit, and from now on there is a deadline.
            finally:
                self._is_waiting = False
                self._drain.charge()
            return
        self._supervisor.reap_orphans()
        with trio.CancelScope(deadline=self._deadline()) as scope:
            try:
                await trio.lowlevel.wait_readable(self._poll)
            finally:
                self._drain.charge()
        if scope.cancelled_caught and self._outputs and not self._poll.poll(0):
            self._drain.is_over = True

    def _deadline(self) -> float:
        return trio.current_time() + self._drain.patience_seconds if self._outputs else -math.inf

    # --- the end ---

    def _is_there(self) -> bool:
        """Tell whether the main process was not reaped; our child cannot be without us."""
        if not self._is_child:
            try:
                signal.pidfd_send_signal(self._pidfd, 0)
            except OSError as error:
                return error.errno != errno.ESRCH
        return True

    def _watch(self) -> None:
        """See to it that the exit is noticed even though nobody reads."""
        if self._exit is None and not self._is_watched:
            self._is_watched = True
            self._supervisor.start_soon(self._wait_for_exit)

    async def _wait_for_exit(self) -> None:
        while self._exit is None:
            try:
                await trio.lowlevel.wait_readable(self._pidfd)
            except trio.ClosedResourceError:
                return  # a reader was first
            self.reap()
            if self._exit is None:
                await trio.sleep(_REAPED_POLL_SECONDS)  # its parent, which is not us, has not yet reaped it
        self._supervisor.reap_orphans()

    def reap(self) -> None:
        """Take the main process's status, if it has exited and this was not done before."""
        if self._exit is not None:
            return
        self._exit = self._ended()
        if self._exit is None:
            return
        self._supervisor.note_exit(self)
        self._tree.leader_reaped = True
        self._let_outputs_end()
        self._drain.begin()
        self._exited.set()
        if self._is_watched:
            trio.lowlevel.notify_closing(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        if self._is_waiting:
            trio.lowlevel.notify_closing(self._poll)
        self._finish()

    def _let_outputs_end(self) -> None:
        """From now on an output is at its end when nobody but us has it open any more."""
        held, self._held = self._held, ()
        for descriptor in held:
            os.close(descriptor)

    def _ended(self) -> Exit | None:
        """Return how the main process ended, if it did."""
        if self._is_child:
            status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG)
            if status is None:
                return None
            by_itself = status.si_code == os.CLD_EXITED
            return Exit(status.si_status, None) if by_itself else Exit(None, status.si_status)
        word = wait_status(self._pidfd)
        if word is None:
            if not self._is_abandoned:
                self._poll.modify(self._pidfd, 0)  # EPOLLHUP comes without being asked for
            return None
        if word == UNKNOWN:
            return Exit(None, None)
        return Exit(os.WEXITSTATUS(word), None) if os.WIFEXITED(word) else Exit(None, os.WTERMSIG(word))

    def _finish(self) -> None:
        """Give back what the command had of the agent's, once it has exited and nobody will want to end its tree."""
        if self._exit is not None and self._is_abandoned:
            self._tree.cgroup = None  # another command's from now on
            self._supervisor.let_go(self, self._cgroup)

    def _close_stdin(self) -> None:
        descriptor, self._stdin = self._stdin, None
        if descriptor is not None and not self._has_terminal:
            trio.lowlevel.notify_closing(descriptor)
            os.close(descriptor)
