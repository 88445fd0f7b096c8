"""A controller made from the protocol package, and an agent's skin to connect it to, without a network."""

from __future__ import annotations

import os
import secrets
import socket
from collections import defaultdict
from typing import Any

import trio
import trio.testing

from pyinfra_agent._admission import Admission
from pyinfra_agent._authorized import NotAdmitted
from pyinfra_agent._connection import ConnectionServer
from pyinfra_agent._context import Context
from pyinfra_agent._controllers import Controller
from pyinfra_agent._dispatch import handle_request
from pyinfra_agent._policy import Policy
from pyinfra_agent._session import SessionTable
from pyinfra_agent._settings import Settings
from pyinfra_agent._supervisor import Supervisor
from pyinfra_agent_protocol import (
    AGENT_BUDGET_BYTES,
    SESSION_ID_BYTES,
    Budget,
    ControllerPayload,
    DataReceived,
    Digest,
    Exec,
    GoodbyeReceived,
    Initiator,
    Put,
    RefusalReceived,
    ResultReceived,
    Session,
    Side,
    decode_answer,
)
from pyinfra_agent_protocol.keys import KeyPair

PATH = os.environb.get(b"PATH", b"/usr/local/bin:/usr/bin:/bin")
ENVIRONMENT = {b"PATH": PATH, b"HOME": b"/"}
PEER = "192.0.2.7:40000"


def sh(script: str | bytes, **fields) -> Exec:
    """Return a request that runs *script* in a shell."""
    return Exec((b"sh", b"-c", script.encode() if isinstance(script, str) else script), **fields)


class Allowed:
    """Lets some keys in; everybody where none is named."""

    def __init__(self, *keys: bytes, comment: str = "tester", policy: Policy | None = None) -> None:
        self.keys = keys
        self.policy = policy or Policy()
        self.comment = comment

    signature = None

    def certificate_of(self, key):
        return b""

    def next_key_after(self, key):
        return b""

    def admit(self, key, certificate, peer):
        if self.keys and key not in self.keys:
            raise NotAdmitted("this key is not authorised")
        return Controller(key, self.comment, self.policy)


class House:
    """The skin of an agent: everything but listeners and signals."""

    def __init__(self, nursery, authorizer=None, handle=handle_request, **settings) -> None:
        self.nursery = nursery
        self.key = KeyPair.generate()
        self.settings = Settings(**{"inherited_environment": ENVIRONMENT, "home": b"/", **settings})
        self.supervisor = Supervisor(nursery)
        self.context = Context(self.settings, self.supervisor, None, "this-boot")
        self.sessions = SessionTable(self.settings, nursery, Budget(AGENT_BUDGET_BYTES), self._start)
        self.admission = Admission(self.settings.unauthenticated_max)
        self.server = ConnectionServer(self.settings, self.key, authorizer or Allowed(), self.admission, self.sessions)
        self._handle = handle

    def _start(self, session, channel, request) -> None:
        self.nursery.start_soon(self._handle, self.context, session, channel, request)

    def connect(self, pair=trio.testing.memory_stream_pair, peer=PEER):
        """Return the controller's end of a connection that the agent serves."""
        ours, theirs = pair()
        self.nursery.start_soon(self.server.serve, theirs, peer)
        return ours

    async def welcome(self, pair=trio.testing.memory_stream_pair, **fields) -> TestController:
        """Return a new controller with a link to us."""
        controller = TestController(**fields)
        await controller.link(self.nursery, self.connect(pair))
        return controller


def socket_pair():
    """Two ends of a connection in the kernel: buffers are finite, and a peer that does not read is noticed."""
    left, right = socket.socketpair()
    return trio.SocketStream(trio.socket.from_stdlib_socket(left)), trio.SocketStream(
        trio.socket.from_stdlib_socket(right)
    )


