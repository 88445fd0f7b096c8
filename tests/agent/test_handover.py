"""One agent takes the place of another: what it is given, what it refuses, and that nobody notices."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import select
import signal
import subprocess
import sys
import time

import msgpack
import pytest
import trio

from pyinfra_agent import _exits, _handover, _process
from pyinfra_agent._exits import UNKNOWN, is_our_child, wait_status
from pyinfra_agent._handover import REEXECUTE, take_over
from pyinfra_agent._saved import (
    Descriptors,
    SavedAgent,
    SavedSession,
    SavedStateInvalid,
    decode_agent,
    encode_agent,
)
from pyinfra_agent._server import Agent
from pyinfra_agent._settings import Settings
from pyinfra_agent_protocol import Get, Info, PtySize, Put, Stat
from pyinfra_agent_protocol.keys import KeyPair
from tests.agent.helpers import ENVIRONMENT, Allowed, TestController, sh, until

SESSION = SavedSession(b"\x80", b"s" * 16, 3, None, ())
STATE = SavedAgent("1.0", 12.5, ((None, 7963), ("::1", 80)), (0,), (SESSION,), (1, 2))


class House:
    """Agents that follow each other in this process, and the address that they share."""

    def __init__(self, nursery, **settings) -> None:
        self.nursery = nursery
        self.key = KeyPair.generate()
        self.settings = Settings(
            **{"inherited_environment": ENVIRONMENT, "home": b"/", "stop_seconds": 0.05, **settings}
        )
        self.states: list[SavedAgent] = []

    async def start(self, inheritance=None):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        self.agent = Agent(self.settings, self.key, Allowed())
        self.over = trio.Event()
        await self.nursery.start(self._run, listeners, inheritance)
        return self

    async def _run(self, listeners, inheritance, task_status):
        await self.agent.run(listeners, inheritance, task_status)
        self.over.set()

    async def welcome(self):
        controller = TestController()
        await controller.link(self.nursery, await trio.open_tcp_stream("127.0.0.1", self.port))
        return controller

    async def resume(self, controller):
        await controller.over.wait()
        await controller.link(self.nursery, await trio.open_tcp_stream("127.0.0.1", self.port), resume=True)

    async def hand_over(self, alter=lambda data: data):
        """Let another agent take this one's place, by what a process would inherit."""
        with trio.fail_after(10):
            await self.agent.hand_over(REEXECUTE)
            await self.over.wait()
        state, descriptors = self.agent.estate
        self.states.append(state)
        end = _handover._queue(alter(encode_agent(state)), descriptors.numbers)
        for number in descriptors.numbers:
            os.close(number)
        await self.start(take_over(end, {}))


@pytest.fixture
async def house(nursery):
    return await House(nursery).start()


async def test_command_goes_on_with_input_output_and_status(house):
    """Input that the command had not read, output that the controller had not taken, and what comes later."""
    controller = await house.welcome()
    controller.consumes = False
    call = controller.start(sh("head -c 3000000 /dev/zero; sha256sum | cut -c1-64 >&2; exit 6", stdin=True))
    data = os.urandom(100_000) * 9
    await call.wait_output(100_000)
    await controller.send(call, data[:500_000])
    await trio.testing.wait_all_tasks_blocked(0.05)
    for _ in range(3):
        await house.hand_over()
        await house.resume(controller)
    controller.consumes = True
    controller.protocol.consume(call.number, len(call.out))
    controller.wake()
    await controller.send(call, data[500_000:])
    controller.end(call)
    assert (await call.wait()).exit == 6
    assert call.out == bytes(3_000_000)
    assert call.err.decode().strip() == hashlib.sha256(data).hexdigest()


async def test_script_that_was_half_there_is_run_once_it_is_whole(house):
    """The request was not begun, so the next agent begins it."""
    controller = await house.welcome()
    script = b"echo done; exit 4 #" + b"x" * 200_000
    call = controller.start(sh("unused", stdin=True, script_index=2, script_size=len(script)))
    await controller.send(call, script[:100_000])
    await trio.testing.wait_all_tasks_blocked(0.05)
    await house.hand_over()
    await house.resume(controller)
    await controller.send(call, script[100_000:])
    controller.end(call)
    assert (await call.wait()).exit == 4
    assert call.out == b"done\n"


