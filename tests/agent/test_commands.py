"""exec over the wire, with real processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import signal
import sys

import pytest
import trio

from pyinfra_agent import _commands
from pyinfra_agent._drain import Drain
from pyinfra_agent._limits import RareLog
from pyinfra_agent._settings import OnLost
from pyinfra_agent_protocol import CloseSession, Exec, PtySize
from tests.agent.helpers import House, is_alive, sh, socket_pair, until

MIB = 1024 * 1024


@pytest.fixture
def house(nursery):
    return House(nursery, grace_seconds=1.0, drain=Drain(quiet_seconds=0.05, most_seconds=0.5))


@pytest.fixture
async def controller(house):
    return await house.welcome(socket_pair)


async def test_output_and_status_come_back(controller):
    call = await controller.ask(sh("echo out; echo err >&2; exit 7"))
    assert (call.out, call.err) == (b"out\n", b"err\n")
    assert (call.result.exit, call.result.signal, call.result.reason) == (7, None, "exited")


async def test_death_by_signal_is_told(controller):
    call = await controller.ask(sh("kill -9 $$"))
    assert (call.result.exit, call.result.signal) == (None, 9)


async def test_environment_is_the_agents_and_the_requests_on_top(controller):
    call = await controller.ask(sh("echo $HOME $EXTRA $PPID", env={b"EXTRA": b"more"}))
    assert call.out.split()[:2] == [b"/", b"more"]


async def test_command_starts_at_home_or_where_it_is_told(controller, tmp_path):
    assert (await controller.ask(sh("pwd"))).out == b"/\n"
    assert (await controller.ask(sh("pwd", cwd=bytes(tmp_path)))).out == bytes(tmp_path) + b"\n"
    # Relative to home, and the variables of the request are the command's own affair.
    assert (await controller.ask(sh("pwd", cwd=b"usr/bin", env={b"HOME": b"/tmp"}))).out == b"/usr/bin\n"
    assert (await controller.ask(sh("pwd", env={b"HOME": bytes(tmp_path)}))).out == b"/\n"


async def test_command_inherits_no_descriptor_of_the_agent(controller):
    call = await controller.ask(Exec((b"ls", b"/proc/self/fd")))
    assert call.out.split() == [b"0", b"1", b"2", b"3"]  # 3: the directory itself


async def test_without_stdin_the_input_is_empty(controller):
    assert (await controller.ask(sh("cat; echo end"))).out == b"end\n"


async def test_twenty_mebibytes_stream_through_a_command(controller):
    content = hashlib.sha256(b"seed").digest() * (20 * MIB // 32)
    call = await controller.ask(sh("cat", stdin=True), content)
    assert call.result.exit == 0
    assert hashlib.sha256(call.out).digest() == hashlib.sha256(content).digest()


async def test_command_that_wants_no_more_input_does_not_stop_the_sender(controller):
    call = await controller.ask(sh("head -c 5", stdin=True), b"x" * 3 * MIB)
    assert call.out == b"xxxxx"
    assert call.result.exit == 0


async def test_command_that_never_reads_stops_its_sender_and_nobody_else(controller, nursery):
    call = controller.start(sh("echo on; exec sleep 600", stdin=True))
    await call.wait_line()
    nursery.start_soon(controller.send, call, b"x" * 8 * MIB)
    other = await controller.ask(sh("echo quick"))
    assert other.out == b"quick\n"
    controller.cancel(call)
    assert (await call.wait()).reason == "cancelled"


# -- scripts


def script_of(size: int) -> bytes:
    """Return a shell script of *size* bytes that prints the number of its last line."""
    head, tail = b"n=0\n", b"echo $n ${1-}\n"
    line = b"n=$((n+1)) # " + b"x" * 50 + b"\n"
    count, rest = divmod(size - len(head) - len(tail), len(line))
    return head + line * count + b"#" * (rest - 1) + b"\n" * bool(rest) + tail


@pytest.mark.parametrize("size", [40 * 1024, 128 * 1024 - 1, 128 * 1024, 200 * 1024, 10 * MIB])
async def test_script_longer_than_a_frame_runs_whole(controller, size):
    """Up to 128 KiB as an argument, above that from a descriptor: Linux takes no longer argument."""
    script = script_of(size)
    assert len(script) == size
    call = await controller.ask(
        Exec((b"sh", b"-c", b"", b"name", b"arg"), stdin=False, script_index=2, script_size=size), script
    )
    assert call.err == b""
    assert call.out == b"%d arg\n" % script.count(b"n=$((n+1))")


@pytest.mark.parametrize("size", [40 * 1024, 200 * 1024])
async def test_input_follows_the_script(controller, size):
    script = script_of(size) + b"cat\n"
    content = b"line\n" * 100_000
    call = await controller.ask(
        Exec((b"sh", b"-c", b""), stdin=True, script_index=2, script_size=len(script)), script + content
    )
    assert call.result.exit == 0
    assert call.out.partition(b"\n")[2] == content


async def test_script_of_a_descriptor_leaves_none_behind(controller):
    await controller.ask(sh("true"))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        script = script_of(200 * 1024)
        call = await controller.ask(Exec((b"sh", b"-c", b""), script_index=2, script_size=len(script)), script)
        assert call.result.exit == 0
    script = script_of(200 * 1024)
    failed = await controller.ask(Exec((b"/nonexistent", b""), script_index=1, script_size=len(script)), script)
    assert failed.refusal.code == "spawn"
    await until(lambda: len(os.listdir("/proc/self/fd")) == before)


async def test_script_that_ends_too_early_is_refused(controller):
    call = await controller.ask(Exec((b"sh", b"-c", b""), script_index=2, script_size=100), b"x" * 60)
    assert call.refusal.code == "bad-request"
    assert "60 of 100" in call.refusal.text


async def test_script_with_a_nul_byte_is_refused(controller):
    call = await controller.ask(Exec((b"sh", b"-c", b""), script_index=2, script_size=3), b"a\0b")
    assert call.refusal.code == "bad-request"


# -- time and cancelling


async def test_command_that_takes_too_long_is_ended_with_all_it_started(controller):
    call = await controller.ask(sh("sleep 600 & echo $!; sleep 600; :", timeout_ms=150))
    assert call.result.reason == "timeout"
    assert call.result.signal == signal.SIGTERM
    await until(lambda: not is_alive(int(call.out)))


async def test_fifty_timeouts_leave_no_task_and_no_descriptor(controller, house):
    await controller.ask(sh("true"))
    await trio.testing.wait_all_tasks_blocked()
    tasks, descriptors = trio.lowlevel.current_statistics().tasks_living, len(os.listdir("/proc/self/fd"))
    calls = [controller.start(sh("sleep 60 & exec sleep 60", timeout_ms=1 + number)) for number in range(50)]
    for call in calls:
        assert (await call.wait()).reason == "timeout"
    await until(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks)
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert house.supervisor.unfinished == 0


async def test_command_that_ignores_the_end_of_its_time_is_killed(nursery):
    house = House(nursery, grace_seconds=0.2, drain=Drain(quiet_seconds=0.05))
    controller = await house.welcome()
    call = await controller.ask(sh("trap '' TERM; echo on; while :; do sleep 0.05; done", timeout_ms=100))
    assert call.result.reason == "timeout"
    assert call.result.signal == signal.SIGKILL


async def test_time_runs_for_a_command_that_has_exited_and_left_its_output_open(nursery):
    house = House(nursery, grace_seconds=0.2, drain=Drain(quiet_seconds=30, most_seconds=30))
    controller = await house.welcome()
    call = await controller.ask(sh("sleep 600 & exit 0", timeout_ms=200))
    assert call.result.reason == "timeout"


async def test_cancel_of_a_running_command_ends_its_tree(controller):
    call = controller.start(sh("sleep 600 & echo $!; wait"))
    child = int(await call.wait_line())
    controller.cancel(call)
    assert (await call.wait()).reason == "cancelled"
    await until(lambda: not is_alive(child))


async def test_cancel_of_a_command_that_closed_its_input_ends_its_tree(controller, nursery):
    """Its input is being dropped at that moment, which is another place where the cancel arrives."""
    call = controller.start(sh("exec <&-; echo $$; exec sleep 600", stdin=True))
    pid = int(await call.wait_line())
    await controller.send(call, b"x" * 100_000)
    await trio.sleep(0.05)
    controller.cancel(call)
    assert (await call.wait()) is not None, call.refusal
    assert call.result.reason == "cancelled"
    await until(lambda: not is_alive(pid))


async def test_cancel_while_the_script_is_on_its_way_starts_nothing(controller, house):
    call = controller.start(Exec((b"sh", b"-c", b""), script_index=2, script_size=1000))
    await controller.send(call, b"x" * 10)
    await trio.sleep(0.02)
    controller.cancel(call)
    await call.wait()
    assert call.refusal.code == "cancelled"
    assert house.supervisor.processes == ()


async def test_cancel_together_with_the_request_is_answered(controller):
    call = controller.start(sh("exec sleep 600"))
    controller.cancel(call)
    assert (await call.wait()).reason == "cancelled"


async def test_cancel_while_output_waits_for_room_is_answered(controller):
    controller.consumes = False
    call = controller.start(sh("exec yes"))
    await call.wait_output(100_000)
    await trio.sleep(0.05)
    controller.cancel(call)
    await trio.sleep(0.3)
    controller.protocol.consume(call.number, len(call.out))
    controller.consumes = True
    controller.wake()
    assert (await call.wait()).reason == "cancelled"


async def test_cancel_while_the_input_is_full_is_answered(controller, nursery):
    call = controller.start(sh("echo on; exec sleep 600", stdin=True))
    await call.wait_line()
    nursery.start_soon(controller.send, call, b"x" * 2 * MIB)
    await trio.sleep(0.05)
    controller.cancel(call)
    assert (await call.wait()).reason == "cancelled"


async def test_cancel_after_the_end_changes_nothing(controller):
    call = controller.start(sh("exit 3"))
    assert (await call.wait()).exit == 3
    assert not controller.protocol.is_open(call.number)
    assert (await controller.ask(sh("true"))).result.exit == 0


async def test_loss_of_the_session_closes_the_input_and_leaves_the_command(house, tmp_path):
    controller = await house.welcome()
    call = controller.start(sh(f"echo on; cat > {tmp_path}/got; echo over > {tmp_path}/over", stdin=True))
    await call.wait_line()
    await controller.send(call, b"half")
    await trio.sleep(0.02)
    (session,) = house.sessions.sessions
    house.sessions.drop(session)
    await until((tmp_path / "over").exists)
    assert (tmp_path / "got").read_text() == "half"


async def test_daemon_that_a_command_leaves_behind_lives_on(controller):
    call = await controller.ask(sh("sleep 600 > /dev/null 2>&1 & echo $!"))
    pid = int(call.out)
    assert call.result.exit == 0
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)


# -- signals and terminals


async def test_signal_reaches_the_commands_group(controller):
    call = controller.start(sh("trap 'echo caught; exit 5' USR1; echo on; while :; do sleep 0.02; done"))
    await call.wait_line()
    controller.protocol.send_signal(call.number, signal.SIGUSR1)
    controller.wake()
    assert (await call.wait()).exit == 5
    assert b"caught" in call.out


async def test_every_signal_number_that_the_protocol_takes_is_harmless_to_the_agent(controller):
    call = controller.start(sh("exec sleep 600"))
    for number in range(64, 0, -1):
        controller.protocol.send_signal(call.number, number)
    controller.wake()
    assert (await call.wait()).signal is not None
    assert (await controller.ask(sh("true"))).result.exit == 0


async def test_terminal_has_the_size_it_is_given_and_can_be_resized(controller):
    call = controller.start(sh("stty size; read line; stty size", pty=PtySize(31, 97, "xterm"), stdin=True))
    assert (await call.wait_line()).strip() == b"31 97"
    controller.protocol.send_resize(call.number, 40, 132)
    await controller.send(call, b"\n")
    assert (await call.wait()).exit == 0
    assert b"40 132" in call.out


async def test_keyboard_interrupt_reaches_what_runs_in_the_terminal(controller):
    call = controller.start(sh("exec cat", pty=PtySize(), stdin=True))
    await controller.send(call, b"hello\n")
    await call.wait_output(len(b"hello\r\nhello\r\n"))  # as echoed, and as cat printed it
    await controller.send(call, b"\x03")
    assert (await call.wait()).signal == signal.SIGINT


async def test_resize_and_signal_without_a_terminal_or_after_the_end_do_no_harm(controller):
    call = controller.start(sh("echo on; read line", stdin=True))
    await call.wait_line()
    controller.protocol.send_resize(call.number, 40, 132)
    controller.end(call)
    controller.wake()
    assert (await call.wait()).exit == 1


# -- limits


async def test_command_beyond_the_limit_is_refused_with_what_to_do_and_runs_when_there_is_room(nursery):
    house = House(nursery, commands_max=2)
    first, second = await house.welcome(), await house.welcome()
    running = [controller.start(sh("echo on; read x", stdin=True)) for controller in (first, second)]
    for call in running:
        await call.wait_line()
    refused = await first.ask(sh("true"))
    assert refused.refusal.code == "limit"
    assert "2 commands" in refused.refusal.text
    assert "max_commands" in refused.refusal.text
    second.end(running[1])
    await running[1].wait()
    assert (await first.ask(sh("true"))).result.exit == 0


async def test_command_that_drains_counts_as_one_that_runs(nursery):
    house = House(nursery, commands_max=1, drain=Drain(30, 30))
    controller = await house.welcome()
    draining = controller.start(sh("echo on; sleep 600 & exit 0"))
    await draining.wait_line()
    assert (await controller.ask(sh("true"))).refusal.code == "limit"
    controller.cancel(draining)
    await draining.wait()
    assert (await controller.ask(sh("true"))).result.exit == 0


async def test_command_has_the_niceness_of_the_settings(nursery):
    controller = await House(nursery, nice=os.nice(0) + 3).welcome()
    call = await controller.ask(sh("sleep 0.05; nice; sh -c nice"))
    assert call.out.split() == [str(os.nice(0) + 3).encode()] * 2


async def test_command_that_uses_up_its_descriptors_fails_alone(controller):
    python = "import os\nwhile True: os.dup(0)\n"
    call = await controller.ask(Exec((os.fsencode(sys.executable), b"-c", python.encode())))
    assert call.result.exit == 1
    assert b"Too many open files" in call.err
    assert (await controller.ask(sh("echo fine"))).out == b"fine\n"


@pytest.fixture
def no_descriptors():
    """A switch: within it this process cannot open anything."""

    @contextlib.contextmanager
    def exhausted():
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    return exhausted


async def test_agent_without_descriptors_refuses_and_recovers(controller, no_descriptors, capsys, monkeypatch):
    monkeypatch.setattr(_commands, "_out_of_resources", RareLog("spawn-failed"))
    script = script_of(200 * 1024)
    with no_descriptors():
        for _ in range(20):
            refusal = (await controller.ask(sh("true"))).refusal
            assert (refusal.code, refusal.text) == ("spawn", "cannot run sh: too many open files")
        call = await controller.ask(Exec((b"sh", b"-c", b""), script_index=2, script_size=len(script)), script)
        assert call.refusal.code == "spawn"
        assert "too many open files" in call.refusal.text
    assert (await controller.ask(sh("echo again"))).out == b"again\n"
    lines = [line for line in capsys.readouterr().err.splitlines() if "spawn-failed" in line]
    assert len(lines) == 1


# -- a controller that vanishes


STUBBORN = "trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$; while :; do sleep 1; done' & echo $$; wait; sleep 600"


async def two_pids(call):
    return [int(await call.wait_line()), int(await call.wait_line())]


async def test_lost_session_keeps_its_commands_by_default(nursery):
    house = House(nursery, session_ttl_seconds=0.1, drain=Drain(0.05, 0.1))
    controller = await house.welcome()
    call = controller.start(sh("echo $$; exec sleep 600"))
    pid = int(await call.wait_line())
    await controller.cut()
    await until(lambda: not house.sessions.sessions)
    await trio.sleep(0.1)
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)


async def test_lost_session_ends_its_commands_after_the_time_that_was_set(nursery):
    house = House(nursery, on_lost=OnLost.KILL, on_lost_after_seconds=0.2, grace_seconds=0.1, drain=Drain(0.05, 0.1))
    controller = await house.welcome()
    pids = await two_pids(controller.start(sh(STUBBORN)))
    await controller.cut()
    await trio.sleep(0.05)
    assert all(map(is_alive, pids))
    await until(lambda: not any(map(is_alive, pids)))
    assert house.sessions.sessions


async def test_controller_that_comes_back_in_time_finds_its_command_and_one_that_does_not_how_it_ended(nursery):
    house = House(nursery, on_lost=OnLost.KILL, on_lost_after_seconds=0.3, grace_seconds=0.1, drain=Drain(0.05, 0.1))
    controller = await house.welcome(socket_pair)
    call = controller.start(sh("echo $$; exec sleep 600"))
    pid = int(await call.wait_line())
    await controller.cut()
    await controller.resume(house, socket_pair)
    await trio.sleep(0.5)
    assert is_alive(pid)
    await controller.cut()
    await until(lambda: not is_alive(pid))
    await controller.resume(house, socket_pair)
    assert (await call.wait()).reason == "cancelled"


async def test_session_that_ends_before_that_time_ends_its_commands_then(nursery):
    house = House(nursery, on_lost=OnLost.KILL, session_ttl_seconds=0.1, grace_seconds=0.1, drain=Drain(0.05, 0.1))
    controller = await house.welcome()
    call = controller.start(sh("echo $$; exec sleep 600"))
    pid = int(await call.wait_line())
    await controller.cut()
    await until(lambda: not is_alive(pid))


async def test_session_that_was_closed_keeps_its_commands(nursery):
    """The controller has not vanished: it said that it does not want to know."""
    house = House(nursery, on_lost=OnLost.KILL, on_lost_after_seconds=0, grace_seconds=0.1, drain=Drain(0.05, 0.1))
    controller = await house.welcome()
    call = controller.start(sh("echo $$; exec sleep 600"))
    pid = int(await call.wait_line())
    controller.start(CloseSession())
    await until(lambda: not house.sessions.sessions)
    await trio.sleep(0.1)
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)


# -- failures


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Exec((b"/nonexistent/tool",)), "/nonexistent/tool"),
        (Exec((b"no-such-program-anywhere",)), "not found in PATH"),
        (Exec((b"/etc/passwd",)), "permission"),
        (Exec((b"true",), cwd=b"/nonexistent"), "no such directory"),
        (Exec((b"sh", b"-c", b"", *([b"x" * 60_000] * 1))), None),
        (Exec((b"",)), "empty"),
    ],
    ids=["missing", "not in PATH", "not executable", "no directory", "fits", "empty"],
)
async def test_command_that_cannot_start_is_refused_in_words(controller, request_, words):
    call = await controller.ask(request_)
    if words is None:
        assert call.result.exit == 0
    else:
        assert call.refusal.code == "spawn"
        assert words in call.refusal.text


async def test_no_descriptor_and_no_task_is_left_of_commands(controller):
    await controller.ask(sh("true"))
    await trio.testing.wait_all_tasks_blocked()
    tasks, descriptors = trio.lowlevel.current_statistics().tasks_living, len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        await controller.ask(sh("cat", stdin=True), b"data")
    await until(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks)
    assert len(os.listdir("/proc/self/fd")) == descriptors
