"""A connector in one file, written from `protocol/SPEC.md` and `protocol/vectors/` alone.

It uses nothing of this project: `noiseprotocol` for handshake and ciphers, `msgpack` for messages, blocking sockets.
Numbers in comments are sections of SPEC.md. It is for reading from top to bottom and for checking the text of the
specification against an agent, not for production: one thread, whole files in memory, requests from one caller.
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
from cryptography.exceptions import InvalidTag
from noise.connection import Keypair, NoiseConnection
from noise.exceptions import NoiseInvalidMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OPEN, DATA, END, RESULT, REFUSED, SIGNAL, RESIZE, CANCEL = range(1, 9)  # 6: numbered frames
ACK, CREDIT, BLOCKED, PING, PONG, GOODBYE = range(16, 22)
WELCOME, DENIED = 32, 33
ABOUT_THE_LINK = {ACK, PING, PONG, GOODBYE, WELCOME, DENIED}  # 6: their channel is 0
HEADER = struct.Struct(">BBIH")  # 6: type, stream, channel, length of the body
U64 = struct.Struct(">Q")

MAGIC = b"pyinfra-agent\x01"  # 4.1: and the version
SUITES = {1: b"Noise_XX_25519_ChaChaPoly_BLAKE2b", 2: b"Noise_XX_25519_AESGCM_BLAKE2b"}
PLAINTEXT_MAX_BYTES = 65_519  # 5
REKEY_RECORDS = 65_536  # 5
ACK_FRAMES, ACK_BYTES, ACK_BYTES_NOTHING_OPEN = 32, 1_048_576, 65_536  # 7.2
INITIAL_WINDOW_BYTES = 131_072  # 8.3
WINDOW_BYTES = 1_048_576  # 8.3: what OPEN states here; anything from the initial window on would do
CHUNK_BYTES = 16_384  # 8.4
SILENCE_S, SILENCES = 5, 3  # 12
GIVE_UP_AFTER = 10  # 7.6: links lost in a row without a record
SESSION_ERRORS = {"frame", "message", "window", "resume", "protocol"}  # 11.2

P = 2**255 - 19
LOW_ORDER = {  # 3
    0,
    1,
    P - 1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
}


def digest(content: bytes) -> bytes:
    """9.6: CRC-32 over the first 65,536 bytes and every 257th behind them."""
    start = -(-65_536 // 257) * 257
    return zlib.crc32(content[:65_536] + content[start::257]).to_bytes(4, "big")


class LinkLost(Exception):
    """The connection ended; the session goes on (7.4)."""


class SessionOver(Exception):
    """What became of open requests is unknown, and they are not sent again (7.6)."""


class Denied(Exception):
    """The agent does not let this key in (4.3), or its own key is not trusted (4.2)."""


class Refused(Exception):
    """One request was refused; nothing else is affected (10)."""

    def __init__(self, refusal: dict[str, Any]) -> None:
        super().__init__(f"{refusal['code']}: {refusal['text']}")
        self.code = refusal["code"]


class ProtocolError(Exception):
    """The agent broke the protocol (11.2)."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def decode(body: bytes, *required: str) -> dict[str, Any]:
    """9.1: one map and nothing after it. Fields that nobody knows are ignored (2)."""
    try:
        message = msgpack.unpackb(body, max_array_len=4096, max_map_len=4096)
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolError("message", f"not a message: {error}") from error
    if not isinstance(message, dict) or any(name not in message for name in required):
        raise ProtocolError("message", f"not a map with {required}")
    return message


def frame(kind: int, channel: int, body: bytes) -> bytes:
    """6: nothing that goes up has a stream."""
    return HEADER.pack(kind, 0, channel, len(body)) + body


def _initiator(suite: int, preface: bytes, secret: bytes, ephemeral: bytes | None) -> NoiseConnection:
    noise = NoiseConnection.from_name(SUITES[suite])
    noise.set_prologue(preface)  # 4.2
    noise.set_keypair_from_private_bytes(Keypair.STATIC, secret)
    if ephemeral is not None:
        noise.set_keypair_from_private_bytes(Keypair.EPHEMERAL, ephemeral)
    noise.set_as_initiator()
    noise.start_handshake()
    return noise


