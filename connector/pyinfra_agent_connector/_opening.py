"""Opening a link: a socket to an agent, and the handshake on it.

`gevent.socket` by name: in a process that pyinfra's command did not patch, a plain socket would make the hosts wait for
each other.
"""

from __future__ import annotations

import contextlib
import os
import socket as plain_socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent import socket

from pyinfra_agent_protocol import (
    AgentHello,
    AgentPayload,
    ControllerPayload,
    Initiator,
    NotAnAgent,
    ProtocolError,
    Transport,
    Welcome,
    decode_answer,
)

from ._errors import HungUp, NotAuthorized, Unreachable
from ._known import UntrustedAgent
from ._on_link import addresses_on_link, is_local, may_be_on_link

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyinfra_agent_protocol.keys import KeyPair

__all__ = ["Endpoint", "Opened", "open_link", "seconds_left"]

_READ_BYTES: Final = 64 * 1024
_NOT_SENT_BYTES: Final = 128 * 1024
_USER_TIMEOUT_MILLISECONDS: Final = 30_000


class _Closed(ConnectionError):
    """The peer closed the connection in the middle of the handshake."""


class _NoHello(ConnectionError):
    """The peer closed the connection before the agent's hello was complete."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an agent is, and how a person calls it.

    Attributes:
        host: name or address.
        port: TCP port.
        alias: what multicast DNS is asked for if nobody answers there; "" for nothing.
    """

    host: str
    port: int
    alias: str = ""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Opened:
    """A socket that has come through the handshake: the agent's answer, and records that came behind it."""

    sock: Any
    transport: Transport
    key: bytes
    welcome: Welcome
    records: list[bytes | bytearray]


def open_link(
    endpoint: Endpoint,
    keypair: KeyPair,
    check_key: Callable[[bytes, bytes], None],
    payload: ControllerPayload,
    seconds: float,
) -> Opened:
    """Connect, shake hands and wait for the welcome: three round trips.

    Nothing about us is sent before *check_key* has accepted the agent's key and certificate, and nothing but handshake
    message 3 before the agent has welcomed us.

    Raises:
        Unreachable: nobody is there, or no agent, or not within *seconds*.
        HungUp: that is to say, the connection was closed before the agent had said who it is.
        NotAuthorized: the agent turns us away.
        UntrustedAgent: *check_key* raised it.
    """
    deadline = time.monotonic() + seconds
    sock = _connect(endpoint, seconds, deadline)
    try:
        with _explaining(endpoint, seconds):
            return _shake_hands(sock, keypair, check_key, payload, deadline)
    except BaseException:
        sock.close()
        raise


def _connect(endpoint: Endpoint, seconds: float, deadline: float) -> Any:  # noqa: ANN401 - gevent has no types
    try:
        sock = _reach(endpoint, deadline)
    except plain_socket.gaierror as error:
        raise Unreachable(f"{endpoint.host} is no host that this machine can find: {error.strerror}") from error
    except UnicodeError as error:
        raise Unreachable(f"{endpoint.host!r} cannot be the name of a host") from error
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


def _reach(endpoint: Endpoint, deadline: float) -> Any:  # noqa: ANN401 - gevent has no types
    if not endpoint.alias:
        return _connect_first(_look_up(endpoint, deadline), deadline)
    try:
        soon = time.monotonic() + seconds_left(deadline) / 2
        return _connect_first(_look_up(endpoint, soon), soon)
    except OSError:
        with gevent.Timeout(seconds_left(deadline), TimeoutError("nobody announces it")):
            moved = addresses_on_link(endpoint.alias, endpoint.port)
        if not moved:
            raise
        return _connect_first(moved, deadline)


def _look_up(endpoint: Endpoint, deadline: float) -> list[Any]:
    host, port = endpoint.host, endpoint.port
    # The resolver has timeouts of its own, which add up to more than ours.
    with gevent.Timeout(seconds_left(deadline), TimeoutError("the name was not found in time")):
        found: list[Any] = addresses_on_link(host, port) if is_local(host) else []
        try:
            return found or socket.getaddrinfo(host, port, type=plain_socket.SOCK_STREAM)
        except plain_socket.gaierror as error:
            if not may_be_on_link(host):
                raise
            found = [] if is_local(host) else addresses_on_link(host, port)
            if not found:
                text = f"{error.strerror}, and no agent on its links announces that name"
                raise plain_socket.gaierror(error.errno, text) from error
            return found


def _connect_first(addresses: list[Any], deadline: float) -> Any:  # noqa: ANN401 - gevent has no types
    """Connect to the first of *addresses* that answers; each gets its share of the time that is left."""
    for number, (family, kind, protocol, _, address) in enumerate(addresses, start=1):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(seconds_left(deadline) / (len(addresses) - number + 1))
            sock.connect(address)
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError) or number == len(addresses):
                raise
        else:
            return sock
    raise OSError("its name has no address")


def seconds_left(deadline: float) -> float:
    """Return the seconds up to *deadline*, by `time.monotonic`; raises TimeoutError when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


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
    except (NotAuthorized, UntrustedAgent):
        raise
    except _NoHello as error:
        raise HungUp(
            f"{endpoint} closed the connection before it has said that it is an agent: is agent_port right, and is the"
            " agent up?"
        ) from error
    except _Closed as error:
        raise Unreachable(
            f"{endpoint} closed the connection {error}: is agent_port right, and is the agent up?"
        ) from error
    except OSError as error:
        raise Unreachable(
            f"{endpoint} broke the connection during the handshake ({error.strerror or error}): is agent_port right,"
            " and is the agent up?"
        ) from error


def _shake_hands(
    sock: Any,  # noqa: ANN401 - gevent has no types
    keypair: KeyPair,
    check_key: Callable[[bytes, bytes], None],
    payload: ControllerPayload,
    deadline: float,
) -> Opened:
    pid = os.getpid()
    initiator = Initiator(keypair)
    hello: AgentHello | None = None
    try:
        _send(sock, initiator.data_to_send(), deadline)
        while hello is None:
            hello = initiator.receive_data(_receive(sock, deadline, "before its hello"))
    except ConnectionError as error:
        raise _NoHello from error
    check_key(hello.key, AgentPayload.decode(hello.payload).certificate)
    if os.getpid() != pid:
        # Parent and child hold the same socket and keys: only one of them may go on.
        raise ConnectionError("this process was forked")
    message, transport = initiator.finish(payload.encode())
    _send(sock, message, deadline)
    records: list[bytes | bytearray] = []
    while not records:
        records = transport.receive_data(_receive(sock, deadline, "instead of welcoming this controller"))
    welcome = decode_answer(records.pop(0))
    if welcome is None:
        raise NotAuthorized("the agent does not know this controller")
    sock.settimeout(None)
    return Opened(sock, transport, hello.key, welcome, records)


def _send(sock: Any, data: bytes, deadline: float) -> None:  # noqa: ANN401 - gevent has no types
    sock.settimeout(seconds_left(deadline))
    sock.sendall(data)


def _receive(sock: Any, deadline: float, when: str) -> bytes:  # noqa: ANN401 - gevent has no types
    sock.settimeout(seconds_left(deadline))
    data: bytes = sock.recv(_READ_BYTES)
    if not data:
        raise _Closed(when)
    return data
