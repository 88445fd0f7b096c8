"""The private agent: it comes with nothing and leaves nothing."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from contextlib import suppress

import gevent
import gevent.os
import pytest

from pyinfra_agent_connector import _loopback
from pyinfra_agent_connector._errors import AgentError
from pyinfra_agent_connector._loopback import start_loopback
from tests.connector.helpers import Output, client_of, run_python, until


def is_running(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(") ")[2][0] not in "ZX"
    return False


def test_loopback_inherits_environment_and_directory(monkeypatch, tmp_path, agent_home):
    """Commands see what the controller sees, as with @local; and its known_agents is not made."""
    monkeypatch.setenv("SEEN_BY", "é \udcff")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trio.py").write_text("raise SystemExit('a module of the deploy, not of the agent')")
    agent = start_loopback()
    try:
        client = client_of(agent.port, agent.identity)
        output = Output()
        client.run(["sh", "-c", 'pwd; printf %s "$SEEN_BY"'], on_output=output)
        client.close()
    finally:
        agent.stop()
    assert output.stdout == os.fsencode(f"{tmp_path}\né \udcff")
    assert not agent_home.exists()


def test_loopback_lets_nobody_else_in(agent):
    with pytest.raises(AgentError, match="does not let this controller in"):
        client_of(agent.port).connect()


def test_loopback_stops_with_its_commands():
    agent = start_loopback()
    client = client_of(agent.port, agent.identity)
    output = Output()
    job = gevent.spawn(client.run, ["sh", "-c", "echo $$; exec sleep 60"], on_output=output)
    until(lambda: output.stdout)
    agent.stop()
    agent.stop()
    assert agent._process.poll() is not None
    until(lambda: not is_running(int(output.stdout)))
    client._connection.drop()
    with suppress(OSError):  # or its result, if the agent could still send it
        job.get(timeout=2)
    assert job.ready()


def test_loopback_without_trio_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AgentError, match=r"needs trio: pip install 'pyinfra-agentd\[agent\]'"):
        start_loopback()


@pytest.mark.parametrize("program", ["", "print('nonsense')", "print('12 nonsense')", "import time; time.sleep(30)"])
def test_loopback_that_does_not_start_is_an_error(monkeypatch, program):
    """An agent that ends, talks nonsense or says nothing is an OSError, and no process stays."""
    started = []
    popen = _loopback.start_process

    def remember(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(_loopback, "_PROGRAM", program)
    monkeypatch.setattr(_loopback, "_START_SECONDS", 0.5)
    monkeypatch.setattr(_loopback, "start_process", remember)
    with pytest.raises(AgentError, match="did not start"):
        start_loopback()
    assert started[0].poll() is not None


def test_loopback_start_can_be_left(monkeypatch):
    """A Timeout of the caller's leaves no process."""
    started = []
    popen = _loopback.start_process
    monkeypatch.setattr(_loopback, "_PROGRAM", "import time; time.sleep(30)")
    monkeypatch.setattr(
        _loopback, "start_process", lambda *args, **more: started.append(popen(*args, **more)) or started[-1]
    )
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.1):
        start_loopback()
    assert started[0].poll() is not None


def test_loopback_survives_a_forked_child(agent, client):
    """A child that ends, or that stops the agent it inherited, does not take it from the parent."""
    pid = gevent.os.fork()
    if not pid:
        code = 1
        try:
            _loopback._stop_all()
            agent.stop()
            code = 0
        finally:
            os._exit(code)
    _, status = gevent.os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert client.run(["true"]).exit == 0


PROGRAM = """
import os, signal, sys, gevent
{patch}
from pyinfra_agent_connector._loopback import start_loopback
from tests.connector.helpers import Output, client_of, until
agent = start_loopback()
client = client_of(agent.port, agent.identity)
output = Output()
gevent.spawn(client.run, ["sh", "-c", "echo $$; exec sleep 60"], on_output=output)
until(lambda: output.stdout)
print(agent._process.pid, output.stdout.decode().strip(), flush=True)
{end}
"""
PATCH = "from gevent import monkey; monkey.patch_all()"


@pytest.mark.parametrize("patch", ["", PATCH], ids=["unpatched", "patched"])
@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(0)", "raise RuntimeError"], ids=["kill", "exit", "raise"]
)
def test_loopback_ends_with_its_controller(patch, end):
    """However the controller ends, neither the agent nor a command of it stays."""
    done = run_python(PROGRAM.format(patch=patch, end=end), check=False)
    assert done.returncode == {"o": -signal.SIGKILL, "s": 0, "r": 1}[end[0]], done.stderr
    agent_pid, command_pid = map(int, done.stdout.split())
    until(lambda: not is_running(agent_pid))
    until(lambda: not is_running(command_pid))


def test_loopback_ends_although_a_child_of_the_controller_lives():
    """A child that was forked holds nothing that keeps the agent alive."""
    end = """
if not gevent.os.fork():
    os.close(1)
    os.close(2)
    gevent.sleep(20)
    os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(patch="import gevent.os", end=end)],
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        assert process.stdout is not None
        agent_pid, command_pid = map(int, process.stdout.readline().split())
        until(lambda: not is_running(agent_pid))
        until(lambda: not is_running(command_pid))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
