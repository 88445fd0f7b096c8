"""Many commands at once, and commands that take all they can get: the agent serves on."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path

import gevent
import pytest
from gevent.pool import Pool

from pyinfra_agent_connector._errors import AgentError
from pyinfra_agent_connector._identity import load_or_create
from pyinfra_agent_connector.client import AgentClient
from tests.e2e.helpers import eventually, reset_peak
from tests.e2e.limits import with_config, with_limit

MIB = 1 << 20
AGENTS = 10
GROWTH_MAX_KIB = 48 * 1024
LOGIN_DESCRIPTORS = 1024


@pytest.fixture
def agent(shared):
    return shared[0]


@pytest.fixture
def controller(shared):
    return shared[1]


@pytest.fixture
def connect(controller):
    clients = []

    def connect(agent):
        client = AgentClient(
            agent.host, agent.port, identity=load_or_create(controller.home), check_key=lambda *_: None
        )
        client.connect()
        clients.append(client)
        return client

    yield connect
    for client in clients:
        client.close()


def output_of(client, script, **options):
    said = []
    result = client.run(["sh", "-c", script], on_output=lambda stream, data: said.append(data), **options)
    return result, b"".join(said)


def attempt(client, script, **options):
    """Run a command; return its output, or what it was refused with."""
    try:
        return output_of(client, script, **options)[1]
    except AgentError as error:
        return error


def checked(client, number):
    """Run a command that takes a while, prints a lot and ends oddly; tell whether all of it arrived."""
    result, said = output_of(client, f"sleep 0.2; seq {number} {number + 500}; exit {number % 256}")
    return result.exit == number % 256 and said == b"".join(b"%d\n" % line for line in range(number, number + 501))


def test_hundred_commands_at_once_on_one_agent(agent, connect):
    client = connect(agent)
    started = time.monotonic()
    assert all(Pool(100).map(lambda number: checked(client, number), range(100)))
    assert time.monotonic() - started < 10


def test_thousand_commands_at_once_over_ten_agents(lab, agent, connect):
    authorized = (agent.state_dir / "authorized_controllers").read_text()
    clients = []
    for number in range(AGENTS):
        state = lab.directory / f"state-{number}"
        state.mkdir()
        (state / "authorized_controllers").write_text(authorized)
        clients.append(connect(lab.agent(state=state.name)))
    started = time.monotonic()
    assert all(Pool(1000).map(lambda number: checked(clients[number % AGENTS], number), range(1000)))
    seconds = time.monotonic() - started
    print(f"1,000 commands over {AGENTS} agents: {seconds:.1f} s")
    assert seconds < 30


def test_command_beyond_the_limit_is_refused_with_the_limits_name_and_host(lab, controller, connect):
    client = connect(lab.agent(controller, prefix=with_config(lab, "max_commands = 3\n")))
    waiting = [gevent.spawn(output_of, client, "read x", stdin=_after(1.0)) for _ in range(3)]
    gevent.sleep(0.3)
    started = time.monotonic()
    with pytest.raises(AgentError, match=r"127\.0\.0\.1.*3 commands.*max_commands"):
        output_of(client, "true")
    assert time.monotonic() - started < 0.5  # refused, and not queued
    gevent.joinall(waiting, raise_error=True)
    assert output_of(client, "echo room")[1] == b"room\n"


def _after(seconds):
    gevent.sleep(seconds)
    yield b"\n"


def test_endless_outputs_to_slow_readers_leave_the_agent_small_and_quick(agent, connect):
    client = connect(agent)
    output_of(client, "true")
    reset_peak(agent.process.pid)
    before = agent.kib("VmHWM")

    def read_slowly(script):
        def take(stream, data):
            gevent.sleep(0.5)

        with gevent.Timeout(3, False):
            client.run(["sh", "-c", script], on_output=take)

    scripts = ["exec yes", "exec cat /dev/zero", "yes >&2", "while :; do echo x; done"] * 5
    readers = [gevent.spawn(read_slowly, script) for script in scripts]
    gevent.sleep(1)
    waits = []
    for _ in range(10):
        started = time.monotonic()
        assert output_of(client, "echo quick")[1] == b"quick\n"
        waits.append(time.monotonic() - started)
    gevent.joinall(readers, raise_error=True)
    print(f"beside {len(scripts)} endless outputs: {sorted(waits)[5] * 1000:.0f} ms a command")
    assert sorted(waits)[5] < 0.5
    assert agent.kib("VmHWM") - before < GROWTH_MAX_KIB
    eventually(lambda: Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children").read_text() == "")


def test_command_that_opens_all_it_can_fails_alone(lab, controller, connect):
    agent = lab.agent(controller, prefix=with_limit(LOGIN_DESCRIPTORS, 4096))
    client = connect(agent)
    hoard = "import os\ntry:\n  while True: os.dup(0)\nexcept OSError as e: print(e.strerror, os.dup2(0, 5))"
    hoard += "\nos.set_inheritable(5, True); os.system('sleep 1')"
    hoarders = [gevent.spawn(output_of, client, f"python3 -c {hoard!r}") for _ in range(3)]
    hoarders += [gevent.spawn(output_of, client, "ulimit -n unlimited 2>/dev/null; ulimit -n 4096; sleep 1")]
    gevent.sleep(0.5)
    assert output_of(client, "echo fine")[1] == b"fine\n"
    gevent.joinall(hoarders, raise_error=True)


def test_agent_has_its_hard_limit_and_commands_a_logins(lab, controller, connect):
    agent = lab.agent(controller, prefix=with_limit(LOGIN_DESCRIPTORS, 4096))
    limits = Path(f"/proc/{agent.process.pid}/limits").read_text()
    assert re.search(r"Max open files +4080 +4096 ", limits)
    client = connect(agent)
    assert output_of(client, "ulimit -Sn; ulimit -Hn")[1] == b"1024\n4096\n"
    # With more open than a login may have, too.
    holding = [gevent.spawn(output_of, client, "read x", stdin=_after(1.5)) for _ in range(220)]
    gevent.sleep(0.8)
    assert agent.descriptors > LOGIN_DESCRIPTORS
    assert output_of(client, "sleep 0.1; ulimit -Sn; ulimit -Hn")[1] == b"1024\n4096\n"
    gevent.joinall(holding, raise_error=True)


def test_agent_without_descriptors_refuses_says_so_once_and_recovers(lab, controller, connect):
    agent = lab.agent(controller, prefix=with_limit(128, 128))
    client = connect(agent)
    holding = [gevent.spawn(attempt, client, "read x", stdin=_after(2.0)) for _ in range(40)]
    gevent.sleep(1)
    refused = [holder for holder in holding if holder.ready()]
    assert 0 < len(refused) < 40
    assert all("too many open files" in str(holder.value) for holder in refused)
    guests = [socket.create_connection(agent.address) for _ in range(30)]  # the kernel takes them, the agent cannot
    for guest in guests:
        guest.sendall(b"pyinfra-agent")  # the kernel keeps silent ones
    gevent.sleep(1)
    for guest in guests:
        guest.close()
    gevent.joinall(holding)
    eventually(lambda: output_of(client, "echo again")[1] == b"again\n", what="a command that runs again")
    agent.serves(controller)
    lines = agent.log.read_text().splitlines()
    assert 1 <= sum(" spawn-failed " in line for line in lines) <= 2
    assert 1 <= sum(" accept-failed " in line for line in lines) <= 2
    assert "Traceback" not in agent.log.read_text()


def test_deadline_ends_a_tree_though_no_descriptor_is_left(lab, controller, connect):
    """Looking for processes and signalling them takes descriptors, which are kept back for it."""
    agent = lab.agent(controller, prefix=with_limit(128, 128))
    client = connect(agent)
    timed = gevent.spawn(output_of, client, "setsid sleep 60 & echo $!; wait", timeout_seconds=1.0)
    gevent.sleep(0.3)
    holding = [gevent.spawn(attempt, client, "read x", stdin=_after(2.5)) for _ in range(40)]
    result, said = timed.get(timeout=10)
    assert result.reason == "timeout"
    assert any("too many open files" in str(holder.value) for holder in holding if holder.ready())
    eventually(lambda: not os.path.exists(f"/proc/{int(said)}"), what="the grandchild's end")
    gevent.joinall(holding)


@pytest.mark.parametrize(
    ("config", "expected"),
    [("", b"0022 0\n"), ('umask = "077"\nnice = 5\n', b"0077 5\n")],
    ids=["as a login", "configured"],
)
def test_umask_and_niceness_are_a_logins_or_as_configured(lab, controller, connect, tmp_path, config, expected):
    if os.nice(0) != 0:
        pytest.skip("these tests run with a niceness of their own")
    agent = lab.agent(controller, prefix=with_config(lab, config, "umask 007"))
    client = connect(agent)
    assert output_of(client, "sleep 0.05; echo $(umask) $(nice)")[1] == expected
    client.put([b"content"], str(tmp_path / "made"))
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o666 & ~int(expected.split()[0], 8)


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "bash -l", "zsh", "mksh", "busybox sh"])
def test_script_of_ten_mebibytes_runs_in_any_posix_shell(agent, connect, shell):
    words = shell.split()
    client = connect(agent)
    if client.run(["sh", "-c", f"command -v {words[0]} >/dev/null"]).exit != 0:
        pytest.skip(f"{words[0]} is not installed")
    filler = b": " + b"x" * 1021 + b"\n"
    script = b"n=begun\n" + filler * (10 * 1024) + b"echo $n $1\n"
    assert len(script) > 10 * MIB
    said = []
    result = client.run(
        [*words, "-c", script.decode(), "name", "argument"], on_output=lambda stream, data: said.append(data)
    )
    assert (result.exit, b"".join(said)) == (0, b"begun argument\n")
