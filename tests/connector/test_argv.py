"""From pyinfra's command to an argv."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyinfra.api import HiddenValue, QuoteString, StringCommand
from pyinfra.connectors.util import make_unix_command_for_host

from pyinfra_agent_connector._argv import BadCommand, Invocation, build_invocation, plain_words
from tests.connector.helpers import wrap_for

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSWORD = 'it\'s $(a) "secret" \\ =; x'
ASKPASS = "/tmp/ask pass"
STATE: Any = None


def make_host(**data: Any) -> Any:
    """Make a host whose askpass scripts are already there."""
    scripts = {"sudo_askpass_path__/tmp": ASKPASS, "su_askpass_path__/tmp": ASKPASS}
    return SimpleNamespace(state=STATE, connector_data={**scripts, **data}, get_temp_dir_config=lambda: "/tmp")


def build(
    command: str | StringCommand = "echo 'a b' && id", *, stdin_is_free: bool = False, **arguments: Any
) -> Invocation:
    command = command if isinstance(command, StringCommand) else StringCommand(command)
    return build_invocation(wrap_for(make_host()), command, arguments, stdin_is_free=stdin_is_free)


def upstream(command: str | StringCommand = "echo 'a b' && id", **arguments: Any) -> str:
    command = command if isinstance(command, StringCommand) else StringCommand(command)
    return make_unix_command_for_host(STATE, make_host(), command, **arguments).get_raw_value()


@pytest.mark.parametrize(
    ("arguments", "argv"),
    [
        ({}, ["sh", "-c", "echo 'a b' && id"]),
        ({"_shell_executable": "sh"}, ["sh", "-c", "echo 'a b' && id"]),
        ({"_shell_executable": "bash -l"}, ["bash", "-l", "-c", "echo 'a b' && id"]),
        ({"_shell_executable": "'/opt/my sh' -x"}, ["/opt/my sh", "-x", "-c", "echo 'a b' && id"]),
        ({"_shell_executable": None}, ["sh", "-c", "echo 'a b' && id"]),
        ({"_shell_executable": 7}, ["sh", "-c", "echo 'a b' && id"]),
        ({"_chdir": "/a b"}, ["sh", "-c", "cd '/a b' && echo 'a b' && id"]),
        ({"_env": {"A": "b c"}}, ["sh", "-c", "export 'A=b c' && echo 'a b' && id"]),
        ({"_retries": 2, "_temp_dir": "/x"}, ["sh", "-c", "echo 'a b' && id"]),
        ({"_sudo": True}, ["sudo", "-H", "-n", "sh", "-c", "echo 'a b' && id"]),
        (
            {"_sudo": True, "_sudo_user": "o'brien", "_use_sudo_login": True, "_preserve_sudo_env": True},
            ["sudo", "-H", "-n", "-i", "-E", "-u", "o'brien", "sh", "-c", "echo 'a b' && id"],
        ),
        (
            {"_sudo": True, "_env": {"A": "$b"}, "_chdir": "/c", "_shell_executable": "bash -l"},
            ["sudo", "-H", "-n", "bash", "-l", "-c", "cd /c && export 'A=$b' && echo 'a b' && id"],
        ),
        ({"_doas": True, "_doas_user": "app"}, ["doas", "-n", "-u", "app", "sh", "-c", "echo 'a b' && id"]),
        ({"_dzdo": True, "_dzdo_user": "app"}, ["dzdo", "-H", "-n", "-u", "app", "sh", "-c", "echo 'a b' && id"]),
    ],
)
def test_build_invocation_makes_one_plain_argv(arguments, argv):
    """Without a need for a shell around it, the command is the argv that pyinfra's string means."""
    invocation = build(**arguments)
    assert invocation.argv == argv
    assert invocation.env == {}


@pytest.mark.parametrize(
    "arguments",
    [
        {"_su_user": "app"},
        {"_su_user": "app", "_su_shell": "bash", "_preserve_su_env": True},
        {"_sudo": True, "_su_user": "app"},
        {"_sudo": True, "_shell_executable": None},
        {"_sudo": True, "_shell_executable": "$SHELL"},
        {"_shell_executable": "$SHELL"},
        {"_shell_executable": "LANG=C sh"},
        {"_shell_executable": "sh 'x"},
        {"_shell_executable": ""},
    ],
)
def test_build_invocation_leaves_the_rest_to_a_shell(arguments):
    """su, and what only a shell understands, is handed to sh as the string that @ssh would run."""
    invocation = build(**arguments)
    assert invocation.argv == ["sh", "-c", upstream(**arguments)]
    assert invocation.env == {}


