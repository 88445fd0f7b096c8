"""A command finds what a login by ssh finds, and a request that cannot be served is refused in one clear line."""

from __future__ import annotations

import pytest

from tests.e2e.helpers import eventually

# What may differ from a login by ssh, and why.
OF_SSH = {"SSH_CLIENT", "SSH_CONNECTION"}
OF_A_SESSION = {"XDG_SESSION_ID", "XDG_SESSION_TYPE", "XDG_SESSION_CLASS"}  # the agent opens none
OF_THE_MAILBOX = {"MAIL", "MOTD_SHOWN"}  # pam_mail and pam_motd: there is nobody to read
OF_THE_SHELL = {"_", "PWD", "OLDPWD", "SHLVL", "FROM_BASHRC"}  # sshd starts bash, which reads .bashrc; the agent sh
OF_EITHER = OF_SSH | OF_A_SESSION | OF_THE_MAILBOX | OF_THE_SHELL
# Where no file says what PATH is, sshd has one that it was built with, and the agent takes that of login.defs.
ONLY_IN_LOGIN_DEFS = "/usr/local/games"


def variables(text):
    return dict(line.split("=", 1) for line in text.splitlines())


@pytest.fixture(params=["root", "carol"])
def both(request, machine):
    """A user's agent, and a function that runs a command as that user by ssh."""
    agent = request.getfixturevalue("roots" if request.param == "root" else "carols")
    # A login starts the user's manager, which ends soon after the last one; here it stays.
    machine.container.run("loginctl", "enable-linger", agent.user, check=True)
    home = "/root" if agent.user == "root" else f"/home/{agent.user}"
    uid = machine.container.run("id", "-u", agent.user).stdout.strip()
    eventually(lambda: machine.container.run("test", "-d", f"/run/user/{uid}").status == 0, 10, "the user's manager")
    return agent, lambda *words: machine.ssh(agent.user, *words), home


def test_environment_is_that_of_a_login_by_ssh(both):
    agent, ssh, home = both
    by_ssh = variables(ssh("env").stdout)
    by_agent = variables(agent.run("env").stdout)

    assert by_agent["HOME"] == home
    assert by_agent["USER"] == by_agent["LOGNAME"] == agent.user
    assert by_agent["SHELL"] == "/bin/bash"
    assert by_ssh["FROM_BASHRC"] == "read"
    for name in OF_EITHER:
        by_ssh.pop(name, None)
        by_agent.pop(name, None)
    by_agent["PATH"] = ":".join(place for place in by_agent["PATH"].split(":") if place != ONLY_IN_LOGIN_DEFS)
    assert by_agent == by_ssh


def without_signals_of_glibc(lines):
    """Clear 32 and 33 in masks of signals: glibc lets nobody change them, and make leaves one of them ignored."""

    def cleared(line):
        name, _, mask = line.partition(":\t")
        return f"{name}:\t{int(mask, 16) & ~(3 << 31):016x}" if name in ("SigBlk", "SigIgn") else line

    return [cleared(line) for line in lines]


def test_place_mask_and_groups_are_those_of_a_login_by_ssh(both):
    agent, ssh, home = both
    look = "pwd; umask; id -G; nice; grep Sig[BI] /proc/self/status; cat /proc/self/oom_score_adj /proc/self/limits"
    by_agent = agent.run(look).stdout.splitlines()
    assert by_agent[0] == home
    assert without_signals_of_glibc(by_agent) == without_signals_of_glibc(ssh(look).stdout.splitlines())


def test_etc_environment_and_locale_count_at_once(both, machine):
    """Both are read by PAM for a login by ssh, and by the agent for the next command."""
    agent, ssh, _ = both
    etc = machine.container.root / "etc"
    try:
        (etc / "environment").write_text('PATH="/opt/tools:/usr/bin:/bin"\n# a comment\nhttp_proxy=http://proxy:3128\n')
        (etc / "default/locale").write_text("LANG=C.UTF-8\n")
        for name in ("PATH", "http_proxy", "LANG"):
            assert agent.run(f"echo ${name}").stdout == ssh(f"echo ${name}").stdout.strip() != ""
    finally:
        (etc / "environment").write_text("")
        (etc / "default/locale").unlink()


BECOME = [{}, {"_sudo": True, "_sudo_user": "bob"}, {"_su_user": "bob"}]


@pytest.mark.parametrize("arguments", BECOME, ids=["plain", "sudo", "su"])
def test_missing_directory_is_named_and_nothing_runs(roots, arguments):
    answer = roots.run("echo ran", _chdir="/no/such", **arguments)
    assert not answer.succeeded
    assert answer.stdout == ""
    (line,) = (answer.error or answer.stderr).splitlines()
    assert "/no/such" in line


@pytest.mark.parametrize("arguments", BECOME, ids=["plain", "sudo", "su"])
@pytest.mark.parametrize("shell", ["no-such-shell", "/no/such/shell", "/etc/passwd"])
def test_unusable_shell_is_named_and_nothing_runs(roots, shell, arguments):
    answer = roots.run("echo ran", _shell_executable=shell, **arguments)
    assert not answer.succeeded
    assert answer.stdout == ""
    (line,) = (answer.error or answer.stderr).splitlines()
    assert shell in line
    assert "not found" in line or "no such file" in line.lower() or "permission" in line.lower()


@pytest.mark.parametrize("arguments", BECOME, ids=["plain", "sudo", "su"])
@pytest.mark.parametrize("shell", ["/bin/false", "/usr/sbin/nologin", "/bin/true"])
def test_shell_that_runs_no_commands_is_named_and_nothing_succeeds(roots, shell, arguments):
    """/bin/false fails without a word, and /bin/true would report that all is done."""
    answer = roots.run("echo ran", _shell_executable=shell, **arguments)
    assert not answer.succeeded
    assert shell in answer.error
    assert "runs no commands" in answer.error
    assert len(answer.error.splitlines()) == 1


@pytest.mark.parametrize("shell", ["no-such-shell", "/bin/false"])
def test_errors_name_the_host(roots, shell):
    assert roots.machine.container.address in roots.run("echo ran", _shell_executable=shell).error


MUCH = "x" * (10 * 1024 * 1024)
BECOME_TOO = [*BECOME, {"_sudo": True, "_sudo_user": "bob", "_use_sudo_login": True}, {"_doas": True}]


@pytest.mark.parametrize("arguments", BECOME_TOO, ids=["plain", "sudo", "su", "sudo login", "doas"])
def test_script_of_10_mib_runs_whoever_runs_it(roots, arguments):
    script = f"V={MUCH}\ncat\necho ${{#V}} $NAME; pwd\nexit 0"
    answer = roots.run(script, _env={"NAME": "it's"}, _chdir="/usr", **arguments)
    assert answer.stdout == f"{len(MUCH)} it's\n/usr", answer.error


def test_long_script_of_another_user_is_refused_where_its_input_is_taken(roots):
    for taken in ({"_stdin": "text"}, {"_get_pty": True}):
        answer = roots.run(": " + "x" * 200_000, _sudo=True, **taken)
        assert "cannot run as another user" in answer.error
        assert roots.machine.container.address in answer.error


def test_facts_are_those_of_the_user(both):
    agent, ssh, home = both
    facts = {name: agent.fact("server", name) for name in ("User", "Home")}
    assert facts == {"User": agent.user, "Home": home}
    assert agent.fact("server", "Which", command="useradd") == (ssh("command -v useradd").stdout.strip() or None)
