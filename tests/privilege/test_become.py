"""Every way to become another user, through an agent of root's and through one of an ordinary user's."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import time

import pytest

from tests.privilege.helpers import BOBS_PASSWORD, CAROLS_PASSWORD

WHO = 'id -un; echo "$HOME ${PROFILE-not read}"'
ROOT = "root\n/root not read"
BOB = "bob\n/home/bob not read"
BOB_AT_LOGIN = "bob\n/home/bob read"

BY_SUDO = {"_sudo": True}
BY_SU = {"_su_user": "bob"}

WAYS = {
    "sudo": (BY_SUDO, ROOT),
    "sudo user": (BY_SUDO | {"_sudo_user": "bob"}, BOB),
    "sudo login": (BY_SUDO | {"_sudo_user": "bob", "_use_sudo_login": True}, BOB_AT_LOGIN),
    "su": (BY_SU, BOB),
    "su login": (BY_SU | {"_use_su_login": True}, BOB_AT_LOGIN),
    "su shell": (BY_SU | {"_su_shell": "bash"}, BOB),
    "doas": ({"_doas": True}, ROOT),
    "doas user": ({"_doas": True, "_doas_user": "bob"}, BOB),
}


def with_password(agent, arguments):
    """Return *arguments* with the password that an ordinary user needs."""
    if agent.user == "root":
        return arguments
    if "_sudo" in arguments:
        return arguments | {"_sudo_password": CAROLS_PASSWORD}
    return arguments | ({"_su_password": BOBS_PASSWORD} if "_su_user" in arguments else {})


@pytest.mark.parametrize("way", WAYS)
def test_command_runs_as_the_user_asked_for(agent, way):
    arguments, expected = WAYS[way]
    answer = agent.run(WHO, **with_password(agent, arguments))
    assert answer.succeeded, answer
    assert answer.stdout == expected


def test_root_may_give_passwords_that_nobody_asks_for(roots):
    assert roots.run(WHO, **BY_SUDO, _sudo_password="unused").stdout == ROOT
    assert roots.run(WHO, **BY_SU, _su_password="unused").stdout == BOB


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (BY_SUDO | {"_sudo_password": "wrong-GUESS"}, "incorrect password attempt"),
        (BY_SU | {"_su_password": "wrong-GUESS"}, "Authentication failure"),
    ],
)
def test_wrong_password_fails_the_command_soon_and_is_not_repeated(carols, arguments, complaint):
    started = time.monotonic()
    answer = carols.run(WHO, **arguments)
    assert not answer.succeeded
    assert complaint in answer.stderr
    assert "wrong-GUESS" not in answer.text
    assert answer.stdout == ""
    assert time.monotonic() - started < 5


def test_missing_su_password_fails_the_command_instead_of_waiting_for_one(carols):
    answer = carols.run(WHO, **BY_SU)
    assert not answer.succeeded
    assert "Authentication failure" in answer.stderr
    assert answer.stdout == ""


def test_user_without_a_shell_cannot_be_become_by_su(roots):
    """Without `_su_shell` su runs the shell of that user's, which is /bin/false."""
    assert not roots.run("echo ran", _su_user="walled").succeeded
    assert roots.run("id -un", _su_user="walled", _su_shell="sh").stdout == "walled"


@pytest.mark.parametrize("way", ["sudo user", "su"])
def test_files_are_written_and_read_as_the_user_asked_for(agent, machine, way):
    arguments, _ = WAYS[way]
    arguments = with_password(agent, arguments)
    target = f"/home/bob/{agent.user}-{way.replace(' ', '-')}"

    written = agent.put("text for bob\n", target, **arguments)
    read = agent.get(target, **arguments)

    assert written.succeeded, written
    assert (read.succeeded, read.stdout) == (True, "text for bob\n"), read
    assert machine.container.run("stat", "-c%U", target).stdout == "bob\n"


# --- with a person at the keyboard ---


def type_at(words, environment, directory, answers, seconds=30):
    """Run *words* at a terminal, answer each prompt of *answers* once; return exit status and what was shown."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=environment, cwd=directory
    )
    os.close(slave)
    shown = ""
    answers = dict(answers)
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 0.1)[0]:
                continue
            try:
                shown += os.read(master, 65536).decode(errors="replace")
            except OSError:  # EIO: nobody has the terminal open any more
                break
            for prompt in [prompt for prompt in answers if prompt in shown]:
                os.write(master, answers.pop(prompt).encode() + b"\n")
        return process.wait(max(0.1, deadline - time.monotonic())), shown
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        os.close(master)


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        ((), "] sudo password: "),
        (("--use-sudo-password",), "] sudo password: "),
        (("--same-sudo-password",), "password: "),
    ],
)
def test_prompted_password_serves_the_whole_run(machine, carols, options, prompt):
    """A person is asked when sudo wants a password, or at the start if told so; once for many operations."""
    deploy = machine.directory / "prompted.py"
    deploy.write_text(
        "from pyinfra.operations import server\n"
        "for number in range(3):\n"
        "    server.shell(commands=[f'id -un > /root/prompted-{number}'], _sudo=True)\n"
    )
    machine.container.run("rm", "-f", *(f"/root/prompted-{number}" for number in range(3)), check=True)
    in_use = machine.container.run("ls", "/tmp").stdout

    words = machine.pyinfra_words(carols, "-y", *options, deploy)
    status, shown = type_at(words, machine.environment, machine.directory, {prompt: CAROLS_PASSWORD})

    assert status == 0, shown
    assert len(re.findall(r"sudo password: ", shown)) == 1
    assert CAROLS_PASSWORD not in shown
    written = machine.container.run("sh", "-c", "cat /root/prompted-*").stdout
    assert written == "root\n" * 3
    assert machine.container.run("ls", "/tmp").stdout == in_use, "an askpass script was left"


def test_wrong_password_at_the_prompt_fails_the_operation(machine, carols):
    words = machine.pyinfra_words(carols, "-y", "--sudo", "server.shell", "id -un")
    status, shown = type_at(words, machine.environment, machine.directory, {"] sudo password: ": "wrong-GUESS"})
    assert status != 0
    assert "incorrect password attempt" in shown
    assert "wrong-GUESS" not in shown
