"""The requests that an agent carries out, and how they come to the agent that takes its place.

A command is handed over as it is. A request that was not begun is begun by the next agent. Whatever else is under way
(a file, a look at one) is given time to end, and is refused if that is not enough: nothing of it is half done.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import msgpack
import trio

from pyinfra_agent_protocol import Exec, MessageInvalid

from ._commands import resume_exec
from ._dispatch import HANDLERS, begin_request, handle_request
from ._log import log
from ._saved import SavedSession, SavedStateInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyinfra_agent_protocol import Request

    from ._channel import RequestChannel
    from ._context import Context
    from ._dispatch import Handler
    from ._saved import Descriptors, SavedAgent, SavedRequest
    from ._session import AgentSession, SessionTable

__all__ = ["Requests", "RunningRequest"]

_KINDS: Final = {kind.NAME: kind for kind in HANDLERS}


@dataclass(frozen=True, slots=True)
class RunningRequest:
    """A request that was not answered.

    Attributes:
        since: when it arrived, by `trio.current_time`.
    """

    session: AgentSession
    request: Request
    since: float


class Requests:
    """Every request of every session until it is answered; an agent has one.

    Attributes:
        running: those requests.
        ended: parked here waits who wants to know when a request was answered.
    """

    def __init__(self) -> None:
        self.running: dict[RequestChannel, RunningRequest] = {}
        self.ended = trio.lowlevel.ParkingLot()
        self._begun: set[RequestChannel] = set()
        self._is_settling = False

    def open(self, context: Context, nursery: trio.Nursery) -> None:
        """Carry requests out in *context*, by tasks in *nursery*; to be called before anything else."""
        self._context = context
        self._nursery = nursery

    def start(self, session: AgentSession, channel: RequestChannel, request: Request) -> None:
        """Carry *request* out; nothing is begun any more once `settle` was called."""
        self.running[channel] = RunningRequest(session, request, trio.current_time())
        if not self._is_settling:
            self._begin(channel)

    async def settle(self, seconds: float) -> None:
        """Begin nothing, and wait for what cannot be handed over, no longer than *seconds*."""
        self._is_settling = True
        with trio.move_on_after(seconds):
            while self._in_the_way():
                await self.ended.park()
        for channel in self.running:
            channel.is_handed_over = True

    def export(self, sessions: Iterable[AgentSession], descriptors: Descriptors) -> tuple[SavedSession, ...]:
        """Return *sessions* and those that are over and whose commands run on; all tasks have ended.

        Requests that are in the way are refused.
        """
        for channel in self._in_the_way():
            running = self.running.pop(channel)
            session, request = running.session, running.request
            log("not-handed-over", controller=session.controller, session=session, request=request.NAME)
            session.refuse(
                channel,
                "stopping",
                f"the agent was restarted, and this {request.NAME} did not end in time: it was not carried out",
            )
        found = dict.fromkeys([*sessions, *(running.session for running in self.running.values())])
        return tuple(self._export_session(session, descriptors) for session in found)

    def restore(self, saved: SavedAgent, sessions: SessionTable, descriptors: Descriptors) -> None:
        """Go on with what an agent before this one was asked.

        Raises:
            SavedStateInvalid: what it left does not fit together; part of it was taken over.
        """
        elapsed = max(0.0, time.monotonic() - saved.written_at)
        for saved_session in saved.sessions:
            session = sessions.restore(saved_session)
            for request in saved_session.requests:
                self._restore_request(session, request, descriptors, elapsed)
        for place in saved.discarding:
            descriptor = descriptors.take(place)
            assert descriptor is not None
            self._context.supervisor.discard(descriptor)

    def _export_session(self, session: AgentSession, descriptors: Descriptors) -> SavedSession:
        is_over = session.is_over or session.is_closing
        session.protocol.detach()
        return SavedSession(
            controller=msgpack.packb(session.controller.to_state()),
            ident=session.ident,
            attempt=session.attempt,
            protocol=None if is_over else session.protocol.export(),
            requests=tuple(
                channel.export(running.request, trio.current_time() - running.since, descriptors)
                for channel, running in self.running.items()
                if running.session is session
            ),
        )

    def _restore_request(
        self, session: AgentSession, saved: SavedRequest, descriptors: Descriptors, elapsed: float
    ) -> None:
        try:
            request = _KINDS[saved.name].from_fields(msgpack.unpackb(saved.fields))
        except (KeyError, ValueError, MessageInvalid) as error:
            raise SavedStateInvalid(f"request {saved.name}: {error}") from error
        channel = session.restore_channel(saved)
        self.running[channel] = RunningRequest(session, request, trio.current_time() - elapsed - saved.age_seconds)
        run = saved.run
        if run is None:
            self._begin(channel)
            return
        assert isinstance(request, Exec)
        process = self._context.supervisor.restore(run.process, descriptors, self._context.settings.drain)
        if run.timeout_seconds is not None:
            run = replace(run, timeout_seconds=run.timeout_seconds - elapsed)
        self._begin(channel, partial(resume_exec, process=process, saved=run))

    def _begin(self, channel: RequestChannel, begun: Handler | None = None) -> None:
        running = self.running[channel]
        self._begun.add(channel)
        begun = begun or begin_request(self._context, running.session, channel, running.request)
        self._nursery.start_soon(self._carry_out, channel, running, begun)

    async def _carry_out(self, channel: RequestChannel, running: RunningRequest, begun: Handler) -> None:
        # Not in a `finally`: a request whose task is cancelled is handed over, or ends with the agent.
        await handle_request(self._context, running.session, channel, running.request, begun)
        del self.running[channel]
        self._begun.discard(channel)
        self.ended.unpark_all()

    def _in_the_way(self) -> list[RequestChannel]:
        return [
            channel
            for channel, running in self.running.items()
            if channel in self._begun and not isinstance(running.request, Exec)
        ]
