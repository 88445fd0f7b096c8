"""Real commands: how they start, stream, end and outlive their callers."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys

import pytest
import trio
import trio.testing

from pyinfra_agent._drain import Drain
from pyinfra_agent._process import Exit
from pyinfra_agent._pty import PtySize
from pyinfra_agent._spawn import Command, SpawnFailed, Stdin, inherit_nothing_of_the_agent
from pyinfra_agent._supervisor import Supervisor

ENV = {b"PATH": b"/usr/local/bin:/usr/bin:/bin"}
# 32 and 33 are its own; make leaves one blocked, and no program can change that.
SIGNALS_OF_GLIBC = 1 << 31 | 1 << 32
MIB = 1024 * 1024

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
needs_setsid = pytest.mark.skipif(shutil.which("setsid") is None, reason="setsid is not installed")


@pytest.fixture
def supervisor(nursery):
    return Supervisor(nursery)


@pytest.fixture
def fifo(tmp_path):
    """A named pipe: opening one end waits for the other, which is how tests meet daemons."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def sh(script, **fields):
    return Command([b"sh", b"-c", script.encode()], ENV, **fields)


async def collect(process):
    """Run `process` to its end; returns its Exit and its two outputs."""
    collected = [bytearray(), bytearray()]
    with trio.fail_after(30):
        while (output := await process.read(256 * 1024)) is not None:
            stream, data = output
            collected[stream] += data
        assert await process.read(1) is None
    process.abandon()
    return process.exit, bytes(collected[0]), bytes(collected[1])


async def read_until(process, mark):
    """Read stdout until it contains `mark`."""
    seen = b""
    with trio.fail_after(30):
        while mark not in seen:
            output = await process.read(4096)
            assert output is not None, f"ended after {seen!r}"
            assert output[0] == 0
            seen += output[1]
    return seen


async def tell(fifo, line):
    """Write `line` to a reader of `fifo`, once there is one."""
    with trio.fail_after(30):
        await trio.to_thread.run_sync(fifo.write_text, line, abandon_on_cancel=True)


async def hear(fifo):
    """Return what a writer to `fifo` writes, once there is one and until it closes."""
    with trio.fail_after(30):
        return await trio.to_thread.run_sync(fifo.read_text, abandon_on_cancel=True)


