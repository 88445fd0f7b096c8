"""Programs executed for real, by both ways: posix_spawn, and Popen where Python cannot ask it for a session."""

import errno
import os
import stat

import pytest

from pyinfra_agent import _execute
from pyinfra_agent._execute import execute

#: Their C library's own (32 and 33), which its posix_spawn leaves ignored; it handles them when it needs them.
SIGNALS_OF_GLIBC = 0b11 << 31
ENV = {b"PATH": b"/usr/local/bin:/usr/bin:/bin", b"GREETING": "grüß\n".encode()}


@pytest.fixture(params=["posix_spawn", "Popen"], autouse=True)
def way(request, monkeypatch):
    if request.param == "Popen":

        def without_sessions(*args, **options):
            raise NotImplementedError("posix_spawn: setsid unavailable on this platform")

        monkeypatch.setattr(os, "posix_spawn", without_sessions)
    monkeypatch.setattr(_execute, "_spawns_sessions", True)
    return request.param


def outcome(*words, env=ENV, cwd=None, descriptors=(), stdin=None):
    """Run *words* to the end; return the exit status and what was printed."""
    source = os.open("/dev/null", os.O_RDONLY) if stdin is None else stdin
    reader, writer = os.pipe()
    try:
        pid = execute(words, env, cwd, (source, writer, writer), descriptors)
    finally:
        os.close(writer)
        os.close(source)
    with open(reader, "rb") as output:
        printed = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), printed


def test_one_refusal_of_sessions_is_enough(way, monkeypatch):
    outcome(b"true")
    assert _execute._spawns_sessions == (way == "posix_spawn")
    assert outcome(b"sh", b"-c", b"exit 7") == (7, b"")


def test_streams_variables_and_words_arrive():
    reader, writer = os.pipe()
    os.write(writer, b"input")
    os.close(writer)
    script = b'cat; echo "$1" >&2; printf %s "$GREETING"'
    assert outcome(b"sh", b"-c", script, b"sh", b"\xff 'x'", stdin=reader) == (
        0,
        b"input\xff 'x'\n" + "grüß\n".encode(),
    )


def test_only_the_variables_given_are_there():
    assert outcome(b"/usr/bin/env", env={b"A": b"=1"}) == (0, b"A==1\n")


def test_program_leads_a_session_and_has_default_signals():
    _, status = outcome(b"cat", b"/proc/self/stat", b"/proc/self/status")
    pid, _, _, _, group, session = status.split()[:6]
    assert pid == group == session
    ignored = next(line for line in status.splitlines() if line.startswith(b"SigIgn"))
    assert not int(ignored.split()[1], 16) & ~SIGNALS_OF_GLIBC


def test_it_starts_where_it_is_told_and_we_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inner = tmp_path / "ä b"
    inner.mkdir()
    assert outcome(b"pwd", cwd=os.fsencode(inner)) == (0, os.fsencode(inner) + b"\n")
    assert outcome(b"pwd") == (0, os.fsencode(tmp_path) + b"\n")
    assert os.getcwd() == str(tmp_path)


def test_relative_program_is_looked_up_where_it_starts(tmp_path):
    script = tmp_path / "tool"
    script.write_text("#!/bin/sh\necho found\n")
    script.chmod(0o755)
    assert outcome(b"./tool", cwd=os.fsencode(tmp_path)) == (0, b"found\n")


def test_directory_that_is_not_there_is_named(tmp_path):
    missing = os.fsencode(tmp_path / "missing")
    with pytest.raises(FileNotFoundError) as caught:
        outcome(b"pwd", cwd=missing)
    assert caught.value.filename == missing


def test_we_come_back_from_a_directory_where_nothing_could_be_executed(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    with pytest.raises(FileNotFoundError):
        outcome(b"/nonexistent", cwd=os.fsencode(tmp_path))
    assert os.getcwd() == "/"


def test_own_directory_that_was_removed_does_no_harm(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert outcome(b"pwd", cwd=b"/") == (0, b"/\n")
    assert os.stat(".").st_nlink == 0


def test_own_directory_that_is_closed_to_us_does_no_harm(monkeypatch):
    real_open = os.open

    def open_(path, flags, *args, **options):
        if path == ".":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real_open(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", open_)
    assert outcome(b"pwd", cwd=b"/") == (0, b"/\n")


@pytest.mark.parametrize(
    ("content", "mode", "expected"),
    [(b"", 0o644, errno.EACCES), (b"\x7fELF rubbish", 0o755, errno.ENOEXEC), (b"#!/no/such\n", 0o755, errno.ENOENT)],
    ids=["not executable", "no program", "no interpreter"],
)
def test_program_that_cannot_be_executed_is_an_error_and_no_process(tmp_path, content, mode, expected):
    program = tmp_path / "program"
    program.write_bytes(content)
    program.chmod(mode)
    with pytest.raises(OSError, match=os.strerror(expected)):
        outcome(os.fsencode(program))
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_program_that_is_nowhere_in_path():
    with pytest.raises(FileNotFoundError):
        outcome(b"surely-no-such-program")


def test_arguments_too_long_for_the_system():
    with pytest.raises(OSError, match=os.strerror(errno.E2BIG)):
        outcome(b"true", b"x" * 128 * 1024)


@pytest.mark.parametrize(("words", "env"), [((b"true", b"a\0b"), ENV), ((b"true",), {b"A": b"\0"})])
def test_nul_is_refused(words, env):
    with pytest.raises(ValueError, match="null byte"):
        outcome(*words, env=env)


def test_descriptor_that_is_passed_keeps_its_number_and_stays_ours(tmp_path):
    script = tmp_path / "script"
    script.write_text("ls /proc/self/fd | tr '\\n' ' '")
    descriptor = os.open(script, os.O_RDONLY)
    other = os.open(script, os.O_RDONLY)
    status, printed = outcome(b"sh", b"/dev/fd/%d" % descriptor, descriptors=(descriptor,))
    assert status == 0
    assert descriptor in map(int, printed.split())
    assert other not in map(int, printed.split())
    assert not os.get_inheritable(descriptor)
    for number in (descriptor, other):
        os.close(number)


def test_stream_that_has_the_number_of_another_one():
    """As in an agent that was started with a closed standard input."""
    reader, writer = os.pipe()
    kept = os.dup(0)
    try:
        os.dup2(writer, 0)
        source = os.open("/dev/null", os.O_RDONLY)
        pid = execute((b"sh", b"-c", b"echo out; echo err >&2"), ENV, None, (source, 0, 0))
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(writer)
    os.close(source)
    with open(reader, "rb") as output:
        assert output.read() == b"out\nerr\n"
    assert os.waitpid(pid, 0)[1] == 0


def test_terminal_can_be_all_three():
    leader, follower = os.openpty()
    pid = execute((b"sh", b"-c", b"test -t 0 && test -t 1 && test -t 2"), ENV, None, (follower,) * 3)
    assert os.waitpid(pid, 0)[1] == 0
    for descriptor in (leader, follower):
        assert stat.S_ISCHR(os.fstat(descriptor).st_mode)
        os.close(descriptor)
