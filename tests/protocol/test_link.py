"""The secure link: two sides without a wire, an independent implementation, and everything an attacker may do."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise.connection import Keypair, NoiseConnection

from pyinfra_agent_protocol import _link
from pyinfra_agent_protocol._constants import DATA_BODY_BYTES, FRAME_HEADER_BYTES
from pyinfra_agent_protocol._constants_link import (
    AGENT_PREFACE,
    KEY,
    LENGTH,
    MAGIC,
    MAX_AGENT_PAYLOAD,
    MAX_CONTROLLER_PAYLOAD,
    MAX_CONTROLLER_PREFACE,
    MAX_MESSAGE,
    MAX_PLAINTEXT,
    MAX_RECORD,
    TAG,
    VERSION,
)
from pyinfra_agent_protocol._errors import (
    HandshakeFailed,
    LocalProtocolError,
    NotAnAgent,
    RecordInvalid,
    RemoteProtocolError,
)
from pyinfra_agent_protocol._link import AgentHello, ControllerHello, Initiator, Responder
from pyinfra_agent_protocol._noise import HandshakeState, KeyPair, Suite, aes_available

if TYPE_CHECKING:
    from pyinfra_agent_protocol._transport import Transport

CONTROLLER = KeyPair.from_secret(b"c" * 32)
AGENT = KeyPair.from_secret(b"a" * 32)
CONTROLLER_EPHEMERAL = KeyPair.from_secret(b"x" * 32)
AGENT_EPHEMERAL = KeyPair.from_secret(b"y" * 32)
OPENING_LENGTH = len(MAGIC) + 3 + KEY  # with one suite offered
DATA_PLAINTEXT_BYTES = FRAME_HEADER_BYTES + DATA_BODY_BYTES
DATA_RECORD_BYTES = LENGTH + DATA_PLAINTEXT_BYTES + TAG


@pytest.fixture(params=Suite, ids=lambda suite: suite.name)
def suite(request: pytest.FixtureRequest) -> Suite:
    if request.param is Suite.AESGCM and not aes_available():
        pytest.skip("this processor has no AES instructions")
    chosen: Suite = request.param
    return chosen


@pytest.fixture
def _aes() -> None:
    if not aes_available():
        pytest.skip("this processor has no AES instructions")


def new_sides(*suites: Suite, rekey_after: int = 2**16) -> tuple[Initiator, Responder]:
    """Both sides with fixed keys, so that a handshake can be recorded and replayed."""
    initiator = Initiator(
        CONTROLLER, suites=suites or None, rekey_after=rekey_after, ephemeral_for_tests=CONTROLLER_EPHEMERAL
    )
    responder = Responder(AGENT, b"from agent", rekey_after=rekey_after, ephemeral_for_tests=AGENT_EPHEMERAL)
    return initiator, responder


def shake_hands(initiator: Initiator, responder: Responder) -> tuple[Transport, Transport]:
    assert responder.receive_data(initiator.data_to_send()) is None
    assert initiator.receive_data(responder.data_to_send()) is not None
    message, ours = initiator.finish(b"from controller")
    assert responder.receive_data(message) is not None
    return ours, responder.transport()


def new_link(*suites: Suite, rekey_after: int = 2**16) -> tuple[Transport, Transport]:
    return shake_hands(*new_sides(*suites, rekey_after=rekey_after))


@dataclass(frozen=True)
class Recording:
    opening: bytes  # preface and message 1
    answer: bytes  # preface and message 2
    message_3: bytes
    record: bytes  # the controller's first


def record_handshake(suite: Suite) -> Recording:
    initiator, responder = new_sides(suite)
    opening = initiator.data_to_send()
    responder.receive_data(opening)
    answer = responder.data_to_send()
    initiator.receive_data(answer)
    message_3, transport = initiator.finish(b"from controller")
    return Recording(opening, answer, message_3, transport.encrypt(b"first record"))


def assert_dead(initiator: Initiator) -> None:
    for call in (initiator.data_to_send, lambda: initiator.receive_data(b""), lambda: initiator.finish(b"")):
        with pytest.raises(LocalProtocolError, match="used after an error"):
            call()


def assert_responder_dead(responder: Responder) -> None:
    for call in (responder.data_to_send, lambda: responder.receive_data(b""), responder.transport):
        with pytest.raises(LocalProtocolError, match="used after an error"):
            call()


def assert_transport_dead(transport: Transport) -> None:
    for call in (lambda: transport.encrypt(b""), lambda: transport.receive_data(b""), transport.receive_eof):
        with pytest.raises(LocalProtocolError, match="used after an error"):
            call()


# The handshake as it should go


def test_both_sides_learn_key_payload_and_suite(suite: Suite) -> None:
    """Each side's hello says who the other one is and what it said, before the transports agree on one hash."""
    initiator, responder = new_sides(suite)
    opening = initiator.data_to_send()
    assert opening[:-KEY] == MAGIC + bytes([VERSION, 1, suite])
    assert len(opening) == OPENING_LENGTH
    assert initiator.data_to_send() == b""
    assert responder.data_to_send() == b""
    assert responder.receive_data(opening) is None
    answer = responder.data_to_send()
    assert answer[:AGENT_PREFACE] == MAGIC + bytes([VERSION, suite])
    assert responder.data_to_send() == b""

    assert initiator.receive_data(answer) == AgentHello(AGENT.public, b"from agent", suite)
    message, ours = initiator.finish(b"from controller")
    assert responder.receive_data(message) == ControllerHello(CONTROLLER.public, b"from controller", suite)
    theirs = responder.transport()

    assert ours.handshake_hash == theirs.handshake_hash
    assert theirs.receive_data(ours.encrypt(b"ping")) == [b"ping"]
    assert ours.receive_data(theirs.encrypt(b"pong")) == [b"pong"]
    ours.receive_eof()
    theirs.receive_eof()


