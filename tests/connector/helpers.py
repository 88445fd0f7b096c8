"""Peers for the connector's tests: an agent that does as it is told, real agents, and a network that breaks."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import gevent
from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer
from pyinfra.api import Config, Inventory, State
from pyinfra.connectors.util import make_unix_command_for_host

from pyinfra_agent_connector._identity import Identity
from pyinfra_agent_connector._opening import Endpoint
from pyinfra_agent_connector.client import AgentClient
from pyinfra_agent_protocol import (
    AgentPayload,
    CancelReceived,
    ControllerPayload,
    DataReceived,
    RequestReceived,
    Responder,
    Session,
    Side,
    StreamEnded,
    Transport,
    Welcome,
    encode_denied,
    encode_welcome,
)
from pyinfra_agent_protocol.keys import KeyPair, format_public, parse_public

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pyinfra_agent_connector._argv import Wrap

LOCALHOST = "127.0.0.1"
SECONDS = 10.0
"""How long a test waits for what must happen; nothing waits that long unless it fails."""


def until(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Let greenlets run until *condition* holds; return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        gevent.sleep(0.002)
    return value


def accept_any(key: bytes, certificate: bytes) -> None:
    """Trust every agent."""


def client_of(port: int, identity: Identity | None = None, **options) -> AgentClient:
    """Return a client that trusts whoever answers."""
    options = {"check_key": accept_any, "connect_seconds": SECONDS, **options}
    return AgentClient(LOCALHOST, port, identity=identity or new_identity(), **options)


def new_identity() -> Identity:
    return Identity(KeyPair.generate(), "tester@here")


def endpoint(port: int) -> Endpoint:
    return Endpoint(LOCALHOST, port)


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as sock:
        sock.bind((LOCALHOST, 0))
        return sock.getsockname()[1]


class Output:
    """Collects a command's output."""

    def __init__(self) -> None:
        self.stdout = b""
        self.stderr = b""
        self.arrived = Event()

    def __call__(self, stream: str, data: bytes) -> None:
        setattr(self, stream, getattr(self, stream) + data)
        self.arrived.set()


# --- peers that speak TCP ---


class Peer:
    """Listens on loopback and calls *handle* with each connection; remembers what *handle* puts into `seen`."""

    def __init__(self, handle: Callable[[Any], None]) -> None:
        self._server = StreamServer((LOCALHOST, 0), self._serve)
        self._handle = handle
        self.seen = b""
        self.connections = 0

    def _serve(self, sock: Any, address: object) -> None:
        self.connections += 1
        with sock, suppress(OSError):
            self._handle(sock)

    @property
    def port(self) -> int:
        return self._server.server_port

    def read_all(self, sock: Any) -> None:
        """Remember everything that comes until the other side closes."""
        while data := sock.recv(65536):
            self.seen += data

    def __enter__(self) -> Peer:
        self._server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.stop(timeout=0.1)


@dataclass
class Conversation:
    """One connection of an agent that was welcomed, or is about to be."""

    sock: Any
    transport: Transport
    payload: ControllerPayload
    session: Session | None = None
    requests: list[RequestReceived] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    data: bytes = b""

    def welcome(self, status: str = "new", received: int = 0, **more: Any) -> None:
        """Answer the handshake."""
        answer = Welcome(session=status, received=received, channels=more.pop("channels", 256), ttl=60, **more)
        self.sock.sendall(self.transport.encrypt(encode_welcome(answer)))

    def deny(self) -> None:
        self.sock.sendall(self.transport.encrypt(encode_denied()))

    def open(self, session: Session | None = None, status: str = "new", **more: Any) -> Session:
        """Welcome the controller and let *session*, or a new one, be carried by this connection."""
        self.session = session or Session(Side.AGENT)
        received = self.session.received
        self.session.attach(self.payload.received)
        self.welcome(status, received, **more)
        return self.session

    def flush(self) -> None:
        """Send what the session has to send."""
        assert self.session is not None
        while (record := self.session.next_record()) is not None:
            self.sock.sendall(self.transport.encrypt(record))

    def read(self, *, consume: bool = True) -> list[Any]:
        """Read once; return the events, and keep requests and data."""
        assert self.session is not None
        data = self.sock.recv(256 * 1024)
        if not data:
            raise ConnectionError("the controller hung up")
        return self._take(self.transport.receive_data(data), consume)

    def _take(self, records: list[bytes | bytearray], consume: bool) -> list[Any]:
        assert self.session is not None
        events = [event for record in records for event in self.session.receive_record(record)]
        for event in events:
            if isinstance(event, RequestReceived):
                self.requests.append(event)
            elif isinstance(event, DataReceived):
                self.data += event.data
                if consume:
                    self.session.consume(event.channel, len(event.data))
        self.events += events
        self.flush()
        return events

    def request(self) -> RequestReceived:
        """Wait for the next request that was not given out yet."""
        while not self.requests:
            self.read()
        return self.requests.pop(0)

    def wait_for(self, kind: type) -> Any:
        """Wait for an event of *kind*, which may have come before."""
        while True:
            for event in self.events:
                if isinstance(event, kind):
                    self.events.remove(event)
                    return event
            self.read()

    def wait_end(self) -> StreamEnded:
        return self.wait_for(StreamEnded)

    def wait_cancel(self) -> CancelReceived:
        return self.wait_for(CancelReceived)

    def answer(self, channel: int, result: Any) -> None:
        assert self.session is not None
        self.session.send_result(channel, result)
        self.flush()