class Call:
    """One request as its controller sees it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.output: dict[int, bytearray] = defaultdict(bytearray)
        self.result: Any = None
        self.refusal: Any = None
        self.done = trio.Event()
        self.news = trio.lowlevel.ParkingLot()

    @property
    def out(self) -> bytes:
        return bytes(self.output[0])

    @property
    def err(self) -> bytes:
        return bytes(self.output[1])

    async def wait(self):
        """Return the result; None if it was refused."""
        with trio.fail_after(30):
            await self.done.wait()
        return self.result

    async def wait_output(self, least: int = 1) -> bytes:
        """Wait until so many bytes of standard output are there; return all that are."""
        with trio.fail_after(30):
            while len(self.output[0]) < least:
                assert not self.done.is_set(), (self.result, self.refusal)
                await self.news.park()
        return self.out

    async def wait_line(self) -> bytes:
        """Wait for a line of standard output; return it, and forget it."""
        with trio.fail_after(30):
            while b"\n" not in self.output[0]:
                assert not self.done.is_set(), (self.result, self.refusal, self.err)
                await self.news.park()
        line, _, self.output[0] = self.output[0].partition(b"\n")
        return bytes(line)


class TestController:
    """A controller: one session, and the link that carries it now."""

    __test__ = False

    def __init__(self, key: KeyPair | None = None, session: bytes | None = None) -> None:
        self.key = key or KeyPair.generate()
        self.session = session or secrets.token_bytes(SESSION_ID_BYTES)
        self.attempt = 0
        self.protocol = Session(Side.CONNECTOR)
        self.welcome = None
        self.answer = b""
        self.calls: dict[int, Call] = {}
        self.goodbyes: list = []
        self.records: list[bytes | bytearray] = []
        self.stream: Any = None
        self.over = trio.Event()
        #: False leaves what arrives unconsumed: no credit is given.
        self.consumes = True
        self._freeze = trio.CancelScope()
        self._work = trio.Event()
        self._news = trio.lowlevel.ParkingLot()

    async def shake_hands(self, stream, payload: bytes):
        """Shake hands on *stream*; return the transport and the plaintext of the agent's first record."""
        initiator = Initiator(self.key)
        await stream.send_all(initiator.data_to_send())
        hello = None
        while hello is None:
            hello = initiator.receive_data(bytes(await stream.receive_some(4096)))
        message, transport = initiator.finish(payload)
        await stream.send_all(message)
        plaintexts: list[bytes | bytearray] = []
        while not plaintexts:
            data = bytes(await stream.receive_some(65536))
            if not data:
                raise EOFError("the agent closed the connection instead of answering")
            plaintexts = transport.receive_data(data)
        self.records = plaintexts[1:]
        return transport, plaintexts[0]

    async def join(self, stream, *, resume=False, attempt=None, received=None):
        """Shake hands for our session; return the welcome, or None when denied."""
        self.attempt = self.attempt + 1 if attempt is None else attempt
        received = self.protocol.received if received is None else received
        payload = ControllerPayload(self.session, self.attempt, resume, received)
        with trio.fail_after(30):
            self.transport, self.answer = await self.shake_hands(stream, payload.encode())
        self.stream = stream
        self.welcome = decode_answer(self.answer)
        return self.welcome

    async def link(self, nursery, stream, **fields) -> None:
        """Join, and carry the session in *nursery* until the link ends."""
        welcome = await self.join(stream, **fields)
        assert welcome is not None
        assert welcome.session in ("new", "resumed"), welcome
        self.protocol.attach(welcome.received)
        self.over = trio.Event()
        self._freeze = trio.CancelScope()
        nursery.start_soon(self._carry, stream, self.over, self._freeze)

    async def cut(self) -> None:
        """Lose the link, as a network does."""
        await self.stream.aclose()
        await self.over.wait()

    def freeze(self) -> None:
        """Stop serving the link without closing it, as a network does that swallows everything."""
        self.protocol.detach()
        self._freeze.cancel()

    async def resume(self, house: House, pair=trio.testing.memory_stream_pair) -> None:
        """Carry the session on over a new link."""
        await self.link(house.nursery, house.connect(pair), resume=True)

    async def _carry(self, stream, over, freeze) -> None:
        try:
            async with stream:
                with freeze:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._write, stream)
                        await self._read(stream)
                        nursery.cancel_scope.cancel()
                if freeze.cancelled_caught:
                    await trio.sleep_forever()
        finally:
            if over is self.over:
                self.protocol.detach()
            over.set()

    async def _read(self, stream) -> None:
        try:
            while True:
                records, self.records = self.records, []
                for plaintext in records:
                    self._take(plaintext)
                self.wake()
                data = bytes(await stream.receive_some(262144))
                if not data:
                    return
                self.records = self.transport.receive_data(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    def _take(self, plaintext: bytes | bytearray) -> None:
        if not self.protocol.is_attached:
            return  # frozen a moment ago
        for event in self.protocol.receive_record(plaintext):
            if isinstance(event, GoodbyeReceived):
                self.goodbyes.append(event.goodbye)
                continue
            call = self.calls.get(getattr(event, "channel", 0))
            if call is None:
                continue
            if isinstance(event, DataReceived):
                call.output[event.stream] += event.data
                if self.consumes:
                    self.protocol.consume(event.channel, len(event.data))
            elif isinstance(event, ResultReceived):
                call.result = event.result
                call.done.set()
            elif isinstance(event, RefusalReceived):
                call.refusal = event.refusal
                call.done.set()
            call.news.unpark_all()

    async def _write(self, stream) -> None:
        try:
            while True:
                self._work = trio.Event()
                while (plaintext := self.protocol.next_record()) is not None:
                    await stream.send_all(self.transport.encrypt(plaintext))
                    self._news.unpark_all()
                await self._work.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    def wake(self) -> None:
        """Write what is to be written."""
        self._work.set()
        self._news.unpark_all()

    async def send_plaintext(self, plaintext: bytes) -> None:
        """Send one record that the protocol did not make."""
        await self.stream.send_all(self.transport.encrypt(plaintext))

    def start(self, request) -> Call:
        """Send a request; what it needs can follow."""
        call = Call(self.protocol.open(request))
        self.calls[call.number] = call
        self.wake()
        return call

    async def send(self, call: Call, data: bytes) -> None:
        """Send DATA, as fast as the agent takes it."""
        for start in range(0, len(data), 65536):
            while self.protocol.is_open(call.number) and not self.protocol.sendable(call.number):
                await self._news.park()
            if not self.protocol.is_open(call.number):
                return
            self.protocol.send_data(call.number, data[start : start + 65536])
            self.wake()

    def end(self, call: Call, **fields) -> None:
        """Say that no more DATA follows."""
        if self.protocol.is_open(call.number):
            self.protocol.send_end(call.number, **fields)
            self.wake()

    def cancel(self, call: Call) -> None:
        self.protocol.send_cancel(call.number)
        self.wake()

    async def ask(self, request, data: bytes | None = None) -> Call:
        """Send a request with all of its data; return it when it is answered."""
        call = self.start(request)
        with trio.fail_after(60):
            if data is not None:
                await self.send(call, data)
                if isinstance(request, Put):
                    self.end(call, **announced(data))
                else:
                    self.end(call)
            await call.done.wait()
        return call


def announced(data: bytes) -> dict:
    """Return what END says of *data*."""
    digest = Digest()
    digest.update(data)
    return {"size": len(data), "digest": digest.digest()}


async def until(condition, interval: float = 0.002) -> None:
    """Wait until *condition* holds; for what no event tells."""
    with trio.fail_after(30 if interval < 1 else 3600):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(interval)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] != b"Z"
    except FileNotFoundError:
        return False
