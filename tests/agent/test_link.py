"""One link: signs of life, ends, and a peer that does not do its part."""

from __future__ import annotations

import os
import resource
from types import SimpleNamespace

import pytest
import trio

from pyinfra_agent import _link
from pyinfra_agent_protocol import (
    QUEUE_MAX_BYTES,
    Get,
    Info,
    Put,
    RecordInvalid,
)
from pyinfra_agent_protocol._constants import WINDOW_INITIAL_BYTES
from tests.agent.helpers import House, is_alive, sh, socket_pair, until

MIB = 1024 * 1024


async def never(context, session, channel, request):
    await channel.cancelled.wait()


async def test_keepalive_finds_a_dead_peer_of_an_idle_session(nursery, autojump_clock, capsys):
    house = House(nursery)
    controller = await house.welcome()
    controller.freeze()
    (session,) = house.sessions.sessions
    await until(lambda: session.link is None, 1.0)
    assert 45 <= trio.current_time() <= 52
    assert 'reason="silent for ' in capsys.readouterr().err
    assert house.sessions.sessions == (session,), "the session waits for its controller"


async def test_keepalive_is_quicker_while_a_request_is_outstanding(nursery, autojump_clock):
    house = House(nursery, handle=never)
    controller = await house.welcome()
    controller.start(Info())
    await trio.testing.wait_all_tasks_blocked()
    controller.freeze()
    (session,) = house.sessions.sessions
    await until(lambda: session.link is None, 1.0)
    assert 15 <= trio.current_time() <= 21


async def test_peer_that_answers_pings_keeps_its_link_for_ever(nursery, autojump_clock):
    house = House(nursery)
    controller = await house.welcome()
    await trio.sleep(10_000)
    assert (await controller.ask(Info())).refusal is None


async def test_trickle_into_a_record_that_never_ends_is_silence(nursery, autojump_clock):
    """A length that was corrupted on its way: the PONGs that follow are its content, and no sign of life."""
    house = House(nursery)
    controller = await house.welcome()
    (session,) = house.sessions.sessions
    controller.freeze()
    with trio.CancelScope() as trickle:
        async with trio.open_nursery() as trickling:

            async def stop_when_lost():
                await until(lambda: session.link is None, 1.0)
                trickle.cancel()

            trickling.start_soon(stop_when_lost)
            await controller.stream.send_all(b"\x80\x00")
            while True:
                await trio.sleep(5)
                await controller.stream.send_all(b"x" * 40)
    assert 45 <= trio.current_time() <= 52


async def test_record_that_does_not_verify_costs_the_link_and_not_the_session(nursery, capsys):
    """Anybody on the path can inject bytes; only the holder of the keys can end a session."""
    house = House(nursery)
    controller = await house.welcome()
    call = controller.start(sh("read line; echo $line", stdin=True))
    await trio.testing.wait_all_tasks_blocked()
    await controller.stream.send_all(b"\x00\x20" + b"x" * 32)
    await controller.over.wait()
    assert 'reason="record refused' in capsys.readouterr().err
    await controller.resume(house)
    await controller.send(call, b"still here\n")
    controller.end(call)
    assert (await call.wait()).exit == 0
    assert call.out == b"still here\n"


async def test_record_too_short_for_its_tag_costs_the_link_and_not_the_session(nursery):
    house = House(nursery)
    controller = await house.welcome()
    await controller.stream.send_all(b"\x00\x05")
    await controller.over.wait()
    await controller.resume(house)
    assert (await controller.ask(Info())).refusal is None


async def test_replayed_record_costs_the_link_and_is_not_carried_out_again(nursery, tmp_path):
    house = House(nursery)
    controller = await house.welcome()
    sent: list[bytes] = []
    encrypt = controller.transport.encrypt
    controller.transport.encrypt = lambda plaintext: sent.append(encrypt(plaintext)) or sent[-1]
    await controller.ask(sh(f"echo x >> {tmp_path}/runs"))
    await controller.stream.send_all(sent[0])
    await controller.over.wait()
    await controller.resume(house)
    await controller.ask(Info())
    assert (tmp_path / "runs").read_text() == "x\n"


async def test_goodbye_is_said_before_the_link_ends(nursery):
    house = House(nursery)
    controller = await house.welcome()
    (session,) = house.sessions.sessions
    with trio.fail_after(5):
        await session.link.say_goodbye("stopping", "the agent is stopping")
        await controller.over.wait()
    assert [(goodbye.code, goodbye.text) for goodbye in controller.goodbyes] == [("stopping", "the agent is stopping")]


