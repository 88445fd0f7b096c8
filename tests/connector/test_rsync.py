"""`files.rsync` and `pyinfra-agent rsh`: the real rsync over a session, and every way in which one of them ends."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gevent
import pytest
from gevent import socket
from gevent import subprocess as gevent_subprocess
from pyinfra.api import output as pyinfra_output

from pyinfra_agent_connector import rsh
from pyinfra_agent_connector._errors import AgentError, CommandTimeout, ConnectionLost
from pyinfra_agent_connector._remote_shell import read_chunks, run_as_shell, writer
from pyinfra_agent_connector._rsync import Rsync, _Door, _invocation, _shell, check_can_rsync
from tests.connector.helpers import state_of, until, wrap_for

OTHER = "nobody"
MIB = 1 << 20
SECONDS = 15

needs_rsync = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")


@pytest.fixture(scope="module")
def host():
    """A host connected to a private agent."""
    host = state_of("@agent/loopback").inventory.get_host("@agent/loopback")
    host.connect(raise_exceptions=True)
    yield host
    host.disconnect()


@pytest.fixture
def printed():
    """Lines that went to pyinfra's output, which its command line sets up."""
    lines = []
    before = pyinfra_output._echo
    pyinfra_output.set_echo(lambda message, *, err: lines.append(message))
    yield lines
    pyinfra_output.set_echo(before)


@pytest.fixture
def tree(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("content")
    return source


def processes(*words):
    """Return the ids of the processes that have each of *words* in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if line and all(any(word.encode() in part for part in line) for word in words):
                found.append(int(entry.name))
    return found


class Stuck:
    """A rsync whose other side sleeps, in a greenlet; each has a mark of its own."""

    def __init__(self, host, tree, **arguments):
        self.mark = f"{time.monotonic_ns()}"
        # rsync's own options follow, as arguments of the shell.
        self.flags = ["-a", f"--rsync-path='sh -c \"sleep 600; true {self.mark}\"'"]
        self.greenlet = gevent.spawn(self._run, host, tree, arguments)
        until(lambda: len(self.remote) >= 1)

    def _run(self, host, tree, arguments):
        try:
            return host.rsync(f"{tree}/", str(tree.parent / "copy"), self.flags, **arguments)
        except OSError as error:
            return error

    @property
    def local(self):
        return processes("rsync", "--rsh", self.mark)

    @property
    def shell(self):
        return [pid for pid in processes("-I", rsh.__file__, self.mark) if pid not in self.local]

    @property
    def remote(self):
        """The sleeping shell on the target; the local ones have the mark in their arguments, too."""
        return [pid for pid in processes("sleep 600", self.mark) if pid not in (*self.local, *self.shell)]

    def result(self):
        """Return what came of it; nothing of it may be left."""
        value = self.greenlet.get(timeout=SECONDS)
        until(lambda: not self.remote)
        until(lambda: not self.shell)
        assert not self.local
        return value


# --- what pyinfra sees ---


@needs_rsync
def test_rsync_copies_a_tree_and_prints_what_it_does(host, tree, tmp_path, printed):
    assert host.check_can_rsync() is None
    assert host.rsync(f"{tree}/", f"{tmp_path}/copy", ["-a", "-v"], print_output=True, print_input=True) is True
    assert (tmp_path / "copy" / "file").read_text() == "content"
    lines = [line.split("] ", 1)[1] for line in printed]
    assert lines[0].startswith(">>> rsync -a -v --rsh 'pyinfra-agent rsh -p ")
    assert lines[0].endswith(f" {tree}/ 127.0.0.1:{tmp_path}/copy")
    assert lines[1].startswith(">>> sh -c 'exec rsync --server -v")
    assert "file" in lines


@needs_rsync
def test_rsync_that_fails_raises_what_rsync_says(host, tmp_path):
    """As @ssh's: an OSError that holds the text of standard error."""
    with pytest.raises(OSError, match=r"(?s)missing.*No such file or directory.*code 23") as caught:
        host.rsync(f"{tmp_path}/missing", f"{tmp_path}/copy", ["-a"])
    assert len(caught.value.args) == 1


@needs_rsync
def test_rsync_without_one_on_the_target_raises_one_line_that_says_so(host, tree, tmp_path):
    with pytest.raises(AgentError, match=r"there is no rsync on that machine, install it there \(sh: .*not found\)$"):
        host.rsync(f"{tree}/", f"{tmp_path}/copy", ["-a", "--rsync-path=/nowhere/rsync"])


def test_check_without_rsync_on_this_machine_raises_what_pyinfra_expects(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotImplementedError, match="install rsync here"):
        check_can_rsync()


def test_rsync_with_a_flag_that_no_shell_could_read_raises_before_it_starts_anything(host):
    with pytest.raises(AgentError, match="No closing quotation"):
        host.rsync("a", "b", ["--exclude='x"])


@needs_rsync
def test_flags_are_split_and_unquoted_as_a_shell_does(host, tree, tmp_path):
    """@ssh gives them to a shell: a deployment for it has quotes in them."""
    for name in ("two words", "kept", "$HOME"):
        (tree / name).touch()
    host.rsync(f"{tree}/", f"{tmp_path}/copy", ["-a --exclude 'two words'", '--exclude="$HOME"'])
    assert sorted(os.listdir(tmp_path / "copy")) == ["file", "kept"]


@needs_rsync
def test_names_that_rsync_would_take_for_something_else_are_names(host, tmp_path, monkeypatch):
    """An option, another host, a daemon's module, two words, a pattern."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("-n", "web:1", "two words", "a*", "it's")):
        (tmp_path / name).write_text(str(number))
        host.rsync(name, f"{tmp_path}/copy/", ["-a"])
        host.rsync(name, f"{tmp_path}/copy {name}", ["-a"])
        assert (tmp_path / "copy" / name).read_text() == (tmp_path / f"copy {name}").read_text() == str(number)
    host.rsync("it's", ":module", ["-a"], _chdir=str(tmp_path))
    assert (tmp_path / ":module").read_text() == "4"


@needs_rsync
def test_interpreter_in_a_directory_with_blanks_and_quotes_is_started(host, tree, tmp_path, monkeypatch):
    directory = tmp_path / 'it\'s a "home"'
    directory.mkdir()
    (directory / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (directory / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(directory / "python"))
    assert host.rsync(f"{tree}/", f"{tmp_path}/copy", ["-a"])


# --- as another user ---


@pytest.fixture
def others_directory():
    """A directory of another user's that everybody can reach."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user without a password")
    with tempfile.TemporaryDirectory() as directory:
        user = pwd.getpwnam(OTHER)
        os.chown(directory, user.pw_uid, user.pw_gid)
        yield Path(directory)


@needs_rsync
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(
            {"_sudo": True, "_sudo_user": OTHER, "_use_sudo_login": True},
            marks=pytest.mark.skipif(shutil.which("sudo") is None, reason="sudo is not installed"),
        ),
        {"_su_user": OTHER, "_su_shell": "/bin/sh"},
        {"_su_user": OTHER, "_su_shell": "/bin/sh", "_su_password": "root needs none"},
    ],
    ids=["sudo", "su", "su-with-password"],
)
def test_rsync_as_another_user_writes_as_that_user(arguments, host, tree, others_directory):
    """A login shell could print into the protocol, and su with a password has no standard input to give."""
    (tree / "large").write_bytes(os.urandom(3 * MIB))
    host.rsync(f"{tree}/", f"{others_directory}/copy", ["-rt"], **arguments)
    for name in ("file", "large"):
        copy = others_directory / "copy" / name
        assert copy.read_bytes() == (tree / name).read_bytes()
        assert copy.owner() == OTHER


