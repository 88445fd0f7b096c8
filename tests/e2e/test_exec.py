"""`pyinfra-agent exec` between a served agent and a user's shell."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from gevent import subprocess as green_subprocess

from tests.e2e.helpers import AGENT, eventually, run
from tests.faults.proxy import FaultProxy


@pytest.fixture
def agent(shared):
    return shared[0]


@pytest.fixture
def controller(shared):
    return shared[1]


def failed_with(done, *fragments):
    assert done.status == 255
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    for fragment in ("pyinfra-agent: ", *fragments):
        assert fragment in done.stderr


def test_exec_pins_the_agents_key_at_first_use_and_refuses_another(agent, lab):
    host = f"127.0.0.1:{agent.port}"
    mallory = lab.controller("mallory")
    agent.authorize(mallory)
    done = run(AGENT, "exec", "--home", mallory.home, host, "--", "echo", "served")
    assert (done.status, done.stdout, done.stderr) == (0, "served\n", "")
    known = mallory.home / "known_agents"
    assert host in known.read_text()

    other = lab.agent(mallory, state="other")
    known.write_text(known.read_text().replace(host, f"127.0.0.1:{other.port}"))
    done = run(AGENT, "exec", "--home", mallory.home, f"127.0.0.1:{other.port}", "--", "echo", "served")
    failed_with(done, f"the key of 127.0.0.1:{other.port} has changed", "known_agents")


def test_exec_of_a_stranger_says_what_to_type_on_the_target(agent, lab):
    stranger = lab.controller("stranger")
    done = run(AGENT, "exec", "--home", stranger.home, f"127.0.0.1:{agent.port}", "--", "true")
    failed_with(done, "does not let this controller in", "pyinfra-agent authorize 'pyinfra-agent-key ")


def test_exec_is_a_part_of_pipelines(agent, controller):
    line = f"{AGENT} exec 127.0.0.1:{agent.port} --"
    done = run(
        "bash",
        "-c",
        f"set -o pipefail; {line} seq 200000 | {line} sort -n | {line} tail -n 1",
        env=controller.environment,
    )
    assert (done.status, done.stdout, done.stderr) == (0, "200000\n", "")


def test_exec_survives_a_network_that_breaks(agent, controller):
    """What is lost is the connection: every line is there, and once."""
    script = "for i in 1 2 3 4; do echo $i; sleep 0.2; done"
    with FaultProxy(agent.port) as proxy:
        words = [AGENT, "exec", f"127.0.0.1:{proxy.port}", "--", "sh", "-c", script]
        # gevent's, because the proxy runs in this process.
        with green_subprocess.Popen(
            list(map(str, words)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=controller.environment,
        ) as process:
            assert process.stdout.readline() == b"1\n"
            proxy.reset_all()
            rest, said = process.communicate(timeout=15)
    assert process.returncode == 0
    assert rest.split() == [b"2", b"3", b"4"]
    lost, resumed = said.decode().splitlines()
    assert lost.startswith(f"pyinfra-agent: connection to 127.0.0.1:{proxy.port} lost")
    assert resumed == f"pyinfra-agent: connection to 127.0.0.1:{proxy.port} resumed: nothing was lost"


def test_exec_that_is_killed_leaves_its_command_alone(agent, controller, tmp_path):
    """As a vanished controller: nobody was there to cancel it."""
    begun, go, ended = (tmp_path / name for name in ("begun", "go", "ended"))
    script = f"touch {begun}; until test -e {go}; do sleep 0.02; done; echo x; echo ended > {ended}"
    words = [AGENT, "exec", f"127.0.0.1:{agent.port}", "--", "sh", "-c", script]
    process = subprocess.Popen(
        list(map(str, words)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=controller.environment
    )
    try:
        eventually(begun.exists, 15, "the command's start")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    go.touch()
    eventually(ended.exists, 5, "the command's own end")