SUDO_ENV = {"SUDO_ASKPASS": ASKPASS, "PYINFRA_SUDO_PASSWORD": PASSWORD}
SU_ENV = {"PYINFRA_SU_PASSWORD": PASSWORD}
SU_PIPE = "'/tmp/ask pass' | env -u PYINFRA_SU_PASSWORD su app -c 'sh -c id'"


@pytest.mark.parametrize(
    ("arguments", "argv", "env"),
    [
        ({"_sudo": True, "_sudo_password": PASSWORD}, ["sudo", "-H", "-A", "-k", "sh", "-c", "id"], SUDO_ENV),
        (
            {"_sudo": True, "_sudo_password": PASSWORD, "_shell_executable": None},
            ["sudo", "-H", "-A", "-k", "id"],
            SUDO_ENV,
        ),
        (
            {"_sudo": True, "_sudo_password": PASSWORD, "_su_user": "app"},
            ["sh", "-c", "sudo -H -A -k su app -c 'sh -c id'"],
            SUDO_ENV,
        ),
        ({"_su_user": "app", "_su_password": PASSWORD}, ["sh", "-c", SU_PIPE], SU_ENV),
        ({"_su_user": "app", "_su_password": PASSWORD, "_doas": True}, ["sh", "-c", SU_PIPE], SU_ENV),
        (
            {"_su_user": "app", "_su_password": PASSWORD, "_sudo": True, "_sudo_password": PASSWORD},
            ["sh", "-c", SU_PIPE],
            SU_ENV,
        ),
    ],
)
def test_build_invocation_moves_passwords_from_argv_to_env(arguments, argv, env):
    """Pyinfra's passwords are variables of the request; neither argv, the masked text nor repr holds them."""
    invocation = build("id", **arguments)
    assert invocation.argv == argv
    assert invocation.env == env
    assert "secret" not in " ".join(invocation.argv) + invocation.masked + repr(invocation)


def test_build_invocation_takes_the_password_that_was_prompted_for():
    """Built again after the prompt, the command has the password that pyinfra asked for."""
    host = make_host()
    arguments = {"_sudo": True}
    command = StringCommand("id")
    assert build_invocation(wrap_for(host), command, arguments).argv == ["sudo", "-H", "-n", "sh", "-c", "id"]
    host.connector_data["prompted_sudo_password"] = PASSWORD
    again = build_invocation(wrap_for(host), command, arguments)
    assert again.argv == ["sudo", "-H", "-A", "-k", "sh", "-c", "id"]
    assert again.env == SUDO_ENV
    assert arguments == {"_sudo": True}


def test_build_invocation_leaves_assignments_of_the_command_alone():
    """Only pyinfra's own prefix moves: the same words in the user's command stay there."""
    command = StringCommand("env", "SUDO_ASKPASS=/x", "PYINFRA_SUDO_PASSWORD=y", "sudo", "-A", "id")
    plain = "env SUDO_ASKPASS=/x PYINFRA_SUDO_PASSWORD=y sudo -A id"
    assert build(command).argv == ["sh", "-c", plain]
    assert build(command, _sudo=True).argv == ["sudo", "-H", "-n", "sh", "-c", plain]
    invocation = build(command, _sudo=True, _sudo_password="p", _shell_executable=None)
    assert invocation.argv == ["sudo", "-H", "-A", "-k", *plain.split()]
    assert invocation.env == {"SUDO_ASKPASS": ASKPASS, "PYINFRA_SUDO_PASSWORD": "p"}


def test_build_invocation_masks_hidden_values_in_what_is_shown():
    """A hidden value is in the script, because the command needs it, and masked in the text for people."""
    command = StringCommand("login", QuoteString(HiddenValue("s3cret x")))
    invocation = build(command, _env={"TOKEN": cast("Any", HiddenValue("t0ken"))})
    assert invocation.argv[2] == "export TOKEN=t0ken && login 's3cret x'"
    assert invocation.masked.startswith("sh -c ")
    assert "*MASKED*" in invocation.masked
    for secret in ("s3cret", "t0ken"):
        assert secret not in invocation.masked + repr(invocation)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("a b\tc", ["a", "b", "c"]),
        ("  a   ", ["a"]),
        ("a '' \"\"", ["a", "", ""]),
        ("a 'b;$c'\"d|e\"f\\;g", ["a", "b;$cd|ef;g"]),
        ('a "b\\"c\\\\d"', ["a", 'b"c\\d']),
        ("a 'b\nc'", ["a", "b\nc"]),
        ("a b=c d#e", ["a", "b=c", "d#e"]),
        ("é '漢'", ["é", "漢"]),
        ("'A'B c", ["AB", "c"]),
    ],
)
def test_plain_words_unquotes_a_simple_command(raw, words):
    """What a shell would only split and unquote has words."""
    assert plain_words(raw) == words


