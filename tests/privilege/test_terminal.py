"""`_get_pty`: a terminal as a person would have it, also for a command that becomes another user."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from tests.e2e.helpers import AGENT, eventually
from tests.privilege.helpers import CAROLS_PASSWORD

LOOK = f"""exec {sys.executable} -c '
import os
print("same terminal", len({{os.ttyname(stream) for stream in range(3)}}) == 1)
try:
    controlling = os.tcgetpgrp(os.open("/dev/tty", os.O_RDWR)) == os.getpgrp()
except OSError:
    controlling = False
print("controlling", controlling)
print("by ioctl", *os.get_terminal_size())
print("by environment", *(os.environ.get(name) for name in ("COLUMNS", "LINES", "TERM")))
'"""
WAYS = {
    "plain": {},
    "sudo": {"_sudo": True, "_sudo_user": "bob"},
    "su": {"_su_user": "bob"},
}


@pytest.mark.parametrize(
    ("way", "is_controlling", "variables"),
    [
        ("plain", True, "80 24 xterm"),
        ("sudo", True, "None None xterm"),  # sudo resets the environment: programs ask the terminal then
        ("su", False, "80 24 xterm"),  # su gives its command a session of its own
    ],
)
def test_terminal_is_the_controlling_one_and_has_a_size(roots, way, is_controlling, variables):
    answer = roots.run(LOOK, _get_pty=True, **WAYS[way])
    assert [line.strip() for line in answer.stdout.splitlines()] == [
        "same terminal True",
        f"controlling {is_controlling}",
        "by ioctl 80 24",
        f"by environment {variables}",
    ], answer


def test_size_that_the_user_sets_counts(roots):
    assert roots.run("echo $COLUMNS", _get_pty=True, _env={"COLUMNS": "132"}).stdout.strip() == "132"


def test_both_outputs_are_one_and_keep_their_order(roots):
    answer = roots.run("echo 1; echo 2 >&2; echo 3", _get_pty=True)
    assert answer.stdout.split() == ["1", "2", "3"]
    assert answer.stderr == ""


@pytest.mark.parametrize("way", WAYS)
def test_what_is_typed_reaches_the_command(roots, way):
    answer = roots.run(
        "read first; read second; echo got $second, $first", _get_pty=True, _stdin=["a", "b"], **WAYS[way]
    )
    assert answer.stdout.rstrip().endswith("got b, a")


# sudo reads the terminal that it is in for a terminal of its own, which it makes for the command.
READERS = {
    "plain": ("roots", {}),
    "sudo": ("roots", {"_sudo": True, "_sudo_user": "bob"}),
    "sudo login": ("roots", {"_sudo": True, "_sudo_user": "bob", "_use_sudo_login": True}),
    "sudo with a password": ("carols", {"_sudo": True, "_sudo_password": CAROLS_PASSWORD}),
    "su": ("roots", {"_su_user": "bob"}),
    "doas": ("carols", {"_doas": True, "_doas_user": "bob"}),
}
LINES = {
    "one line": ["a"],
    "more than a terminal holds": [f"line {number}" for number in range(3000)],
    "the longest line": ["x" * 4095, "y"],
}


@pytest.mark.parametrize("lines", LINES)
@pytest.mark.parametrize("way", READERS)
def test_end_of_what_is_typed_reaches_the_command(request, way, lines):
    """With `ssh -tt` and @ssh it never does: both commands wait for ever."""
    agent, arguments = READERS[way]
    answer = request.getfixturevalue(agent).run(
        "cat | md5sum; echo over", _get_pty=True, _stdin=LINES[lines], _timeout=30, **arguments
    )
    typed = "".join(f"{line}\n" for line in LINES[lines])
    assert answer.succeeded, answer.error
    assert answer.stdout.split()[-3:] == [hashlib.md5(typed.encode()).hexdigest(), "-", "over"]


def test_end_of_what_is_typed_waits_for_a_reader_that_takes_its_time(roots):
    """A terminal that becomes raw while an end is unread makes a NUL of it, which is what sudo would read."""
    slow = "sleep 0.7; exec sudo -n -u bob sh -c 'cat | md5sum; echo over'"
    answer = roots.run(slow, _get_pty=True, _stdin=["a", "b"], _timeout=30)
    assert answer.succeeded, answer.error
    assert answer.stdout.split()[-3:] == [hashlib.md5(b"a\nb\n").hexdigest(), "-", "over"]


def test_line_that_a_terminal_would_cut_is_refused(roots):
    answer = roots.run("cat >/tmp/cut", _get_pty=True, _stdin=["x" * 4096], _timeout=30)
    assert "more than 4095 bytes" in answer.error, answer


@pytest.mark.parametrize("way", WAYS)
def test_hang_up_reaches_a_command_that_takes_it_for_a_signal(roots, machine, way):
    """On a cancelled request the terminal hangs up; an interactive shell, for one, takes no notice of SIGTERM."""
    mark = f"/tmp/hung-up-{way}"
    script = f"trap '' TERM; trap 'touch {mark}; exit' HUP; while :; do sleep 0.05; done"
    assert not roots.run(script, _get_pty=True, cancel_after=0.7, **WAYS[way]).succeeded
    eventually(lambda: machine.container.path(mark).exists(), 5, "the hang-up")


# Not by su, whose command has no controlling terminal.
INTERRUPTED = ["sh", "-c", 'trap "echo interrupted; exit 7" INT; echo ready; while :; do sleep 0.05; done']
AS_BOB = ["sudo", "-u", "bob", *INTERRUPTED]


@pytest.mark.parametrize("words", [INTERRUPTED, AS_BOB], ids=["plain", "sudo"])
def test_signal_of_the_keyboard_reaches_the_foreground(roots, words):
    answer = roots.driver.ask(roots.host, "interrupt", *words, cancel_after=10)
    assert answer.succeeded, answer
    assert "interrupted" in answer.stdout


@pytest.mark.parametrize("words", [INTERRUPTED, AS_BOB], ids=["plain", "sudo"])
def test_key_of_the_keyboard_reaches_the_foreground(roots, machine, words):
    with machine.lab.popen(
        *(AGENT, "exec", "-t", roots.host, "--", *words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=machine.environment,
    ) as process:
        try:
            seen = b""
            while b"ready" not in seen:
                seen += (data := process.stdout.read1())
                assert data
            rest, _ = process.communicate(b"\x03", timeout=10)
        finally:
            process.kill()
    assert b"interrupted" in rest
    assert process.returncode == 7
