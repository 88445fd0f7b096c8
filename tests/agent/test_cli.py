"""The command line: what it prints, where, and its exit status."""

from __future__ import annotations

import socket
import subprocess
import sys
from importlib import metadata

import pytest

from pyinfra_agent import cli
from pyinfra_agent._keys import StateError
from pyinfra_agent._litter import Litter
from pyinfra_agent_protocol.keys import KeyPair, fingerprint, format_public, format_secret, parse_public


@pytest.fixture
def line():
    return format_public(KeyPair.generate().public, "alice@laptop")


def run(*words, **options):
    """Run the command in a process of its own: an error must be one line there, and no traceback."""
    return subprocess.run(
        [sys.executable, "-m", "pyinfra_agent", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        stdin=subprocess.DEVNULL,
        **options,
    )


def one_line(text):
    assert text.endswith("\n")
    assert len(text.splitlines()) == 1, text
    assert text.startswith("pyinfra-agent")
    return text


def exits(call):
    with pytest.raises(SystemExit) as caught:
        call()
    return caught.value.code


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_goes_to_standard_output(words, capsys):
    assert cli.main(words) == 0
    captured = capsys.readouterr()
    assert captured.out == cli.USAGE
    assert captured.err == ""


def test_no_command_is_a_mistake_and_shows_the_usage(capsys):
    assert cli.main([]) == 2
    assert "usage: pyinfra-agent" in "".join(capsys.readouterr())


def test_usage_names_every_command():
    for name in cli._COMMANDS:
        assert f"\n  {name}" in cli.USAGE


def test_version_is_the_distributions(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"pyinfra-agent {metadata.version('pyinfra-agentd')}\n"


def test_unknown_command_is_one_line():
    done = run("sevre")
    assert done.returncode == 2
    assert "no command 'sevre'" in one_line(done.stderr)


@pytest.mark.parametrize("command", ["serve", "authorize", "key"])
def test_every_command_has_help(command, capsys):
    assert exits(lambda: cli.main([command, "--help"])) == 0
    assert "--state-dir" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["7963", "host:65536"])
def test_bad_listen_address_is_refused_with_an_example(text, capsys):
    assert exits(lambda: cli.main(["serve", "--listen", text])) == 2
    assert "like 0.0.0.0:" in one_line(capsys.readouterr().err)


def test_unknown_option_is_one_line(capsys):
    assert exits(lambda: cli.main(["serve", "--lisen", ":1"])) == 2
    one_line(capsys.readouterr().err)


def test_address_in_use_is_one_line_that_says_what_to_do(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("serve", "--listen", address, "--state-dir", tmp_path / "state")
    assert done.returncode == 1
    assert f"cannot listen on {address}: the address is in use" in one_line(done.stderr)


def test_name_that_does_not_resolve_is_one_line(tmp_path):
    done = run("serve", "--listen", "no-such-host.invalid:1", "--state-dir", tmp_path / "state")
    assert done.returncode == 1
    assert "cannot listen on no-such-host.invalid:1" in one_line(done.stderr)


def test_second_agent_with_the_same_state_is_one_line(tmp_path):
    run("key", "--state-dir", tmp_path)
    litter = Litter(str(tmp_path))
    try:
        done = run("serve", "--listen", "127.0.0.1:0", "--state-dir", tmp_path)
    finally:
        litter.close()
    assert done.returncode == 1
    assert "another agent" in one_line(done.stderr)


def test_key_is_printed_as_a_key_line_and_stays_the_same(tmp_path):
    first = run("key", "--state-dir", tmp_path / "state")
    assert first.returncode == 0
    assert parse_public(first.stdout).key
    assert run("key", "--state-dir", tmp_path / "state").stdout == first.stdout


@pytest.mark.parametrize("command", ["key", "serve"])
def test_key_that_others_can_read_is_refused_in_one_line(tmp_path, command):
    path = tmp_path / "key"
    path.write_text(format_secret(KeyPair.generate()) + "\n")
    path.chmod(0o644)
    done = run(command, "--state-dir", tmp_path)
    assert done.returncode == 1
    assert f"chmod 600 {path}" in one_line(done.stderr)


def test_state_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("serve", "--listen", "127.0.0.1:0", "--state-dir", tmp_path / "file" / "state")
    assert done.returncode == 1
    one_line(done.stderr)


def test_journal_that_cannot_be_opened_is_one_line(tmp_path):
    (tmp_path / "unfinished-uploads").mkdir()
    done = run("serve", "--listen", "127.0.0.1:0", "--state-dir", tmp_path)
    assert done.returncode == 1
    assert str(tmp_path) in one_line(done.stderr)


@pytest.mark.parametrize("quoted", [True, False])
def test_authorize_lets_a_controller_in_and_says_who(tmp_path, line, capsys, quoted):
    words = [line] if quoted else line.split()
    assert cli.main(["authorize", "--state-dir", str(tmp_path), *words]) == 0
    out = capsys.readouterr().out
    assert fingerprint(parse_public(line).key) in out
    assert "alice@laptop" in out
    assert (tmp_path / "authorized_controllers").read_text() == line + "\n"


@pytest.mark.parametrize("bad", ["nonsense", "pyinfra-agent-key AAAA", "pyinfra-agent-key", "a\nb"])
def test_authorize_of_a_bad_line_is_one_line_and_changes_nothing(tmp_path, bad):
    done = run("authorize", "--state-dir", tmp_path, bad)
    assert done.returncode == 1
    one_line(done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_authorize_of_a_secret_key_does_not_repeat_it(tmp_path):
    secret = format_secret(KeyPair.generate(), "mine")
    done = run("authorize", "--state-dir", tmp_path, secret)
    assert done.returncode == 1
    assert "secret" in one_line(done.stderr)
    assert secret.split()[1] not in done.stderr + done.stdout


def test_command_whose_package_is_missing_names_the_extra(monkeypatch, capsys):
    class Entry:
        name = "identity"

        def load(self):
            raise ModuleNotFoundError("No module named 'gevent'", name="gevent")

    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry()])
    assert cli.main(["identity"]) == 1
    assert "pip install 'pyinfra-agentd[connector]'" in one_line(capsys.readouterr().err)


def test_command_of_the_controllers_side_gets_its_arguments(monkeypatch):
    class Entry:
        name = "identity"

        def load(self):
            return lambda rest: len(rest)

    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry()])
    assert cli.main(["identity", "a", "b"]) == 2


def test_interrupt_is_the_shells_130(monkeypatch):
    def interrupted(rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_COMMANDS", {"key": interrupted})
    assert cli.main(["key"]) == 130


def test_user_without_a_home_is_told_in_one_line(monkeypatch, capsys):
    def no_home():
        raise StateError("this user has no home directory: give --state-dir DIR")

    monkeypatch.setattr(cli, "default_state_dir", no_home)
    assert cli.main(["key"]) == 1
    assert "--state-dir" in one_line(capsys.readouterr().err)