class Link:
    """One TCP connection: handshake (4), then records (5) of whole frames (6)."""

    def __init__(
        self, sock: socket.socket, secret: bytes, offer: tuple[int, ...] = (1,), ephemeral: bytes | None = None
    ) -> None:
        self.sock, self._buffer, self._sealed, self._opened = sock, b"", 0, 0
        preface = MAGIC + bytes([len(offer), *offer])
        if len(offer) > 1 and ephemeral is None:
            ephemeral = os.urandom(32)  # message 1 goes out before the choice, and is the same in each suite
        candidates = {suite: _initiator(suite, preface, secret, ephemeral) for suite in offer}
        message_1 = [bytes(noise.write_message()) for noise in candidates.values()]
        self.write(preface + message_1[0])  # without a length
        answer = self._read(len(MAGIC) + 1)
        if answer[:-1] != MAGIC or answer[-1] not in candidates:
            raise ProtocolError("preface", f"no agent, or one of another version: {answer!r}")
        self.noise = candidates[answer[-1]]
        own_key = self.noise.noise_protocol.keypairs["s"].public_bytes
        message_2 = self._read_with_length(96, 4096)
        try:
            decode(bytes(self.noise.read_message(message_2)))
        except (InvalidTag, ValueError) as error:  # ValueError: a DH result of zeros
            raise ProtocolError("handshake", f"message 2 does not verify: {error}") from error
        self.agent_key: bytes = self.noise.noise_protocol.handshake_state.rs.public_bytes
        number = int.from_bytes(self.agent_key, "little")
        if number >= P or number in LOW_ORDER or self.agent_key == own_key:  # 3, 4.2
            raise ProtocolError("handshake", "the agent's key is invalid, or our own")

    def authenticate(self, payload: dict[str, Any]) -> None:
        """4.2: message 3 shows our key, so it is sent after the decision on `agent_key`."""
        message = bytes(self.noise.write_message(msgpack.packb(payload)))
        self.write(len(message).to_bytes(2, "big") + message)

    def seal(self, plaintext: bytes) -> bytes:
        """5: a record as it goes over the wire."""
        ciphertext = self.noise.encrypt(plaintext)
        self._sealed += 1
        if self._sealed % REKEY_RECORDS == 0:
            self.noise.rekey_outbound_cipher()
        return len(ciphertext).to_bytes(2, "big") + ciphertext

    def read_record(self) -> bytes:
        """5: the plaintext of the next record. TimeoutError loses nothing of it."""
        try:
            plaintext: bytes = self.noise.decrypt(self._read_with_length(16, 65_535))
        except NoiseInvalidMessage as error:
            raise LinkLost(f"a record that does not verify: {error}") from error  # 11.2: the session can be resumed
        self._opened += 1
        if self._opened % REKEY_RECORDS == 0:
            self.noise.rekey_inbound_cipher()
        return plaintext

    def write(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)  # an agent never waits for a reader to read on (8.4), so this ends
        except OSError as error:
            raise LinkLost(str(error)) from error

    def _read_with_length(self, low: int, high: int) -> bytes:
        self._fill(2)
        length = int.from_bytes(self._buffer[:2], "big")
        if not low <= length <= high:
            raise LinkLost(f"a message or record of {length} bytes")
        self._fill(2 + length)
        return self._read(2 + length)[2:]

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
                raise LinkLost("end of file")  # 11.1: without GOODBYE or within a record, it is the same
            self._buffer += chunk