def test_controller_key_is_on_no_wire_in_clear(suite: Suite) -> None:
    """Neither static key can be read by who only listens."""
    recording = record_handshake(suite)
    stream = recording.opening + recording.answer + recording.message_3
    assert CONTROLLER.public not in stream
    assert AGENT.public not in stream


def test_handshakes_with_fresh_ephemerals_differ() -> None:
    """Two links between the same pair have different first messages and hashes."""
    hashes = {shake_hands(Initiator(CONTROLLER), Responder(AGENT, b""))[0].handshake_hash for _ in range(4)}
    assert len(hashes) == 4


def test_payloads_may_fill_their_messages(suite: Suite) -> None:
    """The longest payloads make messages of exactly the maximum; a byte more is our own error."""
    initiator = Initiator(CONTROLLER, suites=[suite])
    responder = Responder(AGENT, b"a" * MAX_AGENT_PAYLOAD)
    responder.receive_data(initiator.data_to_send())
    answer = responder.data_to_send()
    assert len(answer) == AGENT_PREFACE + LENGTH + MAX_MESSAGE
    hello = initiator.receive_data(answer)
    assert hello is not None
    assert len(hello.payload) == MAX_AGENT_PAYLOAD
    message, _ = initiator.finish(b"c" * MAX_CONTROLLER_PAYLOAD)
    assert len(message) == LENGTH + MAX_MESSAGE
    assert responder.receive_data(message) is not None


def test_longer_payloads_are_our_own_error() -> None:
    """A payload that cannot travel is refused before anything is sent."""
    with pytest.raises(LocalProtocolError, match="4000"):
        Responder(AGENT, bytes(MAX_AGENT_PAYLOAD + 1))
    initiator, responder = new_sides()
    responder.receive_data(initiator.data_to_send())
    initiator.receive_data(responder.data_to_send())
    with pytest.raises(LocalProtocolError, match="4032"):
        initiator.finish(bytes(MAX_CONTROLLER_PAYLOAD + 1))


def test_phases_refuse_calls_out_of_order() -> None:
    """Finishing before the hello is an error; a finished side does nothing more."""
    initiator, responder = new_sides()
    with pytest.raises(LocalProtocolError, match="not arrived"):
        initiator.finish(b"")
    with pytest.raises(LocalProtocolError, match="not arrived"):
        responder.transport()

    initiator, responder = new_sides()
    shake_hands(initiator, responder)
    for call in (initiator.data_to_send, lambda: initiator.receive_data(b""), lambda: initiator.finish(b"")):
        with pytest.raises(LocalProtocolError, match="used after finish"):
            call()
    for late in (responder.data_to_send, lambda: responder.receive_data(b""), responder.transport):
        with pytest.raises(LocalProtocolError, match="used after transport"):
            late()


def test_responder_refuses_data_between_hello_and_transport() -> None:
    """After its hello the responder is to be replaced, not fed."""
    initiator, responder = new_sides()
    responder.receive_data(initiator.data_to_send())
    initiator.receive_data(responder.data_to_send())
    responder.receive_data(initiator.finish(b"")[0])
    with pytest.raises(LocalProtocolError, match="feed the transport"):
        responder.receive_data(b"x")


def test_records_behind_message_3_reach_the_transport(suite: Suite) -> None:
    """Whole and cut records that came in one chunk with message 3 are not lost."""
    initiator, responder = new_sides(suite)
    responder.receive_data(initiator.data_to_send())
    initiator.receive_data(responder.data_to_send())
    message, ours = initiator.finish(b"")
    records = ours.encrypt(b"one") + ours.encrypt(b"two") + ours.encrypt(b"three")
    assert responder.receive_data(message + records[:-1]) is not None
    theirs = responder.transport()
    assert theirs.receive_data(b"") == [b"one", b"two"]
    assert theirs.receive_data(records[-1:]) == [b"three"]
    theirs.receive_eof()


# Choice of the cipher


@pytest.mark.usefixtures("_aes")
def test_default_offer_prefers_aesgcm() -> None:
    """With AES on both sides AESGCM is offered first and chosen."""
    initiator, responder = new_sides()
    opening = initiator.data_to_send()
    assert opening[len(MAGIC) : -KEY] == bytes([VERSION, 2, Suite.AESGCM, Suite.CHACHAPOLY])
    responder.receive_data(opening)
    hello = initiator.receive_data(responder.data_to_send())
    assert hello is not None
    assert hello.suite is Suite.AESGCM


@pytest.mark.usefixtures("_aes")
def test_responder_takes_aesgcm_wherever_it_stands_in_the_offer() -> None:
    """The responder decides: AESGCM if both have it, whatever the initiator likes best."""
    initiator, responder = new_sides(Suite.CHACHAPOLY, Suite.AESGCM)
    responder.receive_data(initiator.data_to_send())
    assert responder.data_to_send()[AGENT_PREFACE - 1] == Suite.AESGCM


def test_initiator_without_aes_offers_chachapoly_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without AES never offers it, and refuses to be told to."""
    monkeypatch.setattr(_link, "aes_available", lambda: False)
    opening = Initiator(CONTROLLER).data_to_send()
    assert opening[len(MAGIC) : -KEY] == bytes([VERSION, 1, Suite.CHACHAPOLY])
    with pytest.raises(LocalProtocolError, match="without AES"):
        Initiator(CONTROLLER, suites=[Suite.AESGCM])


@pytest.mark.usefixtures("_aes")
def test_responder_without_aes_chooses_chachapoly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's processor counts as much as the controller's."""
    initiator = Initiator(CONTROLLER)
    monkeypatch.setattr(_link, "aes_available", lambda: False)
    ours, theirs = shake_hands(initiator, Responder(AGENT, b""))
    assert theirs.receive_data(ours.encrypt(b"text")) == [b"text"]


