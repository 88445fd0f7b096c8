"""Sessions across links: resumption, fencing, time to live, limits."""

from __future__ import annotations

import os

import pytest
import trio

from pyinfra_agent import _audit
from pyinfra_agent_protocol import CloseSession, ControllerPayload, Exec, Info, Initiator, Put
from pyinfra_agent_protocol._frames import FrameType, encode_header
from tests.agent.helpers import House, TestController, is_alive, sh, socket_pair, until


@pytest.fixture
def house(nursery):
    return House(nursery)


async def never(context, session, channel, request):
    """A handler that waits for what does not come."""
    await channel.cancelled.wait()


async def test_output_continues_exactly_after_a_link_was_lost(house):
    """Links are lost again and again while a command prints; nothing is missing and nothing comes twice."""
    controller = await house.welcome(socket_pair)
    call = controller.start(sh("i=0; while [ $i -lt 60000 ]; do echo $i; i=$((i+1)); done"))
    for size in (1, 20_000, 60_000, 150_000):
        await call.wait_output(size)
        await controller.cut()
        await controller.resume(house, socket_pair)
    assert (await call.wait()).exit == 0
    assert call.out == b"".join(b"%d\n" % number for number in range(60000))


async def test_input_continues_exactly_after_a_link_was_lost(house, nursery):
    controller = await house.welcome(socket_pair)
    call = controller.start(sh("cat", stdin=True))
    content = b"".join(b"%d\n" % number for number in range(200_000))

    async def feed():
        await controller.send(call, content)
        controller.end(call)

    nursery.start_soon(feed)
    for size in (1, 300_000, 900_000):
        await call.wait_output(size)
        await controller.cut()
        await controller.resume(house, socket_pair)
    assert (await call.wait()).exit == 0
    assert call.out == content


async def test_result_that_came_while_no_link_was_there_waits(house):
    controller = await house.welcome()
    call = controller.start(sh("read line; echo $line", stdin=True))
    await controller.send(call, b"hello\n")
    controller.end(call)
    await trio.testing.wait_all_tasks_blocked()
    await controller.cut()
    (session,) = house.sessions.sessions
    await until(lambda: session.is_idle)
    await controller.resume(house)
    assert (await call.wait()).exit == 0
    assert call.out == b"hello\n"


async def test_request_whose_link_was_lost_is_carried_out_once(house, tmp_path):
    controller = await house.welcome()
    call = controller.start(sh(f"echo x >> {tmp_path}/runs"))
    await trio.testing.wait_all_tasks_blocked()
    await controller.cut()
    await controller.resume(house)
    await call.wait()
    assert (tmp_path / "runs").read_text() == "x\n"


async def test_resume_of_what_never_was_is_unknown(house):
    assert (await TestController().join(house.connect(), resume=True)).session == "unknown"
    assert house.sessions.sessions == ()


@pytest.mark.parametrize("attempt", [1, 2])
async def test_attempt_that_is_not_newer_is_stale_and_harms_nothing(house, attempt):
    controller = await house.welcome()
    await controller.cut()
    await controller.resume(house)
    late = TestController(controller.key, controller.session)
    assert (await late.join(house.connect(), resume=True, attempt=attempt)).session == "stale"
    assert (await controller.ask(Info())).refusal is None


async def test_newer_attempt_replaces_a_link_that_lingers_half_open(house):
    """The old reader waits for bytes that never come, the old writer for a peer that never reads."""
    controller = await house.welcome(socket_pair)
    call = controller.start(sh("echo begun; exec yes"))
    await call.wait_output()
    old_stream = controller.stream
    # The controller's network is gone: nothing is read any more, nothing is written, and nobody says so.
    controller.freeze()
    (session,) = house.sessions.sessions
    await until(lambda: not session.protocol.has_data_to_send or session.protocol.retained_bytes > 500_000)
    with trio.fail_after(5):
        await controller.link(house.nursery, house.connect(socket_pair), resume=True)
    size = len(call.out)
    await call.wait_output(size + 100_000)
    assert set(call.out.split(b"\n")[1:-1]) == {b"y"}
    await old_stream.aclose()
    controller.cancel(call)
    assert (await call.wait()).reason == "cancelled"