async def gone(pid):
    """Wait until process `pid` has died."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with trio.fail_after(30):
            await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] != b"Z"
    except FileNotFoundError:
        return False


def is_reaped(pid):
    return not os.path.exists(f"/proc/{pid}")


def open_descriptors():
    return sorted(os.listdir("/proc/self/fd"))


# -- exits and streams


@pytest.mark.parametrize("code", [0, 1, 2, 42, 126, 127, 128, 137, 255])
async def test_exit_code_is_reported(supervisor, code):
    assert await collect(supervisor.spawn(sh(f"exit {code}"))) == (Exit(code, None), b"", b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGRTMIN])
async def test_death_by_signal_is_reported_as_that_signal(supervisor, number):
    ended, _, _ = await collect(supervisor.spawn(sh(f"ulimit -c 0; kill -{int(number)} $$")))
    assert ended == Exit(None, number)


async def test_several_tasks_may_wait(supervisor):
    process = supervisor.spawn(sh("read line; exit 3", stdin=Stdin.PIPE))
    exits = []

    async def wait():
        exits.append(await process.wait())

    async with trio.open_nursery() as waiters:
        for _ in range(3):
            waiters.start_soon(wait)
        await process.end_stdin()
    assert exits == [Exit(3, None)] * 3
    assert await process.wait() == Exit(3, None)
    process.abandon()


async def test_output_is_bytes_as_they_were_written(supervisor):
    _, out, err = await collect(supervisor.spawn(sh(r"printf 'a\000b\377\376\n'; printf 'e\200' >&2")))
    assert out == b"a\0b\xff\xfe\n"
    assert err == b"e\x80"


async def test_output_arrives_while_the_command_runs(supervisor):
    process = supervisor.spawn(sh("echo ready; read line", stdin=Stdin.PIPE))
    assert await read_until(process, b"\n") == b"ready\n"
    await process.write_stdin(b"go\n")
    assert (await collect(process))[0] == Exit(0, None)


async def test_fifty_mebibytes_arrive_intact_on_both_streams(supervisor):
    script = "import sys, hashlib\nblock = bytes(range(256)) * 4096\nfor i in range(50):\n"
    script += "    sys.stdout.buffer.write(block)\n    sys.stderr.buffer.write(b'%d\\n' % i)\n"
    process = supervisor.spawn(Command([os.fsencode(sys.executable), b"-c", script.encode()], ENV))
    ended, out, err = await collect(process)
    assert ended == Exit(0, None)
    assert hashlib.sha256(out).digest() == hashlib.sha256(bytes(range(256)) * 4096 * 50).digest()
    assert err == b"".join(b"%d\n" % number for number in range(50))


async def test_bytes_that_a_slow_reader_left_in_the_pipe_survive_the_exit(supervisor):
    """However late the reader comes, it gets what was readable at the exit, and the quiet time has not begun."""
    process = supervisor.spawn(sh("head -c 60000 /dev/zero; sleep 300 & echo $! >&2"), Drain(0.01, 0.01))
    await process.wait()
    await trio.sleep(0.05)  # longer than the drain; no reader waits
    _, out, err = await collect(process)
    assert len(out) == 60000
    os.kill(int(err), signal.SIGKILL)


async def test_cancelled_read_loses_nothing(supervisor):
    process = supervisor.spawn(sh("read line; echo $line", stdin=Stdin.PIPE))
    with trio.CancelScope() as scope:
        scope.cancel()
        await process.read(10)
    assert scope.cancelled_caught
    await process.write_stdin(b"kept\n")
    assert (await collect(process))[1] == b"kept\n"


async def test_standard_outputs_can_be_opened_by_name(supervisor):
    """A socket could not be: `>/dev/stdout` opens the descriptor anew."""
    _, out, err = await collect(supervisor.spawn(sh("echo x >/dev/stdout; echo y >/dev/stderr")))
    assert (out, err) == (b"x\n", b"y\n")


# -- what a command inherits


async def test_command_inherits_only_what_it_was_given(supervisor, tmp_path):
    inheritable = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inheritable, True)
    inherit_nothing_of_the_agent()
    script = "env; ls /proc/self/fd | tr '\\n' ' '; pwd"
    _, out, _ = await collect(supervisor.spawn(sh(script, cwd=os.fsencode(tmp_path))))
    os.close(inheritable)
    lines = out.decode().splitlines()
    assert [line for line in lines[:-1] if not line.startswith(("PATH=", "PWD=", "OLDPWD=", "_=", "SHLVL="))] == []
    assert lines[-1] == f"0 1 2 3 {tmp_path}"  # 3 is the directory that ls reads


async def test_command_leads_its_own_session_with_default_signals(supervisor):
    _, out, _ = await collect(supervisor.spawn(Command([b"cat", b"/proc/self/stat", b"/proc/self/status"], ENV)))
    stat, *status = out.splitlines()
    pid, _, _, _, group, session = stat.split()[:6]
    assert pid == group == session
    masks = dict(line.split(b":\t") for line in status if line.startswith(b"Sig"))
    assert not (int(masks[b"SigBlk"], 16) | int(masks[b"SigIgn"], 16)) & ~SIGNALS_OF_GLIBC


async def test_signals_that_the_agents_starter_ignored_or_blocked_are_restored(supervisor):
    """As under nohup; a process of its own stands for the agent."""
    agent = (
        "import signal, subprocess\n"
        "from pyinfra_agent._spawn import inherit_nothing_of_the_agent\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})\n"
        "inherit_nothing_of_the_agent()\n"
        "subprocess.run(['cat', '/proc/self/status'])\n"
    )
    process = supervisor.spawn(Command([os.fsencode(sys.executable), b"-c", agent.encode()], dict(os.environb)))
    _, out, err = await collect(process)
    assert err == b""
    masks = dict(line.split(b":\t") for line in out.splitlines() if line.startswith(b"Sig"))
    assert not (int(masks[b"SigBlk"], 16) | int(masks[b"SigIgn"], 16)) & ~SIGNALS_OF_GLIBC


async def test_passed_descriptor_keeps_its_number(supervisor, tmp_path):
    (tmp_path / "script").write_text("echo from a descriptor\n")
    descriptor = os.open(tmp_path / "script", os.O_RDONLY)
    command = Command([b"sh", b"/dev/fd/%d" % descriptor], ENV, descriptors=(descriptor,))
    assert (await collect(supervisor.spawn(command)))[1] == b"from a descriptor\n"
    os.close(descriptor)


# -- stdin


async def test_stdin_is_empty_unless_asked_for(supervisor):
    assert await collect(supervisor.spawn(sh("cat; readlink /proc/self/fd/0"))) == (Exit(0, None), b"/dev/null\n", b"")


async def test_stdin_can_be_a_descriptor(supervisor, tmp_path):
    (tmp_path / "data").write_bytes(b"spooled")
    descriptor = os.open(tmp_path / "data", os.O_RDONLY)
    assert (await collect(supervisor.spawn(sh("cat", stdin=descriptor))))[1] == b"spooled"
    os.close(descriptor)


async def test_stdin_of_many_pipefuls_passes_through(supervisor):
    data = os.urandom(5 * MIB)
    process = supervisor.spawn(sh("sha256sum", stdin=Stdin.PIPE))
    async with trio.open_nursery() as feeding:

        async def feed():
            await process.write_stdin(data)
            await process.end_stdin()

        feeding.start_soon(feed)
        _, out, _ = await collect(process)
    assert out.split()[0].decode() == hashlib.sha256(data).hexdigest()


async def test_write_to_command_that_closed_its_stdin_raises(supervisor):
    process = supervisor.spawn(sh("exec <&-; echo closed; read line </dev/null; sleep 300", stdin=Stdin.PIPE))
    await read_until(process, b"closed")
    with pytest.raises(trio.BrokenResourceError, match="closed its standard input"):
        await process.write_stdin(b"x" * MIB)
    assert await process.terminate_tree() == set()
    process.abandon()


async def test_write_that_waits_fails_when_the_command_exits(supervisor):
    process = supervisor.spawn(sh("echo up; sleep 300", stdin=Stdin.PIPE))
    await read_until(process, b"up")
    async with trio.open_nursery() as writing:

        async def write():
            with pytest.raises(trio.BrokenResourceError):
                await process.write_stdin(b"x" * MIB)

        writing.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        await process.terminate_tree()
    process.abandon()


async def test_command_that_never_reads_blocks_only_its_writer(supervisor):
    process = supervisor.spawn(sh("echo out; exit 7", stdin=Stdin.PIPE))
    async with trio.open_nursery() as writing:

        async def write():
            with pytest.raises(trio.BrokenResourceError):
                await process.write_stdin(b"x" * MIB)

        writing.start_soon(write)
        assert await collect(process) == (Exit(7, None), b"out\n", b"")


async def test_write_after_the_end_of_stdin_raises(supervisor):
    process = supervisor.spawn(sh("cat", stdin=Stdin.PIPE))
    await process.end_stdin()
    await process.end_stdin()
    with pytest.raises(trio.ClosedResourceError):
        await process.write_stdin(b"late")
    await collect(process)


# -- the end of a command


@pytest.mark.parametrize(
    "script",
    [
        "sleep 300 & echo $!",
        "nohup sleep 300 2>/dev/null & echo $!",
        pytest.param("setsid sleep 300 & echo $!", marks=needs_setsid),
    ],
)
async def test_command_that_leaves_a_daemon_returns_and_the_daemon_lives(supervisor, script):
    process = supervisor.spawn(sh(script))
    start = trio.current_time()
    ended, out, _ = await collect(process)
    assert trio.current_time() - start < 0.5
    assert ended == Exit(0, None)
    assert is_alive(int(out))
    assert len(supervisor.discarding) == (1 if "2>/dev/null" in script else 2)
    os.kill(int(out), signal.SIGKILL)
    await gone(int(out))


async def test_double_forked_daemon_writes_ten_mebibytes_later_without_a_broken_pipe(supervisor, fifo):
    """Its output goes nowhere, yet no write of it ever fails."""
    daemon = f"read go <{fifo}; head -c {10 * MIB} /dev/zero; echo $? >{fifo}"
    process = supervisor.spawn(sh(f"(sh -c '{daemon}' &) ; echo parent"))
    assert (await collect(process))[:2] == (Exit(0, None), b"parent\n")
    await tell(fifo, "go\n")
    assert await hear(fifo) == "0\n"


@needs_bash
async def test_process_substitution_loses_nothing(supervisor, tmp_path):
    script = f"exec > >(tee {tmp_path}/log); echo hi; seq 20000"
    expected = b"hi\n" + b"".join(b"%d\n" % number for number in range(1, 20001))
    for _ in range(5):
        _, out, _ = await collect(supervisor.spawn(Command([b"bash", b"-c", script.encode()], ENV)))
        assert out == expected


async def test_byte_on_one_stream_keeps_the_other_open(supervisor):
    """The quiet time is the command's, not a stream's."""
    script = "(for i in 1 2 3 4 5 6; do sleep 0.1; echo $i >&2; done; echo last) & exit 0"
    _, out, err = await collect(supervisor.spawn(sh(script), Drain(quiet_seconds=0.3)))
    assert err == b"1\n2\n3\n4\n5\n6\n"
    assert out == b"last\n"


@pytest.mark.parametrize("noise", ["yes", "while :; do echo x; sleep 0.01; done"])
async def test_daemon_that_never_falls_silent_is_listened_to_only_so_long(supervisor, noise):
    process = supervisor.spawn(sh(f"({noise}) & echo $! >&2"), Drain(quiet_seconds=0.25, most_seconds=0.5))
    start = trio.current_time()
    ended, out, err = await collect(process)
    assert ended == Exit(0, None)
    assert out
    assert 0.4 < trio.current_time() - start < 5
    os.killpg(process.pid, signal.SIGKILL)
    await gone(int(err))


async def test_reader_that_stalls_for_longer_than_the_drain_gets_what_comes_after(supervisor, fifo):
    """A controller may be frozen for minutes: only a reader's own waiting counts."""
    daemon = f"read go <{fifo}; echo late; exec sleep 300"
    process = supervisor.spawn(sh(f"echo early; (sh -c '{daemon}' &)"), Drain(quiet_seconds=0.2, most_seconds=0.3))
    await process.wait()
    assert await process.read(100) == (0, b"early\n")
    await trio.sleep(0.4)
    await tell(fifo, "go\n")
    _, out, _ = await collect(process)
    assert out == b"late\n"
    os.killpg(process.pid, signal.SIGKILL)