@pytest.mark.usefixtures("_aes")
def test_responder_limited_to_chachapoly_chooses_it() -> None:
    """A responder's own list of suites overrides its preference for AESGCM."""
    initiator = Initiator(CONTROLLER)
    responder = Responder(AGENT, b"", suites=[Suite.CHACHAPOLY])
    responder.receive_data(initiator.data_to_send())
    assert responder.data_to_send()[AGENT_PREFACE - 1] == Suite.CHACHAPOLY


def preface(*suites: int, version: int = VERSION) -> bytes:
    return MAGIC + bytes([version, len(suites), *suites])


def test_responder_ignores_unknown_suites() -> None:
    """A newer controller may offer what this agent has never heard of, up to the longest preface."""
    opening = preface(*range(240, 255), Suite.CHACHAPOLY)
    assert len(opening) == MAX_CONTROLLER_PREFACE
    responder = Responder(AGENT, b"")
    responder.receive_data(opening + CONTROLLER_EPHEMERAL.public)
    assert responder.data_to_send()[AGENT_PREFACE - 1] == Suite.CHACHAPOLY


def test_responder_without_common_suite_fails() -> None:
    """No suite in common ends the handshake with the offer in the message."""
    responder = Responder(AGENT, b"")
    with pytest.raises(HandshakeFailed, match="c8 c9"):
        responder.receive_data(preface(200, 201) + CONTROLLER_EPHEMERAL.public)
    assert_responder_dead(responder)


@pytest.mark.parametrize("count", [0, 17, 255])
def test_responder_refuses_offer_of_impossible_length(count: int) -> None:
    """The number of suites is checked as soon as its byte is there."""
    responder = Responder(AGENT, b"")
    with pytest.raises(HandshakeFailed, match=f"offers {count} cipher suites"):
        responder.receive_data(MAGIC + bytes([VERSION, count]))
    assert_responder_dead(responder)


@pytest.mark.parametrize("count", [0, 17])
def test_initiator_refuses_to_offer_impossible_lists(count: int) -> None:
    """An offer that could not be written is our own error."""
    with pytest.raises(LocalProtocolError, match="1 to 16"):
        Initiator(CONTROLLER, suites=[Suite.CHACHAPOLY] * count)


# Attacks on the handshake


@pytest.mark.usefixtures("_aes")
def test_stripping_aesgcm_from_the_offer_fails_the_handshake() -> None:
    """An attacker who shortens the offer gets a weaker choice and no handshake: the offer is the prologue."""
    initiator, responder = new_sides(Suite.AESGCM, Suite.CHACHAPOLY)
    message_1 = initiator.data_to_send()[-KEY:]
    responder.receive_data(preface(Suite.CHACHAPOLY) + message_1)
    answer = responder.data_to_send()
    assert answer[AGENT_PREFACE - 1] == Suite.CHACHAPOLY

    with pytest.raises(HandshakeFailed, match="does not verify"):
        initiator.receive_data(answer)
    assert_dead(initiator)


@pytest.mark.usefixtures("_aes")
@pytest.mark.parametrize("forged", Suite)
def test_changing_the_chosen_suite_fails_the_handshake(forged: Suite) -> None:
    """The choice is bound by the protocol name: another offered suite in its place does not verify."""
    initiator = Initiator(CONTROLLER, suites=list(Suite))
    responder = Responder(AGENT, b"", suites=[suite for suite in Suite if suite is not forged])
    responder.receive_data(initiator.data_to_send())
    answer = bytearray(responder.data_to_send())
    assert answer[AGENT_PREFACE - 1] != forged
    answer[AGENT_PREFACE - 1] = forged

    with pytest.raises(HandshakeFailed, match="does not verify"):
        initiator.receive_data(bytes(answer))


@pytest.mark.parametrize("choice", [0, 3, 255, Suite.AESGCM])
def test_initiator_refuses_suite_that_it_did_not_offer(choice: int) -> None:
    """The choice is checked as soon as its byte is there."""
    initiator = Initiator(CONTROLLER, suites=[Suite.CHACHAPOLY])
    with pytest.raises(HandshakeFailed, match=f"suite {int(choice)}, which was not offered"):
        initiator.receive_data(MAGIC + bytes([VERSION, choice]))
    assert_dead(initiator)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_initiator_names_both_versions(version: int) -> None:
    """An agent of another version is known for one, and the message says which."""
    initiator = Initiator(CONTROLLER)
    with pytest.raises(NotAnAgent, match=f"version {version} of the protocol and this side version 1"):
        initiator.receive_data(MAGIC + bytes([version]))
    assert_dead(initiator)


def test_responder_names_both_versions() -> None:
    """A controller of another version is refused before its suites are looked at."""
    responder = Responder(AGENT, b"")
    with pytest.raises(NotAnAgent, match="version 2 of the protocol and this side version 1"):
        responder.receive_data(preface(Suite.CHACHAPOLY, version=2))
    assert_responder_dead(responder)


