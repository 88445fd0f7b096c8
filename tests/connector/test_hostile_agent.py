"""An agent that the user trusts and that somebody else has taken over: what it can do to the controller."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pyinfra_agent_connector._errors import AgentError
from pyinfra_agent_connector._files import local_sink
from pyinfra_agent_connector._trust import AgentTrust
from pyinfra_agent_protocol import Digest, Get, GetResult
from pyinfra_agent_protocol._fields import binary, field, text
from pyinfra_agent_protocol.keys import KeyPair, format_public
from tests.connector.helpers import LOCALHOST, FakeAgent, client_of

CONTENT = b"what was asked for"


@dataclass(frozen=True, slots=True)
class SlyResult(GetResult):
    """The answer to a download, and where it should go if the agent had its way."""

    path: bytes = field(binary(4096), b"../../escaped")
    filename: str = field(text(255), "/escaped")


def send_file(content, result):
    """Return an agent that answers downloads with `content` and `result`."""

    def script(conversation):
        session = conversation.open()
        request = conversation.request()
        assert isinstance(request.request, Get)
        session.send_data(request.channel, content)
        conversation.answer(request.channel, result)
        conversation.read()

    return script


def download(fake, target):
    client = client_of(fake.port)
    try:
        with local_sink(str(target)) as write:
            client.get("/etc/motd", write)
    finally:
        client._connection.drop()


def test_agent_cannot_say_where_a_download_goes(tmp_path):
    """Names are the controller's alone: what an answer says of them is not even read."""
    place = tmp_path / "deep" / "er"
    place.mkdir(parents=True)
    digest = Digest()
    digest.update(CONTENT)

    with FakeAgent(send_file(CONTENT, SlyResult(len(CONTENT), digest.digest()))) as fake:
        download(fake, place / "wanted")

    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["wanted"]
    assert (place / "wanted").read_bytes() == CONTENT


def test_download_that_is_not_what_the_agent_says_leaves_the_old_file(tmp_path):
    target = tmp_path / "wanted"
    target.write_text("old")

    with (
        FakeAgent(send_file(CONTENT, GetResult(len(CONTENT), Digest().digest()))) as fake,
        pytest.raises(AgentError, match="did not arrive as it was sent"),
    ):
        download(fake, target)

    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_agent_writes_nothing_but_its_own_key_into_known_agents(tmp_path):
    """Its names come from it, and may hold what would be a line of the file."""
    line = f"web2:7963 {format_public(KeyPair.generate().public)}"

    def script(conversation):
        conversation.open(hostname=f"x\n{line}", user=f"root\n{line}", version=f"1\n{line}"[:64])
        conversation.read()

    with FakeAgent(script) as fake:
        trust = AgentTrust(tmp_path, LOCALHOST, fake.port, "accept-new", None)
        client = client_of(fake.port, check_key=trust.check, learn_key=trust.learn)
        client.connect()
        client._connection.drop()

        pins = (tmp_path / "known_agents").read_text().splitlines()
        assert pins == [f"{LOCALHOST}:{fake.port} {format_public(fake.key.public)}"]


def test_agent_cannot_have_another_key_of_its_own_pinned_at_another_name(tmp_path):
    """The next key that an agent announces is kept for its own name."""
    other = KeyPair.generate().public

    def script(conversation):
        conversation.open(next_key=other)
        conversation.read()

    with FakeAgent(script) as fake:
        trust = AgentTrust(tmp_path, LOCALHOST, fake.port, "accept-new", None)
        trust._known.pin("web2:7963", KeyPair.generate().public)
        client = client_of(fake.port, check_key=trust.check, learn_key=trust.learn)
        client.connect()
        client._connection.drop()

        assert list(trust._known.next_pins()) == [f"{LOCALHOST}:{fake.port}"]
        assert trust._known.lookup("web2:7963").key != other