async def test_abandoned_command_runs_on_and_its_output_is_thrown_away(supervisor, tmp_path):
    script = f"read line; head -c {MIB} /dev/zero; echo $line $? >{tmp_path}/status"
    process = supervisor.spawn(sh(script, stdin=Stdin.PIPE))
    process.abandon()
    process.abandon()
    assert await process.wait() == Exit(0, None)
    assert (tmp_path / "status").read_text() == "0\n"
    with pytest.raises(trio.ClosedResourceError):
        await process.read(10)


async def test_abandoning_ends_a_read_in_progress(supervisor):
    process = supervisor.spawn(sh("sleep 300"))
    async with trio.open_nursery() as reading:

        async def read():
            with pytest.raises(trio.ClosedResourceError):
                await process.read(10)

        reading.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        process.abandon()
    await process.terminate_tree()


async def test_hundred_commands_leave_no_descriptor_and_no_zombie(supervisor):
    await collect(supervisor.spawn(sh(":", stdin=Stdin.PIPE)))
    before = open_descriptors()
    pids = []
    for number in range(100):
        pty = PtySize(24, 80) if number % 10 == 0 else None
        process = supervisor.spawn(sh("echo x", stdin=Stdin.PIPE, pty=pty))
        pids.append(process.pid)
        await collect(process)
        with pytest.raises(SpawnFailed):
            supervisor.spawn(Command([b"/nonexistent"], ENV, pty=pty))
    await trio.testing.wait_all_tasks_blocked()
    assert open_descriptors() == before
    assert supervisor.processes == ()
    assert all(map(is_reaped, pids))