async def test_transfer_that_does_not_end_in_time_is_refused_and_leaves_no_trace(house, tmp_path):
    """Its controller learns it from the next agent; what was asked meanwhile is done by that one."""
    controller = await house.welcome()
    target = tmp_path / "target"
    target.write_text("old")
    put = controller.start(Put(os.fsencode(target)))
    await controller.send(put, b"half")
    await trio.testing.wait_all_tasks_blocked(0.05)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.hand_over)
        await trio.testing.wait_all_tasks_blocked(0.01)
        later = controller.start(Info())
    await house.resume(controller)
    await put.done.wait()
    assert (put.refusal.code, put.result) == ("stopping", None)
    assert "was not carried out" in put.refusal.text
    assert await later.wait() is not None
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["target"]


async def test_transfer_that_ends_in_time_is_waited_for(nursery, tmp_path):
    house = await House(nursery, stop_seconds=10).start()
    controller = await house.welcome()
    (tmp_path / "file").write_bytes(bytes(5_000_000))
    get = controller.start(Get(os.fsencode(tmp_path / "file")))
    await house.hand_over()
    await house.resume(controller)
    assert await get.wait() is not None
    assert get.out == bytes(5_000_000)


async def test_deadline_counts_on_over_the_change(house):
    """A command with a limit is ended when its time is up, by whichever agent there is."""
    controller = await house.welcome()
    call = controller.start(sh("trap 'exit 5' TERM; while :; do sleep 0.05; done", timeout_ms=700))
    began = trio.current_time()
    await house.hand_over()
    await house.resume(controller)
    result = await call.wait()
    assert (result.exit, result.reason) == (5, "timeout")
    assert 0.6 < trio.current_time() - began < 5


async def test_signal_and_cancel_reach_a_command_of_the_agent_before(house):
    controller = await house.welcome()
    trapped = controller.start(sh("trap 'echo caught; exit 3' USR1; echo ready; while :; do sleep 0.02; done"))
    endless = controller.start(sh("echo ready; sleep 1000 & sleep 1000"))
    for call in (trapped, endless):
        await call.wait_line()
    await house.hand_over()
    await house.resume(controller)
    controller.protocol.send_signal(trapped.number, signal.SIGUSR1)
    controller.cancel(endless)
    assert (await trapped.wait()).exit == 3
    assert trapped.out == b"caught\n"
    assert (await endless.wait()).reason == "cancelled"


async def test_command_whose_session_is_over_runs_on_and_is_reaped(house, tmp_path):
    controller = await house.welcome()
    call = controller.start(sh(f"echo ready; sleep 0.3; echo more; echo more; touch {tmp_path}/done"))
    await call.wait_line()
    house.agent._sessions.drop(house.agent.sessions[0])
    await house.hand_over()
    await until(lambda: (tmp_path / "done").exists())
    await until(lambda: house.agent.supervisor.unfinished == 0)
    assert house.agent.sessions == ()


CLOSES_ITS_TERMINAL = """
echo ready; exec <&- >&- 2>&-; touch {0}/closed
while ! [ -e {0}/go ]; do sleep 0.02; done
echo more >/dev/tty; touch {0}/done; exit 5
"""


async def test_terminal_that_its_command_has_closed_is_not_hung_up(house, tmp_path):
    controller = await house.welcome()
    call = controller.start(sh(CLOSES_ITS_TERMINAL.format(tmp_path), pty=PtySize(24, 80)))
    await call.wait_line()
    await until(lambda: (tmp_path / "closed").exists())
    await house.hand_over()
    await house.resume(controller)
    (tmp_path / "go").touch()
    assert (await call.wait()).exit == 5
    assert call.out == b"more\r\n"


