"""`pyinfra-agent exec`: real processes, real terminals, a real agent."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest

from pyinfra_agent_connector._identity import IDENTITY_FILE
from pyinfra_agent_connector.exec_command import exec_command
from pyinfra_agent_protocol.keys import format_secret
from tests.connector.helpers import free_port, until
from tests.terminals import job

SECONDS = 15.0
#: A shell looks at its traps between commands.
FOREVER = "while :; do sleep 0.02; done"


@pytest.fixture
def home(agent, agent_home):
    """A home whose key the agent lets in."""
    agent_home.mkdir(mode=0o700)
    (agent_home / IDENTITY_FILE).touch(mode=0o600)
    (agent_home / IDENTITY_FILE).write_text(f"{format_secret(agent.identity.keypair, agent.identity.comment)}\n")
    return agent_home


@pytest.fixture
def words(agent, home):
    """The command line up to its options."""
    return [sys.executable, "-m", "pyinfra_agent", "exec", f"127.0.0.1:{agent.port}"]


def run(words, *command, stdin=subprocess.DEVNULL, **options):
    """Run it without a terminal, to its end."""
    return subprocess.run(
        [*words, "--", *command], stdin=stdin, capture_output=True, timeout=SECONDS, check=False, **options
    )


def failed_with(done, *fragments):
    """Assert that *done* is an error of ours, in one line."""
    assert done.returncode == 255
    assert done.stdout == b""
    line = done.stderr.decode()
    assert line.count("\n") == 1, line
    for fragment in ("pyinfra-agent", *fragments):
        assert fragment in line


def state_of(pid):
    """Return the state of a process, as in ps; "" for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_exec_is_found_by_its_entry_point():
    found = {entry.name: entry.load() for entry in metadata.entry_points(group="pyinfra_agent.commands")}
    assert found["exec"] is exec_command


# --- streams and status ---


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 255", 255), ("kill -KILL $$", 137)])
def test_exec_ends_as_the_command_did(words, script, status):
    done = run(words, "sh", "-c", f"echo out; echo err >&2; {script}")
    assert (done.returncode, done.stdout, done.stderr) == (status, b"out\n", b"err\n")


def test_exec_runs_exactly_the_arguments(words):
    """No shell takes them apart: spaces, quotes, `--`, empty words and bytes that are no text arrive as they are."""
    arguments = ["a b", "$HOME", "'", "--", "", "*", b"\xff"]
    done = run(words, "printf", "%s\\n", *arguments)
    assert done.stdout.split(b"\n") == [*(os.fsencode(word) for word in arguments), b""]


def test_exec_sets_directory_and_variables(words, tmp_path):
    done = run(
        [*words, "--chdir", tmp_path, "--env", "A=1=2", "--env", "B="], "sh", "-c", 'pwd; echo "$A,$B,${B-unset}"'
    )
    assert done.stdout.decode() == f"{tmp_path}\n1=2,,\n"


def test_exec_takes_the_name_as_an_inventory_has_it(words):
    assert run([*words[:-1], f"@agent/{words[-1]}"], "true").returncode == 0


def test_exec_on_loopback_needs_no_agent_and_no_key(tmp_path):
    done = run(
        [sys.executable, "-m", "pyinfra_agent", "exec", "loopback"],
        *("sh", "-c", "pwd; exit 3"),
        env=os.environ | {"PYINFRA_AGENT_HOME": str(tmp_path / "none")},
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout.decode()) == (3, f"{tmp_path}\n")
    assert not (tmp_path / "none").exists()