def frames(plaintext: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """6: type, stream, channel and body of each frame of a record."""
    while plaintext:
        if len(plaintext) < HEADER.size:
            raise ProtocolError("frame", "a record ends within a frame")
        kind, stream, channel, length = HEADER.unpack_from(plaintext)
        body, plaintext = plaintext[HEADER.size : HEADER.size + length], plaintext[HEADER.size + length :]
        if len(body) != length or stream > (kind == DATA) or (channel == 0) != (kind in ABOUT_THE_LINK):
            raise ProtocolError("frame", f"type {kind}, stream {stream}, channel {channel}, {len(body)} of {length}")
        yield kind, stream, channel, body


class Channel:
    """One request: what goes up for it, and what has come down (8)."""

    def __init__(self, number: int, opened_as: int, window: int, up: bytes | None, end: dict[str, Any]) -> None:
        self.number, self.opened_as, self.window = number, opened_as, window
        self.up, self.end = up, end  # up is None where no input goes up, or no more
        self.up_sent, self.up_limit, self.blocked_at = 0, INITIAL_WINDOW_BYTES, -1
        self.down_limit = window
        self.down = [bytearray(), bytearray()]  # 6: standard output or a file's content, standard error
        self.result: dict[str, Any] | None = None
        self.refusal: dict[str, Any] | None = None

    @property
    def is_open(self) -> bool:
        return self.result is None and self.refusal is None


class Session:
    """What outlives links (7).

    `dial` returns a connected socket, `trust` decides on an agent's key the first time it is seen.
    """

    def __init__(
        self,
        dial: Callable[[], socket.socket],
        secret: bytes,
        *,
        trust: Callable[[bytes], bool] = lambda key: True,
        offer: tuple[int, ...] = (1,),
        identifier: bytes | None = None,
        ephemerals: tuple[bytes, ...] = (),  # only to say what the vectors say
    ) -> None:
        self.dial, self.secret, self.trust, self.offer = dial, secret, trust, offer
        self.identifier = identifier or os.urandom(16)  # 7.3
        self.ephemerals = list(ephemerals)
        self.link: Link | None = None
        self.agent_key: bytes | None = None
        self.welcome: dict[str, Any] | None = None
        self.attempt = self.losses = self.silences = 0
        self.sent = self.acknowledged = self.received = 0  # 7.1: numbered frames
        self.retained: deque[bytes] = deque()  # 7.2: those from `acknowledged` to `sent`
        self.owed_frames = self.owed_bytes = 0  # 7.2: received since our last ACK or resume point
        self.channels: dict[int, Channel] = {}
        self.highest = 0  # 8.1
        self.pongs: list[int] = []
        self._out: list[bytes] = []

    # 9.5: requests.

    def run(self, argv: list[str], stdin: bytes | None = None, **fields: Any) -> tuple[dict[str, Any], bytes, bytes]:
        channel = self.exec(argv, stdin, **fields)
        return self.wait(channel), bytes(channel.down[0]), bytes(channel.down[1])

    def exec(self, argv: list[str], stdin: bytes | None = None, **fields: Any) -> Channel:
        words = [os.fsencode(word) for word in argv]
        return self.open("exec", {"argv": words, **({} if stdin is None else {"stdin": True}), **fields}, up=stdin)

    def put(self, path: str, content: bytes, **fields: Any) -> Channel:
        end = {"size": len(content), "digest": digest(content)}  # 9.6
        return self.open("put", {"path": os.fsencode(path), **fields}, up=content, end=end)

    def get(self, path: str, **fields: Any) -> bytes:
        channel = self.open("get", {"path": os.fsencode(path), **fields})
        result, content = self.wait(channel), bytes(channel.down[0])
        if (result["size"], result["digest"]) != (len(content), digest(content)):
            raise ProtocolError("protocol", "size or digest differ: this content must not be used")
        return content

    def stat(self, path: str, **fields: Any) -> dict[str, Any] | None:
        stat: dict[str, Any] | None = self.wait(self.open("stat", {"path": os.fsencode(path), **fields}))["stat"]
        return stat

    def close(self) -> None:
        self.wait(self.open("close-session", {}))  # the agent need not keep the session for its `ttl`
        self.drop()

    def open(
        self, request: str, fields: dict[str, Any], *, up: bytes | None = None, end: dict[str, Any] | None = None
    ) -> Channel:
        self.highest += 1
        if request in ("exec", "get"):  # 8.3: DATA comes down, for which a larger window pays
            fields = {**fields, "window": fields.get("window", WINDOW_BYTES)}
        channel = Channel(self.highest, self.sent + 1, fields.get("window", INITIAL_WINDOW_BYTES), up, end or {})
        self.channels[channel.number] = channel
        self.send(OPEN, channel.number, msgpack.packb({"request": request, **fields}))
        return channel

    def steer(self, channel: Channel, kind: int, message: dict[str, Any]) -> None:
        """SIGNAL, RESIZE and CANCEL."""
        if channel.is_open:  # 8.1: nothing new after the last frame
            self.send(kind, channel.number, msgpack.packb(message))

    def wait(self, channel: Channel) -> dict[str, Any]:
        while channel.is_open:
            self.turn()
        del self.channels[channel.number]
        if channel.result is None:
            raise Refused(channel.refusal or {})
        return channel.result

    def ping(self, number: int) -> None:
        if self.link is None:
            self.connect()
        self._say(PING, 0, msgpack.packb({"id": number}))
        while number not in self.pongs:
            self.turn()

    # 7: links come and go.

    def turn(self) -> None:
        """Connects if there is no link, writes what the windows allow, takes one record."""
        try:
            if self.link is None:
                self.connect()
            self._pump()
            self._take_record()
            self.losses = 0
        except LinkLost:
            self.drop()
            self.losses += 1
            if self.losses == GIVE_UP_AFTER:
                raise
        except ProtocolError as error:
            if self.welcome is not None:  # 11.2: before that nobody could read it
                with contextlib.suppress(LinkLost):
                    self._say(GOODBYE, 0, msgpack.packb({"code": error.code, "text": str(error)}))
                    self._flush()
            self.drop()
            raise
        except (Denied, SessionOver):
            self.drop()
            raise

    def drop(self) -> None:
        """Ends the link as a cut cable does: what is unread or unsent on it is lost."""
        if self.link is not None:
            with contextlib.suppress(OSError):
                self.link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.link.sock.close()
        self.link, self._out = None, []

    def connect(self) -> None:
        """7.3: opens the session, or resumes it."""
        self.attempt += 1  # above all before, also above those that failed
        sock = self.dial()
        try:
            sock.settimeout(SILENCE_S)
            link = Link(sock, self.secret, self.offer, self.ephemerals.pop(0) if self.ephemerals else None)
            if not (self.trust(link.agent_key) if self.agent_key is None else link.agent_key == self.agent_key):
                raise Denied("the agent's key is not trusted, or not that of this session")
            self.agent_key, resume = link.agent_key, self.welcome is not None
            payload = {"session": self.identifier, "attempt": self.attempt, "resume": resume}
            link.authenticate(payload | ({"received": self.received} if resume else {}) | {"version": "1.0"})
            answer = list(frames(link.read_record()))
        except BaseException as error:
            sock.close()
            if isinstance(error, TimeoutError):
                raise LinkLost("no answer in the handshake") from error
            raise
        self.link = link
        if len(answer) != 1 or answer[0][0] not in (WELCOME, DENIED):  # 4.3
            raise ProtocolError("protocol", "the first record is neither WELCOME nor DENIED")
        if answer[0][0] == DENIED:
            raise Denied("the agent does not let this key in")
        welcome = decode(answer[0][3], "session", "received", "channels", "ttl")
        if welcome["session"] not in (("resumed",) if resume else ("new", "resumed")):  # 7.6
            raise SessionOver(welcome["session"])
        if not resume and welcome["received"] != 0:
            raise ProtocolError("resume", "the agent has received frames before any was written")
        self._acknowledged(welcome["received"])
        self.welcome, self.silences, self.owed_frames, self.owed_bytes = welcome, 0, 0, 0
        for channel in self.channels.values():  # 7.4
            channel.blocked_at = -1
            if channel.is_open and channel.opened_as <= self.acknowledged and channel.down_limit > channel.window:
                self._say(CREDIT, channel.number, U64.pack(channel.down_limit))
        self._out.extend(self.retained)  # 7.3: the replay, byte for byte, before anything new

    # Writing.

    def send(self, kind: int, channel: int, body: bytes) -> None:
        """7.1, 7.2: a numbered frame is kept until it is acknowledged."""
        self.sent += 1
        self.retained.append(frame(kind, channel, body))
        if self.link is not None:  # else the replay on the next one has it
            self._out.append(self.retained[-1])

    def _say(self, kind: int, channel: int, body: bytes) -> None:
        self._out.append(frame(kind, channel, body))

    def _pump(self) -> None:
        """8.3: DATA up to the limits, END behind it, BLOCKED where a limit is in the way."""
        for channel in self.channels.values():
            while channel.is_open and channel.up is not None:
                body = channel.up[channel.up_sent : min(channel.up_sent + CHUNK_BYTES, channel.up_limit)]
                if body:
                    self.send(DATA, channel.number, body)
                    channel.up_sent += len(body)
                elif channel.up_sent == len(channel.up):
                    self.send(END, channel.number, msgpack.packb(channel.end))
                    channel.up = None
                else:
                    if channel.blocked_at != channel.up_limit:  # once for each limit on each link
                        self._say(BLOCKED, channel.number, U64.pack(channel.up_limit))
                        channel.blocked_at = channel.up_limit
                    break
        self._flush()

    def _flush(self) -> None:
        """5: whole frames into records. 7.2: an ACK where it is due, or where a record goes out anyway."""
        idle = not any(channel.is_open for channel in self.channels.values())
        due = self.owed_frames >= ACK_FRAMES or self.owed_bytes >= (ACK_BYTES_NOTHING_OPEN if idle else ACK_BYTES)
        if self.link is None or not (self._out or due):
            return
        if self.owed_frames:  # in front: 8.2 wants it before an OPEN
            self._out.insert(0, frame(ACK, 0, U64.pack(self.received)))
            self.owed_frames = self.owed_bytes = 0
        plaintexts = [b""]
        for each in self._out:
            if len(plaintexts[-1]) + len(each) > PLAINTEXT_MAX_BYTES:
                plaintexts.append(b"")
            plaintexts[-1] += each
        self._out = []
        for plaintext in plaintexts:
            self.link.write(self.link.seal(plaintext))

    # Reading.

    def _take_record(self) -> None:
        assert self.link is not None
        try:
            plaintext = self.link.read_record()
        except TimeoutError as error:  # 12
            self.silences += 1
            if self.silences == SILENCES:
                raise LinkLost("silence") from error
            self._say(PING, 0, msgpack.packb({"id": self.silences}))
            return
        self.silences = 0
        for kind, stream, number, body in frames(plaintext):
            if kind in (DATA, RESULT, REFUSED):
                self.received += 1
                self.owed_frames += 1
                self.owed_bytes += len(body)
                self._take_numbered(kind, stream, number, body)
            else:
                self._take_unnumbered(kind, number, body)
        self._flush()

    def _take_numbered(self, kind: int, stream: int, number: int, body: bytes) -> None:
        channel = self.channels.get(number)
        if channel is None or not channel.is_open or (kind == DATA and not body):  # 8.1: nothing is late down here
            raise ProtocolError("frame", f"type {kind} with {len(body)} bytes for channel {number}")
        if kind == RESULT:
            channel.result = decode(body)
        elif kind == REFUSED:
            channel.refusal = decode(body, "code", "text")
        else:
            consumed = len(channel.down[0]) + len(channel.down[1]) + len(body)  # what arrives is consumed here
            if consumed > channel.down_limit:
                raise ProtocolError("window", "more DATA than was granted")
            channel.down[stream] += body
            if channel.down_limit - consumed <= channel.window // 2:
                channel.down_limit = consumed + channel.window
                self._say(CREDIT, number, U64.pack(channel.down_limit))

    def _take_unnumbered(self, kind: int, number: int, body: bytes) -> None:
        if number > self.highest or (kind in (ACK, CREDIT, BLOCKED) and len(body) != 8):
            raise ProtocolError("frame", f"type {kind} with {len(body)} bytes for channel {number}")
        if kind == ACK:
            self._acknowledged(U64.unpack(body)[0])
        elif kind == CREDIT:
            if number in self.channels:
                self.channels[number].up_limit = max(self.channels[number].up_limit, U64.unpack(body)[0])
        elif kind == PING:
            self._say(PONG, 0, body)
        elif kind == PONG:
            self.pongs.append(decode(body, "id")["id"])
        elif kind == GOODBYE:  # 11.3: after another code the end of file follows, and is a lost link
            code = decode(body, "code")["code"]
            if code in SESSION_ERRORS | {"closed", "replaced"}:
                raise SessionOver(code)
        elif kind != BLOCKED:  # which says that larger windows would help; this client does not enlarge them
            raise ProtocolError("frame", f"type {kind}")

    def _acknowledged(self, count: int) -> None:
        if not self.acknowledged <= count <= self.sent:
            raise ProtocolError("resume", f"{count} of {self.sent} frames acknowledged, after {self.acknowledged}")
        while self.acknowledged < count:
            self.retained.popleft()
            self.acknowledged += 1


def key_line(secret: bytes) -> str:
    """3: the public key as people hand it on."""
    noise = NoiseConnection.from_name(SUITES[1])
    noise.set_keypair_from_private_bytes(Keypair.STATIC, secret)
    public = noise.noise_protocol.keypairs["s"].public_bytes
    return f"pyinfra-agent-key {base64.b64encode(public).decode()} stranger"