@pytest.fixture
def foreign_child():
    """A child that other code in the agent started, and will wait for."""
    with subprocess.Popen(["true"]) as child:
        yield child


async def test_orphans_are_reaped_and_other_children_are_not(supervisor, foreign_child):
    ours = supervisor.spawn(sh("exit 9"))
    await gone(foreign_child.pid)
    await gone(ours.pid)
    supervisor.reap_orphans()
    supervisor.reap_orphans()
    assert foreign_child.wait() == 0
    assert (await collect(ours))[0] == Exit(9, None)


# -- terminals


async def test_terminal_is_the_controlling_one_with_its_size_and_name(supervisor):
    command = sh(
        "tty; stty size; test -t 0 -a -t 1 -a -t 2 && echo all; (: </dev/tty) && echo controlling;"
        "echo $TERM ${LINES-none} ${COLUMNS-none}; echo error >&2",
        pty=PtySize(37, 121, "screen"),
    )
    _, out, err = await collect(supervisor.spawn(command))
    name, *rest = out.decode().split("\r\n")
    assert name.startswith("/dev/pts/")
    assert rest == ["37 121", "all", "controlling", "screen none none", "error", ""]
    assert err == b""


async def test_terminal_loses_no_output_at_the_exit(supervisor):
    """The hang-up at the session leader's exit does not overtake what it wrote."""
    expected = b"".join(b"%d\r\n" % number for number in range(1, 5001))
    for _ in range(10):
        process = supervisor.spawn(sh("seq 5000", pty=PtySize(24, 80)))
        assert await collect(process) == (Exit(0, None), expected, b"")