@pytest.mark.parametrize(
    ("banner", "complaint"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "an SSH server"),
        (b"HTTP/1.1 400 Bad Request\r\n", "an HTTP server"),
        (b"\x16\x03\x01\x02\x00", r"first bytes are b'\\x16\\x03\\x01\\x02\\x00'"),
        (b"\x1b[2J" + b"x" * 5000, r"first bytes are b'\\x1b\[2Jx{36}'$"),
        (b"pyinfra-agenT", "first bytes are b'pyinfra-agenT'"),
    ],
)
def test_initiator_says_what_answered_instead(banner: bytes, complaint: str) -> None:
    """A foreign server is named where its banner tells, else its first bytes are shown harmlessly."""
    initiator = Initiator(CONTROLLER)
    with pytest.raises(NotAnAgent, match=complaint):
        initiator.receive_data(banner)
    assert_dead(initiator)


@pytest.mark.parametrize("position", range(len(MAGIC) + 1))
def test_both_sides_refuse_the_first_byte_that_differs(position: int) -> None:
    """No byte beyond the first wrong one is waited for."""
    right = MAGIC + bytes([VERSION])
    for side in (Initiator(CONTROLLER), Responder(AGENT, b"")):
        assert side.receive_data(right[:position]) is None
        with pytest.raises(NotAnAgent):
            side.receive_data(bytes([right[position] ^ 0x20]))


def test_responder_says_what_called_instead() -> None:
    """A client of another protocol is refused at its first bytes."""
    with pytest.raises(NotAnAgent, match="agent's controller but an SSH client"):
        Responder(AGENT, b"").receive_data(b"SSH-2.0-x")
    with pytest.raises(NotAnAgent, match="GET / HTTP"):
        Responder(AGENT, b"").receive_data(b"GET / HTTP/1.1\r\n")


def test_any_changed_byte_of_the_opening_fails(suite: Suite) -> None:
    """One changed bit in preface or message 1 ends the handshake on one side or on the other."""
    opening = record_handshake(suite).opening
    for position in range(len(opening)):
        tampered = bytearray(opening)
        tampered[position] ^= 1
        initiator, responder = new_sides(suite)
        initiator.data_to_send()
        try:
            hello = responder.receive_data(bytes(tampered))
            answer = responder.data_to_send()
        except RemoteProtocolError:
            assert_responder_dead(responder)
            continue
        assert hello is None
        if not answer:
            # A higher number of suites takes message 1 for suites and waits for more: the deadline is the skin's.
            assert position == len(MAGIC) + 1
            continue
        with pytest.raises(HandshakeFailed):
            initiator.receive_data(answer)
        assert_dead(initiator)


@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_any_changed_byte_of_the_answer_fails(suite: Suite, bit: int) -> None:
    """One changed bit anywhere in the agent's answer never yields a hello."""
    answer = record_handshake(suite).answer
    for position in range(len(answer)):
        tampered = bytearray(answer)
        tampered[position] ^= bit
        initiator, _ = new_sides(suite)
        try:
            hello = initiator.receive_data(bytes(tampered))
        except RemoteProtocolError:
            assert_dead(initiator)
            continue
        assert hello is None
        assert position in (AGENT_PREFACE, AGENT_PREFACE + 1), "only a longer length may wait for more"


@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_any_changed_byte_of_message_3_fails(suite: Suite, bit: int) -> None:
    """One changed bit anywhere in message 3 never yields a hello."""
    recording = record_handshake(suite)
    for position in range(len(recording.message_3)):
        tampered = bytearray(recording.message_3)
        tampered[position] ^= bit
        _, responder = new_sides(suite)
        responder.receive_data(recording.opening)
        assert responder.data_to_send() == recording.answer
        try:
            hello = responder.receive_data(bytes(tampered))
        except RemoteProtocolError:
            assert_responder_dead(responder)
            continue
        assert hello is None
        assert position in (0, 1), "only a longer length may wait for more"


def test_truncated_handshake_yields_no_hello(suite: Suite) -> None:
    """Every proper prefix of the answer and of message 3 leaves the receiver waiting."""
    recording = record_handshake(suite)
    for length in range(len(recording.answer)):
        initiator, _ = new_sides(suite)
        assert initiator.receive_data(recording.answer[:length]) is None
        with pytest.raises(LocalProtocolError, match="not arrived"):
            initiator.finish(b"")
    for length in range(len(recording.message_3)):
        _, responder = new_sides(suite)
        responder.receive_data(recording.opening)
        responder.data_to_send()
        assert responder.receive_data(recording.message_3[:length]) is None
        with pytest.raises(LocalProtocolError, match="not arrived"):
            responder.transport()


@pytest.mark.parametrize("length", [0, 1, KEY - 1, KEY + KEY + TAG + TAG - 1])
def test_message_too_short_for_its_keys_fails(length: int) -> None:
    """A length that leaves no room for the keys is a failed handshake and no exception of another kind."""
    message = length.to_bytes(2, "big") + b"\x09" * length
    initiator, _ = new_sides(Suite.CHACHAPOLY)
    with pytest.raises(HandshakeFailed):
        initiator.receive_data(MAGIC + bytes([VERSION, Suite.CHACHAPOLY]) + message)
    _, responder = new_sides(Suite.CHACHAPOLY)
    responder.receive_data(record_handshake(Suite.CHACHAPOLY).opening)
    responder.data_to_send()
    with pytest.raises(HandshakeFailed):
        responder.receive_data(message)


def test_oversize_handshake_message_is_refused_at_its_length() -> None:
    """A message of more than 4,096 bytes is never waited for."""
    length = (MAX_MESSAGE + 1).to_bytes(2, "big")
    initiator, _ = new_sides(Suite.CHACHAPOLY)
    with pytest.raises(HandshakeFailed, match="4097 bytes"):
        initiator.receive_data(MAGIC + bytes([VERSION, Suite.CHACHAPOLY]) + length)
    _, responder = new_sides(Suite.CHACHAPOLY)
    responder.receive_data(record_handshake(Suite.CHACHAPOLY).opening)
    responder.data_to_send()
    with pytest.raises(HandshakeFailed, match="4097 bytes"):
        responder.receive_data(length)