@pytest.mark.parametrize(
    "raw",
    [
        *("", "   ", "a | b", "a;b", "a & b", "a\nb", "a > b", "a < b", "(a)", "a $b", "a `b`", 'a "$b"', 'a "`b`"'),
        *(
            "a *",
            "a ?",
            "a [b]",
            "~/a",
            "a ~",
            "a {b,c}",
            "# a",
            "a # b",
            "A=b c",
            "A+=b c",
            "! a",
            "a 'b",
            'a "b',
            "a \\",
        ),
        *("a \\\nb", 'a "b\\c"', 'a "\\$b"', "a =b", "a b=~", "a\rb"),
    ],
)
def test_plain_words_refuses_what_a_shell_acts_upon(raw):
    """What a shell would expand, redirect, assign, join or refuse has no words."""
    assert plain_words(raw) is None


def test_plain_words_reads_a_long_text_in_linear_time():
    """A large script, with or without an operator at its end, does not stall the controller."""
    started = time.process_time()
    script = "a 'b' \"c\" \\d " * 20_000
    assert plain_words(script) == ["a", "b", "c", "d"] * 20_000
    assert plain_words(script + ";") is None
    assert plain_words("x" + script.replace(" ", "")) == ["x" + "abcd" * 20_000]
    assert time.process_time() - started < 5


