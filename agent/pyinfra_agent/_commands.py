"""The exec request: a process between a channel's two streams."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from pyinfra_agent_protocol import ExecResult, RequestRefused, ResizeReceived, SignalReceived

from ._channel import RequestCancelled, SessionEnded
from ._limited import limiting_prefix
from ._limits import RareLog
from ._pty import PtySize
from ._saved import SavedRun
from ._spawn import Command, SpawnFailed, Stdin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyinfra_agent_protocol import Exec

    from ._channel import RequestChannel
    from ._context import Context
    from ._process import Process
    from ._saved import Descriptors

__all__ = ["ExecRun", "resume_exec", "run_exec", "start_command", "start_exec"]

#: One read of a command's output: what one round of the event loop moves.
_READ_BYTES: Final = 256 * 1024

#: Linux's limit for one argument (MAX_ARG_STRLEN) includes the terminating NUL.
_ARGUMENT_MAX_BYTES: Final = 128 * 1024 - 1

_out_of_resources: Final = RareLog("spawn-failed")


def start_command(context: Context, command: Command) -> Process:
    """Start *command*; raises `RequestRefused` with a line that says what to look at."""
    most = context.settings.commands_max
    if context.supervisor.unfinished >= most:
        raise RequestRefused(
            "limit",
            f"the agent runs {most} commands already, which is its limit: wait for some to end, or raise max_commands"
            " in the agent's configuration file",
        )
    try:
        if context.account is None:
            return _spawn(context, command)
        with context.account.taking(command) as taken:
            return _spawn(context, taken)
    except SpawnFailed as failure:
        if failure.what == "resources":
            _out_of_resources.note(error=os.strerror(failure.errno))
        raise RequestRefused("spawn", failure.text) from failure


def _spawn(context: Context, command: Command) -> Process:
    prefix = limiting_prefix(context.settings)
    return context.supervisor.spawn(replace(command, prefix=prefix) if prefix else command, context.settings.drain)


async def run_exec(context: Context, channel: RequestChannel, request: Exec) -> ExecResult:
    """Run a command whose script comes as data, until it is over, timed out or cancelled, and say how it ended."""
    assert request.script_index is not None  # else it was begun by `begin_request`
    script, first_input = await _receive_script(channel, request.script_size)
    held: list[int] = []
    try:
        argv = list(request.argv)
        argv[request.script_index] = _as_argument(script, held)
        run = start_exec(context, channel, replace(request, argv=tuple(argv)), held)
    finally:
        for descriptor in held:
            os.close(descriptor)
    return await run.until_over(first_input)


def start_exec(context: Context, channel: RequestChannel, request: Exec, descriptors: Sequence[int] = ()) -> ExecRun:
    """Start a command whose arguments are all there; its `until_over` has to follow.

    Raises:
        RequestRefused: it did not start.
    """
    environment = context.environment()
    # Before the request's variables count: they are the command's, and must not move where it starts.
    directory = context.directory(environment)
    environment |= request.env or {}
    process = start_command(
        context,
        Command(
            argv=request.argv,
            env=environment,
            cwd=os.path.join(directory, request.cwd or b""),
            stdin=Stdin.PIPE if request.stdin else Stdin.NONE,
            pty=PtySize(request.pty.rows, request.pty.columns, request.pty.term) if request.pty else None,
            descriptors=descriptors,
            nice=context.settings.nice,
        ),
    )
    return ExecRun(context, channel, process, request)


async def resume_exec(
    context: Context, channel: RequestChannel, request: Exec, process: Process, saved: SavedRun
) -> ExecResult:
    """Go on with a command that the agent before this one started."""
    run = ExecRun(context, channel, process, request)
    run.restore(saved)
    return await run.until_over()


class ExecRun:
    """The tasks around one process; made by `start_exec`."""

    def __init__(self, context: Context, channel: RequestChannel, process: Process, request: Exec) -> None:
        self._context = context
        self._channel = channel
        self._process = process
        self._request = request
        self._reason = "exited"
        self._nursery: trio.Nursery | None = None
        self._alone = trio.CancelScope()
        self._outputs = trio.CancelScope()
        self._is_over = False
        self._tree_ended = trio.Event()
        milliseconds = request.timeout_ms
        self._deadline = trio.current_time() + milliseconds / 1000 if milliseconds is not None else math.inf
        channel.when_exported(self._export)
        channel.when_released(process.abandon)

    def restore(self, saved: SavedRun) -> None:
        """Become, from new, as the run was that the agent before this one handed over."""
        self._reason = saved.reason
        if saved.timeout_seconds is not None:
            self._deadline = trio.current_time() + saved.timeout_seconds

    def _export(self, descriptors: Descriptors) -> SavedRun:
        left = self._deadline - trio.current_time()
        return SavedRun(self._process.export(descriptors), left if left < math.inf else None, self._reason)

    async def until_over(self, first_input: bytes = b"") -> ExecResult:
        """Run to the end; the process is let go of when the channel is released.

        A plain command has nothing but outputs, and needs no task beside this one: each takes a short one's time, and
        so does a nursery. If it is to be ended after all, it is one of the others from then on.
        """
        channel, request = self._channel, self._request
        channel.listen(self._control)
        channel.when_cancelled(self._on_cancel)
        channel.when_forsaken(self._on_forsaken)
        if not request.stdin and self._deadline == math.inf and self._reason == "exited":
            with self._alone:
                await self._send_outputs()
                self._is_over = True
        if not self._is_over or self._reason != "exited":
            await self._until_over_with_others(first_input)
        return self._result()

    async def _until_over_with_others(self, first_input: bytes) -> None:
        async with trio.open_nursery() as self._nursery:
            if self._request.stdin:
                self._nursery.start_soon(self._feed, first_input)
            if self._reason != "exited":
                self._nursery.start_soon(self._finish_tree)
            elif self._deadline < math.inf:
                self._nursery.start_soon(self._expire)
            with self._outputs:
                await self._send_outputs()
            self._is_over = True
            if self._reason != "exited":
                await self._tree_ended.wait()  # what it started has its grace, though its main process is gone
            self._nursery.cancel_scope.cancel()

    async def _send_outputs(self) -> None:
        await self._channel.send_unsent()
        while (output := await self._process.read(_READ_BYTES)) is not None:
            stream, data = output
            await self._channel.send(data, stream)

    def _result(self) -> ExecResult:
        ended = self._process.exit
        if ended is None:
            # Stuck in the kernel: KILL was sent and will act when it returns from there.
            return ExecResult(exit=None, signal=int(signal.SIGKILL), reason=self._reason)
        if ended.code is None and ended.signal is None:
            raise RequestRefused(
                "outcome-unknown",
                "the command has ended, and how is unknown: the agent was restarted meanwhile, and the target's kernel"
                " tells that of no other process's child before Linux 6.15 (SIGUSR2, in place of a restart, avoids it)",
            )
        return ExecResult(exit=ended.code, signal=ended.signal, reason=self._reason)

    async def _feed(self, first_input: bytes) -> None:
        try:
            try:
                await self._process.write_rest()
                if first_input:
                    await self._process.write_stdin(first_input)
                while chunks := await self._channel.receive():
                    await self._process.write_stdin(b"".join(chunks))
                await self._process.end_stdin()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                # The command wants no more. What still comes is taken and dropped, so that the sender never waits.
                while await self._channel.receive():
                    pass
        except SessionEnded:
            # The session ended: a command must not take half of its input for all of it, but it must not
            # wait for ever either. Closing is what a lost terminal does.
            await self._process.end_stdin()
        except RequestCancelled:
            return  # the process is being ended

    def _on_cancel(self) -> None:
        # A lost session is not a cancelled one: its commands live on for as long as they may.
        if not self._channel.session_ended:
            self._on_forsaken()

    def _on_forsaken(self) -> None:
        if self._is_over:
            return
        if self._nursery is not None:
            self._nursery.start_soon(self._end_tree, "cancelled")
        elif self._reason == "exited":
            self._reason = "cancelled"
            self._alone.cancel()

    async def _expire(self) -> None:
        await trio.sleep_until(self._deadline)
        await self._end_tree("timeout")

    async def _end_tree(self, reason: str) -> None:
        if self._reason != "exited":
            return
        self._reason = reason
        await self._finish_tree()

    async def _finish_tree(self) -> None:
        await self._process.terminate_tree(self._context.settings.grace_seconds)
        self._tree_ended.set()
        # What the dying wrote is delivered; a survivor's open output or a full window must not keep us.
        await trio.sleep(self._context.settings.drain.quiet_seconds)
        self._outputs.cancel()

    def _control(self, event: SignalReceived | ResizeReceived) -> None:
        if isinstance(event, SignalReceived):
            self._process.signal(event.signal.signal)
        else:
            self._process.resize(event.size.rows, event.size.columns)


async def _receive_script(channel: RequestChannel, size: int) -> tuple[bytes, bytes]:
    """Receive the script that comes first; return it and what came of the standard input behind it."""
    received = bytearray()
    try:
        while len(received) < size:
            chunks = await channel.receive()
            if not chunks:
                raise RequestRefused("bad-request", f"the script ended after {len(received)} of {size} bytes")
            for chunk in chunks:
                received += chunk
    except trio.Cancelled:
        channel.put_back(bytes(received))
        raise
    return bytes(received[:size]), bytes(received[size:])


def _as_argument(script: bytes, held: list[int]) -> bytes:
    """Return what stands in argv for *script*: itself, or a line that reads it from a descriptor in *held*."""
    if b"\0" in script:
        raise RequestRefused("bad-request", "the script contains a NUL byte: no shell can read it")
    if len(script) <= _ARGUMENT_MAX_BYTES:
        return script
    try:
        descriptor = os.memfd_create("pyinfra-agent-script", os.MFD_CLOEXEC)
        held.append(descriptor)
        view = memoryview(script)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
    except OSError as error:
        number = error.errno or 0
        _out_of_resources.note(error=os.strerror(number))
        text = f"cannot hold a script of {len(script)} bytes: {os.strerror(number).lower()}"
        raise RequestRefused("spawn", text) from error
    return b". /proc/self/fd/%d" % descriptor
