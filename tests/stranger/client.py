"""A connector in one file, written from `protocol/SPEC.md` and `protocol/vectors/` alone.

It uses nothing of this project: `noiseprotocol` for the handshake and the ciphers, `msgpack` for the messages, and
blocking sockets. Numbers in comments are sections of SPEC.md. It is meant to be read from top to bottom, and shows how
small the other end of an agent can be; it is not meant for production (one thread, whole files in memory).
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import struct
import zlib
from collections import deque
from typing import TYPE_CHECKING, Any

import msgpack
from noise.connection import Keypair, NoiseConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# 6: frame types.
OPEN, DATA, END, RESULT, REFUSED, SIGNAL, RESIZE, CANCEL = range(1, 9)
ACK, CREDIT, BLOCKED, PING, PONG, GOODBYE = range(16, 22)
WELCOME, DENIED = 32, 33
HEADER = struct.Struct(">BBIH")  # type, stream, channel, length of the body
U64 = struct.Struct(">Q")

MAGIC = b"pyinfra-agent\x01"  # 4.1: and the version
SUITES = {1: b"Noise_XX_25519_ChaChaPoly_BLAKE2b", 2: b"Noise_XX_25519_AESGCM_BLAKE2b"}
HANDSHAKE_MAX_BYTES = 4096  # 4.2
PLAINTEXT_MAX_BYTES = 65_519  # 5
REKEY_RECORDS = 65_536  # 5
ACK_FRAMES, ACK_BYTES, ACK_BYTES_NOTHING_OPEN = 32, 1_048_576, 65_536  # 7.2
INITIAL_WINDOW_BYTES = 131_072  # 8.3
WINDOW_BYTES = 1_048_576  # 8.3: what this client states in OPEN; any value from the initial window on would do
CHUNK_BYTES = 16_384  # 8.4
SESSION_ERRORS = {"frame", "message", "window", "resume", "protocol"}  # 11.2: they end the session
TIMEOUT_S = 5  # 12: silence after which to ask with PING

P = 2**255 - 19
LOW_ORDER = {  # 3
    0, 1, P - 1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
}  # fmt: skip


class LinkLost(Exception):
    """The connection ended. The session goes on (7.4)."""


class SessionOver(Exception):
    """What became of open channels is unknown, and nothing is sent again (7.6)."""


class Denied(Exception):
    """The agent does not let this key in (4.3)."""


class Refused(Exception):
    """The agent refuses one request; nothing else is affected (10)."""

    def __init__(self, refusal: dict[str, Any]) -> None:
        super().__init__(f"{refusal['code']}: {refusal['text']}")
        self.code = refusal["code"]


class ProtocolError(Exception):
    """The agent broke the protocol (11.2)."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def key_line(secret: bytes) -> str:
    """3: the public key as people hand it on."""
    public = _noise(1, b"", secret, None).noise_protocol.keypairs["s"].public_bytes
    return f"pyinfra-agent-key {base64.b64encode(public).decode()} stranger"