async def test_terminal_with_a_late_reader_loses_no_output(supervisor):
    process = supervisor.spawn(sh("seq 500", pty=PtySize(24, 80)))
    await process.wait()
    assert (await collect(process))[1] == b"".join(b"%d\r\n" % number for number in range(1, 501))


async def test_command_that_has_closed_its_terminal_is_not_hung_up(supervisor):
    """As every program does that closes its streams and exits then, `cat` among them; and it may open it again."""
    script = "exec <&- >&- 2>&-; sleep 0.2; (sleep 0.2; head -c 20000 /dev/zero) >/dev/tty; sleep 0.2; exit 7"
    ended, out, _ = await collect(supervisor.spawn(sh(script, pty=PtySize(24, 80))))
    assert ended == Exit(7, None)
    assert out == bytes(20_000)


@pytest.mark.parametrize("closes", ["", "exec <&- >&- 2>&-;"], ids=["it writes on", "it has closed it"])
async def test_terminal_that_nobody_reads_any_more_is_not_hung_up(supervisor, tmp_path, closes):
    """Not before its command has ended, which lives on; then nothing of it is left."""
    before = open_descriptors()
    done = tmp_path / "done"
    script = f"trap 'touch {done}.hup' HUP; echo up; {closes} sleep 0.3; echo more >/dev/tty; touch {done}; exit 0"
    process = supervisor.spawn(sh(script, pty=PtySize(24, 80)))
    await read_until(process, b"up")
    process.abandon()
    await gone(process.pid)
    assert os.listdir(tmp_path) == ["done"]
    with trio.fail_after(10):
        while supervisor.discarding or supervisor.unfinished:  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert open_descriptors() == before


async def test_terminal_is_resized(supervisor):
    process = supervisor.spawn(sh("stty size; read line; stty size", pty=PtySize(24, 80), stdin=Stdin.PIPE))
    await read_until(process, b"24 80")
    process.resize(50, 132)
    await process.write_stdin(b"\n")
    assert b"50 132" in (await collect(process))[1]


@pytest.mark.parametrize("typed", [b"", b"line\n", b"no newline"])
async def test_end_of_stdin_is_typed_at_a_terminal(supervisor, typed):
    process = supervisor.spawn(sh("stty -echo; echo ready; cat; echo end", pty=PtySize(24, 80), stdin=Stdin.PIPE))
    await read_until(process, b"ready\r\n")
    await process.write_stdin(typed)
    await process.end_stdin()
    ended, out, _ = await collect(process)
    assert ended == Exit(0, None)
    assert out == typed.replace(b"\n", b"\r\n") + b"end\r\n"


async def test_interrupt_reaches_the_foreground_of_a_terminal(supervisor):
    """As Ctrl-C does: the job dies, and the interactive shell that runs it in a group of its own lives."""
    process = supervisor.spawn(
        Command([b"sh", b"-i"], {**ENV, b"PS1": b"", b"ENV": b""}, pty=PtySize(24, 80), stdin=Stdin.PIPE)
    )
    await process.write_stdin(b"sh -c 'echo star''ted; exec sleep 300'\n")
    await read_until(process, b"started")
    process.signal(signal.SIGINT)
    await process.write_stdin(b"echo ali''ve; exit 5\n")
    await read_until(process, b"alive")
    assert (await collect(process))[0] == Exit(5, None)


async def test_signal_reaches_the_whole_group_without_a_terminal(supervisor):
    process = supervisor.spawn(sh("trap 'echo caught; exit 4' INT; sh -c 'echo up; exec sleep 300'"))
    await read_until(process, b"up")
    process.signal(signal.SIGINT)
    ended, out, _ = await collect(process)
    assert (ended, out) == (Exit(4, None), b"caught\n")
    process.signal(signal.SIGINT)


