"""The secure link against arbitrary bytes, cut arbitrarily, and against edits of what a genuine peer sends.

A fuzzer holds no key. Whatever one of these objects accepts must therefore be, byte for byte, what the genuine peer
sent: each target is a test of authenticity too.
"""

from __future__ import annotations

import functools
from typing import Any, Final, NamedTuple, cast

from pyinfra_agent_protocol import (
    HandshakeFailed,
    Initiator,
    LocalProtocolError,
    NotAnAgent,
    RecordInvalid,
    Responder,
    Transport,
)
from pyinfra_agent_protocol._constants_link import (
    LENGTH,
    MAX_CONTROLLER_PREFACE,
    MAX_MESSAGE,
    MAX_PLAINTEXT,
    MAX_RECORD,
)
from pyinfra_agent_protocol._noise import CipherState, KeyPair, Suite, aes_available
from tests.fuzz.reader import Reader, chunks, edited

CONTROLLER: Final = KeyPair.from_secret(bytes(range(32)))
AGENT: Final = KeyPair.from_secret(bytes(range(32, 64)))
CONTROLLER_EPHEMERAL: Final = KeyPair.from_secret(bytes(range(64, 96)))
AGENT_EPHEMERAL: Final = KeyPair.from_secret(bytes(range(96, 128)))
AGENT_SAYS: Final = b"\x81\xa7version\xa11"
CONTROLLER_SAYS: Final = b"what message 3 carries"
SUITES: Final = (Suite.CHACHAPOLY, Suite.AESGCM) if aes_available() else (Suite.CHACHAPOLY,)


class Genuine(NamedTuple):
    """What both sides of one undisturbed handshake write, and the keys that come of it."""

    opening: bytes
    answer: bytes
    closing: bytes
    upward: bytes
    downward: bytes


def initiator(suite: Suite) -> Initiator:
    return Initiator(CONTROLLER, suites=(suite,), ephemeral_for_tests=CONTROLLER_EPHEMERAL)


def responder() -> Responder:
    return Responder(AGENT, AGENT_SAYS, ephemeral_for_tests=AGENT_EPHEMERAL)


@functools.cache
def genuine(suite: Suite) -> Genuine:
    """Shake hands once; the ephemeral keys are fixed, so every handshake with *suite* is this one."""
    connector, agent = initiator(suite), responder()
    opening = connector.data_to_send()
    agent.receive_data(opening)
    answer = agent.data_to_send()
    connector.receive_data(answer)
    closing, transport = connector.finish(CONTROLLER_SAYS)
    upward, downward = (cast("Any", cipher._aead)._key for cipher in (transport._send, transport._receive))
    return Genuine(opening, answer, closing, upward, downward)


def fuzz_responder(data: bytes) -> None:
    """The agent's side: a controller sends what it likes instead of messages 1 and 3."""
    reader = Reader(data)
    expected = genuine(reader.choice(SUITES))
    agent = responder()
    stages = (b"", expected.opening), (b"", expected.closing)
    parts = [edited(reader.choice(stage), reader) for stage in stages]
    parts.append(reader.take(reader.number(0xFFFF)))
    fed, hello = b"", None
    try:
        for part in parts:
            for chunk in chunks(part, reader):
                if hello is None:
                    fed += chunk
                    hello = agent.receive_data(chunk)
                    assert len(agent._incoming) <= MAX_CONTROLLER_PREFACE + LENGTH + MAX_MESSAGE + len(chunk)
                    agent.data_to_send()
    except (NotAnAgent, HandshakeFailed):
        assert parts[:2] != [expected.opening, expected.closing], "a genuine controller was refused"
        assert_dead(agent)
        return
    if hello is None:
        assert parts[:2] != [expected.opening, expected.closing], "a genuine controller was not recognised"
        return
    assert fed.startswith(expected.opening + expected.closing), "a hello without the controller's key"
    assert (hello.key, hello.payload) == (CONTROLLER.public, CONTROLLER_SAYS)
    transport = agent.transport()
    assert_dead(agent)
    try:
        assert transport.receive_data(b"") == []
    except RecordInvalid:
        assert_dead(transport)


def fuzz_initiator(data: bytes) -> None:
    """The connector's side: an agent, or what listens there, sends what it likes instead of message 2."""
    reader = Reader(data)
    suite = reader.choice(SUITES)
    expected = genuine(suite)
    connector = initiator(suite)
    assert connector.data_to_send() == expected.opening
    answer = edited(reader.choice((b"", expected.answer)), reader) + reader.take(reader.number(0xFFFF))
    hello = None
    try:
        for chunk in chunks(answer, reader):
            hello = connector.receive_data(chunk) or hello
            assert len(connector._incoming) <= MAX_CONTROLLER_PREFACE + LENGTH + MAX_MESSAGE + len(chunk)
    except (NotAnAgent, HandshakeFailed):
        assert answer != expected.answer, "the genuine agent was refused"
        assert_dead(connector)
        return
    if hello is None:
        assert answer != expected.answer, "the genuine agent was not recognised"
        return
    assert answer == expected.answer, "a hello without the agent's key"
    assert (hello.key, hello.payload) == (AGENT.public, AGENT_SAYS)
    assert connector.finish(CONTROLLER_SAYS)[0] == expected.closing
    assert_dead(connector)


def fuzz_records(data: bytes) -> None:
    """The record layer: genuine records, edited and cut; what comes out is a beginning of what was sealed."""
    reader = Reader(data)
    suite = reader.choice(SUITES)
    rekey_after = reader.choice((65_536, 1, 2, 3))
    keys = genuine(suite)
    sender, receiver = (
        Transport(
            CipherState(suite, keys.upward),
            CipherState(suite, keys.upward),
            handshake_hash=bytes(64),
            rekey_after=rekey_after,
            pending=b"",
        )
        for _ in range(2)
    )
    sealed = []
    for _ in range(reader.number(7)):
        size = reader.number(255)
        sealed.append(bytes(size if size < 240 else MAX_PLAINTEXT - 255 + size))
    written = b"".join(map(sender.encrypt, sealed))
    stream = edited(written, reader) + reader.take(reader.number(255))
    opened: list[bytes | bytearray] = []
    try:
        for chunk in chunks(stream, reader):
            opened += receiver.receive_data(chunk)
            assert len(receiver._records._partial) < LENGTH + MAX_RECORD
        ended_within = sum(LENGTH + len(plaintext) + 16 for plaintext in opened) != len(stream)
        try:
            receiver.receive_eof()
            assert not ended_within, "the end of half a record went unnoticed"
        except RecordInvalid:
            assert ended_within, "the end between two records was refused"
            assert_dead(receiver)
    except RecordInvalid:
        assert not written.startswith(stream), "genuine records were refused"
        assert_dead(receiver)
    assert opened == sealed[: len(opened)], "something was opened that nobody sealed"
    assert stream != written or opened == sealed, "genuine records were lost"


def assert_dead(phase: Initiator | Responder | Transport) -> None:
    """Fail unless *phase* refuses to do anything more."""
    try:
        phase.receive_data(b"")
    except LocalProtocolError:
        return
    raise AssertionError(f"{type(phase).__name__} lives on")
