"""One link: a socket to an agent, the handshake on it, and the greenlets that carry a session over it.

The writer greenlet alone writes to the socket, so a `gevent.Timeout` in a caller can never leave half
a record on the wire.  The reader never waits for a caller.  An exception in either ends the link.
`gevent.socket` by name: in a process that pyinfra's command did not patch, a plain socket would make
the hosts wait for each other.
"""

from __future__ import annotations

import contextlib
import os
import socket as plain_socket
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent import socket
from gevent.event import Event

from pyinfra_agent_protocol import (
    AgentHello,
    ControllerPayload,
    Initiator,
    NotAnAgent,
    ProtocolError,
    RecordInvalid,
    RemoteProtocolError,
    Transport,
    Welcome,
    decode_answer,
)

from ._errors import NotAuthorized, Unreachable
from ._known import UntrustedAgent

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyinfra_agent_protocol import Event as SessionEvent
    from pyinfra_agent_protocol import Session
    from pyinfra_agent_protocol.keys import KeyPair

__all__ = ["Endpoint", "Link", "Opened", "open_link"]

_READ_BYTES: Final = 256 * 1024
_WRITE_BYTES: Final = 128 * 1024
_NOT_SENT_BYTES: Final = 128 * 1024
_USER_TIMEOUT_MILLISECONDS: Final = 30_000
#: Silence after which the agent is asked for a sign of life, idle and with a request outstanding.
_KEEPALIVE_SECONDS: Final = (15.0, 5.0)
_KEEPALIVE_MISSED: Final = 3


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an agent is, and how a person calls it."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Opened:
    """A socket that has come through the handshake: the agent's answer, and records that came behind it."""

    sock: Any
    transport: Transport
    key: bytes
    welcome: Welcome
    records: list[bytes]


def open_link(
    endpoint: Endpoint,
    keypair: KeyPair,
    check_key: Callable[[bytes], None],
    payload: ControllerPayload,
    seconds: float,
) -> Opened:
    """Connect, shake hands and wait for the welcome: three round trips.

    Nothing about us is sent before *check_key* has accepted the agent's key, and nothing but handshake
    message 3 before the agent has welcomed us.

    Raises:
        Unreachable: nobody is there, or no agent, or not within *seconds*.
        NotAuthorized: the agent turns us away.
        UntrustedAgent: *check_key* raised it.
    """
    deadline = time.monotonic() + seconds
    sock = _connect(endpoint, seconds)
    try:
        with _explaining(endpoint, seconds):
            return _shake_hands(sock, keypair, check_key, payload, deadline)
    except BaseException:
        sock.close()
        raise


def _connect(endpoint: Endpoint, seconds: float) -> Any:  # noqa: ANN401 - gevent has no types
    try:
        sock = socket.create_connection((endpoint.host, endpoint.port), timeout=seconds)
    except plain_socket.gaierror as error:
        raise Unreachable(f"{endpoint.host} is no host that this machine can find: {error.strerror}") from error
    except ConnectionRefusedError as error:
        raise Unreachable(
            f"nothing listens on {endpoint}: is `pyinfra-agent serve` running there, and is agent_port right?"
        ) from error
    except TimeoutError as error:
        raise Unreachable(
            f"{endpoint} does not answer within {seconds:g} s: is the machine up, and does its firewall let"
            f" port {endpoint.port} in?"
        ) from error
    except OSError as error:
        raise Unreachable(f"{endpoint} cannot be reached: {error.strerror or error}") from error
    sock.setsockopt(plain_socket.IPPROTO_TCP, plain_socket.TCP_NODELAY, 1)
    sock.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_KEEPALIVE, 1)
    # Neither is on every system that a controller may be (macOS has no TCP_USER_TIMEOUT).
    for name, value in (("TCP_NOTSENT_LOWAT", _NOT_SENT_BYTES), ("TCP_USER_TIMEOUT", _USER_TIMEOUT_MILLISECONDS)):
        if hasattr(plain_socket, name):
            with contextlib.suppress(OSError):
                sock.setsockopt(plain_socket.IPPROTO_TCP, getattr(plain_socket, name), value)
    return sock


@contextlib.contextmanager
def _explaining(endpoint: Endpoint, seconds: float) -> Any:  # noqa: ANN401 - a generator of nothing
    try:
        yield
    except NotAnAgent as error:
        raise Unreachable(f"{endpoint} is not a pyinfra agent: {error}; is agent_port right?") from error
    except ProtocolError as error:
        raise Unreachable(f"the handshake with {endpoint} failed: {error}") from error
    except TimeoutError as error:
        raise Unreachable(
            f"{endpoint} accepts connections but does not answer as a pyinfra agent within {seconds:g} s:"
            " is agent_port right?"
        ) from error
    except (NotAuthorized, Unreachable, UntrustedAgent):
        raise
    except OSError as error:
        raise Unreachable(f"{endpoint} broke the connection during the handshake: {error.strerror or error}") from error


def _shake_hands(
    sock: Any,  # noqa: ANN401 - gevent has no types
    keypair: KeyPair,
    check_key: Callable[[bytes], None],
    payload: ControllerPayload,
    deadline: float,
) -> Opened:
    initiator = Initiator(keypair)
    _send(sock, initiator.data_to_send(), deadline)
    hello: AgentHello | None = None
    while hello is None:
        hello = initiator.receive_data(_receive(sock, deadline, "before it has said that it is an agent"))
    check_key(hello.key)
    message, transport = initiator.finish(payload.encode())
    _send(sock, message, deadline)
    records: list[bytes] = []
    while not records:
        records = transport.receive_data(_receive(sock, deadline, "instead of welcoming this controller"))
    welcome = decode_answer(records.pop(0))
    if welcome is None:
        raise NotAuthorized("the agent does not know this controller")
    sock.settimeout(None)
    return Opened(sock, transport, hello.key, welcome, records)