async def test_of_two_newer_attempts_at_once_the_higher_wins(house, capsys):
    controller = await house.welcome()
    answers = {}

    async def try_again(attempt):
        rival = TestController(controller.key, controller.session)
        answers[attempt] = await rival.join(house.connect(), resume=True, attempt=attempt)

    async with trio.open_nursery() as rivals:
        rivals.start_soon(try_again, 3)
        rivals.start_soon(try_again, 2)
    assert answers[3].session == "resumed"
    assert answers[2].session in ("stale", "resumed")
    (session,) = house.sessions.sessions
    assert session.attempt == 3
    await trio.testing.wait_all_tasks_blocked()
    assert session.link is not None


async def test_newer_attempt_finds_a_link_whose_welcome_was_not_yet_read(house):
    """Between the decision and the welcome there is a moment in which a newer attempt can come."""
    controller = TestController()
    first = house.connect(trio.testing.lockstep_stream_pair)
    initiator = Initiator(controller.key)
    await first.send_all(initiator.data_to_send())
    while initiator.receive_data(bytes(await first.receive_some(4096))) is None:
        pass
    message, _ = initiator.finish(ControllerPayload(controller.session, 1, False).encode())
    await first.send_all(message)
    await trio.testing.wait_all_tasks_blocked()  # the agent now waits for us to read the welcome
    with trio.fail_after(5):
        assert (await controller.join(house.connect(), attempt=2)).session == "resumed"
    (session,) = house.sessions.sessions
    assert session.attempt == 2
    assert session.link is not None
    await first.aclose()


async def test_peer_that_does_not_take_its_welcome_is_dropped(nursery, autojump_clock, capsys):
    house = House(nursery)
    controller = TestController()
    stream = house.connect(trio.testing.lockstep_stream_pair)
    initiator = Initiator(controller.key)
    await stream.send_all(initiator.data_to_send())
    while initiator.receive_data(bytes(await stream.receive_some(4096))) is None:
        pass
    message, _ = initiator.finish(ControllerPayload(controller.session, 1, False).encode())
    await stream.send_all(message)
    (session,) = house.sessions.sessions
    await until(lambda: session.link is None)
    assert trio.current_time() == pytest.approx(10, abs=0.1)
    assert "the welcome was not taken" in capsys.readouterr().err


async def test_wrong_resume_point_ends_the_session(house):
    controller = await house.welcome()
    await controller.ask(Info())
    await controller.cut()
    assert (await controller.join(house.connect(), resume=True, received=10**6)).session == "unknown"
    assert house.sessions.sessions == ()


async def test_lost_session_expires_after_its_time_to_live(nursery, autojump_clock, capsys):
    house = House(nursery)
    controller = await house.welcome()
    await controller.cut()
    await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(599)
    assert len(house.sessions.sessions) == 1
    await trio.sleep(1.1)
    assert house.sessions.sessions == ()
    assert "session-ended" in capsys.readouterr().err
    assert (await controller.join(house.connect(), resume=True)).session == "unknown"


async def test_time_to_live_begins_anew_with_each_lost_link(nursery, autojump_clock):
    house = House(nursery)
    controller = await house.welcome()
    for _ in range(3):
        await controller.cut()
        await trio.sleep(599)
        await controller.resume(house)
    assert len(house.sessions.sessions) == 1


async def test_time_to_live_of_a_link_that_was_replaced_does_not_cut_short_the_next(nursery, autojump_clock):
    house = House(nursery)
    controller = await house.welcome()
    old = controller.stream
    controller.freeze()
    await controller.resume(house)
    await trio.sleep(590)
    await controller.cut()
    await trio.sleep(300)
    assert len(house.sessions.sessions) == 1
    await trio.sleep(301)
    assert house.sessions.sessions == ()
    await old.aclose()


