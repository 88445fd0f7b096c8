"""The watchdog goes hungry as soon as a part of the agent does not answer, and not because one fails."""

from __future__ import annotations

import errno
import itertools
import os
import signal

import pytest
import trio
import trio.testing

from pyinfra_agent import _watchdog
from pyinfra_agent._spawn import SpawnFailed
from pyinfra_agent._supervisor import Supervisor
from pyinfra_agent._watchdog import ObservedListener, feed_watchdog, try_to_spawn


@pytest.fixture
def meals(monkeypatch):
    """When the watchdog was fed, and what was said."""
    eaten = []
    monkeypatch.setattr(_watchdog, "notify_alive", lambda status: eaten.append((trio.current_time(), status)))
    return eaten


@pytest.fixture
async def listener():
    [made] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with ObservedListener(made) as observed:
        yield observed


async def answer():
    await trio.lowlevel.checkpoint()


async def test_watchdog_is_fed_thrice_in_its_time_while_all_parts_answer(meals, autojump_clock):
    with trio.move_on_after(60.5):
        await feed_watchdog(60, {"accept": answer, "spawn": answer}, lambda: "fine")
    times = [time for time, _ in meals]
    assert [later - earlier for earlier, later in itertools.pairwise(times)] == pytest.approx([20, 20, 20])
    assert {status for _, status in meals} == {"fine"}


async def test_part_that_does_not_answer_starves_the_watchdog_until_it_does(meals, autojump_clock, capsys):
    is_back = trio.Event()
    with trio.move_on_after(200):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed_watchdog, 60, {"accept": answer, "spawn": is_back.wait}, lambda: "fine")
            await trio.sleep(150)
            assert meals == []
            assert "no-answer part=spawn seconds=20" in capsys.readouterr().err
            is_back.set()
            await trio.sleep(25)
            assert meals
            nursery.cancel_scope.cancel()


async def test_idle_listener_is_served(listener):
    with trio.fail_after(5):
        await listener.wait_served()


async def test_connection_that_nobody_takes_is_noticed_until_it_is_taken(listener, autojump_clock):
    async with await trio.open_tcp_stream(*listener.socket.getsockname()):
        with trio.move_on_after(30) as scope:
            await listener.wait_served()
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.wait_served)
            await trio.testing.wait_all_tasks_blocked()
            listener.note_turn()


async def test_listener_that_was_closed_keeps_nobody_waiting(listener):
    """An agent that drains listens no more, and is in order."""
    await listener.aclose()
    with trio.fail_after(5):
        await listener.wait_served()


async def test_command_is_started_seen_to_end_and_let_go():
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(nursery)
        with trio.fail_after(10):
            await try_to_spawn(supervisor)
        assert supervisor.processes == ()
        nursery.cancel_scope.cancel()


async def test_command_that_cannot_start_is_an_answer(monkeypatch):
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(nursery)

        def fail(*_):
            raise SpawnFailed("resources", errno.EAGAIN, "no more processes")

        monkeypatch.setattr(supervisor, "spawn", fail)
        await try_to_spawn(supervisor)


async def test_trial_that_the_end_of_the_agent_interrupts_is_no_error(monkeypatch, tmp_path):
    """An agent that hands over stops its supervisor first; an exception then would lose every session."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(_watchdog, "_PROGRAM", bytes(program))
    async with trio.open_nursery() as trials:
        async with trio.open_nursery() as agents:
            supervisor = Supervisor(agents)
            trials.start_soon(try_to_spawn, supervisor)
            await trio.testing.wait_all_tasks_blocked()
            agents.cancel_scope.cancel()
        trials.cancel_scope.cancel()
    [process] = supervisor.processes
    assert len(supervisor.discarding) == 2
    os.kill(process.pid, signal.SIGKILL)
    await trio.to_thread.run_sync(os.waitpid, process.pid, 0)
    for descriptor in supervisor.discarding:
        os.close(descriptor)