def test_bytes_before_their_turn_fail_the_handshake(suite: Suite) -> None:
    """Nobody can know what to send next before the other side has spoken."""
    recording = record_handshake(suite)
    _, responder = new_sides(suite)
    with pytest.raises(HandshakeFailed, match="before it had message 2"):
        responder.receive_data(recording.opening + b"x")

    _, responder = new_sides(suite)
    responder.receive_data(recording.opening)
    with pytest.raises(HandshakeFailed, match="before it had message 2"):
        responder.receive_data(recording.message_3)
    assert_responder_dead(responder)

    initiator, _ = new_sides(suite)
    with pytest.raises(HandshakeFailed, match="before it had message 3"):
        initiator.receive_data(recording.answer + b"x")

    initiator, _ = new_sides(suite)
    assert initiator.receive_data(recording.answer) is not None
    assert initiator.receive_data(b"") is None
    with pytest.raises(HandshakeFailed, match="before it had message 3"):
        initiator.receive_data(b"x")
    assert_dead(initiator)


def test_replayed_message_3_fails_against_a_fresh_responder(suite: Suite) -> None:
    """A recorded controller cannot be played to the agent again: its ephemeral key is new each time."""
    recording = record_handshake(suite)
    responder = Responder(AGENT, b"from agent")
    responder.receive_data(recording.opening)
    responder.data_to_send()
    with pytest.raises(HandshakeFailed, match="does not verify"):
        responder.receive_data(recording.message_3)


def test_replayed_answer_fails_against_a_fresh_initiator(suite: Suite) -> None:
    """A recorded agent cannot be played to the controller again."""
    initiator = Initiator(CONTROLLER, suites=[suite])
    with pytest.raises(HandshakeFailed, match="does not verify"):
        initiator.receive_data(record_handshake(suite).answer)


def test_initiator_refuses_its_own_opening_reflected(suite: Suite) -> None:
    """A mirror is not an agent, though its number of suites may read as a choice and its key as a length."""
    initiator, _ = new_sides(suite)
    opening = initiator.data_to_send()
    with pytest.raises(HandshakeFailed):
        initiator.receive_data(opening + bytes(MAX_RECORD))
    assert_dead(initiator)


def test_initiator_refuses_agent_that_presents_the_initiators_key(suite: Suite) -> None:
    """An agent with a copy of our own key file is refused before message 3."""
    initiator = Initiator(CONTROLLER, suites=[suite])
    responder = Responder(CONTROLLER, b"")
    responder.receive_data(initiator.data_to_send())
    with pytest.raises(HandshakeFailed, match="our own key"):
        initiator.receive_data(responder.data_to_send())
    assert_dead(initiator)


class _Liar(Initiator):
    """A controller that finishes whatever it is shown."""

    def _read_message_2(self, suite: Suite, message: bytes) -> AgentHello:
        handshake = HandshakeState(
            suite, initiator=True, prologue=self._preface, static=self._static, ephemeral=self._ephemeral
        )
        handshake.write_message(b"")
        payload = handshake.read_message(message)
        self._handshake = handshake
        return AgentHello(handshake.remote_static, payload, suite)


def test_responder_refuses_controller_that_presents_the_responders_key(suite: Suite) -> None:
    """A controller with a copy of the agent's key file gets no transport."""
    liar = _Liar(AGENT, suites=[suite])
    responder = Responder(AGENT, b"")
    responder.receive_data(liar.data_to_send())
    liar.receive_data(responder.data_to_send())
    with pytest.raises(HandshakeFailed, match="our own key"):
        responder.receive_data(liar.finish(b"")[0])
    assert_responder_dead(responder)


def test_both_sides_refuse_second_spelling_of_a_key(suite: Suite) -> None:
    """A key with the bit that X25519 ignores works in the handshake and must not pass for another identity."""
    twin = KeyPair(AGENT.secret, AGENT.public[:-1] + bytes([AGENT.public[-1] | 0x80]))
    initiator = Initiator(CONTROLLER, suites=[suite])
    responder = Responder(twin, b"")
    responder.receive_data(initiator.data_to_send())
    with pytest.raises(HandshakeFailed, match="cannot be used"):
        initiator.receive_data(responder.data_to_send())

    initiator, responder = Initiator(twin, suites=[suite]), Responder(CONTROLLER, b"")
    responder.receive_data(initiator.data_to_send())
    initiator.receive_data(responder.data_to_send())
    with pytest.raises(HandshakeFailed, match="cannot be used"):
        responder.receive_data(initiator.finish(b"")[0])


def test_agent_without_the_secret_of_its_key_is_not_believed(suite: Suite) -> None:
    """Who sends the agent's public key and cannot prove it fails at message 2."""
    impostor = KeyPair(KeyPair.generate().secret, AGENT.public)
    initiator = Initiator(CONTROLLER, suites=[suite])
    responder = Responder(impostor, b"")
    responder.receive_data(initiator.data_to_send())
    with pytest.raises(HandshakeFailed, match="does not verify"):
        initiator.receive_data(responder.data_to_send())


