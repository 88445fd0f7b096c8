"""Whose turn it is: connections between the kernel's queue and a task of their own."""

from __future__ import annotations

import os
import socket
import struct
from collections import Counter

import pytest
import trio

from pyinfra_agent._accept import Lobby, accept_forever
from pyinfra_agent._admission import Admission
from tests.agent.helpers import until

OPENING = b"pyinfra-agent\x01\x01\x01" + bytes(32)
SECONDS = 10


class Reception:
    """A lobby whose connections are socket pairs, and what it has handed over."""

    def __init__(self, most=16):
        self.admission = Admission(most)
        self.served: list[str] = []
        self.ours: list[socket.socket] = []
        self.lobby = Lobby(self.admission, SECONDS, self._serve)

    def _serve(self, connection, peer, seat):
        self.served.append(peer)
        self.admission.leave(seat)
        connection.close()

    def take(self, peer, said=b""):
        """Let somebody in who has said something; return the far end."""
        far, near = socket.socketpair()
        near.setblocking(False)
        if said:
            far.send(said)
        self.ours.append(far)
        self.lobby.take(near, peer)
        return far

    @property
    def waiting(self):
        return len(self.lobby._silent) + sum(map(len, self.lobby._speaking.values()))


@pytest.fixture
async def reception(nursery):
    reception = Reception()
    with reception.lobby:
        yield reception
        nursery.cancel_scope.cancel()
    for far in reception.ours:
        far.close()


def is_closed(far):
    """Return whether the far end has been hung up on."""
    far.setblocking(False)
    try:
        return far.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


async def test_sources_have_their_turns_one_after_the_other(reception, nursery):
    """Whoever has one connection waits for one of each other source, however many those have."""
    for port in range(6):
        reception.take(f"192.0.2.1:{port}", OPENING)
    for port in range(2):
        reception.take(f"192.0.2.2:{port}", OPENING)
    reception.take("198.51.100.1:1", OPENING)
    nursery.start_soon(reception.lobby.run_forever)
    await until(lambda: len(reception.served) == 9)
    sources = [peer.partition(":")[0] for peer in reception.served]
    assert sources[:5] == ["192.0.2.1", "192.0.2.2", "198.51.100.1", "192.0.2.1", "192.0.2.2"]
    assert sources[5:] == ["192.0.2.1"] * 4


async def test_one_handshake_begins_in_each_turn_of_the_event_loop(reception, nursery):
    """Between two of them whatever else can run does: connections are accepted, handshakes go on."""
    nursery.start_soon(reception.lobby.run_forever)
    await trio.testing.wait_all_tasks_blocked()
    for port in range(8):
        reception.take(f"192.0.2.1:{port}", OPENING)
    turns = 0
    while len(reception.served) < 8:
        turns += 1
        assert len(reception.served) <= turns
        await trio.lowlevel.checkpoint()
    assert 7 <= turns <= 12


async def test_newcomer_of_another_source_is_next_while_one_source_never_ends(reception, nursery):
    """A source that speaks without end keeps nobody else waiting."""

    async def flood():
        port = 0
        while True:
            for _ in range(4):
                port += 1
                reception.take(f"192.0.2.1:{port}", OPENING)
            await trio.lowlevel.checkpoint()
            while len(reception.ours) > 200:
                reception.ours.pop(0).close()

    nursery.start_soon(reception.lobby.run_forever)
    async with trio.open_nursery() as scanner:
        scanner.start_soon(flood)
        await until(lambda: len(reception.served) > 20)
        before = len(reception.served)
        reception.take("198.51.100.1:1", OPENING)
        await until(lambda: "198.51.100.1:1" in reception.served)
        scanner.cancel_scope.cancel()
    assert reception.served.index("198.51.100.1:1") - before <= 1
    assert reception.waiting <= 16


