"""An agent with real sockets: many connections, an orderly end, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys

import pytest
import trio

from pyinfra_agent import _dispatch, _server
from pyinfra_agent._editing import TrustFiles
from pyinfra_agent._keys import StateError
from pyinfra_agent._server import Agent, format_address
from pyinfra_agent._settings import Settings
from pyinfra_agent_protocol import Info
from pyinfra_agent_protocol.keys import KeyPair, format_public
from tests.agent.helpers import ENVIRONMENT, Allowed, TestController, is_alive, sh, until


class Running:
    """An agent that serves a port on loopback."""

    def __init__(self, nursery, **settings) -> None:
        self.nursery = nursery
        settings = {"inherited_environment": ENVIRONMENT, "home": b"/", **settings}
        self.agent = Agent(Settings(**settings), KeyPair.generate(), Allowed())
        self.over = trio.Event()

    async def start(self):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        self.nursery.start_soon(self._run, listeners)
        return self

    async def _run(self, listeners):
        await self.agent.run(listeners)
        self.over.set()

    async def connect(self):
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def welcome(self):
        controller = TestController()
        await controller.link(self.nursery, await self.connect())
        return controller


@pytest.fixture
async def running(nursery):
    return await Running(nursery).start()


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


async def test_two_hundred_connections_leave_no_descriptor_and_no_task(running):
    """Welcomed, silent, broken and garbage: all of them."""
    first = await running.welcome()
    assert (await first.ask(Info())).refusal is None
    await trio.testing.wait_all_tasks_blocked(0.05)
    tasks, descriptors = trio.lowlevel.current_statistics().tasks_living, open_descriptors()
    for number in range(200):
        if number % 4 == 0:
            controller = await running.welcome()
            await controller.ask(Info())
            running.agent._sessions.drop(running.agent._sessions.sessions[-1])
            await controller.cut()
            continue
        stream = await running.connect()
        if number % 4 == 1:
            await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        elif number % 4 == 2:
            await stream.send_all(b"\0")
        await stream.aclose()
    await until(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks)
    await until(lambda: open_descriptors() <= descriptors)
    assert (await first.ask(Info())).refusal is None


async def test_connection_that_is_reset_is_no_failure(running):
    for _ in range(20):
        stream = await running.connect()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()
    controller = await running.welcome()
    assert (await controller.ask(Info())).refusal is None


async def test_socket_that_cannot_be_tuned_costs_one_connection(running, monkeypatch):
    def fail(stream):
        raise OSError(22, "Invalid argument")

    with monkeypatch.context() as patch:
        patch.setattr(_server, "tune_socket", fail)
        stream = await running.connect()
        assert await stream.receive_some(1) == b""
        await stream.aclose()
    controller = await running.welcome()
    assert (await controller.ask(Info())).refusal is None


async def test_stop_of_an_idle_agent_says_goodbye_and_returns_at_once(running):
    controller = await running.welcome()
    await controller.ask(Info())
    with trio.fail_after(5):
        running.agent.stop()
        await running.over.wait()
        await controller.over.wait()
    assert [goodbye.code for goodbye in controller.goodbyes] == ["stopping"]


async def test_stop_lets_a_running_command_end_and_refuses_new_ones(running, tmp_path):
    os.mkfifo(tmp_path / "go")
    controller = await running.welcome()
    call = controller.start(sh(f"echo on; read line < {tmp_path}/go; echo done"))
    await call.wait_line()
    running.agent.stop()
    late = await controller.ask(sh("true"))
    assert late.refusal.code == "stopping"
    assert not running.over.is_set()
    with pytest.raises(OSError, match="all attempts to connect"):
        await running.connect()
    await trio.to_thread.run_sync((tmp_path / "go").write_text, "\n")
    assert (await call.wait()).exit == 0
    assert call.out == b"done\n"
    with trio.fail_after(5):
        await running.over.wait()


async def test_stop_waits_no_longer_than_it_was_told(nursery):
    running = await Running(nursery, stop_seconds=0.2).start()
    controller = await running.welcome()
    call = controller.start(sh("echo $$; exec sleep 600"))
    pid = int(await call.wait_line())
    running.agent.stop()
    with trio.fail_after(5):
        await running.over.wait()
    assert is_alive(pid), "an agent that restarts kills nothing"
    os.kill(pid, signal.SIGKILL)


async def test_kill_commands_ends_every_tree(running):
    controller = await running.welcome()
    call = controller.start(sh("sleep 600 & echo $!; wait"))
    pid = int(await call.wait_line())
    running.agent.kill_commands()
    assert (await call.wait()).signal == signal.SIGKILL
    await until(lambda: not is_alive(pid))


async def test_failing_request_task_leaves_the_agent_serving(running, monkeypatch):
    async def fail(context, channel, request):
        raise MemoryError

    monkeypatch.setattr(_dispatch, "HANDLERS", {**_dispatch.HANDLERS, Info: fail})
    controller = await running.welcome()
    for _ in range(3):
        assert (await controller.ask(Info())).refusal.code == "internal"
    assert not running.over.is_set()


def test_state_directory_that_cannot_hold_the_journal_is_refused_in_words(tmp_path):
    (tmp_path / "unfinished-uploads").mkdir()
    with pytest.raises(StateError, match=f"state directory {tmp_path}"):
        Agent(Settings(state_dir=tmp_path), KeyPair.generate(), Allowed())


@pytest.mark.parametrize(
    ("address", "text"),
    [(("127.0.0.1", 7963), "127.0.0.1:7963"), (("::1", 7963, 0, 0), "[::1]:7963"), (("*", 1), "*:1")],
)
def test_address_is_written_as_people_do(address, text):
    assert format_address(address) == text


# -- the service as a process


class Service:
    """`pyinfra-agent serve` in a process of its own."""

    def __init__(self, state_dir) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyinfra_agent", "serve", "--listen", "127.0.0.1:0", "--state-dir", state_dir],
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"},
        )
        assert self.process.stderr is not None
        self.stderr = self.process.stderr
        line = self.stderr.readline().decode()
        while line and " listening " not in line:
            line = self.stderr.readline().decode()
        self.port = int(line.partition("address=127.0.0.1:")[2].split()[0])

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.stderr.close()


@pytest.fixture
def service(tmp_path):
    key = KeyPair.generate()
    TrustFiles(tmp_path / "state").authorize(format_public(key.public, "tester"), widens=False)
    with Service(tmp_path / "state") as service:
        service.key = key
        yield service


async def test_service_drains_at_sigterm_and_ends_with_zero(service, nursery, tmp_path):
    os.mkfifo(tmp_path / "go")
    controller = TestController(service.key)
    await controller.link(nursery, await trio.open_tcp_stream("127.0.0.1", service.port))
    call = controller.start(sh(f"echo on; read line < {tmp_path}/go; echo done"))
    await call.wait_line()
    service.process.send_signal(signal.SIGTERM)
    line = b""
    while b"stopping" not in line:
        line = await trio.to_thread.run_sync(service.stderr.readline)
    await trio.to_thread.run_sync((tmp_path / "go").write_text, "\n")
    assert (await call.wait()).exit == 0
    await controller.over.wait()
    assert await trio.to_thread.run_sync(service.process.wait) == 0
    assert [goodbye.code for goodbye in controller.goodbyes] == ["stopping"]
    rest = await trio.to_thread.run_sync(service.stderr.read)
    assert b"Traceback" not in rest


async def test_second_sigterm_ends_the_service_at_once_and_leaves_its_commands(service, nursery):
    controller = TestController(service.key)
    await controller.link(nursery, await trio.open_tcp_stream("127.0.0.1", service.port))
    call = controller.start(sh("echo $$; exec sleep 600"))
    pid = int(await call.wait_line())
    service.process.send_signal(signal.SIGTERM)
    line = b""
    while b"stopping" not in line:
        line = await trio.to_thread.run_sync(service.stderr.readline)
    service.process.send_signal(signal.SIGTERM)
    with trio.fail_after(5):
        assert await trio.to_thread.run_sync(service.process.wait, abandon_on_cancel=True) == 128 + signal.SIGTERM
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)


async def test_denied_controller_learns_nothing_from_a_service(service):
    controller = TestController()
    assert await controller.join(await trio.open_tcp_stream("127.0.0.1", service.port)) is None
    await controller.stream.aclose()
