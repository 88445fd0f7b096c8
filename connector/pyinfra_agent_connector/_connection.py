"""A controller's connection to one agent: a session, the link that carries it now, and the next one.

When a link is lost while a request is open, new links are tried, at once and then with growing, jittered
pauses, until one resumes the session or `resume_seconds` are over.  Without an open request there is
nothing to resume: the next request opens a new session without a word.
"""

from __future__ import annotations

import random
import secrets
import time
from typing import TYPE_CHECKING, Final

import gevent
from gevent.event import Event
from gevent.lock import RLock

from pyinfra_agent_protocol import (
    SESSION_ID_BYTES,
    CloseSession,
    ControllerPayload,
    DataReceived,
    GoodbyeReceived,
    LocalProtocolError,
    RefusalReceived,
    ResultReceived,
    ResumeInvalid,
    Session,
    Side,
)
from pyinfra_agent_protocol.keys import fingerprint, format_public

from ._call import Call
from ._errors import AgentError, ConnectionLost, NotAuthorized, Refused, Unreachable
from ._known import UntrustedAgent
from ._link import Link, open_link

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyinfra_agent_protocol import Event as SessionEvent
    from pyinfra_agent_protocol import Request, Welcome
    from pyinfra_agent_protocol.keys import KeyPair

    from ._link import Endpoint, Opened

__all__ = ["Connection"]

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 5.0
_CLOSE_SECONDS: Final = 1.0