async def test_terminal_of_a_session_that_is_over_is_not_hung_up(house, tmp_path):
    controller = await house.welcome()
    call = controller.start(sh(CLOSES_ITS_TERMINAL.format(tmp_path), pty=PtySize(24, 80)))
    await call.wait_line()
    await until(lambda: (tmp_path / "closed").exists())
    house.agent._sessions.drop(house.agent.sessions[0])
    await house.hand_over()
    (tmp_path / "go").touch()
    await until(lambda: (tmp_path / "done").exists())
    await until(lambda: not house.agent.supervisor.discarding)


async def test_state_of_another_version_loses_sessions_and_no_command(house, tmp_path):
    """The controller is told that its session is unknown; the command writes on, into outputs that are thrown away."""
    controller = await house.welcome()
    call = controller.start(sh(f"echo ready; sleep 0.3; seq 100000; echo $? > {tmp_path}/done"))
    await call.wait_line()
    await house.hand_over(lambda data: msgpack.packb([2, msgpack.unpackb(data)[1]]))
    assert house.agent.sessions == ()
    await controller.over.wait()
    async with await trio.open_tcp_stream("127.0.0.1", house.port) as stream:
        assert (await controller.join(stream, resume=True)).session == "unknown"
    await until(lambda: (tmp_path / "done").exists() and (tmp_path / "done").read_text() == "0\n")


async def test_stop_beats_a_handover_that_waits(nursery, tmp_path):
    """A transfer keeps it waiting; then the agent ends as if nothing had been said before."""
    house = await House(nursery, stop_seconds=60).start()
    controller = await house.welcome()
    put = controller.start(Put(os.fsencode(tmp_path / "new")))
    await controller.send(put, b"half")
    await trio.testing.wait_all_tasks_blocked(0.05)
    nursery.start_soon(house.agent.hand_over, REEXECUTE)
    await trio.testing.wait_all_tasks_blocked(0.01)
    house.agent.stop()
    controller.cancel(put)
    with trio.fail_after(10):
        await house.over.wait()
    assert house.agent.estate is None


async def test_descriptors_do_not_accumulate(house):
    """Ten changes with a running command leave as many descriptors as one."""
    controller = await house.welcome()
    call = controller.start(sh("cat", stdin=True))
    await controller.send(call, b"x")
    await call.wait_output()
    counts = []
    for _ in range(10):
        await house.hand_over()
        await house.resume(controller)
        assert (await controller.ask(Stat(b"/"))).result is not None
        counts.append(len(house.states[-1].sessions[0].requests))
    controller.end(call)
    assert (await call.wait()).exit == 0
    assert counts == [1] * 10


# --- what travels ---


def test_state_is_what_it_was():
    assert decode_agent(encode_agent(STATE)) == STATE


def altered(**changes):
    version, fields = msgpack.unpackb(encode_agent(STATE))
    return msgpack.packb([version, fields | changes])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb({}),
        msgpack.packb([1]),
        msgpack.packb(["1", {}]),
        msgpack.packb([1, {}]),
        altered(more=1),
        altered(written_at=1),
        altered(software=b"1.0"),
        altered(listeners=[True]),
        altered(listeners=["0"]),
        altered(listen=[["::1"]]),
        altered(sessions=[{}]),
    ],
)
def test_state_that_is_not_understood_is_refused(data):
    with pytest.raises(SavedStateInvalid):
        decode_agent(data)


def test_refusal_of_another_version_names_both():
    with pytest.raises(SavedStateInvalid, match="has version 7, and this agent understands version 1"):
        decode_agent(msgpack.packb([7, {}]))


def test_place_that_the_list_does_not_have_is_refused():
    descriptors = Descriptors([4, 5])
    assert descriptors.take(1) == 5
    assert descriptors.left() == [4]
    with pytest.raises(SavedStateInvalid, match="no descriptor 2"):
        descriptors.take(2)