def test_passwords_travel_beside_the_command(host):
    host.connector_data["sudo_askpass_path__/tmp"] = host.connector_data["su_askpass_path__/tmp"] = "/tmp/askpass"
    try:
        for arguments in ({"_sudo": True, "_sudo_password": "s3cret"}, {"_su_user": "x", "_su_password": "s3cret"}):
            invocation = _invocation(wrap_for(host), "rsync --server .", arguments)
            assert not any("s3cret" in word for word in invocation.argv)
            assert "s3cret" in invocation.env.values()
    finally:
        host.connector_data.clear()


# --- every way to end ---


@needs_rsync
def test_rsync_that_takes_too_long_is_ended_on_both_sides(host, tree):
    stuck = Stuck(host, tree, _timeout=1)
    error = stuck.result()
    assert isinstance(error, CommandTimeout)
    assert str(error) == "rsync did not end within 1 s and was killed"


@needs_rsync
@pytest.mark.parametrize("part", ["local", "shell"])
def test_death_of_a_local_part_ends_the_remote_one(part, host, tree):
    """SIGKILL: neither can say anything."""
    stuck = Stuck(host, tree)
    [pid] = until(lambda: getattr(stuck, part))
    os.kill(pid, signal.SIGKILL)
    assert isinstance(stuck.result(), OSError)


@needs_rsync
def test_interrupted_rsync_raises_and_ends_the_remote_one(host, tree):
    """What Ctrl-C does: every process of the terminal gets the signal."""
    stuck = Stuck(host, tree)
    for pid in (*stuck.local, *stuck.shell):
        os.kill(pid, signal.SIGINT)
    error = stuck.result()
    assert isinstance(error, OSError)
    assert "rsync error" in str(error)


@needs_rsync
def test_rsync_whose_greenlet_is_killed_ends_everything(host, tree):
    stuck = Stuck(host, tree)
    stuck.greenlet.kill()
    assert isinstance(stuck.result(), gevent.GreenletExit)