def _send(sock: Any, data: bytes, deadline: float) -> None:  # noqa: ANN401 - gevent has no types
    sock.settimeout(max(0.001, deadline - time.monotonic()))
    sock.sendall(data)


def _receive(sock: Any, deadline: float, when: str) -> bytes:  # noqa: ANN401 - gevent has no types
    sock.settimeout(max(0.001, deadline - time.monotonic()))
    data: bytes = sock.recv(_READ_BYTES)
    if not data:
        raise Unreachable(f"the connection was closed {when}: is agent_port right, and is the agent up?")
    return data


#: Links of this process, so that a forked child can drop them.
_links: weakref.WeakSet[Link] = weakref.WeakSet()


class Link:
    """Carries *session* over an opened socket until it is lost; then calls *on_lost* once, with the reason.

    Args:
        on_event: gets each event of the session; must not wait.
        on_written: called after records were written: there may be room for more.
        on_lost: gets the reason, and whether the agent broke the protocol, which ends the session.
    """

    def __init__(
        self,
        opened: Opened,
        session: Session,
        on_event: Callable[[SessionEvent], None],
        on_written: Callable[[], None],
        on_lost: Callable[[str, bool], None],
    ) -> None:
        self._sock = opened.sock
        self._transport = opened.transport
        self._session = session
        self._on_event = on_event
        self._on_written = on_written
        self._on_lost = on_lost
        self._work = Event()
        self._heard_at = time.monotonic()
        self._is_lost = False
        self._pid = os.getpid()
        self._early = opened.records
        self._greenlets: list[Any] = []
        _links.add(self)

    def start(self) -> None:
        """Begin to read and write; the session must be attached."""
        self._greenlets = [gevent.spawn(run) for run in (self._read, self._write, self._keep_alive)]

    def wake_writer(self) -> None:
        """Let the writer look whether there is something to send."""
        self._work.set()

    @property
    def is_lost(self) -> bool:
        """True once nothing more is read or written here."""
        return self._is_lost

    def close(self) -> None:
        """Drop the link without a word and without `on_lost`; nothing is read from it when this returns."""
        self._is_lost = True
        _links.discard(self)
        gevent.killall([greenlet for greenlet in self._greenlets if greenlet is not gevent.getcurrent()], block=False)
        self._sock.close()

    def drop_in_child(self) -> None:
        """In a forked child: let go of the socket, which stays the parent's.

        Both would count the same nonces on: the child must never encrypt on this link.
        """
        self._is_lost = True
        with contextlib.suppress(OSError):
            self._sock.close()

    def _lose(self, reason: str, *, broken: bool = False) -> None:
        if not self._is_lost:
            self.close()
            self._on_lost(reason, broken)

    def _read(self) -> None:
        records, self._early = self._early, []
        try:
            while True:
                for record in records:
                    for event in self._session.receive_record(record):
                        self._on_event(event)
                if self._session.has_data_to_send:
                    self._work.set()
                data = self._sock.recv(_READ_BYTES)
                if not data:
                    self._lose("the agent closed the connection")
                    return
                self._heard_at = time.monotonic()
                records = self._transport.receive_data(data)
        except RecordInvalid as error:
            self._lose(f"a record was refused: {error}")
        except RemoteProtocolError as error:
            self._lose(f"the agent broke the protocol: {error}", broken=True)
        except OSError as error:
            self._lose(str(error.strerror or error))
        except ProtocolError as error:
            # A fence: an error of ours costs this link and its session, and never hangs a caller.
            self._lose(f"this controller broke the protocol: {error}", broken=True)

    def _write(self) -> None:
        try:
            while not self._is_lost:
                self._work.wait()
                self._work.clear()
                while True:
                    records: list[bytes] = []
                    size = 0
                    while size < _WRITE_BYTES and (plaintext := self._session.next_record()) is not None:
                        records.append(self._transport.encrypt(plaintext))
                        size += len(records[-1])
                    if not records:
                        break
                    if os.getpid() != self._pid:
                        return
                    self._on_written()
                    self._sock.sendall(records[0] if len(records) == 1 else b"".join(records))
                    if size >= _WRITE_BYTES:
                        # As in the agent's link: encrypt late, so that a command never waits behind a file.
                        socket.wait_write(self._sock.fileno())
        except OSError as error:
            self._lose(str(error.strerror or error))
        except ProtocolError as error:
            self._lose(f"this controller broke the protocol: {error}", broken=True)

    def _keep_alive(self) -> None:
        pings = 0
        while not self._is_lost:
            idle, busy = _KEEPALIVE_SECONDS
            interval = idle if self._session.is_idle else busy
            silence = time.monotonic() - self._heard_at
            if silence >= interval * _KEEPALIVE_MISSED:
                self._lose(f"the agent was silent for {silence:.0f} s")
                return
            if silence >= interval:
                pings += 1
                self._session.send_ping(pings)
                self._work.set()
            gevent.sleep(min(idle, busy))


def _drop_links_in_child() -> None:
    for link in tuple(_links):
        link.drop_in_child()
    _links.clear()


os.register_at_fork(after_in_child=_drop_links_in_child)
