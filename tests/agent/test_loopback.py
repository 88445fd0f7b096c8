"""The private agent of one controller, as the process that it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import trio

from pyinfra_agent_protocol import Info
from pyinfra_agent_protocol.keys import KeyPair, format_public, parse_public
from tests.agent.helpers import TestController, is_alive, sh, until

COMMAND = [sys.executable, "-m", "pyinfra_agent._loopback"]


class Loopback:
    def __init__(self, key: KeyPair, **options) -> None:
        self.process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
        )
        assert self.process.stdin
        assert self.process.stdout
        assert self.process.stderr
        self.stdin, self.stdout, self.stderr = self.process.stdin, self.process.stdout, self.process.stderr
        self.stdin.write(format_public(key.public).encode() + b"\n")
        self.stdin.flush()
        port, _, line = self.stdout.readline().decode().partition(" ")
        self.port, self.key = int(port), parse_public(line).key

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()


@pytest.fixture
def key():
    return KeyPair.generate()


@pytest.fixture
def loopback(key):
    loopback = Loopback(key)
    yield loopback
    loopback.close()


async def connect(loopback):
    return await trio.open_tcp_stream("127.0.0.1", loopback.port)


async def test_it_serves_its_controller_and_nobody_else(loopback, key, nursery):
    async with await connect(loopback) as stream:
        assert await TestController().join(stream) is None
    controller = TestController(key)
    await controller.link(nursery, await connect(loopback))
    assert (await controller.ask(Info())).result.info["uid"] == os.geteuid()
    assert controller.welcome.ttl == 60


async def test_commands_inherit_environment_and_directory(key, nursery, tmp_path):
    loopback = Loopback(key, cwd=tmp_path, env={**os.environ, "INHERITED": "yes"})
    try:
        controller = TestController(key)
        await controller.link(nursery, await connect(loopback))
        call = await controller.ask(sh("echo $INHERITED; pwd"))
        assert call.out == b"yes\n" + bytes(tmp_path) + b"\n"
        await controller.cut()
    finally:
        loopback.close()


async def test_end_of_input_ends_it_and_every_command_that_runs(loopback, key, nursery):
    controller = TestController(key)
    await controller.link(nursery, await connect(loopback))
    calls = [controller.start(sh("sleep 600 & echo $!; wait")) for _ in range(3)]
    pids = [int(await call.wait_line()) for call in calls]
    loopback.stdin.close()
    with trio.fail_after(10):
        assert await trio.to_thread.run_sync(loopback.process.wait, abandon_on_cancel=True) == 0
    await until(lambda: not any(map(is_alive, pids)))
    assert loopback.stderr.read() == b"", "it shares its controller's terminal"


async def test_daemon_of_a_command_that_has_ended_lives_on(loopback, key, nursery):
    controller = TestController(key)
    await controller.link(nursery, await connect(loopback))
    pid = int((await controller.ask(sh("sleep 600 > /dev/null 2>&1 & echo $!"))).out)
    loopback.stdin.close()
    await trio.to_thread.run_sync(loopback.process.wait)
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)


async def test_death_of_its_parent_by_sigkill_ends_it_and_its_commands(key, nursery):
    """No handler and no finally runs in the parent: the pipe is what tells."""
    parent_code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen({COMMAND!r}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        f"child.stdin.write({format_public(key.public).encode()!r} + b'\\n'); child.stdin.flush()\n"
        "print(child.pid, child.stdout.readline().decode(), end='', flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", parent_code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert parent.stdin
    assert parent.stdout
    try:
        pid, port, _ = parent.stdout.readline().decode().split(" ", 2)
        controller = TestController(key)
        await controller.link(nursery, await trio.open_tcp_stream("127.0.0.1", int(port)))
        call = controller.start(sh("echo $$; exec sleep 600"))
        command = int(await call.wait_line())
    finally:
        parent.kill()
        parent.wait()
        parent.stdin.close()
        parent.stdout.close()
    await until(lambda: not is_alive(int(pid)) and not is_alive(command))


@pytest.mark.parametrize("line", ["\n", "nonsense\n", "pyinfra-agent-key AAAA\n"])
def test_without_a_key_it_ends_with_one_line(line):
    done = subprocess.run(COMMAND, input=line, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("pyinfra-agent: the loopback agent was given no key")


def test_controller_that_ends_at_once_is_no_error():
    """Ctrl-C in pyinfra, in the moment in which it starts the agent."""
    done = subprocess.run(COMMAND, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