async def test_who_loses_its_seat_loses_its_turn(reception, nursery):
    """Those who wait for their turn are no more than there are seats, whatever comes."""
    for port in range(2000):
        reception.take(f"192.0.2.1:{port}", OPENING)
        assert reception.waiting <= 16
    assert len(reception.lobby._speaking) == 1
    nursery.start_soon(reception.lobby.run_forever)
    await until(lambda: len(reception.served) == 16)
    await trio.testing.wait_all_tasks_blocked()
    assert len(reception.served) == 16
    assert reception.waiting == 0
    assert not reception.lobby._speaking
    assert sum(is_closed(far) for far in reception.ours) == 2000


async def test_silent_one_has_its_turn_when_it_speaks(reception, nursery):
    nursery.start_soon(reception.lobby.run_forever)
    far = reception.take("192.0.2.1:1")
    await trio.testing.wait_all_tasks_blocked()
    assert reception.served == []
    far.send(OPENING[:5])  # not yet what a controller says, and somebody has to tell it so
    await until(lambda: reception.served == ["192.0.2.1:1"])


async def test_who_hangs_up_before_a_word_gets_no_task(reception, nursery):
    """A scanner that opens and closes costs no handshake and no line in the log."""
    nursery.start_soon(reception.lobby.run_forever)
    early, late = socket.socketpair()
    early.close()
    late.setblocking(False)
    reception.lobby.take(late, "192.0.2.1:1")
    assert late.fileno() == -1
    reception.take("192.0.2.1:2").close()
    await until(lambda: reception.waiting == 0)
    await trio.testing.wait_all_tasks_blocked()
    assert reception.served == []
    assert reception.admission._count == 0


async def test_silence_ends_at_the_deadline(reception, nursery, autojump_clock):
    nursery.start_soon(reception.lobby.run_forever)
    early = reception.take("192.0.2.1:1")
    await trio.sleep(3)
    late = reception.take("192.0.2.1:2")
    await trio.sleep(SECONDS - 3.1)
    assert not is_closed(early)
    await trio.sleep(0.2)
    assert is_closed(early)
    assert not is_closed(late)
    await trio.sleep(3)
    assert is_closed(late)
    assert reception.waiting == reception.admission._count == 0


async def test_silent_one_that_makes_room_is_heard_no_more(reception, nursery):
    """Its descriptor is another's by then, also if a process that is being started still has the connection."""
    nursery.start_soon(reception.lobby.run_forever)
    far, near = socket.socketpair()
    copy = os.dup(near.fileno())
    near.setblocking(False)
    reception.lobby.take(near, "192.0.2.1:1")
    for port in range(2, 400):
        reception.take(f"192.0.2.1:{port}")
    await until(lambda: near.fileno() == -1)
    far.send(OPENING)
    await trio.testing.wait_all_tasks_blocked()
    assert reception.served == []
    os.close(copy)
    far.close()


@pytest.fixture
async def listening(reception, nursery):
    """A listener on loopback whose connections go to the reception."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(accept_forever, listener, reception.lobby)
    nursery.start_soon(reception.lobby.run_forever)
    await trio.testing.wait_all_tasks_blocked()
    yield listener.socket.getsockname()
    await trio.aclose_forcefully(listener)


async def test_connection_that_says_nothing_stays_in_the_kernel(reception, listening):
    """Whoever opens connections and resets them costs this process nothing, and keeps nobody out."""
    if not hasattr(socket, "TCP_DEFER_ACCEPT"):
        pytest.skip("this system accepts connections before anything was said")
    seen = Counter()
    take = reception.lobby.take

    def count(connection, peer):
        seen[peer] += 1
        take(connection, peer)

    reception.lobby.take = count
    for _ in range(200):
        scanner = socket.create_connection(listening)
        scanner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        scanner.close()
    with socket.create_connection(listening) as controller:
        controller.sendall(OPENING)
        await until(lambda: reception.served)
        assert len(seen) == 1


async def test_connection_that_stays_silent_gets_its_seat_after_a_while(reception, listening):
    """The kernel gives it up after a second or two; from then on it is one of those who are watched."""
    with socket.create_connection(listening) as peer:
        await until(lambda: reception.waiting == 1)
        peer.sendall(OPENING)
        await until(lambda: reception.served)