def test_controller_without_the_secret_of_its_key_is_not_believed(suite: Suite) -> None:
    """Who sends an authorised public key and cannot prove it fails at message 3."""
    impostor = KeyPair(KeyPair.generate().secret, CONTROLLER.public)
    initiator = Initiator(impostor, suites=[suite])
    responder = Responder(AGENT, b"")
    responder.receive_data(initiator.data_to_send())
    initiator.receive_data(responder.data_to_send())
    with pytest.raises(HandshakeFailed, match="does not verify"):
        responder.receive_data(initiator.finish(b"")[0])


@pytest.mark.parametrize("number", [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18])
def test_responder_refuses_low_order_message_1(number: int) -> None:
    """A point of low order as the controller's ephemeral key ends the handshake before an answer exists."""
    responder = Responder(AGENT, b"secret")
    with pytest.raises(HandshakeFailed, match="low order"):
        responder.receive_data(preface(Suite.CHACHAPOLY) + number.to_bytes(32, "little"))
    assert_responder_dead(responder)


# Records


@pytest.mark.parametrize("length", [0, 1, MAX_PLAINTEXT - 1, MAX_PLAINTEXT])
def test_record_of_allowed_length_arrives(suite: Suite, length: int) -> None:
    """Plaintexts up to the maximum come back as they were, in a record 18 bytes longer."""
    ours, theirs = new_link(suite)
    plaintext = bytes(index % 251 for index in range(length))
    record = ours.encrypt(plaintext)
    assert len(record) == LENGTH + length + TAG
    assert int.from_bytes(record[:LENGTH], "big") == length + TAG <= MAX_RECORD
    assert theirs.receive_data(record) == [plaintext]


def test_records_in_parts_are_those_of_their_plaintexts(suite: Suite) -> None:
    """Several go into one buffer, rekeyings between them; parts are of any kind, and none at all is no record."""
    ours, theirs = new_link(suite, rekey_after=2)
    big = bytes(range(251)) * 260
    parts: list[list[bytes | memoryview]] = [
        [b"a", memoryview(b"bc")],
        [b""],
        [memoryview(big)[:65_000], b"end"],
        [b"x"],
    ]
    plaintexts = [b"abc", b"", big[:65_000] + b"end", b"x"]
    records = ours.encrypt_records(iter(parts))
    assert len(records) == sum(LENGTH + len(plaintext) + TAG for plaintext in plaintexts)
    assert theirs.receive_data(bytes(records)) == plaintexts
    assert ours.encrypt_records([]) == b""
    with pytest.raises(LocalProtocolError, match="65519 bytes, not 65520"):
        ours.encrypt_records([[b"fine"], [bytes(65_000), bytes(520)]])
    assert theirs.receive_data(ours.encrypt(b"no nonce was spent")) == [b"no nonce was spent"]


@pytest.mark.parametrize("size", [7, 100, 65_537, 200_000])
def test_what_is_read_into_may_be_used_again_at_once(suite: Suite, size: int) -> None:
    """Neither a plaintext nor the part of a record that waits for its rest refers to it."""
    ours, theirs = new_link(suite)
    plaintexts = [bytes([number]) * (number * 997 % MAX_PLAINTEXT) for number in range(40)]
    written = b"".join(map(ours.encrypt, plaintexts))
    buffer = bytearray(size)
    opened = []
    for start in range(0, len(written), size):
        chunk = written[start : start + size]
        buffer[: len(chunk)] = chunk
        opened += theirs.receive_data(memoryview(buffer)[: len(chunk)])
        buffer[:] = b"\xff" * size
    assert opened == plaintexts


def test_bulk_records_end_where_a_read_does(suite: Suite) -> None:
    """However the first bytes came: the second read of the size that is named cuts no record, and none after it."""
    for first_bytes in (0, 1, 2, 17, DATA_RECORD_BYTES - 1):
        ours, theirs = new_link(suite)
        left = ours.encrypt(b"something short") + b"".join(ours.encrypt(bytes(DATA_PLAINTEXT_BYTES)) for _ in range(20))
        assert theirs.read_size(262_144) == 4 * DATA_RECORD_BYTES
        theirs.receive_data(left[:first_bytes])
        left = left[first_bytes:]
        sizes = []
        while left:
            sizes.append(theirs.read_size(262_144))
            theirs.receive_data(left[: sizes[-1]])
            left = left[sizes[-1] :]
            if len(sizes) >= 2:
                theirs.receive_eof()  # no record has begun
        assert all(3 * DATA_RECORD_BYTES <= size <= 262_144 for size in sizes)


def test_oversize_plaintext_is_refused_and_the_link_lives_on(suite: Suite) -> None:
    """One byte too many is our own error, noticed before a nonce is spent."""
    ours, theirs = new_link(suite)
    with pytest.raises(LocalProtocolError, match="65519 bytes, not 65520"):
        ours.encrypt(bytes(MAX_PLAINTEXT + 1))
    assert theirs.receive_data(ours.encrypt(b"still here")) == [b"still here"]


@pytest.mark.parametrize("length", range(TAG))
def test_record_without_room_for_a_tag_is_refused_at_its_length(suite: Suite, length: int) -> None:
    """A length below 16 is refused before its bytes arrive, whole or cut in two."""
    _, theirs = new_link(suite)
    with pytest.raises(RecordInvalid, match=f"{length} bytes has no room"):
        theirs.receive_data(bytes([0, length]))
    assert_transport_dead(theirs)

    _, theirs = new_link(suite)
    assert theirs.receive_data(b"\0") == []
    with pytest.raises(RecordInvalid, match=f"{length} bytes has no room"):
        theirs.receive_data(bytes([length]))


