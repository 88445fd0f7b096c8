"""How a link begins: prefaces and handshake, up to its first record. Bytes in and out, no IO.

    initiator (connector)                                     responder (agent)
      preface: magic, version, n, n suites ‖ message 1  ───▶
                                  ◀───  preface: magic, version, suite ‖ u16, message 2   (agent's key, payload)
      u16, message 3  ───▶                                                           (controller's key, payload)
      records: u16 length ‖ ciphertext  ◀──▶

Each phase is a type: an `Initiator` or a `Responder` turns into a `Transport`, so nothing can be encrypted too early.
Message 1 of XX is not encrypted, which lets the responder choose the cipher: the initiator's preface is the prologue
byte for byte and the choice is in the protocol name, so a changed offer or choice fails the handshake.

What a peer can make us hold beside the chunk being read is bounded: a preface, then one handshake message. After an
error an object is dead and answers `LocalProtocolError`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ._constants_link import (
    AGENT_PREFACE,
    KEY,
    LENGTH,
    MAGIC,
    MAX_AGENT_PAYLOAD,
    MAX_CONTROLLER_PAYLOAD,
    MAX_MESSAGE,
    MAX_SUITES,
    REKEY_AFTER_RECORDS,
    VERSION,
)
from ._errors import HandshakeFailed, KeyFormatError, LocalProtocolError, NotAnAgent
from ._noise import HandshakeState, KeyPair, Suite, aes_available
from ._phase import Phase
from ._transport import Transport
from .keys import check_public

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AgentHello", "ControllerHello", "Initiator", "Responder"]

_LENGTH: Final = struct.Struct(">H")


@dataclass(frozen=True, slots=True)
class AgentHello:
    """Message 2 verified: the agent holds *key* and says *payload*. Decide on the key before `Initiator.finish`."""

    key: bytes
    payload: bytes
    suite: Suite


@dataclass(frozen=True, slots=True)
class ControllerHello:
    """Message 3 verified: the controller holds *key* and says *payload*."""

    key: bytes
    payload: bytes
    suite: Suite


class Initiator(Phase):
    """The connector's side of a handshake.

    Write `data_to_send`, feed `receive_data` until it returns an `AgentHello`, decide on its key, then `finish`.

    Args:
        static: our identity.
        suites: what to offer, best first; by default AESGCM (where this processor has AES), then ChaChaPoly.
        rekey_after: records between two rekeyings of one direction; the peer must use the same number.
        ephemeral_for_tests: replays a recorded handshake. Giving the same pair twice gives the secrecy away.

    Raises:
        LocalProtocolError: *suites* is empty, too long, or holds AESGCM on a processor without AES.
    """

    def __init__(
        self,
        static: KeyPair,
        *,
        suites: Sequence[Suite] | None = None,
        rekey_after: int = REKEY_AFTER_RECORDS,
        ephemeral_for_tests: KeyPair | None = None,
    ) -> None:
        offer = _usable_suites() if suites is None else tuple(suites)
        if not 1 <= len(offer) <= MAX_SUITES:
            raise LocalProtocolError(f"offer 1 to {MAX_SUITES} suites, not {len(offer)}")
        if Suite.AESGCM in offer and not aes_available():
            raise LocalProtocolError("AESGCM offered on a processor without AES instructions")
        self._static = static
        self._offer = offer
        self._rekey_after = rekey_after
        # Message 1 is this key alone, whatever the suite, so it is sent before there is a HandshakeState.
        self._ephemeral = ephemeral_for_tests or KeyPair.generate()
        self._preface = MAGIC + bytes([VERSION, len(offer), *offer])
        self._outgoing = self._preface + self._ephemeral.public
        self._incoming = bytearray()
        self._handshake: HandshakeState | None = None

    def data_to_send(self) -> bytes:
        """Return the preface and message 1, once; nothing afterwards."""
        self._require_usable()
        data, self._outgoing = self._outgoing, b""
        return data

    def receive_data(self, data: bytes) -> AgentHello | None:
        """Take bytes of the agent; return its hello when message 2 is complete and verified.

        Raises:
            NotAnAgent: the first bytes are another protocol's, or another version's.
            HandshakeFailed: message 2 does not verify, or the agent presents our own key.
        """
        with self._fatal():
            if self._handshake is not None:
                if data:
                    raise HandshakeFailed("the agent sent bytes before it had message 3")
                return None
            self._incoming += data
            _check_preface(self._incoming, "agent", "server")
            if len(self._incoming) < AGENT_PREFACE:
                return None
            suite = self._chosen_suite(self._incoming[AGENT_PREFACE - 1])
            message = _message(self._incoming, AGENT_PREFACE)
            if message is None:
                return None
            if len(self._incoming) > AGENT_PREFACE + LENGTH + len(message):
                raise HandshakeFailed("the agent sent bytes before it had message 3")
            return self._read_message_2(suite, message)

    def finish(self, payload: bytes) -> tuple[bytes, Transport]:
        """Accept the agent's key: return message 3, which carries *payload*, and the transport that replaces us.

        Raises:
            LocalProtocolError: there was no hello yet, or *payload* is longer than `MAX_CONTROLLER_PAYLOAD`.
        """
        with self._fatal():
            if self._handshake is None:
                raise LocalProtocolError("the agent's hello has not arrived yet")
            _check_payload(payload, MAX_CONTROLLER_PAYLOAD)
            message = self._handshake.write_message(payload)
            self._ended = "finish"
            return _prefixed(message), _transport(self._handshake, self._rekey_after)

    def _chosen_suite(self, byte: int) -> Suite:
        if byte not in self._offer:
            raise HandshakeFailed(f"the agent chose cipher suite {byte}, which was not offered")
        return Suite(byte)

    def _read_message_2(self, suite: Suite, message: bytes) -> AgentHello:
        handshake = HandshakeState(
            suite, initiator=True, prologue=self._preface, static=self._static, ephemeral=self._ephemeral
        )
        handshake.write_message(b"")  # message 1, which data_to_send gave out
        payload = handshake.read_message(message)
        _check_identity(handshake.remote_static, self._static)
        self._handshake = handshake
        return AgentHello(handshake.remote_static, payload, suite)


class Responder(Phase):
    """The agent's side of a handshake.

    Feed `receive_data`, write `data_to_send` after each call, until a `ControllerHello` comes back; then `transport`.

    Args:
        static: our identity.
        payload: what message 2 carries, at most `MAX_AGENT_PAYLOAD` bytes.
        suites: what we accept; by default everything. AESGCM counts only where this processor has AES.
        rekey_after: records between two rekeyings of one direction; the peer must use the same number.
        ephemeral_for_tests: replays a recorded handshake. Giving the same pair twice gives the secrecy away.

    Raises:
        LocalProtocolError: *payload* is too long.
    """

    def __init__(
        self,
        static: KeyPair,
        payload: bytes,
        *,
        suites: Sequence[Suite] | None = None,
        rekey_after: int = REKEY_AFTER_RECORDS,
        ephemeral_for_tests: KeyPair | None = None,
    ) -> None:
        _check_payload(payload, MAX_AGENT_PAYLOAD)
        usable = _usable_suites()
        self._static = static
        self._payload = payload
        self._suites = usable if suites is None else tuple(suite for suite in usable if suite in suites)
        self._rekey_after = rekey_after
        self._ephemeral = ephemeral_for_tests
        self._outgoing = b""
        self._incoming = bytearray()
        self._handshake: HandshakeState | None = None
        self._suite: Suite | None = None

    def data_to_send(self) -> bytes:
        """Return the preface and message 2 once message 1 was complete; nothing before and afterwards."""
        self._require_usable()
        data, self._outgoing = self._outgoing, b""
        return data

    def receive_data(self, data: bytes) -> ControllerHello | None:
        """Take bytes of the controller; return its hello when message 3 is complete and verified.

        Bytes behind message 3 go to the transport; after the hello, feed that.

        Raises:
            NotAnAgent: the first bytes are another protocol's, or another version's.
            HandshakeFailed: no suite in common, a message does not verify or comes too early, or the controller
                presents our own key.
        """
        with self._fatal():
            if self._handshake is not None and self._handshake.finished:
                raise LocalProtocolError("the handshake is over: feed the transport")
            if self._outgoing and data:
                raise HandshakeFailed("the controller sent bytes before it had message 2")
            self._incoming += data
            if self._handshake is None or self._suite is None:
                self._read_opening()
                return None
            message = _message(self._incoming, 0)
            if message is None:
                return None
            del self._incoming[: LENGTH + len(message)]
            payload = self._handshake.read_message(message)
            _check_identity(self._handshake.remote_static, self._static)
            return ControllerHello(self._handshake.remote_static, payload, self._suite)

    def transport(self) -> Transport:
        """Return the transport that replaces us, after the hello.

        It already holds the bytes that came behind message 3: call its `receive_data(b"")` before reading more.

        Raises:
            LocalProtocolError: there was no hello yet.
        """
        with self._fatal():
            if self._handshake is None or not self._handshake.finished:
                raise LocalProtocolError("the controller's hello has not arrived yet")
            self._ended = "transport"
            return _transport(self._handshake, self._rekey_after, bytes(self._incoming))

    def _read_opening(self) -> None:
        """Answer preface and message 1, once they are complete."""
        incoming = self._incoming
        _check_preface(incoming, "agent's controller", "client")
        at_count = len(MAGIC) + 1
        if len(incoming) <= at_count:
            return
        count = incoming[at_count]
        if not 1 <= count <= MAX_SUITES:
            raise HandshakeFailed(f"the controller offers {count} cipher suites, not 1 to {MAX_SUITES}")
        end_of_preface = at_count + 1 + count
        if len(incoming) < end_of_preface + KEY:
            return
        if len(incoming) > end_of_preface + KEY:
            raise HandshakeFailed("the controller sent bytes before it had message 2")
        preface, message = bytes(incoming[:end_of_preface]), bytes(incoming[end_of_preface:])
        incoming.clear()
        suite = self._choose_suite(preface[at_count + 1 :])
        handshake = HandshakeState(
            suite, initiator=False, prologue=preface, static=self._static, ephemeral=self._ephemeral
        )
        handshake.read_message(message)
        answer = handshake.write_message(self._payload)
        self._outgoing = MAGIC + bytes([VERSION, suite]) + _prefixed(answer)
        self._handshake, self._suite = handshake, suite

    def _choose_suite(self, offer: bytes) -> Suite:
        # AESGCM is offered by a peer that has AES, and accepted where we have it too: there nothing is faster.
        if Suite.AESGCM in offer and Suite.AESGCM in self._suites:
            return Suite.AESGCM
        for byte in offer:
            if byte in self._suites:
                return Suite(byte)
        raise HandshakeFailed(f"none of the controller's cipher suites ({offer.hex(' ')}) can be used here")


def _prefixed(message: bytes) -> bytes:
    return _LENGTH.pack(len(message)) + message


def _message(incoming: bytearray, start: int) -> bytes | None:
    """Return the handshake message whose length stands at *start*, once it is complete."""
    if len(incoming) < start + LENGTH:
        return None
    length: int = _LENGTH.unpack_from(incoming, start)[0]
    if length > MAX_MESSAGE:
        raise HandshakeFailed(f"a handshake message of {length} bytes, and {MAX_MESSAGE} are allowed")
    end = start + LENGTH + length
    return bytes(incoming[start + LENGTH : end]) if len(incoming) >= end else None


def _transport(handshake: HandshakeState, rekey_after: int, pending: bytes = b"") -> Transport:
    send, receive = handshake.split()
    return Transport(send, receive, handshake_hash=handshake.handshake_hash, rekey_after=rekey_after, pending=pending)


def _usable_suites() -> tuple[Suite, ...]:
    return (Suite.AESGCM, Suite.CHACHAPOLY) if aes_available() else (Suite.CHACHAPOLY,)


def _check_payload(payload: bytes, maximum: int) -> None:
    if len(payload) > maximum:
        raise LocalProtocolError(f"a handshake payload of {len(payload)} bytes, and {maximum} are allowed")


def _check_identity(remote: bytes, own: KeyPair) -> None:
    """Refuse our own key, which is a loop or a copied key file, and keys that no text form can name."""
    if remote == own.public:
        raise HandshakeFailed("the peer presents our own key: every machine needs its own key file")
    try:
        check_public(remote)
    except KeyFormatError as error:
        raise HandshakeFailed(f"the peer's key cannot be used: {error}") from None


_FOREIGN: Final = {b"SSH-": "an SSH", b"HTTP/": "an HTTP"}
_SHOWN_BYTES: Final = 40


def _check_preface(incoming: bytearray, wanted: str, role: str) -> None:
    """Refuse a peer as soon as a byte of magic or version differs."""
    seen = bytes(incoming[: len(MAGIC)])
    if not MAGIC.startswith(seen):
        for start, kind in _FOREIGN.items():
            if incoming.startswith(start):
                raise NotAnAgent(f"the peer is not a pyinfra {wanted} but {kind} {role}: check the port")
        # As a repr, because these bytes go to somebody's terminal.
        shown = bytes(incoming[:_SHOWN_BYTES])
        raise NotAnAgent(f"the peer is not a pyinfra {wanted}: its first bytes are {shown!r}")
    if len(incoming) > len(MAGIC) and (version := incoming[len(MAGIC)]) != VERSION:
        raise NotAnAgent(
            f"the peer speaks version {version} of the protocol and this side version {VERSION}: "
            "install the same release on both"
        )
