"""Sessions: what the agent keeps of a controller while links come and go (SPEC.md section 7).

A session's requests run in the agent's nursery and not in a link's, so a lost link stops nothing.
"""

from __future__ import annotations

import os
import platform
import pwd
from typing import TYPE_CHECKING

import trio

from pyinfra_agent_protocol import (
    SESSION_BUDGET_BYTES,
    Budget,
    CancelReceived,
    ControllerPayload,
    DataReceived,
    Event,
    GoodbyeReceived,
    PongReceived,
    ProtocolError,
    Request,
    RequestReceived,
    ResizeReceived,
    Result,
    ResumeInvalid,
    Session,
    Side,
    SignalReceived,
    StreamEnded,
    Welcome,
)

from ._channel import RequestChannel
from ._log import log
from ._version import software_version

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._authorized import Controller
    from ._link import Link
    from ._settings import Settings

__all__ = ["AgentSession", "SessionTable"]


class AgentSession:
    """One session's state in this process; made by `SessionTable`."""

    def __init__(
        self,
        controller: Controller,
        ident: bytes,
        budget: Budget,
        requests_max: int,
        start_request: Callable[[AgentSession, RequestChannel, Request], None],
    ) -> None:
        self.controller = controller
        self.ident = ident
        self.attempt = 0
        self.link: Link | None = None
        self.protocol = Session(Side.AGENT, budget=Budget(SESSION_BUDGET_BYTES, budget), channels_max=requests_max)
        #: Set by close_session: the link ends once its answer is written, and the session with it.
        self.is_closing = False
        self.is_over = False
        #: Runs while the session waits for a link; cancelled when it gets one or is dropped.
        self.expiry = trio.CancelScope()
        self._channels: dict[int, RequestChannel] = {}
        self._start_request = start_request
        self._work = trio.Event()

    def __str__(self) -> str:
        return self.ident.hex()[:8]

    @property
    def is_idle(self) -> bool:
        """True when no request is being carried out."""
        return not self._channels

    # --- for handlers ---

    def answer(self, channel: RequestChannel, result: Result) -> None:
        """Send a request's result behind its data."""
        self._finish(channel, lambda: self.protocol.send_result(channel.number, result))

    def refuse(self, channel: RequestChannel, code: str, text: str) -> None:
        """Send why a request was not carried out, behind its data."""
        self._finish(channel, lambda: self.protocol.send_refusal(channel.number, code, text))

    def begin_closing(self) -> None:
        """Let the link end, and the session with it, once what is queued now was written."""
        self.is_closing = True
        # A command that prints without end would otherwise keep the link busy.
        self._leave_requests()

    def _finish(self, channel: RequestChannel, send: Callable[[], None]) -> None:
        self._channels.pop(channel.number, None)
        if not self.is_over and not channel.session_ended:
            send()
            self.wake_writer()

    # --- for the link ---

    def wake_writer(self) -> None:
        """Let the link's writer look whether there is something to send."""
        self._work.set()

    async def wait_data_to_send(self) -> None:
        """Wait until there is something to send."""
        while not self.protocol.has_data_to_send:
            self._work = trio.Event()
            await self._work.wait()

    def note_room(self) -> None:
        """Let handlers that wait for room look again: records were written."""
        for channel in self._channels.values():
            channel.note_room()

    def receive_record(self, plaintext: bytes) -> None:
        """Take one record; raises `ProtocolError`, after which the session is over."""
        try:
            events = self.protocol.receive_record(plaintext)
        except ProtocolError:
            # At once: what a request of this session sends from now on would be a bug of ours to the protocol.
            self.end()
            raise
        for event in events:
            self._handle(event)

    def _handle(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            if self.is_closing:
                return
            channel = RequestChannel(event.channel, self.protocol, self.wake_writer)
            self._channels[event.channel] = channel
            self._start_request(self, channel, event.request)
        elif isinstance(event, GoodbyeReceived):
            log("goodbye", controller=self.controller, code=event.goodbye.code)
        elif not isinstance(event, PongReceived):
            found = self._channels.get(event.channel)
            if found is None:
                return
            if isinstance(event, DataReceived):
                found.put_data(event)
            elif isinstance(event, StreamEnded):
                found.put_end(event)
            elif isinstance(event, SignalReceived | ResizeReceived):
                found.put_control(event)
            elif isinstance(event, CancelReceived):
                found.cancel()

    async def drop_link(self) -> None:
        """End the link that carries the session, if there is one, and wait until its reader has stopped."""
        if self.link is not None:
            await self.link.replace()

    def end(self) -> None:
        """End the session: transfers stop, commands run on with their output thrown away."""
        self.is_over = True
        self.protocol.close()
        self._leave_requests()

    def _leave_requests(self) -> None:
        for channel in self._channels.values():
            channel.end_session()


class SessionTable:
    """All sessions of this agent, by controller key and the identifier that the controller chose."""

    def __init__(
        self,
        settings: Settings,
        nursery: trio.Nursery,
        budget: Budget,
        start_request: Callable[[AgentSession, RequestChannel, Request], None],
    ) -> None:
        self._settings = settings
        self._nursery = nursery
        self._budget = budget
        self._start_request = start_request
        # In the order in which they were opened or last lost their link: the front is the oldest.
        self._sessions: dict[tuple[bytes, bytes], AgentSession] = {}

    @property
    def sessions(self) -> tuple[AgentSession, ...]:
        """Every session, lost ones included."""
        return tuple(self._sessions.values())

    async def join(self, controller: Controller, payload: ControllerPayload) -> tuple[AgentSession | None, Welcome]:
        """Find or open the session that a new link names; return it, attached, and what to answer.

        Somebody else's identifier is an unknown one by construction: the controller's key is half of the key.
        """
        session = self._sessions.get((controller.key, payload.session))
        status = "resumed"
        if session is None:
            if payload.resume:
                return None, self._welcome("unknown")
            if not self._make_room(controller.key):
                log("session-refused", controller=controller, reason="too many sessions")
                return None, self._welcome("full")
            status = "new"
            session = AgentSession(
                controller, payload.session, self._budget, self._settings.requests_max, self._start_request
            )
            self._sessions[controller.key, payload.session] = session
        if payload.attempt <= session.attempt:
            return None, self._welcome("stale")
        session.attempt = payload.attempt
        # The old link's reader must have stopped before `received` is stated: that number is a promise.
        await session.drop_link()
        if session.attempt != payload.attempt:
            return None, self._welcome("stale")
        if session.is_over:
            return None, self._welcome("unknown")
        session.expiry.cancel()
        try:
            session.protocol.attach(payload.received)
        except ResumeInvalid as error:
            log("session-broken", controller=controller, session=session, reason=error)
            self.drop(session)
            return None, self._welcome("unknown")
        log(f"session-{status}", controller=controller, session=session)
        return session, self._welcome(status, session.protocol.received)

    def lose(self, session: AgentSession) -> None:
        """Note that the session's link is gone; unless it is over, it is kept for its time to live."""
        if session.is_over or session.is_closing:
            self.drop(session)
            return
        key = (session.controller.key, session.ident)
        self._sessions[key] = self._sessions.pop(key)
        session.expiry = trio.CancelScope()
        self._nursery.start_soon(self._expire, session, session.expiry)

    def drop(self, session: AgentSession) -> None:
        """End the session now; nothing happens if this was done before."""
        key = (session.controller.key, session.ident)
        if self._sessions.get(key) is session:
            del self._sessions[key]
            session.expiry.cancel()
            session.end()
            log("session-ended", controller=session.controller, session=session)

    async def _expire(self, session: AgentSession, expiry: trio.CancelScope) -> None:
        with expiry:
            await trio.sleep(self._settings.session_ttl_seconds)
            self.drop(session)

    def _welcome(self, status: str, received: int = 0) -> Welcome:
        return Welcome(
            session=status,
            received=received,
            channels=self._settings.requests_max,
            ttl=int(self._settings.session_ttl_seconds),
            version=software_version(),
            hostname=platform.node()[:255],
            user=_own_name(),
        )

    def _make_room(self, key: bytes) -> bool:
        """Make room for one more session of *key*: the oldest that is lost and idle goes first."""
        of_key = [session for session in self._sessions.values() if session.controller.key == key]
        if len(of_key) >= self._settings.sessions_per_key_max and not self._evict(of_key):
            return False
        return len(self._sessions) < self._settings.sessions_max or self._evict(list(self._sessions.values()))

    def _evict(self, candidates: list[AgentSession]) -> bool:
        lost = [session for session in candidates if session.link is None and session.is_idle]
        # One that holds an answer which its controller never acknowledged goes only if there is no other.
        for session in sorted(lost, key=lambda session: not session.protocol.is_idle):
            self.drop(session)
            return True
        return False


def _own_name() -> str:
    """Return the name of the user that this process runs as; its number if it has none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