async def test_resumed_session_does_not_expire_under_its_link(nursery, autojump_clock):
    house = House(nursery)
    controller = await house.welcome()
    await controller.cut()
    await trio.sleep(1)
    await controller.resume(house)
    await trio.sleep(2000)
    assert (await controller.ask(Info())).refusal is None


async def test_no_task_is_left_of_links_that_came_and_went(house):
    controller = await house.welcome()
    await trio.testing.wait_all_tasks_blocked()
    before = trio.lowlevel.current_statistics().tasks_living
    for _ in range(50):
        await controller.cut()
        await controller.resume(house)
    await trio.testing.wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == before


async def test_no_task_is_left_of_sessions_that_were_dropped(nursery):
    house = House(nursery, sessions_per_key_max=2)
    before = trio.lowlevel.current_statistics().tasks_living
    keeper = TestController()
    for _ in range(20):
        controller = await house.welcome(key=keeper.key)
        await controller.cut()
    await trio.testing.wait_all_tasks_blocked()
    assert len(house.sessions.sessions) == 2
    assert trio.lowlevel.current_statistics().tasks_living == before + 2


async def test_expiry_ends_the_session_and_not_its_command(nursery, tmp_path):
    """Its output is thrown away, which it does not notice: no SIGPIPE, no full pipe."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    house = House(nursery, session_ttl_seconds=0.05)
    controller = await house.welcome()
    call = controller.start(sh(f"echo $$; read go < {fifo}; head -c 3000000 /dev/zero; echo $? > {tmp_path}/status"))
    pid = int(await call.wait_line())
    await controller.cut()
    (session,) = house.sessions.sessions
    await until(lambda: not house.sessions.sessions)
    assert session.is_over
    assert is_alive(pid)
    await trio.to_thread.run_sync(fifo.write_text, "go\n")
    await until(lambda: session.is_idle)
    assert (tmp_path / "status").read_text() == "0\n"


async def test_expiry_stops_a_transfer_and_leaves_nothing(nursery, tmp_path):
    house = House(nursery, session_ttl_seconds=0.05)
    controller = await house.welcome()
    put = controller.start(Put(bytes(tmp_path / "f")))
    await controller.send(put, b"x" * 100_000)
    await trio.testing.wait_all_tasks_blocked()
    (session,) = house.sessions.sessions
    await controller.cut()
    await until(lambda: not house.sessions.sessions and session.is_idle)
    assert list(tmp_path.iterdir()) == []


async def test_timeout_holds_after_the_session_has_ended(nursery):
    """A deadline covers the command's whole life, whoever still watches."""
    house = House(nursery, session_ttl_seconds=0.02, grace_seconds=1.0)
    controller = await house.welcome()
    call = controller.start(sh("echo $$; exec sleep 600", timeout_ms=300))
    pid = int(await call.wait_line())
    await controller.cut()
    await until(lambda: not house.sessions.sessions)
    assert is_alive(pid)
    await until(lambda: not is_alive(pid))


async def test_windows_are_given_back_when_a_session_ends(nursery):
    house = House(nursery, handle=never)
    controller = await house.welcome()
    call = controller.start(Put(b"/nowhere"))
    with trio.move_on_after(0.05):
        await controller.send(call, b"x" * 1_000_000)
    (session,) = house.sessions.sessions
    house.sessions.drop(session)
    assert session.protocol._budget.reserved_bytes == 0
    assert house.sessions._budget.reserved_bytes == 0


async def test_protocol_error_costs_the_session_and_says_why(house):
    controller = await house.welcome()
    await controller.send_plaintext(encode_header(FrameType.DATA, 0, 99, 1) + b"x")
    with trio.fail_after(5):
        await controller.over.wait()
    assert [goodbye.code for goodbye in controller.goodbyes] == ["frame"]
    assert house.sessions.sessions == ()
    assert (await controller.join(house.connect(), resume=True)).session == "unknown"


