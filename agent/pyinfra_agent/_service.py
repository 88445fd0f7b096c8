"""What an agent that runs as a service has beside its connections: watchdog, status, reload."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import trio

from pyinfra_agent_protocol import Exec, Get, Put, Stat

from ._limits import reserved_descriptors
from ._notify import notify_ready, watchdog_seconds
from ._reload import reload_on_signal
from ._status import serve_status
from ._version import software_version
from ._watchdog import ObservedListener, feed_watchdog, try_to_spawn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pyinfra_agent_protocol import Request

    from ._reload import Reloader
    from ._server import Agent

__all__ = ["Service"]


class Service:
    """The tasks around a running *agent* that listens at *addresses* with *listeners*."""

    def __init__(
        self, agent: Agent, listeners: Sequence[ObservedListener], addresses: Sequence[str], reloader: Reloader
    ) -> None:
        self._agent = agent
        self._listeners = listeners
        self._addresses = addresses
        self._reloader = reloader
        self._started = trio.current_time()

    async def run(self, state_dir: Path, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Say that the agent is ready, and do what is to be done beside it until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reload_on_signal, self._reloader, self.describe)
            nursery.start_soon(serve_status, state_dir, self.report)
            if (seconds := watchdog_seconds()) is not None:
                nursery.start_soon(feed_watchdog, seconds, self._parts(), self.describe)
            notify_ready(self.describe())
            task_status.started()

    def describe(self) -> str:
        """Return what goes on, in a few words."""
        sessions, requests = len(self._agent.sessions), len(self._agent.running)
        return f"{sessions} {_plural('session', sessions)}, {requests} {_plural('request', requests)} running"

    def report(self) -> dict[str, Any]:
        """Return what `pyinfra-agent status` shows; of a command only its label, which its controller has masked."""
        agent, counters, now = self._agent, self._agent.counters, trio.current_time()
        sessions = [
            {
                "session": str(session),
                "controller": str(session.controller),
                "peer": session.peer,
                "connected": session.link is not None,
            }
            for session in agent.sessions
        ]
        requests = [
            {
                "controller": str(running.session.controller),
                "session": str(running.session),
                "request": running.request.NAME,
                "label": _label(running.request),
                "age_seconds": round(now - running.since, 3),
            }
            for running in agent.running.values()
        ]
        return {
            "version": software_version(),
            "pid": os.getpid(),
            "uptime_seconds": round(now - self._started, 3),
            "listening": list(self._addresses),
            "sessions": len(sessions),
            "sessions_lost": sum(not session["connected"] for session in sessions),
            "session_list": sessions,
            "requests_running": len(requests),
            "oldest_request_seconds": max((now - running.since for running in agent.running.values()), default=0),
            "request_list": requests,
            "connections": counters.connections,
            "connections_refused": counters.refused,
            "received_bytes": counters.bytes_received,
            "sent_bytes": counters.bytes_sent,
            "resident_memory_bytes": _resident_bytes(),
            "open_descriptors": _open_descriptors(),
        }

    def _parts(self) -> dict[str, Any]:
        async def accept() -> None:
            for listener in self._listeners:
                await listener.wait_served()

        async def sessions() -> None:
            await trio.lowlevel.checkpoint()
            self.report()  # it walks through all of them

        async def spawn() -> None:
            await try_to_spawn(self._agent.supervisor)

        return {"accept": accept, "sessions": sessions, "spawn": spawn}


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _label(request: Request) -> str:
    if isinstance(request, Exec):
        return request.label
    if isinstance(request, Put | Get | Stat):
        return request.path.decode("utf-8", "backslashreplace")
    return ""


def _resident_bytes() -> int:
    with reserved_descriptors(), open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _open_descriptors() -> int:
    with reserved_descriptors():
        return len(os.listdir("/proc/self/fd")) - 1  # one is for the listing