async def test_terminal_is_hung_up_when_its_command_is_ended(supervisor):
    """An interactive shell ignores SIGTERM, so it is the hang-up that ends it within the grace."""
    script = "trap '' TERM; trap 'echo hung up; exit 6' HUP; echo up; while :; do sleep 0.05; done"
    process = supervisor.spawn(sh(script, pty=PtySize(24, 80)))
    await read_until(process, b"up")
    assert await process.terminate_tree(20) == set()
    ended, out, _ = await collect(process)
    assert ended == Exit(6, None)
    assert b"hung up" in out


# -- commands that do not start


def refused(supervisor, argv, **fields):
    before = open_descriptors()
    with pytest.raises(SpawnFailed) as caught:
        supervisor.spawn(Command(argv, ENV, **fields))
    assert open_descriptors() == before
    assert "\n" not in caught.value.text
    return caught.value


@pytest.fixture(params=[None, PtySize(24, 80)], ids=["pipes", "terminal"])
def pty(request):
    return request.param


async def test_missing_program_is_named_with_the_path_that_was_searched(supervisor, pty):
    failure = refused(supervisor, [b"no-such-program", b"x"], pty=pty)
    assert (failure.what, failure.errno) == ("program", errno.ENOENT)
    assert failure.text == "cannot run no-such-program: not found in PATH (/usr/local/bin:/usr/bin:/bin)"


async def test_missing_file_is_named(supervisor, pty):
    failure = refused(supervisor, [b"/no/such/\xff\n"], pty=pty)
    assert (failure.what, failure.errno) == ("program", errno.ENOENT)
    assert failure.text == "cannot run /no/such/\\xff\\n: no such file"


async def test_missing_directory_is_told_from_a_missing_program(supervisor, pty):
    failure = refused(supervisor, [b"true"], cwd=b"/no/such/place", pty=pty)
    assert (failure.what, failure.errno) == ("directory", errno.ENOENT)
    assert failure.text == "cannot start in /no/such/place: no such directory"


async def test_file_as_directory_is_told(supervisor, pty):
    failure = refused(supervisor, [b"/etc/passwd"], cwd=b"/etc/passwd", pty=pty)
    assert failure.text == "cannot start in /etc/passwd: not a directory"


async def test_program_without_execute_permission_is_told(supervisor, pty, tmp_path):
    (tmp_path / "plain").write_text("text")
    failure = refused(supervisor, [b"./plain"], cwd=os.fsencode(tmp_path), pty=pty)
    assert (failure.what, failure.errno) == ("program", errno.EACCES)
    assert failure.text == "cannot run ./plain: no permission to execute it"
    assert refused(supervisor, [b"/tmp"], pty=pty).text == "cannot run /tmp: it is a directory"


async def test_file_that_is_no_program_is_told(supervisor, tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"\x00\x01\x02")
    path.chmod(0o755)
    failure = refused(supervisor, [os.fsencode(path)])
    assert (failure.what, failure.errno) == ("program", errno.ENOEXEC)
    assert failure.text.endswith("neither a program for this machine nor a script that starts with #!")


async def test_missing_interpreter_is_told_from_a_missing_script(supervisor, tmp_path):
    path = tmp_path / "script"
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)
    failure = refused(supervisor, [os.fsencode(path)])
    assert failure.text == f"cannot run {path}: the interpreter that it names does not exist"


async def test_argument_that_is_too_long_is_told_with_its_length(supervisor, pty):
    failure = refused(supervisor, [b"echo", b"x" * 131072], pty=pty)
    assert (failure.what, failure.errno) == ("arguments", errno.E2BIG)
    assert failure.text == "cannot run echo: one argument has 131072 bytes and Linux takes 131071"
    failure = refused(supervisor, [b"echo", *[b"x" * 100_000] * 100], pty=pty)
    assert "arguments and environment" in failure.text


@pytest.mark.parametrize("argv", [[], [b""], [b"echo", b"a\0b"]])
async def test_impossible_arguments_are_refused(supervisor, argv, pty):
    assert refused(supervisor, argv, pty=pty).what == "arguments"


async def test_impossible_environment_is_refused(supervisor):
    with pytest.raises(SpawnFailed) as caught:
        supervisor.spawn(Command([b"true"], {b"A=B": b"c"}))
    assert caught.value.what == "arguments"