class Connection:
    """One session with one agent over links that come and go.

    Args:
        keypair, comment: this controller's identity.
        check_key: raises `UntrustedAgent` unless the agent's key is the right one.
        connect_seconds: for one link to be welcomed.
        resume_seconds: for which a lost session is tried to be resumed.
        notify: gets a line for the user when the link is lost and when it is back.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        keypair: KeyPair,
        comment: str,
        check_key: Callable[[bytes], None],
        *,
        connect_seconds: float,
        resume_seconds: float,
        notify: Callable[[str], None],
    ) -> None:
        self.endpoint = endpoint
        self.welcome: Welcome | None = None
        self._keypair = keypair
        self._comment = comment
        self._check_key = check_key
        self._connect_seconds = connect_seconds
        self._resume_seconds = resume_seconds
        self._notify = notify
        self._session: Session | None = None
        self._session_id = b""
        self._agent_key = b""
        self._attempt = 0
        self._link: Link | None = None
        self._calls: dict[int, Call] = {}
        self._slots = Event()
        self._opening = RLock()
        self._is_closed = False
        self._goodbye = ""

    # --- opening and closing ---

    @property
    def is_connected(self) -> bool:
        """True while a link carries the session."""
        return self._link is not None and not self._link.is_lost

    def connect(self) -> None:
        """Open a session; returns when the agent has welcomed this controller.

        Raises:
            Unreachable, NotAuthorized, UntrustedAgent: with a line that says what to do.
        """
        with self._opening:
            self._connect()

    def _connect(self) -> None:
        self._forget_link()
        self._is_closed = False
        self._session_id = secrets.token_bytes(SESSION_ID_BYTES)
        self._attempt = 0
        opened = self._open(resume=False, received=0, seconds=self._connect_seconds)
        if opened.welcome.session not in ("new", "resumed"):
            opened.sock.close()
            raise Unreachable(f"{self.endpoint} has no room for another session: close some, or try again later")
        self._agent_key = opened.key
        self._session = Session(Side.CONNECTOR, channels_max=opened.welcome.channels)
        self._take(opened)

    def close(self) -> None:
        """End the session; at most a second, and at once if the link is lost."""
        if self._is_closed:
            return
        if self.is_connected:
            with gevent.Timeout(_CLOSE_SECONDS, False):
                try:
                    with self._start(CloseSession(), "close-session") as call:
                        call.result()
                except (AgentError, LocalProtocolError):
                    pass  # it is gone already, which is what was wanted
        self._is_closed = True
        self._forget_link()
        self._fail_calls("the connection was closed")

    # --- requests ---

    def call(self, request: Request, what: str) -> Call:
        """Start *request*; *what* describes it in errors.

        Connects anew if the last session ended while nothing was outstanding.

        Raises:
            Unreachable, NotAuthorized, UntrustedAgent: as `connect`.
        """
        with self._opening:
            if self._session is None or (not self.is_connected and not self._calls):
                self._connect()
        while self._session is not None and not self._session.can_open:
            self._slots.clear()
            self._slots.wait()
        return self._start(request, what)

    def _start(self, request: Request, what: str) -> Call:
        assert self._session is not None
        channel = self._session.open(request)
        call = Call(self, channel, what)
        self._calls[channel] = call
        self._wake_writer()
        return call

    # --- for calls ---

    def consume(self, channel: int, count: int) -> None:
        """Note that received bytes were used."""
        if self._session is not None and count:
            self._session.consume(channel, count)
            if self._session.has_data_to_send:
                self._wake_writer()

    def sendable(self, channel: int) -> int:
        """Return how many bytes may be queued now."""
        return self._session.sendable(channel) if self._session is not None else 0

    def send_data(self, channel: int, data: memoryview) -> None:
        """Queue data."""
        self._sending().send_data(channel, data)
        self._wake_writer()

    def send_end(self, channel: int, size: int | None, digest: bytes | None) -> None:
        """Queue the end of the data."""
        self._sending().send_end(channel, size=size, digest=digest)
        self._wake_writer()

    def send_cancel(self, channel: int) -> None:
        """Queue a cancellation."""
        self._sending().send_cancel(channel)
        self._wake_writer()

    def send_signal(self, channel: int, number: int) -> None:
        """Queue a signal."""
        self._sending().send_signal(channel, number)
        self._wake_writer()

    def send_resize(self, channel: int, rows: int, columns: int) -> None:
        """Queue a new terminal size."""
        self._sending().send_resize(channel, rows, columns)
        self._wake_writer()

    def _sending(self) -> Session:
        if self._session is None:
            raise LocalProtocolError("there is no session")
        return self._session

    def _wake_writer(self) -> None:
        if self._link is not None:
            self._link.wake_writer()

    # --- links ---

    def _open(self, *, resume: bool, received: int, seconds: float) -> Opened:
        self._attempt += 1
        payload = ControllerPayload(session=self._session_id, attempt=self._attempt, resume=resume, received=received)
        try:
            return open_link(self.endpoint, self._keypair, self._check_resumed_key, payload, seconds)
        except NotAuthorized:
            line = format_public(self._keypair.public, self._comment)
            raise NotAuthorized(
                f"{self.endpoint} does not let this controller in ({fingerprint(self._keypair.public)}); on that"
                f" machine run: pyinfra-agent authorize '{line}'"
            ) from None

    def _check_resumed_key(self, key: bytes) -> None:
        if self._agent_key and key != self._agent_key:
            # A resume demands the agent that opened the session, whatever is pinned by now.
            raise UntrustedAgent(
                f"another agent answers at {self.endpoint}: its key is {fingerprint(key)}, the session was opened"
                f" with {fingerprint(self._agent_key)}"
            )
        self._check_key(key)

    def _take(self, opened: Opened) -> None:
        assert self._session is not None
        self._session.attach(opened.welcome.received)
        self.welcome = opened.welcome
        self._goodbye = ""
        self._link = Link(opened, self._session, self._on_event, self._on_written, self._on_lost)
        self._link.start()
        self._link.wake_writer()

    def _forget_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._session is not None:
            self._session.detach()
        self._agent_key = b""

    def _on_event(self, event: SessionEvent) -> None:
        if isinstance(event, DataReceived):
            self._calls[event.channel].put_data(event)
        elif isinstance(event, ResultReceived):
            self._end_call(event.channel).put_result(event.result)
        elif isinstance(event, RefusalReceived):
            refusal = event.refusal
            text = f"{self.endpoint}: {refusal.text}"
            self._end_call(event.channel).put_error(Refused(refusal.code, text))
        elif isinstance(event, GoodbyeReceived):
            self._goodbye = event.goodbye.text or event.goodbye.code

    def _end_call(self, channel: int) -> Call:
        self._slots.set()
        return self._calls.pop(channel)

    def _on_written(self) -> None:
        for call in self._calls.values():
            call.note_room()

    def _on_lost(self, reason: str, broken: bool) -> None:
        assert self._session is not None
        self._session.detach()
        self._link = None
        reason = self._goodbye or reason
        if broken:
            self._fail_calls(reason)
        elif self._calls and not self._is_closed:
            gevent.spawn(self._resume, reason)

    def _resume(self, reason: str) -> None:
        """Try new links until one carries the session on, or it is certain that none will."""
        session = self._session
        assert session is not None
        deadline = time.monotonic() + self._resume_seconds
        self._notify(f"connection to {self.endpoint} lost ({reason}): trying to resume for {self._resume_seconds:g} s")
        pause = 0.0
        while not self._is_closed and self._calls:
            gevent.sleep(pause)
            left = deadline - time.monotonic()
            if left <= 0:
                self._fail_calls(f"{reason}, and it did not come back within {self._resume_seconds:g} s")
                return
            pause = min(_LONGEST_PAUSE_SECONDS, max(_FIRST_PAUSE_SECONDS, pause * 2)) * random.uniform(0.5, 1.0)
            try:
                opened = self._open(resume=True, received=session.received, seconds=min(left, self._connect_seconds))
            except Unreachable as error:
                reason = str(error)
                continue
            except (AgentError, UntrustedAgent) as error:
                self._fail_calls(str(error))
                return
            if opened.welcome.session != "resumed":
                opened.sock.close()
                self._fail_calls("the agent no longer knows the session: it was restarted, or too long ago")
                return
            try:
                self._take(opened)
            except ResumeInvalid as error:
                opened.sock.close()
                self._fail_calls(str(error))
                return
            self._notify(f"connection to {self.endpoint} resumed: nothing was lost")
            return

    def _fail_calls(self, reason: str) -> None:
        """End every call that is open: its session is over."""
        calls, self._calls = self._calls, {}
        session, self._session = self._session, None
        for channel, call in calls.items():
            if session is not None and session.was_written(channel):
                outcome = "whether it has finished is not known"
            else:
                outcome = "it was never sent"
            call.put_error(ConnectionLost(f"{self.endpoint}: {call.what} failed: {reason}; {outcome}"))
        if session is not None:
            session.close()
        self._slots.set()
