"""The configuration file: what it may say, and what is said about the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_agent import cli
from pyinfra_agent._config import (
    _KEYS,
    ConfigError,
    default_config_path,
    format_config,
    load_config,
    parse_address,
    parse_config,
)
from pyinfra_agent._drain import Drain
from pyinfra_agent._log import LogFormat
from pyinfra_agent._settings import Cgroups, DnsZone, OnLost, Settings
from pyinfra_agent._upload import SyncPolicy

WHOLE = """\
listen = ["192.0.2.1:7000", "[2001:db8::1]:7963", ":0"]
state_dir = "/srv/agent"
announce = false
announce_interfaces = ["eth0", "wg0"]
groups = ["web", "berlin"]
dns = {zone = "Example.com.", server = "[2001:db8::53]:5300", key_file = "/srv/agent/dns.key"}
max_commands = 20
umask = "027"
nice = 5
cgroups = "off"
max_memory = "512M"
max_tasks = 40
grace = 1.5
drain = 2
on_lost = "kill"
on_lost_after = 30
session_ttl = 60
stop = 0
sync = "full"
log = "json"
"""


def complaints(text):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "agent.toml")
    assert all("\n" not in line for line in caught.value.lines)
    return caught.value.lines


def test_every_key_arrives_in_the_settings():
    assert parse_config(WHOLE, "agent.toml") == Settings(
        listen=(("192.0.2.1", 7000), ("2001:db8::1", 7963), (None, 0)),
        state_dir=Path("/srv/agent"),
        announce=False,
        announce_interfaces=("eth0", "wg0"),
        groups=("web", "berlin"),
        dns=DnsZone("example.com", ("2001:db8::53", 5300), Path("/srv/agent/dns.key")),
        commands_max=20,
        umask=0o027,
        nice=5,
        cgroups=Cgroups.OFF,
        memory_max_bytes=512 << 20,
        tasks_max=40,
        grace_seconds=1.5,
        drain=Drain(most_seconds=2.0),
        on_lost=OnLost.KILL,
        on_lost_after_seconds=30.0,
        session_ttl_seconds=60.0,
        stop_seconds=0.0,
        sync=SyncPolicy.FULL,
        log=LogFormat.JSON,
    )
    assert {line.partition(" ")[0] for line in WHOLE.splitlines()} == set(_KEYS)


def test_empty_file_makes_the_defaults_of_a_service():
    settings = parse_config("", "agent.toml")
    assert settings == replace(Settings(), listen=((None, 7963),), umask=0o022, nice=0, cgroups=Cgroups.AUTO)


def test_one_address_needs_no_list():
    assert parse_config('listen = "127.0.0.1:1"', "x").listen == (("127.0.0.1", 1),)


def test_short_drain_is_also_the_longest_silence():
    assert parse_config("drain = 0.1", "x").drain == Drain(0.1, 0.1)


@pytest.mark.parametrize("text", ["", WHOLE])
def test_printed_settings_make_the_same_settings(text):
    settings = replace(parse_config(text, "x"), state_dir=Path("/a b"))
    assert parse_config(format_config(settings), "y") == settings


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('max_commands = "many"', 'max_commands: found "many", expected a whole number from 1 to 100000'),
        ("max_commands = 0", "max_commands: found 0, expected a whole number from 1 to 100000"),
        ("max_commands = true", "max_commands: found true, expected a whole number"),
        ("max_commands = 5.0", "max_commands: found 5.0, expected a whole number"),
        ("nice = 20", "nice: found 20, expected a whole number from -20 to 19"),
        ('umask = "089"', 'umask: found "089", expected an octal number in quotes, like "022"'),
        ("umask = 22", "umask: found 22, expected an octal number in quotes"),
        ("grace = -1", "grace: found -1, expected a number of seconds from 0 to 3600"),
        ("grace = nan", "grace: found NaN, expected a number of seconds"),
        ("grace = inf", "grace: found Infinity, expected a number of seconds"),
        ('grace = "5s"', 'grace: found "5s", expected a number of seconds'),
        ("drain = false", "drain: found false, expected a number of seconds"),
        ('on_lost = "killl"', 'on_lost: found "killl", expected "keep" or "kill"'),
        ("on_lost = 1", 'on_lost: found 1, expected "keep" or "kill"'),
        ('sync = "all"', 'sync: found "all", expected "none", "data" or "full"'),
        ('cgroups = "on"', 'cgroups: found "on", expected "auto" or "off"'),
        ('announce = "yes"', 'announce: found "yes", expected true or false'),
        ('state_dir = "relative"', 'state_dir: found "relative", expected an absolute path'),
        ('state_dir = "/a\\u0000"', "expected an absolute path"),
        ('listen = "7963"', 'listen: found "7963", expected HOST:PORT, like'),
        ("listen = []", "listen: found [], expected HOST:PORT"),
        ("listen = [1]", "listen: found [1], expected HOST:PORT"),
        ("nice = 1979-05-27", 'nice: found "1979-05-27", expected a whole number'),
        ("[grace]\nx = 1", 'grace: found {"x": 1}, expected a number of seconds'),
        ('sync = "' + "x" * 1000 + '"', "..., expected"),
    ],
)
def test_wrong_value_is_one_line_with_what_was_found_and_what_is_expected(line, said):
    (complaint,) = complaints(line)
    assert complaint.startswith("agent.toml: ")
    assert said in complaint
    assert len(complaint) < 300


@pytest.mark.parametrize(
    ("word", "meant"),
    [("max_comands", "max_commands"), ("on-lost", "on_lost"), ("Listen", "listen"), ("session-ttl", "session_ttl")],
)
def test_unknown_key_is_refused_with_the_nearest_one(word, meant):
    assert complaints(f"{word} = 1") == [f"agent.toml: {word}: there is no such key; is {meant} meant?"]


def test_unknown_key_that_is_near_to_none_is_refused_with_all_of_them():
    (complaint,) = complaints("zzzzzzzz = 1")
    assert complaint.endswith("the keys are " + ", ".join(_KEYS))


def test_everything_that_is_wrong_is_said_at_once():
    assert len(complaints("nice = 99\nzz = 1\numask = 1\nlisten = []")) == 4


@pytest.mark.parametrize("text", ["nice = ", "nice = 1\nnice = 2", "= 1", "nice", '"a\\u0007b', "\0"])
def test_text_that_is_not_toml_is_one_line(text):
    (complaint,) = complaints(text)
    assert complaint.startswith("agent.toml: ")


@given(st.text())
def test_any_text_is_taken_or_refused(text):
    said = ["x: all is well"]
    try:
        parse_config(text, "x")
    except ConfigError as error:
        said = error.lines
    assert said
    assert all(line.startswith("x: ") and line.isprintable() for line in said)


@pytest.mark.parametrize(
    "text", ["7963", "host", "host:", ":http", "::1:7963", "host:65536", "host:-1", "host:\u0661", "[::1]", ""]
)
def test_bad_address_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"like 0\.0\.0\.0:"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        (":0", (None, 0)),
        ("name:1", ("name", 1)),
    ],
)
def test_address_is_host_and_port(text, address):
    assert parse_address(text) == address


# -- files


def test_missing_file_at_the_usual_place_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr("pyinfra_agent._config.default_config_path", lambda: tmp_path / "no" / "agent.toml")
    assert load_config() == parse_config("", "x")


def test_file_at_the_usual_place_is_read(monkeypatch, tmp_path):
    (tmp_path / "agent.toml").write_text("nice = 3")
    monkeypatch.setattr("pyinfra_agent._config.default_config_path", lambda: tmp_path / "agent.toml")
    assert load_config().nice == 3


def test_usual_place_is_etc_for_root_and_the_users_own_otherwise(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_config_path() == Path("/etc/pyinfra-agent/agent.toml")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/x")
    assert default_config_path() == Path("/x/pyinfra-agent/agent.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/alice")
    assert default_config_path() == Path("/home/alice/.config/pyinfra-agent/agent.toml")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: os.mkfifo(path), None),
        (lambda path: path.write_bytes(b"nice = 1\n\xff\n"), "line 2 is not UTF-8"),
        (lambda path: path.write_bytes(b"#" * (1 << 20) + b"\n"), "longer than"),
    ],
    ids=["missing", "directory", "fifo", "not text", "huge"],
)
def test_file_that_was_named_and_cannot_be_read_is_one_line(tmp_path, make, said):
    path = tmp_path / "agent.toml"
    make(path)
    if said is None:
        load_config(path)  # empty; what matters is that it did not wait
        return
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    (line,) = caught.value.lines
    assert line.startswith(f"{path}: ")
    assert said in line


# -- the command line


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "pyinfra_agent", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_check_config_prints_all_settings_and_they_are_a_configuration(tmp_path, capsys):
    (tmp_path / "agent.toml").write_text('nice = 7\nstate_dir = "/srv/agent"\n')
    assert cli.main(["check-config", str(tmp_path / "agent.toml")]) == 0
    printed = capsys.readouterr().out
    assert "nice = 7\n" in printed
    assert [line.partition(" ")[0] for line in printed.splitlines()] == list(_KEYS)
    assert parse_config(printed, "x") == load_config(tmp_path / "agent.toml")


def test_check_config_says_everything_that_is_wrong_and_fails(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text("nise = 7\ngrace = -1\n")
    done = run("check-config", path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"pyinfra-agent: {path}: nise: there is no such key; is nice meant?",
        f"pyinfra-agent: {path}: grace: found -1, expected a number of seconds from 0 to 3600",
    ]


@pytest.mark.parametrize("command", [["serve", "--config"], ["check-config"], ["key", "--config"]])
def test_configuration_that_is_not_there_is_one_line(tmp_path, command):
    done = run(*command, tmp_path / "absent.toml")
    assert done.returncode == 1
    assert done.stderr == f"pyinfra-agent: {tmp_path}/absent.toml: no such file or directory\n"


def test_key_and_authorize_use_the_state_directory_of_the_configuration(tmp_path):
    (tmp_path / "agent.toml").write_text(f'state_dir = "{tmp_path}/state"')
    printed = run("key", "--config", tmp_path / "agent.toml")
    assert printed.returncode == 0, printed.stderr
    assert (tmp_path / "state" / "key").exists()
    assert run("authorize", "--config", tmp_path / "agent.toml", printed.stdout.strip()).returncode == 0
    assert (tmp_path / "state" / "authorized_controllers").exists()


def test_flags_beat_the_configuration(tmp_path, monkeypatch):
    (tmp_path / "agent.toml").write_text('listen = "192.0.2.1:1"\nstate_dir = "/nowhere"\nannounce = true\nnice = 4\n')
    served = []
    monkeypatch.setattr("pyinfra_agent._serve.serve", lambda *said: served.append(said[:2]))
    flags = ["--listen", "127.0.0.1:0", "--state-dir", str(tmp_path / "state"), "--no-announce"]
    cli.main(["serve", "--config", str(tmp_path / "agent.toml"), *flags])
    ((settings, state_dir),) = served
    assert (settings.listen, settings.announce, settings.nice) == ((("127.0.0.1", 0),), False, 4)
    assert state_dir == tmp_path / "state"


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", None), ("1048576", 1 << 20), ('"4K"', 4096), ('"2G"', 2 << 30), ('"1T"', 1 << 40), ('"0M"', None)],
)
def test_memory_is_a_number_of_bytes_or_one_with_a_unit(text, count):
    assert parse_config(f"max_memory = {text}", "x").memory_max_bytes == count


@pytest.mark.parametrize("text", ['"4X"', '"4 K"', '"K"', "-1", "1.5", "true", '"4k"'])
def test_memory_of_another_form_is_refused(text):
    assert "max_memory: found" in complaints(f"max_memory = {text}")[0]


def test_service_is_told_where_its_files_are(monkeypatch, tmp_path):
    """The directories of a unit have the names that systemd gives them, whoever it runs as."""
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(tmp_path))
    assert default_config_path() == tmp_path / "agent.toml"
