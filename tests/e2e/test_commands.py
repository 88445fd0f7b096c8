"""The `pyinfra-agent` command, as a person types it."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.helpers import AGENT, PYINFRA, clean_environment, eventually, run


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]], ids=" ".join)
def test_help_names_every_command(words):
    done = run(AGENT, *words)

    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: pyinfra-agent COMMAND")
    for command in ("serve", "authorize", "key", "identity", "loopback"):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", ["serve", "authorize", "key", "identity", "loopback"])
def test_each_command_has_help_of_its_own(command):
    done = run(AGENT, command, "--help")

    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: pyinfra-agent {command}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no-such-command"], "there is no command 'no-such-command'"),
        (["serve", "--no-such-option"], "--no-such-option"),
        (["serve", "extra"], "extra"),
        (["authorize"], "KEY LINE"),
        (["key", "extra"], "extra"),
        (["identity", "extra"], "extra"),
        (["loopback", "extra"], "extra"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_command_line_with_a_mistake_gets_one_line_and_status_two(words, said):
    done = run(AGENT, *words)

    assert (done.status, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("pyinfra-agent")
    assert said in done.stderr
    assert "--help" in done.stderr


def test_no_command_at_all_gets_the_help_and_status_two():
    done = run(AGENT)

    assert done.status == 2
    assert "usage: pyinfra-agent" in done.text


def test_version_is_that_of_the_package():
    done = run(AGENT, "--version")

    assert done.status == 0
    assert re.fullmatch(r"pyinfra-agent \d+\.\d+\.\d+\S*\n", done.stdout)


def test_identity_and_key_are_made_once_and_only_their_public_halves_are_printed(tmp_path):
    home, state = tmp_path / "home", tmp_path / "state"

    for words, file in (
        (("identity", "--home", home), home / "identity"),
        (("key", "--state-dir", state), state / "key"),
    ):
        first, second = run(AGENT, *words), run(AGENT, *words)

        assert first.status == second.status == 0
        assert first.stderr == ""
        assert first.stdout == second.stdout
        assert first.stdout.startswith("pyinfra-agent-key ")
        assert first.stdout.count("\n") == 1
        secret = next(word for word in file.read_text().split() if len(word) == 44)
        assert secret not in first.text


def test_output_into_a_closed_pipe_is_no_traceback(tmp_path):
    done = run("sh", "-c", f"{AGENT} --help | true; {AGENT} key --state-dir {tmp_path}/state | true")

    assert "Traceback" not in done.text


def start_loopback(lab, *, env=None):
    """Start `pyinfra-agent loopback`; return the process and the words that it says to type."""
    process = lab.keep(
        subprocess.Popen(
            [AGENT, "loopback"],
            cwd=lab.directory,
            env=env or clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    )
    for line in process.stdout:
        if line.strip().startswith("pyinfra @agent/"):
            return process, shlex.split(line)
    raise AssertionError(process.stderr.read())


def children_of(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def home_in(words):
    return Path(next(word.partition("=")[2] for word in words if word.startswith("agent_home=")))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_loopback_serves_another_process_and_leaves_nothing_when_it_is_interrupted(number, lab):
    process, words = start_loopback(lab)
    home, agents = home_in(words), children_of(process.pid)
    assert len(agents) == 1

    # "In another terminal": another directory, and another user's keys would not matter.
    done = run(PYINFRA, "-y", *words[1:], env=clean_environment(PYINFRA_AGENT_HOME="/nonexistent"), cwd="/")
    assert done.status == 0, done.text
    assert os.uname().nodename in done.text
    run_again = run(PYINFRA, "-y", *words[1 : words.index("fact")], "exec", "--", "echo", "again", cwd=lab.directory)
    assert "] again\n" in run_again.text

    process.send_signal(number)

    assert process.wait(5) == 0
    assert process.stderr.read() == ""
    assert not home.exists()
    eventually(lambda: not is_alive(agents[0]), 5, "the end of the agent")


def test_loopback_that_is_killed_takes_its_agent_and_the_commands_with_it(lab):
    process, words = start_loopback(lab)
    home, (agent,) = home_in(words), children_of(process.pid)
    pid = lab.directory / "pid"
    inventory = words[1 : words.index("fact")]
    script = f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 60"
    pyinfra = lab.keep(
        subprocess.Popen(
            [PYINFRA, "-y", *inventory, "--data", "agent_resume_timeout=1", "server.shell", script],
            cwd=lab.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    )
    eventually(pid.exists, 15, "the command's start")

    started = time.monotonic()
    process.kill()
    process.wait(5)

    eventually(lambda: not is_alive(agent), 5, "the end of the agent")
    eventually(lambda: not is_alive(int(pid.read_text())), 5, "the end of the command")
    assert pyinfra.wait(10) != 0
    assert time.monotonic() - started < 10
    for file in home.glob("*"):  # what a killed process cannot remove
        file.unlink()
    home.rmdir()