def decode(body: bytes) -> dict[str, Any]:
    """9.1: one map in the msgpack profile."""

    def pairs(items: list[tuple[Any, Any]]) -> dict[Any, Any]:
        if len(dict(items)) != len(items):
            raise ValueError("a key twice")
        return dict(items)

    def check(value: Any, depth: int) -> None:  # noqa: ANN401
        if isinstance(value, (msgpack.ExtType, msgpack.Timestamp)):
            raise ValueError("an extension type")  # noqa: TRY004
        if isinstance(value, (dict, list)):
            if depth > 4:
                raise ValueError("nested too deep")
            for item in value.values() if isinstance(value, dict) else value:
                check(item, depth + 1)

    try:
        message = msgpack.unpackb(body, object_pairs_hook=pairs, max_array_len=4096, max_map_len=4096)
        check(message, 1)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError("message", f"not a message: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolError("message", "not a map")
    return message


def _noise(suite: int, prologue: bytes, secret: bytes, ephemeral: bytes | None) -> NoiseConnection:
    noise = NoiseConnection.from_name(SUITES[suite])
    noise.set_prologue(prologue)
    noise.set_keypair_from_private_bytes(Keypair.STATIC, secret)
    if ephemeral is not None:  # to check against the vectors; otherwise every link has a fresh one
        noise.set_keypair_from_private_bytes(Keypair.EPHEMERAL, ephemeral)
    noise.set_as_initiator()
    return noise


class Link:
    """One TCP connection: handshake, then records of whole frames (4, 5, 6)."""

    def __init__(self, sock: socket.socket, secret: bytes, suite: int = 1, ephemeral: bytes | None = None) -> None:
        self.sock = sock
        self._buffer = b""
        self._sealed = self._opened = 0
        preface = MAGIC + bytes([1, suite])
        self.noise = _noise(suite, preface, secret, ephemeral)  # 4.2: the prologue is the preface
        self.noise.start_handshake()
        self.write(preface + bytes(self.noise.write_message()))  # message 1: 32 bytes, and no length
        answer = self._read(len(MAGIC) + 1)
        if answer != MAGIC + bytes([suite]):  # 4.1
            raise ProtocolError("preface", f"no agent, or of another version: {answer!r}")
        self.agent_payload = decode(
            bytes(self.noise.read_message(self._read(self._read_length(96, HANDSHAKE_MAX_BYTES))))
        )
        protocol = self.noise.noise_protocol
        self.agent_key: bytes = protocol.handshake_state.rs.public_bytes
        number = int.from_bytes(self.agent_key, "little")
        if number >= P or number in LOW_ORDER or self.agent_key == protocol.keypairs["s"].public_bytes:  # 3, 4.2
            raise ProtocolError("handshake", "the agent's key is invalid, or ours")

    def authenticate(self, payload: dict[str, Any]) -> None:
        """4.2: message 3, which shows our key. To be sent only after a look at `agent_key`."""
        message = bytes(self.noise.write_message(msgpack.packb(payload)))
        self.write(len(message).to_bytes(2, "big") + message)

    def seal(self, plaintext: bytes) -> bytes:
        """5: one record as it goes over the wire."""
        ciphertext = self.noise.encrypt(plaintext)
        self._sealed += 1
        if self._sealed % REKEY_RECORDS == 0:
            self.noise.rekey_outbound_cipher()
        return len(ciphertext).to_bytes(2, "big") + ciphertext

    def read_frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """5, 6: the frames of the next record."""
        plaintext = self.noise.decrypt(self._read(self._read_length(16, 65_535)))
        self._opened += 1
        if self._opened % REKEY_RECORDS == 0:
            self.noise.rekey_inbound_cipher()
        while plaintext:
            if len(plaintext) < HEADER.size:
                raise ProtocolError("frame", "a record ends within a frame")
            kind, stream, channel, length = HEADER.unpack_from(plaintext)
            body, plaintext = plaintext[HEADER.size : HEADER.size + length], plaintext[HEADER.size + length :]
            if len(body) != length:
                raise ProtocolError("frame", "a record ends within a frame")
            yield kind, stream, channel, body

    def write(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise LinkLost(str(error)) from error

    def _read_length(self, low: int, high: int) -> int:
        self._fill(2)  # stays in the buffer until the rest is there: a timeout between the two loses nothing
        length = int.from_bytes(self._buffer[:2], "big")
        if not low <= length <= high:
            raise ProtocolError("record", f"a length of {length}")
        self._fill(2 + length)
        self._buffer = self._buffer[2:]
        return length

    def _read(self, count: int) -> bytes:
        self._fill(count)
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def _fill(self, count: int) -> None:
        while len(self._buffer) < count:
            try:
                chunk = self.sock.recv(65_536)
            except TimeoutError:
                raise
            except OSError as error:
                raise LinkLost(str(error)) from error
            if not chunk:
                raise LinkLost("end of file")  # 11.1: also without GOODBYE, also within a record
            self._buffer += chunk


class Channel:
    """One request, what goes up for it and what has come down (8)."""

    def __init__(self, number: int, opened_as: int, up: bytes | None, end: dict[str, Any], window: int) -> None:
        self.number, self.opened_as = number, opened_as
        self.up, self.end = up, end  # None: this request takes no input
        self.up_sent, self.up_limit, self.blocked_at = 0, INITIAL_WINDOW_BYTES, -1
        self.window = self.down_limit = window
        self.down = {0: bytearray(), 1: bytearray()}  # 6: standard output or content, standard error
        self.result: dict[str, Any] | None = None
        self.refusal: dict[str, Any] | None = None

    @property
    def is_open(self) -> bool:
        return self.result is None and self.refusal is None

    @property
    def consumed(self) -> int:
        return len(self.down[0]) + len(self.down[1])


class Session:
    """What outlives links (7). `dial` makes a connected socket; `trust` decides on the agent's key."""

    def __init__(
        self,
        dial: Callable[[], socket.socket],
        secret: bytes,
        *,
        trust: Callable[[bytes], bool] = lambda key: True,
        suite: int = 1,
        identifier: bytes | None = None,
        ephemerals: tuple[bytes, ...] = (),
    ) -> None:
        self.dial, self.secret, self.trust, self.suite = dial, secret, trust, suite
        self.identifier = identifier or os.urandom(16)  # 7.3: never used for a second session
        self.ephemerals = list(ephemerals)
        self.link: Link | None = None
        self.agent_key: bytes | None = None
        self.welcome: dict[str, Any] | None = None
        self.attempt = 0
        self.sent = self.acknowledged = self.received = 0  # 7.1: numbered frames
        self.retained: deque[bytes] = deque()  # 7.2: numbered acknowledged + 1 to sent
        self.owed_frames = self.owed_bytes = 0  # 7.2: received since our last ACK or resume point
        self.channels: dict[int, Channel] = {}
        self.highest = 0  # 8.1
        self.pongs: list[int] = []
        self._out: list[bytes] = []
        self._silences = self._failures = 0

    # Requests (9.5).

    def run(self, argv: list[str], stdin: bytes | None = None, **fields: Any) -> tuple[dict[str, Any], bytes, bytes]:
        channel = self.exec(argv, stdin, **fields)
        return self.wait(channel), bytes(channel.down[0]), bytes(channel.down[1])

    def exec(self, argv: list[str], stdin: bytes | None = None, **fields: Any) -> Channel:
        words = [os.fsencode(word) for word in argv]
        return self.open("exec", {"argv": words, **({} if stdin is None else {"stdin": True}), **fields}, stdin)

    def put(self, path: str, content: bytes, **fields: Any) -> Channel:
        end = {"size": len(content), "digest": zlib.crc32(content).to_bytes(4, "big")}  # 9.6
        return self.open("put", {"path": os.fsencode(path), **fields}, content, end)

    def get(self, path: str, **fields: Any) -> bytes:
        channel = self.open("get", {"path": os.fsencode(path), **fields})
        result, content = self.wait(channel), bytes(channel.down[0])
        if (result["size"], result["digest"]) != (len(content), zlib.crc32(content).to_bytes(4, "big")):
            raise ProtocolError("protocol", "size or digest differ: this content must not be used")
        return content

    def stat(self, path: str, **fields: Any) -> dict[str, Any] | None:
        stat: dict[str, Any] | None = self.wait(self.open("stat", {"path": os.fsencode(path), **fields}))["stat"]
        return stat

    def close(self) -> None:
        """9.5, close-session: the agent need not keep the session."""
        self.wait(self.open("close-session", {}))
        self.drop()

    def open(
        self, request: str, fields: dict[str, Any], up: bytes | None = None, end: dict[str, Any] | None = None
    ) -> Channel:
        self.highest += 1
        channel = Channel(self.highest, self.sent + 1, up, end or {}, fields.get("window", WINDOW_BYTES))
        self.channels[channel.number] = channel
        body = msgpack.packb({"request": request, **fields, "window": channel.window})
        self.send_numbered(OPEN, channel.number, body)
        return channel

    def steer(self, channel: Channel, kind: int, message: dict[str, Any]) -> None:
        """SIGNAL, RESIZE or CANCEL."""
        if channel.is_open:  # 8.1: nothing new after the last frame
            self.send_numbered(kind, channel.number, msgpack.packb(message))

    def wait(self, channel: Channel) -> dict[str, Any]:
        while channel.is_open:
            self.turn()
        self.channels.pop(channel.number, None)
        if channel.refusal is not None:
            raise Refused(channel.refusal)
        assert channel.result is not None
        return channel.result

    def ping(self, number: int) -> None:
        self._connect_if_needed()
        self.send_unnumbered(PING, 0, msgpack.packb({"id": number}))
        while number not in self.pongs:
            self.turn()

    # Turns: connect if there is no link, write what windows allow, read one record.

    def turn(self) -> None:
        try:
            self._connect_if_needed()
            self._pump()
            self._read_record()
            self._failures = 0
        except LinkLost:
            self.drop()
            self._failures += 1
            if self._failures > 10:
                raise SessionOver("the agent cannot be reached") from None
        except ProtocolError as error:  # 11.2
            with contextlib.suppress(LinkLost):
                self.send_unnumbered(GOODBYE, 0, msgpack.packb({"code": error.code, "text": str(error)[:1024]}))
                self._flush()
            self.drop()
            raise

    def drop(self) -> None:
        """Ends the link as a cut cable would: unread and unsent bytes are lost."""
        if self.link is not None:
            with contextlib.suppress(OSError):
                self.link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.link.sock.close()
        self.link, self._out = None, []

    def _connect_if_needed(self) -> None:
        if self.link is not None:
            return
        self.attempt += 1  # 7.3: higher than all before
        sock = self.dial()
        sock.settimeout(TIMEOUT_S)
        try:
            link = Link(sock, self.secret, self.suite, self.ephemerals.pop(0) if self.ephemerals else None)
            if not (self.trust(link.agent_key) if self.agent_key is None else link.agent_key == self.agent_key):
                raise Denied("this agent's key is not trusted, or not the one of this session")  # 4.2, 7.3
            self.agent_key = link.agent_key
            resume = {"received": self.received} if self.welcome else {}
            link.authenticate(
                {"session": self.identifier, "attempt": self.attempt, "resume": bool(self.welcome)}
                | resume
                | {"version": "1.0"}
            )
            [(kind, _, _, body)] = link.read_frames()  # 4.3: exactly one frame
        except TimeoutError as error:
            sock.close()
            raise LinkLost("no answer to the handshake") from error
        except BaseException:
            sock.close()
            raise
        if kind == DENIED:
            sock.close()
            raise Denied("the agent does not let this key in")
        welcome = decode(body)
        if welcome["session"] not in ({"new", "resumed"} if self.welcome is None else {"resumed"}):  # 7.6
            sock.close()
            raise SessionOver(welcome["session"])
        if kind != WELCOME or not self.acknowledged <= welcome["received"] <= self.sent_on_a_link():
            sock.close()
            raise SessionOver("resume point out of bounds")  # 7.3
        self.link, self.welcome = link, welcome
        self._acknowledge(welcome["received"])
        self.owed_frames = self.owed_bytes = 0  # ours was a resume point, too
        for channel in self.channels.values():
            channel.blocked_at = -1  # 7.4: BLOCKED is said again
            if channel.is_open and channel.opened_as <= self.acknowledged and channel.down_limit > channel.window:
                self.send_unnumbered(CREDIT, channel.number, U64.pack(channel.down_limit))
        self._out.extend(self.retained)  # 7.3: the replay, byte for byte, before anything new

    def sent_on_a_link(self) -> int:
        return self.sent if self.welcome else 0

    def send_numbered(self, kind: int, channel: int, body: bytes) -> None:
        frame = HEADER.pack(kind, 0, channel, len(body)) + body
        self.sent += 1
        self.retained.append(frame)
        if self.link is not None:  # else the next link begins with it
            self._out.append(frame)

    def send_unnumbered(self, kind: int, channel: int, body: bytes) -> None:
        self._out.append(HEADER.pack(kind, 0, channel, len(body)) + body)

    def _pump(self) -> None:
        """8.3: DATA as far as the limits go, END behind it, BLOCKED where a limit was reached."""
        for channel in self.channels.values():
            while channel.is_open and channel.up is not None:
                body = channel.up[channel.up_sent : min(channel.up_sent + CHUNK_BYTES, channel.up_limit)]
                if body:
                    self.send_numbered(DATA, channel.number, body)
                    channel.up_sent += len(body)
                elif channel.up_sent == len(channel.up):
                    self.send_numbered(END, channel.number, msgpack.packb(channel.end))
                    channel.up = None
                else:
                    if channel.blocked_at != channel.up_limit:  # once for each limit on each link
                        self.send_unnumbered(BLOCKED, channel.number, U64.pack(channel.up_limit))
                        channel.blocked_at = channel.up_limit
                    break
        self._flush()

    def _flush(self) -> None:
        """5: whole frames into records, an ACK in front where one is of use."""
        if not self._out or self.link is None:
            return
        if self.owed_frames:
            self._out.insert(0, HEADER.pack(ACK, 0, 0, 8) + U64.pack(self.received))
            self.owed_frames = self.owed_bytes = 0
        plaintexts = [b""]
        for frame in self._out:
            if len(plaintexts[-1]) + len(frame) > PLAINTEXT_MAX_BYTES:
                plaintexts.append(b"")
            plaintexts[-1] += frame
        self._out = []
        for plaintext in plaintexts:
            self.link.write(self.link.seal(plaintext))

    def _read_record(self) -> None:
        assert self.link is not None
        try:
            frames = list(self.link.read_frames())
        except TimeoutError as error:  # 12
            self._silences += 1
            if self._silences == 3:
                raise LinkLost("silence") from error
            self.send_unnumbered(PING, 0, msgpack.packb({"id": self._silences}))
            return
        self._silences = 0
        for kind, stream, number, body in frames:
            if kind in (DATA, RESULT, REFUSED):
                self.received += 1
                self.owed_frames += 1
                self.owed_bytes += len(body)
                self._take_numbered(kind, stream, number, body)
            else:
                self._take_unnumbered(kind, number, body)
        self._acknowledge_if_due()

    def _take_numbered(self, kind: int, stream: int, number: int, body: bytes) -> None:
        channel = self.channels.get(number)
        if channel is None or not channel.is_open:  # 8.1: no late frames on the way down
            raise ProtocolError("frame", f"a frame for channel {number}, which is not open")
        if kind == DATA:
            if stream > 1 or not body:
                raise ProtocolError("frame", "DATA of a third stream, or without a body")
            if channel.consumed + len(body) > channel.down_limit:
                raise ProtocolError("window", "more DATA than was granted")
            channel.down[stream] += body  # at once, so `received` and `consumed` of 8.3 are the same here
            if channel.down_limit - channel.consumed <= channel.window // 2:
                channel.down_limit = channel.consumed + channel.window
                self.send_unnumbered(CREDIT, number, U64.pack(channel.down_limit))
        elif kind == RESULT:
            channel.result = decode(body)
        else:
            channel.refusal = decode(body)

    def _take_unnumbered(self, kind: int, number: int, body: bytes) -> None:
        if kind == ACK and len(body) == 8:
            self._acknowledge(U64.unpack(body)[0])
        elif kind == CREDIT and len(body) == 8 and 1 <= number <= self.highest:
            if number in self.channels:  # one that is forgotten has no more DATA to send
                self.channels[number].up_limit = max(self.channels[number].up_limit, U64.unpack(body)[0])
        elif kind == BLOCKED and len(body) == 8 and 1 <= number <= self.highest:
            pass  # 8.3: larger windows are a choice, and CREDIT is never withheld here
        elif kind == PING:
            self.send_unnumbered(PONG, 0, body)
        elif kind == PONG:
            self.pongs.append(decode(body)["id"])
        elif kind == GOODBYE:  # 11.3
            code = decode(body)["code"]
            if code in SESSION_ERRORS | {"closed", "replaced"}:
                self.drop()
                raise SessionOver(code)
        else:
            raise ProtocolError("frame", f"a frame of type {kind}")

    def _acknowledge(self, count: int) -> None:
        if not self.acknowledged <= count <= self.sent:
            raise ProtocolError("resume", f"{count} frames acknowledged of {self.sent}")
        while self.acknowledged < count:
            self.retained.popleft()
            self.acknowledged += 1

    def _acknowledge_if_due(self) -> None:
        any_open = any(channel.is_open for channel in self.channels.values())
        most = ACK_BYTES if any_open else ACK_BYTES_NOTHING_OPEN
        if self.owed_frames >= ACK_FRAMES or self.owed_bytes >= most:  # 7.2: with this record
            self.send_unnumbered(ACK, 0, U64.pack(self.received))
            self.owed_frames = self.owed_bytes = 0
        self._flush()
