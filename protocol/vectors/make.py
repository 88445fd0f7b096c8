"""Make transcripts.json: one conversation over two links, in both cipher suites, with fixed keys.

Run by hand after a change of the protocol, on a processor that has AES instructions:

    python protocol/vectors/make.py

`tests/protocol/test_vectors.py` fails until the file is what this script makes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from pyinfra_agent_protocol import (
    AgentPayload,
    CloseSession,
    CloseSessionResult,
    ControllerPayload,
    DataReceived,
    Digest,
    Exec,
    ExecResult,
    Initiator,
    Put,
    PutResult,
    Responder,
    Session,
    Side,
    Stat,
    StatResult,
    Transport,
    Welcome,
    encode_welcome,
)
from pyinfra_agent_protocol._frames import split_frames
from pyinfra_agent_protocol._noise import Suite
from pyinfra_agent_protocol.keys import KeyPair

FILE: Final = Path(__file__).with_name("transcripts.json")

CONTROLLER: Final = bytes(range(0x20))
AGENT: Final = bytes(range(0x20, 0x40))
#: For each link, the connector's ephemeral secret and the agent's.
EPHEMERAL: Final = (
    (bytes(range(0x40, 0x60)), bytes(range(0x60, 0x80))),
    (bytes(range(0x80, 0xA0)), bytes(range(0xA0, 0xC0))),
)
#: What the connector offers so that the agent chooses a suite.
OFFERS: Final = {Suite.CHACHAPOLY: (Suite.CHACHAPOLY,), Suite.AESGCM: (Suite.AESGCM, Suite.CHACHAPOLY)}
SESSION: Final = bytes(range(0xF0, 0x100))
RELEASE: Final = "1.0"
CONTENT: Final = bytes(range(256)) * 4


class _Conversation:
    """Both ends, and what is noted of what they say."""

    def __init__(self, suite: Suite) -> None:
        self.connector = Session(Side.CONNECTOR)
        self.agent = Session(Side.AGENT)
        self.links: list[dict[str, Any]] = []
        self._suite = suite
        self._transports: dict[str, Transport] = {}

    def connect(self, welcome: str) -> None:
        """Make the next link: shake hands, let the agent welcome the controller, attach both sessions."""
        number = len(self.links)
        connector_ephemeral, agent_ephemeral = EPHEMERAL[number]
        initiator = Initiator(
            KeyPair.from_secret(CONTROLLER),
            suites=OFFERS[self._suite],
            ephemeral_for_tests=KeyPair.from_secret(connector_ephemeral),
        )
        agent_payload = AgentPayload().encode()
        responder = Responder(
            KeyPair.from_secret(AGENT), agent_payload, ephemeral_for_tests=KeyPair.from_secret(agent_ephemeral)
        )
        payload = ControllerPayload(SESSION, number + 1, number > 0, self.connector.received, RELEASE).encode()
        first = initiator.data_to_send()
        responder.receive_data(first)
        second = responder.data_to_send()
        initiator.receive_data(second)
        third, at_connector = initiator.finish(payload)
        responder.receive_data(third)
        at_agent = responder.transport()
        self._transports = {"connector": at_connector, "agent": at_agent}
        self.links.append(
            {
                "connector_ephemeral_secret": connector_ephemeral.hex(),
                "agent_ephemeral_secret": agent_ephemeral.hex(),
                "connector_preface_and_message_1": first.hex(),
                "agent_preface_and_message_2": second.hex(),
                "message_2_payload": agent_payload.hex(),
                "message_3": third.hex(),
                "message_3_payload": payload.hex(),
                "handshake_hash": at_agent.handshake_hash.hex(),
                "records": [],
            }
        )
        connector_received, agent_received = self.connector.received, self.agent.received
        answer = Welcome(welcome, agent_received, 256, 600, version=RELEASE, hostname="web1", user="root")
        self._note("agent", encode_welcome(answer), arrives=True)
        self.connector.attach(agent_received)
        self.agent.attach(connector_received)

    def say(self, side: str, *, arrives: bool = True) -> None:
        """Let *side* write all that it has; what arrives is read at once."""
        sender, receiver = (self.connector, self.agent) if side == "connector" else (self.agent, self.connector)
        while (plaintext := sender.next_record()) is not None:
            self._note(side, plaintext, arrives=arrives)
            for event in receiver.receive_record(plaintext) if arrives else ():
                if isinstance(event, DataReceived):
                    receiver.consume(event.channel, len(event.data))

    def lose(self) -> None:
        """Let the link break."""
        self.connector.detach()
        self.agent.detach()

    def _note(self, side: str, plaintext: bytes, *, arrives: bool) -> None:
        frames = [f"{frame.kind.name} {frame.channel}" for frame in split_frames(plaintext)]
        self.links[-1]["records"].append(
            {
                "from": side,
                "arrives": arrives,
                "frames": ", ".join(frames),
                "plaintext": plaintext.hex(),
                "record": self._transports[side].encrypt(plaintext).hex(),
            }
        )


def transcript(suite: Suite) -> dict[str, Any]:
    """Hold the conversation in *suite*: a command, a file, a lost link, and what is replayed on the next one."""
    talk = _Conversation(suite)
    talk.connect("new")

    command = talk.connector.open(Exec((b"sh", b"-c", b"uname -n; echo oops >&2; exit 3")))
    talk.say("connector")
    talk.agent.send_data(command, b"web1\n")
    talk.agent.send_data(command, b"oops\n", stream=1)
    talk.agent.send_result(command, ExecResult(3))
    talk.say("agent")

    upload = talk.connector.open(Put(b"/etc/motd", mode=0o644))
    talk.connector.send_data(upload, CONTENT)
    digest = Digest()
    digest.update(CONTENT)
    talk.connector.send_end(upload, size=len(CONTENT), digest=digest.digest())
    talk.say("connector")
    talk.say("agent")
    # The answer to the file, and a request that crosses it, are written to a link that is already dead.
    talk.agent.send_result(upload, PutResult(len(CONTENT), created=True))
    talk.say("agent", arrives=False)
    look = talk.connector.open(Stat(b"/etc/motd"))
    talk.say("connector", arrives=False)
    talk.lose()

    talk.connect("resumed")
    talk.say("connector")
    talk.say("agent")
    talk.agent.send_result(look, StatResult({"type": "file", "mode": 0o644, "size": len(CONTENT)}))
    talk.say("agent")
    closing = talk.connector.open(CloseSession())
    talk.say("connector")
    talk.agent.send_result(closing, CloseSessionResult())
    talk.say("agent")
    return {"suite": int(suite), "protocol_name": suite.protocol_name.decode(), "links": talk.links}


def transcripts() -> dict[str, Any]:
    """Return what the file holds."""
    return {
        "controller_secret": CONTROLLER.hex(),
        "controller_public": KeyPair.from_secret(CONTROLLER).public.hex(),
        "agent_secret": AGENT.hex(),
        "agent_public": KeyPair.from_secret(AGENT).public.hex(),
        "transcripts": [transcript(suite) for suite in Suite],
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(transcripts(), indent=1) + "\n")