@needs_rsync
def test_lost_session_ends_rsync_with_one_line(client, tree, tmp_path, host):
    """Not with rsync's own, which knows nothing of sessions."""
    large = tree / "large"
    large.write_bytes(os.urandom(8 * MIB))
    task = Rsync(f"{tree}/", f"{tmp_path}/copy", ["-a", "--bwlimit=4m"])
    running = gevent.spawn(task.run, client, wrap_for(host), {})
    until(lambda: any((tmp_path / "copy").glob(".large.*")))
    client._connection.drop("the cable was pulled")
    with pytest.raises(ConnectionLost, match=r"rsync failed: the cable was pulled; whether it has finished is not"):
        running.get(timeout=SECONDS)


# --- the shell itself ---


class Handed:
    """`rsh.py` as rsync starts it, with two sockets, and the door behind which *client* serves it."""

    def __init__(self, client, command):
        self.client = client
        self.failed = b""
        self.stdin, theirs_in = socket.socketpair()
        self.stdout, theirs_out = socket.socketpair()
        self.door = _Door(self._serve)
        number = self.door.outside.fileno()
        with theirs_in, theirs_out, self.door.outside:
            self.process = gevent_subprocess.Popen(
                [sys.executable, "-I", "-S", rsh.__file__, "target", command],
                stdin=theirs_in.fileno(),
                stdout=theirs_out.fileno(),
                env={**os.environ, rsh.SOCKET_VARIABLE: str(number)},
                pass_fds=[number],
            )

    def _serve(self, line, stdin, stdout, on_start):
        return run_as_shell(
            self.client,
            ["sh", "-c", line],
            stdin=read_chunks(stdin, shared=False),
            on_stdout=writer(stdout, shared=False),
            on_stderr=self._note,
            on_start=on_start,
            what="the command",
        )

    def _note(self, data):
        self.failed += data

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.door.close()
        self.process.wait(SECONDS)
        self.stdin.close()
        self.stdout.close()


@pytest.mark.parametrize(("command", "status"), [("true", 0), ("echo no >&2; exit 7", 7), ("kill -9 $$", 137)])
def test_shell_exits_as_the_command_did(command, status, client):
    with Handed(client, command) as handed:
        assert handed.process.wait(SECONDS) == handed.door.status == status
        assert handed.stdout.recv(1) == b""
        assert handed.failed == (b"no\n" if status == 7 else b"")


def test_shell_takes_words_as_they_are(client, tmp_path):
    with Handed(client, "printf %s 'a  b\n\udcff' \"\"; pwd >/dev/null") as handed:
        assert handed.process.wait(SECONDS) == 0
        assert handed.stdout.recv(100) == b"a  b\n\xff"


def test_shell_with_both_directions_full_neither_stops_nor_grows(client):
    """256 MiB come back while they are sent, and are taken slowly at first; memory is the windows'."""
    total = 256 * MIB
    chunk = os.urandom(MIB)

    def peak():
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1])

    with Handed(client, "cat") as handed:

        def send():
            for _ in range(total // MIB):
                handed.stdin.sendall(chunk)
            handed.stdin.shutdown(socket.SHUT_WR)

        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = peak()
        sending = gevent.spawn(send)
        assert not sending.join(0.5)  # nobody takes anything: it all stands still
        assert not sending.ready()
        received = bytearray()
        count = 0
        while data := handed.stdout.recv(MIB):
            received += data
            count += len(data)
            while len(received) >= MIB:
                assert received[:MIB] == chunk
                del received[:MIB]
        assert count == total
        assert handed.process.wait(SECONDS) == 0
        assert peak() - before < 16 * 1024


def test_door_serves_one_shell_and_one_command(client):
    """A second process that has inherited the socket gets nothing."""
    with Handed(client, "cat") as handed:
        door = handed.door
        handed.stdin.shutdown(socket.SHUT_WR)
        assert handed.process.wait(SECONDS) == 0
        assert door._serving.ready() or door._serving.join(SECONDS) is None
        door.close()
        assert door._inside.fileno() == door.outside.fileno() == -1


def test_shell_whose_pyinfra_is_gone_says_so_and_fails():
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        done = subprocess.run(
            [sys.executable, "-I", "-S", rsh.__file__, "target", "true"],
            env={**os.environ, rsh.SOCKET_VARIABLE: str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == rsh.FAILED
    assert done.stderr.startswith("pyinfra-agent rsh: the pyinfra that started this rsync cannot be reached: ")
    assert done.stderr.count("\n") == 1


def test_handing_over_imports_nothing_of_the_package():
    """It is what every run of files.rsync waits for first."""
    done = subprocess.run(
        [*_shell().replace("'", "").split()[:-1], "-X", "importtime", rsh.__file__, "target", "true"],
        env={rsh.SOCKET_VARIABLE: "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "socket" in imported
    assert not {"typing", "argparse", "subprocess", "gevent"} & imported
    assert not [name for name in imported if name.startswith("pyinfra")]
