"""A side that stands still, as a laptop with its lid closed does: the other notices, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess

import gevent

from tests.faults.helpers import NumberedLines, connected, until
from tests.faults.proxy import DOWN, Fault

STANDSTILL_SECONDS = 3.0


def test_agent_that_stood_still_is_given_up_and_resumed(impatient, lab, told, tmp_path):
    """The kernel of a stopped process still accepts connections: only silence tells."""
    controller = lab.controller()
    agent = lab.agent(controller)
    lines = NumberedLines(tmp_path)
    with connected(agent.port, controller, notify=told.append, connect_seconds=1.0) as client:
        working = gevent.spawn(lines.run, client)
        until(lines.counter.exists)
        os.kill(agent.process.pid, signal.SIGSTOP)
        until(lambda: told)
        os.kill(agent.process.pid, signal.SIGCONT)
        working.get(timeout=30)
    assert "silent" in told[0]
    assert "resumed: nothing was lost" in told[-1]


def test_controller_that_stood_still_blames_nobody(impatient, proxy, controller, told, tmp_path):
    """A frozen hub hears nothing; that is no silence of the agent's."""
    lines = NumberedLines(tmp_path)
    with connected(proxy.port, controller, notify=told.append) as client:
        proxy.plan(Fault.DELAY, DOWN, 100, seconds=0.1)
        working = gevent.spawn(lines.run, client)
        until(lines.counter.exists)
        # A process of its own stops this one, and starts it again.
        subprocess.run(["sh", "-c", f"kill -STOP $PPID; sleep {STANDSTILL_SECONDS}; kill -CONT $PPID"], check=True)
        working.get(timeout=30)
    assert told == []
