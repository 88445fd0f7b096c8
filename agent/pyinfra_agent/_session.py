"""Sessions: what the agent keeps of a controller while links come and go (SPEC.md section 7).

A session's requests run in the agent's nursery and not in a link's, so a lost link stops nothing.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Final

import msgpack
import trio

from pyinfra_agent_protocol import (
    SESSION_BUDGET_BYTES,
    Budget,
    CancelReceived,
    ControllerPayload,
    DataReceived,
    Event,
    GoodbyeReceived,
    KeyFormatError,
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

from ._audit import own_name
from ._authorized import NotAdmitted
from ._channel import RequestChannel
from ._controllers import Controller
from ._log import log
from ._saved import SavedStateInvalid
from ._settings import OnLost
from ._version import software_version

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._connection import Authorizer
    from ._link import Link
    from ._saved import SavedRequest, SavedSession
    from ._settings import Settings

__all__ = ["AgentSession", "SessionTable"]

_NARROWED: Final = "it may do less now than when the session began"


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
        #: Where its link comes from, as `host:port`; "" while it has none.
        self.peer = ""
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
        self.wake_writer()

    def _finish(self, channel: RequestChannel, send: Callable[[], None]) -> None:
        self._channels.pop(channel.number, None)
        if not self.is_over and not channel.session_ended:
            send()
            # An answer is what somebody waits for: it does not wait for the writer's turn.
            self.push()

    def restore_channel(self, saved: SavedRequest) -> RequestChannel:
        """Return the channel of a request that the agent before this one was asked."""
        channel = RequestChannel(saved.number, self.protocol, self.wake_writer, self.push)
        channel.restore(saved)
        self._channels[saved.number] = channel
        if self.is_over:
            channel.end_session()
        return channel

    # --- for the link ---

    def wake_writer(self) -> None:
        """Let the link's writer look whether there is something to send."""
        self._work.set()

    def push(self) -> None:
        """Write what there is to send, as far as that needs no waiting; the rest is the writer's."""
        if self.link is None or not self.link.write_now():
            self.wake_writer()

    async def wait_work(self) -> None:
        """Wait until the writer was woken: there may be something to send."""
        self._work = trio.Event()
        await self._work.wait()

    def note_room(self) -> None:
        """Let handlers that wait for room look again: records were written."""
        for channel in self._channels.values():
            channel.note_room()

    def receive_record(self, plaintext: bytes | bytearray) -> None:
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
        if isinstance(event, DataReceived):  # the most frequent one first
            found = self._channels.get(event.channel)
            if found is not None:
                found.put_data(event)
        elif isinstance(event, RequestReceived):
            if self.is_closing:
                return
            channel = RequestChannel(event.channel, self.protocol, self.wake_writer, self.push)
            self._channels[event.channel] = channel
            self._start_request(self, channel, event.request)
        elif isinstance(event, GoodbyeReceived):
            log("goodbye", controller=self.controller, code=event.goodbye.code)
        elif not isinstance(event, PongReceived):
            found = self._channels.get(event.channel)
            if found is None:
                return
            if isinstance(event, StreamEnded):
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

    def end_commands(self) -> None:
        """End the commands that still run, as if they had been cancelled: nobody will come back for them."""
        for channel in self._channels.values():
            channel.forsake()

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
        #: Parked here wait those who have nothing to do while there is no session.
        self.opened = trio.lowlevel.ParkingLot()
        # In the order in which they were opened or last lost their link: the front is the oldest.
        self._sessions: dict[tuple[bytes, bytes], AgentSession] = {}

    def use(self, settings: Settings) -> None:
        """Go on with other *settings*; times to live that have begun to run are kept."""
        self._settings = settings

    @property
    def sessions(self) -> tuple[AgentSession, ...]:
        """Every session, lost ones included."""
        return tuple(self._sessions.values())

    async def join(
        self, controller: Controller, payload: ControllerPayload, peer: str
    ) -> tuple[AgentSession | None, Welcome]:
        """Find or open the session that a new link from *peer* names; return it, attached, and what to answer.

        Somebody else's identifier is an unknown one by construction: the controller's key is half of the key.
        """
        session = self._sessions.get((controller.key, payload.session))
        if session is not None and controller.policy.is_narrower_than(session.controller.policy):
            # What it began may be what it must not do any more.
            self.revoke(session, _NARROWED)
            session = None
        status = "resumed"
        if session is None:
            if payload.resume:
                return None, self._welcome(controller, "unknown")
            if not self._make_room(controller.key):
                log("session-refused", controller=controller, reason="too many sessions")
                return None, self._welcome(controller, "full")
            status = "new"
            session = AgentSession(
                controller, payload.session, self._budget, self._settings.requests_max, self._start_request
            )
            self._sessions[controller.key, payload.session] = session
            self.opened.unpark_all()
        if payload.attempt <= session.attempt:
            return None, self._welcome(controller, "stale")
        session.attempt = payload.attempt
        # The old link's reader must have stopped before `received` is stated: that number is a promise.
        await session.drop_link()
        if session.attempt != payload.attempt:
            return None, self._welcome(controller, "stale")
        if session.is_over:
            return None, self._welcome(controller, "unknown")
        session.expiry.cancel()
        session.controller, session.peer = controller, peer
        try:
            session.protocol.attach(payload.received)
        except ResumeInvalid as error:
            log("session-broken", controller=controller, session=session, reason=error)
            self.drop(session)
            return None, self._welcome(controller, "unknown")
        log(f"session-{status}", controller=controller, session=session)
        return session, self._welcome(controller, status, session.protocol.received)

    def restore(self, saved: SavedSession) -> AgentSession:
        """Take over a session of the agent before this one; it has no link yet.

        Raises:
            SavedStateInvalid: it is not understood.
        """
        try:
            controller = Controller.from_state(msgpack.unpackb(saved.controller))
            session = AgentSession(
                controller, saved.ident, self._budget, self._settings.requests_max, self._start_request
            )
            session.attempt = saved.attempt
            if saved.protocol is None:
                session.end()
                return session
            session.protocol = Session.restore(
                saved.protocol,
                budget=Budget(SESSION_BUDGET_BYTES, self._budget),
                channels_max=self._settings.requests_max,
            )
        except (ProtocolError, KeyFormatError, ValueError, TypeError, KeyError) as error:
            raise SavedStateInvalid(f"a session: {error}") from error
        self._sessions[controller.key, saved.ident] = session
        self.opened.unpark_all()
        self.lose(session)
        return session

    def lose(self, session: AgentSession) -> None:
        """Note that the session's link is gone; unless it is over, it is kept for its time to live."""
        if session.is_over or session.is_closing:
            self.drop(session)
            return
        session.peer = ""
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
            if self._settings.on_lost is OnLost.KILL and not session.is_closing:
                session.end_commands()
            log("session-ended", controller=session.controller, session=session)

    def judge(self, session: AgentSession, authorizer: Authorizer) -> None:
        """Ask *authorizer* whether the controller of *session* would still be let in, and end the session if not."""
        old = session.controller
        try:
            new = authorizer.admit(old.key, old.certificate, session.peer)
        except NotAdmitted as reason:
            self.revoke(session, str(reason))
            return
        if new.policy.is_narrower_than(old.policy):
            self.revoke(session, _NARROWED)
        else:
            session.controller = new

    def revoke(self, session: AgentSession, reason: str) -> None:
        """End the session because its controller is not let in any more; its commands run on, as after `drop`."""
        log(
            "session-revoked",
            controller=session.controller,
            key=session.controller.fingerprint,
            peer=session.peer or None,
            session=session,
            reason=reason,
        )
        self.drop(session)
        if session.link is not None:
            self._nursery.start_soon(session.link.expel, "revoked", "this controller is not let in any more")

    async def _expire(self, session: AgentSession, expiry: trio.CancelScope) -> None:
        lost = trio.current_time()
        with expiry:
            if self._settings.on_lost is OnLost.KILL:
                await trio.sleep(min(self._settings.on_lost_after_seconds, self._settings.session_ttl_seconds))
                session.end_commands()
            await trio.sleep_until(lost + self._settings.session_ttl_seconds)
            self.drop(session)

    def _welcome(self, controller: Controller, status: str, received: int = 0) -> Welcome:
        return Welcome(
            session=status,
            received=received,
            channels=self._settings.requests_max,
            ttl=int(self._settings.session_ttl_seconds),
            version=software_version(),
            hostname=platform.node()[:255],
            user=controller.policy.user or own_name(),
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