def test_any_changed_byte_of_a_record_kills_the_transport(suite: Suite) -> None:
    """One changed bit yields no plaintext: the record is refused, or a changed length waits for bytes or refuses."""
    record = record_handshake(suite).record
    for position in range(len(record)):
        ours, theirs = new_link(suite)
        assert ours.encrypt(b"first record") == record
        tampered = bytearray(record)
        tampered[position] ^= 1
        if position < LENGTH and int.from_bytes(tampered[:LENGTH], "big") > len(record) - LENGTH:
            assert theirs.receive_data(bytes(tampered)) == []
            tampered = bytearray(MAX_RECORD)
        with pytest.raises(RecordInvalid):
            theirs.receive_data(bytes(tampered))
        assert_transport_dead(theirs)


def test_repeated_record_kills_the_transport(suite: Suite) -> None:
    """A record is good once."""
    ours, theirs = new_link(suite)
    record = ours.encrypt(b"rm -r /tmp/x")
    assert theirs.receive_data(record) == [b"rm -r /tmp/x"]
    with pytest.raises(RecordInvalid, match="does not verify"):
        theirs.receive_data(record)
    assert_transport_dead(theirs)


def test_reflected_record_kills_the_transport(suite: Suite) -> None:
    """Our own record is nothing that the peer could have sent."""
    ours, _ = new_link(suite)
    with pytest.raises(RecordInvalid, match="does not verify"):
        ours.receive_data(ours.encrypt(b"text"))
    assert_transport_dead(ours)


def test_reordered_records_kill_the_transport(suite: Suite) -> None:
    """The second record does not verify in the first one's place."""
    ours, theirs = new_link(suite)
    first, second = ours.encrypt(b"first"), ours.encrypt(b"second")
    with pytest.raises(RecordInvalid, match="does not verify"):
        theirs.receive_data(second + first)
    assert_transport_dead(theirs)


def test_dropped_record_kills_the_transport(suite: Suite) -> None:
    """A record that never arrives is noticed at the next one."""
    ours, theirs = new_link(suite)
    ours.encrypt(b"dropped")
    with pytest.raises(RecordInvalid, match="does not verify"):
        theirs.receive_data(ours.encrypt(b"next"))


def test_record_of_another_link_kills_the_transport(suite: Suite) -> None:
    """The same two peers have other keys on their next link."""
    ours, _ = shake_hands(Initiator(CONTROLLER, suites=[suite]), Responder(AGENT, b""))
    _, theirs = shake_hands(Initiator(CONTROLLER, suites=[suite]), Responder(AGENT, b""))
    with pytest.raises(RecordInvalid, match="does not verify"):
        theirs.receive_data(ours.encrypt(b"text"))


def test_eof_within_a_record_is_an_error(suite: Suite) -> None:
    """EOF between records is clean; any cut record, a single byte included, is not."""
    record = record_handshake(suite).record
    for length in range(1, len(record)):
        _, theirs = new_link(suite)
        assert theirs.receive_data(record[:length]) == []
        with pytest.raises(RecordInvalid, match="within a record"):
            theirs.receive_eof()
        assert_transport_dead(theirs)


def test_eof_within_a_record_behind_message_3_is_an_error(suite: Suite) -> None:
    """Bytes that came with message 3 count, although the transport has not been fed yet."""
    initiator, responder = new_sides(suite)
    responder.receive_data(initiator.data_to_send())
    initiator.receive_data(responder.data_to_send())
    message, ours = initiator.finish(b"")
    responder.receive_data(message + ours.encrypt(b"cut")[:-1])
    with pytest.raises(RecordInvalid, match="within a record"):
        responder.transport().receive_eof()


def test_slow_sender_makes_us_hold_one_record(suite: Suite) -> None:
    """A record that drips in holds its own bytes and nothing else."""
    ours, theirs = new_link(suite)
    record = ours.encrypt(bytes(MAX_PLAINTEXT))
    for position in range(len(record) - 1):
        assert theirs.receive_data(record[position : position + 1]) == []
    assert len(theirs._records._partial) == len(record) - 1
    assert theirs.receive_data(record[-1:]) == [bytes(MAX_PLAINTEXT)]
    assert len(theirs._records._partial) == 0


@pytest.mark.parametrize("rekey_after", [1, 3])
def test_both_directions_cross_rekeyings(suite: Suite, rekey_after: int) -> None:
    """Records flow across every boundary, and each direction rekeys by its own count."""
    ours, theirs = new_link(suite, rekey_after=rekey_after)
    for index in range(10):
        text = b"%d" % index
        assert theirs.receive_data(ours.encrypt(text)) == [text]
        if index % 2:
            assert ours.receive_data(theirs.encrypt(text)) == [text]


def test_rekeying_really_changes_the_key(suite: Suite) -> None:
    """A peer that does not rekey understands three records and not the fourth."""
    initiator = Initiator(CONTROLLER, suites=[suite], rekey_after=3)
    ours, theirs = shake_hands(initiator, Responder(AGENT, b"", rekey_after=4))
    for _ in range(3):
        assert theirs.receive_data(ours.encrypt(b"text")) == [b"text"]
    with pytest.raises(RecordInvalid, match="does not verify"):
        theirs.receive_data(ours.encrypt(b"text"))


# Any split of the byte stream