def shake_hands(sock: Any, key: KeyPair, certificate: bytes = b"") -> Conversation | None:
    """Answer a controller's handshake; None if it hangs up."""
    responder = Responder(key, AgentPayload(certificate=certificate).encode())
    while True:
        data = sock.recv(4096)
        if not data:
            return None
        hello = responder.receive_data(data)
        if answer := responder.data_to_send():
            sock.sendall(answer)
        if hello is not None:
            transport = responder.transport()
            assert transport.receive_data(b"") == [], "nothing follows message 3"
            return Conversation(sock, transport, ControllerPayload.decode(hello.payload))


class FakeAgent(Peer):
    """An agent whose connections are handled by *script(conversation)*, which gets each after its handshake.

    Several scripts are for the first connection, the second, and so on; the last is for all that follow.
    """

    def __init__(
        self, *scripts: Callable[[Conversation], None], key: KeyPair | None = None, certificate: bytes = b""
    ) -> None:
        super().__init__(self._converse)
        self.key = key or KeyPair.generate()
        self.certificate = certificate
        self.conversations: list[Conversation] = []
        self.errors: list[Exception] = []
        self._scripts = scripts

    def _converse(self, sock: Any) -> None:
        conversation = shake_hands(sock, self.key, self.certificate)
        if conversation is None:
            return
        self.conversations.append(conversation)
        script = self._scripts[min(len(self.conversations), len(self._scripts)) - 1]
        try:
            script(conversation)
        except OSError:
            pass
        except Exception as error:
            self.errors.append(error)

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        assert not self.errors, self.errors


def hang_up(conversation: Conversation) -> None:
    """Welcome nobody."""


def serve_quietly(conversation: Conversation) -> None:
    """Welcome the controller and answer nothing."""
    conversation.open()
    while True:
        conversation.read()


# --- a network that breaks ---


class CuttingProxy:
    """Carries connections to *port* until it is told to `cut` them, or *after* so many bytes went up or down.

    `hold` makes new connections wait, as a network does that lost its route.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._server = StreamServer((LOCALHOST, 0), self._serve)
        self._pairs: list[tuple[Any, Any]] = []
        self.links = 0
        self.up = 0
        self.down = 0
        self._limits: dict[str, list[int]] = {"up": [], "down": []}
        self._is_open = Event()
        self._is_open.set()

    @property
    def port(self) -> int:
        return self._server.server_port

    def cut_after(self, direction: str, *limits: int) -> None:
        """Cut every link when another so many bytes in all have passed in *direction*."""
        self._limits[direction] = list(limits)

    def retarget(self, port: int) -> None:
        self._target = port

    def hold(self) -> None:
        self._is_open.clear()

    def release(self) -> None:
        self._is_open.set()

    def cut(self) -> None:
        """Reset every connection now."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                sock.close()

    def refuse(self) -> None:
        """Listen no more."""
        self._server.stop(timeout=0.1)
        self.cut()

    def _serve(self, sock: Any, address: object) -> None:
        self._is_open.wait()
        self.links += 1
        try:
            upstream = socket.create_connection((LOCALHOST, self._target))
        except OSError:
            sock.close()
            return
        pair = (sock, upstream)
        self._pairs.append(pair)
        pumps = [gevent.spawn(self._pump, *ends) for ends in ((sock, upstream, "up"), (upstream, sock, "down"))]
        gevent.joinall(pumps)
        for end in pair:
            end.close()

    def _pump(self, source: Any, sink: Any, direction: str) -> None:
        with suppress(OSError):
            while data := source.recv(16 * 1024):
                limits = self._limits[direction]
                passed = getattr(self, direction)
                if limits and passed + len(data) >= limits[0]:
                    data = data[: limits[0] - passed]
                    setattr(self, direction, passed + len(data))
                    limits.pop(0)
                    sink.sendall(data)
                    self.cut()
                    return
                setattr(self, direction, passed + len(data))
                sink.sendall(data)
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

    def __enter__(self) -> CuttingProxy:
        self._server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
        self.cut()
        self._server.stop(timeout=0.1)


# --- real agents ---


class ServedAgent:
    """`pyinfra-agent serve` as a process."""

    def __init__(self, state_dir: Path, listen: str = f"{LOCALHOST}:0") -> None:
        self.state_dir = state_dir
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pyinfra_agent", "serve", "--no-announce"),
                *("--listen", listen, "--state-dir", str(state_dir)),
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.port = 0
        assert self._process.stderr is not None
        while not self.port:
            line = self._process.stderr.readline()
            assert line, "the agent ended before it listened"
            if found := re.search(r" address=127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
        self._reader = gevent.get_hub().threadpool.spawn(self._process.stderr.read)

    def authorize(self, identity: Identity) -> None:
        line = format_public(identity.keypair.public, identity.comment)
        subprocess.run(
            [sys.executable, "-m", "pyinfra_agent", "authorize", "--state-dir", str(self.state_dir), line],
            check=True,
            capture_output=True,
        )

    @property
    def key_line(self) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pyinfra_agent", "key", "--state-dir", str(self.state_dir)],
            check=True,
            capture_output=True,
            text=True,
        )
        return format_public(parse_public(done.stdout.strip()).key)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.get()
        assert self._process.stderr is not None
        self._process.stderr.close()


# --- pyinfra ---


def state_of(*names: str | tuple[str, dict[str, Any]], **data: Any) -> State:
    """Return a pyinfra State for hosts of these names."""
    inventory = Inventory((list(names), data))
    return State(inventory, Config())


def wrap_for(host: Any) -> Wrap:
    """Return what makes pyinfra's shell commands for *host*."""
    return lambda command, arguments: make_unix_command_for_host(host.state, host, cast("Any", command), **arguments)


def run_python(program: str, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run *program* in a fresh interpreter; warnings are errors there too."""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        **options,
    )
    assert not check or done.returncode == 0, done.stderr
    return done
