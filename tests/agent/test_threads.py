"""Blocking calls in threads: short ones are waited for, long ones are not, and none is cut short."""

import threading

import pytest
import trio

from pyinfra_agent import _threads
from pyinfra_agent._refusal import FileRefused
from pyinfra_agent._threads import at_once, in_thread, in_thread_briefly
from pyinfra_agent_protocol import RequestRefused

EITHER = pytest.mark.parametrize("run", [in_thread, in_thread_briefly])


@pytest.fixture(autouse=True)
def quick_so_far(monkeypatch):
    monkeypatch.setattr(_threads, "_last_seconds", 0.0)


@pytest.fixture
def patient(monkeypatch):
    """A moment that no machine is too busy for."""
    monkeypatch.setattr(_threads, "_MOMENT_SECONDS", 10.0)


@EITHER
async def test_result_is_returned_from_another_thread(run):
    assert await run(threading.get_ident) != threading.get_ident()


@EITHER
async def test_refusal_becomes_the_requests(run):
    def refuse():
        raise FileRefused("not-found", "no such file")

    with pytest.raises(RequestRefused) as caught:
        await run(refuse)
    assert (caught.value.code, caught.value.text) == ("not-found", "no such file")


@EITHER
@pytest.mark.parametrize("error", [TimeoutError, OSError, KeyError])
async def test_other_errors_are_raised_as_they_are(run, error):
    def fail():
        raise error("as it is")

    with pytest.raises(error, match="as it is"):
        await run(fail)


async def test_brief_call_lets_nothing_else_run(patient, nursery):
    others = []

    async def other():
        others.append(True)

    nursery.start_soon(other)
    assert await in_thread_briefly(lambda: list(others)) == []
    assert others == []


async def test_long_call_lets_others_run(nursery):
    go, went_on = threading.Event(), []

    async def other():
        went_on.append(True)
        go.set()

    nursery.start_soon(other)
    with trio.fail_after(10):
        assert await in_thread_briefly(lambda: go.wait(10))
    assert went_on == [True]


async def test_after_a_long_call_none_is_waited_for_until_one_was_brief(patient, monkeypatch, nursery):
    monkeypatch.setattr(_threads, "_last_seconds", 11.0)
    go = threading.Event()

    async def other():
        go.set()

    nursery.start_soon(other)
    with trio.fail_after(5):  # less than the moment that it would have waited
        assert await in_thread_briefly(lambda: go.wait(8))
    assert _threads._last_seconds < 10.0


def test_call_here_tells_whether_it_was_quick(monkeypatch):
    monkeypatch.setattr(_threads, "_QUICK_SECONDS", 60.0)
    assert at_once(lambda: 7) == (7, True)
    monkeypatch.setattr(_threads, "_QUICK_SECONDS", 0.0)
    assert at_once(lambda: 7) == (7, False)


def test_refusal_of_a_call_here_becomes_the_requests():
    def refuse():
        raise FileRefused("no-space", "the disk is full")

    with pytest.raises(RequestRefused) as caught:
        at_once(refuse)
    assert (caught.value.code, caught.value.text) == ("no-space", "the disk is full")


async def test_call_that_began_is_not_cut_short_by_a_cancel(nursery):
    go, ended = threading.Event(), []

    def call():
        go.wait(10)
        ended.append(True)
        return "done"

    with trio.CancelScope() as scope:
        nursery.start_soon(cancel_and_let_go, scope, go)
        assert await in_thread_briefly(call) == "done"
    assert ended == [True]


async def cancel_and_let_go(scope, go):
    scope.cancel()
    await trio.lowlevel.checkpoint()
    go.set()


async def test_nothing_begins_once_it_is_cancelled():
    begun = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await in_thread_briefly(lambda: begun.append(True))
    assert begun == []
    assert scope.cancelled_caught


async def test_more_calls_than_threads_all_end(nursery):
    ended = []

    async def one():
        ended.append(await in_thread_briefly(threading.get_ident))

    async with trio.open_nursery() as many:
        for _ in range(3 * _threads._THREADS_MOST):
            many.start_soon(one)
    assert len(ended) == 3 * _threads._THREADS_MOST
