"""The agent's process: listeners, signals, and everything that lives as long as they do."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from pyinfra_agent_protocol import AGENT_BUDGET_BYTES, Budget

from ._accept import Lobby, accept_forever, format_address
from ._admission import Admission
from ._boot import boot_id
from ._cgroup import CgroupsUnavailable, open_cgroups
from ._connection import ConnectionServer
from ._context import Context
from ._handover import REEXECUTE, REPLACE, outputs_among
from ._keys import StateError
from ._kill import become_subreaper
from ._limits import raise_own_limit
from ._litter import Litter
from ._log import log
from ._metrics import Counters
from ._notify import notify_stopping
from ._oom import spare_commands
from ._requests import Requests, RunningRequest
from ._saved import Descriptors, SavedAgent, SavedStateInvalid
from ._session import AgentSession, SessionTable
from ._settings import Cgroups
from ._spawn import inherit_nothing_of_the_agent
from ._supervisor import Supervisor
from ._version import software_version
from ._watch import follow_changes
from ._watchdog import ObservedListener

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyinfra_agent_protocol.keys import KeyPair

    from ._admission import Seat
    from ._cgroup import CommandCgroups
    from ._channel import RequestChannel
    from ._connection import Authorizer
    from ._handover import Inheritance
    from ._settings import Settings

__all__ = ["Agent", "format_address", "prepare_process"]

_NOT_SENT_BYTES: Final = 128 * 1024
_USER_TIMEOUT_MILLISECONDS: Final = 30_000


def prepare_process() -> None:
    """Make this process fit to run commands: nothing of it is inherited, orphans come to it.  Call it first."""
    inherit_nothing_of_the_agent()
    raise_own_limit()
    spare_commands()
    become_subreaper()


class Agent:
    """One agent: `run` it with listeners; `stop` ends it gracefully.

    Raises:
        StateError: the state directory cannot be used, or another agent has it.
    """

    def __init__(self, settings: Settings, key: KeyPair, authorizer: Authorizer) -> None:
        self._settings = settings
        self._key = key
        self._authorizer = authorizer
        self._accepting = trio.CancelScope()
        self._stopping = trio.Event()
        self._requests = Requests()
        self._litter = self._open_litter()
        self._kept_listeners: tuple[int, ...] = ()
        self.counters = Counters()
        #: Set when another agent is to take this one's place, by the signal that said so.
        self.successor: signal.Signals | None = None
        #: What that agent gets, once `run` has returned.
        self.estate: tuple[SavedAgent, Descriptors] | None = None

    async def run(
        self,
        listeners: Sequence[ObservedListener | trio.SocketListener],
        inheritance: Inheritance | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve *listeners* until `stop`; requests that run then get their time to end.

        With *inheritance* it goes on with what the agent before this one did.
        """
        async with trio.open_nursery() as nursery:
            cgroups = self._open_cgroups()
            supervisor = Supervisor(nursery, cgroups)
            nursery.start_soon(supervisor.reap_orphans_forever)
            self._context = Context(self._settings, supervisor, self._litter, boot_id())
            self._requests.open(self._context, nursery)
            self._sessions = SessionTable(self._settings, nursery, Budget(AGENT_BUDGET_BYTES), self._requests.start)
            if inheritance is not None:
                # Before anything waits: the orphans that are reaped first must not be commands.
                self._take_over(inheritance)
            self._listeners = listeners
            admission = Admission(self._settings.unauthenticated_max)
            self._connections = ConnectionServer(
                self._settings,
                self._key,
                self._authorizer,
                admission,
                self._sessions,
                self.counters,
            )
            nursery.start_soon(follow_changes, self._authorizer, self._sessions)
            task_status.started()
            with self._accepting:
                await self._accept(listeners, admission, nursery)
            if self.successor is None:
                await self._drain()
            nursery.cancel_scope.cancel()
        if self.successor is not None:
            self.estate = self._export()
        if cgroups is not None:
            cgroups.close()
        if self._litter is not None:
            self._litter.close()

    def stop(self) -> None:
        """Accept nothing more, let what runs end, and return from `run`."""
        self.successor = None
        self._context.is_stopping = True
        self._accepting.cancel()
        self._stopping.set()

    async def hand_over(self, how: signal.Signals) -> None:
        """Let go of everything, so that another agent can go on with it, and return from `run`.

        Links go on until what cannot be handed over has ended; they are closed and not handed over.
        """
        if self._stopping.is_set():
            return
        is_first, self.successor = self.successor is None, how
        if is_first:
            await self._requests.settle(self._settings.stop_seconds)
            if self.successor is not None:  # it may have been told to stop meanwhile
                self._kept_listeners = tuple(os.dup(listener.socket.fileno()) for listener in self._listeners)
                self._accepting.cancel()

    @property
    def running(self) -> Mapping[RequestChannel, RunningRequest]:
        """What is being carried out."""
        return self._requests.running

    @property
    def sessions(self) -> tuple[AgentSession, ...]:
        """Every session, lost ones included."""
        return self._sessions.sessions

    @property
    def supervisor(self) -> Supervisor:
        """What starts commands."""
        return self._context.supervisor

    @property
    def stop_seconds(self) -> float:
        """What running requests have left to end in after `stop`."""
        return self._settings.stop_seconds

    def use(self, settings: Settings) -> None:
        """Go on with other *settings*; what was used up at the start stays as it is."""
        self._settings = self._context.settings = settings
        self._sessions.use(settings)
        if settings.umask is not None:
            os.umask(settings.umask)

    async def wait_stopping(self) -> None:
        """Return when the agent begins to stop."""
        await self._stopping.wait()

    def kill_commands(self) -> None:
        """Kill the tree of every command that is still running: a loopback agent leaves none behind."""
        for process in self._context.supervisor.processes:
            process.kill_tree()

    async def stop_on_signals(self) -> None:
        """Stop at the first SIGTERM or SIGINT; end at once at the second."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                if self._stopping.is_set():
                    log("killed", signal=signal.Signals(number).name)
                    os._exit(128 + number)
                log("stopping", signal=signal.Signals(number).name)
                notify_stopping(self.stop_seconds)
                self.stop()

    async def hand_over_on_signals(self, early: Sequence[int], is_managed: bool) -> None:
        """Hand over when told so; *early* came before this.

        Without a service manager (*is_managed*) nobody would start another process, and it is told to stop instead.
        """
        async with trio.open_nursery() as nursery:
            with trio.open_signal_receiver(REPLACE, REEXECUTE) as signals:
                for number in early:
                    os.kill(os.getpid(), number)
                async for number in signals:
                    log("handing-over", signal=signal.Signals(number).name)
                    if number == REPLACE and not is_managed:
                        self.stop()
                    else:
                        nursery.start_soon(self.hand_over, signal.Signals(number))

    def _take_over(self, inheritance: Inheritance) -> None:
        for output in inheritance.outputs:
            self._context.supervisor.discard(output)
        if inheritance.state is None:
            return
        try:
            self._requests.restore(inheritance.state, self._sessions, inheritance.descriptors)
        except SavedStateInvalid as reason:
            log("handover-incomplete", reason=reason)
        for output in outputs_among(inheritance.descriptors.left()):
            self._context.supervisor.discard(output)

    def _export(self) -> tuple[SavedAgent, Descriptors]:
        descriptors = Descriptors()
        sessions = self._requests.export(self._sessions.sessions, descriptors)
        saved = SavedAgent(
            software=software_version(),
            written_at=time.monotonic(),
            listen=self._settings.listen,
            listeners=tuple(map(descriptors.put, self._kept_listeners)),
            sessions=sessions,
            discarding=tuple(map(descriptors.put, self._context.supervisor.discarding)),
        )
        return saved, descriptors

    def _open_cgroups(self) -> CommandCgroups | None:
        if self._settings.cgroups is Cgroups.OFF:
            return None
        try:
            cgroups = open_cgroups()
        except CgroupsUnavailable as reason:
            log("without-cgroups", reason=reason)
            return None
        log("with-cgroups", below=cgroups.own)
        return cgroups

    def _open_litter(self) -> Litter | None:
        if self._settings.state_dir is None:
            return None
        try:
            litter = Litter(str(self._settings.state_dir))
            swept = litter.sweep()
        except OSError as error:
            raise StateError(
                f"the state directory {self._settings.state_dir} cannot be used: {error.strerror}"
            ) from error
        for path in swept:
            log("swept", path=path)
        return litter

    async def _accept(
        self,
        listeners: Sequence[ObservedListener | trio.SocketListener],
        admission: Admission,
        connections: trio.Nursery,
    ) -> None:
        def serve(connection: socket.socket, peer: str, seat: Seat) -> None:
            seat.when_evicted = lambda: None  # its task finds out by itself
            connections.start_soon(self._serve, connection, peer, seat)

        try:
            with Lobby(admission, self._settings.handshake_seconds, serve) as lobby:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lobby.run_forever)
                    for listener in listeners:
                        note_turn = listener.note_turn if isinstance(listener, ObservedListener) else lambda: None
                        nursery.start_soon(accept_forever, listener, lobby, note_turn)
        finally:
            for listener in listeners:
                await trio.aclose_forcefully(listener)

    async def _serve(self, connection: socket.socket, peer: str, seat: Seat) -> None:
        self.counters.connections += 1
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
        with suppress(OSError):  # gone before it was served
            tune_socket(stream)
        await self._connections.serve(stream, peer, seat)

    async def _drain(self) -> None:
        with trio.move_on_after(self._settings.stop_seconds):
            while any(not session.is_idle for session in self._sessions.sessions):
                await self._requests.ended.park()
        async with trio.open_nursery() as nursery:
            for session in self._sessions.sessions:
                if session.link is not None:
                    nursery.start_soon(session.link.say_goodbye, "stopping", "the agent is stopping")


def tune_socket(stream: trio.SocketStream) -> None:
    """Set what keeps a link fast and notices a dead peer."""
    # trio sets 16 KiB; a bulk transfer wants a little more in the kernel, and a command beside it no more than this.
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _NOT_SENT_BYTES)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MILLISECONDS)