@pytest.fixture(scope="module")
def show(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that prints each of its arguments on a line of its own."""
    path = tmp_path_factory.mktemp("bin") / "show"
    path.write_text("#!/bin/sh\nprintf '<%s>' \"$@\"\n")
    path.chmod(0o755)
    return path


words = st.sampled_from(
    [*"abé =#~$`\"'\\;&|<>*?[]{}!^()-\t", "''", '""', "a b", "'a b'", '"a\\"b"', "\\ ", "A=1", "$HOME", "\\\\", "\\\n"]
)


@settings(max_examples=150, deadline=None)
@given(raw=st.lists(words, max_size=8).map("".join))
def test_argv_run_directly_prints_what_sh_prints(raw, show):
    """Whatever has plain words is understood by a real shell in the same way."""
    command = f"{show} {raw}"
    argv = plain_words(command)
    if argv is None:
        return
    assert argv == shlex.split(command)
    assert run(argv) == run(["sh", "-c", command])


@settings(max_examples=60, deadline=None)
@given(word=st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20))
def test_argv_carries_any_quoted_argument(word, show):
    """An argument that pyinfra quotes arrives as it is through an argv, and through sh -c."""
    raw = StringCommand(str(show), QuoteString(word)).get_raw_value()
    argv = plain_words(raw)
    assert argv == [str(show), word]
    assert run(argv) == run(["sh", "-c", raw]) == f"<{word}>".encode()


def run(argv: list[str], env: dict[str, str] | None = None) -> bytes:
    return subprocess.run(
        argv,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=30,
    ).stdout


SCRIPTS = [
    "echo 'a b'  c",
    "printf '%s|' \"$0\" $A; echo $?",
    "cd / && pwd",
    "cat <<'E'\n$x \\y\nE\n",
    'echo "it\'s" é',
]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "arguments",
    [{}, {"_env": {"A": "b  c'd"}, "_chdir": "/"}, {"_shell_executable": "sh -e"}, {"_shell_executable": None}],
)
def test_invocation_prints_what_pyinfra_string_prints(script, arguments):
    """Run for real, the argv prints what the shell that @local uses prints."""
    expected = run(["sh", "-c", upstream(script, **arguments)])
    assert run(build(script, **arguments).argv) == expected
    assert expected


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user without a password")
needs_sudo = pytest.mark.skipif(shutil.which("sudo") is None, reason="sudo is not installed")


@needs_root
@needs_sudo
@pytest.mark.parametrize("script", [*SCRIPTS, "id -un"])
@pytest.mark.parametrize(
    "arguments", [{}, {"_sudo_user": "nobody", "_env": {"A": "b c"}}, {"_preserve_sudo_env": True}]
)
def test_invocation_by_sudo_prints_what_pyinfra_string_prints(script, arguments):
    """Run by a real sudo, the argv prints what pyinfra's string prints."""
    arguments = {"_sudo": True, **arguments}
    invocation = build(script, **arguments)
    assert invocation.argv[0] == "sudo"
    assert run(invocation.argv) == run(["sh", "-c", upstream(script, **arguments)]) != b""


@needs_root
@needs_sudo
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_sudo_finds_its_password_in_the_environment(public_dir):
    """sudo, called as by the argv, runs the askpass script, which prints the password that came in env."""
    askpass, seen = make_askpass(public_dir, "PYINFRA_SUDO_PASSWORD")
    host = make_host(**{"sudo_askpass_path__/tmp": str(askpass)})
    arguments = {"_sudo": True, "_sudo_password": PASSWORD}
    invocation = build_invocation(wrap_for(host), StringCommand("id"), arguments)
    # Root is never asked; a user without any right is asked, and then refused.
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    run([*drop, *invocation.argv], invocation.env)
    assert seen.read_text().splitlines()[0] == PASSWORD


@needs_root
def test_su_finds_its_password_and_does_not_hand_it_on(public_dir):
    """The askpass script sees the password of su, and the command that su starts does not, even with -m."""
    askpass, seen = make_askpass(public_dir, "PYINFRA_SU_PASSWORD")
    host = make_host(**{"su_askpass_path__/tmp": str(askpass)})
    arguments = {"_su_user": "root", "_su_password": PASSWORD, "_preserve_su_env": True}
    invocation = build_invocation(wrap_for(host), StringCommand("env"), arguments)
    output = run(invocation.argv, invocation.env)
    assert b"PATH=" in output
    assert b"PYINFRA_SU_PASSWORD" not in output
    assert seen.read_text().splitlines() == [PASSWORD]


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """A directory that every user can enter, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def make_askpass(directory: Path, variable: str) -> tuple[Path, Path]:
    """Make an askpass script that also writes down what it prints; anybody may run it."""
    seen = directory / "seen"
    seen.touch()
    seen.chmod(0o666)
    askpass = directory / "ask pass"
    askpass.write_text(f"#!/bin/sh\nprintf '%s\\n' \"${variable}\" | tee -a {shlex.quote(str(seen))}\n")
    askpass.chmod(0o755)
    return askpass, seen


@pytest.mark.parametrize(
    ("arguments", "argv"),
    [
        ({"_sudo": True}, ["sudo", "-H", "-n", "sh", "-c", 'eval "$(cat)"']),
        ({"_su_user": "nobody"}, ["su", "nobody", "-c", """sh -c 'eval "$(cat)"'"""]),
    ],
)
def test_command_too_long_for_another_user_is_read_from_standard_input(arguments, argv):
    command = "x" * 140_000
    invocation = build(command, **arguments, _env={"NAME": "b c"}, _chdir="/tmp", stdin_is_free=True)
    assert invocation.script == f"cd /tmp && export 'NAME=b c' && {command}".encode()
    assert (invocation.argv if "_sudo" in arguments else shlex.split(invocation.argv[-1])) == argv


@pytest.mark.parametrize("arguments", [{}, {"_sudo": True}, {"_su_user": "nobody"}])
def test_command_with_hidden_values_is_read_from_standard_input(arguments):
    hidden = {"_env": {"TOKEN": HiddenValue("secret")}, "_chdir": "/tmp"}
    invocation = build("id", **arguments, **hidden, stdin_is_free=True)
    assert invocation.script == b"cd /tmp && export TOKEN=secret && id"
    assert "secret" not in f"{invocation.argv} {invocation.env} {invocation.masked}"
    # Where standard input has another use there is only the argument.
    assert "secret" in str(build("id", **arguments, **hidden).argv)


def test_command_without_hidden_values_is_an_argument():
    """A password for sudo is no part of the script."""
    password = {"_sudo": True, "_sudo_password": "secret", "_sudo_askpass_path": "/askpass"}
    for arguments in ({}, {"_env": {"A": "b"}}, password):
        invocation = build("id", **arguments, stdin_is_free=True)
        assert invocation.script is None
        assert "id" in invocation.argv[-1]


def test_command_too_long_for_another_user_is_refused_where_standard_input_is_the_password():
    with pytest.raises(BadCommand, match=r"^a command of \d+ bytes cannot run as another user.*files\.put"):
        build("x" * 140_000, _su_user="nobody", _su_password="secret", _su_askpass_path="/askpass")


@pytest.mark.parametrize("arguments", [{}, {"_sudo": True}, {"_su_user": "nobody"}])
@pytest.mark.parametrize("shell", ["/bin/false", "nologin", "/usr/bin/true -x"])
def test_shell_that_runs_nothing_is_refused(shell, arguments):
    with pytest.raises(BadCommand, match=f"^_shell_executable is {shell}, which runs no commands: name a shell"):
        build("id", _shell_executable=shell, **arguments)


def test_long_command_without_another_user_is_left_to_the_agent():
    assert build("x" * 140_000).argv == ["sh", "-c", "x" * 140_000]