def test_hundreds_of_descriptors_arrive_in_their_order_and_closed_on_exec():
    pipes = [os.pipe() for _ in range(300)]
    numbers = [number for pipe in pipes for number in pipe]
    end = _handover._queue(encode_agent(STATE), numbers)
    for number in numbers:
        os.close(number)
    found = take_over(end, {}).descriptors.numbers
    try:
        assert len(found) == 600
        assert not any(map(os.get_inheritable, found))
        os.write(found[599], b"last")
        assert os.read(found[598], 9) == b"last"
    finally:
        for number in found:
            os.close(number)


# --- how strangers end ---

PARENT = """
import subprocess, sys
child = subprocess.Popen(["sh", "-c", sys.argv[1]])
print(child.pid, flush=True)
input()
child.wait()
print("reaped", flush=True)
input()
"""


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7 << 8), ("kill -9 $$", 9)])
def test_status_of_somebody_elses_child_is_known_once_it_was_reaped(script, status):
    if tuple(map(int, platform.release().split(".")[:2])) < (6, 15):
        pytest.skip("the kernel is older than 6.15 and does not tell how another process's child ended")
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, f"sleep 0.2; {script}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        pidfd = os.pidfd_open(pid)
        try:
            assert not is_our_child(pid)
            assert wait_status(pidfd) is None
            assert select.select([pidfd], [], [], 10)[0]
            assert wait_status(pidfd) is None  # nobody has reaped it
            parent.stdin.write("\n")
            parent.stdin.flush()
            assert parent.stdout.readline() == "reaped\n"
            assert wait_status(pidfd) == status
            parent.stdin.write("\n")
        finally:
            os.close(pidfd)


PARENT_OF_MANY = """
import os, sys
for _ in range(int(sys.argv[1])):
    wait, go = os.pipe()
    child = os.fork()
    if not child:
        os.read(wait, 1)
        os._exit(3)
    print(child, flush=True)
    sys.stdin.readline()
    os.write(go, b"x")
    os.waitpid(child, 0)
    os.close(wait)
    os.close(go)
"""


def test_status_of_somebody_elses_child_is_known_in_the_moment_in_which_it_is_reaped():
    """One call in eight fell between the kernel's two looks."""
    if tuple(map(int, platform.release().split(".")[:2])) < (6, 15):
        pytest.skip("the kernel is older than 6.15 and does not tell how another process's child ended")
    many = 500
    statuses = set()
    with subprocess.Popen(
        [sys.executable, "-c", PARENT_OF_MANY, str(many)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        for _ in range(many):
            pidfd = os.pidfd_open(int(parent.stdout.readline()))
            print(file=parent.stdin, flush=True)
            deadline = time.monotonic() + 10
            while (status := wait_status(pidfd)) is None:
                assert time.monotonic() < deadline
            statuses.add(status)
            os.close(pidfd)
    assert statuses == {3 << 8}


def test_old_kernel_knows_the_end_and_not_how(monkeypatch):
    """The call that tells it is missing: before the end there is nothing to say, and afterwards nothing is known."""

    def no_such_call(*_):
        raise OSError(errno.ENOTTY, "missing")

    monkeypatch.setattr(_exits.fcntl, "ioctl", no_such_call)
    with subprocess.Popen(["sleep", "1000"]) as child:
        pidfd = os.pidfd_open(child.pid)
        try:
            assert wait_status(pidfd) is None
            child.kill()
            child.wait()
            assert wait_status(pidfd) == UNKNOWN
        finally:
            os.close(pidfd)


async def test_command_that_ended_in_an_unknown_way_is_refused_with_all_of_its_output(house, monkeypatch):
    """On such a kernel, after a restart: the output is exact, and nobody is told a status that is a guess."""
    monkeypatch.setattr(_process, "is_our_child", lambda pid: False)
    monkeypatch.setattr(_process, "wait_status", lambda pidfd: UNKNOWN)
    controller = await house.welcome()
    call = controller.start(sh("echo ready; sleep 0.3; seq 1000; exit 3"))
    await call.wait_line()
    await house.hand_over()
    await house.resume(controller)
    await call.wait()
    assert call.refusal.code == "outcome-unknown"
    assert call.out == b"".join(b"%d\n" % number for number in range(1, 1001))
    assert house.agent.supervisor.processes == ()
