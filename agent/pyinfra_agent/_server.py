"""The agent's process: listeners, signals, and everything that lives as long as they do."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING, Final

import trio

from pyinfra_agent_protocol import AGENT_BUDGET_BYTES, Budget

from ._admission import Admission
from ._connection import ConnectionServer
from ._context import Context
from ._dispatch import handle_request
from ._keys import StateError
from ._kill import become_subreaper
from ._litter import Litter
from ._log import log
from ._process import Supervisor
from ._session import AgentSession, SessionTable
from ._spawn import inherit_nothing_of_the_agent

if TYPE_CHECKING:
    from pyinfra_agent_protocol import Request
    from pyinfra_agent_protocol.keys import KeyPair

    from ._channel import RequestChannel
    from ._connection import Authorizer
    from ._settings import Settings

__all__ = ["Agent", "format_address", "prepare_process"]

_NOT_SENT_BYTES: Final = 128 * 1024
_USER_TIMEOUT_MILLISECONDS: Final = 30_000


def prepare_process() -> None:
    """Make this process fit to run commands: nothing of it is inherited, orphans come to it.  Call it first."""
    inherit_nothing_of_the_agent()
    become_subreaper()


def format_address(address: tuple[object, ...]) -> str:
    """Return a socket address as people write it: `host:port`, IPv6 in brackets."""
    host, port = str(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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
        self._request_ended = trio.lowlevel.ParkingLot()
        self._litter = self._open_litter()

    async def run(self, listeners: list[trio.SocketListener]) -> None:
        """Serve *listeners* until `stop`; requests that run then get their time to end."""
        async with trio.open_nursery() as nursery:
            supervisor = Supervisor(nursery)
            nursery.start_soon(supervisor.reap_orphans_forever)
            self._context = Context(self._settings, supervisor, self._litter, _boot_id())
            self._sessions = SessionTable(self._settings, nursery, Budget(AGENT_BUDGET_BYTES), self._start_request)
            self._requests = nursery
            self._connections = ConnectionServer(
                self._settings,
                self._key,
                self._authorizer,
                Admission(self._settings.unauthenticated_max),
                self._sessions,
            )
            with self._accepting:
                await trio.serve_listeners(self._serve, listeners, handler_nursery=nursery)
            await self._drain()
            nursery.cancel_scope.cancel()
        if self._litter is not None:
            self._litter.close()

    def stop(self) -> None:
        """Accept nothing more, let what runs end, and return from `run`."""
        self._context.is_stopping = True
        self._accepting.cancel()
        self._stopping.set()

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
                self.stop()

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

    def _start_request(self, session: AgentSession, channel: RequestChannel, request: Request) -> None:
        self._requests.start_soon(self._run_request, session, channel, request)

    async def _run_request(self, session: AgentSession, channel: RequestChannel, request: Request) -> None:
        await handle_request(self._context, session, channel, request)
        self._request_ended.unpark_all()

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            peer = format_address(stream.socket.getpeername())
            tune_socket(stream)
        except OSError:  # gone before it was served
            await trio.aclose_forcefully(stream)
            return
        await self._connections.serve(stream, peer)

    async def _drain(self) -> None:
        with trio.move_on_after(self._settings.stop_seconds):
            while any(not session.is_idle for session in self._sessions.sessions):
                await self._request_ended.park()
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


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read(64).strip()
    except OSError:  # not Linux, or no /proc
        return ""
