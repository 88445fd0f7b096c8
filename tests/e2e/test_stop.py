"""SIGTERM lets what runs end; a second one does not."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from tests.e2e.helpers import RESUME_SECONDS, RUN_SECONDS, eventually, finish


def test_agent_told_to_stop_lets_a_running_command_end_and_takes_no_new_one(lab):
    controller = lab.controller()
    agent = lab.agent(controller)
    started, go = lab.directory / "started", lab.directory / "go"
    process = lab.keep(
        controller.start_pyinfra(
            agent.name, "exec", "--", f"touch {started}; until test -e {go}; do sleep 0.05; done; echo to the end"
        )
    )
    eventually(started.exists, RUN_SECONDS, "the command's start")

    agent.process.send_signal(signal.SIGTERM)
    eventually(lambda: "stopping" in agent.log.read_text(), 5, "the agent's word that it stops")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(agent.address, timeout=2).close()
    assert agent.process.poll() is None
    go.touch()

    assert agent.process.wait(5) == 0
    done = finish(process)
    assert done.status == 0, done.text
    assert "] to the end\n" in done.text
    assert "Traceback" not in done.text + agent.log.read_text()
    assert agent.log.read_text().splitlines()[-1].endswith(" stopped")


def test_agent_told_to_stop_twice_ends_at_once_and_the_controller_says_why(lab):
    controller = lab.controller()
    agent = lab.agent(controller)
    pid = lab.directory / "pid"
    process = lab.keep(
        controller.start_pyinfra(agent.name, "server.shell", f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 60")
    )
    eventually(pid.exists, RUN_SECONDS, "the command's start")
    try:
        agent.process.send_signal(signal.SIGTERM)
        eventually(lambda: "stopping" in agent.log.read_text(), 5, "the agent's word that it stops")
        second = time.monotonic()
        assert agent.stop(seconds=2) == 128 + signal.SIGTERM

        done = finish(process)
        assert time.monotonic() - second < RESUME_SECONDS + 5
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)
    assert done.status != 0
    assert "Traceback" not in done.text + agent.log.read_text()
    assert f"connection to 127.0.0.1:{agent.port} lost" in done.text
    assert "whether it has finished is not known" in done.text


def test_agent_without_anything_to_do_stops_at_once(lab):
    controller = lab.controller()
    agent = lab.agent(controller)
    agent.serves(controller)
    started = time.monotonic()

    assert agent.stop() == 0

    assert time.monotonic() - started < 2
    assert "Traceback" not in agent.log.read_text()


def test_agent_starts_again_on_the_port_of_one_that_has_just_stopped(lab):
    controller = lab.controller()
    agent = lab.agent(controller)
    assert controller.pyinfra(agent.name, "exec", "--", "true").status == 0
    assert agent.stop() == 0

    lab.agent(listen=f"127.0.0.1:{agent.port}").serves(controller)