async def test_goodbye_to_a_peer_that_does_not_read_takes_a_second_at_most(nursery):
    house = House(nursery)
    controller = await house.welcome(socket_pair)
    controller.start(sh("exec yes"))
    await trio.sleep(0.05)
    controller.freeze()
    (session,) = house.sessions.sessions
    await trio.sleep(0.1)
    started = trio.current_time()
    await session.link.say_goodbye("stopping", "")
    assert trio.current_time() - started < 1.5
    await until(lambda: session.link is None)
    for process in house.supervisor.processes:
        process.kill_tree()


def process_state(pid):
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].split()[0]


@pytest.mark.parametrize("reads", ["nothing", "but never consumes"])
async def test_peer_that_does_not_take_output_blocks_the_command_and_costs_no_memory(nursery, reads):
    house = House(nursery)
    controller = await house.welcome(socket_pair)
    controller.consumes = False
    call = controller.start(sh("echo $$; exec yes"))
    pid = int((await call.wait_output()).partition(b"\n")[0])
    (session,) = house.sessions.sessions
    if reads == "nothing":
        controller.freeze()
    number = call.number
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def written():
        with open(f"/proc/{pid}/io", "rb") as file:
            return dict(line.split(b": ") for line in file.read().splitlines())[b"wchar"]

    last = None
    while last != (last := written()):  # noqa: ASYNC110
        await trio.sleep(0.1)
    assert process_state(pid) in (b"S", b"D"), "yes is blocked in write()"
    assert session.protocol.retained_bytes < MIB
    assert session.protocol._channels[number].queued_bytes <= 2 * QUEUE_MAX_BYTES
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096, "KiB"
    assert is_alive(pid)
    for process in house.supervisor.processes:
        process.kill_tree()


async def test_peer_that_never_acknowledges_bounds_what_is_kept_for_it(nursery, monkeypatch):
    """It grants credit without end, and every frame has to be kept for a resumption."""
    house = House(nursery)
    controller = await house.welcome(socket_pair)
    protocol = controller.protocol
    monkeypatch.setattr(protocol._outbox, "say_ack", lambda received: None)
    call = controller.start(sh("exec yes"))
    (session,) = house.sessions.sessions
    last = -1
    with trio.fail_after(20):
        while last != (last := len(call.out)) or last == 0:  # noqa: ASYNC110
            await trio.sleep(0.2)
    assert session.protocol.retained_bytes <= 33 * MIB
    assert not session.protocol.has_data_to_send
    for process in house.supervisor.processes:
        process.kill_tree()


async def test_what_others_have_queued_is_not_all_written_with_one_answer(nursery, monkeypatch):
    """However much the socket takes: more than one sender's share is left to the writer, who lets others run."""
    house = House(nursery, handle=never)
    controller = await house.welcome(socket_pair)
    calls = [controller.start(Info()) for _ in range(8)]
    (session,) = house.sessions.sessions
    await until(lambda: len(session._channels) == len(calls))
    await trio.testing.wait_all_tasks_blocked()
    for call in calls:
        session.protocol.send_data(call.number, bytes(WINDOW_INITIAL_BYTES))
    written = []
    monkeypatch.setattr(os, "write", lambda descriptor, records: written.append(len(records)) or len(records))
    assert not session.link.write_now()
    assert QUEUE_MAX_BYTES <= sum(written) < 2 * QUEUE_MAX_BYTES < len(calls) * WINDOW_INITIAL_BYTES
    assert session.protocol.has_data_to_send


async def test_small_command_overtakes_a_bulk_transfer(nursery, tmp_path):
    """In records, so that no machine is too slow for it: an answer waits for what is queued and no more."""
    (tmp_path / "bulk").write_bytes(b"\0" * 24 * MIB)
    house = House(nursery)
    controller = await house.welcome(socket_pair)
    bulk = controller.start(Get(bytes(tmp_path / "bulk")))
    await bulk.wait_output(2 * MIB)
    began = len(bulk.out)
    small = await controller.ask(Info())
    between = len(bulk.out) - began
    assert small.result is not None
    assert between < 4 * MIB, "what the socket and the queue of one channel hold"
    assert not bulk.done.is_set()
    await bulk.wait()
    assert bulk.result.size == 24 * MIB


