"""The recorded conversations of transcripts.json, said again byte for byte by each role alone."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from noise.connection import Keypair, NoiseConnection

from pyinfra_agent_protocol import (
    ControllerPayload,
    DataReceived,
    Initiator,
    RequestReceived,
    Responder,
    ResultReceived,
    Session,
    Side,
    decode_answer,
)
from pyinfra_agent_protocol._constants_link import AGENT_PREFACE, KEY, LENGTH
from pyinfra_agent_protocol._frames import NUMBERED, FrameType, split_frames
from pyinfra_agent_protocol._messages import End, decode_request
from pyinfra_agent_protocol._noise import Suite, aes_available
from pyinfra_agent_protocol.keys import KeyPair

FOLDER = Path(__file__).parents[2] / "protocol" / "vectors"
FILE = json.loads((FOLDER / "transcripts.json").read_text())
CONTROLLER, AGENT = (KeyPair.from_secret(bytes.fromhex(FILE[f"{role}_secret"])) for role in ("controller", "agent"))


@pytest.fixture(params=FILE["transcripts"], ids=lambda transcript: transcript["protocol_name"])
def transcript(request):
    if request.param["suite"] == Suite.AESGCM and not aes_available():
        pytest.skip("this processor has no AES instructions")
    return request.param


def bytes_of(noted, name):
    return bytes.fromhex(noted[name])


class Role:
    """One side, which hears only what the file says that the other one has said."""

    def __init__(self, name):
        self.name = name
        self.session = Session(Side(name))
        self.requests = {}
        self.heard = []
        self.said = 0

    def start_link(self, transport, peer_received):
        self.transport = transport
        self.session.attach(peer_received)
        self.replayed = self.said - peer_received

    def say(self, noted):
        """Do what the record's frames tell that the application did, and write that record."""
        plaintext = bytes_of(noted, "plaintext")
        for frame in split_frames(plaintext):
            if frame.kind not in NUMBERED:
                continue
            if self.replayed:
                self.replayed -= 1
                continue
            self.said += 1
            self.act(frame)
        assert self.session.next_record() == plaintext
        assert self.transport.encrypt(plaintext) == bytes_of(noted, "record")

    def act(self, frame):
        session = self.session
        if frame.kind is FrameType.OPEN:
            opening = decode_request(frame.body)
            self.requests[frame.channel] = opening.request
            assert session.open(opening.request) == frame.channel
        elif frame.kind is FrameType.DATA:
            session.send_data(frame.channel, frame.body, frame.stream)
        elif frame.kind is FrameType.END:
            end = End.decode(frame.body)
            session.send_end(frame.channel, size=end.size, digest=end.digest)
        else:
            assert frame.kind is FrameType.RESULT
            session.send_result(frame.channel, self.requests[frame.channel].RESULT.decode(frame.body))

    def hear(self, noted):
        assert self.transport.receive_data(bytes_of(noted, "record")) == [bytes_of(noted, "plaintext")]
        for event in self.session.receive_record(bytes_of(noted, "plaintext")):
            self.heard.append(event)
            if isinstance(event, DataReceived):
                self.session.consume(event.channel, len(event.data))
            elif isinstance(event, RequestReceived):
                self.requests[event.channel] = event.request

    def carry(self, noted):
        for record in noted:
            if record["from"] == self.name:
                self.say(record)
            elif record["arrives"]:
                self.hear(record)
        assert not self.session.has_data_to_send
        self.session.detach()


def offered(link):
    preface = bytes_of(link, "connector_preface_and_message_1")[:-KEY]
    return tuple(map(Suite, preface[len(b"pyinfra-agent") + 2 :]))


def test_connector_says_its_part_byte_for_byte(transcript):
    role = Role("connector")
    for link in transcript["links"]:
        ephemeral = KeyPair.from_secret(bytes_of(link, "connector_ephemeral_secret"))
        initiator = Initiator(CONTROLLER, suites=offered(link), ephemeral_for_tests=ephemeral)
        assert initiator.data_to_send() == bytes_of(link, "connector_preface_and_message_1")
        hello = initiator.receive_data(bytes_of(link, "agent_preface_and_message_2"))
        assert (hello.key, hello.payload) == (AGENT.public, bytes_of(link, "message_2_payload"))
        assert hello.suite == transcript["suite"]
        payload = ControllerPayload.decode(bytes_of(link, "message_3_payload"))
        assert payload.received == role.session.received
        message, transport = initiator.finish(payload.encode())
        assert message == bytes_of(link, "message_3")
        assert transport.handshake_hash == bytes_of(link, "handshake_hash")
        answer, *records = link["records"]
        assert transport.receive_data(bytes_of(answer, "record")) == [bytes_of(answer, "plaintext")]
        role.start_link(transport, decode_answer(bytes_of(answer, "plaintext")).received)
        role.carry(records)
    assert role.session.is_idle
    assert [event.channel for event in role.heard if isinstance(event, ResultReceived)] == [1, 2, 3, 4]