async def test_goodbye_of_a_controller_is_logged_and_cannot_forge_a_line(house, capsys):
    controller = await house.welcome()
    controller.protocol.send_goodbye("x\nforged line", "text")
    controller.wake()
    await trio.testing.wait_all_tasks_blocked()
    assert len(capsys.readouterr().err.splitlines()) == 3


async def test_lost_and_idle_session_makes_room_the_oldest_first(nursery):
    house = House(nursery, sessions_per_key_max=3)
    key = TestController().key
    controllers = [await house.welcome(key=key) for _ in range(3)]
    for index in (1, 0, 2):
        await controllers[index].cut()
        await trio.testing.wait_all_tasks_blocked()
    await house.welcome(key=key)
    assert {session.ident for session in house.sessions.sessions} > {controllers[0].session, controllers[2].session}
    await house.welcome(key=key)
    left = {session.ident for session in house.sessions.sessions}
    assert controllers[0].session not in left
    assert controllers[2].session in left


async def test_session_with_a_link_or_a_running_request_never_makes_room(nursery):
    house = House(nursery, handle=never, sessions_per_key_max=2)
    key = TestController().key
    linked = await house.welcome(key=key)
    busy = await house.welcome(key=key)
    busy.start(Info())
    await trio.testing.wait_all_tasks_blocked()
    await busy.cut()
    assert (await TestController(key).join(house.connect())).session == "full"
    assert {session.ident for session in house.sessions.sessions} == {linked.session, busy.session}


async def test_session_with_an_answer_that_was_not_acknowledged_goes_last(nursery):
    house = House(nursery, sessions_per_key_max=2)
    key = TestController().key
    holding = await house.welcome(key=key)
    holding.start(Exec((b"true",)))
    await trio.testing.wait_all_tasks_blocked()
    await holding.cut()
    await until(lambda: house.sessions.sessions[0].is_idle)
    idle = await house.welcome(key=key)
    await idle.cut()
    await trio.testing.wait_all_tasks_blocked()
    await house.welcome(key=key)
    left = {session.ident for session in house.sessions.sessions}
    assert holding.session in left
    assert idle.session not in left


async def test_limit_over_all_keys_holds(nursery):
    house = House(nursery, sessions_max=2)
    first, _second = await house.welcome(), await house.welcome()
    assert (await TestController().join(house.connect())).session == "full"
    await first.cut()
    await trio.testing.wait_all_tasks_blocked()
    stream = house.connect()  # kept: a stream that is garbage is a closed one
    assert (await TestController().join(stream)).session == "new"
    assert len(house.sessions.sessions) == 2


async def test_refused_session_leaves_nothing_behind(nursery):
    house = House(nursery, sessions_max=1)
    await house.welcome()
    for _ in range(5):
        stream = house.connect()
        assert (await TestController().join(stream)).session == "full"
        assert await stream.receive_some(10) == b""
    assert len(house.sessions.sessions) == 1


async def test_request_after_close_session_is_not_carried_out(house, tmp_path):
    controller = await house.welcome()
    controller.start(CloseSession())
    controller.start(sh(f"touch {tmp_path}/late"))
    await controller.over.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert not house.sessions.sessions


async def test_dropping_twice_and_a_newer_session_of_the_same_name_do_no_harm(nursery):
    house = House(nursery)
    controller = await house.welcome()
    (old,) = house.sessions.sessions
    house.sessions.drop(old)
    again = TestController(controller.key, controller.session)
    assert (await again.join(house.connect())).session == "new"
    house.sessions.drop(old)
    house.sessions.lose(old)
    (new,) = house.sessions.sessions
    assert new is not old


def test_user_without_a_name_is_shown_by_its_number(monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(_audit.pwd, "getpwuid", unknown)
    _audit.own_name.cache_clear()
    assert _audit.own_name().isdigit()
    _audit.own_name.cache_clear()
