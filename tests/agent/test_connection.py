"""The way in: handshake, decision, and what somebody gets who is not let in."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from pyinfra_agent._controllers import Controller
from pyinfra_agent._link import Link
from pyinfra_agent_protocol import (
    ControllerPayload,
    Info,
    Initiator,
    _link,
    encode_denied,
    encode_welcome,
)
from pyinfra_agent_protocol.keys import KeyPair, fingerprint
from tests.agent.helpers import Allowed, House, TestController


@pytest.fixture
def house(nursery):
    return House(nursery)


async def read_all(stream) -> bytes:
    data = b""
    while chunk := await stream.receive_some(65536):
        data += chunk
    return data


async def test_silent_peer_is_dropped_at_the_deadline(nursery, autojump_clock, capsys):
    stream = House(nursery).connect()
    assert await read_all(stream) == b""
    assert trio.current_time() == 10
    assert "it took too long" in capsys.readouterr().err


async def test_peer_that_dribbles_bytes_gets_no_more_time(nursery, autojump_clock):
    stream = House(nursery).connect()
    opening = Initiator(KeyPair.generate()).data_to_send()
    sent = 0
    with suppress(trio.BrokenResourceError):
        for sent, byte in enumerate(opening):  # noqa: B007
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.5)
    assert sent < len(opening) - 1
    assert 10 <= trio.current_time() <= 10.5


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"\x16\x03\x01", b"\0" * 64])
async def test_garbage_is_dropped_without_an_answer(house, first):
    stream = house.connect()
    await stream.send_all(first)
    assert await read_all(stream) == b""
    assert house.sessions.sessions == ()


async def test_preface_alone_is_answered_by_nothing(nursery, autojump_clock):
    stream = House(nursery).connect()
    await stream.send_all(Initiator(KeyPair.generate()).data_to_send()[:-32])
    assert await read_all(stream) == b""
    assert trio.current_time() == 10


async def test_probe_that_stops_after_message_2_learns_the_key_and_opens_nothing(house, capsys):
    stream = house.connect()
    initiator = Initiator(KeyPair.generate())
    await stream.send_all(initiator.data_to_send())
    hello = None
    while hello is None:
        hello = initiator.receive_data(bytes(await stream.receive_some(4096)))
    assert hello.key == house.key.public
    await stream.send_eof()
    assert await read_all(stream) == b""
    assert house.sessions.sessions == ()
    assert capsys.readouterr().err == "", "discovery does this every minute"


async def test_damaged_message_3_is_refused(house, capsys):
    stream = house.connect()
    initiator = Initiator(KeyPair.generate())
    await stream.send_all(initiator.data_to_send())
    while initiator.receive_data(bytes(await stream.receive_some(4096))) is None:
        pass
    message, _ = initiator.finish(b"")
    await stream.send_all(message[:-1] + bytes([message[-1] ^ 1]))
    assert await read_all(stream) == b""
    assert "handshake-refused" in capsys.readouterr().err


async def test_unauthorised_keys_get_the_same_bytes_whoever_they_are(nursery, capsys):
    house = House(nursery, Allowed(KeyPair.generate().public))
    answers = []
    for payload in (ControllerPayload(b"s" * 16, 1, False).encode(), b"not a payload", b""):
        controller = TestController()
        _, answer = await controller.shake_hands(house.connect(), payload)
        answers.append(answer)
        assert fingerprint(controller.key.public) in capsys.readouterr().err
    assert answers == [encode_denied()] * 3
    assert house.sessions.sessions == ()


async def test_denied_connection_is_closed_after_the_answer(nursery):
    house = House(nursery, Allowed(KeyPair.generate().public))
    stream = house.connect()
    assert await TestController().join(stream) is None
    assert await read_all(stream) == b""


async def test_our_own_key_is_refused_even_if_it_is_authorised(house, capsys):
    """A key file that was copied to a controller which does not look."""
    stream = house.connect()
    initiator = Initiator(house.key)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_link, "_check_identity", lambda remote, own: None)
        await stream.send_all(initiator.data_to_send())
        while initiator.receive_data(bytes(await stream.receive_some(4096))) is None:
            pass
        message, _ = initiator.finish(ControllerPayload(b"s" * 16, 1, False).encode())
    await stream.send_all(message)
    assert await read_all(stream) == b""
    assert "presents our own key" in capsys.readouterr().err
    assert house.sessions.sessions == ()


async def test_payload_that_is_none_is_refused_after_authorisation(house, capsys):
    with pytest.raises(EOFError):
        await TestController().shake_hands(house.connect(), b"not a payload")
    assert "handshake-refused" in capsys.readouterr().err
    assert house.sessions.sessions == ()


async def test_two_controllers_have_two_sessions(house):
    first, second = await house.welcome(), await house.welcome()
    assert first.session != second.session
    assert len(house.sessions.sessions) == 2
    assert (await first.ask(Info())).refusal is None
    assert (await second.ask(Info())).refusal is None


async def test_welcome_says_what_the_agent_is_and_grants(nursery):
    house = House(nursery, requests_max=7, session_ttl_seconds=90.0)
    controller = await house.welcome()
    welcome = controller.welcome
    assert (welcome.session, welcome.received, welcome.channels, welcome.ttl) == ("new", 0, 7, 90)
    assert welcome.user
    assert welcome.hostname
    assert welcome.version


async def test_peers_comment_cannot_forge_a_log_line(nursery, capsys):
    house = House(nursery, Allowed(comment='x\n2030-01-01T00:00:00Z connected controller="root"'))
    await house.welcome()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("connected controller=" not in line.partition("controller=")[0] for line in lines)
    assert [line.split()[1] for line in lines] == ["connected", "session-new"]


async def test_full_pool_makes_room_and_the_newcomer_is_served(nursery):
    house = House(nursery, unauthenticated_max=4)
    silent = [house.connect(peer="198.51.100.1:1") for _ in range(20)]
    await trio.testing.wait_all_tasks_blocked()
    controller = TestController()
    assert (await controller.join(house.connect(peer="203.0.113.9:1"))).session == "new"
    assert len(silent) == 20


async def test_welcomed_controller_no_longer_counts_against_the_pool(nursery):
    house = House(nursery, unauthenticated_max=1)
    controllers = [await house.welcome() for _ in range(3)]
    for controller in controllers:
        assert (await controller.ask(Info())).refusal is None


async def test_failure_nobody_expected_costs_one_connection(house, monkeypatch, capsys):
    bystander = await house.welcome()

    def fail(self, key, certificate, peer):
        raise RuntimeError("hunter2")

    with monkeypatch.context() as patch:
        patch.setattr(Allowed, "admit", fail)
        with pytest.raises(EOFError):
            await TestController().join(house.connect())
    assert (await bystander.ask(Info())).refusal is None
    logged = capsys.readouterr().err
    assert "connection-failed" in logged
    assert "RuntimeError at test_connection.py:" in logged
    assert "hunter2" not in logged


@pytest.mark.parametrize("method", ["_read", "_write", "_keep_alive", "_send_welcome"])
async def test_failure_nobody_expected_in_a_link_costs_its_session_alone(house, monkeypatch, capsys, method):
    bystander = await house.welcome()

    async def fail(self):
        await trio.testing.wait_all_tasks_blocked()
        raise KeyError("hunter2")

    with monkeypatch.context() as patch:
        patch.setattr(Link, method, fail)
        stream = house.connect()
        if method == "_send_welcome":
            with pytest.raises(EOFError):
                await TestController().join(stream)
        else:
            await TestController().join(stream)
            assert await read_all(stream) == b""
    assert (await bystander.ask(Info())).refusal is None
    assert len(house.sessions.sessions) == 1
    logged = capsys.readouterr().err
    assert "connection-failed" in logged
    assert "hunter2" not in logged


async def test_bytes_behind_message_3_are_read_by_the_link(house):
    """Nobody should send them before the welcome; who does is served and not lost."""
    controller = TestController()
    stream = house.connect()
    initiator = Initiator(controller.key)
    await stream.send_all(initiator.data_to_send())
    while initiator.receive_data(bytes(await stream.receive_some(4096))) is None:
        pass
    message, transport = initiator.finish(ControllerPayload(controller.session, 1, False).encode())
    controller.protocol.attach(0)
    controller.protocol.open(Info())
    await stream.send_all(message + transport.encrypt(controller.protocol.next_record() or b""))
    plaintexts: list[bytes] = []
    while len(plaintexts) < 2:
        plaintexts += transport.receive_data(bytes(await stream.receive_some(65536)))
    assert plaintexts[0][0] == encode_welcome(house.sessions._welcome(Controller(bytes(32), ""), "new"))[0]
    assert [type(event).__name__ for event in controller.protocol.receive_record(plaintexts[1])] == ["ResultReceived"]
