"""The handler of SIGINT in front of pyinfra's own, and requests that are ended from outside."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import gevent
import pyinfra
import pytest
from gevent.event import Event

from pyinfra_agent_connector import client as client_module
from pyinfra_agent_connector._errors import CommandTimeout
from pyinfra_agent_connector._interrupt import Interrupts
from tests.connector.helpers import FakeAgent, Output, client_of, until


class Client:
    """Something to be closed."""

    def close(self):
        pass


@pytest.fixture
def interrupts():
    return Interrupts()


@pytest.fixture
def calls():
    """Signals that pyinfra's handler got."""
    return []


@pytest.fixture
def pyinfras_handler(monkeypatch, calls):
    """A process as pyinfra's command makes it."""

    def handle(number, frame):
        calls.append(number)

    monkeypatch.setattr(pyinfra, "is_cli", True)
    before = signal.signal(signal.SIGINT, handle)
    yield handle
    signal.signal(signal.SIGINT, before)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


# --- whose handler it is ---


def test_library_keeps_its_own_handler(interrupts, pyinfras_handler, monkeypatch):
    monkeypatch.setattr(pyinfra, "is_cli", False)
    interrupts.chain(Client())
    assert signal.getsignal(signal.SIGINT) is pyinfras_handler


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN, signal.SIG_DFL])
def test_handler_goes_in_front_of_none_but_a_programs_own(interrupts, pyinfras_handler, handler):
    signal.signal(signal.SIGINT, handler)
    interrupts.chain(Client())
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.usefixtures("pyinfras_handler")
def test_handler_is_not_touched_from_a_thread(interrupts, pyinfras_handler):
    client = Client()
    thread = threading.Thread(target=interrupts.chain, args=[client])
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is pyinfras_handler


def test_handler_is_there_once_while_there_is_a_client(interrupts, pyinfras_handler, calls):
    first, second = Client(), Client()
    interrupts.chain(first)
    interrupts.chain(second)
    interrupts.chain(second)
    interrupts.release(first)
    interrupts.release(first)
    assert signal.getsignal(signal.SIGINT) is not pyinfras_handler
    interrupt()
    assert calls == [signal.SIGINT]
    interrupts.release(second)
    assert signal.getsignal(signal.SIGINT) is pyinfras_handler


def test_handler_comes_back_with_the_next_client(interrupts, pyinfras_handler):
    client = Client()
    interrupts.chain(client)
    interrupts.release(client)
    interrupts.chain(client)
    assert signal.getsignal(signal.SIGINT) is not pyinfras_handler


def test_handler_that_somebody_put_in_front_stays_there(interrupts, pyinfras_handler, calls):
    """And a later client makes no circle of the two."""
    client = Client()
    interrupts.chain(client)
    ours = signal.getsignal(signal.SIGINT)

    def foreign(number, frame):
        ours(number, frame)

    signal.signal(signal.SIGINT, foreign)
    interrupts.release(client)
    interrupts.chain(client)
    assert signal.getsignal(signal.SIGINT) is foreign
    interrupt()
    assert calls == [signal.SIGINT]


# --- what it does ---


@pytest.mark.usefixtures("pyinfras_handler")
def test_interrupt_ends_greenlets_that_wait_and_no_other(interrupts):
    client = Client()
    interrupts.chain(client)
    ended, waited = [], Event()

    def wait():
        try:
            with interrupts.interruptible(), interrupts.interruptible():
                waited.wait()
        except gevent.GreenletExit:
            ended.append("waiting")

    waiting = gevent.spawn(wait)
    other = gevent.spawn(waited.wait)
    gevent.sleep(0)
    interrupt()
    waiting.join(1)
    assert ended == ["waiting"]
    assert not other.ready()
    waited.set()
    other.join()


@pytest.mark.usefixtures("pyinfras_handler")
def test_nothing_is_begun_after_an_interrupt_but_by_who_leaves(interrupts):
    client = Client()
    interrupts.chain(client)
    interrupt()
    with pytest.raises(KeyboardInterrupt), interrupts.interruptible():
        pytest.fail("the main greenlet went on")
    went_on = []

    def begin():
        with interrupts.interruptible():
            went_on.append("waiting")

    def leave():
        with interrupts.leaving():
            begin()

    gevent.joinall([gevent.spawn(begin)])
    assert went_on == []
    gevent.joinall([gevent.spawn(leave)])
    assert went_on == ["waiting"]


def test_second_interrupt_reaches_pyinfra_too(interrupts, pyinfras_handler, calls):
    client = Client()
    interrupts.chain(client)
    interrupt()
    interrupt()
    assert calls == [signal.SIGINT] * 2


@pytest.mark.parametrize("name", ["pyinfra_agent_connector._link", "pyinfra_agent_protocol._session"])
def test_interrupt_in_the_middle_of_a_link_is_raised_by_the_event_loop(interrupts, pyinfras_handler, calls, name):
    """An exception there would cost the link, and with it the cancellations."""
    client = Client()
    interrupts.chain(client)
    seen = []
    code = (
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nfor _ in range(1000): pass\nseen.append(list(calls))"
    )
    exec(code, {"__name__": name, "seen": seen, "calls": calls})
    assert seen == [[]]
    gevent.sleep(0.001)
    assert calls == [signal.SIGINT]


def test_client_connects_and_closes_with_the_handler(pyinfras_handler, agent, interrupts, monkeypatch):
    # Not the process's own: a client of an earlier test may be there until the next collection of garbage.
    monkeypatch.setattr(client_module, "interrupts", interrupts)
    client = client_of(agent.port, agent.identity)
    client.connect()
    assert signal.getsignal(signal.SIGINT) is not pyinfras_handler
    client.close()
    assert signal.getsignal(signal.SIGINT) is pyinfras_handler


# --- requests that are ended from outside ---


def test_killed_greenlet_cancels_its_command_and_leaves_nothing(client):
    output = Output()
    job = gevent.spawn(client.run, ["sh", "-c", "echo $$; exec sleep 60"], on_output=output)
    until(lambda: output.stdout.endswith(b"\n"))
    job.kill()
    until(lambda: not Path(f"/proc/{int(output.stdout)}").exists())
    until(lambda: not client._connection._calls)
    assert client.run(["true"]).exit == 0


def test_command_of_an_agent_that_is_silent_after_the_deadline_is_given_up(monkeypatch):
    monkeypatch.setattr(client_module, "_LATE_SECONDS", 0.1)
    cancelled = []

    def serve(conversation):
        conversation.open()
        conversation.request()
        cancelled.append(conversation.wait_cancel())

    with FakeAgent(serve) as fake:
        client = client_of(fake.port)
        client.connect()
        with pytest.raises(CommandTimeout, match=r"^127\.0\.0\.1:\d+: nap did not end within 0\.1 s, and the agent"):
            client.run(["sleep", "60"], timeout_seconds=0.1, what="nap")
        until(lambda: cancelled)
        client._connection.drop()