def test_exec_carries_64_mib_of_anything_both_ways(words, tmp_path):
    data = os.urandom(1024 * 1024) * 64
    file = tmp_path / "data"
    file.write_bytes(data)
    with file.open("rb") as stdin:
        done = run(words, "cat", stdin=stdin)
    assert done.returncode == 0
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_exec_says_end_of_input_when_there_is_one(words):
    with subprocess.Popen([*words, "--", "wc", "-c"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.communicate(b"\0\xff\x04\x03\n" * 3, timeout=SECONDS)[0].strip() == b"15"


def test_exec_ends_without_a_word_when_nobody_reads_on(words):
    with subprocess.Popen(
        [*words, "--", "yes"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(SECONDS) == 128 + signal.SIGPIPE


def test_exec_can_be_ended_when_nobody_takes_its_output(words):
    """The pipe is full and stays so; only the signals that the command did not see end this process."""
    with subprocess.Popen(
        [*words, "--", "sh", "-c", "trap '' TERM; yes"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"y\n"
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        assert process.wait(SECONDS) == 128 + signal.SIGTERM


def test_exec_with_a_full_disk_behind_its_output_says_so(words):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*words, "--", "echo", "lost"],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=SECONDS,
            check=False,
        )
    assert done.returncode == 255
    assert done.stderr == b"pyinfra-agent: standard output cannot be written: No space left on device\n"


def test_exec_with_closed_streams_writes_nothing_into_its_connection(words):
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words, "--", "sh", "-c", "cat; echo lost; exit 4"],
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 4


# --- errors of ours ---


def test_exec_kills_a_command_whose_time_is_over(words):
    failed_with(run([*words, "--timeout", "0.2"], "sleep", "60"), "sleep did not end within 0.2 s and was killed")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["web1"], "the command stands after --"),
        (["web1", "--"], "the command stands after --"),
        (["web1", "--", ""], "the command stands after --"),
        (["web1", "true"], "unrecognized arguments: true"),
        (["web1", "--env", "A", "--", "true"], "'A' is not NAME=VALUE"),
        (["web1", "--timeout", "0", "--", "true"], "'0' is not a number of seconds above 0"),
        (["-t", "-T", "web1", "--", "true"], "not allowed with"),
    ],
)
def test_exec_refuses_wrong_arguments_in_one_line(capsys, arguments, text):
    with pytest.raises(SystemExit) as raised:
        exec_command(arguments)
    assert raised.value.code == 255
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert text in said.err


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["10.0.0.0/24", "--", "true"], ["'10.0.0.0/24' does not name one agent"]),
        (["HERE", "--", "/no/such/program"], ["/no/such/program"]),
        (["HERE", "--chdir", "/no/such/directory", "--", "true"], ["/no/such/directory"]),
    ],
)
def test_exec_says_in_one_line_what_it_cannot_run(words, arguments, fragments):
    line = [*words[:-1], *(words[-1] if word == "HERE" else word for word in arguments)]
    failed_with(subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, check=False), *fragments)


def test_exec_says_that_nobody_listens(words):
    port = free_port()
    failed_with(run([*words[:-1], f"127.0.0.1:{port}"], "true"), f"nothing listens on 127.0.0.1:{port}")


# --- signals, without a terminal ---