async def test_several_bulk_transfers_share_a_link(nursery, tmp_path):
    (tmp_path / "bulk").write_bytes(b"\0" * 4 * MIB)
    house = House(nursery)
    controller = await house.welcome(socket_pair)
    calls = [controller.start(Get(bytes(tmp_path / "bulk"))) for _ in range(4)]
    await calls[0].wait_output(2 * MIB)
    assert all(len(call.out) > MIB // 2 for call in calls)
    for call in calls:
        assert (await call.wait()).size == 4 * MIB


async def test_links_that_read_into_one_buffer_do_not_mix(nursery, tmp_path):
    """Four controllers upload at once; what the first has read is decrypted before another reads."""
    house = House(nursery)
    contents = [bytes([number]) * (6 * MIB + number) for number in range(4)]

    async def upload(number):
        call = await controllers[number].ask(Put(bytes(tmp_path / str(number))), contents[number])
        assert call.refusal is None

    controllers = [await house.welcome(socket_pair) for _ in contents]
    async with trio.open_nursery() as uploads:
        for number in range(len(contents)):
            uploads.start_soon(upload, number)
    assert [(tmp_path / str(number)).read_bytes() for number in range(len(contents))] == contents
    assert all(session.link is not None for session in house.sessions.sessions), "no record was refused on the way"


async def test_peer_that_has_always_more_to_say_lets_others_run(nursery, tmp_path, monkeypatch):
    """No more reads than a turn has, and then everybody else is asked; a link's two turns may meet."""
    small = bytearray(4096)
    monkeypatch.setattr(_link, "_view", memoryview(small))
    turns = [0]
    read = os.readv

    def count(descriptor, buffers):
        got = read(descriptor, buffers)
        turns[-1] += got == len(small)
        return got

    async def tick():
        while True:
            turns.append(0)
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(os, "readv", count)
    controller = await House(nursery).welcome(socket_pair)
    nursery.start_soon(tick)
    call = await controller.ask(Put(bytes(tmp_path / "file")), b"x" * MIB)
    assert call.result.size == MIB
    assert sum(turns) > 100
    assert 1 < max(turns) <= 2 * _link._READS_A_TURN


async def test_link_that_was_ended_is_not_read_on(nursery, tmp_path, monkeypatch):
    """A record that is refused ends the link, also where the next read would not have waited."""
    small = bytearray(4096)
    monkeypatch.setattr(_link, "_view", memoryview(small))
    house = House(nursery)
    controller = await house.welcome(socket_pair)
    session = house.sessions.sessions[0]
    receive = session.link._transport.receive_data
    seen = []

    def refuse(data):
        seen.append(len(data))
        if len(seen) == 2:
            raise RecordInvalid("the tag does not verify")
        return receive(data)

    monkeypatch.setattr(session.link._transport, "receive_data", refuse)
    call = controller.start(Put(bytes(tmp_path / "file")))
    nursery.start_soon(controller.send, call, b"x" * MIB)
    await until(lambda: session.link is None)
    assert len(seen) == 2


async def test_what_was_queued_at_the_loss_of_a_link_is_sent_on_the_next(nursery):
    house = House(nursery)
    controller = await house.welcome(socket_pair)
    call = controller.start(sh("head -c 2000000 /dev/zero"))
    await call.wait_output()
    controller.freeze()
    await trio.sleep(0.02)
    await controller.resume(house, socket_pair)
    assert (await call.wait()).exit == 0
    assert call.out == b"\0" * 2_000_000


@pytest.mark.parametrize("most", [None, 5, 0], ids=["all of it", "a part of it", "nothing of it"])
async def test_answer_is_written_at_once_and_what_the_socket_does_not_take_by_the_writer(nursery, monkeypatch, most):
    taken = []

    def write(descriptor, data):
        taken.append(len(data))
        if most == 0:
            raise BlockingIOError
        return os.write(descriptor, data[:most])

    monkeypatch.setattr(_link, "os", SimpleNamespace(readv=os.readv, write=write))
    house = House(nursery)
    controller = await house.welcome(socket_pair)
    for _ in range(3):
        assert (await controller.ask(Info())).refusal is None
    call = await controller.ask(sh("echo out; echo err >&2"))
    assert (call.out, call.err, call.result.exit) == (b"out\n", b"err\n", 0)
    assert len(taken) >= 2  # not while the writer is at work
    assert min(taken) > 20


@pytest.mark.parametrize("most", [5, 0], ids=["a part of each", "nothing"])
async def test_answers_of_one_turn_keep_their_order_where_the_socket_takes_none_whole(nursery, monkeypatch, most):
    """What is left of one goes before the next, or the controller meets a record that does not verify."""

    def write(descriptor, data):
        if most == 0:
            raise BlockingIOError
        return os.write(descriptor, data[:most])

    monkeypatch.setattr(_link, "os", SimpleNamespace(readv=os.readv, write=write))
    house = House(nursery)
    controller = await house.welcome(socket_pair)
    for _ in range(5):
        calls = [controller.start(Info()) for _ in range(8)]
        for call in calls:
            await call.wait()
            assert call.refusal is None
    assert not controller.over.is_set()