def test_agent_says_its_part_byte_for_byte(transcript):
    role = Role("agent")
    for link in transcript["links"]:
        ephemeral = KeyPair.from_secret(bytes_of(link, "agent_ephemeral_secret"))
        responder = Responder(AGENT, bytes_of(link, "message_2_payload"), ephemeral_for_tests=ephemeral)
        responder.receive_data(bytes_of(link, "connector_preface_and_message_1"))
        assert responder.data_to_send() == bytes_of(link, "agent_preface_and_message_2")
        hello = responder.receive_data(bytes_of(link, "message_3"))
        assert (hello.key, hello.payload) == (CONTROLLER.public, bytes_of(link, "message_3_payload"))
        transport = responder.transport()
        assert transport.handshake_hash == bytes_of(link, "handshake_hash")
        answer, *records = link["records"]
        assert decode_answer(bytes_of(answer, "plaintext")).received == role.session.received
        assert transport.encrypt(bytes_of(answer, "plaintext")) == bytes_of(answer, "record")
        role.start_link(transport, ControllerPayload.decode(hello.payload).received)
        role.carry(records)
    assert [event.channel for event in role.heard if isinstance(event, RequestReceived)] == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:One of ephemeral keypairs is already set:UserWarning")
def test_another_implementation_of_noise_makes_the_same_bytes(transcript):
    """The handshake and every record, by a library that shares no code with ours."""
    for link in transcript["links"]:
        opening, second = (
            bytes_of(link, "connector_preface_and_message_1"),
            bytes_of(link, "agent_preface_and_message_2"),
        )
        ends = {}
        for name, static in (("connector", CONTROLLER), ("agent", AGENT)):
            noise = ends[name] = NoiseConnection.from_name(transcript["protocol_name"].encode())
            noise.set_prologue(opening[:-KEY])
            noise.set_as_initiator() if name == "connector" else noise.set_as_responder()
            noise.set_keypair_from_private_bytes(Keypair.STATIC, static.secret)
            noise.set_keypair_from_private_bytes(Keypair.EPHEMERAL, bytes_of(link, f"{name}_ephemeral_secret"))
            noise.start_handshake()
        for sender, receiver, message, payload in (
            ("connector", "agent", opening[-KEY:], b""),
            ("agent", "connector", second[AGENT_PREFACE + LENGTH :], bytes_of(link, "message_2_payload")),
            ("connector", "agent", bytes_of(link, "message_3")[LENGTH:], bytes_of(link, "message_3_payload")),
        ):
            assert ends[sender].write_message(payload) == message
            assert ends[receiver].read_message(message) == payload
        assert ends["agent"].get_handshake_hash() == bytes_of(link, "handshake_hash")
        for record in link["records"]:
            sealed = bytes_of(record, "record")
            assert int.from_bytes(sealed[:LENGTH], "big") == len(sealed) - LENGTH
            assert ends[record["from"]].encrypt(bytes_of(record, "plaintext")) == sealed[LENGTH:]


def test_both_suites_carry_the_same_conversation():
    one, other = (
        [
            (record["from"], record["arrives"], record["frames"], record["plaintext"])
            for link in transcript["links"]
            for record in link["records"]
        ]
        for transcript in FILE["transcripts"]
    )
    assert one == other
    assert {transcript["suite"] for transcript in FILE["transcripts"]} == set(Suite)


def test_conversation_has_what_its_readme_says(transcript):
    """A command, a file of 1 KiB, a frame lost in each direction and replayed."""
    first, second = transcript["links"]
    lost = [(record["from"], record["frames"]) for record in first["records"] if not record["arrives"]]
    assert lost == [("agent", "ACK 0, RESULT 2"), ("connector", "OPEN 3")]
    said = [(record["from"], record["frames"]) for record in second["records"]]
    assert said[1][1].endswith("OPEN 3")
    assert said[2][1].endswith("RESULT 2")
    sent = [
        frame.body
        for record in first["records"]
        if record["from"] == "connector"
        for frame in split_frames(bytes_of(record, "plaintext"))
        if frame.kind is FrameType.DATA
    ]
    assert [len(body) for body in sent] == [1024]


def test_file_is_what_its_script_makes():
    if not aes_available():
        pytest.skip("this processor has no AES instructions")
    spec = importlib.util.spec_from_file_location("make_vectors", FOLDER / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    assert make.transcripts() == FILE