@contextmanager
def piped(words, script):
    """Start *script* without a terminal; yield the process once the script has said that it is ready."""
    process = subprocess.Popen(
        [*words, "--", "sh", "-c", f"{script}\necho $$\n{FOREVER}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_signals_without_a_terminal_reach_the_command(words):
    traps = "\n".join(f"trap 'echo {name}' {name}" for name in ("INT", "QUIT", "HUP"))
    with piped(words, f"{traps}\ntrap 'echo TERM; exit 9' TERM") as (process, _):
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
            process.send_signal(number)
            assert process.stdout.readline() == f"{number.name[3:]}\n"
        assert process.wait(SECONDS) == 9


def test_signal_that_ends_the_command_is_the_exit_status(words):
    with piped(words, "") as (process, pid):
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 128 + signal.SIGTERM
        assert not state_of(pid)


def test_three_signals_in_a_row_give_up_on_a_deaf_command_and_cancel_it(words):
    with piped(words, "trap '' INT") as (process, pid):
        began = time.monotonic()
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        assert process.wait(SECONDS) == 128 + signal.SIGINT
        assert time.monotonic() - began < 2
        until(lambda: not state_of(pid))


def test_stop_without_a_terminal_stops_both_and_continue_continues_both(words):
    line = [*words, "--", "sh", "-c", 'echo $$; while read -r line; do echo "$line"; done']
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGTSTP)
        until(lambda: state_of(process.pid) == "T")
        until(lambda: state_of(pid) == "T")
        process.send_signal(signal.SIGCONT)
        process.stdin.write(b"again\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"again\n"
        process.stdin.close()
        assert process.wait(SECONDS) == 0


def test_signal_while_it_connects_ends_it_at_once(words):
    with socket.create_server(("127.0.0.1", 0)) as server:  # it accepts, and is silent
        line = [*words[:-1], f"127.0.0.1:{server.getsockname()[1]}", "--", "true"]
        with subprocess.Popen(line, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            connection, _ = server.accept()
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            with connection:
                assert process.wait(SECONDS) == 128 + signal.SIGINT
            assert time.monotonic() - began < 1
            assert process.stderr.read() == b""


# --- terminals ---


def test_terminal_is_raw_meanwhile_and_what_it_was_after(words):
    with job(*words, "--", "sh", "-c", "tty; echo begun; read line; echo got=$line; exit 6") as terminal:
        terminal.shows(b"begun")
        assert terminal.is_raw
        terminal.type(b"words\r")
        terminal.shows(b"got=words\r\n")
        assert terminal.status() == 6
        assert terminal.is_restored


def test_ctrl_c_in_a_terminal_is_typed_into_that_of_the_command(words):
    with job(*words, "--", "sh", "-c", f"trap 'echo caught; exit 5' INT; echo begun; {FOREVER}") as terminal:
        terminal.shows(b"begun")
        terminal.type(b"\x03")
        terminal.shows(b"caught")
        assert terminal.status() == 5
        assert terminal.is_restored


def test_ctrl_z_in_a_terminal_stops_a_job_of_the_command(words):
    with job(*words, "--env", "PS1=ready> ", "--", "bash", "--norc", "-i") as terminal:
        terminal.shows(b"ready> ")
        terminal.type(b"sh -c 'echo u''p; exec sleep 60'\r")  # dash that is stopped in its vfork stays there
        terminal.shows(b"up\r\n")
        terminal.type(b"\x1a")
        terminal.shows(b"Stopped")
        terminal.type(b"exit 3\rexit 3\r")  # bash objects once, because there is a stopped job
        assert terminal.status() == 3


def test_size_of_the_terminal_and_its_changes_reach_the_command(words):
    script = f"trap 'stty size' WINCH; stty size; echo $TERM; {FOREVER}"
    with job(*words, "--", "sh", "-c", script, rows=31, columns=97, env=os.environ | {"TERM": "vt220"}) as terminal:
        terminal.shows(b"31 97\r\nvt220\r\n")
        terminal.resize(12, 34)
        terminal.shows(b"12 34\r\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signal_that_ends_it_restores_the_terminal_and_cancels_the_command(words, number):
    with job(*words, "--", "sh", "-c", "echo pid=$$.; sleep 60") as terminal:
        terminal.shows(b"pid=")
        pid = int(terminal.shows(b"."))
        assert terminal.is_raw
        os.kill(terminal.pid, number)
        assert terminal.status() == 128 + number
        assert terminal.is_restored
        until(lambda: not state_of(pid))


def test_suspended_it_gives_the_terminal_back_and_takes_it_again(words):
    with job(*words, "--", "cat") as terminal:
        terminal.type(b"first\r")
        terminal.shows(b"first")
        terminal.wait_raw()
        os.kill(terminal.pid, signal.SIGTSTP)
        terminal.wait_stopped()
        assert terminal.is_restored
        os.kill(terminal.pid, signal.SIGCONT)
        terminal.wait_raw()
        terminal.type(b"second\r")
        terminal.shows(b"second")
        terminal.shows(b"second")
        terminal.type(b"\x04")
        assert terminal.status() == 0
        assert terminal.is_restored


def test_ctrl_c_while_the_connection_is_lost_ends_it_and_restores_the_terminal(tmp_path):
    """Keys have nowhere to go then."""
    script = "echo begun; read line; kill -KILL $PPID"
    words = [sys.executable, "-m", "pyinfra_agent", "exec", "loopback", "--", "sh", "-c", script]
    with job(*words) as terminal:
        terminal.shows(b"begun")
        assert terminal.is_raw
        terminal.type(b"\r")
        terminal.shows(b"trying to resume for 60 s\r\n")
        terminal.type(b"\x03")
        assert terminal.status() == 128 + signal.SIGINT
        assert terminal.is_restored


def test_option_t_makes_a_terminal_where_none_is(words):
    done = run([*words, "-t"], "sh", "-c", "test -t 0 && test -t 1 && test -t 2 && echo yes")
    assert (done.returncode, done.stdout) == (0, b"yes\r\n")


def test_option_capital_t_makes_none_and_ctrl_c_is_a_signal_to_the_command(words):
    script = f"trap 'echo caught; exit 5' INT; test -t 1 || echo none; {FOREVER}"
    with job(*words, "-T", "--", "sh", "-c", script) as terminal:
        terminal.shows(b"none\r\n")
        assert terminal.is_restored
        terminal.type(b"\x03")
        terminal.shows(b"caught")
        assert terminal.status() == 5


def test_ctrl_z_without_a_terminal_of_the_command_stops_both(words):
    with job(*words, "-T", "--", "sh", "-c", f"echo pid=$$; {FOREVER}") as terminal:
        terminal.shows(b"pid=")
        terminal.shows(b"\r\n")
        terminal.type(b"\x1a")
        terminal.wait_stopped()
        os.kill(terminal.pid, signal.SIGCONT)
        terminal.type(b"\x03")
        assert terminal.status() == 128 + signal.SIGINT
