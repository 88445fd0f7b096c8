"""A controller's connection to one agent: a session, the link that carries it now, and the next one.

When a link is lost while a request is open, new links are tried, at once and then with growing, jittered
pauses, until one resumes the session or `resume_seconds` are over.  Without an open request there is
nothing to resume: the next request opens a new session without a word.
"""

from __future__ import annotations

import atexit
import os
import random
import secrets
import shlex
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

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
from ._errors import AgentError, ConnectionLost, HungUp, NotAuthorized, Refused, Unreachable, one_line
from ._known import UntrustedAgent
from ._link import Link
from ._opening import open_link

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyinfra_agent_protocol import Event as SessionEvent
    from pyinfra_agent_protocol import Request, Welcome

    from ._identity import Identity
    from ._opening import Endpoint, Opened

__all__ = ["Connection"]

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 5.0
#: At most between two attempts to open a session with an agent that hangs up.
_RETRY_PAUSE_SECONDS: Final = 0.2
_CLOSE_SECONDS: Final = 1.0

_WHY_NOT_RESUMED: Final = {
    "unknown": "the agent no longer knows the session: it was restarted, or too long ago",
    "stale": "another process has resumed this session",
}

#: Connections of this process that may have a link: closed at exit, dropped in a forked child.
_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


class Connection:
    """One session with one agent over links that come and go.

    Args:
        identity: this controller's.
        check_key: gets the agent's key and certificate; raises `UntrustedAgent` unless they are the right ones.
        learn_key: gets the agent's key, and the one that it will have after its rotation, when it welcomes us.
        connect_seconds: for one link to be welcomed.
        resume_seconds: for which a lost session is tried to be resumed.
        notify: gets a line for the user when the link is lost and when it is back.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        identity: Identity,
        check_key: Callable[[bytes, bytes], None],
        *,
        learn_key: Callable[[bytes, bytes], None],
        connect_seconds: float,
        resume_seconds: float,
        notify: Callable[[str], None],
    ) -> None:
        self.endpoint = endpoint
        self.welcome: Welcome | None = None
        self._identity = identity
        self._check_key = check_key
        self._learn_key = learn_key
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
        self._resuming: Any = None
        self._forget_trouble()

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
        self.drop("it was connected anew")
        self._is_closed = False
        self._session_id = secrets.token_bytes(SESSION_ID_BYTES)
        self._attempt = 0
        self._agent_key = b""
        self._forget_trouble()
        opened = self._open_new()
        try:
            if self._is_closed:
                raise ConnectionLost(f"the connection to {self.endpoint} was closed while it was being opened")
            if opened.welcome.session == "full":
                raise Unreachable(f"{self.endpoint} has no room for another session: close some, or try again later")
            if opened.welcome.session != "new":
                raise Unreachable(f"{self.endpoint} answered {opened.welcome.session!r} instead of opening a session")
            session = Session(Side.CONNECTOR, channels_max=opened.welcome.channels)
            self._take(opened, session)
        except ResumeInvalid as error:
            opened.sock.close()
            raise Unreachable(f"{self.endpoint} welcomed this controller with nonsense: {error}") from error
        except BaseException:
            opened.sock.close()
            raise
        self._agent_key = opened.key
        _connections.add(self)

    def close(self) -> None:
        """End the session; at most a second, and at once if the link is lost."""
        if self._is_closed:
            return
        # From here on a lost link is not resumed.
        self._is_closed = True
        try:
            if self.is_connected:
                # It may be gone already, or full of requests: then there is nothing to say.
                ignored = suppress(AgentError, LocalProtocolError)
                with gevent.Timeout(_CLOSE_SECONDS, False), ignored, self._start(CloseSession(), "closing") as call:
                    call.result()
        finally:
            self.drop("the connection was closed")

    def drop(self, reason: str = "it was dropped") -> None:
        """Let go of link and session without a word to the agent; never waits.  Requests fail with *reason*."""
        self._is_closed = True
        _connections.discard(self)
        if self._resuming is not None and self._resuming is not gevent.getcurrent():
            self._resuming.kill(block=False)
        self._resuming = None
        if self._link is not None:
            self._link.close()
            self._link = None
        self._fail_calls(reason)

    def drop_in_child(self) -> None:
        """In a forked child: leave link and session to the parent; a request of the child's opens its own."""
        link, self._link = self._link, None
        if link is not None:
            link.drop_in_child()
        self.drop("this process was forked")

    # --- requests ---

    def call(self, request: Request, what: str) -> Call:
        """Start *request*; *what* describes it in errors.

        Connects anew if the last session ended while nothing was outstanding.

        Raises:
            Unreachable, NotAuthorized, UntrustedAgent: as `connect`.
        """
        while True:
            with self._opening:
                if self._session is None or (not self.is_connected and not self._calls):
                    self._connect()
            assert self._session is not None
            if self._session.can_open:
                return self._start(request, what)
            self._slots.clear()
            self._slots.wait()

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

    def flush(self) -> None:
        """Write what is queued, as far as that needs no waiting: its sender has no more, and waits for the answer."""
        if self._link is not None:
            self._link.write_now()

    def _sending(self) -> Session:
        if self._session is None:
            raise LocalProtocolError("there is no session")
        return self._session

    def _wake_writer(self) -> None:
        if self._link is not None:
            self._link.wake_writer()

    # --- links ---

    def _open_new(self) -> Opened:
        """Open the first link, in several attempts if the agent hangs up.

        It does so at random while somebody behind our own address floods it: then another attempt is all it takes.
        """
        deadline = time.monotonic() + self._connect_seconds
        left = self._connect_seconds
        times = 0
        while True:
            try:
                return self._open(resume=False, received=0, seconds=left)
            except HungUp as error:
                times += 1
                pause = random.uniform(0.1, 1.0) * _RETRY_PAUSE_SECONDS
                left = round(deadline - time.monotonic() - pause, 1)
                if left <= 0:
                    raise HungUp(
                        f"{self.endpoint} closed the connection before it has said that it is an agent, {times} times"
                        f" within {self._connect_seconds:g} s: is agent_port right, is the agent up, and does nobody"
                        " flood it from this address?"
                    ) from error
                gevent.sleep(pause)
                if self._is_closed:
                    raise
            except Unreachable as error:
                if not times:
                    raise
                raise Unreachable(f"{error} (before that it closed {times} connections without a word)") from error

    def _open(self, *, resume: bool, received: int, seconds: float) -> Opened:
        self._attempt += 1
        identity = self._identity
        payload = ControllerPayload(
            session=self._session_id,
            attempt=self._attempt,
            resume=resume,
            received=received,
            certificate=identity.certificate,
        )
        try:
            opened = open_link(self.endpoint, identity.keypair, self._check_resumed_key, payload, seconds)
        except NotAuthorized:
            line = format_public(identity.keypair.public, identity.comment)
            raise NotAuthorized(
                f"{self.endpoint} does not let this controller in ({fingerprint(identity.keypair.public)}); on that"
                f" machine run: pyinfra-agent authorize {shlex.quote(line)}"
            ) from None
        try:
            self._learn_key(opened.key, opened.welcome.next_key)
        except BaseException:
            opened.sock.close()
            raise
        return opened

    def _check_resumed_key(self, key: bytes, certificate: bytes) -> None:
        if self._agent_key and key != self._agent_key:
            # A resume demands the agent that opened the session, whatever is pinned by now.
            raise UntrustedAgent(
                f"another agent answers at {self.endpoint}: its key is {fingerprint(key)}, the session was opened"
                f" with {fingerprint(self._agent_key)}"
            )
        self._check_key(key, certificate)

    def _take(self, opened: Opened, session: Session) -> None:
        session.attach(opened.welcome.received)
        self.welcome = opened.welcome
        self._session = session
        self._goodbye = ""
        self._link = Link(opened, session, self._on_event, self._on_room, self._on_lost)
        self._link.start()
        self._link.wake_writer()

    def _on_event(self, event: SessionEvent) -> None:
        if isinstance(event, DataReceived):
            self._calls[event.channel].put_data(event)
        elif isinstance(event, ResultReceived):
            self._end_call(event.channel).put_result(event.result)
        elif isinstance(event, RefusalReceived):
            refusal = event.refusal
            text = f"{self.endpoint}: {one_line(refusal.text)}"
            self._end_call(event.channel).put_error(Refused(refusal.code, text))
        elif isinstance(event, GoodbyeReceived):
            self._goodbye = one_line(event.goodbye.text or event.goodbye.code)

    def _end_call(self, channel: int) -> Call:
        self._slots.set()
        return self._calls.pop(channel)

    def _on_room(self) -> None:
        self._slots.set()
        for call in self._calls.values():
            call.note_room()

    def _on_lost(self, reason: str, broken: bool) -> None:
        session = self._session
        assert session is not None
        session.detach()
        self._link = None
        reason = self._goodbye or reason
        if broken or self._is_closed or any(call.expects_loss for call in self._calls.values()):
            self._fail_calls(reason)
        elif self._calls:
            self._resuming = gevent.spawn(self._resume, session, reason)

    def _forget_trouble(self) -> None:
        """Let the next loss have all its time, and its first attempt at once."""
        self._resume_deadline: float | None = None
        self._resume_pause = 0.0
        self._resume_progress = -1

    def _resume(self, session: Session, reason: str) -> None:
        """Try new links until one carries the session on, or it is certain that none will."""
        try:
            self._try_to_resume(session, reason)
        except Exception as error:
            # A fence: whatever it is, it must not leave callers waiting.
            if session is self._session:
                self._fail_calls(str(error))

    def _try_to_resume(self, session: Session, reason: str) -> None:
        self._notify(f"connection to {self.endpoint} lost ({reason}): trying to resume for {self._resume_seconds:g} s")
        if self._resume_deadline is None:
            self._resume_deadline = time.monotonic() + self._resume_seconds
        while True:
            gevent.sleep(self._resume_pause)
            left = self._resume_deadline - time.monotonic()
            if left <= 0:
                raise Unreachable(f"{reason}; it could not be resumed within {self._resume_seconds:g} s")
            pause = min(_LONGEST_PAUSE_SECONDS, max(_FIRST_PAUSE_SECONDS, self._resume_pause * 2))
            self._resume_pause = pause * random.uniform(0.5, 1.0)
            try:
                opened = self._open(resume=True, received=session.received, seconds=min(left, self._connect_seconds))
            except Unreachable as error:
                reason = str(error)
                continue
            break
        try:
            if session is not self._session:
                raise ConnectionLost("the session was closed meanwhile")
            if opened.welcome.session != "resumed":
                raise ConnectionLost(_WHY_NOT_RESUMED.get(opened.welcome.session, "it did not resume the session"))
            progress = session.received + opened.welcome.received
            self._take(opened, session)
        except BaseException:
            opened.sock.close()
            raise
        if progress > self._resume_progress:
            # Links that are lost before they have carried anything share one deadline: an agent that welcomes us
            # and hangs up is not worth more than one that is down.
            self._forget_trouble()
            self._resume_progress = progress
        self._notify(f"connection to {self.endpoint} resumed: nothing was lost")

    def _fail_calls(self, reason: str) -> None:
        """End every call that is open: its session is over."""
        calls, self._calls = self._calls, {}
        session, self._session = self._session, None
        for channel, call in calls.items():
            was_sent = session is not None and session.was_written(channel)
            outcome = "whether it has finished is not known" if was_sent else "it was never sent"
            text = f"{self.endpoint}: {call.what} failed: {reason}; {outcome}"
            call.put_error(ConnectionLost(text, was_sent=was_sent))
        if session is not None:
            session.close()
        self._slots.set()


@atexit.register
def _close_all() -> None:
    # All at once: what nobody disconnected must not make the process wait a second for each.
    gevent.joinall([gevent.spawn(connection.close) for connection in tuple(_connections)], timeout=_CLOSE_SECONDS)


def _drop_all_in_child() -> None:
    for connection in tuple(_connections):
        connection.drop_in_child()


os.register_at_fork(after_in_child=_drop_all_in_child)