def pieces_of(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


cut_lists = st.lists(st.integers(0, 10**6), max_size=12)


@settings(max_examples=60, deadline=None)
@given(opening_cuts=cut_lists, answer_cuts=cut_lists, third_cuts=cut_lists)
def test_any_split_of_the_handshake_gives_the_same_hellos(
    opening_cuts: list[int], answer_cuts: list[int], third_cuts: list[int]
) -> None:
    """TCP may cut anywhere: each hello comes exactly once, with the last piece."""
    initiator, responder = new_sides(Suite.CHACHAPOLY)
    for piece in pieces_of(initiator.data_to_send(), opening_cuts):
        assert responder.receive_data(piece) is None
    hellos = [initiator.receive_data(piece) for piece in pieces_of(responder.data_to_send(), answer_cuts)]
    assert [hello for hello in hellos if hello] == [AgentHello(AGENT.public, b"from agent", Suite.CHACHAPOLY)]
    message, _ = initiator.finish(b"hi")
    answers = [responder.receive_data(piece) for piece in pieces_of(message, third_cuts) if piece]
    assert [hello for hello in answers if hello] == [ControllerHello(CONTROLLER.public, b"hi", Suite.CHACHAPOLY)]
    assert answers[-1] is not None


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.sampled_from([0, 1, 2, 100, 5000, MAX_PLAINTEXT]), max_size=6), cuts=cut_lists)
def test_any_split_of_records_gives_the_same_plaintexts(lengths: list[int], cuts: list[int]) -> None:
    """TCP may cut anywhere: the plaintexts come back complete and in order, across rekeyings."""
    ours, theirs = new_link(Suite.CHACHAPOLY, rekey_after=2)
    plaintexts = [bytes([index]) * length for index, length in enumerate(lengths)]
    stream = b"".join(ours.encrypt(plaintext) for plaintext in plaintexts)
    received = [plaintext for piece in pieces_of(stream, cuts) for plaintext in theirs.receive_data(piece)]
    assert received == plaintexts
    theirs.receive_eof()


@settings(max_examples=60, deadline=None)
@given(junk=st.binary(max_size=300), cuts=cut_lists, start=st.integers(0, OPENING_LENGTH))
def test_junk_ends_a_handshake_in_a_documented_way(junk: bytes, cuts: list[int], start: int) -> None:
    """Whatever follows a good beginning, both sides wait or raise a `RemoteProtocolError`."""
    recording = record_handshake(Suite.CHACHAPOLY)
    for side, good in (
        (new_sides(Suite.CHACHAPOLY)[0], recording.answer),
        (new_sides(Suite.CHACHAPOLY)[1], recording.opening),
    ):
        try:
            for piece in pieces_of(good[:start] + junk, cuts):
                side.receive_data(piece)
        except RemoteProtocolError:
            with pytest.raises(LocalProtocolError):
                side.receive_data(b"")


@settings(max_examples=60, deadline=None)
@given(junk=st.binary(max_size=300), cuts=cut_lists)
def test_junk_never_becomes_a_plaintext(junk: bytes, cuts: list[int]) -> None:
    """No sequence of foreign bytes yields a plaintext."""
    _, theirs = new_link(Suite.CHACHAPOLY)
    try:
        for piece in pieces_of(junk, cuts):
            assert theirs.receive_data(piece) == []
    except RecordInvalid:
        assert_transport_dead(theirs)


# An independent implementation


def foreign_side(suite: Suite, *, initiator: bool, prologue: bytes) -> NoiseConnection:
    noise = NoiseConnection.from_name(suite.protocol_name)
    noise.set_prologue(prologue)
    if initiator:
        noise.set_as_initiator()
    else:
        noise.set_as_responder()
    secret = CONTROLLER.secret if initiator else AGENT.secret
    noise.set_keypair_from_private_bytes(Keypair.STATIC, secret)
    noise.start_handshake()
    return noise


def exchange_records(transport: Transport, noise: NoiseConnection) -> None:
    """Ten records each way, the foreign side rekeying by hand after every third."""
    assert noise.get_handshake_hash() == transport.handshake_hash
    for index in range(10):
        text = b"%d" % index * 1000
        record = transport.encrypt(text)
        assert noise.decrypt(record[LENGTH:]) == text
        sealed = noise.encrypt(text)
        assert transport.receive_data(len(sealed).to_bytes(2, "big") + sealed) == [text]
        if index % 3 == 2:
            noise.rekey_inbound_cipher()
            noise.rekey_outbound_cipher()


def test_initiator_talks_to_noiseprotocol(suite: Suite) -> None:
    """Our initiator and the responder of the noiseprotocol package agree on everything, rekeying included."""
    initiator = Initiator(CONTROLLER, suites=[suite], rekey_after=3)
    opening = initiator.data_to_send()
    noise = foreign_side(suite, initiator=False, prologue=opening[:-KEY])
    assert noise.read_message(opening[-KEY:]) == b""
    message = bytes(noise.write_message(b"from agent"))
    answer = MAGIC + bytes([VERSION, suite]) + len(message).to_bytes(2, "big") + message
    assert initiator.receive_data(answer) == AgentHello(AGENT.public, b"from agent", suite)
    third, transport = initiator.finish(b"from controller")
    assert noise.read_message(third[LENGTH:]) == b"from controller"
    exchange_records(transport, noise)


def test_responder_talks_to_noiseprotocol(suite: Suite) -> None:
    """Our responder and the initiator of the noiseprotocol package agree on everything, rekeying included."""
    offer = preface(suite)
    noise = foreign_side(suite, initiator=True, prologue=offer)
    responder = Responder(AGENT, b"from agent", rekey_after=3)
    responder.receive_data(offer + bytes(noise.write_message(b"")))
    answer = responder.data_to_send()
    assert noise.read_message(answer[AGENT_PREFACE + LENGTH :]) == b"from agent"
    message = bytes(noise.write_message(b"from controller"))
    hello = responder.receive_data(len(message).to_bytes(2, "big") + message)
    assert hello == ControllerHello(CONTROLLER.public, b"from controller", suite)
    exchange_records(responder.transport(), noise)
